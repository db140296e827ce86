"""Hugging Face folders and GGUF files of language models, read and written."""

from fsa.language.huggingface.folder import (
    Shardings,
    check,
    digest,
    has_digest,
    load,
    load_generation_config,
    load_tokenizer,
    save,
    stop_tokens,
)

__all__ = [
    "Shardings",
    "check",
    "digest",
    "has_digest",
    "load",
    "load_generation_config",
    "load_tokenizer",
    "save",
    "stop_tokens",
]
