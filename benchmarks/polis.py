"""Trains reward models on every consultation of a folder, and prints one table.

`python -m benchmarks.polis --polis=FOLDER --vectors=X.npy --vector_ids=X.jsonl.gz` with
FOLDER holding either Polis exports (a folder each) or the compact `votes/*.npz`; or
`--model=FOLDER` in place of vectors, to embed the statements. Datasets are written to
`data/polis` and runs to `runs/polis`; those that exist are not made again. Prints
Markdown.
"""

import pathlib
import subprocess
import sys

import numpy as np
from absl import flags

from fsa.commands import command_line
from fsa.errors import InputError
from fsa.evaluation import evaluation_file

TABLES = ("contested", "random")

_POLIS = flags.DEFINE_string("polis", None, "Folder of consultations.", required=True)
_VECTORS = flags.DEFINE_string("vectors", None, "See fsa/commands/prepare.py.")
_VECTOR_IDS = flags.DEFINE_string("vector_ids", None, "See fsa/commands/prepare.py.")
_MODEL = flags.DEFINE_string("model", None, "See fsa/commands/embed.py.")
_SETTING = flags.DEFINE_multi_string(
    "setting", ["np-btl", "btl"], "PRESET,FIELD=VALUE,...; see benchmarks/people.py."
)
_SEEDS = flags.DEFINE_integer("seeds", 3, "Runs of each setting; BTL is run once.", 1)
_TABLES = flags.DEFINE_multi_enum("table", TABLES, TABLES, "Tables of choices.")
_ONLY = flags.DEFINE_list("only", [], "Names of consultations; all by default.")

# Popularity predicts random pairs well, so training pairs are drawn at random too.
_RANDOM = ("--config.task.pairing_noise=3.0", "--config.task.max_gap=100.0")


def _run(name: str, *arguments: str) -> bool:
    """Runs a command; prints its message and returns False if it refuses input."""
    command = [sys.executable, "-m", "fsa", name, *arguments]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode not in (0, command_line.BAD_INPUT):
        raise RuntimeError(f"{' '.join(command)} failed:\n{result.stderr}")
    if result.returncode:
        print(result.stderr.strip().splitlines()[-1], file=sys.stderr)
    return result.returncode == 0


def consultations() -> list[pathlib.Path]:
    """Returns compact files, or export folders if there are none."""
    root = pathlib.Path(_POLIS.value)
    found = sorted(root.glob("votes/*.npz"))
    found = found or sorted(p.parent for p in root.glob("*/participants-votes.csv"))
    if not found:
        raise InputError(f"--polis={root}: holds no votes/*.npz and no Polis exports")
    return [p for p in found if not _ONLY.value or p.stem in _ONLY.value]


def prepare(source: pathlib.Path, table: str) -> str | None:
    """Makes the dataset of one table; returns its path, or None without choices."""
    path = f"data/polis/{source.stem}-{table}"
    if pathlib.Path(path, "store.json").exists():
        return path
    arguments = [f"--polis={source}", f"--polis_table={table}", f"--out={path}"]
    if _VECTORS.value:
        arguments.append(f"--vectors={_VECTORS.value}")
        arguments.append(f"--vector_ids={_VECTOR_IDS.value}")
    if not _run("prepare", *arguments):
        return None
    if _MODEL.value:
        _run("embed", f"--data={path}", f"--model={_MODEL.value}")
    return path


def evaluate(path: str, table: str, setting: str, seed: int) -> dict | None:
    """Trains and scores one run unless that is done; None with too few people."""
    name = setting.replace(",", "-").replace("=", "-")
    workdir = pathlib.Path("runs/polis", f"{pathlib.Path(path).name}-{name}-{seed}")
    preset, *fields = setting.split(",")
    result = workdir / "evaluation.json"
    if not result.exists():
        trained = _run(
            "train",
            f"--config=experiments/polis/consultation.py:{preset}",
            f"--config.task.path={path}",
            f"--config.seed={seed}",
            f"--workdir={workdir}",
            *(_RANDOM if table == "random" else ()),
            *(f"--config.{field}" for field in fields),
        )
        if not trained or not _run("evaluate", f"--workdir={workdir}"):
            return None
    return evaluation_file.read(result)


def row(name: str, setting: str, runs: list[dict]) -> str:
    """Formats a line of Markdown: means over seeds, also of the interval's ends."""
    accuracy = 100 * np.mean([run["accuracy"] for run in runs], axis=0)
    low, high = 100 * np.mean([run["accuracy_ci"][-1] for run in runs], axis=0)
    excess = [run["ece"][-1] - run["ece_if_calibrated"][-1] for run in runs]
    seeds = "1 seed" if len(runs) == 1 else f"{len(runs)} seeds"
    label = f"{setting.replace(',', ', ')}, {seeds}"
    cells = [name, str(runs[0]["users"]), label]
    cells += [f"{value:.1f}" for value in accuracy[:-1]]
    cells += [f"{accuracy[-1]:.1f} [{low:.1f}, {high:.1f}]", f"{np.mean(excess):+.3f}"]
    return f"| {' | '.join(cells)} |"


def main(argv):
    """Prints the table, each line as soon as it is known."""
    command_line.refuse_arguments(argv)
    headed = False
    for table in _TABLES.value:
        for source in consultations():
            path = prepare(source, table)
            if path is None:
                continue
            for setting in _SETTING.value:
                seeds = 1 if setting == "btl" else _SEEDS.value
                runs = [evaluate(path, table, setting, seed) for seed in range(seeds)]
                if None in runs:
                    print(f"| {source.stem}, {table} | too few people |", flush=True)
                    break
                if not headed:
                    sizes = [f"n = {n}" for n in runs[0]["n_context"]]
                    head = ["consultation, table", "test people", "model", *sizes]
                    head.append("ECE above calibrated")
                    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
                    headed = True
                print(row(f"{source.stem}, {table}", setting, runs), flush=True)


if __name__ == "__main__":
    command_line.run(main)
