"""Runs of two processes: they stop together, and go on as if nothing had been."""

import pathlib
import signal
import time

import jax
import numpy as np
import pytest

from benchmarks.survive import Program, reached, sound, survive
from fsa.errors import InputError
from fsa.parallel import processes as distributed
from fsa.training.monitor.metrics import read_metrics

TESTS = pathlib.Path(__file__).resolve().parents[1]
SMALL, SCORING = (
    str(TESTS / "training" / name) for name in ("small_run.py", "scoring_run.py")
)


def small(steps, per_call=5, every=20, **options):
    sizes = {"steps": steps, "steps_per_call": per_call, "validate_every": every}
    command = [SMALL, *(f"--{name}={value}" for name, value in sizes.items())]
    return Program(command, steps, every, **options)


def log(workdir, process):
    return pathlib.Path(f"{workdir}-{process}.log").read_text()


def terminate_one(program, workdir):
    """Sends SIGTERM to the process that does not write; gives the last step.

    Raises:
      AssertionError: unless both save the same step in time and ask to be started.
    """
    processes = program.start(workdir)
    while reached(workdir) < 30:
        assert all(p.poll() is None for p in processes), log(workdir, 0)
        time.sleep(0.01)
    since = time.monotonic()
    processes[1].send_signal(signal.SIGTERM)
    assert [process.wait() for process in processes] == [75, 75]
    took = time.monotonic() - since
    print(f"\nboth stopped and saved {took:.1f} s after SIGTERM to one")
    assert took < 30
    step, _ = sound(workdir)
    assert 30 <= step < program.steps and step % 5 == 0
    for process in range(2):
        assert f"preempted: saved at step {step} in " in log(workdir, process)
    return step


def test_sigterm_to_one_of_two_stops_both(tmp_path):
    """One of them writes the metrics."""
    step = terminate_one(small(2000), tmp_path / "run")
    entries = read_metrics(tmp_path / "run", "train")
    assert [entry["step"] for entry in entries] == list(range(5, step + 1, 5))


def test_sigterm_to_one_of_two_that_score_responses_ends_both(tmp_path):
    """Together, as the other would wait in a collective until the heartbeat."""
    program = Program([SCORING], 0, 0)
    workdir = tmp_path / "run"
    processes = program.start(workdir)
    while "/50000 " not in log(workdir, 0) or "| 0/50000 " in log(workdir, 0)[-99:]:
        assert all(p.poll() is None for p in processes), log(workdir, 0)
        time.sleep(0.01)
    processes[1].send_signal(signal.SIGTERM)
    assert [process.wait() for process in processes] == [75, 75]
    for process in range(2):
        assert "preempted while responses were scored" in log(workdir, process)


@pytest.mark.slow
def test_what_was_stopped_goes_on(tmp_path):
    """On the same processes bit by bit, on another number with the same sums."""
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    end = (terminate_one(small(2000), stopped) // 20 + 2) * 20
    assert small(end).run(stopped) == small(end).run(whole) == [0, 0]
    (last, items), (wanted_last, wanted) = sound(stopped), sound(whole)
    assert last == wanted_last == end
    jax.tree.map(np.testing.assert_array_equal, items, wanted)
    entries = read_metrics(stopped, "train")
    assert [entry["step"] for entry in entries] == list(range(5, end + 1, 5))

    alone = small(end + 20, num_processes=1, devices=2)
    assert alone.run(stopped) == [0]
    assert small(end + 20).run(whole) == [0, 0]
    (last, items), (_, wanted) = sound(stopped), sound(whole)
    assert last == end + 20
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-5), items, wanted)


@pytest.mark.slow
def test_kills_of_one_of_two(tmp_path):
    """At 5 random moments, most of them while a save is written."""
    # Saves that take a while.
    program = small(600, per_call=2, every=20)
    program.command.append("--width=256")
    kills = survive(program, tmp_path, kills=5, seed=0)
    assert sum(kill.saving for kill in kills) >= 2
    told = log(tmp_path / "killed", 0).count("saving was cut off")
    assert told >= sum(kill.saving and not kill.starting for kill in kills)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_processes": 2, "process_id": 0}, "go together"),
        ({"coordinator": "10.0.0.1:1234"}, "go together"),
        (
            {"coordinator": "10.0.0.1", "num_processes": 2, "process_id": 0},
            "--coordinator=10.0.0.1: write host:port",
        ),
        (
            {"coordinator": "10.0.0.1:1234", "num_processes": 2, "process_id": 2},
            r"--process_id=2: is in \[0, 1\], below --num_processes=2",
        ),
        (
            {"coordinator": "10.0.0.1:1234", "num_processes": 2, "process_id": -1},
            r"--process_id=-1: is in \[0, 1\]",
        ),
    ],
)
def test_flags_that_do_not_belong_together(given, message):
    with pytest.raises(InputError, match=message):
        distributed.initialize(**given)


@pytest.mark.parametrize("missing", [None, "SLURM_PROCID", "SLURM_STEP_NODELIST"])
def test_a_slurm_step_of_several_tasks_is_joined(monkeypatch, missing):
    """Not what merely runs inside an allocation, nor a single task."""
    joined = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *a, **k: joined.append(k))
    monkeypatch.setattr(jax.config, "update", lambda *a: None)
    variables = {
        "SLURM_JOB_ID": "7",
        "SLURM_STEP_NODELIST": "node[1-2]",
        "SLURM_PROCID": "1",
        "SLURM_LOCALID": "0",
        "SLURM_NTASKS": "2",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    if missing:
        monkeypatch.delenv(missing)
    distributed.initialize(heartbeat_seconds=7)
    assert [k["heartbeat_timeout_seconds"] for k in joined] == ([] if missing else [7])
    monkeypatch.setenv("SLURM_NTASKS", "1")
    joined.clear()
    distributed.initialize()
    assert not joined


def test_alone_everything_is_done_here():
    with distributed.first_goes_ahead():
        assert distributed.on_first(lambda: [1, "a"]) == [1, "a"]
    assert distributed.is_first()
