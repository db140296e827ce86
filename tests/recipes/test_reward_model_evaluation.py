"""What is said of an evaluation of a reward model."""

import logging
import re

import pytest

from fsa.recipes.reward_model_evaluation import warn_unconverged

CONFIG = {"model": {"num_steps": 7}}


@pytest.mark.parametrize(
    ("converged", "named"),
    [([1.0, 1.0], None), ([1.0, 0.75], "25% of people .*num_steps=7 .*after 10")],
)
def test_a_posterior_that_was_not_found_is_warned_of(converged, named, caplog):
    evaluation = {"n_context": [0, 10], "diagnostics": {"converged": converged}}
    with caplog.at_level(logging.WARNING):
        warn_unconverged(CONFIG, "runs/mine", evaluation)
    assert bool(caplog.records) == bool(named)
    if named:
        assert caplog.records[0].getMessage().startswith("runs/mine: ")
        assert re.search(named, caplog.text)


def test_a_model_without_steps_is_not_warned_of(caplog):
    warn_unconverged(CONFIG, "runs/mine", {"n_context": [0], "diagnostics": {}})
    assert not caplog.records
