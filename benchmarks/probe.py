"""Measures whether `fsa probe` is right: what it says, and what test people show.

`python -m benchmarks.probe` probes real people, simulated people of two opposite
groups, and real choices dealt out anew to people, so that nobody differs from anybody.
Then it trains in full on the real people and compares accuracy with and without context
on test people, whom no probe has seen. It reads `--shared`, works in `--workdir` and
writes a table to `--out`. What was probed or trained before is not done again.
"""

import gzip
import json
import pathlib
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags

from experiments import choices
from experiments.polis import consultation
from fsa import text_tables
from fsa.commands import command_line
from fsa.data import dataset
from fsa.data.splits import SPLITS
from fsa.data.tasks.people import People
from fsa.data.tasks.task import TEST
from fsa.errors import InputError
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

_CONSULTATION = "bowling-green"
_BY_VOTES = "--config=experiments/polis/consultation.py"
Rows = list[dict[str, Any]]


class Case(NamedTuple):
    """A dataset to probe.

    Attributes:
      name: what it is called in the table.
      folder: name of its folders.
      make: returns the arguments of `fsa prepare`; may write files into a folder.
      arguments: of `fsa probe`, besides the dataset.
      config: makes the config of the full training; None if the truth is known.
      truth: whether knowing a person helps, where that is known.
    """

    name: str
    folder: str
    make: Callable[[pathlib.Path], list[str]]
    arguments: tuple[str, ...] = ()
    config: Callable[[], Any] | None = None
    truth: str | None = None


def cases() -> list[Case]:
    """Returns all datasets, those without differences between people once a seed."""
    found = [
        Case("Bowling Green, choices", "bg", _polis, config=choices.get_config),
        Case(
            "Bowling Green, votes",
            "bg-votes",
            _polis,
            (_BY_VOTES,),
            consultation.get_config,
        ),
        Case("CrowdRAG-25, MiniLM", "crowd", _crowd, config=choices.get_config),
        Case("CrowdRAG-25, form", "crowd-form", _form, config=choices.get_config),
        Case("two opposite groups", "groups", _two_groups, truth=YES),
    ]
    for seed in range(_SEEDS.value):
        found += [
            Case(
                f"Bowling Green, choices dealt out, {seed}",
                f"bg-dealt-{seed}",
                lambda folder, seed=seed: _polis_dealt_out(folder, seed),
                truth=LITTLE,
            ),
            Case(
                f"Bowling Green, votes dealt out, {seed}",
                f"bg-votes-dealt-{seed}",
                lambda folder, seed=seed: _votes_dealt_out(folder, seed),
                (_BY_VOTES,),
                truth=LITTLE,
            ),
            Case(
                f"CrowdRAG-25, form, choices dealt out, {seed}",
                f"crowd-dealt-{seed}",
                lambda folder, seed=seed: _form_dealt_out(folder, seed),
                truth=LITTLE,
            ),
        ]
    return found


def _shared(*parts: str) -> pathlib.Path:
    path = pathlib.Path(_SHARED.value, *parts)
    if not path.exists():
        raise InputError(f"--shared={_SHARED.value}: {'/'.join(parts)} is missing")
    return path


def _read(path: pathlib.Path) -> Rows:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def _write(path: pathlib.Path, rows: Rows) -> pathlib.Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def _deal_out(rows: Rows, seed: int) -> Rows:
    """Permutes the users of the rows of each split, so that users have as many."""
    rng = np.random.default_rng(seed)
    users = np.array([row["user"] for row in rows], object)
    for split in SPLITS:
        own = np.flatnonzero([row["split"] == split for row in rows])
        users[own] = rng.permutation(users[own])
    return [{**row, "user": user} for row, user in zip(rows, users, strict=True)]


def _choices_of(table: pathlib.Path) -> list[str]:
    # Dealt out, a pair may come to a user twice; such rows are left out.
    return [f"--choices={table}", "--max_bad_share=0.2"]


def _polis_vectors() -> list[str]:
    folder = _shared("polis")
    return [
        f"--vectors={folder / 'statements_minilm.npy'}",
        f"--vector_ids={folder / 'statements.jsonl.gz'}",
    ]


def _polis(folder: pathlib.Path) -> list[str]:
    del folder
    votes = _shared("polis", "votes", f"{_CONSULTATION}.npz")
    return [f"--polis={votes}", *_polis_vectors()]


def _polis_dealt_out(folder: pathlib.Path, seed: int) -> list[str]:
    rows = _read(_shared("polis", "contested_en.jsonl.gz"))
    rows = [row for row in rows if row["conversation"] == _CONSULTATION]
    table = _write(folder / "choices.jsonl", _deal_out(rows, seed))
    return [*_choices_of(table), *_polis_vectors()]


def _votes_dealt_out(folder: pathlib.Path, seed: int) -> list[str]:
    """Permutes the votes on each statement over the people of a split who voted."""
    votes = folder / "polis" / "votes" / f"{_CONSULTATION}.npz"
    votes.parent.mkdir(parents=True, exist_ok=True)
    with np.load(_shared("polis", "votes", f"{_CONSULTATION}.npz")) as file:
        arrays = dict(file)
    rng = np.random.default_rng(seed)
    for split in np.unique(arrays["split"]):
        of_split = arrays["split"] == split
        for column in arrays["votes"].T:
            voted = np.flatnonzero(of_split & (column != _NOT_SEEN))
            column[voted] = rng.permutation(column[voted])
    np.savez_compressed(votes, **arrays)
    for name in ("statements.jsonl.gz", "conversations.json"):
        (folder / "polis" / name).write_bytes(_shared("polis", name).read_bytes())
    return [f"--polis={votes}", *_polis_vectors()]


