"""A dataset on disk: which items users chose, rejected and rated, and items' vectors.

A dataset is a directory with

* `items`: id, prompt and text of every item that was chosen, rejected or rated;
* `users`: splits train, valid and test; the choices and ratings of each user;
* `features`: one vector for each item, once the items are embedded;
* `store.json`: counts, what embedded the items, the SHA-256 of the sources and of every
  file.

An unfinished or damaged dataset does not load: `fsa.data.manifest` checks it.

Shapes: I items, F features, U users of one split.
"""

import ast
import dataclasses
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import tensorflow_datasets as tfds

from fsa.data import manifest, records
from fsa.data.ragged import Ragged
from fsa.data.splits import SPLITS
from fsa.errors import InputError
from fsa.folders import complete_or_absent

_INDICES = tfds.features.Tensor(shape=(None,), dtype=np.int32)
_NUMBERS = tfds.features.Tensor(shape=(None,), dtype=np.float32)
_ITEM = {key: tfds.features.Text() for key in ("id", "prompt", "text")}
# The columns of a user that are lists.
_LISTS = ("chosen", "rejected", "items", "values")
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
      chosen: for each user the items that were chosen, int32.
      rejected: for each user the items that were rejected, in the same order, int32.
      items: for each user the items that were rated, int32.
      values: for each user the ratings of these items, float32; larger is better.
    """

    names: tuple[str, ...]
    group: np.ndarray
    chosen: Ragged
    rejected: Ragged
    items: Ragged
    values: Ragged

    @classmethod
    def of(
        cls,
        names: Sequence[str],
        group: Sequence[int],
        *,
        chosen: Sequence[Sequence[int] | np.ndarray],
        rejected: Sequence[Sequence[int] | np.ndarray],
        items: Sequence[Sequence[int] | np.ndarray],
        values: Sequence[Sequence[float] | np.ndarray],
    ) -> Self:
        """Makes a table of each user's lists."""
        return cls(
            names=tuple(names),
            group=np.array(group, np.int32),
            chosen=Ragged.of(chosen, np.int32),
            rejected=Ragged.of(rejected, np.int32),
            items=Ragged.of(items, np.int32),
            values=Ragged.of(values, np.float32),
        )

    @classmethod
    def concatenate(cls, tables: Sequence[Self]) -> Self:
        """Joins the users of several tables, one table after the other."""

        def lists(column: str) -> list[np.ndarray]:
            return [entries for table in tables for entries in getattr(table, column)]

        return cls.of(
            [name for table in tables for name in table.names],
            np.concatenate([table.group for table in tables]),
            **{column: lists(column) for column in _LISTS},
        )

    def take(self, users: Sequence[int]) -> Self:
        """Returns the table of some of its users, in the order given."""
        return type(self).of(
            [self.names[u] for u in users],
            self.group[np.asarray(users, int)],
            **{c: [getattr(self, c)[int(u)] for u in users] for c in _LISTS},
        )


