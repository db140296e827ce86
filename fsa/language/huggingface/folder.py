"""Loads and saves Hugging Face folders: config, weights, tokenizer.

Weights are safetensors, read and written without PyTorch. Before any array is made, the
names and shapes that the config asks for are compared with all files of the folder.
Nothing is downloaded.
"""

import hashlib
import json
import logging
import pathlib
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax.sharding import Sharding

from fsa import digests
from fsa.errors import InputError
from fsa.folders import complete_or_absent
from fsa.language.huggingface import safetensors_writer, weights
from fsa.language.huggingface.architecture import (
    arguments,
    read_config,
    refuse_run,
    stored_dtype,
)
from fsa.language.transformer import Transformer
from fsa.parallel.processes import is_first

Shardings = Sharding | Callable[[str, tuple[int, ...]], Sharding]

_GENERATION_CONFIG = "generation_config.json"

# Files of a tokenizer, its chat templates, and what says how the model generates.
_TEXT_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/*.jinja",
    _GENERATION_CONFIG,
)


def load(
    folder: str | pathlib.Path,
    dtype: Any = None,
    sharding: Shardings | None = None,
) -> tuple[Transformer, dict[str, Any]]:
    """Loads a model and its parameters from a folder as transformers writes it.

    Besides the arrays on the device, host memory holds at most one parameter, or with a
    sharding the parts of it that belong to this process's devices.

    Args:
      folder: has config.json and *.safetensors, in shards or not.
      dtype: dtype of parameters and computation; that of config.json if None. Files may
        hold several dtypes.
      sharding: sharding of all parameters, or a function of a path
        (`params/embed/embedding`) and a shape; the default device if None.

    Returns:
      (model, variables `{"params": ...}`).

    Raises:
      InputError: for a config that is not implemented, a missing or damaged file, or a
        tensor that is missing, left over, of another shape or of an integer dtype.
    """
    model, parameters, tensors = _examine(pathlib.Path(folder), dtype)
    dtype = model.param_dtype

    def place(path, parameter):
        def read(index):
            return weights.read_part(parameter, index, tensors, dtype)

        if sharding is None:
            return jax.device_put(read((slice(None),) * len(parameter.shape)))
        own = sharding
        if callable(sharding):
            own = sharding(f"params/{path}", parameter.shape)
        return jax.make_array_from_callback(parameter.shape, own, read)

    flat = {path: place(path, each) for path, each in parameters.items()}
    return model, {"params": traverse_util.unflatten_dict(flat, sep="/")}


def check(folder: str | pathlib.Path) -> None:
    """Raises InputError if `load` or `load_tokenizer` would; loads no weights."""
    _examine(pathlib.Path(folder), None)
    load_tokenizer(folder)


def _examine(folder: pathlib.Path, dtype: Any):
    """Returns the model, where its parameters are stored, and all tensors; checked."""
    config = read_config(folder)
    where = str(folder / "config.json")
    dtype = jnp.dtype(dtype or stored_dtype(config, where))
    model = Transformer(**arguments(config, where), dtype=dtype, param_dtype=dtype)
    parameters = weights.parameters_of(model)
    tensors = weights.find_tensors(folder)
    weights.check(folder, parameters, tensors, model.tied)
    return model, parameters, tensors


def digest(folder: str | pathlib.Path) -> str:
    """Returns the SHA-256 of the files of a model's folder that its texts depend on.

    These are config, weights, tokenizer, chat templates and generation config. Other
    files, such as a README, may come and go.

    Raises:
      InputError: if there is no such folder.
    """
    folder = _existing(folder)
    patterns = "config.json", weights.INDEX, *weights.files(folder), *_TEXT_FILES
    found = digests.of_named(folder, sorted(_files(folder, patterns)))
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()


def has_digest(folder: str | pathlib.Path, recorded: str) -> bool:
    """Returns whether a model's folder is the one whose digest a run recorded.

    Older versions recorded a digest of all files in the folder.

    Raises:
      InputError: if there is no such folder.
    """
    return recorded in (digest(folder), digests.of_folder(_existing(folder)))


def _existing(folder: str | pathlib.Path) -> pathlib.Path:
    if not pathlib.Path(folder).is_dir():
        raise InputError(f"{folder}: no such folder; give a model's")
    return pathlib.Path(folder)


def _files(folder: pathlib.Path, patterns: Iterable[str]) -> list[str]:
    """Returns the names, relative to a folder, of its files that match."""
    found = [path for pattern in patterns for path in folder.glob(pattern)]
    return [path.relative_to(folder).as_posix() for path in found if path.is_file()]


def save(
    folder: str | pathlib.Path,
    config: Mapping[str, Any],
    params: Mapping[str, Any],
    *,
    source: str | pathlib.Path | None = None,
    stop_tokens: Sequence[int] = (),
    origin: Mapping[str, Any] | None = None,
    dtype: Any = None,
    max_shard_bytes: int = safetensors_writer.SHARD_BYTES,
) -> None:
    """Writes a folder that transformers and `load` can read.

    A folder is never incomplete. Host memory holds the tensors of one file. If arrays
    are split over several processes, all must call it, and the first one writes.

    Args:
      folder: the folder to make; must not exist.
      config: fields of a `config.json` that describes the parameters.
      params: variables `{"params": ...}` of the model. Their leaves may be anything
        with a shape and a dtype that has layers by index and becomes a NumPy array.
      source: folder whose tokenizer, chat templates and generation config are copied.
      stop_tokens: tokens that end what is generated, besides those that do by the
        generation config.
      origin: what the model was made from, JSON, to be written as `fsa.json`.
      dtype: dtype to write; that of the embedding if None.
      max_shard_bytes: largest size of a file; a larger model is split over several.

    Raises:
      InputError: if the folder exists or cannot be written, or parameters do not fit
        the config.
    """
    folder = pathlib.Path(folder)
    if is_first() and folder.exists():
        raise InputError(f"{folder}: exists; name a new folder")
    flat = traverse_util.flatten_dict(params["params"], sep="/")
    parameters = weights.parameters_of(Transformer(**arguments(config, "config")))
    for path in sorted(parameters.keys() | flat.keys()):
        given = flat[path].shape if path in flat else "missing"
        asked = parameters[path].shape if path in parameters else "nothing"
        if given != asked:
            raise InputError(f"params/{path} is {given}, but config asks for {asked}")
    dtype = jnp.dtype(dtype or flat["embed/embedding"].dtype)
    written = {**config, "dtype": dtype.name, "torch_dtype": dtype.name}
    places = {
        name: (path, layer)
        for path, parameter in parameters.items()
        for layer, name in enumerate(parameter.names)
    }

    def read(name):
        path, layer = places[name]
        return weights.for_file(parameters[path], flat[path], layer, dtype)

    shapes = {
        name: jax.ShapeDtypeStruct(parameters[path].file_shape, dtype)
        for name, (path, _) in places.items()
    }
    if not is_first():
        safetensors_writer.write(None, shapes, read, shard_bytes=max_shard_bytes)
        return
    with complete_or_absent(folder) as partial:
        (partial / "config.json").write_text(json.dumps(written, indent=2) + "\n")
        safetensors_writer.write(partial, shapes, read, shard_bytes=max_shard_bytes)
        if source is not None:
            _copy_texts(pathlib.Path(source), partial)
        stop_at(partial, stop_tokens)
        if origin is not None:
            text = json.dumps(dict(origin), indent=1) + "\n"
            (partial / "fsa.json").write_text(text)


def _copy_texts(source: pathlib.Path, folder: pathlib.Path) -> None:
    for name in _files(source, _TEXT_FILES):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(source / name, folder / name)


def stop_at(folder: pathlib.Path, tokens: Iterable[int]) -> None:
    """Makes tokens end what a folder's model generates, besides those that do."""
    file, names = folder / _GENERATION_CONFIG, ("bos_token_id", "pad_token_id")
    if file.is_file():
        settings = json.loads(file.read_text(encoding="utf-8"))
    else:
        config = read_config(folder)
        settings = {name: config[name] for name in names if name in config}
    known = stop_tokens(folder)
    if missing := [token for token in tokens if token not in known]:
        settings["eos_token_id"] = [*known, *missing]
        file.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def stop_tokens(folder: str | pathlib.Path) -> list[int]:
    """Returns the tokens that end a text by the generation config of a folder.

    Raises:
      InputError: as `load_generation_config`.
    """
    found = load_generation_config(folder).eos_token_id
    return [] if found is None else np.ravel(found).tolist()


def load_tokenizer(folder: str | pathlib.Path) -> Any:
    """Loads the transformers tokenizer of a folder, with its chat template if any.

    Raises:
      InputError: for no folder, or no tokenizer in it that transformers can read.
    """
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; name a model's")
    refuse_run(folder)
    if not any((folder / n).is_file() for n in ("tokenizer.json", "tokenizer.model")):
        raise InputError(
            f"{folder}: no tokenizer.json; copy the model's tokenizer there"
        )
    return _from_folder("AutoTokenizer", folder, trust_remote_code=False)


def load_generation_config(folder: str | pathlib.Path) -> Any:
    """Loads the transformers `GenerationConfig` of a folder; if none, from its config.

    Raises:
      InputError: for no config, or one that transformers cannot read.
    """
    folder = pathlib.Path(folder)
    config = read_config(folder)
    if (folder / "generation_config.json").is_file():
        return _from_folder("GenerationConfig", folder)
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    ids = {name: config.get(name) for name in names}
    return _transformers().GenerationConfig(**ids)


def _transformers() -> Any:
    """Imports transformers, which takes a second: runs without texts need not wait."""
    logging.getLogger("transformers").addFilter(_is_true)
    import transformers

    return transformers


def _is_true(record: logging.LogRecord) -> bool:
    # transformers warns that models are missing without PyTorch, on every import. Its
    # tokenizers and configs are all that is used here.
    return "PyTorch was not found" not in record.getMessage()


def _from_folder(kind: str, folder: pathlib.Path, **options: Any) -> Any:
    transformers = _transformers()
    verbosity = transformers.logging.get_verbosity()
    # What it warns of in a config is not what is read of it here; that is checked.
    transformers.logging.set_verbosity_error()
    try:
        return getattr(transformers, kind).from_pretrained(
            folder, local_files_only=True, **options
        )
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputError(f"{folder}: {kind} cannot read it: {reason}") from error
    finally:
        transformers.logging.set_verbosity(verbosity)
