"""SHA-256 digests of files and folders, on disk or in object storage."""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from concurrent import futures

from etils import epath


def of_file(path: os.PathLike | str) -> str:
    """Returns the SHA-256 of a file in hexadecimal digits."""
    with epath.Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def of_files(
    folder: os.PathLike | str, skip: Callable[[str], bool] = lambda name: False
) -> dict[str, str]:
    """Returns the SHA-256 of every file below a folder, subfolders included.

    Args:
      folder: an existing folder.
      skip: takes the name of a file and returns whether to leave it out.

    Returns:
      Digests by the file's path relative to `folder`, sorted by path.
    """
    folder = epath.Path(folder)
    found, folders = [], [folder]
    while folders:
        for path in folders.pop().iterdir():
            if path.is_dir():
                folders.append(path)
            elif not skip(path.name):
                found.append(path.relative_to(folder))
    found.sort(key=lambda path: path.parts)
    return of_named(folder, [path.as_posix() for path in found])


def of_named(folder: os.PathLike | str, names: Sequence[str]) -> dict[str, str]:
    """Returns the SHA-256 of files, given and keyed by paths relative to a folder."""
    with futures.ThreadPoolExecutor() as pool:
        digests = pool.map(of_file, (epath.Path(folder) / name for name in names))
        return dict(zip(names, digests, strict=True))


def of_folder(folder: os.PathLike | str) -> str:
    """Returns one SHA-256 of the names and contents of all files below a folder."""
    return hashlib.sha256(json.dumps(of_files(folder)).encode()).hexdigest()
