"""Wrong values of every flag, and flags that do not go together."""

import pathlib
from collections.abc import Iterator
from typing import NamedTuple

from benchmarks.malformed.case import SIMULATED, SOUND, Case, line


class Flag(NamedTuple):
    """A flag of a command, as it is declared.

    `type` is that of absl: "int", "float", "bool", "string enum" and others.
    """

    name: str
    type: str
    low: float | None
    high: float | None


_PATHS = (
    *("config", "workdir", "data", "model", "context", "prompts", "options"),
    *("choices", "ratings", "polis", "ultrafeedback", "samples", "vectors"),
    *("vector_ids", "gguf", "interpolate", "out", "export", "text", "tables_out"),
)


# Flags of the sound command lines that they can do without.
_OPTIONAL = ("context", "separator", "steps", "max_new_tokens", "out", "template")


def wrong_flags(declared: dict[str, list[Flag]]) -> Iterator[Case]:
    """Yields wrong values of every flag, from its declaration."""
    for command, flags in declared.items():
        known = {flag.name for flag in flags}
        near = sorted(known)[0] + "s"
        yield Case(f"{command}: unknown flag", (*line(command), "--nosuch=1"))
        yield Case(f"{command}: misspelt flag", (*line(command), f"--{near}=1"))
        yield Case(f"{command}: stray argument", (*line(command), "stray"))
        yield Case(f"{command}: a flag without its dashes", (*line(command), "seed=1"))
        for flag in flags:
            for value in _wrong_values(flag):
                given = {flag.name: value}
                yield Case(f"{command} --{flag.name}={value}", line(command, **given))
        for name in SOUND[command]:
            if name in _OPTIONAL:
                continue
            if command == "prepare" and name == "ratings":
                continue
            yield Case(f"{command} without --{name}", line(command, **{name: None}))


def _wrong_values(flag: Flag) -> Iterator[str]:
    """Yields values that a flag must refuse."""
    if flag.type in ("int", "float"):
        yield "many"
        yield ""
        if flag.low is not None:
            yield str(int(flag.low) - 1)
        if flag.high is not None:
            yield str(int(flag.high) + 1)
        if flag.type == "int":
            yield "1.5"
        if flag.type == "float":
            yield "nan"
        # Splits are drawn from the digits of their seed, of which there may be any.
        if flag.name == "seed":
            yield str(10**30)
    elif "enum" in flag.type:
        yield "nosuch"
    elif flag.type == "bool":
        yield "perhaps"
    elif flag.name in _PATHS:
        yield ""


CONTRADICTIONS: tuple[tuple[str, ...], ...] = (
    ("prepare", "--out=data/new"),
    line("prepare", gguf="a.gguf"),
    line("prepare", vector_ids=None),
    line("prepare", vectors=None),
    line("prepare", where="split"),
    line("prepare", where="nosuch=1"),
    line("prepare", where="split=nosuch"),
    line("prepare", group_column="nosuch"),
    line("prepare", SIMULATED | {"users": "train:0"}),
    line("prepare", SIMULATED | {"users": "train"}),
    line("prepare", SIMULATED | {"users": "train:-1"}),
    line("prepare", SIMULATED | {"users": "dev:4"}),
    line("prepare", SIMULATED | {"users": ""}),
    line("prepare", SIMULATED | {"num_choices": "train:5"}),
    line("prepare", SIMULATED | {"num_choices": "train:999,valid:5,test:5"}),
    line("prepare", SIMULATED | {"attributes": ""}),
    line("prepare", SIMULATED | {"attributes": "nosuch"}),
    line("prepare", SIMULATED | {"min_gap": "99"}),
    line("prepare", SIMULATED | {"slope": "-1"}),
    line("prepare", SIMULATED | {"slope": "nan"}),
    line("prepare", SIMULATED | {"min_gap": "nan"}),
    line("prepare", objectives="nosuch", ultrafeedback="prompts.jsonl"),
    line("evaluate", data="data/people", method="rerank"),
    line("evaluate", method="rerank"),
    ("evaluate",),
    ("evaluate", "--compare"),
    ("evaluate", "--compare", "nowhere"),
    ("evaluate", "--compare", "runs/policy"),
    ("evaluate", "--compare", "--workdir=runs/reward_model"),
    ("evaluate", "--compare", "runs/reward_model", "runs/reward_model"),
    line("steer", prompts=None, out=None),
    line("steer", group="formal"),
    line("steer", group="formal", context=None),
    line("steer", interpolate="person.jsonl", context=None),
    line("steer", interpolate="person.jsonl,person.jsonl"),
    line("steer", interpolate="person.jsonl,person.jsonl,person.jsonl", context=None),
    line("steer", export="language"),
    line("steer", points="3", interpolate="a.jsonl,b.jsonl", context=None),
    line("sample", openings="3"),
    line("sample", prompts=None),
    line("sample", template_arguments="enable_thinking=false"),
    line("sample", template_arguments="[1]"),
    line("sample", template_arguments='{"a": '),
    line("sample", system="be kind"),
    line("compile", topology="v99:4x4"),
    line("compile", topology="v5e:7x99"),
    line("compile", topology="v5e"),
    line("compile", topology="v5e:axb"),
    line("compile", topology=""),
    line("compile", topology="v5e:0x0"),
    line("compile", topology="v5p:2x2x0"),
    line("compile", topology="local", slices="2"),
    line("train", profile_steps="5,3"),
    line("train", profile_steps="5"),
    line("train", profile_steps="a,b"),
    line("train", profile_steps="-1,2"),
    line("train", num_processes="2"),
    line("train", process_id="1"),
    line("train", coordinator="nowhere"),
    line("train", coordinator="localhost:1", num_processes="2", process_id="7"),
    line("train", num_processes="0", coordinator="localhost:1"),
    line("sweep", cluster="slurm", slurm="nosuch=1"),
    line("sweep", slurm="time=60"),
    line("sweep", workdir="gs://nowhere/sweep"),
    line("embed", template="{nosuch}", model="language"),
    line("embed", template="{prompt}", model="language"),
    line("embed", template="{", model="language"),
    line("embed", template="", model="language"),
    line("embed", data="data/people", model="language"),
    line("probe", config="policy.py", data=None),
    line("probe", config="language.py", data=None),
    ("nosuch",),
    ("trian", "--config=mine.py"),
    ("--config=mine.py",),
    ("command_line",),
    ("",),
)


def contradictions(sound: pathlib.Path) -> Iterator[Case]:
    """Yields flags that are sound alone, and do not go together."""
    for each in CONTRADICTIONS:
        yield Case(" ".join(each), each)
