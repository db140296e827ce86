"""Writes texts that one person prefers: `fsa steer --workdir=DIR ...`.

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
from fsa.data import files
from fsa.data.columns import read_choices, read_texts
from fsa.errors import InputError
from fsa.evaluation.generated_texts import side_by_side
from fsa.inference.steered_texts import points_between, write_side_by_side
from fsa.inference.steerer import Steerer
from fsa.models.policy import INFERRED

_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Run directory of a policy.", required=True
)
_CONTEXT = flags.DEFINE_string(
    "context", None, "Table of the person's choices; none if absent."
)
_GROUP = flags.DEFINE_string("group", None, "Group, for a policy of groups.")
_PROMPTS = flags.DEFINE_string("prompts", None, "Table of the prompts.")
_INTERPOLATE = flags.DEFINE_list("interpolate", None, "Tables of two people's choices.")
_POINTS = flags.DEFINE_integer(
    "points", 5, "Number of points of --interpolate.", 2, 101
)
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


def _latents(steerer: Steerer, people: list) -> dict[str, np.ndarray]:
    """Returns z `[D]` of each column of texts, by the column's name."""
    if _GROUP.value:
        return {_GROUP.value: steerer.latent_of_group(_GROUP.value)}
    if steerer.policy.latent == INFERRED:
        people = [steerer.differing(choices) for choices in people]
    latents = [steerer.latent(choices) for choices in people]
    if len(people) == 1:
        return {f"n = {len(people[0])}": latents[0]}
    return points_between(*latents, _POINTS.value)


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
    latents = _latents(steerer, people)
    if prompts:
        rows = write_side_by_side(
            steerer,
            prompts,
            latents,
            max_new_tokens=_MAX_NEW_TOKENS.value,
            temperature=_TEMPERATURE.value,
            top_k=_TOP_K.value,
            top_p=_TOP_P.value,
            seed=_SEED.value,
        )
        for row in rows:
            print(side_by_side(**row))
        if _OUT.value:
            files.write_jsonl(_OUT.value, rows)
            print(f"Written: {_OUT.value}")
    if _EXPORT.value:
        (z,) = latents.values()
        steerer.export(z, _EXPORT.value)
        print(f"Written: {_EXPORT.value}, a plain Hugging Face folder")
