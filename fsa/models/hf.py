"""Hugging Face folders: weights and config in and out, tokenizer.

Weights are safetensors, read and written tensor by tensor without PyTorch. A folder is
checked as a whole, config against names and shapes against files, before an array is
made. Nothing here asks a hub.
"""

import dataclasses
import json
import math
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from flax import traverse_util
from jax.sharding import Sharding

from fsa.errors import InputError
from fsa.models.hf_config import arguments, read_config, stored_dtype
from fsa.models.transformer import Transformer

Shardings = Sharding | Callable[[str, tuple[int, ...]], Sharding]

_DTYPES = {"F64", "F32", "F16", "BF16"}

# Parameter paths and the names of what they are read from.
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
    "layers/post_attention_norm/scale": "post_attention_layernorm.weight",
    "layers/mlp_norm/scale": "pre_feedforward_layernorm.weight",
    "layers/mlp/gate/kernel": "mlp.gate_proj.weight",
    "layers/mlp/up/kernel": "mlp.up_proj.weight",
    "layers/mlp/down/kernel": "mlp.down_proj.weight",
    "layers/post_mlp_norm/scale": "post_feedforward_layernorm.weight",
}
# Without norms after attention, this is the one before the MLP.
_MLP_NORM_ALONE = "post_attention_layernorm.weight"

_TOKENIZER_FILES = (
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "*tokens*.json",
    "chat_template*",
    "generation_config.json",
)

# Entries of a tensor that are read at once.
_CHUNK = 2**20


@dataclasses.dataclass(frozen=True)
class _Parameter:
    """Where a parameter is stored.

    Attributes:
      shape: its own, layers first if they are stacked.
      names: of its tensors, one a layer.
      stacked: whether there is an axis of layers.
      order: axes of one layer's part in the order of the file, which has outputs first.
      file_shape: of each tensor.
    """

    shape: tuple[int, ...]
    names: tuple[str, ...]
    stacked: bool
    order: tuple[int, ...]
    file_shape: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """A tensor in a file: the file, its shape and the format's name of its dtype."""

    file: pathlib.Path
    shape: tuple[int, ...]
    dtype: str


def load(
    folder: str | pathlib.Path,
    dtype: Any = None,
    sharding: Shardings | None = None,
) -> tuple[Transformer, dict[str, Any]]:
    """A model and its parameters, from a folder as transformers writes it.

    Host memory holds, beside what is on the device, one parameter at most, or with a
    sharding the part of one that belongs to one device.

    Args:
      folder: with config.json and *.safetensors, in shards or not.
      dtype: of parameters and computation; what config.json says if None. Files may
        hold several.
      sharding: of all parameters, or a function of path (`params/embed/embedding`) and
        shape; the default device if None.

    Returns:
      (model, variables `{"params": ...}`).

    Raises:
      InputError: a config that is not implemented, a missing or damaged file, a tensor
        that is missing, left over or of another shape or an integer dtype.
    """
    folder = pathlib.Path(folder)
    config = read_config(folder)
    where = str(folder / "config.json")
    dtype = jnp.dtype(dtype or stored_dtype(config, where))
    model = Transformer(**arguments(config, where), dtype=dtype, param_dtype=dtype)
    parameters = _parameters(model)
    tensors = _tensors(folder)
    _check(folder, parameters, tensors, model.tied)

    def place(path, parameter):
        def read(index):
            return _read(parameter, index, tensors, dtype)

        if sharding is None:
            return jax.device_put(read((slice(None),) * len(parameter.shape)))
        own = sharding
        if callable(sharding):
            own = sharding(f"params/{path}", parameter.shape)
        return jax.make_array_from_callback(parameter.shape, own, read)

    flat = {path: place(path, each) for path, each in parameters.items()}
    return model, {"params": traverse_util.unflatten_dict(flat, sep="/")}


def _parameters(model: Transformer) -> dict[str, _Parameter]:
    """All parameters of a model, by path."""
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), tokens)["params"]
    flat = traverse_util.flatten_dict(shapes, sep="/")
    return {path: _parameter(model, path, x.shape) for path, x in flat.items()}


def _parameter(model: Transformer, path: str, shape: tuple[int, ...]) -> _Parameter:
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
    return _Parameter(shape, names, stacked, order, file_shape)


