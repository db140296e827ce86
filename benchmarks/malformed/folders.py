"""What can happen to a file of a dataset, a model or a run."""

import pathlib
import shutil
from collections.abc import Callable
from typing import Any

from benchmarks.malformed.case import flipped, half


def replace_by(path: pathlib.Path, content: bytes | None) -> None:
    """Replaces a file or folder by a file, or by nothing."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    if content is not None:
        path.write_bytes(content)


def _as_directory(path: pathlib.Path) -> None:
    path.unlink()
    path.mkdir()


FILE_FAULTS: dict[str, Callable[[pathlib.Path], Any]] = {
    "missing": lambda path: replace_by(path, None),
    "empty": lambda path: replace_by(path, b""),
    "cut": lambda path: replace_by(path, half(path.read_bytes())),
    "damaged": lambda path: replace_by(path, flipped(path.read_bytes())),
    "other bytes": lambda path: replace_by(path, b"\x80\x04nothing\xff" * 9),
    "a directory": _as_directory,
}
JSON_FAULTS: dict[str, Callable[[pathlib.Path], Any]] = {
    "null": lambda path: path.write_text("null"),
    "a list": lambda path: path.write_text("[1, 2]"),
    "no fields": lambda path: path.write_text("{}"),
    "a number": lambda path: path.write_text("5"),
    "deep": lambda path: path.write_text("[" * 100_000),
}


def files_of(sound: pathlib.Path, folder: str) -> list[str]:
    """Returns the files below a folder, relative to the sound folder."""
    found = [path for path in (sound / folder).rglob("*") if path.is_file()]
    return sorted(str(path.relative_to(sound)) for path in found)


def faults_of(name: str) -> dict[str, Callable[[pathlib.Path], Any]]:
    """Returns what can happen to the file of a name."""
    return FILE_FAULTS | (JSON_FAULTS if name.endswith(".json") else {})
