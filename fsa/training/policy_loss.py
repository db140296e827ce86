"""The loss of policies over a batch of users: NP-DPO and its baselines.

A batch is `({"base": variables of the language model}, PairBatch)`. The base is a
constant of every step and not part of the state, so that checkpoints contain only what
is trained. For "distillation" the constants have `reward_std`, too.

Shapes: M target choices, of which the policy reads the first P; 2 is (chosen,
rejected); T tokens.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fsa import episodes, latent, losses
from fsa.data.tasks.packing import Rows
from fsa.data.tasks.pairs import PackedBatch, PairBatch
from fsa.episodes import Choices, Episode, Options
from fsa.models.policy import INFERRED, Policy
from fsa.models.reward import draw_latent, episode_loss
from fsa.parallel.sharding import replicated, vmap_examples
from fsa.training.row_loop import sum_over_rows
from fsa.training.step import LossFn

DISTILLATION = "distillation"
LOSSES = ("dpo", "ipo", DISTILLATION)


def make_loss(
    policy: Policy,
    *,
    loss: str = "dpo",
    beta: float = 1.0,
    label_smoothing: float = 0.0,
    clip: float = 1.5,
    nll_weight: float = 2.0,
    reward_weight: float = 0.0,
    reward_steps: int = 0,
    objective: str = "deterministic",
    kl_weight: float = 1.0,
    num_samples: int = 4,
    rows_at_once: int = 1,
) -> LossFn:
    """Makes the mean loss of a batch of users.

    The loss is -log p of the choices under the policy's implicit reward, plus
    `nll_weight` times the chosen response's negative log-likelihood per token (as in
    Pang et al. 2024, equation 2). Without the second term the policy lowers the loss by
    making both responses unlikely.

    With "distillation" the targets are pairs of responses that nobody chose between.
    The implicit reward is regressed onto the reward at z, in units of the constant
    `reward_std`, and z is that of the user or lies on the way to somebody else, see
    `_latent_on_the_way`. In place of the chosen response there is the one with the
    higher reward.

    Args:
      policy: the policy to train; for "distillation" with a frozen reward model.
      loss: "dpo", "ipo" or "distillation".
      beta: see `losses.dpo`.
      label_smoothing: see `losses.dpo`; for "dpo" alone.
      clip: see `losses.distillation`; for "distillation" alone.
      nll_weight: weight of the negative log-likelihood, see above.
      reward_weight: weight of the reward model's loss, NP-BTL on the same episodes,
        which keeps the reward model fit to re-rank responses.
      reward_steps: number of first steps in which only the reward model is trained, so
        that z is informative before the policy depends on it.
      objective: how z is drawn for the policy (one sample), and the objective of the
        reward model; see `fsa.models.reward.OBJECTIVES`.
      kl_weight: weight of the KL, for objectives that have one.
      num_samples: samples of z for the reward model's objective.
      rows_at_once: of a packed batch, how many rows each device computes at once.

    Returns:
      A loss with the metrics `accuracy` and `margin` of the implicit reward, `nll` per
      token of the chosen responses, and `kl`, 0 for objectives without one. In the
      first `reward_steps` steps these are those of `episode_loss`, and `margin` is 0.
      Two more metrics are means over users: `choices`, the number of target choices,
      and `tokens`, the number in both responses of the choices that the policy reads.

    Raises:
      ValueError: if `loss` has another name.
    """
    parts = _Parts(
        policy,
        loss,
        _loss_of_pair(loss, beta=beta, label_smoothing=label_smoothing, clip=clip),
        beta=beta,
        nll_weight=nll_weight,
        reward_weight=reward_weight,
        objective=objective,
        kl_weight=kl_weight,
        num_samples=num_samples,
        rows_at_once=rows_at_once,
    )

    def loss_fn(variables, batch, key):
        constants, examples = batch
        variables = policy.gathered(variables)

        def policy_loss():
            if isinstance(examples, PackedBatch):
                return parts.of_packed(variables, constants, examples, key)
            return _mean(
                lambda example, k: parts.of_user(variables, constants, example, k),
                examples,
                key,
            )

        def reward_loss():
            return _mean(
                lambda example, k: parts.of_reward(variables, example, k), examples, key
            )

        if reward_steps:
            first = examples.step[0] < reward_steps
            total, metrics = jax.lax.cond(first, reward_loss, policy_loss)
        else:
            total, metrics = policy_loss()
        return total, metrics | _counts(examples)

    return loss_fn


@dataclasses.dataclass(frozen=True, eq=False)
class _Parts:
    """The parts of a loss; for the settings see `make_loss`.

    Attributes:
      of_pair: see `_loss_of_pair`.
    """

    policy: Policy
    loss: str
    of_pair: Callable[[jax.Array, jax.Array, jax.Array | None], jax.Array]
    beta: float
    nll_weight: float
    reward_weight: float
    objective: str
    kl_weight: float
    num_samples: int
    rows_at_once: int

    def steered(self, variables, constants, example, key):
        """Returns z of a user, its KL, and for distillation the rewards' differences.

        These are `[M]`, of the first minus the second response of each target.
        """
        if self.loss != DISTILLATION:
            z, divergence = _latent(
                self.policy, variables, example, key, self.objective
            )
            return z, divergence, jnp.zeros(len(example.episode.target.mask))
        z = _latent_on_the_way(self.policy, variables, example.episode.context, key)
        gap = _reward_gap(self.policy, variables, example.episode.target, z)
        return z, jnp.float32(0), gap / constants["reward_std"]

    def of_pairs(self, log_probs, reference, lengths, gap):
        """Returns the loss and metrics of pairs, `[P]` each."""
        if self.loss == DISTILLATION:
            # The response with the higher reward takes the place of the chosen one.
            order = jnp.where(gap[:, None] >= 0, jnp.array([0, 1]), jnp.array([1, 0]))
            log_probs, reference, lengths = (
                jnp.take_along_axis(x, order, axis=1)
                for x in (log_probs, reference, lengths)
            )
            gap = jnp.abs(gap)
        ratio = log_probs - reference
        nll = -log_probs[:, 0] / jnp.maximum(lengths[:, 0], 1)
        margin = self.beta * (ratio[:, 0] - ratio[:, 1])
        return {
            "loss": self.of_pair(ratio[:, 0], ratio[:, 1], gap) + self.nll_weight * nll,
            "nll": nll,
            "margin": margin,
            "accuracy": (margin > 0).astype(jnp.float32),
        }

    def beside_pairs(self, variables, example, key, divergence, count):
        """Returns what the loss of a user has beside the mean over pairs."""
        total = self.kl_weight * divergence / count
        if self.reward_weight:
            total += self.reward_weight * self.of_reward(variables, example, key)[0]
        return total

    def of_user(self, variables, constants, example: PairBatch, key):
        """Returns the loss and metrics of one user, whose texts are padded."""
        z, divergence, gap = self.steered(variables, constants, example, key)
        log_probs = self.policy.pair_log_probs(
            variables, constants["base"], z, example.responses
        )
        lengths = example.responses.stop - example.responses.start
        means = self.of_pairs(
            log_probs, example.reference, lengths, gap[: len(lengths)]
        )
        mask = example.episode.target.mask[: len(lengths)]
        count = jnp.maximum(mask.sum(), 1)
        means = {name: jnp.sum(x, where=mask) / count for name, x in means.items()}
        total = means.pop("loss")
        total += self.beside_pairs(variables, example, key, divergence, count)
        return total, {**means, "kl": divergence}

    def of_row(self, params, constants, row: Rows):
        """Returns a row's share in the sums over users of means over their pairs."""
        variables, z, gap = params
        real = row.pair >= 0
        log_probs = self.policy.row_log_probs(
            variables, constants["base"], z[row.user], row.tokens
        )
        means = self.of_pairs(
            log_probs,
            row.reference,
            row.tokens.stop - row.tokens.start,
            gap[row.user, jnp.maximum(row.pair, 0)],
        )
        weight = jnp.where(real, 1 / constants["count"][row.user], 0)
        means = {name: jnp.sum(weight * x) for name, x in means.items()}
        return means.pop("loss"), means

    def of_packed(self, variables, constants, examples: PackedBatch, key):
        """Returns the mean loss and metrics of users whose texts share rows."""
        users = len(examples.step)
        count = jnp.maximum(examples.pairs, 1)

        def of_example(example):
            own_key = episodes.example_key(key, example.step, example.position)
            z, divergence, gap = self.steered(variables, constants, example, own_key)
            beside = self.beside_pairs(
                variables, example, own_key, divergence, jnp.maximum(example.pairs, 1)
            )
            return z, gap, beside, divergence

        of_users = examples._replace(rows=())
        z, gap, beside, divergence = vmap_examples(of_example)(of_users)
        # Of the variables the rows need those alone that are trained.
        params = {"params": variables["params"]}, *replicated((z, gap))
        shared = {"base": constants["base"], "count": replicated(count)}
        total, sums = sum_over_rows(
            self.of_row, params, shared, examples.rows, self.rows_at_once
        )
        metrics = {name: x / users for name, x in sums.items()}
        metrics["kl"] = jnp.mean(divergence)
        return total / users + jnp.mean(beside), metrics

    def of_reward(self, variables, example: PairBatch, key):
        """Returns the loss and metrics of the reward model for one user."""
        total, metrics = episode_loss(
            self.policy.reward_model,
            self.policy.reward_variables(variables),
            example.episode,
            key,
            objective=self.objective,
            num_samples=self.num_samples,
            beta=self.kl_weight,
        )
        return total, {"margin": jnp.float32(0), "kl": jnp.float32(0), **metrics}


