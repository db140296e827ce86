"""Translates a Hugging Face `config.json` into the arguments of `Transformer`.

A field is either read here, known to change no number, or off (null, false, zero or
empty). Any other field is an error that names it, so that no model computes wrong
numbers. Missing fields have the defaults of transformers, except that sizes must be
given. `transformers.AutoConfig` is not used: it accepts any field, gives missing sizes
those of a 7B model, and drops one of two `rope_theta` that differ.
"""

import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from fsa import json_files
from fsa.errors import InputError
from fsa.language.huggingface.config_fields import Fields
from fsa.language.layers import MAPS

_LAYER_TYPES = {"full_attention", "sliding_attention"}

_DTYPES = ("float32", "bfloat16", "float16")


def read_config(folder: str | pathlib.Path) -> dict[str, Any]:
    """Reads the `config.json` of a folder.

    Raises:
      InputError: for a missing folder or file, or one that is not a JSON object.
    """
    path = pathlib.Path(folder) / "config.json"
    refuse_run(folder)
    if not path.is_file():
        raise InputError(f"{path}: no such file; name the folder of a model")
    try:
        config = json_files.read(path)
    except ValueError as error:
        raise InputError(f"{path}: invalid JSON ({error}); fetch it again") from error
    if not isinstance(config, dict):
        raise InputError(f"{path}: not a JSON object; fetch it again")
    return config


def refuse_run(folder: str | pathlib.Path) -> None:
    """Raises InputError for the run of a language model, whose model is within."""
    model = pathlib.Path(folder) / "model"
    if (model / "config.json").is_file():
        raise InputError(f"{folder}: a run, not its model; give {model}")


def stored_dtype(config: Mapping[str, Any], where: str = "config.json") -> str:
    """Returns the dtype of the weights by their config; float32 if it has none."""
    fields = Fields(config, where)
    name = "dtype" if config.get("dtype") else "torch_dtype"
    dtype = str(fields.get(name, "float32")).removeprefix("torch.")
    if dtype not in _DTYPES:
        raise fields.error(name, f"{dtype!r} is not one of {', '.join(_DTYPES)}")
    return dtype


def llama(
    *,
    vocab_size: int,
    width: int,
    num_layers: int,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    mlp_width: int,
    **tokens: int,
) -> dict[str, Any]:
    """Makes the config of a Llama with tied embeddings, for a model without a folder.

    Args:
      vocab_size: see `Transformer`.
      width: see `Transformer`.
      num_layers: see `Transformer`.
      num_heads: see `Transformer`.
      num_kv_heads: see `Transformer`.
      head_dim: see `Transformer`.
      mlp_width: see `Transformer`.
      **tokens: ids of special tokens, such as `eos_token_id`.
    """
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocab_size,
        "hidden_size": width,
        "num_hidden_layers": num_layers,
        "num_attention_heads": num_heads,
        "num_key_value_heads": num_kv_heads,
        "head_dim": head_dim,
        "intermediate_size": mlp_width,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
        **tokens,
    }


def arguments(config: Mapping[str, Any], where: str = "config.json") -> dict[str, Any]:
    """Returns the keyword arguments of the `Transformer` that a config describes.

    Args:
      config: the fields of a `config.json`.
      where: name of the config in errors.

    Raises:
      InputError: naming the first field that is missing, wrong or not implemented.
    """
    fields = Fields(config, where)
    architecture, family = _family(fields)
    if fields.get("model_type", family.model_type) != family.model_type:
        raise fields.error("model_type", f"not {family.model_type}, of {architecture}")
    result = {
        "vocab_size": fields.size("vocab_size"),
        "width": fields.size("hidden_size"),
        "num_layers": fields.size("num_hidden_layers"),
        "num_heads": fields.size("num_attention_heads"),
        "mlp_width": fields.size("intermediate_size"),
        "norm_epsilon": fields.number("rms_norm_eps", 1e-6),
    }
    result |= family.specific(fields, result)
    on = [maps for name, maps in family.bias_fields.items() if fields.flag(name, False)]
    result["biases"] = sum(on, family.biases)
    if result["num_heads"] % result["num_kv_heads"]:
        raise fields.error("num_key_value_heads", "does not divide num_attention_heads")
    if result["head_dim"] % 2:
        raise fields.error("head_dim", f"{result['head_dim']} is odd")
    fields.finish()
    return result


