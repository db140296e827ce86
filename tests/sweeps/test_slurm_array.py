"""A sweep as a SLURM array, against programs that answer as SLURM's do."""

import os
import stat
import threading

import pytest
import stand_ins
from stand_ins import hold, make_jobs, notes, wait_until

submitit = pytest.importorskip("submitit")

from fsa.errors import InputError  # noqa: E402  (after what may skip it all)
from fsa.sweeps import slurm as ours  # noqa: E402
from fsa.sweeps.jobs import until_left  # noqa: E402

# Starts the tasks of the array, at most one at a time, and notes what it was asked.
SBATCH = """#!/usr/bin/env python3
import os, pathlib, re, subprocess, sys
script = pathlib.Path(sys.argv[1]).read_text()
folder = pathlib.Path(__file__).parent
with open(folder / "asked", "a") as file:
    file.write(script)
number = str(100 + (folder / "asked").read_text().count("#!/bin/bash"))
found = re.search(r"--array=0-(\\d+)%(\\d+)", script)
tasks = range(int(found[1]) + 1) if found else [None]
if os.fork():
    print("Submitted batch job", number)
    sys.exit()
os.setsid()
os.dup2(os.open(os.devnull, os.O_RDWR), 1)
os.dup2(1, 2)
names = [number if task is None else f"{number}_{task}" for task in tasks]
for name in names:
    (folder / "queue" / name).touch()
for task, name in zip(tasks, names):
    array = {} if task is None else {
        "SLURM_ARRAY_JOB_ID": number, "SLURM_ARRAY_TASK_ID": str(task)}
    subprocess.run(["bash", sys.argv[1]], env={
        **os.environ, **array, "SLURM_JOB_ID": name, "SLURM_NTASKS": "1",
        "SLURM_JOB_NUM_NODES": "1", "SLURM_NODEID": "0", "SLURM_PROCID": "0",
        "SLURM_LOCALID": "0", "SLURM_JOB_NODELIST": "here"})
    (folder / "queue" / name).unlink()
"""
SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do [[ $1 == --unbuffered ]] || shift; shift; done
exec "$@"
"""
SQUEUE = """#!/bin/bash
ls "$(dirname "$0")/queue"
"""


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """The folder of SLURM's stand-ins, which come first on PATH."""
    place = stand_ins.write(tmp_path)
    folder = place / "slurm_bin"
    (folder / "queue").mkdir(parents=True)
    for name, text in (("sbatch", SBATCH), ("srun", SRUN), ("squeue", SQUEUE)):
        (folder / name).write_text(text)
        (folder / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setattr(ours, "_LOOK_SECONDS", 0.05)
    return folder


OPTIONS = {"time": "5", "partition": "gpu"}


def array(slurm, jobs, options=OPTIONS):
    return ours.slurm_array(jobs, 2, slurm.parent / "slurm", options)


def test_an_array_does_all_jobs(slurm):
    """What fails is not marked as done; options reach sbatch."""
    place = slurm.parent
    jobs = make_jobs(place, [{"seed": 0}, {"model.hidden": 7, "seed": 1}, {"seed": 2}])
    assert set(array(slurm, jobs)) == set(jobs)
    assert [job.is_done() for job in jobs] == [True, False, True]
    assert "an unlucky number" in jobs[1].last_log_line()
    asked = (slurm / "asked").read_text()
    for line in ("array=0-2%2", "partition=gpu", "time=5"):
        assert f"#SBATCH --{line}\n" in asked
    # The one that failed is tried again, alone and not as an array.
    assert list(array(slurm, jobs[1:2])) == jobs[1:2]
    assert (slurm / "asked").read_text().count("#SBATCH --array") == 1
    assert notes(place).count(("train", jobs[1].name)) == 2


def test_jobs_that_still_wait_are_not_queued_again(slurm):
    """As after the sweep was killed, and the array was not."""
    place = slurm.parent
    held = hold(place, "seed=0")
    jobs = make_jobs(place, [{"seed": 0}, {"seed": 1}])
    first = array(slurm, jobs)
    queued = []

    def look():
        queued.append(1)
        if len(queued) > 1:
            raise KeyboardInterrupt
        return {"101_0", "101_1"}

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("fsa.sweeps.jobs.queued_in_slurm", look)
        next(first)
    wait_until(lambda: (jobs[0].folder / "pid").exists())
    again = array(slurm, jobs)
    held.unlink()
    assert set(again) == set(jobs)
    assert (slurm / "asked").read_text().count("#!/bin/bash") == 1
    assert [what for what, run in notes(place) if run == "seed=0"] == [
        *("train", "trained", "evaluate")
    ]


def test_a_silent_squeue_ends_no_job(monkeypatch, tmp_path):
    answers = iter([None, {"7_0"}, None, set()])
    monkeypatch.setattr("fsa.sweeps.jobs.queued_in_slurm", lambda: next(answers))
    (job,) = make_jobs(tmp_path, [{"seed": 0}])
    assert list(until_left({job: "7_0"}, 0)) == [job]
    assert next(answers, "all asked") == "all asked"


def test_a_job_that_meets_its_time_limit_is_queued_again(slurm):
    """Its process ends first, and the job that follows goes on."""
    place = slurm.parent
    held = hold(place, "seed=0")
    (job,) = make_jobs(place, [{"seed": 0}])
    resumable = ours.Resumable()
    thread = threading.Thread(target=resumable, args=(job,))
    thread.start()
    wait_until(lambda: (job.folder / "pid").exists())
    following = resumable.checkpoint(job)
    with pytest.raises(ProcessLookupError):
        thread.join()
        os.kill(int((job.folder / "pid").read_text()), 0)
    assert not job.is_done()
    held.unlink()
    following.function(*following.args)
    assert job.is_done()


def test_an_unknown_option_is_named(slurm):
    options = {"time": "5", "partitoin": "gpu"}
    with pytest.raises(InputError, match="partitoin"):
        next(array(slurm, make_jobs(slurm.parent, [{"seed": 0}]), options))


def test_without_slurm(slurm, monkeypatch):
    monkeypatch.setenv("PATH", str(slurm.parent))
    with pytest.raises(InputError, match="slurm"):
        next(array(slurm, make_jobs(slurm.parent, [{"seed": 0}])))
