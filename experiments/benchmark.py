"""All methods on all datasets: every method that one would otherwise pick beside ours.

`python -m experiments.benchmark --data=FOLDER`, with FOLDER the public data (`polis/`,
`crowdrag25/`, `fivethirtyeight/`), trains each method of `fsa.rivals.methods` on each
dataset with three seeds, and with fewer people in training; each has the same steps,
three settings, and validation people to choose among them. Every measurement is a file
in `--workdir`, so that the same command goes on wherever it was interrupted. At the end
`table.md` and pictures are written there. `--quick` does it on two datasets with one
seed and fewer steps.
"""

import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Sequence

from absl import flags

from experiments import benchmark_data
from fsa import folders, json_files
from fsa.commands import command_line
from fsa.errors import InputError
from fsa.recipes.presets import check_name
from fsa.rivals import methods, pictures, report, results, shares
from fsa.rivals.method import TrainingPeople
from fsa.rivals.oracle import Oracle
from fsa.rivals.results import Cell
from fsa.training.compile_cache import keep_compiled

_DATA = flags.DEFINE_string("data", None, "Folder of the public data.", required=True)
_WORKDIR = flags.DEFINE_string("workdir", "runs/benchmark", "Where files are written.")
_DATASETS = flags.DEFINE_list("datasets", [], "Some of them; all by default.")
_METHODS = flags.DEFINE_list("methods", [], "Some of them; all by default.")
_SEEDS = flags.DEFINE_integer("seeds", 3, "Trainings of each method.", 1)
_STEPS = flags.DEFINE_integer("steps", 400, "Updates at each learning rate.", 4)
_WORKERS = flags.DEFINE_integer("workers", 2, "Processes that share the work.", 1)
_WORKER = flags.DEFINE_integer("worker", None, "Number of this one, for the command.")
_QUICK = flags.DEFINE_bool("quick", False, "Two datasets, one seed, 80 steps.")

# How predictions depend on the people in training is looked at here, with one seed.
_CURVES = ("continuum", "bowling-green-contested")
_SHARES = (0.25, 0.5)

_QUICK_DATASETS = ("two-types", "crowdrag25")
_QUICK_STEPS = 80


def cells() -> list[Cell]:
    """Returns all measurements, those of the first seed first."""
    names = _METHODS.value or methods.NAMES
    for name in names:
        check_name("method", name, methods.NAMES)
    datasets = _DATASETS.value or _default_datasets()
    for dataset in datasets:
        check_name("dataset", dataset, benchmark_data.NAMES)
    found = [
        Cell(dataset, method, seed)
        for seed in range(1 if _QUICK.value else _SEEDS.value)
        for dataset in datasets
        for method in (*_usable(names, dataset), *_oracle(dataset))
    ]
    if not _QUICK.value:
        found += [
            Cell(dataset, method, 0, share)
            for dataset in datasets
            if dataset in _CURVES
            for share in _SHARES
            for method in _usable(names, dataset)
        ]
    return found


def _usable(names: Sequence[str], dataset: str) -> list[str]:
    """Returns the methods that can say something about a dataset."""
    unusable = set()
    if dataset in benchmark_data.SIMULATED:
        unusable.update(methods.BY_ITEMS)
    if dataset in benchmark_data.OF_CHOICES:
        unusable.add(methods.VOTES)
    return [name for name in names if name not in unusable]


def _oracle(dataset: str) -> list[str]:
    return [report.BEST_POSSIBLE] if dataset in benchmark_data.SIMULATED else []


def _default_datasets() -> Sequence[str]:
    return _QUICK_DATASETS if _QUICK.value else benchmark_data.NAMES


def measure(cell: Cell, problem: benchmark_data.Problem, steps: int) -> dict:
    """Measures a method on a dataset, see `fsa.rivals.results.measure`."""
    task = shares.take(problem.task, cell.share, cell.seed)
    if cell.method == report.BEST_POSSIBLE:
        method = Oracle(problem.simulated)
    else:
        method = methods.make(task, [cell.method], steps=steps)[cell.method]
    if cell.seed or cell.share < 1:
        # Times do not depend on them.
        batches = ()
    else:
        # The oracle's samples for many people would not fit into memory.
        batches = (10,) if cell.method == report.BEST_POSSIBLE else (10, 1000)
    return results.measure(
        method,
        TrainingPeople(task, problem.num_context),
        cell.seed,
        # Of simulated people there are more, so fewer episodes say as much.
        episodes_per_user=2 if problem.simulated else 6,
        batches=batches,
    )


