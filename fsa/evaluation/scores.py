"""Scores users nobody trained on, after contexts of several sizes.

The contexts of a user's episode are prefixes of one another and face the same targets,
so differences between sizes are not differences between targets. Shapes: U users, E
episodes of a user, C context sizes, M target choices, D latent dimensions.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from fsa import latent, losses
from fsa.data.tasks.task import Task, TestEpisode
from fsa.episodes import Choices, Episode
from fsa.models.reward import RewardModel, predict
from fsa.parallel import sharding

# Variance over users of a posterior mean that counts as active (Burda et al. 2016).
ACTIVE_VARIANCE = 0.01


class Predictions(NamedTuple):
    """What a model says about every target, in NumPy.

    Attributes:
      log_prob: `[U, E, C, M]`, log p(target | context) in nats.
      flipped: `[U, E, C, M]`, the same after the flipped context, with the same noise,
        or None.
      bayes: `[U, E, C, M]` of the Bayes-optimal predictor, or None.
      effective_samples: `[U, E, C]` of the Bayes estimate (inf if exact), or None.
      mask: `[U, E, M]`, which targets are real.
      informative: `[U, E, C]`, whether the flipped context differs from the context.
      target_differs: `[U, E, M]`, targets that the other type decides differently.
      latent_mean: `[U, E, C, D]`, of q(z | context), or None for a model without z.
      latent_kl: `[U, E, C, D]`, KL(q(z | context) || q(z | nothing)) in nats, or None.
      group: `[U]`.
    """

    log_prob: np.ndarray
    flipped: np.ndarray | None
    bayes: np.ndarray | None
    effective_samples: np.ndarray | None
    mask: np.ndarray
    informative: np.ndarray
    target_differs: np.ndarray
    latent_mean: np.ndarray | None
    latent_kl: np.ndarray | None
    group: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class FewShotPredictor:
    """Predicts the targets of all users of a split; compiled once, called often.

    Attributes:
      model: any reward model.
      task: whose users are scored.
      split: "valid" or "test".
      num_context: context sizes, at most the task's test context.
      episodes_per_user: E.
      num_samples: of z.
      deterministic: use the posterior mean of z alone.
      key: the same key draws the same episodes.
      diagnose: also predict after flipped contexts, and as the Bayes-optimal predictor
        does where the task knows it; otherwise those are None.
      examples_at_once: episodes predicted together, a matter of memory.
    """

    model: RewardModel
    task: Task
    split: str
    _: dataclasses.KW_ONLY
    num_context: tuple[int, ...]
    episodes_per_user: int
    num_samples: int
    deterministic: bool
    key: jax.Array
    diagnose: bool = True
    examples_at_once: int = 128

    def __call__(self, variables) -> Predictions:
        """Predictions of a model with these Flax variables."""
        users = self._users
        # Padded to whole batches: a remainder would double the time to compile.
        padded = jnp.pad(users, (0, -len(users) % self._at_once), mode="edge")
        out = sharding.fetch(self._run(variables, self.task.constants, padded))
        out = out._replace(group=out.group[:, 0])
        # Pairs drawn from judgements may leave a user without any target.
        scored = out.mask[: len(users)].any((1, 2))
        return jax.tree.map(lambda x: x[: len(users)][scored], out)

    @functools.cached_property
    def _users(self) -> np.ndarray:
        return self.task.users(self.split)

    @property
    def _at_once(self) -> int:
        return max(1, self.examples_at_once // self.episodes_per_user)

    @functools.cached_property
    def _run(self):
        @jax.jit
        def run(variables, constants, users):
            episodes = jnp.arange(self.episodes_per_user)

            def of_user(user):
                return jax.vmap(
                    lambda episode: self._score(variables, constants, user, episode)
                )(episodes)

            return jax.lax.map(of_user, users, batch_size=self._at_once)

        return run

    def _score(self, variables, constants, user, episode) -> Predictions:
        """One episode of one user, at all context sizes."""
        draw_key, key = jax.random.split(jax.random.fold_in(self.key, episode))
        test = self.task.test_episode(constants, self.split, user, draw_key)
        key = jax.random.fold_in(key, user)
        scored = jax.vmap(lambda n: self._score_at(variables, test, n, key))(
            jnp.asarray(self.num_context)
        )
        return Predictions(
            **scored,
            mask=test.episode.target.mask,
            target_differs=test.target_differs,
            group=test.episode.group,
        )

    def _score_at(self, variables, test: TestEpisode, n, key) -> dict:
        """The fields of `Predictions` that depend on the context size n."""
        first = jnp.arange(test.context_differs.shape[0]) < n

        def seen(context: Choices) -> Episode:
            context = context._replace(mask=context.mask & first)
            return test.episode._replace(context=context)

        def log_prob(episode: Episode) -> jax.Array:
            return predict(
                self.model,
                variables,
                episode,
                key,
                num_samples=self.num_samples,
                deterministic=self.deterministic,
            )

        episode = seen(test.episode.context)
        fields = dict.fromkeys(
            ("flipped", "bayes", "effective_samples", "latent_mean", "latent_kl")
        )
        fields["log_prob"] = log_prob(episode)
        fields["informative"] = jnp.any(test.context_differs & first)
        if self.model.latent_dim:
            empty = episode.context._replace(mask=jnp.zeros_like(first))
            q, prior = (
                self.model.apply(variables, context, method=self.model.encode)
                for context in (episode.context, empty)
            )
            fields["latent_mean"] = q.mean
            fields["latent_kl"] = latent.kl_per_dimension(q, prior)
        if self.diagnose:
            fields["flipped"] = log_prob(seen(test.flipped))
            if best := self.task.bayes_log_prob(episode, key):
                fields["bayes"], fields["effective_samples"] = best
        return fields


def right(log_prob: np.ndarray) -> np.ndarray:
    """1 where the chosen option was given more than 1/2, 1/2 at a tie, else 0."""
    gap = np.exp(log_prob) - 0.5
    return np.where(np.abs(gap) < 1e-6, 0.5, gap > 0)


def user_means(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Means over the real targets of all episodes of a user.

    Args:
      values: `[U, E, C, M]`.
      mask: `[U, E, M]`.

    Returns:
      `[U, C]`.
    """
    weight = mask[:, :, None, :]
    return np.where(weight, values, 0).sum((1, 3)) / weight.sum((1, 3))


