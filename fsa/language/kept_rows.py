"""Rows of an array that take long to compute, kept while they are computed.

They are files in a folder, each written completely or not at all, so neither a kill nor
another process that computes the same rows leaves wrong ones. Where they cannot be
written, the computation goes on without.

Shapes: I rows, W numbers each.
"""

import contextlib
import logging
import pathlib
import time
import uuid
import zipfile

import numpy as np

from fsa import folders
from fsa.errors import InputError

_LOG = logging.getLogger(__name__)


class KeptRows:
    """Writes computed rows into a folder, in a `with` statement, and reads them again.

    What was computed when the statement ends is written, however it ends.
    """

    def __init__(self, folder: pathlib.Path | None, seconds: float = 20.0):
        """Remembers the folder.

        Args:
          folder: where files are written; None to keep nothing.
          seconds: the least time between two files.
        """
        self._folder, self._seconds = folder, seconds
        self._items: list[np.ndarray] = []
        self._rows: list[np.ndarray] = []
        self._written = time.monotonic()

    def __enter__(self) -> "KeptRows":
        return self

    def __exit__(self, *error: object) -> None:
        self._write()

    def read_into(self, found: np.ndarray) -> None:
        """Puts the rows that the folder has into an array `[I, W]`."""
        if self._folder is None:
            return
        for path in sorted(self._folder.glob("*.npz")):
            # A file of another array, or one that a crash of the machine left.
            with contextlib.suppress(OSError, ValueError, KeyError, zipfile.BadZipFile):
                with np.load(path) as file:
                    items, rows = file["items"], file["rows"]
                if rows.shape == (len(items), found.shape[1]):
                    found[items[items < len(found)]] = rows[items < len(found)]

    def add(self, items: np.ndarray, rows: np.ndarray) -> None:
        """Takes rows `[B, W]` of some items `[B]`."""
        if self._folder is None:
            return
        self._items.append(items)
        self._rows.append(rows)
        if time.monotonic() - self._written > self._seconds:
            self._write()

    def _write(self) -> None:
        if not self._items:
            return
        items, rows = np.concatenate(self._items), np.concatenate(self._rows)
        self._items, self._rows, self._written = [], [], time.monotonic()
        try:
            with folders.whole_file(self._folder / f"{uuid.uuid4().hex}.npz") as file:
                np.savez(file, items=items, rows=rows)
        except InputError as error:
            _LOG.warning("%s; an interrupted computation will begin anew", error)
            self._folder = None
