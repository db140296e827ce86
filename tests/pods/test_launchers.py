"""The files for launching on pods, as far as they can be run without one."""

import os
import pathlib
import subprocess

import pytest
import yaml

from fsa.parallel.preemption import EXIT_CODE

LAUNCHERS = pathlib.Path(__file__).resolve().parents[2] / "launch"


def write_program(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(0o755)


@pytest.fixture
def run(tmp_path):
    """Runs a launcher with stand-ins for its tools and for training.

    The stand-in for training logs its command line and exits with the next given code.
    """

    def run(name, codes, **environment):
        home = tmp_path / "home"
        log = tmp_path / "log"
        for program in ("python", "fsa"):
            write_program(
                home / "fsa" / ".venv" / "bin" / program,
                f'for argument in {program} "$@"; do echo "$argument"; done >> {log}\n'
                f"code=$(head -1 {tmp_path}/codes); sed -i 1d {tmp_path}/codes\n"
                "exit $code",
            )
        (tmp_path / "codes").write_text("".join(f"{code}\n" for code in codes))
        tools = tmp_path / "tools"
        # Each runs its command on this machine.
        write_program(
            tools / "gcloud",
            'bash -c "${@: -1:1}"'.replace(
                '"${@: -1:1}"', '"$(printf %s "${@: -1:1}" | sed s/^--command=//)"'
            ),
        )
        write_program(tools / "srun", 'shift; "$@"')
        write_program(tools / "scontrol", f'echo "scontrol $*" >> {log}')
        finished = subprocess.run(
            ["bash", LAUNCHERS / name, "--config=a b.py:x", "--config.eval.n=(0, 2)"],
            env={
                "HOME": str(home),
                "PATH": f"{tools}:{os.environ['PATH']}",
                **environment,
            },
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return finished.returncode, log.read_text().splitlines()

    return run


ARGUMENTS = ["train", "--config=a b.py:x", "--config.eval.n=(0, 2)"]


@pytest.mark.parametrize("end", [0, 1, 2])
def test_tpu_vms_restart_a_preempted_run(run, end):
    _, log = run("tpu_vm.sh", [EXIT_CODE, EXIT_CODE, end], TPU="t", ZONE="z")
    assert log == 3 * ["fsa", *ARGUMENTS]


@pytest.mark.parametrize("code", [0, 1, 2, EXIT_CODE])
def test_slurm_requeues_a_preempted_run(run, tmp_path, code):
    ended, log = run(
        "slurm.sbatch",
        [code],
        SLURM_SUBMIT_DIR=str(tmp_path / "home" / "fsa"),
        SLURM_JOB_ID="7",
    )
    assert ended == code
    assert log == [
        *("python", "-m", "fsa", *ARGUMENTS),
        *["scontrol requeue 7"] * (code == EXIT_CODE),
    ]


def test_gke_restarts_a_preempted_run():
    """Without limit; other failures restart it a few times."""
    job_set = yaml.safe_load((LAUNCHERS / "gke_jobset.yaml").read_text())["spec"]
    (rule,) = job_set["failurePolicy"]["rules"]
    assert rule["action"] == "RestartJobSetAndIgnoreMaxRestarts"
    assert rule["onJobFailureReasons"] == ["PodFailurePolicy"]
    (job,) = job_set["replicatedJobs"]
    spec = job["template"]["spec"]
    on_exit = spec["podFailurePolicy"]["rules"][0]
    assert on_exit["action"] == "FailJob"
    assert on_exit["onExitCodes"]["values"] == [EXIT_CODE]
    (container,) = spec["template"]["spec"]["containers"]
    assert on_exit["onExitCodes"]["containerName"] == container["name"]
    assert container["command"] == ["python", "-m", "fsa", "train"]
