"""Settings of experiments on people, and how differences between them are stated."""

import numpy as np
import pytest

from benchmarks.paired_difference import paired
from benchmarks.probe_data import everybody
from benchmarks.settings import config_of

EXPERIMENT = "experiments/polis/consultation.py"


def test_a_setting_is_a_preset_and_fields():
    """Numbers are numbers and words are words; the rest is the experiment's."""
    setting = "bayes,model.dropout=0.5,model.context=votes,train.steps=100"
    plain, changed = (config_of(s, EXPERIMENT, "data/a") for s in ("bayes", setting))
    assert plain.task.path == changed.task.path == "data/a"
    assert plain.model.reward == "linear" and plain.task.train_on == "ratings"
    assert (changed.model.dropout, changed.train.steps) == (0.5, 100)
    assert changed.model.context == "votes"
    assert changed.optimizer == plain.optimizer


def test_a_difference_is_stated_with_its_interval():
    rng = np.random.default_rng(0)
    differences = rng.normal(0.02, 0.1, (400, 1))
    mean, interval = paired(differences, 100, 1).split(" ", 1)
    low, high = (float(x) for x in interval.strip("[]").split(", "))
    assert float(mean) == pytest.approx(100 * differences.mean(), abs=0.05)
    half = 100 * 1.96 * differences.std() / 20
    assert high - low == pytest.approx(2 * half, rel=0.2)


def test_everybody_is_in_train_or_valid():
    splits = ("train", "valid", "test", "test")
    rows = [{"user": f"p{i}", "split": split} for i, split in enumerate(splits)]
    found = everybody(rows)
    assert [row["split"] for row in found] == ["train", "valid", "train", "train"]
    assert [row["user"] for row in found] == [row["user"] for row in rows]
