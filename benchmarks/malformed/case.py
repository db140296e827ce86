"""A malformed input of a command: a command line, and what is spoilt before it."""

import json
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

Spoil = Callable[[pathlib.Path], Any]


def nothing(folder: pathlib.Path) -> None:
    """Spoils nothing: the command line itself is what is wrong."""


class Case(NamedTuple):
    """A command line that must be refused.

    Attributes:
      name: what is wrong.
      line: the command and its flags.
      spoil: makes the malformed input in a copy of the sound folder.
      before: command lines that are run first, and must succeed.
      as_nobody: whether a user runs it who may read all, but write nothing.
    """

    name: str
    line: tuple[str, ...]
    spoil: Spoil = nothing
    before: tuple[tuple[str, ...], ...] = ()
    as_nobody: bool = False


# A sound command line of each command; nothing that it writes is there yet.
SOUND: dict[str, dict[str, str]] = {
    "compile": {"config": "mine.py", "topology": "local", "out": "new/cost.json"},
    "embed": {"data": "data/choices", "model": "embedder"},
    "embed_lm": {
        "data": "data/choices",
        "model": "language",
        "template": "{prompt} {option}",
    },
    "evaluate": {"workdir": "runs/reward_model"},
    "predict": {
        "workdir": "runs/reward_model",
        "context": "context.jsonl",
        "options": "options.jsonl",
        "out": "new/ranking.jsonl",
    },
    "prepare": {
        "ratings": "ratings.jsonl",
        "vectors": "vectors.npy",
        "vector_ids": "ids.jsonl",
        "out": "data/new",
    },
    "probe": {"data": "data/people", "steps": "1", "out": "new/probe"},
    "sample": {
        "model": "language",
        "separator": " ",
        "prompts": "asked.jsonl",
        "max_new_tokens": "4",
        "out": "new/samples.jsonl",
    },
    "steer": {
        "workdir": "runs/policy",
        "context": "person.jsonl",
        "prompts": "prompts.jsonl",
        "max_new_tokens": "4",
        "out": "new/texts.jsonl",
    },
    "sweep": {"config": "mine.py", "workdir": "runs/sweep"},
    "train": {"config": "mine.py", "workdir": "runs/new"},
}
SIMULATED = {
    "samples": "samples.jsonl",
    "attributes": "corpus_formality",
    "users": "train:4,valid:2,test:3",
    "num_choices": "train:5,valid:5,test:5",
    "out": "data/new",
}
RESUME = {"config": "mine.py", "workdir": "runs/reward_model"}
RESUME_POLICY = {"config": "policy.py", "workdir": "runs/policy"}


def line(command: str, flags: dict[str, Any] | None = None, **changes: Any):
    """Returns a command line; flags that are None are left out."""
    given = (SOUND[command] if flags is None else flags) | changes
    return (command, *(f"--{k}={v}" for k, v in given.items() if v is not None))


def both(*spoils: Spoil) -> Spoil:
    """Returns what spoils a folder in one way after the other."""

    def spoil(folder):
        for each in spoils:
            each(folder)

    return spoil


def read(folder: pathlib.Path, stem: str) -> list[dict[str, Any]]:
    """Returns the rows of a table in a sound folder."""
    text = (folder / f"{stem}.jsonl").read_text()
    return [json.loads(each) for each in text.splitlines()]


def put(folder: pathlib.Path, name: str, content: bytes | str) -> str:
    """Writes a file and returns its name."""
    content = content.encode() if isinstance(content, str) else content
    (folder / name).write_bytes(content)
    return name


def half(content: bytes) -> bytes:
    """Returns the first half of a file."""
    return content[: len(content) // 2]


def flipped(content: bytes) -> bytes:
    """Returns a file whose middle byte is another."""
    changed = bytearray(content)
    changed[len(changed) // 2] ^= 255
    return bytes(changed)


def write_config(folder: pathlib.Path, name: str, change: str) -> None:
    """Writes spoilt.py, a config with a change before it is returned."""
    text = (folder / name).read_text()
    changed = text.replace("    return config\n", f"{change}\n    return config\n", 1)
    (folder / "spoilt.py").write_text(changed)
