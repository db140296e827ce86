"""Datasets for `benchmarks.probe`, as arguments of `fsa prepare`.

Real people (Bowling Green's consultation and CrowdRAG-25), simulated people of two
opposite groups, and real choices or votes that are dealt out anew to people, so that
nobody differs from anybody.
"""

import collections
import gzip
import json
import pathlib
from collections.abc import Iterable
from typing import Any

import numpy as np

from fsa.data.sources.attributes import lists
from fsa.data.splits import SPLITS
from fsa.errors import InputError
from fsa.language import text_features

Rows = list[dict[str, Any]]

_CONSULTATION = "bowling-green"
_NOT_SEEN = 9  # In the votes of the compact form of Polis.
# How much more of the lines of chosen answers are list lines, less others, on average
# (-2 to 2), so that a person has a taste. It leaves a third of the people without one.
_TASTE = 0.25


class Sources:
    """Makes datasets from the files of a folder.

    Attributes:
      shared: the folder; it has the folders `polis` and `crowdrag25`.
    """

    def __init__(self, shared: str):
        """Remembers the folder; what is missing is found when it is needed."""
        self.shared = shared

    def path(self, *parts: str) -> pathlib.Path:
        """Returns the path of a file.

        Raises:
          InputError: if it is not there.
        """
        path = pathlib.Path(self.shared, *parts)
        if not path.exists():
            raise InputError(f"`shared`={self.shared}: {'/'.join(parts)} is missing")
        return path

    def votes(self, folder: pathlib.Path) -> list[str]:
        """Returns arguments for the consultation's votes and contested choices."""
        del folder
        return [f"--polis={self._votes_file()}", *self._statement_vectors()]

    def votes_dealt_out(self, folder: pathlib.Path, seed: int) -> list[str]:
        """Permutes the votes on a statement over the people of a split who voted."""
        votes = folder / "polis" / "votes" / f"{_CONSULTATION}.npz"
        votes.parent.mkdir(parents=True, exist_ok=True)
        with np.load(self._votes_file()) as file:
            arrays = dict(file)
        rng = np.random.default_rng(seed)
        for split in np.unique(arrays["split"]):
            for column in arrays["votes"].T:
                voted = (arrays["split"] == split) & (column != _NOT_SEEN)
                column[voted] = rng.permutation(column[voted])
        np.savez_compressed(votes, **arrays)
        for name in ("statements.jsonl.gz", "conversations.json"):
            copy = folder / "polis" / name
            copy.write_bytes(self.path("polis", name).read_bytes())
        return [f"--polis={votes}", *self._statement_vectors()]

    def choices_dealt_out(self, folder: pathlib.Path, seed: int) -> list[str]:
        """Deals out the consultation's contested choices anew."""
        rows = read(self.path("polis", "contested_en.jsonl.gz"))
        rows = [row for row in rows if row["conversation"] == _CONSULTATION]
        table = write(folder / "choices.jsonl", deal_out(rows, seed))
        return [*_choices(table), *self._statement_vectors()]

    def answers(self, folder: pathlib.Path) -> list[str]:
        """Returns arguments for choices between answers, with vectors of MiniLM."""
        del folder
        vectors = self.path("crowdrag25", "responses_minilm.npy")
        return [*_choices(self._answer_choices()), *self._answer_vectors(vectors)]

    def answers_by_form(self, folder: pathlib.Path) -> list[str]:
        """Returns arguments for the same choices, with features of the form."""
        return [*_choices(self._answer_choices()), *self._form_vectors(folder)]

    def answers_dealt_out(self, folder: pathlib.Path, seed: int) -> list[str]:
        """Deals out the choices between answers anew; features are of the form."""
        rows = deal_out(read(self._answer_choices()), seed)
        table = write(folder / "choices.jsonl", rows)
        return [*_choices(table), *self._form_vectors(folder)]

    def two_groups(self, folder: pathlib.Path) -> list[str]:
        """Simulates people of two groups, who agree on some items only."""
        rng = np.random.default_rng(0)
        items = rng.normal(size=(150, 8))
        shared, personal = rng.normal(size=(2, 8)) / 2
        rows = []
        for person in range(200):
            weights = shared + personal * (1 if person % 2 else -1)
            for _ in range(25):
                chosen, rejected = rng.choice(len(items), 2, replace=False)
                log_odds = (items[chosen] - items[rejected]) @ weights
                if rng.uniform() > 1 / (1 + np.exp(-log_odds)):
                    chosen, rejected = rejected, chosen
                options = {
                    "chosen": items[chosen].tolist(),
                    "rejected": items[rejected].tolist(),
                }
                rows.append({"user": f"p{person}", **options})
        return _choices(write(folder / "choices.jsonl", rows))

    def _votes_file(self) -> pathlib.Path:
        return self.path("polis", "votes", f"{_CONSULTATION}.npz")

    def _statement_vectors(self) -> list[str]:
        return [
            f"--vectors={self.path('polis', 'statements_minilm.npy')}",
            f"--vector_ids={self.path('polis', 'statements.jsonl.gz')}",
        ]

    def _answer_choices(self) -> pathlib.Path:
        return self.path("crowdrag25", "choices.jsonl.gz")

    def _answer_vectors(self, vectors: pathlib.Path) -> list[str]:
        ids = self.path("crowdrag25", "responses.jsonl.gz")
        return [f"--vectors={vectors}", f"--vector_ids={ids}"]

    def _form_vectors(self, folder: pathlib.Path) -> list[str]:
        rows = read(self.path("crowdrag25", "responses.jsonl.gz"))
        vectors = folder / "form.npy"
        np.save(
            vectors, np.array([form_and_size(row["text"]) for row in rows], np.float32)
        )
        return self._answer_vectors(vectors)


def deal_out(rows: Rows, seed: int) -> Rows:
    """Permutes the users of the rows of each split, so that users have as many."""
    rng = np.random.default_rng(seed)
    users = np.array([row["user"] for row in rows], object)
    for split in SPLITS:
        own = np.flatnonzero([row["split"] == split for row in rows])
        users[own] = rng.permutation(users[own])
    return [{**row, "user": user} for row, user in zip(rows, users, strict=True)]


def with_tastes(rows: Rows) -> Rows:
    """Adds the group of each person: list, prose, or either where neither is liked."""
    gains = collections.defaultdict(list)
    for row in rows:
        gains[row["user"]].append(lists(row["chosen"]) - lists(row["rejected"]))

    def group(user):
        gain = np.mean(gains[user])
        if abs(gain) < _TASTE:
            return "either"
        return "list" if gain > 0 else "prose"

    return [{**row, "group": group(row["user"])} for row in rows]


def form_and_size(text: str) -> list[float]:
    """Measures the form of an answer, and how long it is: its words and its lines."""
    sizes = len(text.split()), text_features.list_lines(text)[1]
    return [*np.log1p(sizes), *text_features.form([text])[0]]


def read(path: pathlib.Path) -> Rows:
    """Reads a .jsonl.gz."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def write(path: pathlib.Path, rows: Iterable[dict[str, Any]]) -> pathlib.Path:
    """Writes a .jsonl; returns its path."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def _choices(table: pathlib.Path) -> list[str]:
    # Dealt out, a pair may come to a user twice; such rows are left out.
    return [f"--choices={table}", "--max_bad_share=0.2"]


def everybody(rows: Rows) -> Rows:
    """Returns the choices with the test people in train."""
    return [row | {"split": row["split"].replace("test", "train")} for row in rows]
