"""Runs with a damaged config or damaged checkpoints, and folders that are no run."""

import json
import pathlib
import shutil
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.malformed.case import RESUME, Case, line
from benchmarks.malformed.folders import FILE_FAULTS, JSON_FAULTS, replace_by


def _run_config(change: Callable[[dict[str, Any]], Any]) -> Callable:
    def fault(path):
        found = json.loads(path.read_text())
        change(found)
        path.write_text(json.dumps(found))

    return fault


CONFIG_FAULTS: dict[str, Callable[[pathlib.Path], Any]] = {
    "an unknown field": _run_config(lambda c: c["model"].update(nosuch=3)),
    "an unknown section": _run_config(lambda c: c.update(nosuch={"a": 3})),
    "an unknown kind": _run_config(lambda c: c.update(kind="nosuch")),
    "a kind that is a list": _run_config(lambda c: c.update(kind=["policy"])),
    "another kind": _run_config(lambda c: c.update(kind="language_model")),
    "a section is a number": _run_config(lambda c: c.update(model=3)),
    "a width of 0": _run_config(lambda c: c["model"].update(hidden=0)),
    "a width that is a text": _run_config(lambda c: c["model"].update(hidden="wide")),
    "an objective of later versions": _run_config(
        lambda c: c["objective"].update(name="later")
    ),
}


def _every_step(change: Callable[[pathlib.Path], Any]) -> Callable:
    def fault(run):
        for step in (run / "checkpoints").iterdir():
            change(step)

    return fault


def _largest(step: pathlib.Path) -> pathlib.Path:
    files = [path for path in step.rglob("d/*") if path.is_file()]
    return max(files, key=lambda path: path.stat().st_size)


CHECKPOINT_FAULTS: dict[str, Callable[[pathlib.Path], Any]] = {
    "no checkpoints": lambda run: shutil.rmtree(run / "checkpoints"),
    "checkpoints is a file": lambda run: replace_by(run / "checkpoints", b"nothing"),
    "checkpoints are empty": _every_step(lambda s: (shutil.rmtree(s), s.mkdir())),
    "a bit of every step": _every_step(lambda s: FILE_FAULTS["damaged"](_largest(s))),
    "every step is cut": _every_step(lambda s: FILE_FAULTS["cut"](_largest(s))),
    "no arrays": _every_step(lambda s: shutil.rmtree(s / "variables")),
    "no description": _every_step(lambda s: shutil.rmtree(s / "meta")),
    "an empty description": _every_step(
        lambda s: (s / "meta" / "metadata").write_text("")
    ),
    "a description of nothing": _every_step(
        lambda s: (s / "meta" / "metadata").write_text("{}")
    ),
    "an empty manifest": _every_step(lambda s: (s / "manifest.json").write_text("")),
    "a foreign manifest": _every_step(lambda s: (s / "manifest.json").write_text("[]")),
    "another run's": lambda run: (
        shutil.rmtree(run / "checkpoints"),
        shutil.copytree(
            run.parent / "language_model" / "checkpoints", run / "checkpoints"
        ),
    ),
}


_UNUSED = ("missing", "no fields", *CONFIG_FAULTS)


def runs(sound: pathlib.Path) -> Iterator[Case]:
    """Yields runs with a damaged config or damaged checkpoints, and what is no run."""
    users = {
        "reward_model": [line("evaluate"), line("predict"), line("train", RESUME)],
        "policy": [line("steer"), line("evaluate", workdir="runs/policy")],
    }
    for run, lines in users.items():
        path = f"runs/{run}/config.json"
        for what, fault in {**FILE_FAULTS, **JSON_FAULTS, **CONFIG_FAULTS}.items():
            if what == "damaged":
                # One flipped byte may be inside of a text that is only shown.
                continue
            for user in lines:
                # A checkpoint describes its model; of the config, only paths are read.
                if user[0] in ("predict", "steer") and what in _UNUSED:
                    continue
                yield Case(
                    f"{user[0]}: config of the {run}: {what}",
                    user,
                    lambda folder, path=path, fault=fault: fault(folder / path),
                )
        for what, fault in CHECKPOINT_FAULTS.items():
            for user in lines:
                # Training begins again, and keeps what was damaged beside.
                if user[0] == "train" and what != "checkpoints is a file":
                    continue
                yield Case(
                    f"{user[0]}: {run}: {what}",
                    user,
                    lambda folder, run=run, fault=fault: fault(folder / "runs" / run),
                )
    kinds = {
        "predict": ("runs/policy", "runs/language_model"),
        "steer": ("runs/reward_model", "runs/language_model"),
        "evaluate": ("runs/language_model",),
        "train": ("runs/policy", "runs/language_model"),
    }
    nowhere = ("nowhere", "", "mine.py", "language", "data/people", ".", "data")
    for command, named in kinds.items():
        places = named + nowhere
        if command == "train":
            places = (*named, "", "mine.py", "language", "data/people", ".", "data")
        for place in places:
            yield Case(
                f"{command}: workdir is {place or 'empty'}",
                line(command, workdir=place),
            )
    seed = (*line("train", RESUME), "--config.seed=5")
    yield Case("train: the run has another config", seed)
    for what, fault in FILE_FAULTS.items():
        for names in (["runs/reward_model"], ["runs/reward_model", "runs/policy"]):
            yield Case(
                f"evaluate --compare of {len(names)}: evaluation is {what}",
                ("evaluate", "--compare", *names),
                lambda folder, fault=fault: fault(
                    folder / "runs" / "reward_model" / "evaluation.json"
                ),
            )
