"""What a linear probe on embeddings sees of planted preferences."""

import dataclasses

import numpy as np
import pytest

from fsa.data.collect import collect
from fsa.data.scored_responses import Responses
from fsa.data.tables import Choice
from fsa.data.tasks.linear_probe import probe
from fsa.data.tasks.pairs import PairTask
from fsa.language.token_table import TokenTable

F, NUM_ITEMS = 6, 400


def planted(slopes, seed=0, noise=False):
    """A task of users who choose by `slopes[group]` times feature 2 of two items."""
    rng = np.random.default_rng(seed)
    features = rng.normal(0, 1, (NUM_ITEMS, F)) * np.array([50, 1, 0.01, 9, 1, 1])
    features = (features + 3).astype(np.float32)
    rows = []
    for split, count in {"train": 12, "valid": 12, "test": 2}.items():
        for user in range(count):
            group = "ab"[user % 2]
            for _ in range(40):
                pair = rng.choice(NUM_ITEMS, 2, replace=False)
                value = slopes[group] * features[pair, 2]
                first = rng.random() < 0.5 if noise else value[0] > value[1]
                a, b = pair if first else pair[::-1]
                rows.append(
                    Choice(f"{split}{user}", "ask", f"{a}", f"{b}", split, group)
                )
    data = collect(rows, [])
    order = [int(text) for text in data.texts]
    count = len(order)
    found = Responses(
        TokenTable.of([([1, item], 1) for item in order]),
        np.zeros(count, np.float32),
        features[order],
        {},
        "key",
    )
    sizes = dict(max_context=1, num_targets=1, test_context=1, test_targets=1)
    return PairTask(data, found, batch_size=2, buckets=(4,), **sizes)


def test_probe_finds_a_direction_that_groups_disagree_about():
    """The direction is small, so that the probe has to standardise the dimensions."""
    found = probe(planted({"a": 1, "b": -1}))
    assert set(found) == {"a", "b"}
    assert all(accuracy > 0.9 for accuracy in found.values())
    # Without dividing by the spread the penalty would hide it.
    assert all(a > 0.9 for a in probe(planted({"a": 1, "b": 1}), ridge=0.1).values())


def test_probe_sees_nothing_in_noise():
    """240 held-out choices of a group: five standard errors are 16 points."""
    for seed in range(3):
        for accuracy in probe(planted({"a": 1, "b": 1}, seed, noise=True)).values():
            assert abs(accuracy - 0.5) < 5 * 0.5 / np.sqrt(6 * 40)


def test_probe_is_ridge_regression_on_both_directions_of_each_choice():
    task = planted({"a": 1, "b": -1}, noise=True)
    gaps, groups = task.differences("train")
    held_out, held_out_groups = task.differences("valid")
    std = task.statistics()[1]
    for index, name in enumerate(task.groups):
        x = gaps[groups == index] / std
        # Ridge as least squares with rows that pull weights to 0.
        pull = np.sqrt(2 * 2.0 * len(x) / F) * np.eye(F)
        inputs = np.concatenate([x, -x, pull])
        labels = np.concatenate([np.ones(len(x)), -np.ones(len(x)), np.zeros(F)])
        weight = np.linalg.lstsq(inputs, labels, rcond=None)[0]
        expected = np.mean(held_out[held_out_groups == index] / std @ weight > 0)
        assert probe(task, ridge=2.0)[name] == pytest.approx(expected)


def test_probe_leaves_out_a_group_without_held_out_users():
    task = planted({"a": 1, "b": -1})
    valid = task.data.users["valid"]
    of_one_group = dataclasses.replace(valid, group=np.zeros_like(valid.group))
    users = {**task.data.users, "valid": of_one_group}
    data = dataclasses.replace(task.data, users=users)
    assert set(probe(dataclasses.replace(task, data=data))) == {task.groups[0]}
