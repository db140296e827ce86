"""Writes tensors as safetensors, one at a time, as Hugging Face folders hold them.

The safetensors library writes a dictionary that is whole in memory. Here the shapes are
known beforehand, so the header comes first and every tensor is made, written and
forgotten. The format: https://github.com/huggingface/safetensors#format.
"""

import json
import math
import pathlib
from collections.abc import Callable, Mapping

import jax
import numpy as np

# What transformers splits folders at (its `max_shard_size`).
SHARD_BYTES = 5 * 10**9

_DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32", "float64": "F64"}


def write(
    folder: pathlib.Path,
    shapes: Mapping[str, jax.ShapeDtypeStruct],
    read: Callable[[str], np.ndarray],
    *,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes `model.safetensors`, or shards and `model.safetensors.index.json`.

    Args:
      folder: where, an existing folder.
      shapes: shape and dtype of every tensor by name, in the order to be written; float
        types of 16 to 64 bits.
      read: gives a tensor by its name, called once for each in that order.
      shard_bytes: a shard holds no more than this, or a single tensor.
    """
    shards = _split(shapes, shard_bytes)
    files = {}
    for i, names in enumerate(shards, 1):
        file = "model.safetensors"
        if len(shards) > 1:
            file = f"model-{i:05}-of-{len(shards):05}.safetensors"
        _write_shard(folder / file, {name: shapes[name] for name in names}, read)
        files |= dict.fromkeys(names, file)
    if len(shards) > 1:
        total = sum(map(_num_bytes, shapes.values()))
        index = {"metadata": {"total_size": total}, "weight_map": files}
        (folder / "model.safetensors.index.json").write_text(
            json.dumps(index, indent=2) + "\n"
        )


def _num_bytes(shape: jax.ShapeDtypeStruct) -> int:
    return math.prod(shape.shape) * shape.dtype.itemsize


def _split(
    shapes: Mapping[str, jax.ShapeDtypeStruct], shard_bytes: int
) -> list[list[str]]:
    """Names of each shard; a new one begins where the next tensor would not fit."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, shape in shapes.items():
        size = _num_bytes(shape)
        if shards[-1] and filled + size > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards


def _write_shard(
    path: pathlib.Path,
    shapes: Mapping[str, jax.ShapeDtypeStruct],
    read: Callable[[str], np.ndarray],
) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + _num_bytes(shape)
        header[name] = {
            "dtype": _DTYPES[shape.dtype.name],
            "shape": list(shape.shape),
            "data_offsets": [begin, end],
        }
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)  # So that the tensors are aligned.
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little"))
        file.write(encoded)
        for name, shape in shapes.items():
            tensor = read(name)
            if (tensor.shape, tensor.dtype) != (shape.shape, shape.dtype):
                raise ValueError(
                    f"{name}: {tensor.dtype}{tensor.shape} where "
                    f"{shape.dtype}{shape.shape} was announced"
                )
            file.write(np.ascontiguousarray(tensor).view(np.uint8).data)
