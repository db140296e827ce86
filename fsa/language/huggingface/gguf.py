"""Converts a GGUF file of a Llama model into a Hugging Face folder.

GGUF is the format of llama.cpp: one file with metadata, tokenizer and weights, most of
them quantised. The folder holds plain weights and all files that transformers and
`fsa.language` need to load the model.

Shapes: H heads, F features of one head, D width.
"""

import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fsa.errors import InputError
from fsa.folders import complete_or_absent
from fsa.language.huggingface import gguf_tokenizer, safetensors_writer
from fsa.language.huggingface.folder import load_tokenizer, stop_at
from fsa.language.huggingface.gguf_file import File, library, read
from fsa.language.tokenization import Tokenization

DTYPES = ("bfloat16", "float32")

# Metadata of the architecture that `config` reads, without the prefix "llama.".
_KNOWN = {
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.layer_norm_rms_epsilon",
    "attention.value_length",
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "rope.dimension_count",
    "rope.freq_base",
    "vocab_size",
}


def convert(
    path: str | pathlib.Path, out: str | pathlib.Path, *, dtype: str = "bfloat16"
) -> None:
    """Writes a Hugging Face folder, completely or not at all.

    Memory holds the tensors of one safetensors file, 5 GB at most.

    Args:
      path: a GGUF file of architecture "llama" with a byte-level BPE tokenizer.
      out: the folder to make.
      dtype: dtype of the weights, "bfloat16" or "float32". bfloat16, in which most
        models are published, takes half the space and rounds finer than quantisation to
        8 bits or fewer did; float32 keeps the values of the file to the last bit.

    Raises:
      InputError: for a damaged file; an architecture, metadata, tensor, type of
        quantisation or tokenizer that is not supported, which it names; a folder that
        is not empty or cannot be written; or if the extra `gguf` is not installed.
    """
    if dtype not in DTYPES:
        raise InputError(f"dtype {dtype!r}: use one of {', '.join(DTYPES)}")
    out = pathlib.Path(out)
    _check_free(out)
    file = read(path)
    settings = {**config(file), "torch_dtype": dtype}
    sources = _sources(settings)
    _check_tensors(file, sources)
    tokenizer, texts = gguf_tokenizer.build(file)
    texts["config.json"] = settings
    shapes = {
        name: jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))
        for name, (_, shape) in sources.items()
    }
    with complete_or_absent(out) as new:
        for name, content in texts.items():
            text = json.dumps(content, indent=2, ensure_ascii=False)
            (new / name).write_text(text + "\n", encoding="utf-8")
        tokenizer.save(str(new / "tokenizer.json"))
        safetensors_writer.write(
            new,
            shapes,
            lambda name: weight(file, sources[name][0], settings).astype(
                shapes[name].dtype
            ),
        )
        # Of the metadata and of the chat template, whichever end a text.
        end = Tokenization(load_tokenizer(new)).end_token
        stop_at(new, [] if end is None else [end])
        # Converting takes time, in which somebody may have put a file there.
        _check_free(out)


def _check_free(out: pathlib.Path) -> None:
    """Raises InputError for what exists and is no empty folder."""
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise InputError(f"{out}: is not empty; choose another folder")