def _loss_of_pair(
    loss: str, *, beta: float, label_smoothing: float, clip: float
) -> Callable[[jax.Array, jax.Array, jax.Array | None], jax.Array]:
    """Returns a loss of the log ratios of two responses and their rewards' difference.

    Raises:
      ValueError: if `loss` is none of `LOSSES`.
    """
    if loss == "dpo":
        return lambda first, second, _: losses.dpo(
            first, second, beta=beta, label_smoothing=label_smoothing
        )
    if loss == "ipo":
        return lambda first, second, _: losses.ipo(first, second, beta=beta)
    if loss == DISTILLATION:
        return lambda first, second, gap: losses.distillation(
            first, second, gap, beta=beta, clip=clip
        )
    raise ValueError(f"`loss`={loss!r} must be one of {LOSSES}")


def _mean(fn, examples: PairBatch | PackedBatch, key: jax.Array):
    """Returns means over users of the (loss, metrics) of `fn(example, its key)`."""

    def one(example):
        return fn(example, episodes.example_key(key, example.step, example.position))

    total, metrics = vmap_examples(one)(examples)
    return jnp.mean(total), jax.tree.map(jnp.mean, metrics)


def _counts(examples: PairBatch | PackedBatch) -> dict[str, jax.Array]:
    """Returns the metrics that count choices and tokens."""
    real = examples.episode.target.mask
    if isinstance(examples, PackedBatch):
        tokens = sum(rows.tokens.stop.max((-2, -1)).sum() for rows in examples.rows)
    else:
        stop = examples.responses.stop
        tokens = jnp.sum(stop, where=real[:, : stop.shape[1], None])
    users = len(real)
    return {"choices": real.sum() / users, "tokens": tokens / users}


