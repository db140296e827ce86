"""How rows become indexed arrays."""

import tracemalloc

import jax.numpy as jnp
import numpy as np
import pytest

from fsa.data.collect import EVERYBODY, Collector, collect
from fsa.data.tables import Choice, Rating, Reader
from fsa.data.users import UserTable
from fsa.errors import InputError


def as_lists(ragged):
    return [values.tolist() for values in ragged]


def test_choices_and_ratings_of_a_user_are_joined():
    data = collect(
        [
            Choice("bob", "drink?", "tea", "milk", "train", "", "2", "1"),
            Choice("ann", "drink?", "milk", "rum", "train", "", "1", "3"),
            Choice("ann", "drink?", "milk", "tea", "train", "", "1", "2"),
        ],
        [
            Rating("ann", "drink?", "rum", -1.0, "train", "club", "3"),
            Rating("eve", "drink?", "tea", 0.5, "test", "", "2"),
        ],
    )
    assert data.item_ids == ("1", "2", "3")
    assert data.texts == ("milk", "tea", "rum")
    assert data.prompts == ("drink?",)
    assert data.features.shape == (3, 0)
    assert data.groups == (EVERYBODY, "club")
    train = data.users["train"]
    assert train.names == ("ann", "bob")
    np.testing.assert_array_equal(train.group, [1, 0])
    assert as_lists(train.chosen) == [[0, 0], [1]]
    assert as_lists(train.rejected) == [[2, 1], [0]]
    assert as_lists(train.items) == [[2], []]
    assert as_lists(train.values) == [[-1.0], []]
    test = data.users["test"]
    assert test.names == ("eve",)
    assert (as_lists(test.chosen), as_lists(test.items)) == ([[]], [[1]])
    assert data.users["valid"].names == ()
    for table in data.users.values():
        assert table.chosen.flat.dtype == table.items.flat.dtype == np.int32
        assert table.values.flat.dtype == np.float32


def test_without_ids_an_item_is_its_prompt_and_text():
    data = collect(
        [
            Choice("ann", "drink?", "tea", "milk", "train"),
            Choice("ann", "colour?", "tea", "red", "train"),
            Choice("bob", "drink?", "milk", "tea", "train"),
        ],
        [],
    )
    assert sorted(zip(data.texts, data.item_prompt.tolist(), strict=True)) == [
        ("milk", 1),
        ("red", 0),
        ("tea", 0),
        ("tea", 1),
    ]
    ann, bob = data.users["train"].chosen
    assert data.texts[ann[0]] == data.texts[ann[1]] == "tea"
    assert ann[0] != ann[1]
    assert bob[0] == data.users["train"].rejected[0][0]


def test_order_of_rows_of_different_users_does_not_matter():
    rows = [Choice(f"u{i}", "", f"a{i}", f"b{i}", "train") for i in range(5)]
    first, second = collect(rows, []), collect(rows[::-1], [])
    assert first.item_ids == second.item_ids
    for name in ("flat", "offsets"):
        ours, theirs = (getattr(x.users["train"].chosen, name) for x in (first, second))
        np.testing.assert_array_equal(ours, theirs)


def test_answers_that_nobody_decided_on_are_items(tmp_path):
    rows = [Choice("ann", "q", "tea", "milk", "train")]
    with Collector(tmp_path) as collector:
        collector.add_answers("q", ["rum", "tea"], "train")
        collector.add_answers("r", ["ale"], "train")
        collector.add(rows)
        data = collector.dataset()
        (ann,) = UserTable.read(data.users["train"]).chosen
    prompts = (data.prompts[i] for i in data.item_prompt)
    found = sorted(zip(prompts, data.texts, strict=True))
    assert found == [("q", "milk"), ("q", "rum"), ("q", "tea"), ("r", "ale")]
    assert data.texts[ann[0]] == "tea"


def test_answers_to_a_prompt_of_another_split_are_refused(tmp_path):
    rows = [Choice("ann", "q", "tea", "milk", "test")]
    with Collector(tmp_path, split_by="prompt") as collector:
        collector.add_answers("q", ["rum"], "train")
        collector.add(rows)
        with pytest.raises(InputError, match="prompt 'q' is in split train"):
            collector.dataset()


