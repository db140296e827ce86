"""Ties a run to its data: another dataset in their place is refused.

A run records the identity of its dataset in `data.json` and in its checkpoints. It also
records a digest of the dataset's manifest: while that is the same, so are the data, and
they need not be read to know it.
"""

import json
import logging
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from fsa import folders, json_files
from fsa.data import dataset, manifest
from fsa.data.dataset import Dataset
from fsa.data.identity import identity
from fsa.errors import InputError
from fsa.training import run_directory

_LOG = logging.getLogger(__name__)

# Name of the file in the run directory.
FILE = "data.json"
_MANIFEST = "manifest"

# What a run takes from its dataset, in words.
PARTS = ("choices", "vectors", "template", "embedder")

_ENTRIES = (*PARTS, "embedder_digest", _MANIFEST)

Identity = dict[str, str]


def identify(path: epath.PathLike, data: Dataset | None = None) -> Identity:
    """Returns the identity of a dataset, as runs record it.

    Args:
      path: the folder of the dataset.
      data: the dataset, if it was read already.

    Raises:
      InputError: if it is missing or damaged.
    """
    data = data or dataset.load(path, need_features=False, most_in_memory=0)
    found = identity(data, dataset.recorded_choices(path))
    return {**found, _MANIFEST: _digest_of_manifest(path)}


def recorded(workdir: epath.PathLike) -> Identity | None:
    """Returns the identity that a run has recorded; None in runs of older versions.

    Raises:
      InputError: if the file is damaged.
    """
    path = run_directory.locate(workdir) / FILE
    return _read(path) if path.exists() else None


def is_record(path: epath.Path) -> bool:
    """Returns whether a file of the name `FILE` is the record of a run."""
    try:
        _read(path)
    except InputError:
        return False
    return True


def _read(path: epath.Path) -> Identity:
    try:
        content = json_files.read(path)
        return {name: str(content[name]) for name in _ENTRIES}
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"{path}: damaged ({error!r}); remove it, and what the checkpoints say of "
            "the data counts"
        ) from error


def record(workdir: epath.PathLike, found: Identity) -> None:
    """Records the identity of a run's dataset.

    Raises:
      InputError: if the run directory cannot be written.
    """
    path = run_directory.locate(workdir) / FILE
    folders.write_text(path, json.dumps(found, indent=1) + "\n")


def check(
    workdir: epath.PathLike,
    path: epath.PathLike,
    parts: Sequence[str],
    fix: str,
    *,
    known: Identity | None,
) -> Identity:
    """Checks that a dataset is the one that a run was trained on.

    For a run of an older version, which recorded nothing, it is recorded now, with a
    warning.

    Args:
      workdir: the run directory.
      path: the folder of the dataset.
      parts: those of `PARTS` that the run depends on.
      fix: what the user can do if it is another one, for the message.
      known: the identity of the run's dataset; None if an older version trained it.

    Returns:
      The identity of the run's dataset.

    Raises:
      InputError: if it is another one, naming what differs, or is missing or damaged.
    """
    if known is None:
        return _record_late(workdir, path)
    if differ := differences(known, path, parts):
        raise InputError(
            f"{path}: {run_directory.locate(workdir)} was trained on other data: "
            f"{'; '.join(differ)}; {fix}"
        )
    return known


def is_there(path: epath.PathLike) -> bool:
    """Returns whether there is a dataset at a path, sound or damaged."""
    return manifest.exists(pathlib.Path(path))


def check_there(
    workdir: epath.PathLike, path: epath.PathLike, argument: str = "`data`"
) -> None:
    """Raises InputError if the dataset of a run is missing.

    Args:
      workdir: the run directory.
      path: where its dataset should be.
      argument: what tells another place, for the message.
    """
    if not is_there(path):
        raise InputError(
            f"{path}: the dataset of {run_directory.locate(workdir)} is missing; put "
            f"it back, or say with {argument} where it is"
        )


def differences(
    known: Mapping[str, Any], path: epath.PathLike, parts: Sequence[str]
) -> list[str]:
    """Returns in words how a dataset differs from the identity of another one.

    Args:
      known: an identity that a run recorded.
      path: the folder of the dataset.
      parts: those of `PARTS` that are compared.

    Raises:
      InputError: if the dataset is missing or damaged.
    """
    if known.get(_MANIFEST) == _digest_of_manifest(path):
        return []
    found = identify(path)
    return [
        _DIFFERENCES[part](known, found)
        for part in parts
        if _differ(part, known, found)
    ]


def _differ(part: str, known: Mapping[str, Any], found: Identity) -> bool:
    if part != "embedder":
        return known.get(part) != found[part]
    both = known.get("embedder_digest"), found["embedder_digest"]
    if all(both):
        return both[0] != both[1]
    # A name is that of a file or folder, which may have been renamed.
    same = all(known.get(other) == found[other] for other in ("vectors", "template"))
    return not same and known.get(part) != found[part]


_DIFFERENCES = {
    "choices": lambda known, found: "its choices (rows) differ",
    "vectors": lambda known, found: "its vectors differ",
    "template": lambda known, found: (
        f"its texts were embedded by the template {found['template']!r} and not "
        f"{known['template']!r}"
    ),
    "embedder": lambda known, found: (
        f"its embedder is {_name(found)} and not {_name(known)}"
    ),
}


def _name(embedding: Mapping[str, Any]) -> str:
    digest = embedding["embedder_digest"][:8]
    name = embedding["embedder"] or "none"
    return f"{name} ({digest})" if digest else name


def _digest_of_manifest(path: epath.PathLike) -> str:
    return manifest.digest(pathlib.Path(path))


def _record_late(workdir: epath.PathLike, path: epath.PathLike) -> Identity:
    found = identify(path)
    _LOG.warning(
        "%s: an older version did not record which data this run has; assuming the "
        "data now in %s",
        run_directory.locate(workdir),
        os.fspath(path),
    )
    try:
        record(workdir, found)
    except InputError:
        _LOG.warning("%s: cannot be written, so that this is said each time", workdir)
    return found