def config(file: File) -> dict[str, Any]:
    """Returns the fields of `config.json`, except for the dtype.

    Raises:
      InputError: for another architecture than "llama", or metadata that no field of
        `config.json` could keep.
    """
    architecture = file.need("general.architecture")
    if architecture != "llama":
        raise InputError(
            f"{file.path}: architecture {architecture!r} is not supported; give a "
            "model of architecture 'llama'"
        )
    own = {
        key.removeprefix("llama."): value
        for key, value in file.metadata.items()
        if key.startswith("llama.")
    }
    for key, value in own.items():
        if key not in _KNOWN or isinstance(value, list):
            raise InputError(
                f"{file.path}: llama.{key} = {value} is not supported; give a model "
                "without it"
            )
    heads = file.need("llama.attention.head_count")
    width = file.need("llama.embedding_length")
    head_dim = own.get("attention.key_length", width // heads)
    for key in ("attention.value_length", "rope.dimension_count"):
        if own.get(key, head_dim) != head_dim:
            raise InputError(
                f"{file.path}: llama.{key} = {own[key]} is not supported where heads "
                f"have {head_dim} features; give a model that rotates whole heads"
            )
    epsilon = file.need("llama.attention.layer_norm_rms_epsilon")
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": len(file.need("tokenizer.ggml.tokens")),
        "hidden_size": width,
        "intermediate_size": file.need("llama.feed_forward_length"),
        "num_hidden_layers": file.need("llama.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": own.get("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "max_position_embeddings": file.need("llama.context_length"),
        # A float32 in the file: gives 1e-05, not 9.999999747378752e-06.
        "rms_norm_eps": float(str(np.float32(epsilon))),
        "rope_theta": own.get("rope.freq_base", 10000.0),
        "rope_scaling": None,
        "tie_word_embeddings": "output.weight" not in file.tensors,
        **gguf_tokenizer.special_ids(file),
    }


def weight(file: File, name: str, settings: dict[str, Any]) -> np.ndarray:
    """Returns a tensor in float32, dequantised, in the order of Hugging Face.

    Args:
      file: the file.
      name: name of the tensor in the file.
      settings: the result of `config`.

    Raises:
      InputError: for a type of quantisation that is not supported.
    """
    tensor = file.tensors[name]
    try:
        values = library().dequantize(tensor.data, tensor.tensor_type)
    except NotImplementedError as error:
        raise InputError(
            f"{file.path}: {name} is of type {tensor.tensor_type.name}, which is not "
            "supported; fetch another quantisation of the model"
        ) from error
    if name.endswith("attn_q.weight"):
        return rotary_halves(values, settings["num_attention_heads"])
    if name.endswith("attn_k.weight"):
        return rotary_halves(values, settings["num_key_value_heads"])
    return values


def rotary_halves(weights: np.ndarray, num_heads: int) -> np.ndarray:
    """Reorders the rows of a query or key projection.

    llama.cpp rotates features 2i and 2i + 1 of a head together, Hugging Face features i
    and i + F / 2.

    Args:
      weights: `[H * F, D]`, rows in the interleaved order.
      num_heads: H.

    Returns:
      `[H * F, D]`, the even rows of each head before its odd ones.
    """
    pairs = weights.reshape(num_heads, -1, 2, weights.shape[-1])
    return pairs.swapaxes(1, 2).reshape(weights.shape)


def _sources(settings: dict[str, Any]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Returns Hugging Face name -> (name in the file, shape)."""
    width, inner = settings["hidden_size"], settings["intermediate_size"]
    queries = settings["num_attention_heads"] * settings["head_dim"]
    keys = settings["num_key_value_heads"] * settings["head_dim"]
    layer = {
        "input_layernorm": ("attn_norm", (width,)),
        "self_attn.q_proj": ("attn_q", (queries, width)),
        "self_attn.k_proj": ("attn_k", (keys, width)),
        "self_attn.v_proj": ("attn_v", (keys, width)),
        "self_attn.o_proj": ("attn_output", (width, queries)),
        "post_attention_layernorm": ("ffn_norm", (width,)),
        "mlp.gate_proj": ("ffn_gate", (inner, width)),
        "mlp.up_proj": ("ffn_up", (inner, width)),
        "mlp.down_proj": ("ffn_down", (width, inner)),
    }
    vocabulary = (settings["vocab_size"], width)
    found = {"model.embed_tokens.weight": ("token_embd.weight", vocabulary)}
    for i in range(settings["num_hidden_layers"]):
        for name, (source, shape) in layer.items():
            found[f"model.layers.{i}.{name}.weight"] = f"blk.{i}.{source}.weight", shape
    found["model.norm.weight"] = "output_norm.weight", (width,)
    if not settings["tie_word_embeddings"]:
        found["lm_head.weight"] = "output.weight", vocabulary
    return found


def _check_tensors(file: File, sources: dict[str, tuple[str, tuple[int, ...]]]) -> None:
    """Raises InputError unless the file holds these tensors and no others."""
    unknown = file.tensors.keys() - {source for source, _ in sources.values()}
    if unknown:
        raise InputError(
            f"{file.path}: tensor {min(unknown)} is not supported; give a model "
            "without it"
        )
    for source, shape in sources.values():
        if source not in file.tensors:
            raise InputError(
                f"{file.path}: tensor {source} is missing; give a complete model in "
                "one file"
            )
        # GGUF lists the axes from the fastest to the slowest.
        found = tuple(int(size) for size in reversed(file.tensors[source].shape))
        if found != shape:
            raise InputError(
                f"{file.path}: tensor {source} has shape {found}, but {shape} by the "
                "metadata; fetch the file again"
            )
