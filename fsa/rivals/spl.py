"""SPL: variational preference learning whose latent mirrors reversed choices.

Kim and Kim 2026 ("Swap-guided preference learning for personalized RLHF", arXiv
2603.12595) add three parts to VPL (Poddar et al. 2024) so that z is not ignored:

* swap guidance: q's mean for a context and for the same context reversed (a fictitious
  swap annotator) shall point in opposite directions, and its variance shall not change;
* a preferential inverse autoregressive flow: z_0 ~ q becomes z = mu(z_0, d) +
  exp(s(z_0, c) / 2) z_0, where d is the difference and c the sum of the context's
  chosen and rejected options; mu is odd, so that reversed choices mirror it;
* adaptive latent conditioning: z modulates the layers of the reward network.

One flow; the weights of the terms are those of the public code.

Shapes: H hidden width, D latent dimensions, N context choices, M target choices, K
samples of z.
"""

import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from fsa import episodes, latent, losses
from fsa.episodes import Choices, Episode
from fsa.latent import DiagonalGaussian
from fsa.models.reward import RewardModel
from fsa.rivals import learned
from fsa.rivals.method import TrainingPeople
from fsa.training import reward_loss

# How much the variance of the reversed context counts beside the mean.
_ETA = 0.1


class Person(NamedTuple):
    """What is kept of a person.

    Attributes:
      q: over `[D]`, before the flow.
      difference: `[H]`, of the context's chosen and rejected options, halved.
      total: `[H]`, their sum, halved.
    """

    q: DiagonalGaussian
    difference: jax.Array
    total: jax.Array


class _Masked(nn.Module):
    """Dimension i of the output depends on the dimensions of z before i alone.

    A masked autoencoder (Germain et al. 2015) with one hidden layer, which also reads a
    condition. Without biases it is odd in (z, condition).
    """

    use_bias: bool

    @nn.compact
    def __call__(self, z: jax.Array, condition: jax.Array) -> jax.Array:
        size = z.shape[-1]
        hidden = 2 * size
        degree = np.arange(hidden) % size
        place = np.arange(size)
        init = nn.initializers.lecun_normal()
        into = self.param("into", init, (size, hidden)) * (place[:, None] < degree)
        out = self.param("out", init, (hidden, size)) * (degree[:, None] <= place)
        x = z @ into + nn.Dense(hidden, use_bias=self.use_bias)(condition)
        y = jnp.tanh(x) @ out
        if self.use_bias:
            y = y + self.param("bias", nn.initializers.zeros, (size,))
        return y


class Flow(nn.Module):
    """The preferential inverse autoregressive flow."""

    def setup(self):
        """Builds the two networks."""
        self.shift = _Masked(use_bias=False)
        self.scale = _Masked(use_bias=True)

    def __call__(self, z, difference, total) -> tuple[jax.Array, jax.Array]:
        """Returns the new z `[..., D]` and half the log-determinant's sum `[...]`."""
        shift = jnp.clip(self.shift(z, difference), -1.0, 1.0)
        log_scale = jnp.clip(self.scale(z, total), -5.0, 5.0) / 2
        return shift + jnp.exp(log_scale) * z, log_scale.sum(-1)


@dataclasses.dataclass(frozen=True)
class Spl(learned.Learned):
    """VPL with swap guidance, a flow and modulated rewards.

    Attributes:
      latent_dim: D.
      num_samples: K of predictions.
      kl_weight: of the KL of a choice's loss.
      guidance: weight of the swap guidance.
    """

    latent_dim: int = 8
    num_samples: int = 16
    kl_weight: float = 0.01
    guidance: float = 0.0005

    def init(self, people: TrainingPeople, key: jax.Array) -> Any:
        """Makes the reward model and the flow."""
        model_key, flow_key = jax.random.split(key)
        variables = reward_loss.init_variables(self.model, people.task, model_key)
        z, side = jnp.zeros(self.latent_dim), jnp.zeros(self.hidden)
        flow = Flow().init(flow_key, z, side, side)["params"]
        return {**variables, "params": {"model": variables["params"], "flow": flow}}

    def loss(self, variables, user, episode: Episode, key) -> jax.Array:
        """Computes the mean NLL of the targets, the KL and the guidance."""
        person = self.adapt(variables, episode.context)
        z_0 = latent.sample(person.q, key, 1)
        z, log_det = self._flow(variables, person, z_0)
        log_probs = self._log_prob(variables, episode.target, z)[0]
        nll = losses.mean_nll(log_probs, episode.target.mask)
        prior = latent.standard_normal(self.latent_dim)
        kl = latent.log_prob(person.q, z_0) - log_det - latent.log_prob(prior, z)
        swapped = self._encode(variables, episodes.reverse(episode.context))
        guide = swap_guidance(person.q, swapped)
        # Without a context both are the prior, and nothing can be mirrored.
        guide = jnp.where(episode.context.mask.any(), guide, 0.0)
        return nll + self.kl_weight * kl[0] + self.guidance * guide

    def adapt(self, values: Any, context: Choices) -> Person:
        """Infers q, and summarises both sides of the context."""
        chosen, rejected = (
            self._apply(values, options, method=_embed)
            for options in (context.chosen, context.rejected)
        )
        count = jnp.maximum(context.mask.sum(), 1)
        sides = [
            jnp.sum(x / 2, axis=0, where=context.mask[:, None]) / count
            for x in (chosen - rejected, chosen + rejected)
        ]
        return Person(self._encode(values, context), *sides)

    def predict(self, values: Any, person: Person, target: Choices) -> jax.Array:
        """Averages probabilities over samples of z."""
        z = latent.sample(person.q, jax.random.key(0), self.num_samples)
        z, _ = self._flow(values, person, z)
        return losses.marginal_log_prob(self._log_prob(values, target, z))

    @property
    def model(self) -> RewardModel:
        """The encoder and the modulated reward."""
        return RewardModel(
            hidden=self.hidden,
            latent_dim=self.latent_dim,
            conditioning="modulated",
            standard_prior=True,
        )

    def _apply(self, values, *args, method):
        own = {**values, "params": values["params"]["model"]}
        return self.model.apply(own, *args, method=method)

    def _encode(self, values, context: Choices) -> DiagonalGaussian:
        return self._apply(values, context, method=self.model.encode)

    def _log_prob(self, values, target: Choices, z: jax.Array) -> jax.Array:
        return self._apply(values, target, z, method=self.model.log_prob)

    def _flow(self, values, person: Person, z: jax.Array):
        own = {"params": values["params"]["flow"]}

        def one(z):
            return Flow().apply(own, z, person.difference, person.total)

        return jax.vmap(one)(z)


def swap_guidance(q: DiagonalGaussian, swapped: DiagonalGaussian) -> jax.Array:
    """Computes the guidance: 0 if means are opposite and log-variances parallel.

    The reversed context is a fixed aim: no gradient flows through it.
    """
    aim = jax.lax.stop_gradient(swapped)

    def cosine(a, b):
        return a @ b / ((jnp.linalg.norm(a) + 1e-6) * (jnp.linalg.norm(b) + 1e-6))

    mean = (1 + cosine(q.mean, aim.mean)) / 2
    return mean + _ETA * (1 - cosine(q.log_std, aim.log_std)) / 2


def _embed(model: RewardModel, options) -> jax.Array:
    return model.options(options)