def _tensors(folder: pathlib.Path) -> dict[str, _Tensor]:
    """All tensors in a folder; opens every file, reads none of the weights."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise InputError(f"{index}: damaged; fetch it again") from error
    else:
        names = ["model.safetensors"]
    found = {}
    for file in (folder / name for name in names):
        if not file.is_file():
            raise InputError(f"{file}: no such file; fetch the missing weights")
        try:
            with safetensors.safe_open(file, "np") as opened:
                for name in opened.keys():
                    part = opened.get_slice(name)
                    found[name] = _Tensor(file, (*part.get_shape(),), part.get_dtype())
        except safetensors.SafetensorError as error:
            raise InputError(f"{file}: damaged or cut off; fetch it again") from error
    return found


def _check(folder, parameters, tensors: dict[str, _Tensor], tied: bool) -> None:
    """Compares what there is with what the config asks for."""
    wanted = {
        name: parameter.file_shape
        for parameter in parameters.values()
        for name in parameter.names
    }
    # Older files hold what follows from the config, or the tied kernel once more.
    left = {n for n in tensors if n not in wanted and not n.endswith(".inv_freq")}
    if tied and "lm_head.weight" in left:
        _check_tied(folder, parameters["embed/embedding"], tensors)
        left.remove("lm_head.weight")
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


def _check_tied(folder, embedding: _Parameter, tensors: dict[str, _Tensor]) -> None:
    (name,) = embedding.names
    both = [tensors.get(name), tensors["lm_head.weight"]]
    same = (
        both[0]
        and both[0].shape == both[1].shape
        and all(
            np.array_equal(a, b)
            for (_, a), (_, b) in zip(
                _rows(name, both[0], 0, both[0].shape[0], 1),
                _rows("lm_head.weight", both[1], 0, both[0].shape[0], 1),
                strict=True,
            )
        )
    )
    if not same:
        raise InputError(
            f"{folder}: lm_head.weight is not the embedding, but config.json has "
            "tie_word_embeddings; set it to false"
        )


def _rows(
    name: str, tensor: _Tensor, start: int, stop: int, multiple: int
) -> Iterator[tuple[int, np.ndarray]]:
    """Yields (first row, rows) of rows [start, stop), some multiple at a time."""
    entries = math.prod(tensor.shape[1:]) * multiple
    step = multiple * max(1, _CHUNK // entries)
    for first in range(start, stop, step):
        # Opened again for each: the pages of an open file count as memory.
        with safetensors.safe_open(tensor.file, "np") as opened:
            rows = opened.get_slice(name)[first : min(first + step, stop)]
        yield first, rows


def _read(parameter: _Parameter, index, tensors, dtype) -> np.ndarray:
    """The part of a parameter at an index of slices."""
    bounds = [s.indices(n)[:2] for s, n in zip(index, parameter.shape, strict=True)]
    out = _aligned([stop - start for start, stop in bounds], dtype)
    names, layers = parameter.names, [out]
    axes, shape = bounds, parameter.shape
    if parameter.stacked:
        names, layers = names[slice(*bounds[0])], out
        axes, shape = bounds[1:], shape[1:]
    sizes = [shape[axis] for axis in parameter.order]
    (start, stop), *others = (axes[axis] for axis in parameter.order)
    # The rows of a file are the leading one of these axes, or several merged.
    rows = parameter.file_shape[0] // sizes[0]
    kept = tuple(slice(*bound) for bound in others)
    for name, layer in zip(names, layers, strict=True):
        part = layer.transpose(parameter.order)
        for first, block in _rows(name, tensors[name], start * rows, stop * rows, rows):
            block = block.reshape(-1, *sizes[1:])[:, *kept]
            begin = first // rows - start
            part[begin : begin + len(block)] = block
    return out


def _aligned(shape, dtype) -> np.ndarray:
    """An empty array that JAX on a CPU takes over without a copy."""
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size].view(dtype).reshape(shape)


def save(
    folder: str | pathlib.Path,
    config: Mapping[str, Any],
    params: Mapping[str, Any],
    *,
    source: str | pathlib.Path | None = None,
    dtype: Any = None,
    max_shard_bytes: int = 5 * 10**9,
) -> None:
    """Writes a folder that transformers, and `load`, can read.

    It is written beside its place and renamed, so there is no half of one. Host memory
    holds one shard.

    Args:
      folder: to make; must not exist.
      config: as in a `config.json` that describes the parameters, see `read_config`.
      params: variables `{"params": ...}` of its model.
      source: a folder whose tokenizer, chat template and generation config are copied.
      dtype: to write; that of the embedding if None.
      max_shard_bytes: more is split over several files.

    Raises:
      InputError: the folder exists, or parameters do not fit the config.
    """
    folder = pathlib.Path(folder)
    if folder.exists():
        raise InputError(f"{folder}: exists; name a new folder")
    flat = traverse_util.flatten_dict(params["params"], sep="/")
    parameters = _parameters(Transformer(**arguments(config, "config")))
    for path in sorted(parameters.keys() | flat.keys()):
        given = flat[path].shape if path in flat else "missing"
        asked = parameters[path].shape if path in parameters else "nothing"
        if given != asked:
            raise InputError(f"params/{path} is {given}, but config asks for {asked}")
    dtype = jnp.dtype(dtype or flat["embed/embedding"].dtype)
    written = {**config, "dtype": dtype.name, "torch_dtype": dtype.name}

    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".save-") as made:
        partial = pathlib.Path(made) / folder.name
        partial.mkdir()
        (partial / "config.json").write_text(json.dumps(written, indent=2) + "\n")
        _write(partial, flat, parameters, dtype, max_shard_bytes)
        if source is not None:
            for pattern in _TOKENIZER_FILES:
                for file in pathlib.Path(source).glob(pattern):
                    shutil.copy(file, partial / file.name)
        partial.rename(folder)


def _write(folder, flat, parameters, dtype, max_shard_bytes) -> None:
    shards, room = [], 0
    for path, parameter in parameters.items():
        size = math.prod(parameter.file_shape) * dtype.itemsize
        for layer, name in enumerate(parameter.names):
            if size > room:
                shards.append([])
                room = max_shard_bytes
            shards[-1].append((name, path, layer))
            room -= size
    weight_map, total = {}, 0
    for number, shard in enumerate(shards, 1):
        file = "model.safetensors"
        if len(shards) > 1:
            file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        tensors = {
            name: _for_file(parameters[path], flat[path], layer, dtype)
            for name, path, layer in shard
        }
        # transformers refuses files without this.
        metadata = {"format": "pt"}
        safetensors.numpy.save_file(tensors, folder / file, metadata=metadata)
        weight_map |= dict.fromkeys(tensors, file)
        total += sum(x.nbytes for x in tensors.values())
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        text = json.dumps(index, indent=2, sort_keys=True) + "\n"
        (folder / "model.safetensors.index.json").write_text(text)


def _for_file(parameter: _Parameter, array, layer: int, dtype) -> np.ndarray:
    part = np.asarray(array[layer] if parameter.stacked else array)
    part = part.transpose(parameter.order).reshape(parameter.file_shape)
    return np.ascontiguousarray(part.astype(dtype))


def load_tokenizer(folder: str | pathlib.Path) -> Any:
    """The transformers tokenizer of a folder, with its chat template if it has one.

    Raises:
      InputError: no tokenizer there, or one that transformers cannot read.
    """
    folder = pathlib.Path(folder)
    if not any((folder / n).is_file() for n in ("tokenizer.json", "tokenizer.model")):
        raise InputError(
            f"{folder}: no tokenizer.json; copy the model's tokenizer there"
        )
    return _from_folder("AutoTokenizer", folder)


def load_generation_config(folder: str | pathlib.Path) -> Any:
    """The transformers `GenerationConfig` of a folder; without one, from its config.

    Raises:
      InputError: no config there, or one that transformers cannot read.
    """
    folder = pathlib.Path(folder)
    config = read_config(folder)
    if (folder / "generation_config.json").is_file():
        return _from_folder("GenerationConfig", folder)
    import transformers

    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    return transformers.GenerationConfig(**{name: config.get(name) for name in names})


def _from_folder(kind: str, folder: pathlib.Path) -> Any:
    # Read when the libraries are first imported; `local_files_only` holds in any case.
    os.environ["HF_HUB_OFFLINE"] = "1"
    # Takes seconds, which what needs no tokenizer should not wait for.
    import transformers

    try:
        return getattr(transformers, kind).from_pretrained(
            folder, local_files_only=True
        )
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputError(f"{folder}: {kind} cannot read it: {reason}") from error
