"""A continuum of users: z ~ N(0, I_4) weighs nonlinear features of items in R^8.

`--config=experiments/synthetic/continuum.py:MODEL` with MODEL one of those in
fsa/recipes/presets.py (default np-btl-deterministic). Trained on up to 20 context
choices, scored on up to 50: 86% of the Bayes-optimal gain at n = 10, 88% at n = 20, in
12 minutes on one CPU core.
"""

from fsa.recipes.presets import reward_model


def get_config(arg: str = "np-btl-deterministic"):
    """Returns the config of one model on the continuum."""
    config = reward_model(arg, "continuum")
    config.task.max_context = 20
    config.task.num_targets = 20
    if config.model.latent_dim:
        config.model.latent_dim = 32
    config.model.hidden = 128
    config.optimizer.learning_rate = 2e-3
    config.train.batch_size = 256
    config.train.steps = 4000
    config.train.validate_every = 1000
    config.train.average_decay = 0.99
    config.eval.num_context = (0, 1, 2, 5, 10, 20, 50)
    config.eval.num_targets = 20
    config.eval.users = 1000
    config.eval.valid_users = 500
    return config
