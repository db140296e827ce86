"""Linear models of choices: one for everybody, and one that a person's choices shift.

log p(a > b) = log sigmoid((w + v) . (x_a - x_b)), where w is the same for everybody and
v is a person's, with v ~ N(0, t^2 I) (Bradley-Terry-Luce, hierarchical). Both are MAP
estimates, which need no training to speak of.

Shapes: P choices, F features, N context choices, M target choices.
"""

from collections.abc import Sequence

import numpy as np
from scipy import optimize, special


def fit(differences: np.ndarray, std: float) -> np.ndarray:
    """Fits w by maximum a posteriori, given w ~ N(0, std^2 I), in float64.

    Args:
      differences: `[P, F]`, features of the chosen minus those of the rejected option.
      std: standard deviation of each weight a priori.

    Returns:
      w, `[F]`.
    """
    precision = std**-2

    def loss(w):
        odds = differences @ w
        value = np.logaddexp(0, -odds).sum() + precision / 2 * w @ w
        return value, precision * w - special.expit(-odds) @ differences

    start = np.zeros(differences.shape[1])
    return optimize.minimize(loss, start, jac=True, method="L-BFGS-B").x


def select(fitted: np.ndarray, held_out: np.ndarray, stds: Sequence[float]) -> float:
    """Returns the std of `fit` whose weights predict held-out choices best, by NLL.

    Args:
      fitted: `[P, F]`, differences to fit weights to.
      held_out: differences of other people, `[P', F]`.
      stds: the values to try.
    """

    def nll(std):
        return np.logaddexp(0, -held_out @ fit(fitted, std)).mean()

    return min(stds, key=nll)


def shifted_log_odds(
    context: np.ndarray,
    target: np.ndarray,
    inner: np.ndarray,
    cross: np.ndarray,
    steps: int = 30,
) -> np.ndarray:
    """Computes the log odds of target choices after v was inferred from a context.

    The mode of p(v | context) is v = sum_i a_i t^2 d_i over the context's differences
    d_i, with a_i = sigmoid(-log odds of choice i). It is found by the EM steps of
    Polson et al. 2013 (Bayesian inference for logistic models using Polya-Gamma latent
    variables), which cannot overshoot as Newton's do after a surprising choice. Axes
    before the last ones are a batch.

    Args:
      context: `[..., N]`, log odds of the context choices without v, d . w.
      target: `[..., M]`, those of the target choices.
      inner: `[..., N, N]`, t^2 times the inner products of the context's differences; 0
        in rows and columns of padding.
      cross: `[..., M, N]`, t^2 times those of the target's with the context's; 0 for
        padding of the context.
      steps: number of EM steps.

    Returns:
      `[..., M]`.
    """
    odds, a = context, np.zeros(())
    for _ in range(steps):
        # tanh(x / 2) / (2 x), which is 1/4 at 0.
        small = np.abs(odds) < 1e-6
        safe = np.where(small, 1.0, odds)
        weight = np.where(small, 0.25, np.tanh(safe / 2) / (2 * safe))
        left = np.eye(inner.shape[-1]) + weight[..., None] * inner
        a = np.linalg.solve(left, (0.5 - weight * context)[..., None])[..., 0]
        odds = context + (inner @ a[..., None])[..., 0]
    return target + (cross @ a[..., None])[..., 0]
