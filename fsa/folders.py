"""Folders that are written completely or not at all."""

import contextlib
import os
import pathlib
import tempfile
from collections.abc import Iterator

from fsa.errors import InputError


@contextlib.contextmanager
def complete_or_absent(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a new folder that takes the place of `folder` at the end.

    It is made beside its place, thus on the same disk, and deleted if anything fails.

    Raises:
      InputError: if something cannot be written.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            dir=folder.parent, prefix=f".{folder.name}."
        ) as name:
            beside = pathlib.Path(name)
            new = beside / "new"
            new.mkdir()
            yield new
            if folder.exists():
                os.replace(folder, beside / "old")
            os.replace(new, folder)
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(
            f"{folder}: cannot be written ({reason}); choose another folder"
        ) from error
