"""The paper's synthetic task: two hidden types of user who agree on half of the pairs.

Kobalczyk et al. 2024, section 4.1. `--config=experiments/synthetic/two_types.py:MODEL`
with MODEL one of those in fsa/recipes/presets.py (default np-btl), or `noisy-MODEL` for
choices with Bradley-Terry-Luce noise.
"""

from fsa.recipes.presets import reward_model


def get_config(arg: str = "np-btl"):
    """Returns the config of one model on the exact or the noisy task."""
    noisy = arg.startswith("noisy-")
    config = reward_model(arg.removeprefix("noisy-"), "two_types")
    if noisy:
        config.task.slope = 10.0
    if config.model.reward == "linear":
        # A component for each type. Exact choices have infinite slopes, which layers
        # approach, and at which Laplace's approximation beat more sweeps.
        config.model.num_components = 2
        config.model.latent_dim = 4
        config.model.num_layers = 3
        config.model.num_sweeps = 0
        config.model.num_steps = 6
        config.train.steps = 2000
        config.train.batch_size = 32
        config.eval.num_samples = 16
    config.eval.users = 20_000
    config.eval.valid_users = 1000
    return config
