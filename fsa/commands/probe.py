"""Says whether few-shot prediction may work on a dataset: `fsa probe --data=DIR`.

It counts people and choices, and scores all people of train and valid (in folds, never
by a model that was trained on them; test people are not looked at): what popularity and
a linear model of the features predict, and what a reward model predicts after a short
training on a quarter, a half and all of the people, with 0 to 10 of a person's choices
known. It ends in plain sentences. With `--out=DIR` it also writes probe.json and
probe.png. It takes one to three minutes of 2 cores.

    fsa probe --data=data/mine --out=probed

`--model=bayes` probes with another model, `--config=FILE` with the settings of an
experiment in place of the usual ones.
"""

from absl import flags
from ml_collections import ConfigDict

from fsa.commands import command_line, experiment_file
from fsa.errors import InputError
from fsa.evaluation import probe_report
from fsa.recipes.presets import MODELS
from fsa.recipes.probe import default_config, probe

_DATA = flags.DEFINE_string("data", None, "A dataset.")
_CONFIG = experiment_file.define_flag()
_MODEL = flags.DEFINE_enum(
    "model", "np-btl", MODELS, "Model to train, where no --config is given."
)
_OUT = flags.DEFINE_string("out", None, "Folder to write probe.json and probe.png in.")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace files in --out.")
_STEPS = flags.DEFINE_integer("steps", 200, "Steps of each of 12 trainings.", 1)
_SEED = flags.DEFINE_integer(
    "seed",
    None,
    "Seed of folds, episodes and models; by default the config's.",
    0,
    2**31 - 1,
)


def main(argv):
    """Probes a dataset and prints what was found."""
    command_line.refuse_arguments(argv)
    if _CONFIG.value is None:
        command_line.require(_DATA)
    elif _MODEL.present:
        raise InputError("`model`: give it with the experiment, `config`=FILE.py:MODEL")
    if _OUT.value:
        place = f"{_OUT.value}/probe.json"
        command_line.make_place(place, "out", _OVERWRITE.value, endings=())
    config = _CONFIG.value
    if config is None:
        config = default_config(_DATA.value, _MODEL.value)
    with config.unlocked():
        if _SEED.value is not None:
            config.seed = _SEED.value
        # The probe refuses a config that has no task.
        if _DATA.value and isinstance(config.get("task"), ConfigDict):
            config.task.path = _DATA.value
    found = probe(config, steps=_STEPS.value)
    print(probe_report.text(found))
    if _OUT.value:
        print("Written:", *map(str, probe_report.write(found, _OUT.value)))
    print("next: fsa train --config=mine.py --workdir=runs/mine")
