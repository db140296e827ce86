"""Users who like what is near them, so that rewards are not linear in z.

r(x, z) = -4 |h(x) - z| with z ~ N(0, I_4) and a fixed random network h in R^4.
`--config=experiments/synthetic/ideal_point.py:MODEL` with MODEL one of those in
fsa/recipes/presets.py (default bayes). docs/results.md has figures.
"""

from experiments.synthetic import continuum


def get_config(arg: str = "bayes"):
    """Returns the config of one model on the task."""
    config = continuum.get_config(arg, "ideal_point")
    config.task.personal = 4.0
    if config.model.reward == "linear":
        # A function of z that is not linear is one of more dimensions, nearly.
        config.model.latent_dim = 16
        config.train.steps = 1200
        config.train.validate_every = 600
    config.eval.users = 500
    config.eval.valid_users = 200
    return config
