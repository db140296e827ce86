"""Runs an experiment's ablations: `python -m launch.sweep --config=FILE --workdir=DIR`.

The file's `get_sweep()`, beside `get_config`, returns what the runs are: a list of
fields by dotted name, often made by `fsa.recipes.presets.grid`. Each run is trained and
scored in `DIR/runs/`, `--at_once` of them side by side, or as a SLURM array
(`--cluster=slurm --slurm=time=60,partition=gpu`). Runs that differ in the seed alone
are one setting; means and intervals over its seeds go to `results.md`, `.json`, `.png`.

The same command again does what is not done. Fields that all runs share can be set:
`--config.train.steps=2000`. Exit code 1 if a run failed.
"""

import contextlib
import json
import pathlib
import runpy
import signal
import urllib.parse
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from absl import flags
from ml_collections import ConfigDict, config_flags
from tqdm import tqdm

from fsa.commands import command_line
from fsa.errors import InputError
from fsa.evaluation import evaluation_file
from fsa.recipes.config import resolve
from fsa.sweeps import summary
from fsa.sweeps.jobs import Job, side_by_side
from fsa.training import run_directory

_CONFIG = config_flags.DEFINE_config_file("config", help_string="An experiment file.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Where it all goes.", required=True)
_AT_ONCE = flags.DEFINE_integer("at_once", 1, "Runs at a time.", 1)
_CLUSTER = flags.DEFINE_enum("cluster", "local", ["local", "slurm"], "Where runs run.")
_SLURM = flags.DEFINE_list(
    "slurm",
    [],
    "With --cluster=slurm: time=MINUTES of one run, which is queued again when that is "
    "over, and other options of submitit.SlurmExecutor.",
)

SEED = "seed"


def read_sweep(path: str) -> list[dict[str, Any]]:
    """What `get_sweep` of an experiment file returns.

    Raises:
      InputError: if there is none, it is empty, or says the same twice.
    """
    found = runpy.run_path(path)
    if "get_sweep" not in found:
        raise InputError(
            f"--config={path}: has no get_sweep(); experiments/synthetic/ablation.py "
            "shows one"
        )
    runs = list(found["get_sweep"]())
    if not runs:
        raise InputError(f"--config={path}: get_sweep() returns no runs")
    names = [name_of(fields) for fields in runs]
    if twice := {name for name in names if names.count(name) > 1}:
        raise InputError(f"--config={path}: get_sweep() has {min(twice)} twice")
    return runs


def name_of(fields: dict[str, Any]) -> str:
    """What a run with these fields is called; fit for a folder."""
    quoted = {
        name: urllib.parse.quote(str(value).replace(" ", ""), safe="(),'")
        for name, value in fields.items()
    }
    return ",".join(f"{name}={value}" for name, value in quoted.items()) or "run"


def check_all(config: ConfigDict, runs: Sequence[dict[str, Any]]):
    """Refuses a sweep with a run that cannot be, before any is begun.

    Raises:
      InputError: naming the run and its field.
    """
    sizes = set()
    for fields in runs:
        own = config.copy_and_resolve_references()
        try:
            own.update_from_flattened_dict(fields)
            # What depends on devices is for the runs, which have them, to refuse.
            own.mesh.fsdp = own.mesh.tensor = 1
            plain = resolve(own)
        except (KeyError, TypeError, InputError) as error:
            raise InputError(
                f"get_sweep(), {name_of(fields)}: {error.args[0]}"
            ) from error
        if plain["task"]["name"] == "corpus":
            raise InputError("--config: a language model has no scores to compare")
        sizes.add(tuple(plain["eval"]["num_context"]))
    if len(sizes) > 1:
        raise InputError(f"get_sweep(): eval.num_context must be one, not {sizes}")


def make_jobs(
    runs: Sequence[dict[str, Any]], shared: Sequence[str], folder: pathlib.Path
) -> list[Job]:
    """The job of each run.

    Args:
      runs: their fields.
      shared: flags of launch.train for all of them.
      folder: of the sweep.
    """
    jobs = []
    for fields in runs:
        own = tuple(f"--config.{name}={value}" for name, value in fields.items())
        name = name_of(fields)
        jobs.append(
            Job(name, folder / "runs" / name, (*shared, *own), folder / "compiled")
        )
    return jobs


