"""Lists of different lengths, and that choices are padded once on their way."""

import dataclasses

import jax
import numpy as np
import pytest

from fsa.data import dataset, tables
from fsa.data.collect import collect
from fsa.data.ragged import Ragged
from fsa.data.scored_responses import Responses
from fsa.data.tables import Choice, Reader
from fsa.data.tasks.pairs import PairTask
from fsa.data.tasks.people import CHOICES, People
from fsa.language.token_table import TokenTable

LISTS = [[3, 1], [], [4, 1, 5], [9]]


@pytest.fixture
def ragged():
    return Ragged.of(LISTS, np.int32)


def test_lists_come_back(ragged):
    assert [values.tolist() for values in ragged] == LISTS
    assert len(ragged) == 4 and ragged[2].tolist() == [4, 1, 5]
    assert ragged.lengths.tolist() == [2, 0, 3, 1]
    assert ragged.flat.dtype == np.int32
    for outside in (-1, 4):
        with pytest.raises(IndexError):
            ragged[outside]


def test_padding_is_behind_the_entries(ragged):
    expected = [[3, 1, -1], [-1, -1, -1], [4, 1, 5], [9, -1, -1]]
    assert ragged.pad(-1).tolist() == expected
    assert ragged.pad(0, 4)[:, 3].tolist() == [0] * 4
    with pytest.raises(ValueError):
        ragged.pad(0, 2)


def test_entries_may_be_arrays():
    pairs = Ragged.of([np.ones((2, 2)), np.zeros((0, 2))], np.float32)
    assert pairs.pad(7).tolist() == [[[1, 1], [1, 1]], [[7, 7], [7, 7]]]


def test_entries_are_left_out_of_their_list(ragged):
    kept = ragged.keep(ragged.flat % 2 == 1)
    assert [values.tolist() for values in kept] == [[3, 1], [], [1, 5], [9]]


@pytest.mark.parametrize("lists", [[], [[], []]])
def test_nothing(lists):
    empty = Ragged.of(lists, np.float32)
    assert empty.pad(0).shape == (len(lists), 0)
    assert [len(values) for values in empty.keep(np.ones(0, bool))] == [0] * len(lists)


@pytest.fixture
def padded(monkeypatch):
    """The entries of every array that is padded from now on."""
    found, pad = [], Ragged.pad

    def watched(self, *args):
        found.append(self.flat)
        return pad(self, *args)

    monkeypatch.setattr(Ragged, "pad", watched)
    return found


def test_a_choice_is_padded_at_most_once_from_its_file_to_a_task(tmp_path, padded):
    rows = [
        Choice(f"{split}{user}", f"{i}", f"good {i}", f"bad {i}", split)
        for split in ("train", "valid", "test")
        for user in range(3)
        for i in range(2 + user)
    ]
    rows.append(Choice("train0", "ask", "tea", "milk", "train"))
    tables.write(tmp_path / "choices.jsonl", rows)
    read, _ = Reader().choices(tmp_path / "choices.jsonl")
    data = collect(read, [])
    size = len(data.texts)
    features = np.arange(4 * size, dtype=np.float32).reshape(size, 4)
    data = dataclasses.replace(
        data, features=features, embedding=dataset.Embedding("numbers")
    )
    dataset.write(tmp_path / "data", data)
    data = dataset.load(tmp_path / "data")
    tea = data.texts.index("tea")
    assert not padded

    def times():
        """How often the choice of tea was padded."""
        count = sum(int((entries == tea).sum()) for entries in padded)
        padded.clear()
        return count

    sizes = dict(max_context=4, num_targets=4, test_context=1, test_targets=1)
    people = People(data, batch_size=3, train_on=CHOICES, **sizes)
    user = data.users["train"].names.index("train0")
    episode = people.train_episode(people.constants, user, jax.random.key(0))
    sides = (episode.context.chosen, episode.target.chosen)
    assert sum((side.item == tea).sum() for side in sides) == 1
    assert times() == 0  # The lists of all people are flat on the device, too.

    tokens = TokenTable.of([([1, i], 1) for i in range(size)])
    responses = Responses(tokens, np.zeros(size, np.float32), features, {}, "key")
    pairs = PairTask(data, responses, batch_size=3, buckets=(2,), **sizes)
    episodes = pairs.train_batch(0).episode
    sides = (episodes.context.chosen, episodes.target.chosen)
    assert sum((side.features == features[tea]).all(-1).sum() for side in sides) == 1
    assert times() == 1
