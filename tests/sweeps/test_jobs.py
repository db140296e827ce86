"""Jobs: nothing is done twice, and one failure stops nothing else."""

import sys
import time

import pytest
import stand_ins
from stand_ins import hold, make_jobs, notes, wait_until

from fsa.sweeps.jobs import Job, run_locally

RUNS = [
    {"model.hidden": 8, "seed": 0},
    {"model.hidden": 7, "seed": 0},
    {"model.hidden": 8, "seed": 1},
]


@pytest.fixture
def place(tmp_path):
    return stand_ins.write(tmp_path)


def test_jobs_are_done_once_and_a_failure_stops_no_other(place):
    jobs = make_jobs(place, RUNS)
    assert set(run_locally(jobs, 3)) == set(jobs)
    assert [job.is_done() for job in jobs] == [True, False, True]
    assert jobs[1].last_log_line() == "error: an unlucky number"
    # The command after the one that failed was not run.
    assert not (jobs[1].folder / "evaluation.json").exists()
    done = [(what, jobs[0].name) for what in ("train", "trained", "evaluate")]
    assert [note for note in notes(place) if note[1] == jobs[0].name] == done
    # A job that is done is not run again.
    list(run_locally(jobs[:1], 1))
    assert [note for note in notes(place) if note[1] == jobs[0].name] == done


@pytest.mark.parametrize("at_once", [1, 3])
def test_as_many_jobs_at_a_time_as_wanted(place, at_once):
    list(run_locally(make_jobs(place, [{"seed": s} for s in range(3)]), at_once))
    running, most = 0, 0
    for what, _ in notes(place):
        running += {"train": 1, "trained": -1}.get(what, 0)
        most = max(most, running)
    assert most == 1 if at_once == 1 else most <= 3
    assert len(notes(place)) == 9


def test_stopping_ends_what_runs_and_begins_nothing(place):
    hold(place, "seed=1")
    jobs = make_jobs(place, [RUNS[1], {"seed": 1}, {"seed": 2}])
    ended = run_locally(jobs, 1)
    assert next(ended) == jobs[0]
    wait_until(lambda: ("train", "seed=1") in notes(place))
    begin = time.monotonic()
    ended.close()
    assert time.monotonic() - begin < 30
    assert notes(place)[1:] == [("train", "seed=1")]


def test_stopping_waits_for_what_is_saved(tmp_path):
    """A run gets SIGTERM and saves; the sweep ends after it."""
    program = (
        "import pathlib, signal, sys, time; folder = pathlib.Path(sys.argv[1]);"
        "save = lambda *_: (time.sleep(0.5), (folder / 'saved').touch(), sys.exit(75));"
        "signal.signal(signal.SIGTERM, save); (folder / 'runs').touch(); time.sleep(60)"
    )
    long = Job(
        "long",
        tmp_path / "long",
        ((sys.executable, "-c", program, str(tmp_path)),),
        tmp_path / "compiled",
    )
    short = Job("short", tmp_path / "short", (), tmp_path / "compiled")
    ended = run_locally([short, long], 2)
    assert next(ended) == short
    wait_until((tmp_path / "runs").exists)
    ended.close()
    assert (tmp_path / "saved").exists() and not long.is_done()
