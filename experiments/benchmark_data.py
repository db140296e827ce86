"""The datasets of `experiments/benchmark.py`, read from a folder of public data.

Shapes: I items, F features.
"""

import collections
import dataclasses
import functools
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fsa.data import collect, files, splits, vectors
from fsa.data.dataset import Dataset, Embedding
from fsa.data.sources import polis, polis_files
from fsa.data.tasks.people import CHOICES, RATINGS, People
from fsa.data.tasks.simulated import Continuum, IdealPoint, TwoTypes
from fsa.data.tasks.task import Task
from fsa.data.users import UserTable
from fsa.errors import InputError
from fsa.rivals import simulated_people
from fsa.rivals.exchange import exchange_people

# The seed of the published tables of Polis votes.
_SEED = 20240607

# Choices of a simulated person, and simulated people of each split.
_CHOICES = 80
_PEOPLE = {"train": 1000, "valid": 80, "test": 300}


class Problem(NamedTuple):
    """A dataset to compare methods on.

    Attributes:
      task: its people.
      num_context: context sizes.
      simulated: the task that simulated people are drawn from, which knows the
        Bayes-optimal prediction; None for real people.
    """

    task: People
    num_context: tuple[int, ...]
    simulated: Task | None = None


def load(name: str, folder: pathlib.Path, seed: int) -> Problem:
    """Loads a dataset.

    Args:
      name: one of `NAMES`.
      folder: of the public data.
      seed: of simulated people, and of who of crowdrag25 is a test person.

    Raises:
      InputError: if there is no such dataset, or a file is missing or damaged.
    """
    if name not in NAMES:
        raise InputError(f"`datasets`: no {name!r}; there are {', '.join(NAMES)}")
    return _LOADERS[name](folder, seed)


def _simulated(
    make: Callable[..., Task], sizes: Sequence[int], folder: pathlib.Path, seed: int
) -> Problem:
    nothing = {"batch_size": 1, "max_context": 1, "num_targets": 1, "test_context": 1}
    task = make(**nothing, test_targets=_CHOICES, num_users={})
    data = simulated_people.dataset(task, _PEOPLE, _CHOICES, seed)
    people = simulated_people.Strangers(
        data,
        batch_size=1,
        max_context=min(max(sizes), 20),
        num_targets=20,
        test_context=max(sizes),
        test_targets=20,
        train_on=CHOICES,
    )
    return Problem(people, tuple(sizes), task)


def _polis(
    conversation: str,
    table: str,
    folder: pathlib.Path,
    seed: int,
    exchange: bool = False,
) -> Problem:
    """Loads a consultation; with `exchange`, nobody's votes belong to one person."""
    data = _votes(folder, conversation, "none" if exchange else table)
    if exchange:
        data = exchange_people(data, _SEED)
    contested = table == "contested"
    task = People(
        data,
        batch_size=1,
        max_context=10,
        num_targets=20,
        test_context=10,
        test_targets=30,
        min_choices=10,
        train_on=RATINGS,
        pairing_noise=0.1 if contested else 3.0,
        max_gap=0.5 if contested else 100.0,
        min_margin=1.0,
    )
    return Problem(task, (0, 1, 3, 5, 10))


@functools.lru_cache(maxsize=1)
def _votes(folder: pathlib.Path, conversation: str, table: str) -> Dataset:
    path = folder / "polis" / "votes" / f"{conversation}.npz"
    votes, _ = polis_files.read(path, seed=_SEED)
    choices = () if table == "none" else tuple(polis.TABLES[table](votes, _SEED))
    data = collect.collect(choices, tuple(polis.ratings(votes)))
    features = vectors.read(
        folder / "polis" / "statements_minilm.npy",
        folder / "polis" / "statements.jsonl.gz",
        data.item_ids,
    )
    return dataclasses.replace(data, features=features, embedding=Embedding("MiniLM"))


def _food(folder: pathlib.Path, seed: int) -> Problem:
    """Ratings of national cuisines, which have no features but their names."""
    path = folder / "fivethirtyeight" / "food_ratings.csv.gz"
    people = collections.defaultdict(dict)
    for _, row in files.read_rows(path):
        name = row.pop("user")
        for item, value in row.items():
            if value not in ("", None):
                people[name][item] = float(value)
    items = sorted({item for own in people.values() for item in own})
    index = {item: i for i, item in enumerate(items)}

    def table(names: Sequence[str]) -> UserTable:
        nothing = [[]] * len(names)
        return UserTable.of(
            names,
            np.zeros(len(names)),
            chosen=nothing,
            rejected=nothing,
            items=[[index[item] for item in people[name]] for name in names],
            values=[list(people[name].values()) for name in names],
        )

    split = collections.defaultdict(list)
    for name in sorted(people):
        split[splits.of(name, _SEED)].append(name)
    data = _dataset(np.eye(len(items)), items, {s: table(n) for s, n in split.items()})
    task = People(
        data,
        batch_size=1,
        max_context=5,
        num_targets=10,
        test_context=5,
        test_targets=10,
        min_choices=5,
        train_on=RATINGS,
        pairing_noise=3.0,
    )
    return Problem(task, (0, 1, 3, 5))


