"""A dataset on disk: which items users chose, rejected and rated, and items' vectors.

A dataset is a directory with

* `items`: id, prompt and text of every item that was chosen, rejected or rated, and of
  answers that nobody decided on;
* `users`: splits train, valid and test; the choices and ratings of each user;
* `index`: what is held in memory of users whose records stay on disk;
* `features`: one vector for each item, once the items are embedded;
* `store.json`: counts, what embedded the items, the SHA-256 of the sources and of every
  file.

An unfinished or damaged dataset does not load: `fsa.data.manifest` checks it.

Shapes: I items, F features, U users of one split.
"""

import ast
import dataclasses
import logging
import math
import pathlib
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from fsa.data import manifest, records, users
from fsa.data.choices_digest import choices_digest
from fsa.data.splits import SPLITS
from fsa.data.users import LISTS, StoredUsers, Users, UserTable
from fsa.errors import InputError
from fsa.folders import complete_or_absent

_LOG = logging.getLogger(__name__)

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
      users: "train", "valid" and "test"; each a `UserTable`, unless they were left on
        disk, see `load`.
      embedding: what made the features; None before.
    """

    features: np.ndarray
    item_ids: tuple[str, ...]
    texts: tuple[str, ...]
    prompts: tuple[str, ...]
    item_prompt: np.ndarray
    groups: tuple[str, ...]
    users: dict[str, Users]
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
        _write_users(new, data)
        if data.embedding:
            _write_vectors(new, check_vectors(data.features, data.item_ids))
        entries = {
            "embedding": data.embedding and dataclasses.asdict(data.embedding),
            "groups": list(data.groups),
            "counts": counts(data),
            "choices": choices_digest(data),
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
) -> None:
    """Adds the items' vectors to a dataset, and replaces any that it has.

    Args:
      path: a dataset.
      vectors: `[I, F]`, in the order of its items.
      embedding: what made them.

    Raises:
      InputError: if `path` is no dataset, or the vectors are not one finite vector for
        each item.
    """
    path = pathlib.Path(path)
    data = load(path, need_features=False, most_in_memory=0)
    features = check_vectors(vectors, data.item_ids)
    known = manifest.read(path)
    # Older datasets have the embedder as a text.
    kept = {k: v for k, v in known.items() if k not in ("schema", "files", "embedder")}
    manifest.check_free(path, overwrite=True)
    with complete_or_absent(path) as new:
        for name in ("items", "users", users.INDEX):
            if (path / name).exists():
                shutil.copytree(path / name, new / name)
        _write_vectors(new, features)
        manifest.write(new, {**kept, "embedding": dataclasses.asdict(embedding)})
        manifest.check_free(path, overwrite=True)


def with_features(data: Dataset, vectors: np.ndarray, embedding: Embedding) -> Dataset:
    """Returns a dataset with the vectors `[I, F]` of its items, and what made them.

    Raises:
      InputError: if the vectors are not one finite vector for each item.
    """
    features = check_vectors(vectors, data.item_ids)
    return dataclasses.replace(data, features=features, embedding=embedding)


def load(
    path: str | pathlib.Path,
    *,
    need_features: bool = True,
    most_in_memory: float = math.inf,
) -> Dataset:
    """Reads a dataset from disk.

    Args:
      path: a dataset.
      need_features: refuse a dataset without features.
      most_in_memory: if the records of users take more bytes on disk, they are left
        there (`StoredUsers`). Datasets of older versions are held in memory always.

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
    items = records.read(path, "items", "items")
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
        users=_load_users(path, groups, most_in_memory),
        embedding=embedding,
    )


def _load_users(
    path: pathlib.Path, groups: tuple[str, ...], most_in_memory: float
) -> dict[str, Users]:
    files = (path / "users").rglob("*")
    size = sum(file.stat().st_size for file in files if file.is_file())
    if size > most_in_memory:
        if users.has_index(path):
            return {split: StoredUsers.open(path, split) for split in SPLITS}
        _LOG.warning(
            "%s: made by an older version, and held in memory; prepare it again to "
            "leave its %d MB on disk",
            path,
            size / 1e6,
        )
    return {split: UserTable.load(path, split, groups) for split in SPLITS}


def recorded_choices(path: str | pathlib.Path) -> str | None:
    """Returns the digest of choices that a dataset records; None for older versions.

    Raises:
      InputError: if `path` is no dataset, or is damaged or unfinished.
    """
    return manifest.read(pathlib.Path(path)).get("choices")


def counts(data: Dataset) -> dict[str, dict[str, int]]:
    """Counts users, choices and ratings: split -> name -> number."""

    def of(own: Users) -> dict[str, int]:
        choices, ratings = own.lengths("chosen"), own.lengths("items")
        return {
            "users": len(own),
            "users_with_choices": int((choices > 0).sum()),
            "users_with_ratings": int((ratings > 0).sum()),
            "choices": int(choices.sum()),
            "ratings": int(ratings.sum()),
        }

    return {split: of(own) for split, own in data.users.items()}


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


def _write_users(folder: pathlib.Path, data: Dataset) -> None:
    rows = {split: _user_records(data, split) for split in SPLITS}
    records.write(folder, "users", _USER, rows)
    for split in SPLITS:
        users.write_index(folder, split, data.users[split])


def _user_records(data: Dataset, split: str) -> Iterator[records.Record]:
    of_split = data.users[split]
    parts = of_split.parts(tuple(LISTS))
    lists = (own for part in parts for own in zip(*part, strict=True))
    for name, group, own in zip(of_split.names, of_split.group, lists, strict=True):
        columns = dict(zip(LISTS, own, strict=True))
        yield {"user": name, "group": data.groups[group], **columns}


def _write_vectors(folder: pathlib.Path, vectors: np.ndarray) -> None:
    feature = tfds.features.Tensor(shape=vectors.shape[1:], dtype=np.float32)
    rows = ({"vector": vector} for vector in vectors)
    records.write(folder, "features", {"vector": feature}, {"features": rows})
