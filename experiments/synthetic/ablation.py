"""Ablations of NP-BTL: objective, pooling and size of the latent.

24 runs on the task of two_types.py, three seeds of each of eight settings:
`fsa sweep --config=experiments/synthetic/ablation.py --workdir=DIR`.
About 40 s a run on one core.
"""

from experiments.synthetic import two_types
from fsa.recipes.presets import grid


def get_config(arg: str = "np-btl"):
    """Returns the config that all runs share."""
    config = two_types.get_config(arg)
    config.eval.users = 5000
    return config


def get_sweep():
    """Returns the fields of each run; runs that differ in the seed are one setting."""
    return grid(
        **{
            # First, so that half of the runs already show every setting.
            "seed": (0, 1, 2),
            "objective.name": ("deterministic", "ml"),
            "model.pooling": ("mean", "attention"),
            "model.latent_dim": (1, 4),
        }
    )