def work(workdir: pathlib.Path, number: int, count: int) -> None:
    """Makes every `count`-th of the measurements that are missing, from `number` on."""
    every = [cell for cell in cells() if not cell.path(workdir).exists()]
    own = every[number::count]
    folder, begin, known = pathlib.Path(_DATA.value), time.monotonic(), None
    for done, cell in enumerate(own):
        if known is None or known[0] != (cell.dataset, cell.seed):
            problem = benchmark_data.load(cell.dataset, folder, cell.seed)
            known = (cell.dataset, cell.seed), problem
        found = measure(cell, known[1], _budget())
        results.write(workdir, cell, found)
        left = (time.monotonic() - begin) / (done + 1) * (len(own) - done - 1)
        last = sum(own[-1] for own in found["nll"]) / len(found["nll"])
        print(
            f"{done + 1} of {len(own)}: {cell.dataset}, {cell.method}, "
            f"seed {cell.seed}, {cell.share:.0%} of the people: NLL {last:.4f} after "
            f"{found['n_context'][-1]} choices; {left / 60:.0f} minutes left",
            flush=True,
        )


def write_tables(workdir: pathlib.Path) -> str:
    """Writes `table.md` and the pictures of what was measured; returns the text."""
    found = report.scores(results.read_all(workdir))
    names = [name for name in benchmark_data.NAMES if (name, 1.0) in found]
    whole = {name: found[name, 1.0] for name in names}
    parts = ["## NLL of a choice, nats", report.levels(whole)]
    parts += ["## Difference of the NLL, nats", report.overview(whole)]
    for name, own in whole.items():
        parts += [f"## {name}", report.table(own)]
    pictures.by_choices(whole, workdir / "by-choices.png")
    curves = {}
    for dataset in _CURVES:
        of = {share: own for (name, share), own in found.items() if name == dataset}
        if len(of) > 1:
            curves[dataset] = of
    if curves:
        pictures.by_people(curves, workdir / "by-people.png")
    text = "\n\n".join(parts) + "\n"
    folders.write_text(workdir / "table.md", text)
    return text


def _budget() -> int:
    return _QUICK_STEPS if _QUICK.value else _STEPS.value


def _check_budget(workdir: pathlib.Path) -> None:
    """Refuses a folder whose measurements had another number of steps."""
    steps = _budget()
    path, budget = workdir / "budget.json", {"steps": steps}
    if path.exists():
        known = json_files.read(path)
        if known != budget:
            raise InputError(
                f"`workdir`={workdir}: measured with {known['steps']} steps; use "
                f"another folder for {steps}"
            )
        return
    workdir.mkdir(parents=True, exist_ok=True)
    folders.write_text(path, json.dumps(budget) + "\n")


def main(argv):
    """Measures what is missing, and writes the tables."""
    command_line.refuse_arguments(argv)
    workdir = pathlib.Path(_WORKDIR.value)
    _check_budget(workdir)
    cells()
    if _WORKER.value is not None or _WORKERS.value == 1:
        number = _WORKER.value or 0
        _use_own_core(number)
        with keep_compiled(workdir):
            work(workdir, number, _WORKERS.value)
    else:
        _share_work()
    if _WORKER.value is None:
        print(write_tables(workdir))
        print(f"Written: {workdir / 'table.md'}")


def _use_own_core(number: int) -> None:
    """Keeps a worker on a core of its own, so that costs are those of one core.

    Must come before JAX is used, which has a thread for each core that it sees.
    """
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[number % len(cores)]})


def _share_work() -> None:
    """Runs the workers, each as a process of this command."""
    command = [sys.executable, "-m", "experiments.benchmark", *sys.argv[1:]]
    workers = [
        subprocess.Popen([*command, f"--worker={number}"])
        for number in range(_WORKERS.value)
    ]
    codes = [worker.wait() for worker in workers]
    if any(codes):
        raise InputError("a worker failed, see above; the same command goes on")


if __name__ == "__main__":
    command_line.run(main)
