"""Reward models: BTL, DPL, NP-BTL and VPL from one set of parts.

`RewardModel` predicts choices at a given z. The z of a user is inferred by
`RewardModel.encode`, which is `fsa.models.encoder.ContextEncoder`.

| model  | latent_dim | likelihood | objective                    | standard_prior |
|--------|------------|------------|------------------------------|----------------|
| BTL    | 0          | btl        | deterministic                |                |
| DPL    | 0          | dpl        | deterministic                |                |
| NP-BTL | D          | btl        | deterministic, ml or elbo    | no             |
| VPL    | D          | btl        | vpl                          | yes            |

z enters a reward in one of two ways: concatenated with the option's embedding, or as
modulations of all parameters between that embedding and the reward.

Shapes: N context choices, M target choices or options, K samples of z, D latent
dimensions, H hidden width. Functions take one unbatched user; callers vmap.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import PartitionSpec as P

from fsa import episodes, latent, losses
from fsa.episodes import Choices, Episode, Options
from fsa.latent import DiagonalGaussian
from fsa.models.encoder import MLP, ContextEncoder, OptionEncoder
from fsa.models.modulated import Modulated
from fsa.parallel.sharding import FSDP, TENSOR, Rules

# How parameters are sharded over a mesh, see `fsa.parallel.sharding`.
SHARDING_RULES: Rules = (
    ("item/embedding", P((TENSOR, FSDP))),
    ("Attention_0/out/kernel", P(TENSOR, None, FSDP)),
    ("kernel$", P(FSDP, TENSOR)),
)

OBJECTIVES = ("deterministic", "ml", "elbo", "vpl")
LIKELIHOODS = ("btl", "dpl")
CONDITIONINGS = ("concatenated", "modulated")


class RewardModel(nn.Module):
    """Infers q(z | C) from a context set, and predicts choices by rewards r(a, z).

    Attributes:
      hidden: H, of every layer.
      latent_dim: D; 0 for a model without z, which ignores the context.
      likelihood: "btl", or "dpl", which gives each option a mean and a standard
        deviation.
      conditioning: how z enters the reward, "concatenated" or "modulated"; the latter
        requires a `latent_dim` above 0.
      pooling: of the `ContextEncoder`, "mean" or "attention".
      standard_prior: whether q is N(0, I) at n = 0 instead of a learned prior.
      num_items: number of items with an embedding of their own, see `OptionEncoder`.
      item_dropout: see `OptionEncoder`.
    """

    hidden: int = 64
    latent_dim: int = 8
    likelihood: str = "btl"
    conditioning: str = "concatenated"
    pooling: str = "mean"
    standard_prior: bool = False
    num_items: int = 0
    item_dropout: float = 0.0

    def setup(self):
        """Builds the parts; one option encoder serves the context and the reward."""
        if self.likelihood not in LIKELIHOODS:
            raise ValueError(
                f"`likelihood` is one of {LIKELIHOODS}, not {self.likelihood!r}"
            )
        if self.conditioning not in CONDITIONINGS:
            raise ValueError(
                f"`conditioning` is one of {CONDITIONINGS}, not {self.conditioning!r}"
            )
        self.options = OptionEncoder(self.hidden, self.num_items, self.item_dropout)
        if self.latent_dim:
            self.context = ContextEncoder(
                self.hidden,
                self.latent_dim,
                self.pooling,
                standard_prior=self.standard_prior,
            )
        outputs = 1 if self.likelihood == "btl" else 2
        if self.conditioning == "modulated":
            head = MLP([self.hidden, self.hidden, outputs])
            self.head = Modulated(head, self.latent_dim, trunk=(self.hidden,))
        else:
            # A layer on the concatenation (embedding, z), written as the sum of a layer
            # on each, so that the embedding's part is computed once for all z.
            self.head_option = nn.Dense(self.hidden)
            self.head_latent = nn.Dense(self.hidden, use_bias=False)
            self.head = MLP([self.hidden, outputs])

    def encode(self, context: Choices, *, train: bool = False) -> DiagonalGaussian:
        """Infers q(z | C) over `[D]` from a context set `[N]`, by `ContextEncoder`.

        A model without z (D = 0) returns a distribution over no dimensions.
        """
        if not self.latent_dim:
            return latent.standard_normal(0)
        return self.context(
            self.options(context.chosen, train=train),
            self.options(context.rejected, train=train),
            context.mask,
        )

    def reward(
        self, options: Options, z: jax.Array, *, train: bool = False
    ) -> tuple[jax.Array, jax.Array | None]:
        """Computes the rewards of options `[M]` given z `[D]`.

        Returns:
          (mean, std), `[M]` each; std is None for the BTL likelihood. Only differences
          of rewards have a meaning: for BTL they are log odds in nats.
        """
        return self._score(self._embed(options, train), z)

    def _embed(self, options: Options, train: bool) -> jax.Array:
        return nn.gelu(self.options(options, train=train))

    def _score(self, embedded: jax.Array, z: jax.Array):
        if self.conditioning == "modulated":
            outputs = self.head(embedded, z)
        else:
            hidden = self.head_option(embedded)
            if self.latent_dim:
                hidden += self.head_latent(z)
            outputs = self.head(nn.gelu(hidden))
        if self.likelihood == "btl":
            return outputs[..., 0], None
        return outputs[..., 0], nn.softplus(outputs[..., 1]) + 1e-3

    def log_prob(
        self, choices: Choices, z: jax.Array, *, train: bool = False
    ) -> jax.Array:
        """Computes log p(choice | z_k) of choices `[M]` at samples z `[K, D]`.

        Returns:
          `[K, M]` in nats.
        """
        # The embeddings do not depend on z, so they are computed once for all samples.
        chosen = self._embed(choices.chosen, train)
        rejected = self._embed(choices.rejected, train)

        def at(z_k):
            chosen_mean, chosen_std = self._score(chosen, z_k)
            rejected_mean, rejected_std = self._score(rejected, z_k)
            if self.likelihood == "btl":
                return losses.btl_log_prob(chosen_mean, rejected_mean)
            return losses.dpl_log_prob(
                chosen_mean, chosen_std, rejected_mean, rejected_std
            )

        if self.is_initializing():
            return at(z[0])[None]
        return jax.vmap(at)(z)

    def __call__(self, episode: Episode, *, train: bool = False) -> jax.Array:
        """Computes log p(target | z) at z = E[z | C], `[M]` in nats.

        Initialise with this method: it uses every parameter.
        """
        z = self.encode(episode.context, train=train).mean
        return self.log_prob(episode.target, z[None], train=train)[0]


def draw_latent(
    encode: Callable[[Choices], DiagonalGaussian],
    episode: Episode,
    key: jax.Array,
    *,
    objective: str,
    num_samples: int,
) -> tuple[jax.Array, DiagonalGaussian, DiagonalGaussian | None]:
    """Draws z of one user as an objective needs it: the mean, or samples of q.

    What infers q(z | C) is `encode`, see `fsa.models.encoder.ContextEncoder`.

    Args:
      encode: maps choices `[N]` to q(z | choices), for any N.
      episode: one user's, unbatched.
      key: a JAX random key.
      objective: one of `OBJECTIVES`.
      num_samples: K, ignored by "deterministic".

    Returns:
      z `[K, D]`, with K = 1 for "deterministic"; the q that z was drawn from; and the
      prior of the objective's term KL(q || prior), or None if it has no such term.

    Raises:
      ValueError: if `objective` is none of `OBJECTIVES`.
    """
    if objective not in OBJECTIVES:
        raise ValueError(f"`objective` is one of {OBJECTIVES}, not {objective!r}")
    q, prior = encode(episode.context), None
    if objective == "elbo":
        prior = q
        q = encode(episodes.concatenate(episode.context, episode.target))
    elif objective == "vpl":
        prior = latent.standard_normal(q.mean.shape[-1])
    deterministic = objective == "deterministic"
    z = latent.mean_or_samples(q, key, num_samples, deterministic=deterministic)
    return z, q, prior


def episode_loss(
    model: RewardModel,
    variables: Any,
    episode: Episode,
    key: jax.Array,
    *,
    objective: str = "ml",
    num_samples: int = 8,
    beta: float = 1.0,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Computes the few-shot objective of one user, divided by M.

    Args:
      model: with the `latent_dim` and `standard_prior` that the objective needs, see
        the module's docstring.
      variables: its Flax variables.
      episode: one user's, unbatched, with at least one target.
      key: a JAX random key, for z and for item dropout.
      objective: one of `OBJECTIVES`.
      num_samples: K, ignored by "deterministic".
      beta: weight of the KL in "elbo" and "vpl".

    Returns:
      The objective divided by M, so that a mean over users weights every user by the
      number of their targets, and scalar metrics of the same user: `nll` and `accuracy`
      per real target at the samples drawn, and `kl` in nats if the objective has a KL.

    Raises:
      ValueError: if `objective` is none of `OBJECTIVES`.
    """
    sample_key, dropout_key = jax.random.split(key)

    def apply(method, *args):
        rngs = {"dropout": dropout_key}
        return model.apply(variables, *args, train=True, rngs=rngs, method=method)

    target = episode.target
    z, q, prior = draw_latent(
        lambda choices: apply(model.encode, choices),
        episode,
        sample_key,
        objective=objective,
        num_samples=num_samples,
    )
    log_probs = apply(model.log_prob, target, z)
    if objective == "deterministic":
        loss = losses.deterministic(log_probs[0], target.mask)
    elif objective == "ml":
        loss = losses.ml(log_probs, target.mask)
    else:
        loss = losses.elbo(log_probs, target.mask, q, prior, beta=beta)
    metrics = {} if prior is None else {"kl": latent.kl(q, prior)}

    predicted = losses.marginal_log_prob(log_probs)
    metrics |= losses.choice_metrics(predicted, target.mask)
    return loss / target.mask.shape[0], metrics