def do(jobs: Sequence[Job], folder: pathlib.Path) -> list[Job]:
    """Does what is left; says in a line what fails, and returns it."""
    left = [job for job in jobs if not job.is_done()]
    failed = []
    with (
        tqdm(total=len(jobs), initial=len(jobs) - len(left), unit="run") as bar,
        contextlib.closing(_start(left, folder)) as ended,
    ):
        for job in ended:
            bar.update()
            if not job.is_done():
                failed.append(job)
                bar.write(f"failed: {job.name}: {job.last_words()} ({job.log})")
    return failed


def _start(jobs: Sequence[Job], folder: pathlib.Path) -> Iterator[Job]:
    if not jobs or _CLUSTER.value == "local":
        return side_by_side(jobs, _AT_ONCE.value)
    options = dict(option.partition("=")[::2] for option in _SLURM.value)
    if not options.get("time"):
        raise InputError("--slurm: give time=MINUTES, of one run")
    try:
        from fsa.sweeps.slurm import slurm_array
    except ImportError as error:
        raise InputError("--cluster=slurm: needs submitit; pip install it") from error
    return slurm_array(jobs, _AT_ONCE.value, folder / "slurm", options)


def gather(
    runs: Sequence[dict[str, Any]], jobs: Sequence[Job]
) -> list[summary.Setting]:
    """Settings in the order of their first run, with the scores that there are."""
    members: dict[str, list[int]] = {}
    for index, fields in enumerate(runs):
        own = {name: value for name, value in fields.items() if name != SEED}
        members.setdefault(name_of(own), []).append(index)
    return [
        summary.Setting(
            fields={n: v for n, v in runs[of[0]].items() if n != SEED},
            seeds=len(of),
            evaluations=[
                evaluation_file.read(jobs[i].folder / "evaluation.json")
                for i in of
                if jobs[i].is_done()
            ],
        )
        for of in members.values()
    ]


def write(settings: Sequence[summary.Setting], folder: pathlib.Path):
    """Writes the table and the picture, and prints the table."""
    if not any(setting.evaluations for setting in settings):
        return
    text = summary.table(settings)
    print(text)
    paths = [folder / f"results.{kind}" for kind in ("md", "json", "png")]
    paths[0].write_text(
        "Accuracy in %, NLL in nats; ± is half of a 95% t-interval over seeds.\n\n"
        f"{text}\n\n![Seeds as dots, 95% t-intervals over them](results.png)\n"
    )
    paths[1].write_text(json.dumps(summary.summary(settings), indent=1) + "\n")
    summary.plot(settings, paths[2])
    print("Written:", *paths)


def _interrupt(*_):
    raise KeyboardInterrupt


def main(argv):
    """Checks the sweep, does it and gathers what it found."""
    command_line.refuse_arguments(argv)
    # Devices are for the runs.
    jax.config.update("jax_platforms", "cpu")
    signal.signal(signal.SIGTERM, _interrupt)
    flag = flags.FLAGS["config"]
    runs = read_sweep(flag.config_filename.partition(":")[0])
    check_all(_CONFIG.value, runs)
    if "://" in _WORKDIR.value:
        raise InputError(
            f"--workdir={_WORKDIR.value}: a sweep needs a folder with locks"
        )
    folder = pathlib.Path(_WORKDIR.value).absolute()
    names = {name_of(fields): "wanted" for fields in runs}
    run_directory.claim(folder, {"config": _CONFIG.value.to_dict(), "runs": names})
    shared = [f"--config.{name}={v}" for name, v in flag.override_values.items()]
    jobs = make_jobs(runs, [f"--config={flag.config_filename}", *shared], folder)
    failed = do(jobs, folder)
    write(gather(runs, jobs), folder)
    return 1 if failed else 0


if __name__ == "__main__":
    command_line.run(main)