def test_an_item_whose_prompt_only_one_table_knows():
    data = collect(
        [Choice("ann", "", "tea", "milk", "train", "", "1", "2")],
        [Rating("ann", "drink?", "tea", 1.0, "train", "", "1")],
    )
    assert [data.prompts[i] for i in data.item_prompt] == ["drink?", ""]


@pytest.mark.parametrize(
    ("choices", "ratings", "message"),
    [
        ([], [], "no choices"),
        (
            [Choice("ann", "", "tea", "milk", "train", "", "1", "2")],
            [Rating("ann", "", "rum", 1.0, "train", "", "1")],
            "item '1' has two texts",
        ),
        (
            [Choice("ann", "drink?", "tea", "milk", "train", "", "1", "2")],
            [Rating("ann", "eat?", "tea", 1.0, "train", "", "1")],
            "item '1' has two prompts",
        ),
        (
            [Choice("ann", "", "tea", "milk", "train", "g")],
            [Rating("ann", "", "tea", 1.0, "train", "h")],
            "user 'ann' is in groups",
        ),
        (
            [],
            [Rating("ann", "", "tea", v, "train", "", "1") for v in (1.0, 2.0)],
            "user 'ann' .* '1'",
        ),
        (
            [
                Choice("ann", "", "tea", "milk", "train", "", "1", "2"),
                Choice("ann", "", "milk", "tea", "train", "", "2", "1"),
            ],
            [],
            "user 'ann' .* '1' and '2'",
        ),
    ],
)
def test_contradictions_between_tables(choices, ratings, message):
    with pytest.raises(InputError, match=message):
        collect(choices, ratings)


def numbers(user, chosen, rejected):
    """A choice between options that are given as numbers."""
    row = {"user": user, "chosen": chosen, "rejected": rejected, "split": "train"}
    ((read,), _) = Reader().choices([row])
    return read


def test_options_given_as_numbers_have_features():
    options = [(1.0, 2.0), (3.0, 4.0), (5.0, 6.0)]
    rows = [
        numbers("ann", options[0], options[1]),
        numbers("bob", options[2], options[0]),
    ]
    data = collect(rows, [])
    table = data.users["train"]
    np.testing.assert_array_equal(np.sort(data.features, axis=0), options)
    assert len(data.features) == 3 and data.embedder
    for user, row in zip(range(2), rows, strict=True):
        for side, option in zip(("chosen", "rejected"), row.options(), strict=True):
            (item,) = getattr(table, side)[user]
            assert data.features[item].tobytes() == option.features


@pytest.mark.parametrize(
    "other",
    [
        Choice("bob", "", "tea", "milk", "train"),
        numbers("bob", (1.0, 2.0, 3.0), (4.0, 5.0, 6.0)),
    ],
)
def test_options_of_different_kinds(other):
    with pytest.raises(InputError, match="numbers"):
        collect([numbers("ann", (1.0, 2.0), (3.0, 4.0)), other], [])


def test_numbers_are_one_item_whatever_their_type():
    options = (
        [0.1, 0, 2],
        (0.1, -0.0, 2.0),
        np.array([0.1, 0.0, 2.0]),
        np.array([0.1, -0.0, 2.0], np.float32),
        jnp.array([0.1, 0.0, 2.0]),
    )
    rows = [numbers(f"user {i}", option, [9] * 3) for i, option in enumerate(options)]
    data = collect(rows, [])
    assert len(data.texts) == 2
    item = data.texts.index("[0.1, 0.0, 2.0]")
    assert data.users["train"].chosen.flat.tolist() == [item] * len(options)
    np.testing.assert_array_equal(data.features[item], np.float32([0.1, 0, 2]))
    assert not np.signbit(data.features).any()


def test_memory_of_numbers_is_that_of_different_vectors():
    """2,000 rows of 30 vectors: less than 2 kB a row, where two vectors are 8 kB."""
    vectors = np.random.default_rng(0).normal(size=(30, 1000))
    rows = [
        {"user": str(i), "chosen": vectors[i % 30], "rejected": vectors[(i + 1) % 30]}
        for i in range(2000)
    ]
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    Reader().choices(rows)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak - before < 2000 * 2000