def _latent(policy: Policy, variables, example: PairBatch, key, objective: str):
    """Returns z of one user, and the KL of the objective, 0 if it has none."""
    if policy.latent != INFERRED:
        z = policy.latent_of(variables, example.episode.context, example.episode.group)
        return z, jnp.float32(0)
    z, q, prior = draw_latent(
        lambda choices: policy.encode(variables, choices),
        example.episode,
        key,
        objective=objective,
        num_samples=1,
    )
    return z[0], jnp.float32(0) if prior is None else latent.kl(q, prior)


def _latent_on_the_way(
    policy: Policy, variables, context: Choices, key: jax.Array
) -> jax.Array:
    """Draws z `[D]` that distillation steers to.

    Half of the time it is the user's, as it will be when the policy is used. Otherwise
    it is a random point on the way from there to somebody whom the prior draws, so that
    the policy is trained between people and for people who are in no data.
    """
    who_key, walk_key, share_key = jax.random.split(key, 3)
    # Of the user and of nobody at once: to compile an inference takes seconds.
    found = jax.vmap(
        lambda n: policy.encode(variables, episodes.first_choices(context, n))
    )(jnp.array([len(context.mask), 0]))
    own = found.mean[0]
    nobody = jax.tree.map(lambda x: x[1], found)
    other = latent.mean_or_samples(nobody, who_key, 1, deterministic=False)[0]
    walks = jax.random.bernoulli(walk_key)
    return own + walks * jax.random.uniform(share_key) * (other - own)


