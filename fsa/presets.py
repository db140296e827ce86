"""The presets of `fsa.recipes.presets`, to be imported from `fsa.presets`."""

from fsa.recipes.presets import (
    MODELS,
    POLICIES,
    grid,
    language_model,
    people,
    policy,
    policy_given_reward,
    policy_reward,
    reward_model,
)

__all__ = [
    "MODELS",
    "POLICIES",
    "grid",
    "language_model",
    "people",
    "policy",
    "policy_given_reward",
    "policy_reward",
    "reward_model",
]
