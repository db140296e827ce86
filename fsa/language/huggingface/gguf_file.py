"""GGUF files, opened: metadata in memory, tensors on the disk."""

import dataclasses
import pathlib
from types import ModuleType
from typing import Any

from fsa.errors import InputError


@dataclasses.dataclass(frozen=True)
class File:
    """An open GGUF file.

    Attributes:
      path: where it is, for messages.
      metadata: key -> number, string or list of them.
      tensors: name -> `gguf.ReaderTensor`, whose data stays on the disk until read.
    """

    path: pathlib.Path
    metadata: dict[str, Any]
    tensors: dict[str, Any]

    def need(self, key: str) -> Any:
        """The value of a key; InputError where the file lacks it."""
        if key not in self.metadata:
            raise InputError(f"{self.path}: lacks {key}; give a complete model file")
        return self.metadata[key]


def read(path: str | pathlib.Path) -> File:
    """Opens a file; its tensors are mapped, not read.

    Raises:
      InputError: no such file, a damaged one, or the extra is not installed.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; check the path")
    gguf = library()
    try:
        reader = gguf.GGUFReader(path)
        metadata = {name: field.contents() for name, field in reader.fields.items()}
    except (OSError, ValueError, KeyError, IndexError, OverflowError) as error:
        raise InputError(
            f"{path}: damaged or not a GGUF file ({error}); fetch it again"
        ) from error
    if reader.byte_order == "S":
        raise InputError(f"{path}: is of the other byte order; fetch another file")
    return File(path, metadata, {tensor.name: tensor for tensor in reader.tensors})


def library() -> ModuleType:
    """The package gguf; InputError where the extra is not installed."""
    try:
        import gguf
    except ImportError as error:
        raise InputError(
            f"GGUF files take an extra: pip install fsa[gguf] ({error})"
        ) from error
    return gguf
