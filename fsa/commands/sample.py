"""Samples answers from a language model: `fsa sample --model=FOLDER ...`.

`--prompts` is a table with a column prompt (text or chat messages) and, if wanted,
split (.jsonl, .csv or .parquet), or "corpus" for the prompts of the small language.
With `--openings`, prompts are beginnings of texts that the model itself writes. `--out`
gets a row for each answer: prompt, answer, split. `fsa prepare --samples`
makes choices from them.

    fsa sample --model=FOLDER --prompts=prompts.jsonl --out=samples.jsonl
"""

from absl import flags

from fsa.commands import command_line
from fsa.data import files
from fsa.data.sources.prompts import (
    read_prompts,
    sample_answers,
    sample_openings,
    splits_of,
)
from fsa.errors import InputError
from fsa.language.language_model import LanguageModel

_MODEL = flags.DEFINE_string("model", None, "Folder of the model.", required=True)
_PROMPTS = flags.DEFINE_string("prompts", None, 'Table of prompts, or "corpus".')
_OPENINGS = flags.DEFINE_integer("openings", None, "Number of openings to sample.", 1)
_OPENING_TOKENS = flags.DEFINE_integer(
    "opening_tokens", 12, "Most tokens of an opening.", 1
)
_OUT = flags.DEFINE_string("out", None, "The .jsonl to write.", required=True)
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace an existing --out.")
_NUM_SAMPLES = flags.DEFINE_integer(
    "num_samples", 8, "Number of answers to a prompt.", 1
)
_MAX_NEW_TOKENS = flags.DEFINE_integer(
    "max_new_tokens", 128, "Most tokens of an answer.", 1
)
_TEMPERATURE = flags.DEFINE_float("temperature", 1.0, "Temperature; 0 is greedy.", 0.0)
_TOP_K = flags.DEFINE_integer("top_k", None, "Number of tokens to draw from.", 1)
_TOP_P = flags.DEFINE_float(
    "top_p", None, "Least total probability of the tokens to draw from.", 1e-6, 1.0
)
_SYSTEM = flags.DEFINE_string("system", "", "A system message.")
_SEPARATOR = flags.DEFINE_string(
    "separator", "", "Text between prompt and answer, as task.separator of a policy."
)
_TEMPLATE_ARGUMENTS = flags.DEFINE_string(
    "template_arguments",
    "",
    'What the chat template gets besides messages, such as {"enable_thinking": false}.',
)
_DTYPE = flags.DEFINE_enum(
    "dtype", "float32", ["float32", "bfloat16"], "Type of the model's weights."
)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 64, "Number of answers at a time.", 1)
_SEED = flags.DEFINE_integer(
    "seed", 0, "Seed of the texts, and of splits not given.", 0, 2**31 - 1
)


def main(argv):
    """Reads the prompts, loads the model, samples and writes."""
    command_line.refuse_arguments(argv)
    if (_PROMPTS.value is None) == (_OPENINGS.value is None):
        raise InputError("give `prompts` or `openings`")
    command_line.make_place(_OUT.value, "out", _OVERWRITE.value)
    if _PROMPTS.value:
        prompts = read_prompts(_PROMPTS.value, _SEED.value)
    language = LanguageModel.load(
        _MODEL.value,
        dtype=_DTYPE.value,
        examples_at_once=_BATCH_SIZE.value,
        system=_SYSTEM.value,
        separator=_SEPARATOR.value,
        template_arguments=_TEMPLATE_ARGUMENTS.value,
    )
    if _OPENINGS.value:
        found = sample_openings(
            language, _OPENINGS.value, _OPENING_TOKENS.value, _SEED.value
        )
        prompts = splits_of(found, _SEED.value)
    rows = sample_answers(
        language,
        prompts,
        _NUM_SAMPLES.value,
        max_new_tokens=_MAX_NEW_TOKENS.value,
        temperature=_TEMPERATURE.value,
        top_k=_TOP_K.value,
        top_p=_TOP_P.value,
        seed=_SEED.value,
        progress=True,
    )
    files.write_jsonl(_OUT.value, rows)
    print(f"Written: {len(rows):,} answers to {len(prompts):,} prompts, {_OUT.value}")
