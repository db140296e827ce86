"""Writes texts that one person prefers: `python -m launch.steer --workdir=DIR ...`.

`--context` is a table of the person's choices (columns prompt, chosen, rejected),
`--prompts` a table of prompts (column prompt); .jsonl, .csv or .parquet. Prints the
texts of the language model itself beside those of the policy for this person; `--out`
also saves them.

  --group=NAME                                 for a policy of labelled groups
  --interpolate=A.jsonl,B.jsonl --points=5     from one person to another
  --export=DIR                                 this person's policy as a plain model
"""

import pathlib

import numpy as np
from absl import flags

from fsa.commands import command_line
from fsa.conditioning import interpolate
from fsa.data import files
from fsa.data.columns import read_choices, read_texts
from fsa.errors import InputError
from fsa.evaluation.generated_texts import side_by_side
from fsa.inference.steerer import Steerer

_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Run directory of a policy.", required=True
)
_CONTEXT = flags.DEFINE_string(
    "context", None, "Table of the person's choices; none if absent."
)
_GROUP = flags.DEFINE_string("group", None, "Group, for a policy of groups.")
_PROMPTS = flags.DEFINE_string("prompts", None, "Table of the prompts.")
_INTERPOLATE = flags.DEFINE_list("interpolate", None, "Tables of two people's choices.")
_POINTS = flags.DEFINE_integer("points", 5, "Number of points of --interpolate.", 2)
_EXPORT = flags.DEFINE_string("export", None, "Folder for the person's plain model.")
_OUT = flags.DEFINE_string("out", None, "Also save the texts there, as .jsonl.")
_MAX_NEW_TOKENS = flags.DEFINE_integer("max_new_tokens", 128, "Of a text.", 1)
_TEMPERATURE = flags.DEFINE_float("temperature", 1.0, "0 is greedy.", 0.0)
_TOP_K = flags.DEFINE_integer("top_k", None, "Number of tokens to draw from.", 1)
_TOP_P = flags.DEFINE_float(
    "top_p", None, "Least total probability of the tokens to draw from.", 1e-6, 1.0
)
_SEED = flags.DEFINE_integer("seed", 0, "Of sampling.")


def _check_flags():
    """Raises InputError for flags that do not go together."""
    if _INTERPOLATE.value and (_CONTEXT.value or _EXPORT.value):
        raise InputError("`interpolate`: leave out `context` and `export`")
    if _INTERPOLATE.value and len(_INTERPOLATE.value) != 2:
        raise InputError("`interpolate`: give two tables, as in A.jsonl,B.jsonl")
    if _GROUP.value and (_CONTEXT.value or _INTERPOLATE.value):
        raise InputError("`group`: leave out `context` and `interpolate`")
    if not (_PROMPTS.value or _EXPORT.value):
        raise InputError("give `prompts`, or `export`, or both")
    if _EXPORT.value and pathlib.Path(_EXPORT.value).exists():
        raise InputError(f"`export`={_EXPORT.value}: exists; name a new folder")
    if _OUT.value:
        command_line.make_place(_OUT.value, "out")


def _latents(steerer: Steerer, people: list) -> tuple[list[str], np.ndarray]:
    """Returns names of the texts' columns, and z `[names, D]`."""
    if _GROUP.value:
        return [_GROUP.value], steerer.latent_of_group(_GROUP.value)[None]
    latents = np.stack([steerer.latent(choices) for choices in people])
    if len(people) == 1:
        return [f"n = {len(people[0])}"], latents
    t = np.linspace(0, 1, _POINTS.value)
    return [f"{x:.2f}" for x in t], np.asarray(interpolate(*latents, t))


def main(argv):
    """Infers z, writes texts, and exports a plain model if a folder is given."""
    command_line.refuse_arguments(argv)
    _check_flags()
    # The tables are read first, so that bad ones are refused before the model loads.
    people = [read_choices(path) for path in _INTERPOLATE.value or []]
    if not people:
        people = [read_choices(_CONTEXT.value) if _CONTEXT.value else []]
    prompts = read_texts(_PROMPTS.value, "prompt") if _PROMPTS.value else []
    steerer = Steerer.load(_WORKDIR.value)
    # Bad prompts are refused here, before the people's choices are encoded.
    steerer.language.prompts(prompts)
    names, latents = _latents(steerer, people)
    if prompts:
        _write(steerer, prompts, latents, names)
    if _EXPORT.value:
        steerer.export(latents[0], _EXPORT.value)
        print(f"Written: {_EXPORT.value}, a plain Hugging Face folder")


def _write(steerer: Steerer, prompts: list[str], latents: np.ndarray, names: list[str]):
    options = {
        "max_new_tokens": _MAX_NEW_TOKENS.value,
        "temperature": _TEMPERATURE.value,
        "top_k": _TOP_K.value,
        "top_p": _TOP_P.value,
        "seed": _SEED.value,
    }
    # All calls use the same example ids, so that texts differ by the latent alone.
    columns = [steerer.write(prompts, None, **options).texts]
    for z in latents:
        repeated = np.repeat(z[None], len(prompts), axis=0)
        columns.append(steerer.write(prompts, repeated, **options).texts)
    names = ["language model", *names]
    for prompt, *texts in zip(prompts, *columns, strict=True):
        print(side_by_side(prompt, dict(zip(names, texts, strict=True))))
    if _OUT.value:
        files.write_jsonl(
            _OUT.value,
            (
                {"prompt": prompt, "texts": dict(zip(names, texts, strict=True))}
                for prompt, *texts in zip(prompts, *columns, strict=True)
            ),
        )
        print(f"Written: {_OUT.value}")


if __name__ == "__main__":
    command_line.run(main)
