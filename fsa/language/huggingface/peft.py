"""Writes and reads LoRA adapters in the form of the PEFT library, which engines load.

A folder holds `adapter_config.json` and `adapter_model.safetensors`. The latter has two
tensors for each linear map of each layer: `lora_A` `[rank, inputs]` and `lora_B`
`[outputs, rank]`; the map adds lora_B lora_A lora_alpha / rank.
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import safetensors
from safetensors.numpy import save_file

from fsa import json_files
from fsa.conditioning.adapters import Lora, pad
from fsa.errors import InputError
from fsa.folders import complete_or_absent, share
from fsa.language.huggingface.weights import Parameter

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"

# Ranks that engines take; an adapter of another rank gets ranks of zeros.
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)

_PREFIX = "base_model.model."
# Where the paths of the parameters begin, in the variables of the language model.
_ROOT = "params/"


def save(
    folder: str | pathlib.Path,
    adapter: Mapping[str, Lora],
    parameters: Mapping[str, Parameter],
    *,
    base_model: str,
    origin: Mapping[str, Any] | None = None,
) -> None:
    """Writes the folder of an adapter; a folder is never incomplete.

    Args:
      folder: the folder to make; must not exist.
      adapter: factors by the path of the parameter, such as
        "params/layers/mlp/down/kernel".
      parameters: of the language model, see `weights.parameters_of`.
      base_model: the name or folder of the language model.
      origin: what the adapter was made from, JSON, to be written as `fsa.json`.

    Raises:
      InputError: if the folder exists or cannot be written, or if an adapter has more
        ranks than engines take.
    """
    folder = pathlib.Path(folder)
    if folder.exists():
        raise InputError(f"{folder}: exists; name a new folder")
    largest = max(lora.rank for lora in adapter.values())
    if largest > RANKS[-1]:
        raise InputError(f"an adapter of rank {largest}; engines take {RANKS[-1]}")
    rank = next(rank for rank in RANKS if rank >= largest)
    tensors, modules = {}, set()
    for path, lora in adapter.items():
        names = parameters[path.removeprefix(_ROOT)].names
        wide = lora if lora.rank == rank else pad(lora, rank)
        a, b = (np.asarray(x, np.float32) for x in jax.device_get(wide))
        for layer, name in enumerate(names):
            module = name.removesuffix(".weight")
            modules.add(module.rpartition(".")[2])
            # The library writes the memory of an array as it is, whatever its strides.
            for side, factor in (("A", a[layer]), ("B", b[layer])):
                name = f"{_PREFIX}{module}.lora_{side}.weight"
                tensors[name] = np.ascontiguousarray(factor.T)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "target_modules": sorted(modules),
    }
    with complete_or_absent(folder) as partial:
        (partial / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
        save_file(tensors, partial / TENSORS, metadata={"format": "pt"})
        share(partial / TENSORS)
        if origin is not None:
            (partial / "fsa.json").write_text(json.dumps(dict(origin), indent=1) + "\n")


def load(
    folder: str | pathlib.Path, parameters: Mapping[str, Parameter]
) -> dict[str, Lora]:
    """Reads an adapter that PEFT or `save` wrote.

    Args:
      folder: the folder.
      parameters: of the language model, see `weights.parameters_of`.

    Returns:
      Factors by the path of the parameter, scaled by lora_alpha / rank. Layers that the
      adapter leaves alone have factors of zero.

    Raises:
      InputError: if a file is missing or damaged, or holds what is no plain LoRA of a
        linear map of this language model.
    """
    folder = pathlib.Path(folder)
    scale = _scale(folder / CONFIG)
    found = _read(folder / TENSORS)
    adapter = {}
    for path, parameter in parameters.items():
        modules = [name.removesuffix(".weight") for name in parameter.names]
        pairs = [
            [found.pop(f"{_PREFIX}{module}.lora_{x}.weight", None) for x in "AB"]
            for module in modules
        ]
        if all(a is None and b is None for a, b in pairs):
            continue
        rank = max([0, *(len(a) for a, _ in pairs if a is not None)])
        outputs, inputs = parameter.file_shape
        a = np.zeros((len(pairs), inputs, rank), np.float32)
        b = np.zeros((len(pairs), rank, outputs), np.float32)
        for layer, (of_a, of_b) in enumerate(pairs):
            if of_a is None and of_b is None:
                continue
            if not _fit(of_a, of_b, inputs, outputs):
                raise InputError(
                    f"{folder / TENSORS}: the factors of {modules[layer]} do not fit "
                    f"its {outputs} outputs and {inputs} inputs; the adapter is of "
                    "another model"
                )
            a[layer, :, : len(of_a)] = of_a.T
            b[layer, : of_b.shape[1]] = scale * of_b.T
        adapter[_ROOT + path] = Lora(a, b)
    if found:
        raise InputError(
            f"{folder / TENSORS}: {len(found)} tensors have no place in the language "
            f"model, {min(found)} for one"
        )
    return adapter


def _fit(a: np.ndarray | None, b: np.ndarray | None, inputs: int, outputs: int) -> bool:
    """Whether two factors are those of a map, of one rank."""
    if a is None or b is None or a.ndim != 2 or b.ndim != 2:
        return False
    return a.shape[1] == inputs and b.shape == (outputs, len(a))


def _scale(file: pathlib.Path) -> float:
    try:
        config = json_files.read(file)
        plain = config["peft_type"] == "LORA" and not any(
            config.get(name)
            for name in ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern")
        )
        if plain and config.get("bias", "none") == "none":
            return config["lora_alpha"] / config["r"]
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError, ZeroDivisionError) as error:
        raise InputError(f"{file}: damaged; write the adapter again") from error
    raise InputError(f"{file}: not a plain LoRA (dora, rslora, patterns, biases)")


def _read(file: pathlib.Path) -> dict[str, np.ndarray]:
    if not file.is_file():
        raise InputError(f"{file}: no such file; name the folder of an adapter")
    try:
        with safetensors.safe_open(file, "np") as opened:
            return {name: np.float32(opened.get_tensor(name)) for name in opened.keys()}
    except (safetensors.SafetensorError, TypeError) as error:
        raise InputError(f"{file}: damaged, or not of floats of NumPy") from error
