"""Datasets for the question whether a model understands options that nobody judged.

Some items are held out together with the people of valid and test: training people's
choices and ratings of them are removed, and held-out people choose between them alone.
Then a model can know these items by their features only.

Shapes: I items.
"""

import dataclasses
import hashlib

import numpy as np

from fsa import episodes
from fsa.data.dataset import Dataset
from fsa.data.ragged import Ragged
from fsa.data.tasks.people import popularity
from fsa.data.tasks.task import TRAIN
from fsa.data.users import UserTable


def is_held_out(item_ids: tuple[str, ...], share: float) -> np.ndarray:
    """Returns which items are held out, `[I]` bool, by the SHA-256 of their ids alone.

    Args:
      item_ids: I ids.
      share: about this share of items is held out.
    """

    def place(item_id: str) -> float:
        digest = hashlib.sha256(f"held out:{item_id}".encode()).digest()
        return int.from_bytes(digest[:6]) / 2**48

    return np.array([place(item_id) < share for item_id in item_ids], bool)


def hold_out(
    data: Dataset,
    share: float,
    *,
    known: bool = False,
    max_gap: float = 0.5,
    min_margin: float = 1.0,
    seed: int = 0,
) -> Dataset:
    """Returns a dataset in which held-out people choose between held-out items.

    Their choices are drawn from their ratings, between items of about equal popularity
    among training people, each item at most once.

    Args:
      data: with ratings.
      share: share of items that is held out.
      known: whether training people keep what they told about these items, which shows
        what there is to lose. The held-out people's choices are the same.
      max_gap: see `episodes.pair_neighbours`.
      min_margin: see `episodes.pair_neighbours`.
      seed: of the noise by which pairs are drawn.
    """
    held_out = is_held_out(data.item_ids, share)
    liked = popularity(data, min_margin)
    rng = np.random.default_rng(seed)
    users = {}
    for split, table in data.users.items():
        if split == TRAIN:
            users[split] = table if known else _without(table, held_out)
            continue
        pairs = [
            _paired(rng, items, values, held_out, liked, data, (max_gap, min_margin))
            for items, values in zip(table.items, table.values, strict=True)
        ]
        users[split] = dataclasses.replace(
            table,
            chosen=Ragged.of([chosen for chosen, _ in pairs], np.int32),
            rejected=Ragged.of([rejected for _, rejected in pairs], np.int32),
            items=Ragged.of([[] for _ in pairs], np.int32),
            values=Ragged.of([[] for _ in pairs], np.float32),
        )
    return dataclasses.replace(data, users=users)


def _without(table: UserTable, held_out: np.ndarray) -> UserTable:
    """Returns the table without choices and ratings of held-out items."""
    left = ~(held_out[table.chosen.flat] | held_out[table.rejected.flat])
    rated = ~held_out[table.items.flat]
    return dataclasses.replace(
        table,
        chosen=table.chosen.keep(left),
        rejected=table.rejected.keep(left),
        items=table.items.keep(rated),
        values=table.values.keep(rated),
    )


def _paired(rng, items, values, held_out, liked, data, limits):
    """Draws one person's choices between held-out items: (chosen, rejected)."""
    max_gap, min_margin = limits
    own = held_out[items]
    items = items[own]
    rating, popular = np.zeros(len(held_out)), liked.astype(float)
    rating[items] = values[own]
    noisy = popular[items] + 0.05 * rng.normal(size=len(items))
    order = items[np.lexsort((noisy, data.item_prompt[items]))]
    chosen, rejected, valid = episodes.pair_neighbours(
        order,
        int(rng.integers(2)),
        rating,
        popular,
        max_gap=max_gap,
        min_margin=min_margin,
    )
    valid &= data.item_prompt[chosen] == data.item_prompt[rejected]
    return chosen[valid], rejected[valid]
