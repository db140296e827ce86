"""Maps parameters of `Transformer` to the safetensors files of a Hugging Face folder.

Files hold one tensor for each layer, with the axis of outputs before that of inputs.
Parameters are stacked over layers, with inputs first and axes for heads. Tensors are
read a few rows at a time.
"""

import dataclasses
import math
import pathlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
from flax import traverse_util

from fsa import json_files
from fsa.errors import InputError
from fsa.language.transformer import Transformer

# Which file holds which tensor, where several do.
INDEX = "model.safetensors.index.json"

_DTYPES = {"F64", "F32", "F16", "BF16"}

# Path of a parameter -> name of its tensor, within a layer if it is stacked.
_NAMES = {
    "embed/embedding": "model.embed_tokens.weight",
    "final_norm/scale": "model.norm.weight",
    "unembed/kernel": "lm_head.weight",
    "layers/attention_norm/scale": "input_layernorm.weight",
    "layers/attention/query/kernel": "self_attn.q_proj.weight",
    "layers/attention/query/bias": "self_attn.q_proj.bias",
    "layers/attention/key/kernel": "self_attn.k_proj.weight",
    "layers/attention/key/bias": "self_attn.k_proj.bias",
    "layers/attention/value/kernel": "self_attn.v_proj.weight",
    "layers/attention/value/bias": "self_attn.v_proj.bias",
    "layers/attention/query_norm/scale": "self_attn.q_norm.weight",
    "layers/attention/key_norm/scale": "self_attn.k_norm.weight",
    "layers/attention/out/kernel": "self_attn.o_proj.weight",
    "layers/attention/out/bias": "self_attn.o_proj.bias",
    "layers/post_attention_norm/scale": "post_attention_layernorm.weight",
    "layers/mlp_norm/scale": "pre_feedforward_layernorm.weight",
    "layers/mlp/gate/kernel": "mlp.gate_proj.weight",
    "layers/mlp/gate/bias": "mlp.gate_proj.bias",
    "layers/mlp/up/kernel": "mlp.up_proj.weight",
    "layers/mlp/up/bias": "mlp.up_proj.bias",
    "layers/mlp/down/kernel": "mlp.down_proj.weight",
    "layers/mlp/down/bias": "mlp.down_proj.bias",
    "layers/post_mlp_norm/scale": "post_feedforward_layernorm.weight",
}
# Name of the norm before the MLP in models without a norm after attention.
_MLP_NORM_ALONE = "post_attention_layernorm.weight"

# Number of a tensor's entries that are read at once.
_CHUNK = 2**20


@dataclasses.dataclass(frozen=True)
class Parameter:
    """The place of a parameter in the files.

    Attributes:
      shape: shape of the parameter, layers first if they are stacked.
      names: names of its tensors, one for each layer.
      stacked: whether the parameter has an axis of layers.
      order: axes of one layer's part in the order of the file, which has outputs first.
      file_shape: shape of each tensor.
    """

    shape: tuple[int, ...]
    names: tuple[str, ...]
    stacked: bool
    order: tuple[int, ...]
    file_shape: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor in a file, with its shape and the format's name of its dtype."""

    name: str
    file: pathlib.Path
    shape: tuple[int, ...]
    dtype: str


def parameters_of(model: Transformer) -> dict[str, Parameter]:
    """Returns all parameters of a model by path, without computing any."""

    def init():
        return model.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))

    flat = traverse_util.flatten_dict(jax.eval_shape(init)["params"], sep="/")
    return {path: _parameter(model, path, x.shape) for path, x in flat.items()}


def _parameter(model: Transformer, path: str, shape: tuple[int, ...]) -> Parameter:
    name = _NAMES[path]
    if path == "layers/mlp_norm/scale" and not model.post_norms:
        name = _MLP_NORM_ALONE
    stacked = path.startswith("layers/")
    names, axes = (name,), shape
    if stacked:
        names = tuple(f"model.layers.{i}.{name}" for i in range(model.num_layers))
        axes = shape[1:]
    order, file_shape = tuple(range(len(axes))), axes
    if path.endswith("kernel"):
        inputs = 2 if path.endswith("out/kernel") else 1
        order = order[inputs:] + order[:inputs]
        file_shape = math.prod(axes[inputs:]), math.prod(axes[:inputs])
    elif path.endswith("bias"):
        file_shape = (math.prod(axes),)
    return Parameter(shape, names, stacked, order, file_shape)


