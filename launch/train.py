"""Trains a run: `python -m launch.train --config=FILE[:ARG] --workdir=DIR`.

The config says what is trained: a reward model, a policy or a language model. The same
command again resumes. Any field can be set: `--config.train.steps=2000`.
"""

import jax
from absl import flags
from etils import epath
from ml_collections import config_flags

from fsa.data import responses
from fsa.errors import InputError
from fsa.models import hf
from fsa.training import workdir
from fsa.training.checkpoint import Checkpoints
from fsa.training.loop import train
from fsa.training.metrics import MetricsWriter
from fsa.training.step import init_state, make_optimizer
from launch import cli
from launch.config import resolve
from launch.runs import build, make_runner

_CONFIG = config_flags.DEFINE_config_file("config", help_string="An experiment file.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Where the run lives.", required=True)


def main(argv):
    """Builds everything from the config and trains."""
    cli.refuse_arguments(argv)
    config = resolve(_CONFIG.value)
    if "language_model" in config:
        # A run belongs to the weights it began with, whatever lies there later.
        base = config["language_model"]
        hf.check(base["path"])
        found = responses.digest(base["path"])
        if base["digest"] not in ("", found):
            raise InputError(
                f"config.language_model.digest: {base['path']} has {found}, not "
                f"{base['digest']}; it is another model"
            )
        base["digest"] = found
    run_dir = epath.Path(_WORKDIR.value).absolute()
    if (run_dir / "config.json").exists():
        # Another run's folder is refused before any work is done; a new one is claimed
        # once it is known that the config and its data make a run.
        workdir.claim(run_dir, config)
    cli.keep_compiled(run_dir)
    init_key, train_key, valid_key = jax.random.split(jax.random.key(config["seed"]), 3)
    run = build(config, init_key, valid_key)
    workdir.claim(run_dir, config)
    optimizer = make_optimizer(**config["optimizer"], steps=config["train"]["steps"])
    checkpoints = Checkpoints(run_dir / "checkpoints")
    state = train(
        init_state(run.variables, optimizer),
        runner=make_runner(config, run, optimizer),
        tables=run.tables,
        make_rows=run.make_rows,
        key=train_key,
        validate=run.validate,
        checkpoints=checkpoints,
        writer=lambda step: MetricsWriter(run_dir, resume_step=step),
        meta=run.meta,
        steps=config["train"]["steps"],
        steps_per_call=config["train"]["steps_per_call"],
        validate_every=config["train"]["validate_every"],
    )
    print(f"Trained into {run_dir}, best at step {checkpoints.best_step}.")
    run.finish(state, run_dir)
    checkpoints.close()


if __name__ == "__main__":
    cli.run(main)
