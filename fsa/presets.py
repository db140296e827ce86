"""The presets of `fsa.recipes.presets`, to be imported from `fsa.presets`."""

from fsa.recipes.presets import (
    MODELS,
    POLICIES,
    STAGES,
    grid,
    language_model,
    people,
    policy,
    reward_model,
    stage,
)

__all__ = [
    "MODELS",
    "POLICIES",
    "STAGES",
    "grid",
    "language_model",
    "people",
    "policy",
    "reward_model",
    "stage",
]
