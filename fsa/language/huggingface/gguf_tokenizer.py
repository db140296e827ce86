"""Builds a Hugging Face tokenizer from the one inside a GGUF file.

Only byte-level BPE is supported. The file holds the tokens, the merges, and the name of
the rule that splits text before it is encoded (`tokenizer.ggml.pre`); the rules
themselves are defined here.
"""

from typing import Any

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    pre_tokenizers,
    processors,
)

from fsa.errors import InputError
from fsa.language.huggingface.gguf_file import File

# Rule that splits text -> whether each digit is a piece of its own. Otherwise all rules
# split by the pattern of GPT-2.
_SINGLE_DIGITS = {"gpt-2": False, "smollm": True}

# Types of tokens (`gguf.TokenType`) that are recognized before text is split. Those of
# the first type are special: decoded text does not have them.
_CONTROL, _USER_DEFINED = 3, 4

_TEMPLATE = "tokenizer.chat_template"

_ROLES = {
    "bos_token": "tokenizer.ggml.bos_token_id",
    "eos_token": "tokenizer.ggml.eos_token_id",
    "pad_token": "tokenizer.ggml.padding_token_id",
    "unk_token": "tokenizer.ggml.unknown_token_id",
}
# Keys of the tokens that end a text.
_END_KEYS = (
    "tokenizer.ggml.eos_token_id",
    "tokenizer.ggml.eot_token_id",
    "tokenizer.ggml.eom_token_id",
)


def build(file: File) -> tuple[Tokenizer, dict[str, dict[str, Any]]]:
    """Builds the tokenizer, and the contents of the JSON files beside it.

    Returns:
      The tokenizer, and file name -> content of `tokenizer_config.json` and
      `generation_config.json`.

    Raises:
      InputError: for a tokenizer that is not supported, or tokens and merges that do
        not fit together.
    """
    tokens = file.need("tokenizer.ggml.tokens")
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": file.need("llama.context_length"),
        **{
            role: tokens[_token_id(file, key)]
            for role, key in _ROLES.items()
            if key in file.metadata
        },
    }
    if templates := _chat_templates(file):
        settings["chat_template"] = templates
    return _tokenizer(file, tokens), {
        "tokenizer_config.json": settings,
        "generation_config.json": special_ids(file),
    }


def _chat_templates(file: File) -> str | list[dict[str, str]]:
    """Returns the chat template, or all by name if there are several; "" for none."""
    default = file.metadata.get(_TEMPLATE, "")
    named = {
        key.removeprefix(f"{_TEMPLATE}."): template
        for key, template in file.metadata.items()
        if key.startswith(f"{_TEMPLATE}.")
    }
    if not named:
        return default
    named |= {"default": default} if default else {}
    return [{"name": name, "template": text} for name, text in named.items()]


def special_ids(file: File) -> dict[str, Any]:
    """Returns the ids of special tokens in `config.json` and `generation_config.json`.

    `eos_token_id` is a list where several tokens end a text.
    """
    ends = [_token_id(file, key) for key in _END_KEYS if key in file.metadata]
    if not ends:
        file.need(_END_KEYS[0])
    found: dict[str, Any] = {"eos_token_id": ends if len(set(ends)) > 1 else ends[0]}
    for role in ("bos_token", "pad_token"):
        if _ROLES[role] in file.metadata:
            found[f"{role}_id"] = _token_id(file, _ROLES[role])
    return found


def _token_id(file: File, key: str) -> int:
    token, count = file.need(key), len(file.need("tokenizer.ggml.tokens"))
    if not 0 <= token < count:
        raise InputError(
            f"{file.path}: {key} = {token} of {count} tokens; fetch the file again"
        )
    return token


def _tokenizer(file: File, tokens: list[str]) -> Tokenizer:
    kind, rule = file.need("tokenizer.ggml.model"), file.need("tokenizer.ggml.pre")
    if kind != "gpt2":
        raise InputError(
            f"{file.path}: tokenizer.ggml.model = {kind!r} is not supported; give a "
            "model with byte-level BPE ('gpt2')"
        )
    if rule not in _SINGLE_DIGITS:
        raise InputError(
            f"{file.path}: tokenizer.ggml.pre = {rule!r} is not supported; give a "
            f"model with one of {', '.join(_SINGLE_DIGITS)}"
        )
    tokenizer = Tokenizer(_byte_pairs(file, tokens))
    prefix = file.metadata.get("tokenizer.ggml.add_space_prefix", False)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    if _SINGLE_DIGITS[rule]:
        digits = pre_tokenizers.Digits(individual_digits=True)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [digits, tokenizer.pre_tokenizer]
        )
    tokenizer.decoder = decoders.ByteLevel()
    _add_special_tokens(file, tokenizer, tokens)
    _add_ends(file, tokenizer, tokens)
    return tokenizer


def _byte_pairs(file: File, tokens: list[str]) -> models.BPE:
    vocabulary = {token: i for i, token in enumerate(tokens)}
    merges = [tuple(merge.split(" ")) for merge in file.need("tokenizer.ggml.merges")]
    try:
        if len(vocabulary) < len(tokens):
            raise ValueError("a token occurs twice")
        if any(len(merge) != 2 for merge in merges):
            raise ValueError("a merge is not of two tokens")
        return models.BPE(vocabulary, merges)
    except Exception as error:  # The library raises nothing narrower.
        raise InputError(
            f"{file.path}: tokenizer.ggml.tokens and tokenizer.ggml.merges do not fit "
            f"together ({error}); fetch the file again"
        ) from error


def _add_special_tokens(file: File, tokenizer: Tokenizer, tokens: list[str]) -> None:
    """Marks the tokens within which text is never split."""
    types = file.metadata.get("tokenizer.ggml.token_type", [])
    for token, kind in zip(tokens, types, strict=False):
        if kind == _CONTROL:
            tokenizer.add_special_tokens([AddedToken(token, special=True)])
        elif kind == _USER_DEFINED:
            tokenizer.add_tokens([AddedToken(token, normalized=False)])


def _add_ends(file: File, tokenizer: Tokenizer, tokens: list[str]) -> None:
    """Adds the begin and end tokens to every text if the file asks for them."""
    around = []
    for name in ("bos", "eos"):
        asked = file.metadata.get(f"tokenizer.ggml.add_{name}_token", False)
        around.append([_token_id(file, _ROLES[f"{name}_token"])] if asked else [])
    if not any(around):
        return
    before, after = ([tokens[i] for i in ids] for ids in around)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[*before, "$A", *after],
        special_tokens=[(tokens[i], i) for ids in around for i in ids],
    )
