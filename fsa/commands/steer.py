"""Writes new texts for a person, by a policy: `fsa steer --workdir=DIR ...`.

`--context` is a table of the person's choices (columns prompt, chosen, rejected),
`--prompts` a table of prompts (column prompt); .jsonl, .csv or .parquet. Prints the
texts of the language model itself beside those of the policy for this person; `--out`
also saves them.

    fsa steer --workdir=runs/mine --context=me.jsonl --prompts=prompts.jsonl

    --group=NAME                              for a policy of labelled groups
    --interpolate=A.jsonl,B.jsonl --points=5  from one person to another
    --adapter=DIR                             that person's LoRA adapter
    --contexts=people.jsonl --adapters=DIR    those of many people (column user)
    --adapter_rank=16                         the nearest ones, if none is exact
    --export=DIR                              that person's plain model
    --save_person=ann.json                    choices and z, to be used later
    --person=ann.json                         in place of --context

A stored z is used by the training that it is of; after another one it is inferred
again from the stored choices. `--data` and `--model` say where the dataset and the
language model of the run are, if they have moved. All devices and processes share the
work, as in `fsa evaluate`; `--fsdp=N` splits a policy that is too large for a device.
"""

import pathlib

import numpy as np
from absl import flags
from jax.sharding import Mesh

from fsa import bars, folders
from fsa.commands import command_line
from fsa.data import files
from fsa.data.columns import read_choices, read_people, read_texts
from fsa.errors import InputError
from fsa.inference.adapter_folders import write_adapters
from fsa.inference.person import Person
from fsa.inference.steered_texts import (
    points_between,
    side_by_side,
    write_side_by_side,
)
from fsa.inference.steerer import Steerer
from fsa.models.policy import INFERRED
from fsa.parallel import examples, processes
from fsa.recipes import config as configs
from fsa.training import run_directory
from fsa.training.compile_cache import keep_compiled

_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Run directory of a policy.", required=True
)
_CONTEXT = flags.DEFINE_string(
    "context", None, "Table of the person's choices; none if absent."
)
_PERSON = flags.DEFINE_string(
    "person", None, "A person stored by --save_person, in place of --context."
)
_SAVE_PERSON = flags.DEFINE_string(
    "save_person", None, "Also store the person's choices and z there, as .json."
)
_DATA = flags.DEFINE_string(
    "data", None, "Where the dataset of the run is, if it has moved."
)
_MODEL = flags.DEFINE_string(
    "model", None, "Where the language model of the run is, if it has moved."
)
_GROUP = flags.DEFINE_string("group", None, "Group, for a policy of groups.")
_PROMPTS = flags.DEFINE_string("prompts", None, "Table of the prompts.")
_INTERPOLATE = flags.DEFINE_list("interpolate", None, "Tables of two people's choices.")
_POINTS = flags.DEFINE_integer(
    "points", 5, "Number of points of --interpolate.", 2, 101
)
_EXPORT = flags.DEFINE_string("export", None, "Folder for the person's plain model.")
_ADAPTER = flags.DEFINE_string(
    "adapter", None, "Folder for the person's LoRA adapter, in the form of PEFT."
)
_CONTEXTS = flags.DEFINE_string(
    "contexts", None, "Table of many people's choices, with a column user."
)
_ADAPTERS = flags.DEFINE_string(
    "adapters", None, "Folder for the adapters of --contexts, one in a folder each."
)
_ADAPTER_RANK = flags.DEFINE_integer(
    "adapter_rank", None, "Rank of the nearest adapters, if z is none exactly.", 1, 512
)
_OUT = flags.DEFINE_string("out", None, "Also save the texts there, as .jsonl.")
_OVERWRITE = flags.DEFINE_bool(
    "overwrite", False, "Replace existing files of --out and --save_person."
)
_BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", 64, "Number of texts that a device writes at a time.", 1
)
_DEVICES = command_line.device_flags("as in training, if that divides the devices")
_MAX_NEW_TOKENS = flags.DEFINE_integer("max_new_tokens", 128, "Of a text.", 1)
_TEMPERATURE = flags.DEFINE_float("temperature", 1.0, "0 is greedy.", 0.0)
_TOP_K = flags.DEFINE_integer("top_k", None, "Number of tokens to draw from.", 1)
_TOP_P = flags.DEFINE_float(
    "top_p", None, "Least total probability of the tokens to draw from.", 1e-6, 1.0
)
_SEED = flags.DEFINE_integer("seed", 0, "Of sampling.", 0, 2**31 - 1)

