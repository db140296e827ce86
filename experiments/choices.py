"""Reward models on your own table of choices or ratings.

Prepare it with launch/prepare.py and launch/embed.py (docs/data.md), then
`--config=experiments/choices.py:MODEL --config.task.path=DATASET` with MODEL one of
those in fsa/recipes/presets.py (default np-btl). For ratings (votes, grades) set
`--config.task.train_on=ratings`: every episode then draws fresh pairs, which was
worth 7 points of accuracy over a fixed table where it was measured.
"""

from fsa.recipes.presets import reward_model


def get_config(arg: str = "np-btl"):
    """Returns the config of one model, in which `task.path` must be set."""
    config = reward_model(arg, "people")
    config.task.path = "data/choices"
    config.task.num_targets = 20
    config.model.hidden = 64
    if config.model.latent_dim:
        config.model.latent_dim = 8
    config.objective.num_samples = 4
    config.optimizer.learning_rate = 1e-3
    config.optimizer.weight_decay = 0.1
    config.train.average_decay = 0.99
    config.eval.num_targets = 30
    config.eval.episodes_per_user = 20
    config.eval.valid_episodes_per_user = 5
    return config
