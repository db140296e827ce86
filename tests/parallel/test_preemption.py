"""Preemption of two processes: they stop together, and the run can be resumed."""

import pathlib
import signal
import time

import chex
import jax
import numpy as np
import pytest

from benchmarks.survive import Program, reached, sound, survive
from fsa import exits
from fsa.parallel.preemption import EXIT_CODE
from fsa.training.monitor.metrics import read_metrics

TESTS = pathlib.Path(__file__).resolve().parents[1]
SMALL = str(TESTS / "parallel" / "small_run.py")
SCORING = str(TESTS / "language" / "scoring_run.py")


def small(steps, per_call=5, every=20, **options):
    sizes = {"steps": steps, "steps_per_call": per_call, "validate_every": every}
    command = [SMALL, *(f"--{name}={value}" for name, value in sizes.items())]
    return Program(command, steps, every, **options)


def log(workdir, process):
    return pathlib.Path(f"{workdir}-{process}.log").read_text()


def terminate_one(program, workdir, number=signal.SIGTERM, code=EXIT_CODE):
    """Sends a signal to the process that does not write; returns the last step.

    Raises:
      AssertionError: unless both save the same step in time and end with the code.
    """
    processes = program.start(workdir)
    while reached(workdir) < 30:
        assert all(p.poll() is None for p in processes), log(workdir, 0)
        time.sleep(0.01)
    since = time.monotonic()
    processes[1].send_signal(number)
    assert [process.wait() for process in processes] == [code] * 2
    took = time.monotonic() - since
    print(f"\nboth stopped and saved {took:.1f} s after the signal to one")
    assert took < 30
    step, _ = sound(workdir)
    assert 30 <= step < program.steps and step % 5 == 0
    for process in range(2):
        assert f"saved at step {step} " in log(workdir, process)
    return step


def test_sigterm_to_one_of_two_stops_both(tmp_path):
    """The metrics, which one of them writes, are complete."""
    step = terminate_one(small(2000), tmp_path / "run")
    entries = read_metrics(tmp_path / "run", "train")
    assert [entry["step"] for entry in entries] == list(range(5, step + 1, 5))


@pytest.mark.slow
def test_sigterm_to_one_of_two_that_score_responses_ends_both(tmp_path):
    """Otherwise the other would wait in a collective until the heartbeat ends it."""
    program = Program([SCORING], 0, 0)
    workdir = tmp_path / "run"
    processes = program.start(workdir)
    while "/50000 " not in log(workdir, 0) or "| 0/50000 " in log(workdir, 0)[-99:]:
        assert all(p.poll() is None for p in processes), log(workdir, 0)
        time.sleep(0.01)
    processes[1].send_signal(signal.SIGTERM)
    assert [process.wait() for process in processes] == [EXIT_CODE] * 2
    for process in range(2):
        assert "preempted" in log(workdir, process)


@pytest.mark.slow
def test_ctrl_c_to_one_of_two_stops_both(tmp_path):
    """And a launcher starts neither of them again."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        pytest.skip("Ctrl-C is ignored, as in the background of a script")
    terminate_one(small(2000), tmp_path / "run", signal.SIGINT, exits.INTERRUPTED)


@pytest.mark.slow
def test_a_stopped_run_is_resumed(tmp_path):
    """Bit by bit on the same processes, up to rounding on another number of them."""
    stopped, undisturbed = tmp_path / "stopped", tmp_path / "undisturbed"
    end = (terminate_one(small(2000), stopped) // 20 + 2) * 20
    assert small(end).run(stopped) == small(end).run(undisturbed) == [0, 0]
    (last, items), (wanted_last, wanted) = sound(stopped), sound(undisturbed)
    assert last == wanted_last == end
    jax.tree.map(np.testing.assert_array_equal, items, wanted)
    entries = read_metrics(stopped, "train")
    assert [entry["step"] for entry in entries] == list(range(5, end + 1, 5))

    alone = small(end + 20, num_processes=1, devices=2)
    assert alone.run(stopped) == [0]
    assert small(end + 20).run(undisturbed) == [0, 0]
    (last, items), (_, wanted) = sound(stopped), sound(undisturbed)
    assert last == end + 20
    chex.assert_trees_all_close(items, wanted, rtol=1e-5)


@pytest.mark.slow
def test_kills_of_one_of_two(tmp_path):
    """At 5 random moments, most of them while a checkpoint is written."""
    # A width at which writing takes a while.
    program = small(600, per_call=2, every=20)
    program.command.append("--width=256")
    kills = survive(program, tmp_path, kills=5, seed=0)
    assert sum(kill.saving for kill in kills) >= 2
    told = log(tmp_path / "killed", 0).count("saving was cut off")
    assert told >= sum(kill.saving and not kill.starting for kill in kills)
