"""Measures whether `fsa probe` is right: what it says, and what test people show.

`python -m benchmarks.probe` probes the datasets of `benchmarks.probe_data`. For real
people it also trains in full, and compares accuracy with and without context on test
people, whom no probe has seen; for the others the truth is known. It reads `--shared`,
works in `--workdir` and writes a table to `--out`. What was probed or trained before is
not done again. It takes an hour of 2 cores.
"""

import functools
import json
import pathlib
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags

from benchmarks.probe_data import Sources
from experiments import choices
from experiments.polis import consultation
from fsa import text_tables
from fsa.commands import command_line
from fsa.data import dataset
from fsa.data.tasks.people import People
from fsa.data.tasks.task import TEST
from fsa.evaluation.predictions import FewShotPredictor
from fsa.evaluation.scores import right, user_means
from fsa.evaluation.verdict import LITTLE, UNKNOWN, YES, Comparison, gains
from fsa.recipes import config as configs
from fsa.recipes.fit import fit
from fsa.recipes.reward_model_run import people_arguments

_SHARED = flags.DEFINE_string("shared", "../shared/data", "Folder of the real data.")
_WORKDIR = flags.DEFINE_string("workdir", "runs/probe", "Folder of datasets and runs.")
_OUT = flags.DEFINE_string("out", "benchmarks/results/probe.md", "File of the table.")
_SEEDS = flags.DEFINE_integer("seeds", 5, "Ways to deal out choices anew.", 1)
_RUNS = flags.DEFINE_integer("runs", 3, "Seeds of each full training.", 1)

_BY_VOTES = "--config=experiments/polis/consultation.py"


class Case(NamedTuple):
    """A dataset to probe.

    Attributes:
      name: what it is called in the table.
      folder: name of its folder.
      make: returns the arguments of `fsa prepare`; may write files into the folder.
      arguments: of `fsa probe`, besides the dataset.
      config: makes the config of the full training; None if the truth is known.
      truth: whether knowing a person helps, if it is known.
    """

    name: str
    folder: str
    make: Callable[[pathlib.Path], list[str]]
    arguments: Sequence[str] = ()
    config: Callable[[], Any] | None = None
    truth: str | None = None


def cases() -> list[Case]:
    """Returns all datasets, those in which nobody differs once for each seed."""
    data = Sources(_SHARED.value)
    usual, votes = choices.get_config, consultation.get_config
    found = [
        Case("Bowling Green, choices", "bg", data.votes, (), usual),
        Case("Bowling Green, votes", "bg-votes", data.votes, [_BY_VOTES], votes),
        Case("CrowdRAG-25, MiniLM", "crowd", data.answers, (), usual),
        Case("CrowdRAG-25, form", "crowd-form", data.answers_by_form, (), usual),
        Case("two opposite groups", "groups", data.two_groups, truth=YES),
    ]
    dealt_out = (
        ("Bowling Green, choices", "bg", data.choices_dealt_out, ()),
        ("Bowling Green, votes", "bg-votes", data.votes_dealt_out, [_BY_VOTES]),
        ("CrowdRAG-25, form", "crowd", data.answers_dealt_out, ()),
    )
    for name, folder, make, arguments in dealt_out:
        found += [
            Case(
                f"{name} dealt out, {seed}",
                f"{folder}-dealt-{seed}",
                functools.partial(make, seed=seed),
                arguments,
                truth=LITTLE,
            )
            for seed in range(_SEEDS.value)
        ]
    return found


def probed(case: Case) -> dict[str, Any]:
    """Prepares and probes a dataset, unless that is done; returns what was found."""
    folder = pathlib.Path(_WORKDIR.value, case.folder)
    result = folder / "result.json"
    if not result.exists():
        folder.mkdir(parents=True, exist_ok=True)
        data = folder / "data"
        _run("prepare", *case.make(folder), f"--out={data}", "--overwrite")
        begin, cpu = time.monotonic(), _cpu_seconds()
        _run("probe", f"--data={data}", f"--out={folder}", *case.arguments)
        found = json.loads((folder / "probe.json").read_text())
        found["seconds"] = time.monotonic() - begin
        found["cpu_seconds"] = _cpu_seconds() - cpu
        result.write_text(json.dumps(found))
    return json.loads(result.read_text())


