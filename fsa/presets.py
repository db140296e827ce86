"""The presets of `fsa.recipes.presets`, to be imported from `fsa.presets`."""

from fsa.recipes.presets import (
    MODELS,
    POLICIES,
    grid,
    language_model,
    people,
    policy,
    reward_model,
)

__all__ = [
    "MODELS",
    "POLICIES",
    "grid",
    "language_model",
    "people",
    "policy",
    "reward_model",
]
