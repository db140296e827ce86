"""Plans of sweeps, from the experiment file to the summary."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading

import pytest
import stand_ins
from stand_ins import hold, make_jobs, notes, wait_until

from fsa.errors import InputError
from fsa.parallel.preemption import Interrupted
from fsa.sweeps import plan

TESTS = pathlib.Path(__file__).resolve().parents[1]
RUNS = [{"model.hidden": h, "seed": s} for h in (8, 9) for s in (0, 1)]

# A sweep in a process of its own, to be killed.
SWEEP = """
import json, pathlib, sys
import stand_ins
from fsa.sweeps.jobs import run_locally
list(run_locally(stand_ins.make_jobs(pathlib.Path("."), json.loads(sys.argv[1])), 1))
"""


@pytest.fixture
def place(tmp_path):
    return stand_ins.write(tmp_path)


def test_a_sweep_that_is_killed_redoes_nothing(place, capsys):
    """kill -9 while the second run trains; its process, left over, is waited for."""
    cut_off = plan.name_of(RUNS[1])
    held = hold(place, cut_off)
    first = subprocess.Popen(
        [sys.executable, "-c", SWEEP, json.dumps(RUNS)],
        cwd=place,
        env={**os.environ, "PYTHONPATH": f"{TESTS.parent}:{TESTS}"},
    )
    run = place / "runs" / cut_off
    wait_until((run / "pid").exists)
    first.send_signal(signal.SIGKILL)
    first.wait()

    jobs, failed = make_jobs(place, RUNS), []
    again = threading.Thread(target=lambda: failed.append(plan.run_jobs(jobs, place)))
    again.start()
    wait_until(lambda: "Waiting for processes" in (run / "log.txt").read_text())
    os.kill(int((run / "pid").read_text()), signal.SIGKILL)
    held.unlink()
    again.join(timeout=60)
    assert failed == [[]]
    for job in jobs:
        own = [what for what, name in notes(place) if name == job.name]
        once = ["train", "trained", "evaluate"]
        assert own == (["train", *once] if job.name == cut_off else once)

    plan.write(plan.gather(RUNS, jobs), place)
    # (0.90 + 0.91) / 2, and t(0.975, 1) * 0.01 / 2.
    (row,) = re.findall("^8 .*", capsys.readouterr().out, re.MULTILINE)
    assert row.split() == "8 2 50.00 ± 0.00 90.50 ± 6.35 0.2000 ± 0.0000".split()
    assert (place / "results.md").read_text().count("± 6.35") == 2
    assert (place / "results.png").read_bytes().startswith(b"\x89PNG")
    found = json.loads((place / "results.json").read_text())
    assert [one["fields"] for one in found] == [{"model.hidden": h} for h in (8, 9)]


def test_a_sweep_that_is_interrupted_says_how_many_runs_are_done(place, monkeypatch):
    def first_only(left, *unused):
        left[0].folder.mkdir(parents=True)
        left[0].finish()
        yield left[0]
        raise KeyboardInterrupt

    monkeypatch.setattr(plan, "_start", first_only)
    with pytest.raises(Interrupted, match=f"1 of {len(RUNS)}"):
        plan.run_jobs(make_jobs(place, RUNS), place)


def test_a_failed_run_is_named_in_a_line(place, capsys):
    runs = [{"model.hidden": h, "seed": s} for h in (7, 9) for s in (0, 1)]
    jobs = make_jobs(place, runs)
    assert set(plan.run_jobs(jobs, place, at_once=2)) == set(jobs[:2])
    shown = capsys.readouterr()
    lines = [line for line in shown.out.splitlines() if "failed: " in line]
    assert len(lines) == 2
    for job in jobs[:2]:
        (line,) = [line for line in lines if job.name in line]
        assert "an unlucky number" in line and str(job.log) in line
    first, second = plan.gather(runs, jobs)
    assert (first.fields, first.seeds) == ({"model.hidden": 7}, 2)
    assert not first.evaluations and len(second.evaluations) == 2


def test_without_scores_nothing_is_written(tmp_path):
    plan.write(plan.gather(RUNS, make_jobs(tmp_path, RUNS)), tmp_path)
    assert not list(tmp_path.iterdir())


def test_commands_of_a_job(tmp_path):
    (job,) = plan.make_jobs(
        [{"a.b": (1, 2), "seed": 3}], tmp_path, train=["t", "--c=x"], evaluate=["e"]
    )
    assert job.name == "a.b=(1,2),seed=3" and job.folder == tmp_path / "runs" / job.name
    workdir = f"--workdir={job.folder}"
    train = ("t", "--c=x", workdir, "--config.a.b=(1, 2)", "--config.seed=3")
    assert job.commands == (train, ("e", workdir))


def test_names_are_those_of_folders():
    assert plan.name_of({"task.path": "a/b c", "x": 1}) == "task.path=a%2Fbc,x=1"
    assert plan.name_of({}) == "run"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "get_sweep"),
        ("def get_sweep(): return []", "get_sweep"),
        ("def get_sweep(): return [{'seed': 0}, {'seed': 0}]", "seed=0"),
    ],
)
def test_sweeps_without_runs_or_with_a_run_twice(tmp_path, text, named):
    path = tmp_path / "mine.py"
    path.write_text(text)
    with pytest.raises(InputError, match=named) as error:
        plan.read_sweep(str(path))
    assert str(path) in str(error.value)


def test_a_slurm_array_needs_a_time_limit(place):
    with pytest.raises(InputError, match="`slurm`.*time"):
        plan.run_jobs(make_jobs(place, RUNS), place, slurm={"partition": "gpu"})
