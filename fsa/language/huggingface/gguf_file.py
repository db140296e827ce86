"""Opens GGUF files: reads the metadata and maps the tensors into memory."""

import dataclasses
import pathlib
from types import ModuleType
from typing import Any

from fsa.errors import InputError, missing_extra


@dataclasses.dataclass(frozen=True)
class File:
    """An open GGUF file.

    Attributes:
      path: path of the file, for messages.
      metadata: key -> number, string or list of them.
      tensors: name -> `gguf.ReaderTensor`, whose data stays on the disk until read.
    """

    path: pathlib.Path
    metadata: dict[str, Any]
    tensors: dict[str, Any]

    def need(self, key: str) -> Any:
        """Returns the value of a key; raises InputError if the file lacks it."""
        if key not in self.metadata:
            raise InputError(f"{self.path}: lacks {key}; give a complete model file")
        return self.metadata[key]


def read(path: str | pathlib.Path) -> File:
    """Opens a file; its tensors are mapped, not read.

    Raises:
      InputError: for no file or a damaged one, or if the extra is not installed.
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
        raise InputError(f"{path}: has another byte order; fetch another file")
    return File(path, metadata, {tensor.name: tensor for tensor in reader.tensors})


def library() -> ModuleType:
    """Returns the package gguf; raises InputError if the extra is not installed."""
    try:
        import gguf
    except ImportError as error:
        raise missing_extra("gguf", "reading GGUF files", error) from error
    return gguf
