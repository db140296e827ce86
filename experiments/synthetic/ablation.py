"""What NP-BTL owes to its objective, its pooling and the size of its latent.

24 runs on the task of two_types.py, three seeds of each of eight settings:
`python -m launch.sweep --config=experiments/synthetic/ablation.py --workdir=DIR`.
About 40 s a run on one core.
"""

from experiments.synthetic import two_types
from fsa.recipes.presets import grid


def get_config(arg: str = "np-btl"):
    """What all runs share."""
    config = two_types.get_config(arg)
    config.eval.users = 5000
    return config


def get_sweep():
    """Fields of each run; runs that differ in the seed alone are one setting."""
    return grid(
        **{
            # First, so that half of the runs already show every setting.
            "seed": (0, 1, 2),
            "objective.name": ("deterministic", "ml"),
            "model.pooling": ("mean", "attention"),
            "model.latent_dim": (1, 4),
        }
    )
