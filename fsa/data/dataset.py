"""A data set on disk: who chose, rejected and judged what, and a vector an item.

A store is a directory with

* `items`: id, prompt and text of everything that was chosen, rejected or judged;
* `users`: splits train, valid and test; the choices and judgements of each user;
* `features`: the items' vectors, once they are known;
* `store.json`: counts, the embedder, the SHA-256 of the sources and of every file.

`fsa.data.manifest` sees to it that an unfinished or damaged store does not load.

Shapes: I items, F features, U users of one split, L most choices of a user, J most
judgements of a user.
"""

import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from fsa.data import manifest, records
from fsa.data.splits import SPLITS
from fsa.errors import InputError

_INDICES = tfds.features.Tensor(shape=(None,), dtype=np.int32)
_NUMBERS = tfds.features.Tensor(shape=(None,), dtype=np.float32)
_ITEM = {key: tfds.features.Text() for key in ("id", "prompt", "text")}
_USER = {
    "user": tfds.features.Text(),
    "group": tfds.features.Text(),
    "chosen": _INDICES,
    "rejected": _INDICES,
    "items": _INDICES,
    "values": _NUMBERS,
}


@dataclasses.dataclass(frozen=True, eq=False)
class UserTable:
    """The users of one split.

    Attributes:
      names: U names.
      group: `[U]` int32, index into `Dataset.groups`.
      chosen: `[U, L]` int32, items; -1 pads.
      rejected: `[U, L]` int32, -1 pads.
      items: `[U, J]` int32, the items judged; -1 pads.
      values: `[U, J]` float32, larger is better; 0 at pads.
    """

    names: tuple[str, ...]
    group: np.ndarray
    chosen: np.ndarray
    rejected: np.ndarray
    items: np.ndarray
    values: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Items, and what the users of each split thought of them.

    Attributes:
      features: `[I, F]` float32; F is 0 before the items are embedded.
      item_ids: I ids.
      texts: I texts.
      prompts: the different prompts.
      item_prompt: `[I]` int32, index into `prompts`.
      groups: names of the groups of users.
      users: "train", "valid" and "test".
      embedder: what made the features; "" before.
    """

    features: np.ndarray
    item_ids: tuple[str, ...]
    texts: tuple[str, ...]
    prompts: tuple[str, ...]
    item_prompt: np.ndarray
    groups: tuple[str, ...]
    users: dict[str, UserTable]
    embedder: str = ""


def write(
    path: str | pathlib.Path,
    data: Dataset,
    *,
    sources: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> None:
    """Writes a store, all of it or nothing.

    Args:
      path: the directory to make.
      data: with features or without.
      sources: name -> SHA-256 of the files that the data came from, to be noted.
      overwrite: replace a store that is there.

    Raises:
      InputError: the directory is occupied or cannot be written, or the features are
        not one finite vector an item.
    """
    path = pathlib.Path(path)
    manifest.check_free(path, overwrite)
    with manifest.scratch(path) as scratch:
        new = scratch / "new"
        records.write(new, "items", _ITEM, {"items": _item_records(data)})
        users = {split: _user_records(data, split) for split in SPLITS}
        records.write(new, "users", _USER, users)
        if data.embedder:
            _write_vectors(new, check_vectors(data.features, data.item_ids))
        entries = {
            "embedder": data.embedder,
            "groups": list(data.groups),
            "counts": counts(data),
            "sources": dict(sources or {}),
        }
        manifest.write(new, entries)
        if path.exists():
            os.replace(path, scratch / "old")
        os.replace(new, path)


def write_features(
    path: str | pathlib.Path,
    vectors: np.ndarray,
    embedder: str,
) -> None:
    """Adds the items' vectors to a store, in place of any that are there.

    Args:
      path: a store.
      vectors: `[I, F]`, in the order of its items.
      embedder: what made them.

    Raises:
      InputError: no store, or not one finite vector an item.
    """
    data = load(path, need_features=False)
    data = dataclasses.replace(
        data, features=check_vectors(vectors, data.item_ids), embedder=embedder
    )
    sources = manifest.read(pathlib.Path(path))["sources"]
    write(path, data, sources=sources, overwrite=True)


def load(path: str | pathlib.Path, *, need_features: bool = True) -> Dataset:
    """Reads a whole store.

    Args:
      path: a store.
      need_features: whether a store without features is refused.

    Raises:
      InputError: no store, a damaged or unfinished one, or one without features.
    """
    path = pathlib.Path(path)
    entries = manifest.read(path)
    embedder, groups = entries["embedder"], tuple(entries["groups"])
    if need_features and not embedder:
        raise InputError(
            f"{path}: has no features; run python -m launch.embed --data={path} "
            "--model=FOLDER, or prepare it with --vectors"
        )
    items = [
        {key: text.decode() for key, text in record.items()}
        for record in records.read(path, "items", "items")
    ]
    prompts = tuple(sorted({item["prompt"] for item in items}))
    index = {prompt: i for i, prompt in enumerate(prompts)}
    features = np.zeros((len(items), 0), np.float32)
    if embedder:
        vectors = records.read(path, "features", "features")
        features = np.stack([record["vector"] for record in vectors])
    return Dataset(
        features=features,
        item_ids=tuple(item["id"] for item in items),
        texts=tuple(item["text"] for item in items),
        prompts=prompts,
        item_prompt=np.array([index[item["prompt"]] for item in items], np.int32),
        groups=groups,
        users={
            split: _user_table(records.read(path, "users", split), groups)
            for split in SPLITS
        },
        embedder=embedder,
    )


def counts(data: Dataset) -> dict[str, dict[str, int]]:
    """Split -> how many users, choices and judgements it has, and whose."""

    def of(table: UserTable) -> dict[str, int]:
        return {
            "users": len(table.names),
            "users_with_choices": int((table.chosen >= 0).any(axis=1).sum()),
            "users_with_ratings": int((table.items >= 0).any(axis=1).sum()),
            "choices": int((table.chosen >= 0).sum()),
            "judgements": int((table.items >= 0).sum()),
        }

    return {split: of(table) for split, table in data.users.items()}


def check_vectors(vectors: np.ndarray, item_ids: Sequence[str]) -> np.ndarray:
    """Returns `[I, F]` float32; raises InputError unless finite, one an item."""
    if vectors.ndim != 2 or len(vectors) != len(item_ids) or not vectors.shape[1]:
        raise InputError(
            f"features of shape {vectors.shape} for {len(item_ids)} items; give one "
            "vector an item"
        )
    vectors = np.asarray(vectors, np.float32)
    broken = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(broken):
        raise InputError(
            f"features of item {item_ids[broken[0]]!r}: NaN or infinite, as are those "
            f"of {len(broken)} items in all; embed them again"
        )
    return vectors


def pad(lists: Sequence[Sequence[Any]], dtype: Any, fill: float) -> np.ndarray:
    """Stacks lists of different lengths, `[len(lists), longest]`."""
    stacked = np.full((len(lists), max(map(len, lists), default=0)), fill, dtype)
    for row, values in zip(stacked, lists, strict=True):
        row[: len(values)] = values
    return stacked


def _item_records(data: Dataset) -> list[records.Record]:
    prompts = (data.prompts[i] for i in data.item_prompt)
    return [
        {"id": item_id, "prompt": prompt, "text": text}
        for item_id, prompt, text in zip(
            data.item_ids, prompts, data.texts, strict=True
        )
    ]


def _user_records(data: Dataset, split: str) -> list[records.Record]:
    table = data.users[split]
    chosen, judged = table.chosen >= 0, table.items >= 0
    return [
        {
            "user": name,
            "group": data.groups[table.group[u]],
            "chosen": table.chosen[u, chosen[u]],
            "rejected": table.rejected[u, chosen[u]],
            "items": table.items[u, judged[u]],
            "values": table.values[u, judged[u]],
        }
        for u, name in enumerate(table.names)
    ]


def _user_table(users: Sequence[records.Record], groups: Sequence[str]) -> UserTable:
    group = [groups.index(user["group"].decode()) for user in users]
    return UserTable(
        names=tuple(user["user"].decode() for user in users),
        group=np.array(group, np.int32),
        chosen=pad([user["chosen"] for user in users], np.int32, -1),
        rejected=pad([user["rejected"] for user in users], np.int32, -1),
        items=pad([user["items"] for user in users], np.int32, -1),
        values=pad([user["values"] for user in users], np.float32, 0),
    )


def _write_vectors(folder: pathlib.Path, vectors: np.ndarray) -> None:
    feature = tfds.features.Tensor(shape=vectors.shape[1:], dtype=np.float32)
    rows = [{"vector": vector} for vector in vectors]
    records.write(folder, "features", {"vector": feature}, {"features": rows})