_NOT_SEEN = 9  # In the votes of the compact form.


def _crowd(folder: pathlib.Path) -> list[str]:
    del folder
    return [
        *_choices_of(_shared("crowdrag25", "choices.jsonl.gz")),
        f"--vectors={_shared('crowdrag25', 'responses_minilm.npy')}",
        f"--vector_ids={_shared('crowdrag25', 'responses.jsonl.gz')}",
    ]


def _form(folder: pathlib.Path) -> list[str]:
    return [
        *_choices_of(_shared("crowdrag25", "choices.jsonl.gz")),
        *_form_vectors(folder),
    ]


def _form_dealt_out(folder: pathlib.Path, seed: int) -> list[str]:
    rows = _deal_out(_read(_shared("crowdrag25", "choices.jsonl.gz")), seed)
    table = _write(folder / "choices.jsonl", rows)
    return [*_choices_of(table), *_form_vectors(folder)]


def _form_vectors(folder: pathlib.Path) -> list[str]:
    """Writes features of the form of answers, which MiniLM hardly sees."""
    ids = _shared("crowdrag25", "responses.jsonl.gz")
    vectors = np.array([form(row["text"]) for row in _read(ids)], np.float32)
    np.save(folder / "form.npy", vectors)
    return [f"--vectors={folder / 'form.npy'}", f"--vector_ids={ids}"]


def form(text: str) -> list[float]:
    """Measures the form of an answer: its length, lists, sentences, words, digits."""
    lines = [line for line in text.splitlines() if line.strip()] or [""]
    words = text.split() or [""]
    sentences = re.findall(r"[^.!?]+", text)
    return [
        np.log1p(len(words)),
        np.log1p(len(lines)),
        np.mean([line.lstrip()[:1] in ("-", "*", "•") for line in lines]),
        np.log1p(len(words) / max(len(sentences), 1)),
        np.mean([len(word) for word in words]),
        len(lines[0].split()) / len(words),
        np.mean([c.isdigit() for c in text or " "]),
        np.log1p(sum(text.count(c) for c in '"“”')),
    ]


def _two_groups(folder: pathlib.Path) -> list[str]:
    """Simulates people of two groups, who agree on some items and not on others."""
    rng = np.random.default_rng(0)
    items, direction, shared = rng.normal(size=(150, 8)), *rng.normal(size=(2, 8)) / 2
    rows = []
    for person in range(200):
        weights = shared + direction * (1 if person % 2 else -1)
        for _ in range(25):
            first, second = rng.choice(len(items), 2, replace=False)
            gap = (items[first] - items[second]) @ weights
            if rng.uniform() > 1 / (1 + np.exp(-gap)):
                first, second = second, first
            pair = {"chosen": items[first].tolist(), "rejected": items[second].tolist()}
            rows.append({"user": f"p{person}", **pair})
    return _choices_of(_write(folder / "choices.jsonl", rows))


def _run(name: str, *arguments: str) -> None:
    command = [sys.executable, "-m", "fsa", name, *arguments]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


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


def verdict_of(found: dict[str, Any]) -> str:
    """Joins the two answers on the person: either model may learn what there is."""
    both = {
        found["answers"]["model learns the person"],
        found["answers"]["linear model learns the person"],
    }
    return YES if YES in both else UNKNOWN if UNKNOWN in both else LITTLE


def row(case: Case) -> list[str]:
    """Returns the cells of one case."""
    found = probed(case)
    accuracy = found["accuracy"]
    model = accuracy[found["curves"][-1]]["mean"]
    compared = {
        name: str(Comparison(**values)) for name, values in found["comparisons"].items()
    }
    said = verdict_of(found)
    test, truth = "", case.truth
    if case.config:
        shown = on_test_people(case)
        gain = Comparison(*shown["gain"])
        first, last = (100 * shown["mean"][i] for i in (0, -1))
        test = f"{first:.1f} -> {last:.1f}, {gain} ({shown['people']} people)"
        truth = gain.answer
    right_ = "-" if UNKNOWN in (said, truth) else "yes" if said == truth else "no"
    return [
        case.name,
        str(found["people"]),
        f"{found['seconds']:.0f} ({found['cpu_seconds']:.0f})",
        f"{100 * accuracy['popularity']['mean'][0]:.1f}",
        f"{100 * accuracy['linear']['mean'][0]:.1f}",
        f"{100 * model[0]:.1f} -> {100 * model[-1]:.1f}",
        compared["choices"],
        compared["own"],
        compared["shifted choices"],
        compared["shifted own"],
        said,
        test or "known",
        truth,
        right_,
    ]


_INTRODUCTION = """\
# What `fsa probe` says, and whether it is right

`python -m benchmarks.probe`, 2 shared CPU cores (hence CPU seconds in brackets). "Dealt
out" are real choices given to other people at random, so that nobody differs from anybody.
The truth of real people is that of a full training (mean of 3 seeds), scored on test
people, whom no probe has seen.

"""
_HEAD = [
    "data",
    "people",
    "seconds (CPU)",
    "popularity, %",
    "linear, %",
    "reward model, n = 0 -> 10, %",
    "gain",
    "gain over somebody else's choices",
    "shifted linear: gain",
    "over somebody else's",
    "a person's choices help?",
    "full training, test people, n = 0 -> 10, %",
    "truth",
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
