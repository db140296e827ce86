"""Trains a run: `fsa train --config=FILE[:ARG] --workdir=DIR`.

The config decides what is trained: a reward model, a policy or a language model. The
same command again resumes the run. Any field can be set: `--config.train.steps=2000`.
`--help_fields` lists the fields of the config with their meaning.

On SLURM and TPU pods the processes of a run find each other; elsewhere each is started
with `--coordinator=HOST:PORT --num_processes=N --process_id=I`. On SIGTERM a run saves
and exits with 75.
"""

from absl import flags
from ml_collections import config_flags

from fsa.commands import command_line
from fsa.errors import InputError
from fsa.parallel import processes
from fsa.recipes import fields
from fsa.recipes.config import checked_fields, resolve
from fsa.recipes.train import train
from fsa.training.run_directory import flatten

_CONFIG = config_flags.DEFINE_config_file("config", help_string="An experiment file.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Run directory: a folder, or gs://...")
_HELP_FIELDS = flags.DEFINE_bool(
    "help_fields", False, "List the fields of the config, and train nothing."
)
_join_processes = command_line.process_flags()
_PROFILE = flags.DEFINE_list(
    "profile_steps",
    [],
    "FIRST,LAST: first and last step to profile, from 0, into DIR/tensorboard.",
)


def main(argv):
    """Trains the run of the config, or lists its fields."""
    command_line.refuse_arguments(argv)
    config = command_line.config_of(_CONFIG)
    if _HELP_FIELDS.value:
        flat = flatten(config.to_dict())
        print(fields.explain(checked_fields(flat), flat))
        return
    if _WORKDIR.value is None:
        raise InputError("`workdir`: give the run directory")
    command_line.end_on_sigterm()
    _join_processes()
    if not processes.is_first():
        command_line.say_less()
    steps = tuple(int(n) if n.isdecimal() else -1 for n in _PROFILE.value)
    train(resolve(config), _WORKDIR.value, profile_steps=steps)