def _crowdrag(folder: pathlib.Path, seed: int) -> Problem:
    """Crowd workers' choices between answers; a seed tests one third of them."""
    folder = folder / "crowdrag25"
    chosen, rejected = collections.defaultdict(list), collections.defaultdict(list)
    for _, row in files.read_rows(folder / "choices.jsonl.gz"):
        chosen[row["user"]].append(row["chosen_id"])
        rejected[row["user"]].append(row["rejected_id"])
    items = sorted({i for own in (*chosen.values(), *rejected.values()) for i in own})
    index = {item: i for i, item in enumerate(items)}

    def table(names: Sequence[str]) -> UserTable:
        def lists(of: Mapping[str, list[str]]) -> list[list[int]]:
            return [[index[item] for item in of[name]] for name in names]

        nothing = [[]] * len(names)
        return UserTable.of(
            names,
            np.zeros(len(names)),
            chosen=lists(chosen),
            rejected=lists(rejected),
            items=nothing,
            values=nothing,
        )

    names = np.random.default_rng(_SEED).permutation(sorted(chosen))
    thirds = np.array_split(names, 3)
    test = thirds[seed % 3]
    others = np.concatenate([t for i, t in enumerate(thirds) if i != seed % 3])
    split = {"train": others[30:], "valid": others[:30], "test": test}
    users = {name: table(sorted(own.tolist())) for name, own in split.items()}
    data = _dataset(_answer_features(folder, items), items, users)
    task = People(
        data,
        batch_size=1,
        max_context=10,
        num_targets=5,
        test_context=10,
        test_targets=5,
        train_on=CHOICES,
    )
    return Problem(task, (0, 1, 3, 5, 10))


def _answer_features(folder: pathlib.Path, items: Sequence[str]) -> np.ndarray:
    """Returns features of answers: their form, and 16 components of their embedding.

    The embedding sees the topic and hardly the form, by which people differ.
    """
    rows = files.read_rows(folder / "responses.jsonl.gz")
    texts = {row["id"]: row["text"] for _, row in rows}
    embedded = vectors.read(
        folder / "responses_minilm.npy", folder / "responses.jsonl.gz", items
    )
    centred = embedded - embedded.mean(0)
    _, _, directions = np.linalg.svd(centred, full_matrices=False)
    form = np.array([_form(texts[item]) for item in items])
    return np.concatenate([form, centred @ directions[:16].T], axis=1)


def _form(text: str) -> list[float]:
    """Measures length, lists, paragraphs, sentences, headings and figures of a text."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    words = max(len(text.split()), 1)
    bullets = sum(line.startswith(("-", "*", "•")) for line in lines)
    sentences = max(len(re.findall(r"[.!?](\s|$)", text)), 1)
    return [
        np.log(words),
        bullets / max(len(lines), 1),
        np.log1p(len(lines)),
        words / sentences,
        sum(line.startswith("#") for line in lines),
        sum(c.isdigit() for c in text) / words,
    ]


def _dataset(
    features: np.ndarray, items: Sequence[str], users: Mapping[str, UserTable]
) -> Dataset:
    return Dataset(
        features=features.astype(np.float32),
        item_ids=tuple(items),
        texts=tuple(items),
        prompts=("",),
        item_prompt=np.zeros(len(items), np.int32),
        groups=("all",),
        users=dict(users),
        embedding=Embedding("benchmark"),
    )


def _of(function: Callable[..., Problem], *args: Any, **kwargs: Any):
    return functools.partial(function, *args, **kwargs)


_LOADERS: dict[str, Callable[[pathlib.Path, int], Problem]] = {
    "two-types": _of(_simulated, TwoTypes, (0, 1, 3, 5, 10)),
    "continuum": _of(_simulated, Continuum, (0, 1, 2, 5, 10, 20, 50)),
    "ideal-point": _of(_simulated, IdealPoint, (0, 1, 2, 5, 10, 20, 50)),
    "bowling-green-contested": _of(_polis, "bowling-green", "contested"),
    "austria-energy-contested": _of(_polis, "austria-energy", "contested"),
    "bowling-green-random": _of(_polis, "bowling-green", "random"),
    "austria-energy-random": _of(_polis, "austria-energy", "random"),
    "vtaiwan-uberx-random": _of(_polis, "vtaiwan-uberx", "random"),
    "nz-taxes-random": _of(_polis, "nz-taxes", "random"),
    "crowdrag25": _crowdrag,
    "food": _food,
    "exchanged": _of(_polis, "bowling-green", "contested", exchange=True),
}
NAMES = tuple(_LOADERS)

# Those whose options never recur, and whose Bayes-optimal prediction is known.
SIMULATED = ("two-types", "continuum", "ideal-point")

# Those of which people made choices; choices of the others are made of ratings.
OF_CHOICES = (*SIMULATED, "crowdrag25")
