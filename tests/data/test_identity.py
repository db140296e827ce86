"""Whatever changes a dataset's numbers changes its identity, and nothing else does."""

import dataclasses

import numpy as np
import pytest

from fsa.data import dataset
from fsa.data.collect import collect
from fsa.data.identity import identity
from fsa.data.ragged import Ragged
from fsa.data.tables import Choice, Rating, Reader

CHOICES = [
    Choice(f"user {i}", f"prompt {i % 2}", f"tea {j}", "milk", split, f"group {i % 2}")
    for i, split in enumerate(("train", "valid", "test", "train"))
    for j in range(i + 1)
]
RATINGS = [Rating("user 0", "prompt 0", "tea 0", 0.5, "train", "group 0")]


def example():
    data = collect(CHOICES, RATINGS)
    vectors = np.random.default_rng(0).normal(size=(len(data.texts), 3))
    return dataclasses.replace(
        data,
        features=vectors.astype(np.float32),
        embedding=dataset.Embedding("model", "{option}", "0" * 64),
    )


def changed_users(data, split="train", **columns):
    table = dataclasses.replace(data.users[split], **columns)
    return dataclasses.replace(data, users=data.users | {split: table})


def flipped(data):
    """Changes one choice of one user."""
    chosen, rejected = data.users["test"].chosen, data.users["test"].rejected
    ours, theirs = chosen.flat.copy(), rejected.flat.copy()
    ours[1], theirs[1] = theirs[1], ours[1]
    return changed_users(
        data,
        "test",
        chosen=Ragged(ours, chosen.offsets),
        rejected=Ragged(theirs, rejected.offsets),
    )


def moved(data):
    """Gives one user's choice to the next."""
    chosen, rejected = data.users["train"].chosen, data.users["train"].rejected
    offsets = chosen.offsets.copy()
    offsets[1] += 1
    return changed_users(
        data,
        chosen=Ragged(chosen.flat, offsets),
        rejected=Ragged(rejected.flat, offsets),
    )


def another_bit(data):
    bits = data.features.copy()
    bits.view(np.uint32)[2, 1] ^= 1
    return dataclasses.replace(data, features=bits)


def of(change):
    return lambda data: dataclasses.replace(data, **change(data))


CHANGES = {
    "choice": (flipped, "choices"),
    "whose": (moved, "choices"),
    "rating": (
        lambda data: changed_users(data, values=Ragged.of([[0.25], []], np.float32)),
        "choices",
    ),
    "name": (lambda data: changed_users(data, names=("user 0", "user 9")), "choices"),
    "group": (
        lambda d: changed_users(d, group=d.users["train"].group[::-1]),
        "choices",
    ),
    "group's name": (of(lambda d: {"groups": ("group 0", "other")}), "choices"),
    "split": (
        of(lambda d: {"users": d.users | {"test": d.users["valid"]}}),
        "choices",
    ),
    "text": (of(lambda d: {"texts": ("rum", *d.texts[1:])}), "choices"),
    "id": (of(lambda d: {"item_ids": ("new", *d.item_ids[1:])}), "choices"),
    "prompt": (of(lambda d: {"prompts": ("other", *d.prompts[1:])}), "choices"),
    "bit": (another_bit, "vectors"),
    "shape": (
        of(lambda d: {"features": d.features.reshape(3, -1)}),
        "vectors",
    ),
    "embedder": (
        of(lambda d: {"embedding": dataclasses.replace(d.embedding, name="other")}),
        "embedder",
    ),
    "weights": (
        of(lambda d: {"embedding": dataclasses.replace(d.embedding, digest="1" * 64)}),
        "embedder_digest",
    ),
    "template": (
        of(lambda d: {"embedding": dataclasses.replace(d.embedding, template="{x}")}),
        "template",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_every_change_is_seen_where_it_is(name):
    change, key = CHANGES[name]
    before, after = identity(example()), identity(change(example()))
    assert {k for k in before if before[k] != after[k]} == {key}


def test_it_survives_writing_and_another_order_of_rows(tmp_path):
    first = example()
    assert set(map(type, identity(first).values())) == {str}
    dataset.write(tmp_path / "a", first)
    assert identity(dataset.load(tmp_path / "a")) == identity(first)
    others = collect(sorted(CHOICES, key=lambda row: row.user == "user 0"), RATINGS)
    assert identity(others)["choices"] == identity(first)["choices"]


def test_the_order_of_names_in_a_file_does_not_matter():
    first = example()
    swapped = dataclasses.replace(
        changed_users(first, "train", group=1 - first.users["train"].group),
        prompts=first.prompts[::-1],
        item_prompt=1 - first.item_prompt,
        groups=first.groups[::-1],
    )
    for split in ("valid", "test"):
        swapped = changed_users(swapped, split, group=1 - first.users[split].group)
    assert identity(swapped) == identity(first)


def test_without_features():
    found = identity(collect(CHOICES, RATINGS))
    assert found.pop("choices")
    assert set(found.values()) == {""}


def test_options_that_are_numbers_count():
    def made(second):
        row = {"user": "ann", "chosen": (1.0, 2.0), "rejected": second}
        rows, _ = Reader().choices([row | {"split": "train"}])
        return identity(collect(rows, []))

    first, second = made((3.0, 4.0)), made((3.0, 5.0))
    assert first["vectors"] != second["vectors"] != ""
    assert first["choices"] != second["choices"]
