"""Samples answers from a language model: `fsa sample --model=FOLDER ...`.

`--prompts` is a table with a column prompt (text or chat messages) and, if wanted,
split (.jsonl, .csv or .parquet), or "corpus" for the prompts of the small language.
With `--openings`, prompts are beginnings of texts that the model itself writes. `--out`
gets a row for each answer: prompt, answer, split. `fsa prepare --samples`
makes choices from them.

    fsa sample --model=FOLDER --prompts=prompts.jsonl --out=samples.jsonl

`--engine=URL` samples through a server of the OpenAI API, such as that of `vllm serve`,
which has the model under the name `--model`; `--completions` continues the prompts
rather than answering them as chats, and `--stop=TEXT`, which can be repeated, ends
answers. Ctrl-C loses nothing: the same command goes on. Without it, all devices and
processes share the work, as in `fsa evaluate`.

    fsa sample --engine=http://localhost:8000/v1 --model=NAME \\
      --prompts=prompts.jsonl --num_samples=16 --out=samples.jsonl
"""

from typing import Any

from absl import flags

from fsa.commands import command_line
from fsa.data import files
from fsa.data.sources import engine_samples
from fsa.data.sources.prompts import (
    read_prompts,
    sample_answers,
    sample_openings,
    splits_of,
)
from fsa.errors import InputError
from fsa.language.engine import Engine
from fsa.language.language_model import LanguageModel
from fsa.parallel import examples, processes

_MODEL = flags.DEFINE_string(
    "model", None, "Folder of the model; its name, with --engine.", required=True
)
_ENGINE = flags.DEFINE_string(
    "engine", None, "Address of a server of the OpenAI API, which has the model."
)
_COMPLETIONS = flags.DEFINE_bool(
    "completions", False, "With --engine: continue the prompts as plain text."
)
_STOP = flags.DEFINE_multi_string(
    "stop", [], "With --engine: a text that ends an answer."
)
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
_BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", 64, "Number of answers at a time, of each device.", 1
)
_DEVICES = command_line.device_flags("1")
_SEED = flags.DEFINE_integer(
    "seed", 0, "Seed of the texts, and of splits not given.", 0, 2**31 - 1
)


def _check_flags():
    """Raises InputError for flags that do not go together."""
    if (_PROMPTS.value is None) == (_OPENINGS.value is None):
        raise InputError("give `prompts` or `openings`")
    if _ENGINE.value:
        # What only the model in this process has.
        local = (_OPENINGS.name, "dtype", "coordinator", "fsdp", "tensor")
        for name in (name for name in local if flags.FLAGS[name].present):
            raise InputError(f"`engine`: leave out `{name}`")
    elif _COMPLETIONS.value or _STOP.value:
        raise InputError("`completions` and `stop` need `engine`")
    command_line.make_place(_OUT.value, "out", _OVERWRITE.value)


def main(argv):
    """Reads the prompts, samples by the model or its engine, and writes."""
    command_line.refuse_arguments(argv)
    _check_flags()
    prompts = read_prompts(_PROMPTS.value, _SEED.value) if _PROMPTS.value else {}
    rows = _by_engine(prompts) if _ENGINE.value else _by_model(prompts)
    processes.on_first(lambda: _write(rows))
    num_prompts = len({row["prompt"] for row in rows})
    print(f"Written: {len(rows):,} answers to {num_prompts:,} prompts, {_OUT.value}")


def _write(rows: list[dict[str, str]]) -> None:
    files.write_jsonl(_OUT.value, rows)
    engine_samples.partial_file(_OUT.value).unlink(missing_ok=True)


def _options() -> dict[str, Any]:
    """Returns what decides how answers are drawn."""
    return {
        "max_new_tokens": _MAX_NEW_TOKENS.value,
        "temperature": _TEMPERATURE.value,
        "top_k": _TOP_K.value,
        "top_p": _TOP_P.value,
    }


def _by_engine(prompts: dict[str, str]) -> list[dict[str, str]]:
    engine = Engine(
        _ENGINE.value,
        _MODEL.value,
        completions=_COMPLETIONS.value,
        system=_SYSTEM.value,
        separator=_SEPARATOR.value,
        template_arguments=_TEMPLATE_ARGUMENTS.value,
    )
    engine.check()
    partial = engine_samples.partial_file(_OUT.value)
    with command_line.resumable(partial.exists):
        return engine_samples.sample_answers(
            engine,
            prompts,
            _NUM_SAMPLES.value,
            partial,
            at_once=max(1, _BATCH_SIZE.value // _NUM_SAMPLES.value),
            progress=True,
            stop=_STOP.value,
            **_options(),
        )


def _by_model(prompts: dict[str, str]) -> list[dict[str, str]]:
    language = LanguageModel.load(
        _MODEL.value,
        dtype=_DTYPE.value,
        examples_at_once=_BATCH_SIZE.value,
        mesh=examples.find_mesh(**_DEVICES.sizes()),
        system=_SYSTEM.value,
        separator=_SEPARATOR.value,
        template_arguments=_TEMPLATE_ARGUMENTS.value,
    )
    if _OPENINGS.value:
        found = sample_openings(
            language, _OPENINGS.value, _OPENING_TOKENS.value, _SEED.value
        )
        prompts = splits_of(found, _SEED.value)
    return sample_answers(
        language,
        prompts,
        _NUM_SAMPLES.value,
        seed=_SEED.value,
        progress=True,
        **_options(),
    )
