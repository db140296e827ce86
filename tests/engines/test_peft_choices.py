"""PEFT predicts, with adapters that fsa wrote, the choices that fsa predicts."""

import policies
import pytest

from benchmarks.peft_choices import figures, largest_difference, measure

pytestmark = [pytest.mark.engine, pytest.mark.usefixtures("quick_compile")]

LOW_RANKS = (("attention/out", "low_rank(8)"), ("mlp/down", "low_rank(8)"))


def test_choices(language_folder, engine_python):
    steerer = policies.make_steerer(language_folder, LOW_RANKS)
    task = policies.make_task(steerer.language)
    users = task.users("test")
    ours, theirs = measure(steerer, task, users, 2, engine_python)
    assert len(ours) == len(theirs) == len(users)
    # Log ratios are sums over some ten tokens.
    assert largest_difference(ours, theirs) < 1e-3
    assert figures(ours) == figures(theirs)
    assert 0 < figures(ours)["turn if reversed"] <= 100