def _run(name: str, *arguments: str) -> None:
    command = [sys.executable, "-m", "fsa", name, *arguments]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def on_test_people(case: Case) -> dict[str, Any]:
    """Trains in full, and returns the accuracy of test people and their gain."""
    folder = pathlib.Path(_WORKDIR.value, case.folder)
    result = folder / "test.json"
    if not result.exists():
        of_runs = [_test_accuracy(case, folder, seed) for seed in range(_RUNS.value)]
        accuracy = np.mean(of_runs, axis=0)
        (gain,) = gains(accuracy[:, -1:] - accuracy[:, :1])
        found = {"people": len(accuracy), "mean": accuracy.mean(0).tolist()}
        result.write_text(json.dumps({**found, "gain": gain}))
    return json.loads(result.read_text())


def _test_accuracy(case: Case, folder: pathlib.Path, seed: int) -> np.ndarray:
    """Returns the accuracy of each test person at each context size, `[U, C]`."""
    config = case.config()
    config.task.path = str(folder / "data")
    config.seed = seed
    ranker = fit(config, folder / f"run-{seed}")
    plain = configs.resolve(config)
    task = People(dataset.load(folder / "data"), **people_arguments(plain))
    settings = plain["eval"]
    predict = FewShotPredictor(
        ranker.model,
        task,
        TEST,
        num_context=settings["num_context"],
        episodes_per_user=settings["episodes_per_user"],
        num_samples=settings["num_samples"],
        deterministic=ranker.deterministic,
        key=jax.random.key(0),
        diagnose=False,
    )
    predictions = predict(ranker.variables)
    return user_means(right(predictions.log_prob), predictions.mask)


def said(found: dict[str, Any]) -> str:
    """Returns whether either model learns the person: YES, LITTLE or UNKNOWN."""
    models = ("model", "linear model")
    both = {found["answers"][f"{model} learns the person"] for model in models}
    return YES if YES in both else UNKNOWN if UNKNOWN in both else LITTLE


def row(case: Case) -> list[str]:
    """Returns the cells of one case."""
    found = probed(case)
    accuracy = found["accuracy"]
    gained = [
        str(Comparison(**found["comparisons"][name])).replace(" points", "")
        for name in ("choices", "own", "shifted choices", "shifted own")
    ]
    answer, truth, test = said(found), case.truth, "known"
    if case.config:
        shown = on_test_people(case)
        gain = Comparison(*shown["gain"])
        truth, values = gain.answer, str(gain).replace(" points", "")
        test = f"{_from_to(shown['mean'])}, {values} ({shown['people']} people)"
    known = UNKNOWN not in (answer, truth)
    return [
        case.name,
        str(found["people"]),
        f"{found['seconds']:.0f} ({found['cpu_seconds']:.0f})",
        f"{100 * accuracy['popularity']['mean'][0]:.1f}",
        f"{100 * accuracy['linear']['mean'][0]:.1f}",
        _from_to(accuracy[found["curves"][-1]]["mean"]),
        *gained,
        answer,
        test,
        truth,
        ("yes" if answer == truth else "no") if known else "-",
    ]


def _from_to(accuracies: Sequence[float]) -> str:
    return f"{100 * accuracies[0]:.1f} to {100 * accuracies[-1]:.1f}"


_INTRODUCTION = """# What `fsa probe` says, and whether it is right

`python -m benchmarks.probe`, 2 CPU cores that others used too (hence CPU seconds in
brackets). "Dealt out" are real choices given to other people at random, so that nobody
differs from anybody. The truth of real people is that of a full training (mean of its
seeds), scored on test people, whom no probe has seen. Intervals are over people.

"""

_HEAD = [
    "data",
    "people",
    "seconds (CPU)",
    "popularity, %",
    "linear, %",
    "reward model, n = 0 to 10, %",
    "its gain, points",
    "over somebody else's choices",
    "gain of the shifted linear model",
    "over somebody else's choices",
    "do a person's choices help?",
    "full training, test people, n = 0 to 10, %",
    "so do they?",
    "right",
]


def main(argv):
    """Probes all cases and writes the table."""
    command_line.refuse_arguments(argv)
    rows = [_HEAD]
    for case in cases():
        rows.append(row(case))
        print(" | ".join(rows[-1]), flush=True)
    table = text_tables.markdown(rows)
    pathlib.Path(_OUT.value).write_text(f"{_INTRODUCTION}{table}\n")


if __name__ == "__main__":
    command_line.run(main)