def with_bias_fields(
    config: Mapping[str, Any], names: Iterable[str], where: str = "config.json"
) -> dict[str, Any]:
    """Returns a config whose model has biases on `names`, and as few others as it can.

    Args:
      config: the fields of a `config.json`.
      names: maps that need a bias, see `Transformer.biases`.
      where: name of the config in errors.

    Raises:
      InputError: if no config of the architecture gives such a map a bias.
    """
    config = dict(config)
    architecture, family = _family(Fields(config, where))
    for name in names:
        if name in family.biases:
            continue
        on = [field for field, maps in family.bias_fields.items() if name in maps]
        if not on:
            raise InputError(
                f"{where}: {architecture} has no bias on {name}; do without a shift "
                "there, or take a model of another architecture"
            )
        config[on[0]] = True
    return config


def _family(fields: Fields) -> tuple[str, "_Family"]:
    """Returns the name of the architecture and its properties."""
    named = fields.get("architectures", [])
    is_one = (
        isinstance(named, list | tuple)
        and len(named) == 1
        and isinstance(named[0], str)
    )
    family = _FAMILIES.get(named[0]) if is_one else None
    if family is None:
        known = ", ".join(_FAMILIES)
        raise fields.error("architectures", f"{named} is not implemented; {known} are")
    return named[0], family


