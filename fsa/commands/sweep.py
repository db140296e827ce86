"""Runs an experiment's sweep: `fsa sweep --config=FILE --workdir=DIR`.

The file's `get_sweep()`, beside `get_config`, returns the runs: a list of fields by
dotted name, often made by `fsa.recipes.presets.grid`. Each run is trained and scored in
`DIR/runs/`, `--at_once` of them at a time, or as a SLURM array (`--cluster=slurm
--slurm=time=60,partition=gpu`). Runs that differ in the seed alone are one setting;
means and intervals over its seeds go to `results.md`, `results.json`, `results.png`.

    fsa sweep --config=mine.py --workdir=runs/sweep

where mine.py has, beside its get_config, for 2 x 2 runs:

    from fsa.recipes.presets import grid

    def get_sweep():
        return grid(**{"model.pooling": ["mean", "attention"], "seed": [0, 1]})

The same command again runs what is not done yet. A field can be set for all runs:
`--config.train.steps=2000`. The exit code is 1 if a run failed.
"""

import os
import pathlib
import signal
import sys

import jax
from absl import flags

from fsa import exits
from fsa.commands import command_line, experiment_file
from fsa.errors import InputError
from fsa.sweeps import plan
from fsa.sweeps.sweep import sweep

_CONFIG = experiment_file.define_flag()
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


def _interrupt(*_):
    raise KeyboardInterrupt


def main(argv):
    """Checks the sweep, runs it and summarizes its scores."""
    command_line.refuse_arguments(argv)
    # This process must not occupy the devices, which the runs need.
    jax.config.update("jax_platforms", "cpu")
    signal.signal(signal.SIGTERM, _interrupt)
    # The runs save before it ends.
    exits.unwind_on_ctrl_c(patience=None)
    flag = flags.FLAGS["config"]
    config = experiment_file.config_of(_CONFIG)
    runs = plan.read_sweep(experiment_file.path_of(_CONFIG))
    if "://" in _WORKDIR.value:
        raise InputError(f"`workdir`={_WORKDIR.value}: must be a folder on a disk")
    if _SLURM.value and _CLUSTER.value != "slurm":
        raise InputError("`slurm`: give `cluster`=slurm as well, or leave it out")
    slurm = None
    if _CLUSTER.value == "slurm":
        slurm = dict(option.partition("=")[::2] for option in _SLURM.value)
    # -P leaves the current folder out of the path of imports, where a user's random.py
    # would hide Python's; as `fsa` does, but not `python -m fsa` in a checkout.
    alone = [] if sys.path[0] == os.getcwd() else ["-P"]
    program = (sys.executable, *alone, "-m", "fsa")
    shared = [f"--config.{name}={v}" for name, v in flag.override_values.items()]
    failed = sweep(
        config,
        runs,
        pathlib.Path(_WORKDIR.value).absolute(),
        train=[*program, "train", f"--config={flag.config_filename}", *shared],
        evaluate=[*program, "evaluate"],
        at_once=_AT_ONCE.value,
        slurm=slurm,
    )
    return 1 if failed else 0