_Choices = list[tuple[str, str, str]]


def _check_flags():
    """Raises InputError for flags that do not go together."""
    if (_CONTEXTS.value is None) != (_ADAPTERS.value is None):
        raise InputError("give `contexts` and `adapters` together")
    if _ADAPTER_RANK.value and not (_ADAPTER.value or _ADAPTERS.value):
        raise InputError("`adapter_rank` needs `adapter` or `adapters`")
    if _CONTEXTS.value and (_GROUP.value or _INTERPOLATE.value):
        raise InputError("`contexts`: leave out `group` and `interpolate`")
    if _INTERPOLATE.value and (_CONTEXT.value or _EXPORT.value or _ADAPTER.value):
        raise InputError("`interpolate`: leave out `context`, `export` and `adapter`")
    if _INTERPOLATE.value and len(_INTERPOLATE.value) != 2:
        raise InputError("`interpolate`: give two tables, as in A.jsonl,B.jsonl")
    if _GROUP.value and (_CONTEXT.value or _INTERPOLATE.value):
        raise InputError("`group`: leave out `context` and `interpolate`")
    if _PERSON.value and (_CONTEXT.value or _INTERPOLATE.value or _GROUP.value):
        raise InputError("`person`: leave out `context`, `interpolate` and `group`")
    if _SAVE_PERSON.value and (_INTERPOLATE.value or _GROUP.value):
        raise InputError("`save_person`: leave out `interpolate` and `group`")
    asked = _PROMPTS, _EXPORT, _SAVE_PERSON, _ADAPTER, _ADAPTERS
    if not any(flag.value for flag in asked):
        raise InputError(
            "give `prompts`, `export`, `adapter`, `adapters` or `save_person`"
        )
    for flag in (_EXPORT, _ADAPTER, _ADAPTERS):
        if flag.value:
            what, place = f"`{flag.name}`={flag.value}", pathlib.Path(flag.value)
            # Adapters that are there already are kept.
            if flag is not _ADAPTERS and place.exists():
                raise InputError(f"{what}: exists; name a new folder")
            fix = "name another place"
            folders.check_writable(place.parent, fix, what=what, name=place.name)
    if _OUT.value:
        command_line.make_place(_OUT.value, "out", _OVERWRITE.value)
    if _SAVE_PERSON.value:
        command_line.make_place(
            _SAVE_PERSON.value, "save_person", _OVERWRITE.value, endings=(".json",)
        )


def _read_people() -> list[Person | _Choices]:
    """Reads the one or two people whom the flags name, stored or as their choices."""
    if _PERSON.value:
        return [Person.load(_PERSON.value)]
    if _INTERPOLATE.value:
        return [read_choices(path) for path in _INTERPOLATE.value]
    return [read_choices(_CONTEXT.value) if _CONTEXT.value else []]


def _infer(steerer: Steerer, given: Person | _Choices) -> Person:
    """Returns a person with z of this policy."""
    if isinstance(given, Person):
        return steerer.renew(given)
    if steerer.policy.latent == INFERRED:
        given = steerer.differing(given)
    return steerer.person(given)


def _latents(people: list[Person]) -> dict[str, np.ndarray]:
    """Returns z `[D]` of each column of texts, by the column's name."""
    if len(people) == 1:
        return {f"n = {len(people[0].choices)}": people[0].z}
    return points_between(people[0].z, people[1].z, _POINTS.value)


