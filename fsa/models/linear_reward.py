"""A reward model that is linear in z, whose posterior is inferred by Bayes' rule.

The reward of an option x is r(x, z) = g(x) + f(x) . z, with f and g learned: functional
parameter-space conditioning of the output layer alone. The prior of z is a learned
mixture of Gaussians. What a person tells gives a posterior of z, see
`fsa.latent.inference`, and a choice is predicted by a one-dimensional integral over
that posterior. Everything is trained end to end on the predicted choices, the objective
of neural processes (Kobalczyk et al. 2024, section 3). There is no encoder that could
ignore contexts: the posterior does not depend on the order of what was told, and is
right for any number of it.

Shapes: N context choices, M target choices or options, K samples of z, D latent
dimensions, C components, H hidden width, L levels of ratings or quantiles. Functions
take one unbatched user; callers vmap.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from fsa import episodes, latent, losses
from fsa.episodes import Choices, Episode, Feedback, Options
from fsa.latent import Mixture, Observations, Posterior, mixture
from fsa.models.encoder import OptionEncoder

# What contexts are made of in training.
CHOICES, VOTES, RATINGS = CONTEXTS = ("choices", "votes", "ratings")

# What is trained on: targets given a context, or all choices together.
PREDICTIVE, EVIDENCE = OBJECTIVES = ("predictive", "evidence")

# Half the width of ties where none were trained on. All small widths give the same
# posterior, that of the likelihood sigmoid(u) sigmoid(-u).
_NARROW = 0.01


class MixturePrior(nn.Module):
    """The learned prior of z, a mixture of Gaussians.

    Attributes:
      num_components: C.
      latent_dim: D.
    """

    num_components: int
    latent_dim: int

    @nn.compact
    def __call__(self) -> Mixture:
        """Returns the prior."""
        shape = self.num_components, self.latent_dim
        zeros = nn.initializers.zeros
        # Components that begin alike would stay alike.
        apart = nn.initializers.normal(1.0) if self.num_components > 1 else zeros
        return Mixture(
            self.param("log_weight", zeros, shape[:1]),
            self.param("mean", apart, shape),
            self.param("log_std", zeros, shape),
        )


class LinearRewardModel(nn.Module):
    """Infers the posterior of z from a context set, and predicts choices.

    Attributes:
      hidden: H, of every layer.
      latent_dim: D, at least 1.
      num_components: C.
      num_layers: layers of width H behind the option encoder, at least 1.
      dropout: share of the last hidden layer that is dropped in training.
      context: what contexts are made of: "choices"; "votes", where the chosen option of
        a choice is liked and the rejected one is not, each against a neutral option
        whose f and g are learned; or "ratings" of single options, whose thresholds lie
        about that neutral option. It decides what other feedback can be used: likes
        and dislikes with "votes" and "ratings", ratings with "ratings".
      levels: the values that a rating may have, from the worst to the best.
      num_steps: Newton steps of `fsa.latent.laplace`.
      num_sweeps: sweeps of `fsa.latent.refine`; 0 for Laplace's approximation.
      num_items: number of items with an embedding of their own, see `OptionEncoder`.
      item_dropout: see `OptionEncoder`.
    """

    hidden: int = 64
    latent_dim: int = 8
    num_components: int = 1
    num_layers: int = 1
    dropout: float = 0.0
    context: str = CHOICES
    levels: tuple[float, ...] = ()
    num_steps: int = 12
    num_sweeps: int = 2
    num_items: int = 0
    item_dropout: float = 0.0

    def setup(self):
        """Builds the parts."""
        if self.context not in CONTEXTS:
            raise ValueError(f"`context` is one of {CONTEXTS}, not {self.context!r}")
        if self.context == RATINGS and len(self.levels) < 2:
            raise ValueError(f"`levels`={self.levels}: ratings need at least two")
        self.options = OptionEncoder(self.hidden, self.num_items, self.item_dropout)
        self.layers = [nn.Dense(self.hidden) for _ in range(self.num_layers - 1)]
        self.drop = nn.Dropout(self.dropout)
        self.personal = nn.Dense(self.latent_dim, use_bias=False)
        self.common = nn.Dense(1, use_bias=False)
        self.prior = MixturePrior(self.num_components, self.latent_dim)
        zeros = nn.initializers.zeros
        if self.context != CHOICES:
            self.neutral = self.param("neutral", zeros, (self.latent_dim + 1,))
        if len(self.levels) > 2:
            self.gaps = self.param("gaps", zeros, (len(self.levels) - 2,))

    def features(
        self, options: Options, *, train: bool = False
    ) -> tuple[jax.Array, jax.Array]:
        """Returns f `[..., D]` and g `[...]` of options `[...]`."""
        x = nn.gelu(self.options(options, train=train))
        for layer in self.layers:
            x = nn.gelu(layer(x))
        x = self.drop(x, deterministic=not train)
        return self.personal(x), self.common(x)[..., 0]

    def observations(self, feedback: Feedback, *, train: bool = False) -> Observations:
        """Returns feedback `[N]` as observations `[N]` of linear utilities."""
        first, first_offset = self.features(feedback.first, train=train)
        second, second_offset = self.features(feedback.second, train=train)
        kind = feedback.kind
        if self.context != CHOICES:
            alone = kind >= episodes.LIKE
            second = jnp.where(alone[:, None], self.neutral[:-1], second)
            second_offset = jnp.where(alone, self.neutral[-1], second_offset)
        low, high = self._bounds()
        return Observations.of(
            first - second,
            first_offset - second_offset,
            feedback.mask * feedback.weight,
            low=low[kind],
            high=high[kind],
        )

    def _bounds(self) -> tuple[jax.Array, jax.Array]:
        """Returns what u is between, for each kind of `Feedback`."""
        # Of choices, ties, likes and dislikes.
        low = jnp.array([0.0, -_NARROW, 0.0, -jnp.inf])
        high = jnp.array([jnp.inf, _NARROW, jnp.inf, 0.0])
        if not self.levels:
            return low, high
        ends = jnp.array([jnp.inf])
        inner = self.thresholds()
        return (
            jnp.concatenate([low, -ends, inner]),
            jnp.concatenate([high, inner, ends]),
        )

    def thresholds(self) -> jax.Array:
        """Returns the ascending values of u between the L levels, `[L - 1]`.

        Their mean is 0: the neutral option has what they have in common.
        """
        if len(self.levels) <= 2:
            return jnp.zeros(len(self.levels) - 1)
        steps = jnp.cumsum(nn.softplus(self.gaps))
        inner = jnp.concatenate([jnp.zeros(1), steps])
        return inner - inner.mean()

    def encode(self, context: Choices | Feedback, *, train: bool = False) -> Posterior:
        """Infers the posterior over `[D]` from a context set `[N]`."""
        observed = self.observations(self.as_feedback(context), train=train)
        prior = self.prior()
        q = latent.laplace(observed, prior, num_steps=self.num_steps)
        if self.num_sweeps:
            q = latent.refine(q, observed, prior, num_sweeps=self.num_sweeps)
        return q

    def as_feedback(self, context: Choices | Feedback) -> Feedback:
        """Returns what z is inferred from; choices may be taken as votes."""
        if not isinstance(context, Choices):
            return context
        votes = self.context == VOTES
        return (episodes.as_votes if votes else episodes.as_feedback)(context)

    def infer_from_all(self, episode: Episode, *, train: bool = False) -> Posterior:
        """Infers the posterior from context and targets, whose evidence it holds."""
        context = self.as_feedback(episode.context)
        told = episodes.concatenate(context, episodes.as_feedback(episode.target))
        return self.encode(told, train=train)

    def reward(self, options: Options, z: jax.Array) -> tuple[jax.Array, None]:
        """Computes the rewards of options `[M]` given z `[D]`.

        Returns:
          The rewards `[M]`, of which only differences have a meaning, as log odds in
          nats; and None, as a reward has no noise of its own.
        """
        features, offset = self.features(options)
        return features @ z + offset, None

    def log_prob(self, choices: Choices, z: jax.Array) -> jax.Array:
        """Computes log p(choice | z_k) of choices `[M]` at samples z `[K, D]`.

        Returns:
          `[K, M]` in nats.
        """
        observed = self.observations(episodes.as_feedback(choices))
        return jax.vmap(lambda z: jax.nn.log_sigmoid(observed.utility(z)))(z)

    def __call__(self, episode: Episode, *, train: bool = False) -> jax.Array:
        """Computes log p(target | context), `[M]` in nats, over the posterior of z."""
        return self.infer_and_predict(episode, train=train)[1]

    def infer_and_predict(
        self, episode: Episode, *, train: bool = False
    ) -> tuple[Posterior, jax.Array]:
        """Returns the posterior after the context, and what `__call__` returns."""
        q = self.encode(episode.context, train=train)
        return q, self.predict(q, episode.target, train=train)

    def predict(
        self, q: Posterior, target: Choices, *, train: bool = False
    ) -> jax.Array:
        """Computes log p(target) over a posterior of z, `[M]` in nats."""
        told = self.observations(episodes.as_feedback(target), train=train)
        return mixture.predict(q, told.features, told.offset)

    def quantiles(
        self, q: Posterior, target: Choices, levels: Sequence[float]
    ) -> jax.Array:
        """Computes quantiles `[L, M]` of the log odds of target choices."""
        told = self.observations(episodes.as_feedback(target))
        levels = jnp.asarray(levels)
        return mixture.quantiles(q, told.features, told.offset, levels)


def episode_loss(
    model: LinearRewardModel,
    variables: Any,
    episode: Episode,
    key: jax.Array,
    *,
    objective: str = PREDICTIVE,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Computes the objective of one user.

    "predictive" is the negative log-probability of each target given the context,
    divided by M. "evidence" is that of context and targets together, divided by their
    number: maximum likelihood, which needs fewer users where the model is right,
    because each choice is predicted from any number of others.

    Args:
      model: the model.
      variables: its Flax variables.
      episode: one user's, unbatched, with at least one target.
      key: a JAX random key, for dropout.
      objective: one of `OBJECTIVES`.

    Returns:
      As `fsa.models.reward.episode_loss`, without `kl`; "evidence" without `accuracy`.
      The metrics have `converged`, 1 if Newton's steps arrived at the mode of every
      component, else 0.
    """
    rngs = {"dropout": key}
    mask = episode.target.mask
    if objective == EVIDENCE:
        # A choice that is taken as two votes counts twice.
        masks = model.as_feedback(episode.context).mask, mask
        told = sum(each.sum() for each in masks)
        q = model.apply(
            variables, episode, train=True, rngs=rngs, method="infer_from_all"
        )
        nats = -q.log_evidence
        metrics = {"nll": nats / jnp.maximum(told, 1), **_convergence(q)}
        return nats / sum(map(len, masks)), metrics
    q, log_probs = model.apply(
        variables, episode, train=True, rngs=rngs, method="infer_and_predict"
    )
    loss = losses.deterministic(log_probs, mask) / len(mask)
    return loss, {**losses.choice_metrics(log_probs, mask), **_convergence(q)}


def _convergence(q: Posterior) -> dict[str, jax.Array]:
    return {"converged": q.all_converged.astype(jnp.float32)}
