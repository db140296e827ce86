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
    config.eval.users = 20_000
    config.eval.valid_users = 1000
    return config
