"""Compares a policy with the reward model that gives it z, over people.

A reward model that predicts a person's choices well need not make a policy that does:
published rank correlations of the two over people are .08 to .31.

Shapes: U users, C context sizes.
"""

from typing import Any

import numpy as np
import scipy  # scipy.stats, half a second, is imported where it is first used

from fsa.evaluation.predictions import Predictions
from fsa.evaluation.scores import right, user_means


def agreement(policy: Predictions, reward: Predictions) -> dict[str, list[Any]]:
    """Returns how often the reward model is right, and how far both agree over people.

    Args:
      policy: predictions by the policy's implicit reward.
      reward: those by its reward model, of the same users' choices.

    Returns:
      `reward_accuracy`, means over users, and `kendall_tau`, see `kendall_tau`: a value
      for each context size.
    """
    own, other = (
        user_means(right(found.log_prob), found.mask) for found in (policy, reward)
    )
    return {
        "reward_accuracy": other.mean(0).tolist(),
        "kendall_tau": kendall_tau(own, other),
    }


def kendall_tau(first: np.ndarray, second: np.ndarray) -> list[float | None]:
    """Returns Kendall's tau-b over users of two measures, for each context size.

    Args:
      first: `[U, C]`.
      second: `[U, C]`.

    Returns:
      C values; None where either measure is the same for all users.
    """
    found = [
        scipy.stats.kendalltau(*pair).statistic
        for pair in zip(first.T, second.T, strict=True)
    ]
    return [None if np.isnan(tau) else float(tau) for tau in found]
