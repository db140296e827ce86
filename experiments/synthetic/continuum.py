"""A continuum of users: z ~ N(0, I_4) weighs nonlinear features of items in R^8.

`--config=experiments/synthetic/continuum.py:MODEL` with MODEL one of those in
fsa/recipes/presets.py (default bayes). `bayes` is trained on 40 choices of a user, the
others on up to 20 in context; all are scored on up to 50. docs/results.md has figures.
"""

from fsa.recipes.presets import reward_model


def get_config(arg: str = "bayes", task: str = "continuum"):
    """Returns the config of one model on a task whose users are z ~ N(0, I_4)."""
    config = reward_model(arg, task)
    config.train.average_decay = 0.99
    config.train.validate_every = 1000
    if config.model.reward == "linear":
        # All 40 choices of a user at once, which need no split for this objective.
        config.objective.name = "evidence"
        config.task.max_context = 0
        config.task.num_targets = 40
        config.model.hidden = 192
        config.optimizer.learning_rate = 4e-3
        config.train.batch_size = 128
        config.train.steps = 3000
    else:
        config.task.max_context = 20
        config.task.num_targets = 20
        if config.model.latent_dim:
            config.model.latent_dim = 32
        config.model.hidden = 128
        config.optimizer.learning_rate = 2e-3
        config.train.batch_size = 256
        config.train.steps = 4000
    config.eval.num_context = (0, 1, 2, 5, 10, 20, 50)
    config.eval.num_targets = 20
    config.eval.users = 1000
    config.eval.valid_users = 500
    return config