def _reward_gap(policy: Policy, variables, pairs: Choices, z: jax.Array) -> jax.Array:
    """Returns the rewards at z of the first minus those of the second, `[M]`."""
    sides = pairs.chosen, pairs.rejected
    first, second = (policy.reward(variables, side, z) for side in sides)
    return first - second


def reward_std(
    policy: Policy, variables: Any, found: Sequence[Episode], key: jax.Array
) -> jax.Array:
    """Measures how far apart rewards are that distillation regresses onto.

    Rewards of people who choose without noise grow without bound, by another factor in
    each training. In units of this number they are alike in all.

    Args:
      policy: a policy with a frozen reward model.
      variables: its variables.
      found: episodes of batches of users, whose targets are the pairs.
      key: a JAX random key.

    Returns:
      The root mean square of reward differences at the z that are trained on, in nats.
    """

    @jax.jit
    @jax.vmap
    def of_user(episode, key):
        z = _latent_on_the_way(policy, variables, episode.context, key)
        gap, mask = (
            _reward_gap(policy, variables, episode.target, z),
            episode.target.mask,
        )
        return jnp.sum(gap**2, where=mask), mask.sum()

    squares, count = 0.0, 0
    for index, episode in enumerate(found):
        keys = jax.random.split(jax.random.fold_in(key, index), len(episode.group))
        more, pairs = of_user(episode, keys)
        squares, count = squares + more.sum(), count + pairs.sum()
    return jnp.sqrt(squares / count)


def rewards_of_people(
    policy: Policy,
    variables: Any,
    features: np.ndarray,
    context: Choices,
    key: jax.Array,
    num_people: int = 64,
) -> np.ndarray:
    """Computes the rewards that people whom the prior draws give to responses.

    Args:
      policy: a policy with a frozen reward model.
      variables: its variables.
      features: `[B, F]`, of responses.
      context: anybody's choices, of which nothing but the shape counts.
      key: a JAX random key.
      num_people: K.

    Returns:
      `[B, K]`, in nats.
    """

    @jax.jit
    def compute(features, context):
        nobody = policy.encode(variables, episodes.first_choices(context, 0))
        z = latent.mean_or_samples(nobody, key, num_people, deterministic=False)
        options = Options(features, jnp.full(len(features), -1))
        return jax.vmap(lambda z: policy.reward(variables, options, z), out_axes=1)(z)

    return np.asarray(compute(features, context))


def init_variables(
    policy: Policy,
    base: Any,
    statistics: tuple,
    key: jax.Array,
    reward_variables: Any = None,
):
    """Returns the initial variables of a policy.

    Args:
      policy: the policy.
      base: the language model's variables.
      statistics: (mean, standard deviation) from `PairTask.statistics`, which a reward
        model that is trained here gets.
      key: a JAX random key.
      reward_variables: the variables of a frozen reward model.
    """
    mean, std = (jnp.asarray(x, jnp.float32) for x in statistics)
    variables = policy.init(key, base, len(mean))
    if policy.frozen_reward:
        return {**variables, "reward": reward_variables}
    return {**variables, "statistics": {"options": {"mean": mean, "std": std}}}
