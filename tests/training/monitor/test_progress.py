"""What the screen says of a training: compiling, steps, validations, errors."""

import contextlib

import numpy as np
import pytest

from fsa import bars
from fsa.training.monitor.metrics import NoMetrics
from fsa.training.monitor.progress import Reporter
from fsa.training.monitor.throughput import Throughput


@pytest.fixture
def shown(capsys, monkeypatch):
    """What came onto a terminal since the last time."""
    monkeypatch.setattr(bars, "_is_drawn", lambda: True)
    return lambda: capsys.readouterr().err


def reporter():
    """A reporter of 8 steps; made by the test, since it keeps the test's stderr."""
    report = Reporter(NoMetrics(), 0, 8, True, lambda *_: None, Throughput(1))
    return contextlib.closing(report)


def call(report, done):
    report.later(done, {"loss": np.array([0.25, 0.75])}, None)


def test_it_compiles_until_the_first_result(shown):
    with reporter() as report:
        assert "compiling" in shown()
        call(report, 2)
        assert shown() == ""
        call(report, 4)
        report.say("")
        last = shown().split("\r")[-1]
        assert "compiling" not in last and "loss=0.5000" in last and "2/8" in last


def test_validations_are_lines_with_their_scores(shown):
    with reporter() as report:
        call(report, 2)
        report.now()
        report.say("validating")
        assert "validating" in shown()
        scores = {"nll_at_0": 0.7, "nll_at_3": 0.5, "nll_at_10": 0.3}
        right = {"accuracy_at_0": 0.5, "accuracy_at_3": 0.7, "accuracy_at_10": 0.9}
        report.held_out(2, {"score": 1000.5, **scores, **right})
        text = shown()
        (line,) = [line for line in text.splitlines() if "Step 2" in line]
        assert (
            "0.5000" in line and "50%" in line and "90%" in line and "70%" not in line
        )
        assert "valid=0.5000" in text


def test_the_score_of_a_model_without_users_is_shown(shown):
    with reporter() as report:
        report.held_out(2, {"score": 1.25, "nll": 1.25})
        assert "1.2500" in shown()
