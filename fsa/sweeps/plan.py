"""Plans of sweeps: reads which runs a sweep has, runs them, and collects their scores.

The runs of a sweep differ in some fields of their config. Runs that differ in the seed
alone are one setting, whose scores are summarized over seeds.
"""

import contextlib
import json
import pathlib
import runpy
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fsa import bars, folders
from fsa.errors import InputError, missing_extra, naming_line
from fsa.evaluation import evaluation_file
from fsa.evaluation import figure_style as style
from fsa.parallel.preemption import Interrupted
from fsa.sweeps import summary
from fsa.sweeps.jobs import Job, run_locally

SEED = "seed"

EXAMPLE = 'return grid(**{"model.pooling": ["mean", "attention"], "seed": [0, 1]})'

Fields = Mapping[str, Any]


def read_sweep(path: str) -> list[dict[str, Any]]:
    """Returns the runs of an experiment file, as its `get_sweep` returns them.

    Args:
      path: path of the file.

    Returns:
      The fields of each run, by dotted name.

    Raises:
      InputError: if the file has no `get_sweep`, or it returns no runs or a run twice.
    """
    with naming_line(path, path):
        found = runpy.run_path(path)
    if "get_sweep" not in found:
        raise InputError(
            f"{path}: has no get_sweep(), which returns the runs; add, with grid from "
            f"fsa.recipes.presets: def get_sweep(): {EXAMPLE}"
        )
    with naming_line(path, path):
        runs = found["get_sweep"]()
    is_list = isinstance(runs, list | tuple)
    if not is_list or not all(isinstance(fields, dict) for fields in runs):
        raise InputError(f"{path}: get_sweep() must return a list of dicts of fields")
    runs = list(runs)
    if not runs:
        raise InputError(f"{path}: get_sweep() returns no runs")
    names = [name_of(fields) for fields in runs]
    if twice := {name for name in names if names.count(name) > 1}:
        raise InputError(f"{path}: get_sweep() returns {min(twice)} twice")
    return runs


def name_of(fields: Fields) -> str:
    """Returns the name of a run with these fields, which can name a folder."""
    quoted = {
        name: urllib.parse.quote(str(value).replace(" ", ""), safe="(),'")
        for name, value in fields.items()
    }
    return ",".join(f"{name}={value}" for name, value in quoted.items()) or "run"


def make_jobs(
    runs: Sequence[Fields],
    folder: pathlib.Path,
    *,
    train: Sequence[str],
    evaluate: Sequence[str],
) -> list[Job]:
    """Makes the job of each run.

    Args:
      runs: the fields of each run.
      folder: the folder of the sweep.
      train: the command that trains, with the arguments that all runs share. It gets
        `--workdir=RUN`, and `--config.NAME=VALUE` for each field.
      evaluate: the command that scores a trained run. It gets `--workdir=RUN`.
    """
    jobs = []
    for fields in runs:
        name = name_of(fields)
        workdir = f"--workdir={folder / 'runs' / name}"
        own = (f"--config.{field}={value}" for field, value in fields.items())
        commands = (*train, workdir, *own), (*evaluate, workdir)
        jobs.append(Job(name, folder / "runs" / name, commands, folder / "compiled"))
    return jobs


def run_jobs(
    jobs: Sequence[Job],
    folder: pathlib.Path,
    *,
    at_once: int = 1,
    slurm: Mapping[str, str] | None = None,
) -> list[Job]:
    """Runs the jobs that are not done; prints a line for each that fails.

    Args:
      jobs: the jobs of a sweep.
      folder: the folder of the sweep.
      at_once: how many to run at a time.
      slurm: options of a SLURM array, see `fsa.sweeps.slurm`; by default the jobs run
        on this machine.

    Returns:
      The jobs that failed.

    Raises:
      InputError: for options that SLURM refuses, and without SLURM.
      Interrupted: on Ctrl-C, when the runs have saved and ended.
    """
    if any(not job.is_done() for job in jobs):
        bars.print_line(f"Logs: {folder}/runs/*/log.txt")
    try:
        return _run_left(jobs, folder, at_once, slurm)
    except KeyboardInterrupt as stop:
        done = sum(job.is_done() for job in jobs)
        # Jobs in SLURM go on.
        what = "runs" if slurm is None else "watches"
        raise Interrupted(
            f"interrupted: {done} of {len(jobs)} runs are done; the same command "
            f"{what} the rest",
            together=False,
        ) from stop


def _run_left(
    jobs: Sequence[Job],
    folder: pathlib.Path,
    at_once: int,
    slurm: Mapping[str, str] | None,
) -> list[Job]:
    """Runs the jobs that are not done, and returns those that failed."""
    left = [job for job in jobs if not job.is_done()]
    failed = []
    with (
        bars.Bar(len(jobs), "Running", "run", done=len(jobs) - len(left)) as bar,
        contextlib.closing(_start(left, folder, at_once, slurm)) as ended,
    ):
        for job in ended:
            bar.advance()
            if not job.is_done():
                failed.append(job)
                bars.print_line(
                    f"failed: {job.name}: {job.last_log_line()} ({job.log})"
                )
    return failed


def check_slurm(options: Mapping[str, str] | None) -> None:
    """Raises InputError if jobs in SLURM would have no time limit."""
    if options is not None and not options.get("time"):
        raise InputError("`slurm`: give time=MINUTES, the time limit of a job")


def _start(
    jobs: Sequence[Job],
    folder: pathlib.Path,
    at_once: int,
    slurm: Mapping[str, str] | None,
) -> Iterator[Job]:
    check_slurm(slurm)
    if not jobs or slurm is None:
        return run_locally(jobs, at_once)
    try:
        from fsa.sweeps.slurm import slurm_array
    except ImportError as error:
        raise missing_extra("slurm", "`slurm`", error) from error
    return slurm_array(jobs, at_once, folder / "slurm", dict(slurm))


def gather(runs: Sequence[Fields], jobs: Sequence[Job]) -> list[summary.Setting]:
    """Collects the scores of all settings, in the order of their first runs.

    Args:
      runs: the fields of each run.
      jobs: the job of each run; only jobs that are done have scores.
    """
    members: dict[str, list[int]] = {}
    for index, fields in enumerate(runs):
        members.setdefault(name_of(_without_seed(fields)), []).append(index)
    return [
        summary.Setting(
            fields=_without_seed(runs[indices[0]]),
            seeds=len(indices),
            evaluations=[
                evaluation_file.read(jobs[index].folder / "evaluation.json")
                for index in indices
                if jobs[index].is_done()
            ],
        )
        for indices in members.values()
    ]


def _without_seed(fields: Fields) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name != SEED}


def write(settings: Sequence[summary.Setting], folder: pathlib.Path):
    """Writes and prints the summary of a sweep, unless no setting has scores.

    Args:
      settings: the settings of the sweep.
      folder: its folder, for `results.md`, `results.json` and `results.png`.
    """
    if not any(setting.evaluations for setting in settings):
        return
    text = summary.table(settings)
    print(summary.shown(settings))
    paths = [folder / f"results.{kind}" for kind in ("md", "json", "png")]
    folders.write_text(
        paths[0],
        "Accuracy in %, NLL in nats; ± is half of a 95% t-interval over seeds. An "
        "interval that is cut at 0 or 100 is given by its ends.\n\n"
        f"{text}\n\n![Seeds as dots, 95% t-intervals over them](results.png)\n",
    )
    folders.write_text(paths[1], json.dumps(summary.summary(settings), indent=1) + "\n")
    style.save(summary.draw(settings, folder.name), paths[2])
    print("Written:", *paths)