def _llama(fields: Fields, sizes) -> dict[str, Any]:
    heads = sizes["num_heads"]
    return {
        "num_kv_heads": fields.size("num_key_value_heads", heads),
        "head_dim": fields.size("head_dim", max(sizes["width"] // heads, 1)),
        "activation": fields.activation("hidden_act", "silu"),
        "tied": fields.flag("tie_word_embeddings", False),
        **_rope(fields, fields.object("rope_parameters")),
    }


def _qwen2(fields: Fields, sizes) -> dict[str, Any]:
    # Required: the default of transformers is a number of heads.
    fields.size("num_key_value_heads")
    first = fields.size("max_window_layers", 28, least=0)
    types = [i >= first for i in range(sizes["num_layers"])]
    windows = _windows(fields, types, fields.flag("use_sliding_window", False))
    return {**_llama(fields, sizes), "windows": windows}


def _qwen3(fields: Fields, sizes) -> dict[str, Any]:
    qwen2 = _qwen2(fields, sizes)
    head_dim = fields.size("head_dim", 128)
    return {**qwen2, "head_dim": head_dim, "qk_norm": True}


def _gemma(fields: Fields, sizes, windowed) -> dict[str, Any]:
    activation = fields.activation("hidden_activation", "gelu_pytorch_tanh")
    # Older files hold both names; transformers reads the one above.
    if fields.get("hidden_act") and fields.activation("hidden_act", "") != activation:
        raise fields.error("hidden_act", "differs from hidden_activation")
    return {
        "num_kv_heads": fields.size("num_key_value_heads"),
        "head_dim": fields.size("head_dim", 256),
        "activation": activation,
        "tied": fields.flag("tie_word_embeddings", True),
        "norm_offset": 1.0,
        "post_norms": True,
        "attention_scale": fields.number("query_pre_attn_scalar", 256) ** -0.5,
        "embedding_scale": sizes["width"] ** 0.5,
        "windows": _windows(fields, windowed, True),
    }


def _gemma2(fields: Fields, sizes) -> dict[str, Any]:
    windowed = [i % 2 == 0 for i in range(sizes["num_layers"])]
    return {
        **_gemma(fields, sizes, windowed),
        **_rope(fields, fields.object("rope_parameters")),
        "attention_soft_cap": fields.cap("attn_logit_softcapping", 50.0),
        "final_soft_cap": fields.cap("final_logit_softcapping", 30.0),
    }


def _gemma3(fields: Fields, sizes) -> dict[str, Any]:
    pattern = fields.size("_sliding_window_pattern", 6)
    pattern = fields.size("sliding_window_pattern", pattern)
    windowed = [(i + 1) % pattern > 0 for i in range(sizes["num_layers"])]
    kinds = fields.inside("rope_parameters")
    full = _rope(fields, kinds.object("full_attention"), theta=1e6)
    theta = fields.number("rope_local_base_freq", 1e4)
    local = _rotary(kinds.inside("sliding_attention"), theta)
    if local["rope_factor"] != 1:
        raise kinds.error("sliding_attention", "a scaling is not implemented there")
    kinds.finish()
    return {
        **_gemma(fields, sizes, windowed),
        **full,
        "local_rope_theta": local["rope_theta"],
        "qk_norm": True,
        "final_soft_cap": fields.cap("final_logit_softcapping", None),
    }


def _windows(fields: Fields, windowed, used: bool) -> tuple[int | None, ...] | None:
    """Returns the window of each layer.

    Args:
      fields: the fields of the config.
      windowed: for each layer, whether it has a window if `layer_types` is missing.
      used: whether the model uses windows at all.
    """
    window = fields.cap("sliding_window", 4096)
    used = used and window is not None
    names = ["sliding_attention" if used and w else "full_attention" for w in windowed]
    types = fields.get("layer_types", names)
    if len(types) != len(names) or not set(types) <= _LAYER_TYPES:
        reason = f"not one of {', '.join(sorted(_LAYER_TYPES))} for each layer"
        raise fields.error("layer_types", reason)
    if "sliding_attention" not in types:
        return None
    if not used:
        raise fields.error("layer_types", "sliding_attention, but no window is in use")
    return tuple(int(window) if t == "sliding_attention" else None for t in types)


def _rope(fields: Fields, new: Mapping, theta: float = 1e4) -> dict[str, Any]:
    """Returns rotary arguments, from `rope_parameters` or the fields of older files."""
    old = {"rope_theta": fields.get("rope_theta"), **fields.object("rope_scaling")}
    old = {name: value for name, value in old.items() if value is not None}
    for name in old.keys() & new.keys():
        if old[name] != new[name]:
            raise fields.error("rope_parameters", f"{name} is also {old[name]!r}")
    if fields.number("partial_rotary_factor", 1.0) != 1:
        raise fields.error("partial_rotary_factor", "only 1 is implemented")
    name = "rope_parameters" if new else "rope_scaling"
    return _rotary(Fields({**old, **new}, f"{fields.where}: {name}"), theta)


def _rotary(rope: Fields, theta: float) -> dict[str, Any]:
    """Returns rotary arguments from the fields of one object of rope parameters."""
    kind = rope.get("rope_type", rope.get("type", "default"))
    result = {"rope_theta": rope.number("rope_theta", theta), "rope_factor": 1.0}
    if rope.number("partial_rotary_factor", 1.0) != 1:
        raise rope.error("partial_rotary_factor", "only 1 is implemented")
    rope.get("original_max_position_embeddings")
    if kind in ("linear", "llama3"):
        result["rope_factor"] = rope.number("factor")
    elif kind != "default":
        raise rope.error(
            "rope_type", f"{kind!r} is not implemented; default, linear and llama3 are"
        )
    if kind == "llama3":
        names = (
            "low_freq_factor",
            "high_freq_factor",
            "original_max_position_embeddings",
        )
        result["rope_band"] = low, high, _ = tuple(map(rope.number, names))
        if low >= high:
            raise rope.error("high_freq_factor", "not above low_freq_factor")
    rope.finish()
    return result


class _Family(NamedTuple):
    """The properties of an architecture that the loader needs.

    Attributes:
      model_type: value of the field of that name.
      specific: reads the architecture's own fields, given the sizes that all have.
      bias_fields: name of a flag -> the maps that it gives biases.
      biases: maps that always have biases.
    """

    model_type: str
    specific: Callable[[Fields, dict[str, Any]], dict[str, Any]]
    bias_fields: Mapping[str, tuple[str, ...]]
    biases: tuple[str, ...] = ()


_ATTENTION = {"attention_bias": tuple(m for m in MAPS if m.startswith("attention/"))}
_MLP = {"mlp_bias": tuple(m for m in MAPS if m.startswith("mlp/"))}
_QKV = ("attention/query", "attention/key", "attention/value")

_FAMILIES = {
    "LlamaForCausalLM": _Family("llama", _llama, _ATTENTION | _MLP),
    "Qwen2ForCausalLM": _Family("qwen2", _qwen2, {}, _QKV),
    "Qwen3ForCausalLM": _Family("qwen3", _qwen3, _ATTENTION),
    "Gemma2ForCausalLM": _Family("gemma2", _gemma2, _ATTENTION),
    "Gemma3ForCausalLM": _Family("gemma3_text", _gemma3, _ATTENTION),
}
