"""Trains a run: `python -m launch.train --config=FILE[:ARG] --workdir=DIR`.

The config says what is trained: a reward model, a policy or a language model. The same
command again resumes. Any field can be set: `--config.train.steps=2000`.

On SLURM and TPU pods the processes of a run find each other; elsewhere each is started
with `--coordinator=HOST:PORT --num_processes=N --process_id=I`. On SIGTERM a run saves
and exits with 75.
"""

from typing import Any

import jax
from absl import flags
from etils import epath
from ml_collections import config_flags

from fsa.commands import command_line
from fsa.errors import InputError
from fsa.language import huggingface
from fsa.parallel import processes
from fsa.recipes.config import resolve
from fsa.recipes.runs import build, make_runner
from fsa.training import run_directory
from fsa.training.checkpoint import Checkpoints
from fsa.training.loop import train
from fsa.training.monitor.finite import skip_not_finite
from fsa.training.monitor.metrics import MetricsWriter
from fsa.training.monitor.profiling import Profile
from fsa.training.step import init_state, make_optimizer

_CONFIG = config_flags.DEFINE_config_file("config", help_string="An experiment file.")
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Where the run lives: a folder, or gs://...", required=True
)
_join_processes = command_line.process_flags()
_PROFILE = flags.DEFINE_list(
    "profile_steps",
    [],
    "FIRST,LAST: numbers of steps to profile, from 0, into DIR/tensorboard.",
)


def main(argv):
    """Builds everything from the config and trains."""
    command_line.refuse_arguments(argv)
    command_line.end_on_sigterm()
    _join_processes()
    if not processes.is_first():
        command_line.say_less()
    config = resolve(_CONFIG.value)
    run_dir = run_directory.locate(_WORKDIR.value)
    profile = _profile(run_dir, config["train"]["steps"])
    if "language_model" in config:
        # A run belongs to the weights it began with, whatever lies there later.
        base = config["language_model"]
        huggingface.check(base["path"])
        found = huggingface.digest(base["path"])
        if base["digest"] not in ("", found):
            raise InputError(
                f"config.language_model.digest: {base['path']} has {found}, not "
                f"{base['digest']}; it is another model"
            )
        base["digest"] = found
    # Another run's folder is refused before any work is done; a new one is claimed
    # once it is known that the config and its data make a run.
    processes.on_first(lambda: _claim(run_dir, config, new=False))
    command_line.keep_compiled(run_dir)
    init_key, train_key, valid_key = jax.random.split(jax.random.key(config["seed"]), 3)
    run = build(config, init_key, valid_key)
    processes.on_first(lambda: _claim(run_dir, config, new=True))
    settings = config["train"]
    optimizer = make_optimizer(**config["optimizer"], steps=settings["steps"])
    if settings["skip_bad_steps"]:
        optimizer = skip_not_finite(optimizer)
    checkpoints = Checkpoints(run_dir / "checkpoints", keep_last=settings["keep_last"])
    state = train(
        init_state(run.variables, optimizer),
        runner=make_runner(config, run, optimizer),
        tables=run.tables,
        make_examples=run.make_examples,
        key=train_key,
        validate=run.validate,
        checkpoints=checkpoints,
        writer=lambda step: MetricsWriter(run_dir, resume_step=step),
        meta=run.meta,
        steps=settings["steps"],
        steps_per_call=settings["steps_per_call"],
        validate_every=settings["validate_every"],
        skip_bad_steps=settings["skip_bad_steps"],
        profile=profile,
    )
    if profile:
        print(profile)
    print(f"Trained into {run_dir}, best at step {checkpoints.best_step}.")
    run.finish(state, run_dir)
    checkpoints.close()


def _profile(run_dir: epath.Path, steps: int) -> Profile | None:
    """What --profile_steps asks for."""
    if not _PROFILE.value:
        return None
    numbers = [int(number) for number in _PROFILE.value if number.isdigit()]
    given = ",".join(_PROFILE.value)
    if len(numbers) != 2 or not numbers[0] <= numbers[1] < steps:
        raise InputError(
            f"--profile_steps={given}: give FIRST,LAST, of the steps 0 to {steps - 1}"
        )
    return Profile(run_dir / "tensorboard", *numbers)


def _claim(run_dir: epath.Path, config: dict[str, Any], *, new: bool):
    if new or (run_dir / "config.json").exists():
        run_directory.claim(run_dir, config)


if __name__ == "__main__":
    command_line.run(main)
