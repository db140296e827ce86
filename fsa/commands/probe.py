"""Says whether few-shot prediction may work on a dataset: `fsa probe --data=DIR`.

It counts people and choices, and scores all people of train and valid (in folds, never
by a model that was trained on them; test people are not looked at): what popularity and
a linear model of the features predict, and what a reward model predicts after a short
training on a quarter, a half and all of the people, with 0 to 10 of a person's choices
known. It ends in plain sentences. With `--out=DIR` it also writes probe.json and
probe.png. It takes one to three minutes of 2 cores.

`--config=FILE` probes with the settings of an experiment in place of the usual ones.
"""

from absl import flags
from ml_collections import config_flags

from fsa.commands import command_line
from fsa.errors import InputError
from fsa.evaluation import probe_report
from fsa.recipes.probe import default_config, probe

_DATA = flags.DEFINE_string("data", None, "A dataset.")
_CONFIG = config_flags.DEFINE_config_file("config", help_string="An experiment file.")
_OUT = flags.DEFINE_string("out", None, "Folder to write probe.json and probe.png in.")
_STEPS = flags.DEFINE_integer("steps", 200, "Steps of each of 12 trainings.", 1)
_SEED = flags.DEFINE_integer(
    "seed", None, "Seed of folds, episodes and models; by default the config's.", 0
)


def main(argv):
    """Probes a dataset and prints what was found."""
    command_line.refuse_arguments(argv)
    if _CONFIG.value is None and _DATA.value is None:
        raise InputError("`data`: give a dataset")
    if _OUT.value:
        command_line.make_folder_of(f"{_OUT.value}/probe.json", "out")
    config = default_config(_DATA.value) if _CONFIG.value is None else _CONFIG.value
    with config.unlocked():
        if _SEED.value is not None:
            config.seed = _SEED.value
        if _DATA.value:
            config.task.path = _DATA.value
    found = probe(config, steps=_STEPS.value)
    print(probe_report.text(found))
    if _OUT.value:
        print("Written:", *map(str, probe_report.write(found, _OUT.value)))
