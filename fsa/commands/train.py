"""Trains a run: `fsa train --config=FILE[:ARG] --workdir=DIR`.

The config decides what is trained: a reward model, a policy or a language model. The
same command again resumes the run. Any field can be set: `--config.train.steps=2000`.
`--help_fields` lists the fields of the config with their meaning.

    fsa train --config=mine.py --workdir=runs/mine

On SLURM and TPU pods the processes of a run find each other; elsewhere each is started
with `--coordinator=HOST:PORT --num_processes=N --process_id=I`. On SIGTERM a run saves
and exits with 75, on Ctrl-C with 130; a second Ctrl-C ends it at once.
"""

from absl import flags

from fsa.commands import command_line, experiment_file
from fsa.errors import InputError
from fsa.parallel import processes
from fsa.recipes import fields
from fsa.recipes.config import check_names, known_fields, resolve
from fsa.recipes.train import train
from fsa.training import run_directory

_CONFIG = experiment_file.define_flag()
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
    config = experiment_file.config_of(_CONFIG)
    if _HELP_FIELDS.value:
        flat = run_directory.flatten(config.to_dict())
        print(fields.explain(known_fields(flat), flat))
        check_names(flat)
        return
    command_line.require(_WORKDIR)
    if not all(n.isdecimal() for n in _PROFILE.value):
        given = ",".join(_PROFILE.value)
        raise InputError(f"`profile_steps`={given}: give FIRST,LAST, two steps")
    steps = tuple(map(int, _PROFILE.value))
    with command_line.resumable(lambda: run_directory.has_begun(_WORKDIR.value)):
        _join_processes()
        if not processes.is_first():
            command_line.say_less()
        config = resolve(config, workdir=_WORKDIR.value)
        train(config, _WORKDIR.value, profile_steps=steps)
