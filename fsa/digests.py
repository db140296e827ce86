"""SHA-256 digests of files and folders, on disk or in a bucket."""

import hashlib
import json
import os
from collections.abc import Callable
from concurrent import futures

from etils import epath


def of_file(path: os.PathLike | str) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    with epath.Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def of_files(
    folder: os.PathLike | str, skip: Callable[[str], bool] = lambda name: False
) -> dict[str, str]:
    """SHA-256 of every file below a folder, by its path from there, in order of paths.

    Args:
      folder: an existing folder.
      skip: given the name of a file, whether to leave it out.
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
    with futures.ThreadPoolExecutor() as pool:
        digests = pool.map(of_file, (folder / path for path in found))
        return {path.as_posix(): d for path, d in zip(found, digests, strict=True)}


def of_folder(folder: os.PathLike | str) -> str:
    """One SHA-256 for all files below a folder and their names."""
    return hashlib.sha256(json.dumps(of_files(folder)).encode()).hexdigest()
