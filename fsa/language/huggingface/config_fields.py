"""Reads the fields of a Hugging Face `config.json` with checks.

A field with a wrong value is an error that names it. So is a field that was not read,
unless it is known to change no number or is off (null, false, zero or empty).
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from fsa.errors import InputError

# Names of special tokens, settings of generation, initialisation and bookkeeping.
_WITHOUT_EFFECT = frozenset(
    """
    _name_or_path architectures model_type dtype torch_dtype transformers_version
    transformers.js_config auto_map license
    bos_token_id eos_token_id pad_token_id sep_token_id decoder_start_token_id
    unk_token_id tokenizer_class max_sequence_length model_max_length
    initializer_range max_position_embeddings pretraining_tp is_llama_config
    use_cache cache_implementation _attn_implementation_autoset attn_implementation
    return_dict output_attentions output_hidden_states chunk_size_feed_forward
    id2label label2id problem_type task_specific_params is_decoder
    do_sample temperature top_k top_p typical_p max_length min_length num_beams
    num_beam_groups num_return_sequences length_penalty repetition_penalty
    diversity_penalty encoder_no_repeat_ngram_size no_repeat_ngram_size
    early_stopping bad_words_ids suppress_tokens begin_suppress_tokens
    forced_bos_token_id forced_eos_token_id remove_invalid_values
    return_dict_in_generate output_scores
    torchscript prefix finetuning_task gradient_checkpointing _flash_attn_2_enabled
    """.split()
)
# Chances of dropout, which concern training by other programs, and notes of one.
_WITHOUT_EFFECT_EITHER = re.compile(r"(.+_)?dropout(_prob)?|.+_pdrop|unsloth_.+")

_ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}


class Fields:
    """The fields of one JSON object; notes which of them were read."""

    def __init__(self, values: Mapping[str, Any], where: str):
        """Takes the fields; messages of errors begin with `where`."""
        self._values = dict(values)
        self.where = where
        self._read = set()

    def error(self, name: str, reason: str) -> InputError:
        """Makes the error that a field is wrong, to be raised."""
        return InputError(f"{self.where}: {name}: {reason}")

    def get(self, name: str, default: Any = None) -> Any:
        """Returns the value of a field; the default if it is missing or null."""
        self._read.add(name)
        value = self._values.get(name)
        return default if value is None else value

    def size(self, name: str, default: int | None = None, least: int = 1) -> int:
        """Returns an integer from `least` up; required if it has no default."""
        value = self.get(name, default)
        if value is None:
            raise self.error(name, "missing; add it")
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise self.error(name, f"{value!r} is not an integer from {least} up")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """Returns a positive number; required if it has no default."""
        value = self.get(name, default)
        if value is None:
            raise self.error(name, "missing; add it")
        if not isinstance(value, int | float) or isinstance(value, bool) or value <= 0:
            raise self.error(name, f"{value!r} is not a positive number")
        return float(value)

    def cap(self, name: str, default: float | None) -> float | None:
        """Returns a positive number, or None if the field is null."""
        if self._values.get(name, default) is None:
            return self.get(name)
        return self.number(name, default)

    def flag(self, name: str, default: bool) -> bool:
        """Returns true or false."""
        value = self.get(name, default)
        if not isinstance(value, bool):
            raise self.error(name, f"{value!r} is not true or false")
        return value

    def object(self, name: str) -> Mapping[str, Any]:
        """Returns a JSON object, empty if it is missing."""
        value = self.get(name, {})
        if not isinstance(value, Mapping):
            raise self.error(name, f"{value!r} is not an object")
        return value

    def inside(self, name: str) -> "Fields":
        """Returns the fields of an object, none if it is missing."""
        return Fields(self.object(name), f"{self.where}: {name}")

    def activation(self, name: str, default: str) -> str:
        """Returns the name in `ACTIVATIONS` for the name that transformers uses."""
        value = self.get(name, default)
        if value not in _ACTIVATIONS:
            known = ", ".join(_ACTIVATIONS)
            raise self.error(name, f"{value!r} is not implemented; {known} are")
        return _ACTIVATIONS[value]

    def finish(self) -> None:
        """Raises InputError if a field was neither read nor is off."""
        for name, value in self._values.items():
            if value and name not in self._read and not _without_effect(name):
                shown = json.dumps(value)
                shown = shown if len(shown) < 60 else f"{shown[:57]}..."
                raise self.error(name, f"{shown} is not implemented")


def _without_effect(name: str) -> bool:
    return name in _WITHOUT_EFFECT or bool(_WITHOUT_EFFECT_EITHER.fullmatch(name))
