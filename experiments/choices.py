"""Reward models on your own table of choices or ratings.

Prepare it with `fsa prepare` and `fsa embed` (docs/data.md), then
`--config=experiments/choices.py:MODEL --config.task.path=DATASET` with MODEL one of
those in fsa/recipes/presets.py (default np-btl). For ratings (votes, grades) set
`--config.task.train_on=ratings`: every episode then draws fresh pairs, which was
worth 7 points of accuracy over a fixed table where it was measured.
"""

from fsa.recipes.presets import people


def get_config(arg: str = "np-btl"):
    """Returns the config of one model, in which `task.path` must be set."""
    config = people(arg)
    config.task.path = "data/choices"
    return config
