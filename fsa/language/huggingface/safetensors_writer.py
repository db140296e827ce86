"""Writes tensors as a Hugging Face folder keeps them: safetensors files, maybe several.

The safetensors library writes a file from arrays in memory, so host memory holds the
tensors of one file at a time.
"""

import json
import math
import pathlib
from collections.abc import Callable, Mapping

import jax
import numpy as np
from huggingface_hub import split_state_dict_into_shards_factory
from safetensors.numpy import save_file

from fsa import folders

# The size at which transformers splits a model over several files (`max_shard_size`).
SHARD_BYTES = 5 * 10**9


def write(
    folder: pathlib.Path | None,
    shapes: Mapping[str, jax.ShapeDtypeStruct],
    read: Callable[[str], np.ndarray],
    *,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes `model.safetensors`, or shards and `model.safetensors.index.json`.

    Args:
      folder: an existing folder; None to call `read` alike and write nothing, in the
        other processes of a run whose arrays are split over all of them.
      shapes: name -> shape and dtype of every tensor, in the order to be written.
      read: returns the tensor of a name; called once for each name, in that order.
      shard_bytes: largest size of a shard, and so the host memory that writing takes;
        a tensor that is larger has a shard of its own.
    """
    split = split_state_dict_into_shards_factory(
        shapes,
        get_storage_size=lambda x: math.prod(x.shape) * x.dtype.itemsize,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=shard_bytes,
    )
    for file, names in split.filename_to_tensors.items():
        if folder is None:
            for name in names:
                read(name)
            continue
        # The library writes the memory of an array as it is, whatever its strides.
        tensors = {name: np.ascontiguousarray(read(name)) for name in names}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        folders.share(folder / file)
    if split.is_sharded and folder is not None:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / "model.safetensors.index.json").write_text(
            json.dumps(index, indent=2) + "\n"
        )