def _shown(name: str) -> str:
    """Returns the name of a column of texts as it is printed."""
    number = name.removeprefix("n = ")
    if number == name:
        return name
    return "nobody in particular" if number == "0" else f"{number} known"


def main(argv):
    """Infers z, writes texts, and exports a plain model if a folder is given."""
    command_line.refuse_arguments(argv)
    _check_flags()
    # The tables are read first, so that bad ones are refused before the model loads.
    people = _read_people()
    many = read_people(_CONTEXTS.value) if _CONTEXTS.value else {}
    prompts = read_texts(_PROMPTS.value, "prompt") if _PROMPTS.value else []
    sizes = _DEVICES.sizes()
    with keep_compiled(_WORKDIR.value):
        _steer(people, prompts, many, sizes)


def _mesh(sizes: dict[str, int | None]) -> Mesh | None:
    """Returns the mesh of the sizes that are given, or else of those of the run."""
    run_dir = run_directory.locate(_WORKDIR.value)
    # A run that lacks its config, or has none, is refused where it is loaded.
    there = (run_dir / "config.json").exists()
    config = configs.read(run_dir) if there else {}
    return examples.find_mesh(**configs.mesh_sizes(config, **sizes))


def _steer(
    given: list[Person | _Choices],
    prompts: list[str],
    many: dict[str, _Choices],
    sizes: dict[str, int | None],
) -> None:
    """Infers z, writes texts, and exports adapters or a plain model."""
    with bars.Bar(2, "Preparing", "part") as bar:
        bar.say("loading the policy")
        steerer = Steerer.load(
            _WORKDIR.value,
            data=_DATA.value,
            model=_MODEL.value,
            examples_at_once=_BATCH_SIZE.value,
            mesh=_mesh(sizes),
        )
        # Bad prompts are refused here, before the people's choices are encoded.
        steerer.language.prompts(prompts)
        bar.advance()
        bar.say("inferring z from the choices")
        if _GROUP.value:
            latents = {_GROUP.value: steerer.latent_of_group(_GROUP.value)}
        else:
            people = [_infer(steerer, one) for one in given]
            latents = _latents(people)
        bar.advance()
    if _SAVE_PERSON.value:
        processes.on_first(lambda: people[0].save(_SAVE_PERSON.value))
        print(f"Written: {_SAVE_PERSON.value}")
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
            progress=True,
        )
        for row in rows:
            texts = {_shown(name): text for name, text in row["texts"].items()}
            print(side_by_side(row["prompt"], texts))
        if _OUT.value:
            processes.on_first(lambda: files.write_jsonl(_OUT.value, rows))
            print(f"Written: {_OUT.value}")
    if _EXPORT.value:
        (z,) = latents.values()
        steerer.export(z, _EXPORT.value)
        print(f"Written: {_EXPORT.value}, a plain Hugging Face folder")
    if _ADAPTER.value:
        (z,) = latents.values()
        error = steerer.save_adapter(z, _ADAPTER.value, _ADAPTER_RANK.value)
        of = steerer.language.folder
        print(f"Written: {_ADAPTER.value}, a LoRA adapter of {of}{_left_out(error)}")
    if many:
        written, kept, error = write_adapters(
            steerer, many, _ADAPTERS.value, rank=_ADAPTER_RANK.value, progress=True
        )
        also = f"; {len(kept):,} were there already" if kept else ""
        where = f"{_ADAPTERS.value}{_left_out(error)}{also}"
        print(f"Written: {len(written):,} LoRA adapters into {where}")


def _left_out(error: float) -> str:
    """Returns what is said of the error of adapters that are not exact."""
    if not _ADAPTER_RANK.value:
        return ""
    return f" (nearest of rank {_ADAPTER_RANK.value}: up to {error:.1%} left out)"
