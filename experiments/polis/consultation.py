"""Reward models of real people, who voted on statements of a public consultation.

Prepare a consultation as docs/results.md shows, then
`--config=experiments/polis/consultation.py:MODEL --config.task.path=DATASET` with MODEL
one of those in fsa/recipes/presets.py (default np-btl). Training episodes are drawn
from the votes of training people, pairs of about equal popularity; test people are
scored on the fixed table of choices. Everything was chosen on validation people of
Bowling Green, for bayes on its training and validation people in folds.

For the random table, where popularity predicts well, add
`--config.task.pairing_noise=3 --config.task.max_gap=100`, and for bayes
`--config.model.context=votes --config.train.steps=800`. A run takes a minute or two on
2 CPU cores.
"""

from fsa.recipes.presets import people


def get_config(arg: str = "np-btl"):
    """Returns the config of one model, in which `task.path` must be set."""
    config = people(arg)
    config.task.path = "data/polis/bowling-green-contested"
    config.task.train_on = "ratings"
    config.task.min_choices = 10
    config.task.pairing_noise = 0.1
    config.task.max_gap = 0.5
    # Pairs have one agreed and one disagreed statement; a pass decides nothing.
    config.task.min_margin = 1.0
    # What is linear in z learns faster, see fsa/recipes/presets.py.
    config.train.steps = 400 if arg == "bayes" else 800
    config.train.validate_every = 100
    config.train.average_decay = 0.995
    return config
