"""Runs an experiment's sweep: `python -m launch.sweep --config=FILE --workdir=DIR`.

The file's `get_sweep()`, beside `get_config`, returns the runs: a list of fields by
dotted name, often made by `fsa.recipes.presets.grid`. Each run is trained and scored in
`DIR/runs/`, `--at_once` of them at a time, or as a SLURM array (`--cluster=slurm
--slurm=time=60,partition=gpu`). Runs that differ in the seed alone are one setting;
means and intervals over its seeds go to `results.md`, `results.json`, `results.png`.

The same command again runs what is not done yet. A field can be set for all runs:
`--config.train.steps=2000`. The exit code is 1 if a run failed.
"""

import pathlib
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from absl import flags
from ml_collections import ConfigDict, config_flags

from fsa.commands import command_line
from fsa.errors import InputError
from fsa.recipes import config as configs
from fsa.recipes.evaluate import EVALUATIONS
from fsa.sweeps import plan
from fsa.training import run_directory

_CONFIG = config_flags.DEFINE_config_file("config", help_string="An experiment file.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the sweep.", required=True)
_AT_ONCE = flags.DEFINE_integer("at_once", 1, "Number of runs at a time.", 1)
_CLUSTER = flags.DEFINE_enum(
    "cluster", "local", ["local", "slurm"], "Where to run: on this machine or in SLURM."
)
_SLURM = flags.DEFINE_list(
    "slurm",
    [],
    "With --cluster=slurm: time=MINUTES of one job, which is queued again after them, "
    "and other options of submitit.SlurmExecutor.",
)

_TRAIN = (sys.executable, "-m", "fsa.commands.train")
_EVALUATE = (sys.executable, "-m", "fsa.commands.evaluate")


def check_all(config: ConfigDict, runs: Sequence[Mapping[str, Any]]):
    """Checks the config of every run, before any run begins.

    Args:
      config: the config that all runs share.
      runs: the fields of each run.

    Raises:
      InputError: naming the run and its field.
    """
    sizes = set()
    for fields in runs:
        own = config.copy_and_resolve_references()
        try:
            own.update_from_flattened_dict(fields)
            # Fields that depend on devices are checked by each run on its devices.
            own.mesh.fsdp = own.mesh.tensor = 1
            plain = configs.resolve(own)
        except (KeyError, TypeError, InputError) as error:
            raise InputError(
                f"get_sweep(), {plan.name_of(fields)}: {error.args[0]}"
            ) from error
        if plain["kind"] not in EVALUATIONS:
            raise InputError("`config`: a language model has no scores to compare")
        sizes.add(tuple(plain["eval"]["num_context"]))
    if len(sizes) > 1:
        raise InputError(
            f"get_sweep(): eval.num_context must be the same for all runs, not {sizes}"
        )


def _upgrade(sweep: dict[str, Any]) -> dict[str, Any]:
    """Returns the description of a sweep in the form of this version."""
    if not isinstance(sweep, dict) or "config" not in sweep:
        return sweep  # The folder of a single run, which is refused as another config.
    return {**sweep, "config": configs.upgrade(sweep["config"])}


def _interrupt(*_):
    raise KeyboardInterrupt


def main(argv):
    """Checks the sweep, runs it and summarizes its scores."""
    command_line.refuse_arguments(argv)
    # This process must not occupy the devices, which the runs need.
    jax.config.update("jax_platforms", "cpu")
    signal.signal(signal.SIGTERM, _interrupt)
    flag = flags.FLAGS["config"]
    config = command_line.config_of(_CONFIG)
    runs = plan.read_sweep(flag.config_filename.partition(":")[0])
    check_all(config, runs)
    if "://" in _WORKDIR.value:
        raise InputError(f"`workdir`={_WORKDIR.value}: must be a folder on a disk")
    slurm = None
    if _CLUSTER.value == "slurm":
        slurm = dict(option.partition("=")[::2] for option in _SLURM.value)
    folder = pathlib.Path(_WORKDIR.value).absolute()
    names = {plan.name_of(fields): "wanted" for fields in runs}
    run_directory.claim(
        folder, {"config": config.to_dict(), "runs": names}, upgrade=_upgrade
    )
    shared = [f"--config.{name}={v}" for name, v in flag.override_values.items()]
    jobs = plan.make_jobs(
        runs,
        folder,
        train=[*_TRAIN, f"--config={flag.config_filename}", *shared],
        evaluate=_EVALUATE,
    )
    failed = plan.run_jobs(jobs, folder, at_once=_AT_ONCE.value, slurm=slurm)
    plan.write(plan.gather(runs, jobs), folder)
    return 1 if failed else 0


if __name__ == "__main__":
    command_line.run(main)
