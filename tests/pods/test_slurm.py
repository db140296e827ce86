"""The sbatch file in launch/ on a SLURM cluster of one node."""

import os
import pathlib
import shutil
import subprocess
import sys
import time

import chex
import pytest

from benchmarks.survive import REPOSITORY, reached, small_reward_model, sound

needed = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not all(map(shutil.which, needed)) or os.geteuid() != 0,
        reason="needs root and the packages slurm-wlm and munge",
    ),
]


@pytest.fixture
def slurm(tmp_path_factory):
    """Runs a command of SLURM: `slurm("squeue")` returns its output."""
    # munge requires that nobody else may write to the folders above its socket.
    folder = pathlib.Path("/run") / tmp_path_factory.mktemp("slurm").name
    script = pathlib.Path(__file__).with_name("slurm_cluster.sh")
    subprocess.run([script, "start", folder], check=True, timeout=60)
    environment = {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("compiled")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        **os.environ,
        "SLURM_CONF": str(folder / "slurm.conf"),
        "PYTHON": sys.executable,
        "JAX_PLATFORMS": "cpu",
    }

    def command(*arguments):
        finished = subprocess.run(
            arguments,
            cwd=REPOSITORY,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert finished.returncode == 0, finished.stderr
        return finished.stdout.strip()

    yield command
    subprocess.run([script, "stop", folder], check=True, timeout=60)
    # The last steps of jobs may still be removing files.
    shutil.rmtree(folder, ignore_errors=True)


def submit(slurm, workdir):
    _, _, _, *flags = small_reward_model().command
    return slurm(
        *("sbatch", "--parsable", "--ntasks=2", "--overcommit"),
        f"--output={workdir}.log",
        *("launch/slurm.sbatch", *flags),
        *(f"--workdir={workdir}", "--heartbeat_seconds=30"),
    )


def state(slurm, job):
    shown = slurm("scontrol", "show", "job", "--oneliner", job)
    fields = dict(pair.split("=", 1) for pair in shown.split() if "=" in pair)
    return fields["JobState"], int(fields["Restarts"])


def wait_for(condition, workdir, seconds=900):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, pathlib.Path(f"{workdir}.log").read_text()
        time.sleep(0.1)


def finish(slurm, job, workdir):
    over = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
    wait_for(lambda: state(slurm, job)[0] in over, workdir)
    log = pathlib.Path(f"{workdir}.log").read_text()
    assert state(slurm, job)[0] == "COMPLETED", log
    return log


@pytest.mark.parametrize("how", ["requeue", "signal"])
def test_a_job_that_is_requeued_ends_as_one_that_is_not(slurm, tmp_path, how):
    """Either `scontrol requeue` asks for it, or after SIGTERM the file itself does.

    In the first case the file may ask as well before SLURM ends it; the job is
    restarted once.
    """
    undisturbed, stopped = tmp_path / "undisturbed", tmp_path / "stopped"
    finish(slurm, submit(slurm, undisturbed), undisturbed)
    job = submit(slurm, stopped)
    wait_for(lambda: reached(stopped) >= 18, stopped)
    if how == "requeue":
        slurm("scontrol", "requeue", job)
    else:
        slurm("scancel", "--signal=TERM", job)
    log = finish(slurm, job, stopped)
    assert state(slurm, job)[1] == 1
    assert "preempted: saved at step " in log
    saved_at = log.split("preempted: saved at step ")[1].split()[0]
    assert f"Resuming from step {saved_at}\n" in log
    if how == "signal":
        assert "stopped in time" in log
    (step, items), (wanted_step, wanted) = sound(stopped), sound(undisturbed)
    assert step == wanted_step == small_reward_model().steps
    chex.assert_trees_all_equal(items, wanted)
