"""Folders that are written completely or not at all, and whose damage is detected.

The manifest, `store.json`, is written last and lists the SHA-256 of every file.
"""

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from fsa import digests
from fsa.errors import InputError

SCHEMA = 1

_NAME = "store.json"
_MAKE = "make one with fsa prepare"


def write(folder: pathlib.Path, entries: Mapping[str, Any]) -> None:
    """Writes the manifest: the entries, and the digests of all files in the folder."""
    found = digests.of_files(folder, skip=lambda name: name.endswith(_NAME))
    content = {"schema": SCHEMA, **entries, "files": found}
    partial = folder / f".{_NAME}"
    partial.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(partial, folder / _NAME)


def read(folder: pathlib.Path) -> dict[str, Any]:
    """Reads the manifest and checks the files.

    Raises:
      InputError: if there is no manifest, its schema is unknown, or a file is damaged
        or missing.
    """
    try:
        content = json.loads((folder / _NAME).read_text())
        schema, expected = content["schema"], content["files"]
    except FileNotFoundError:
        raise InputError(f"{folder}: is no dataset; {_MAKE}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder / _NAME}: damaged; {_MAKE} --overwrite") from error
    if schema != SCHEMA:
        raise InputError(
            f"{folder}: has schema {schema} instead of {SCHEMA}; {_MAKE} --overwrite"
        )
    for name, digest in expected.items():
        file = folder / name
        if not file.is_file() or digests.of_file(file) != digest:
            raise InputError(f"{file}: damaged or missing; {_MAKE} --overwrite")
    return content


def check_free(folder: pathlib.Path, overwrite: bool) -> None:
    """Raises InputError unless a folder may be written or replaced."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not (folder / _NAME).is_file():
        raise InputError(
            f"{folder}: is no dataset and not empty; choose another folder"
        )
    if not overwrite:
        raise InputError(
            f"{folder}: holds a dataset; choose another folder or pass `overwrite`"
        )
