"""Folders that are written completely or not at all, and whose damage is detected.

The manifest, `store.json`, is written last and lists the SHA-256 of every file.
"""

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from fsa import digests, folders, json_files
from fsa.errors import InputError

SCHEMA = 1

# Begins the names of folders with what was computed from a dataset, which go with it.
RESULTS = "responses-"
# Ends the names of folders with that part of them which was computed.
PART = ".part"

_NAME = "store.json"
_MAKE = "make one with fsa prepare"
_DELETE = "delete the folder if nothing else is in it, and make it with fsa prepare"


def write(folder: pathlib.Path, entries: Mapping[str, Any]) -> None:
    """Writes the manifest: the entries, and the digests of all files in the folder."""
    found = digests.of_files(folder, skip=lambda name: name.endswith(_NAME))
    content = {"schema": SCHEMA, **entries, "files": found}
    partial = folder / f".{_NAME}"
    partial.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(partial, folder / _NAME)


def exists(folder: pathlib.Path) -> bool:
    """Returns whether a folder has a manifest, sound or not."""
    return (folder / _NAME).is_file()


def digest(folder: pathlib.Path) -> str:
    """Returns the SHA-256 of the manifest, which differs whenever a file does.

    Raises:
      InputError: if there is no manifest, or it cannot be read.
    """
    try:
        return digests.of_file(folder / _NAME)
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{folder}: is not a dataset; {_MAKE}") from None
    except OSError as error:
        raise damaged(folder) from error


def damaged(folder: pathlib.Path) -> InputError:
    """Returns the error for a manifest that cannot be understood."""
    return InputError(f"{folder / _NAME}: damaged; {_DELETE}")


def read(folder: pathlib.Path, *needed: str) -> dict[str, Any]:
    """Reads the manifest and checks the files.

    Args:
      folder: a folder with a manifest.
      *needed: names of entries that it must have.

    Raises:
      InputError: if there is no manifest, it is damaged, its schema is unknown, or a
        file is damaged or missing.
    """
    try:
        content = json_files.read(folder / _NAME)
        schema, expected = content["schema"], dict(content["files"])
        for name in needed:
            content[name]
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{folder}: is not a dataset; {_MAKE}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise damaged(folder) from error
    if schema != SCHEMA:
        raise InputError(
            f"{folder}: has schema {schema} instead of {SCHEMA}; {_MAKE} --overwrite"
        )
    for name, digest in expected.items():
        file = folder / name
        if not file.is_file() or digests.of_file(file) != digest:
            raise InputError(f"{file}: damaged or missing; {_MAKE} --overwrite")
    return content


def check_free(
    folder: pathlib.Path, overwrite: bool, replacing: str = "overwriting"
) -> None:
    """Checks that a folder may be written, or replaced without losing anything else.

    Files of desktops, such as .DS_Store, do not count.

    Args:
      folder: where a dataset is to be written.
      overwrite: whether it may replace a dataset.
      replacing: what would delete other files, for messages.

    Raises:
      InputError: if it is a file, is in a dataset, is not a dataset and not empty, is a
        dataset and `overwrite` is false, or has a file that its manifest does not list.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is a file; name a folder")
    if outer := next(filter(exists, folder.resolve().parents), None):
        raise InputError(f"{folder}: is in the dataset {outer}; choose another folder")
    if not folder.exists() or all(
        folders.is_of_desktop(path.name) for path in folder.iterdir()
    ):
        return
    if not exists(folder):
        raise InputError(
            f"{folder}: is not a dataset and not empty; choose another folder"
        )
    if not overwrite:
        raise InputError(
            f"{folder}: holds a dataset; choose another folder or pass `overwrite`"
        )
    own = _own_files(folder)
    for path in sorted(folder.rglob("*")):
        is_folder = path.is_dir() and not path.is_symlink()
        if is_folder or folders.is_of_desktop(path.name):
            continue
        if path.relative_to(folder) not in own:
            raise InputError(
                f"{path}: is not part of the dataset; {replacing} would delete it; "
                "move it away"
            )


def _own_files(folder: pathlib.Path) -> set[pathlib.Path]:
    """Returns the files that a manifest lists, relative to the folder, and itself.

    Those of `RESULTS` in the folder, which have manifests of their own, are among them,
    and so are parts of them.

    Raises:
      InputError: if a manifest cannot be read.
    """
    try:
        listed = json_files.read(folder / _NAME)["files"]
        paths = {pathlib.Path(_NAME), *map(pathlib.Path, listed)}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder / _NAME}: damaged; {_DELETE}") from error
    parts = folder.glob(f"{RESULTS}*{PART}/*")
    paths |= {path.relative_to(folder) for path in parts}
    for inside in folder.glob(f"{RESULTS}*/{_NAME}"):
        name = inside.parent.name
        paths |= {pathlib.Path(name) / path for path in _own_files(inside.parent)}
    return paths
