"""The loss of policies over a batch of users: NP-DPO and its baselines.

A batch is `({"base": parameters of the language model}, PairBatch)`: the base is an
argument of every step and no part of the state, so that checkpoints hold only what is
trained. Shapes: M target choices, the first P of which the policy reads, 2 is (chosen,
rejected), T tokens.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from fsa import episodes, latent, losses
from fsa.data.tasks.pairs import PairBatch
from fsa.models.policy import INFERRED, Policy
from fsa.models.reward import episode_loss, infer
from fsa.parallel.sharding import vmap_examples
from fsa.training.step import LossFn

LOSSES = ("dpo", "ipo")


def make_loss(
    policy: Policy,
    *,
    loss: str = "dpo",
    beta: float = 1.0,
    label_smoothing: float = 0.0,
    nll_weight: float = 2.0,
    reward_weight: float = 0.0,
    reward_steps: int = 0,
    objective: str = "deterministic",
    kl_weight: float = 1.0,
    num_samples: int = 4,
) -> LossFn:
    """The mean loss of a batch of users.

    -log p of the choices under the policy's implicit reward, plus `nll_weight` times
    the chosen response's negative log-likelihood per token, without which the policy
    wins by ruining both texts (as in Pang et al. 2024, equation 2).

    Args:
      policy: what is trained.
      loss: "dpo" or "ipo".
      beta: see `losses.dpo`.
      label_smoothing: see `losses.dpo`; not for "ipo".
      nll_weight: see above.
      reward_weight: of the reward model's loss, NP-BTL on the same episodes, beside the
        policy's; with it the reward model stays fit to re-rank what is written.
      reward_steps: for so many steps first only the reward model is trained, so that z
        says something before the policy listens.
      objective: how z is drawn for the policy, and the reward model's objective, see
        `fsa.models.reward.OBJECTIVES`; one sample of z for the policy.
      kl_weight: of the KL in objectives that have one.
      num_samples: of z, for the reward model's objective.

    Returns:
      A loss with the metrics `accuracy` and `margin` of the implicit reward, `nll` per
      token of the chosen responses, `kl` where there is one; in the first
      `reward_steps` those of `episode_loss` under the same names, `margin` 0. Beside
      them a user's number of target `choices`, and of the `tokens` of both texts of
      those that the policy reads.

    Raises:
      ValueError: for a loss of another name.
    """
    if loss not in LOSSES:
        raise ValueError(f"loss is one of {LOSSES}, not {loss!r}")
    preference = losses.ipo
    if loss == "dpo":
        preference = functools.partial(losses.dpo, label_smoothing=label_smoothing)

    def of_user(variables, base, example: PairBatch, key):
        z, divergence = _latent(policy, variables, example, key, objective)
        log_probs = policy.pair_log_probs(variables, base, z, example.responses)
        ratio = log_probs - example.reference
        of_pairs = preference(ratio[:, 0], ratio[:, 1], beta=beta)
        mask = example.episode.target.mask[: len(ratio)]
        lengths = (example.responses.stop - example.responses.start)[:, 0]
        nll = -log_probs[:, 0] / jnp.maximum(lengths, 1)
        margin = beta * (ratio[:, 0] - ratio[:, 1])
        means = {
            "loss": of_pairs + nll_weight * nll,
            "nll": nll,
            "margin": margin,
            "accuracy": (margin > 0).astype(jnp.float32),
        }
        count = jnp.maximum(mask.sum(), 1)
        means = {name: jnp.sum(x, where=mask) / count for name, x in means.items()}
        total = means.pop("loss") + kl_weight * divergence / count
        if reward_weight:
            total += reward_weight * of_reward(variables, example, key)[0]
        return total, {**means, "kl": divergence}

    def of_reward(variables, example: PairBatch, key):
        total, metrics = episode_loss(
            policy.reward_model,
            policy.reward_variables(variables),
            example.episode,
            key,
            objective=objective,
            num_samples=num_samples,
            beta=kl_weight,
        )
        return total, {"margin": jnp.float32(0), "kl": jnp.float32(0), **metrics}

    def loss_fn(variables, batch, key):
        constants, examples = batch
        variables = policy.gathered(variables)

        def policy_loss():
            base = constants["base"]
            return _mean(
                lambda example, k: of_user(variables, base, example, k), examples, key
            )

        def reward_loss():
            return _mean(
                lambda example, k: of_reward(variables, example, k), examples, key
            )

        if not reward_steps:
            return policy_loss()
        return jax.lax.cond(examples.step[0] < reward_steps, reward_loss, policy_loss)

    return loss_fn


def _mean(fn, examples: PairBatch, key: jax.Array):
    """Means over users of the (loss, metrics) that `fn(row, its key)` gives."""

    def one(example):
        total, metrics = fn(
            example, episodes.example_key(key, example.step, example.position)
        )
        real, stop = example.episode.target.mask, example.responses.stop
        tokens = jnp.sum(stop, where=real[: len(stop), None])
        return total, {**metrics, "choices": real.sum(), "tokens": tokens}

    total, metrics = vmap_examples(one)(examples)
    return jnp.mean(total), jax.tree.map(jnp.mean, metrics)


def _latent(policy: Policy, variables, example: PairBatch, key, objective: str):
    """z of one user, and the KL of the objective or 0."""
    if policy.latent != INFERRED:
        z = policy.latent_of(variables, example.episode.context, example.episode.group)
        return z, jnp.float32(0)
    z, q, prior = infer(
        lambda choices: policy.encode(variables, choices),
        example.episode,
        key,
        objective=objective,
        num_samples=1,
    )
    return z[0], jnp.float32(0) if prior is None else latent.kl(q, prior)


def init_variables(policy: Policy, base: Any, statistics: tuple, key: jax.Array):
    """Initial variables, with statistics of the training set's features in place.

    Args:
      policy: whose they are.
      base: the language model's variables.
      statistics: as `PairTask.statistics` gives them.
      key: a JAX random key.
    """
    mean, std = (jnp.asarray(x, jnp.float32) for x in statistics)
    return {
        **policy.init(key, base, len(mean)),
        "statistics": {"options": {"mean": mean, "std": std}},
    }