def interval(values: np.ndarray, num_resamples: int, seed: int = 0) -> np.ndarray:
    """95% bootstrap interval of the mean over users.

    Args:
      values: `[U, C]`, a value a user.
      num_resamples: of the bootstrap.
      seed: of the bootstrap.

    Returns:
      `[C, 2]`, low and high; NaN with fewer than two users.
    """
    if len(values) < 2:
        return np.full((values.shape[1], 2), np.nan)
    result = stats.bootstrap(
        (values,),
        np.mean,
        axis=0,
        n_resamples=num_resamples,
        method="percentile",
        batch=50,
        rng=np.random.default_rng(seed),
    )
    bounds = result.confidence_interval
    return np.stack([bounds.low, bounds.high], axis=-1)


def confidence(log_prob: np.ndarray, mask: np.ndarray):
    """Confidence in the predicted option, and whether it was right, of real targets.

    Taken over the predicted option rather than the chosen one, both of which exist
    whatever order the options were shown in.
    """
    p = np.exp(log_prob[mask])
    return np.maximum(p, 1 - p), right(log_prob[mask])


def calibration(
    log_prob: np.ndarray, mask: np.ndarray, seed: int = 0
) -> tuple[float, float]:
    """ECE over 10 bins of equal mass, and that of a perfectly calibrated model.

    The latter is the mean over 20 simulations in which every prediction is right with
    the very probability it states: with finitely many predictions it is not 0.

    Args:
      log_prob: `[..., M]` of one context size.
      mask: `[..., M]`.
      seed: of the simulations.
    """
    stated, correct = confidence(log_prob, mask)
    simulated = np.random.default_rng(seed).uniform(size=(20, *stated.shape)) < stated
    # Together, so that the predictions are sorted once.
    errors = _calibration_errors(stated, np.concatenate([correct[None], simulated]))
    return float(errors[0]), float(np.mean(errors[1:]))


_calibration_errors = jax.jit(
    jax.vmap(losses.expected_calibration_error, in_axes=(None, 0))
)


def flip_rate(predictions: Predictions) -> list[float | None]:
    """Of the targets that the two types decide differently, the share that flips.

    Only contexts that differ count: those with at least one pair that the types decide
    differently. None where there is no such target, as at n = 0.
    """
    flips = right(predictions.log_prob) != right(predictions.flipped)
    counts = predictions.informative[..., None] & predictions.target_differs[:, :, None]
    total = counts.sum((0, 1, 3))
    hits = (flips & counts).sum((0, 1, 3))
    return [float(h / t) if t else None for h, t in zip(hits, total, strict=True)]


def summarize(predictions: Predictions, num_resamples: int) -> dict:
    """Accuracy, NLL and their like of some users, as lists over context sizes."""
    mask = predictions.mask
    accuracy = user_means(right(predictions.log_prob), mask)
    nll = user_means(-predictions.log_prob, mask)
    summary = {
        "users": len(mask),
        "accuracy": accuracy.mean(0).tolist(),
        "accuracy_ci": interval(accuracy, num_resamples).tolist(),
        "nll": nll.mean(0).tolist(),
        "nll_ci": interval(nll, num_resamples).tolist(),
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
        best = user_means(right(predictions.bayes), mask)
        summary["ceiling_accuracy"] = best.mean(0).tolist()
        summary["ceiling_nll"] = user_means(-predictions.bayes, mask).mean(0).tolist()
    return summary


def diagnose(predictions: Predictions, task: Task) -> dict:
    """Whether z is used: active units, KL per dimension and the flip test."""
    sizes = predictions.log_prob.shape[2]
    variance, kl = np.zeros((2, sizes, 0))
    if predictions.latent_mean is not None:
        # One context a user, so that the variance is over users alone.
        variance = predictions.latent_mean[:, 0].var(axis=0)
        kl = predictions.latent_kl.mean((0, 1))
    diagnostics = {
        "latent_dim": variance.shape[-1],
        "active_units": (variance > ACTIVE_VARIANCE).sum(-1).tolist(),
        "kl_per_dimension": kl.tolist(),
        "flip_rate": flip_rate(predictions),
        "flips_are_types": task.flips_are_types,
    }
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
    """Everything `evaluation.json` holds; shares and probabilities are in [0, 1]."""
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
