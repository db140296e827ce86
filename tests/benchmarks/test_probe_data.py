"""Data of the benchmark of probes: what is dealt out, and what is missing."""

import collections

import numpy as np
import pytest

from benchmarks.probe_data import Sources, deal_out, form_and_size, with_tastes
from fsa.errors import InputError

LIST, PROSE, HALF = "- tea\n- rye", "Tea.\nRye.", "- tea\nRye."


def test_dealt_out_choices_are_the_same_and_each_person_has_as_many():
    rng = np.random.default_rng(0)
    rows = [
        {"user": f"{split}-{rng.integers(5)}", "split": split, "chosen": str(i)}
        for i, split in enumerate(("train", "valid", "train", "test") * 20)
    ]
    dealt = deal_out(rows, seed=1)
    assert [row["chosen"] for row in dealt] == [row["chosen"] for row in rows]
    assert all(row["user"].startswith(row["split"]) for row in dealt)
    counts = [collections.Counter(row["user"] for row in r) for r in (rows, dealt)]
    assert counts[0] == counts[1]
    moved = sum(a["user"] != b["user"] for a, b in zip(rows, dealt, strict=True))
    assert moved > len(rows) / 2
    assert deal_out(rows, seed=2) != dealt


def test_dealt_out_votes(shared_data, tmp_path):
    """Each statement keeps its votes in each split, and each person what they saw."""
    sources = Sources(str(shared_data))
    sources.votes_dealt_out(tmp_path, seed=0)
    name = "votes/bowling-green.npz"
    with np.load(shared_data / "polis" / name) as file:
        before = dict(file)
    with np.load(tmp_path / "polis" / name) as file:
        after = dict(file)
    seen = [arrays["votes"] != 9 for arrays in (before, after)]
    np.testing.assert_array_equal(*seen)
    for split in range(3):
        own = before["split"] == split
        for vote in (-1, 0, 1):
            count = [(a["votes"][own] == vote).sum(0) for a in (before, after)]
            np.testing.assert_array_equal(*count)
    assert (before["votes"] != after["votes"]).mean() > 0.05


def test_form_and_size():
    listed, prose = "- One 1.\n- Two 2.\n", 'Both. "Neither" of the two, said he.'
    found = np.array([form_and_size(text) for text in (listed, prose, "")])
    assert np.isfinite(found).all()
    np.testing.assert_allclose(np.expm1(found[:, :2]), [[6, 2], [7, 1], [0, 0]])
    # The share of lines that are list items, and digits, but no quotation marks.
    assert found[:, 2].tolist() == [1, 0, 0]
    assert found[0, 7] > 0 == found[1, 7] and found[1, 8] > 0 == found[0, 8]


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(InputError, match="statements_minilm|bowling-green"):
        Sources(str(tmp_path)).votes(tmp_path)


def test_a_taste_is_what_is_chosen_more_than_rejected():
    choices = {
        "ann": [(LIST, PROSE), (HALF, HALF)],
        "bob": [(PROSE, LIST), (PROSE, HALF), (LIST, HALF)],
        "eve": [(LIST, HALF), (HALF, LIST)],
    }
    rows = [
        {"user": user, "chosen": chosen, "rejected": rejected}
        for user, own in choices.items()
        for chosen, rejected in own
    ]
    found = with_tastes(rows)
    assert [{k: v for k, v in row.items() if k != "group"} for row in found] == rows
    groups = {row["user"]: row["group"] for row in found}
    assert groups == {"ann": "list", "bob": "prose", "eve": "either"}
