"""Reads vectors of items from a file and matches them to items by id.

Shapes: I items, F features, R rows of the file.
"""

import pathlib
import zipfile
import zlib
from collections.abc import Sequence

import numpy as np

from fsa.data import files
from fsa.data.tables import BadRow, name_of
from fsa.errors import InputError


def read(
    path: str | pathlib.Path,
    ids_path: str | pathlib.Path,
    item_ids: Sequence[str],
) -> np.ndarray:
    """Looks up one vector for each item.

    Args:
      path: .npy, or .npz that holds one array, `[R, F]` of any float type.
      ids_path: a table of R rows with a column `id`; row i names vector i.
      item_ids: I ids.

    Returns:
      `[I, F]` float32.

    Raises:
      InputError: if a file is damaged, the files do not fit together, an id occurs
        twice, or an item has no vector.
    """
    vectors = _load(path)
    rows: dict[str, int] = {}
    for i, (number, row) in enumerate(files.read_rows(ids_path)):
        try:
            item_id, fault = name_of(row, "id"), "no id"
        except BadRow as reason:
            item_id, fault = "", str(reason)
        if not item_id or item_id in rows:
            what = f"id {item_id!r} occurs twice" if item_id else fault
            raise InputError(
                f"{ids_path}, row {number}: {what}; name every vector once"
            )
        rows[item_id] = i
    if len(rows) != len(vectors):
        raise InputError(
            f"{path}: {len(vectors)} vectors for the {len(rows)} rows of {ids_path}; "
            "give one row for each vector"
        )
    missing = [item_id for item_id in item_ids if item_id not in rows]
    if missing:
        raise InputError(
            f"{ids_path}: no vector of item {missing[0]!r}, nor of "
            f"{len(missing) - 1} others, by the columns chosen_id and rejected_id (or "
            "item_id) of the tables; add them, or leave out `vectors` and run fsa embed"
        )
    # What is too large for float32 becomes infinite, and is refused with the others.
    with np.errstate(over="ignore"):
        return vectors[[rows[item_id] for item_id in item_ids]].astype(np.float32)


def _load(path: str | pathlib.Path) -> np.ndarray:
    try:
        # Mapped into memory, since a large file may have few rows that are needed.
        loaded = np.load(path, mmap_mode="r", allow_pickle=False)
        names = () if isinstance(loaded, np.ndarray) else loaded.files
        vectors = loaded[names[0]] if len(names) == 1 else loaded
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; check the path") from None
    except (OSError, ValueError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        raise InputError(
            f"{path}: damaged or not an .npy or .npz file; make it again"
        ) from error
    if not isinstance(vectors, np.ndarray):
        found = ", ".join(names) or "none"
        raise InputError(
            f"{path}: {len(names)} arrays ({found}); save the vectors alone, with "
            "numpy.save"
        )
    if vectors.ndim != 2 or not np.issubdtype(vectors.dtype, np.floating):
        raise InputError(
            f"{path}: {vectors.dtype} of shape {vectors.shape}; give floats, one "
            "row for each item"
        )
    return vectors
