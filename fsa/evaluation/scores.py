"""Scores of predictions: accuracy, NLL, calibration, and whether z is used.

Shapes: U users, E episodes of a user, C context sizes, M target choices, D latent
dimensions.
"""

import jax
import numpy as np
import scipy  # scipy.stats, half a second, is imported where it is first used

from fsa import losses
from fsa.data.tasks.task import Task
from fsa.evaluation.predictions import Predictions

# Numbers that a step of the computations below holds at most.
_MOST_NUMBERS = 2**22

# Simulated predictors that `calibration` compares with.
_SIMULATIONS = 20

# Variance over users of a posterior mean that counts as active (Burda et al. 2016).
ACTIVE_VARIANCE = 0.01


def right(log_prob: np.ndarray) -> np.ndarray:
    """Returns 1 where the chosen option has more than 1/2, 1/2 at a tie, else 0."""
    gap = np.exp(log_prob) - 0.5
    return np.where(np.abs(gap) < 1e-6, 0.5, gap > 0)


def user_means(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Averages over the real targets of all episodes of each user.

    Args:
      values: `[U, E, C, M]`.
      mask: `[U, E, M]`.

    Returns:
      `[U, C]`.
    """
    weight = mask[:, :, None, :]
    return np.where(weight, values, 0).sum((1, 3)) / weight.sum((1, 3))


def bootstrap_interval(
    values: np.ndarray, num_resamples: int, seed: int = 0
) -> np.ndarray:
    """Computes the 95% bootstrap interval of the mean over users.

    Args:
      values: `[U, C]`, one value for each user.
      num_resamples: how often users are drawn again, with replacement.
      seed: seed of these draws.

    Returns:
      `[C, 2]`, low and high; NaN with fewer than two users.
    """
    if len(values) < 2:
        return np.full((values.shape[1], 2), np.nan)
    result = scipy.stats.bootstrap(
        (values,),
        np.mean,
        axis=0,
        n_resamples=num_resamples,
        method="percentile",
        batch=max(1, min(50, _MOST_NUMBERS // values.size)),
        rng=np.random.default_rng(seed),
    )
    bounds = result.confidence_interval
    return np.stack([bounds.low, bounds.high], axis=-1)


def confidence(log_prob: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the confidence in the predicted option, and whether it was chosen.

    The predicted option of a pair is the one with the larger probability. It does not
    depend on the order in which the options were shown.

    Args:
      log_prob: `[..., M]`.
      mask: `[..., M]`, which targets are real; the others are left out.

    Returns:
      Two arrays with one entry for each real target; a tie counts as 1/2 right.
    """
    p = np.exp(log_prob[mask])
    return np.maximum(p, 1 - p), right(log_prob[mask])


def calibration(
    log_prob: np.ndarray, mask: np.ndarray, seed: int = 0
) -> tuple[float, float]:
    """Computes the ECE over 10 bins of equal mass, and that of a calibrated model.

    The latter is the mean over 20 simulations in which every prediction is right with
    exactly the probability that it states: with finitely many predictions it is not 0.

    Args:
      log_prob: `[..., M]` of one context size.
      mask: `[..., M]`.
      seed: seed of the simulations.
    """
    stated, correct = confidence(log_prob, mask)
    rng = np.random.default_rng(seed)
    rows = 1 + _SIMULATIONS
    # In few calls, since each sorts the predictions; in one, unless they are very many.
    together = min(rows, max(1, _MOST_NUMBERS // max(stated.size, 1)))
    errors = []
    for first in range(0, rows, together):
        part = np.empty((min(together, rows - first), *stated.shape), correct.dtype)
        for i, row in enumerate(part, first):
            row[:] = rng.uniform(size=stated.shape) < stated if i else correct
        errors += list(_calibration_errors(stated, part))
    return float(errors[0]), float(np.mean(errors[1:]))


_calibration_errors = jax.jit(
    jax.vmap(losses.expected_calibration_error, in_axes=(None, 0))
)


def flip_rate(predictions: Predictions) -> list[float | None]:
    """Computes how often the prediction changes when the context is flipped.

    Counted are the targets that the two types of users decide differently, after
    contexts with at least one choice that they decide differently. None where there is
    no such target, as at n = 0.
    """
    flips = right(predictions.log_prob) != right(predictions.flipped)
    counts = predictions.informative[..., None] & predictions.target_differs[:, :, None]
    total = counts.sum((0, 1, 3))
    hits = (flips & counts).sum((0, 1, 3))
    return [float(h / t) if t else None for h, t in zip(hits, total, strict=True)]


def interval_coverage(predictions: Predictions) -> list[float] | None:
    """Computes how often the true log odds of a target are in their 90% interval.

    Returns:
      The share for each context size; None if true log odds are not known.
    """
    if predictions.log_odds is None:
        return None
    low, high = np.moveaxis(predictions.interval, -1, 0)
    true = predictions.log_odds[:, :, None]
    covered = (low <= true) & (true <= high)
    weight = np.broadcast_to(predictions.mask[:, :, None], covered.shape)
    return np.average(covered, axis=(0, 1, 3), weights=weight).tolist()


def summarize(predictions: Predictions, num_resamples: int) -> dict:
    """Computes accuracy, NLL and calibration of users, as lists over context sizes.

    The gain is the accuracy minus that at the first context size, of the same users.
    """
    mask = predictions.mask
    accuracy = user_means(right(predictions.log_prob), mask)
    gain = accuracy - accuracy[:, :1]
    nll = user_means(-predictions.log_prob, mask)
    summary = {
        "users": len(mask),
        "accuracy": accuracy.mean(0).tolist(),
        "accuracy_ci": bootstrap_interval(accuracy, num_resamples).tolist(),
        "gain": gain.mean(0).tolist(),
        "gain_ci": bootstrap_interval(gain, num_resamples).tolist(),
        "nll": nll.mean(0).tolist(),
        "nll_ci": bootstrap_interval(nll, num_resamples).tolist(),
    }
    sizes = range(accuracy.shape[1])
    errors = [
        calibration(predictions.log_prob[:, :, c], mask.astype(bool)) for c in sizes
    ]
    summary["ece"], summary["ece_if_calibrated"] = (
        list(x) for x in zip(*errors, strict=True)
    )
    summary["ceiling_accuracy"] = summary["ceiling_nll"] = None
    if predictions.bayes is not None:
        accuracy = user_means(right(predictions.bayes), mask)
        summary["ceiling_accuracy"] = accuracy.mean(0).tolist()
        summary["ceiling_nll"] = user_means(-predictions.bayes, mask).mean(0).tolist()
    return summary


def diagnose(predictions: Predictions, task: Task) -> dict:
    """Measures whether z is used: active units, KL per dimension and the flip test.

    With them are the coverage of intervals and how often the steps that infer z, or
    samples of the Bayes-optimal predictor, have converged, where there are any.
    """
    sizes = predictions.log_prob.shape[2]
    variance, kl = np.zeros((2, sizes, 0))
    if predictions.latent_mean is not None:
        # One context of each user, so that the variance is over users alone.
        variance = predictions.latent_mean[:, 0].var(axis=0)
        kl = predictions.latent_kl.mean((0, 1))
    diagnostics = {
        "latent_dim": variance.shape[-1],
        "active_units": (variance > ACTIVE_VARIANCE).sum(-1).tolist(),
        "kl_per_dimension": kl.tolist(),
        "flip_rate": flip_rate(predictions),
        "flips_are_types": task.flips_are_types,
    }
    if predictions.converged is not None:
        diagnostics["converged"] = predictions.converged.mean((0, 1)).tolist()
    if predictions.interval is not None:
        diagnostics["interval_coverage"] = interval_coverage(predictions)
    if predictions.effective_samples is not None:
        effective = predictions.effective_samples
        if np.isfinite(effective).all():
            diagnostics["bayes_effective_samples"] = {
                "median": np.median(effective, axis=(0, 1)).tolist(),
                "5th_percentile": np.quantile(effective, 0.05, axis=(0, 1)).tolist(),
            }
    return diagnostics


def evaluation(
    predictions: Predictions,
    task: Task,
    num_context: tuple[int, ...],
    *,
    num_resamples: int = 1000,
) -> dict:
    """Returns the content of `evaluation.json`; shares are in [0, 1]."""
    groups = {}
    for index, name in enumerate(task.groups):
        members = np.flatnonzero(predictions.group == index)
        if len(members) and len(task.groups) > 1:
            part = jax.tree.map(lambda x, m=members: x[m], predictions)
            groups[name] = summarize(part, num_resamples)
    return {
        "n_context": list(num_context),
        **summarize(predictions, num_resamples),
        "groups": groups,
        "diagnostics": diagnose(predictions, task),
    }
