"""HH and HHT of the paper: users who want helpful, honest or truthful answers.

Kobalczyk et al. 2024, section 4.2. Prepare with `fsa prepare --ultrafeedback` (see
docs/data.md), embed with `fsa embed`, then
`--config=experiments/ultrafeedback/objectives.py:MODEL --config.task.path=DATASET` with
MODEL one of those in fsa/recipes/presets.py (default np-btl). The users are the
objectives, so train and test differ by prompt, not by user.
"""

from fsa.recipes.presets import reward_model


def get_config(arg: str = "np-btl"):
    """Returns the config of one model, in which `task.path` must be set."""
    config = reward_model(arg, "people")
    config.task.path = "data/ultrafeedback-hh"
    config.task.min_choices = 2
    config.task.pairing_noise = 0.0
    config.task.num_targets = 20
    config.model.hidden = 256
    if config.model.latent_dim:
        config.model.latent_dim = 16
    config.optimizer.learning_rate = 1e-3
    config.optimizer.weight_decay = 0.1
    config.train.steps = 4000
    config.train.validate_every = 500
    config.eval.num_targets = 20
    config.eval.episodes_per_user = 200
    config.eval.valid_episodes_per_user = 100
    return config