@dataclasses.dataclass(frozen=True)
class Embedding:
    """What the features of a dataset are: how a text becomes a vector.

    Attributes:
      name: name of the model or function.
      template: the text that is embedded for an item, with {prompt} and {option}.
      digest: SHA-256 of the files of the model that its vectors depend on; "" if that
        is not known, as for a function or for vectors that came ready-made.
    """

    name: str
    template: str = "{option}"
    digest: str = ""


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Items, and the choices and ratings of the users of each split.

    Attributes:
      features: `[I, F]` float32; F is 0 before the items are embedded.
      item_ids: I ids.
      texts: I texts.
      prompts: the different prompts.
      item_prompt: `[I]` int32, index into `prompts`.
      groups: names of the groups of users.
      users: "train", "valid" and "test".
      embedding: what made the features; None before.
    """

    features: np.ndarray
    item_ids: tuple[str, ...]
    texts: tuple[str, ...]
    prompts: tuple[str, ...]
    item_prompt: np.ndarray
    groups: tuple[str, ...]
    users: dict[str, UserTable]
    embedding: Embedding | None = None

    @property
    def embedder(self) -> str:
        """Name of what made the features; "" before."""
        return self.embedding.name if self.embedding else ""


def write(
    path: str | pathlib.Path,
    data: Dataset,
    *,
    sources: Mapping[str, str] | None = None,
    split: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> None:
    """Writes a dataset completely, or leaves what was at `path` before.

    Args:
      path: the directory to make.
      data: with features or without.
      sources: name -> SHA-256 of the files that the data came from, to be recorded.
      split: how users were split, `by` what and by which `seed`, to be recorded.
      overwrite: replace the dataset that `path` holds.

    Raises:
      InputError: if the directory is not free or cannot be written, see
        `manifest.check_free`, or if the features are not one finite vector for each
        item.
    """
    path = pathlib.Path(path)
    manifest.check_free(path, overwrite)
    with complete_or_absent(path) as new:
        records.write(new, "items", _ITEM, {"items": _item_records(data)})
        users = {split: _user_records(data, split) for split in SPLITS}
        records.write(new, "users", _USER, users)
        if data.embedding:
            _write_vectors(new, check_vectors(data.features, data.item_ids))
        entries = {
            "embedding": data.embedding and dataclasses.asdict(data.embedding),
            "groups": list(data.groups),
            "counts": counts(data),
            "sources": dict(sources or {}),
            "split": split and dict(split),
        }
        manifest.write(new, entries)
        # Writing takes time, in which somebody may have put a file there.
        manifest.check_free(path, overwrite)


def write_features(
    path: str | pathlib.Path,
    vectors: np.ndarray,
    embedding: Embedding,
) -> Dataset:
    """Adds the items' vectors to a dataset, and replaces any that it has.

    Args:
      path: a dataset.
      vectors: `[I, F]`, in the order of its items.
      embedding: what made them.

    Returns:
      The dataset with its features.

    Raises:
      InputError: if `path` is no dataset, or the vectors are not one finite vector for
        each item.
    """
    data = with_features(load(path, need_features=False), vectors, embedding)
    known = manifest.read(pathlib.Path(path), "sources")
    # Older datasets do not say how users were split.
    split = known.get("split")
    write(path, data, sources=known["sources"], split=split, overwrite=True)
    return data


def with_features(data: Dataset, vectors: np.ndarray, embedding: Embedding) -> Dataset:
    """Returns a dataset with the vectors `[I, F]` of its items, and what made them.

    Raises:
      InputError: if the vectors are not one finite vector for each item.
    """
    features = check_vectors(vectors, data.item_ids)
    return dataclasses.replace(data, features=features, embedding=embedding)


def load(path: str | pathlib.Path, *, need_features: bool = True) -> Dataset:
    """Reads a dataset from disk.

    Args:
      path: a dataset.
      need_features: refuse a dataset without features.

    Raises:
      InputError: if `path` is no dataset, is damaged or unfinished, or has no features.
    """
    path = pathlib.Path(path)
    embedding, groups = _read_manifest(path)
    if need_features and not embedding:
        raise InputError(
            f"{path}: has no features; run fsa embed --data={path} "
            "--model=FOLDER, or prepare it with ready-made vectors"
        )
    items = [
        {key: text.decode() for key, text in record.items()}
        for record in records.read(path, "items", "items")
    ]
    prompts = tuple(sorted({item["prompt"] for item in items}))
    index = {prompt: i for i, prompt in enumerate(prompts)}
    features = np.zeros((len(items), 0), np.float32)
    if embedding:
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
        embedding=embedding,
    )


def counts(data: Dataset) -> dict[str, dict[str, int]]:
    """Counts users, choices and ratings: split -> name -> number."""

    def of(table: UserTable) -> dict[str, int]:
        return {
            "users": len(table.names),
            "users_with_choices": int((table.chosen.lengths > 0).sum()),
            "users_with_ratings": int((table.items.lengths > 0).sum()),
            "choices": len(table.chosen.flat),
            "ratings": len(table.items.flat),
        }

    return {split: of(table) for split, table in data.users.items()}


def check_vectors(vectors: np.ndarray, item_ids: Sequence[str]) -> np.ndarray:
    """Returns the vectors of all items, `[I, F]` float32.

    Raises:
      InputError: if there is not one vector for each item, or one is not finite.
    """
    if vectors.ndim != 2 or len(vectors) != len(item_ids) or not vectors.shape[1]:
        raise InputError(
            f"features of shape {vectors.shape} for {len(item_ids)} items; give one "
            "vector for each item"
        )
    vectors = np.asarray(vectors, np.float32)
    broken = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(broken):
        raise InputError(
            f"features of item {item_ids[broken[0]]!r}: NaN or infinite, as are those "
            f"of {len(broken)} items in all; embed them again"
        )
    return vectors


def _read_manifest(
    path: pathlib.Path,
) -> tuple[Embedding | None, tuple[str, ...]]:
    """Returns the embedding and the groups that a manifest records."""
    entries = manifest.read(path, "groups")
    try:
        if not entries["files"]:
            raise ValueError("no dataset is without files")
        return _embedding(entries), tuple(entries["groups"])
    except (KeyError, TypeError, ValueError, SyntaxError) as error:
        raise manifest.damaged(path) from error


def _embedding(entries: Mapping[str, Any]) -> Embedding | None:
    """Returns the embedding that a manifest records."""
    if "embedding" in entries:
        recorded = entries["embedding"]
        return Embedding(**recorded) if recorded else None
    # Older datasets have a name, followed by the template where it is not the default.
    recorded = entries["embedder"]
    if found := re.fullmatch(r"(.+?) of (['\"].*)", recorded):
        return Embedding(found[1], template=ast.literal_eval(found[2]))
    return Embedding(recorded) if recorded else None


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
    return [
        {
            "user": name,
            "group": data.groups[table.group[u]],
            "chosen": table.chosen[u],
            "rejected": table.rejected[u],
            "items": table.items[u],
            "values": table.values[u],
        }
        for u, name in enumerate(table.names)
    ]


def _user_table(users: Sequence[records.Record], groups: Sequence[str]) -> UserTable:
    return UserTable.of(
        [user["user"].decode() for user in users],
        [groups.index(user["group"].decode()) for user in users],
        **{column: [user[column] for user in users] for column in _LISTS},
    )


def _write_vectors(folder: pathlib.Path, vectors: np.ndarray) -> None:
    feature = tfds.features.Tensor(shape=vectors.shape[1:], dtype=np.float32)
    rows = [{"vector": vector} for vector in vectors]
    records.write(folder, "features", {"vector": feature}, {"features": rows})