def files(folder: pathlib.Path) -> list[str]:
    """Returns the names of the files that hold the weights of a folder.

    Raises:
      InputError: if their index is damaged.
    """
    index = folder / INDEX
    if not index.is_file():
        return ["model.safetensors"]
    try:
        return sorted(set(json_files.read(index)["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise InputError(f"{index}: damaged; fetch it again") from error


def find_tensors(folder: pathlib.Path) -> dict[str, Tensor]:
    """Finds all tensors of a folder, by name; opens every file and reads no weights.

    Raises:
      InputError: for a file that is missing or damaged.
    """
    found = {}
    for file in (folder / name for name in files(folder)):
        if not file.is_file():
            raise InputError(f"{file}: no such file; fetch the missing weights")
        try:
            with safetensors.safe_open(file, "np") as opened:
                for name in opened.keys():
                    part = opened.get_slice(name)
                    shape, dtype = tuple(part.get_shape()), part.get_dtype()
                    found[name] = Tensor(name, file, shape, dtype)
        except safetensors.SafetensorError as error:
            raise InputError(f"{file}: damaged or cut off; fetch it again") from error
    return found


def check(
    folder: pathlib.Path,
    parameters: dict[str, Parameter],
    tensors: dict[str, Tensor],
    tied: bool,
) -> None:
    """Compares the tensors of a folder with those that the config asks for.

    Raises:
      InputError: for a tensor that is missing, left over, or of another shape or dtype.
    """
    wanted = {
        name: parameter.file_shape
        for parameter in parameters.values()
        for name in parameter.names
    }
    # Older files also hold rotary frequencies, or the tied kernel a second time.
    left = {n for n in tensors if n not in wanted and not n.endswith(".inv_freq")}
    head, embedding = (
        tensors.get(_NAMES[p]) for p in ("unembed/kernel", "embed/embedding")
    )
    if tied and head and embedding:
        if not _equal(head, embedding):
            raise InputError(
                f"{head.file}: {head.name} is not the embedding, but config.json has "
                "tie_word_embeddings; set it to false"
            )
        left.remove(head.name)
    missing = [name for name in wanted if name not in tensors]
    if missing:
        raise InputError(
            f"{folder}: {len(missing)} tensors are missing, {missing[0]} for one; "
            "fetch all files of the model that config.json describes"
        )
    if left:
        raise InputError(
            f"{folder}: {len(left)} tensors have no place in the model that "
            f"config.json describes, {min(left)} for one"
        )
    for name, shape in wanted.items():
        tensor = tensors[name]
        if tensor.shape != shape:
            raise InputError(
                f"{tensor.file}: {name} is {list(tensor.shape)}, but config.json asks "
                f"for {list(shape)}"
            )
        if tensor.dtype not in _DTYPES:
            raise InputError(
                f"{tensor.file}: {name} is {tensor.dtype}; quantised weights are not "
                "implemented"
            )


def _equal(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape:
        return False
    blocks = (_rows(tensor, 0, tensor.shape[0]) for tensor in (one, other))
    return all(np.array_equal(a, b) for (_, a), (_, b) in zip(*blocks, strict=True))


def _rows(
    tensor: Tensor, start: int, stop: int, multiple: int = 1
) -> Iterator[tuple[int, np.ndarray]]:
    """Yields (first row, rows) of rows [start, stop), in multiples of `multiple`."""
    entries = math.prod(tensor.shape[1:]) * multiple
    step = multiple * max(1, _CHUNK // entries)
    for first in range(start, stop, step):
        # Opened for each block, since pages of an open file count as memory.
        with safetensors.safe_open(tensor.file, "np") as opened:
            yield first, opened.get_slice(tensor.name)[first : min(first + step, stop)]


def read_part(
    parameter: Parameter,
    index: tuple[slice, ...],
    tensors: dict[str, Tensor],
    dtype: np.dtype,
) -> np.ndarray:
    """Reads the part of a parameter at an index, from a folder that was checked."""
    bounds = [s.indices(n)[:2] for s, n in zip(index, parameter.shape, strict=True)]
    out = _aligned([stop - start for start, stop in bounds], dtype)
    shape, layers = parameter.shape, out
    if not parameter.stacked:
        bounds, shape, layers = [(0, 1), *bounds], (1, *shape), out[None]
    names = parameter.names[slice(*bounds[0])]
    sizes = [shape[1 + axis] for axis in parameter.order]
    (start, stop), *others = (bounds[1 + axis] for axis in parameter.order)
    # A row of the file is an entry of the first axis, possibly merged with others.
    rows = parameter.file_shape[0] // sizes[0]
    kept = tuple(slice(*bound) for bound in others)
    for name, layer in zip(names, layers, strict=True):
        to = layer.transpose(parameter.order)
        for first, block in _rows(tensors[name], start * rows, stop * rows, rows):
            block = block.reshape(-1, *sizes[1:])[:, *kept]
            begin = first // rows - start
            to[begin : begin + len(block)] = block
    return out


def _aligned(shape: list[int], dtype: np.dtype) -> np.ndarray:
    """Makes an empty array, aligned so that JAX on a CPU uses it without a copy."""
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size].view(dtype).reshape(shape)


def for_file(
    parameter: Parameter, array: jax.Array, layer: int, dtype: np.dtype
) -> np.ndarray:
    """Returns the tensor of one layer of a parameter, as files hold it."""
    part = np.asarray(array[layer] if parameter.stacked else array)
    part = part.transpose(parameter.order).reshape(parameter.file_shape)
    return np.ascontiguousarray(part.astype(dtype))
