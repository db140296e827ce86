"""Encoders, of which `ContextEncoder` infers z: it maps a context set C to q(z | C).

`OptionEncoder` embeds the options of C before that. Modules take one unbatched user;
callers vmap.

Shapes: N context choices, F features, H hidden width, D latent dimensions.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from fsa import latent
from fsa.episodes import Options
from fsa.latent import DiagonalGaussian


class MLP(nn.Module):
    """Dense layers with GELU between them and none after the last.

    Attributes:
      features: width of each layer.
    """

    features: Sequence[int]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[..., in]` to `[..., features[-1]]`."""
        for width in self.features[:-1]:
            x = nn.gelu(nn.Dense(width)(x))
        return nn.Dense(self.features[-1])(x)


class OptionEncoder(nn.Module):
    """Embeds options by their features and, if they are known items, their identity.

    Features are standardised by the statistics of the training set, which are stored in
    the collection `statistics` (`mean` and `std`, `[F]`; 0 and 1 until they are set).
    Raw embeddings by language models have dimensions of very different scales, which
    was measured to cost 20 percentage points of accuracy.

    Attributes:
      hidden: H.
      num_items: number of known items that have an embedding of their own, or 0. An
        option whose item is -1 has none and is described by its features alone.
      item_dropout: probability with which a known item is treated as unknown in
        training, so that the model learns to describe unknown ones.
    """

    hidden: int
    num_items: int = 0
    item_dropout: float = 0.0

    @nn.compact
    def __call__(self, options: Options, *, train: bool = False) -> jax.Array:
        """Maps options `[...]` to `[..., H]`; `train` needs a `dropout` key."""
        width = options.features.shape[-1]
        mean = self.variable("statistics", "mean", jnp.zeros, width)
        std = self.variable("statistics", "std", jnp.ones, width)
        x = (options.features - mean.value) / std.value
        x = nn.Dense(self.hidden)(x)
        if self.num_items:
            identity = nn.Embed(
                self.num_items,
                self.hidden,
                embedding_init=nn.initializers.normal(0.1),
                name="item",
            )(jnp.maximum(options.item, 0))
            known = options.item >= 0
            if train and self.item_dropout:
                keep = 1 - self.item_dropout
                known &= jax.random.bernoulli(
                    self.make_rng("dropout"), keep, known.shape
                )
            x = x + jnp.where(known[..., None], identity, 0.0)
        return nn.Dense(self.hidden)(nn.gelu(x))


class ContextEncoder(nn.Module):
    """Infers z: maps a context set C to q(z | C), for any order and number of choices.

    Each choice enters as (chosen, rejected), so the order in which the two options were
    shown cannot matter. Choices are pooled together with a learned prior token, either
    as a mean in which the prior counts as kappa choices, or by attention with a learned
    query. Both are averages: their norm does not grow with n, so context sets may be
    far larger than those seen in training, and n = 0 gives the learned prior. The
    number of choices affects the posterior's standard deviation alone: the network's
    output is multiplied by sqrt(kappa / (kappa + n)).

    Attributes:
      hidden: H.
      latent_dim: D.
      pooling: "mean" or "attention".
      num_heads: number of attention heads, for pooling "attention".
      standard_prior: whether q is N(0, I) at n = 0 instead of the learned prior, as in
        VPL (Poddar et al. 2024).
    """

    hidden: int
    latent_dim: int
    pooling: str = "mean"
    num_heads: int = 4
    standard_prior: bool = False

    @nn.compact
    def __call__(
        self, chosen: jax.Array, rejected: jax.Array, mask: jax.Array
    ) -> DiagonalGaussian:
        """Infers q(z | C) from the embedded choices of one user.

        Args:
          chosen: `[N, H]`, embeddings of the chosen options.
          rejected: `[N, H]`, embeddings of the rejected options.
          mask: `[N]`, true where a choice is real.

        Returns:
          q(z | C) over `[D]`.

        Raises:
          ValueError: if `pooling` is neither "mean" nor "attention".
        """
        choices = MLP([self.hidden, self.hidden])(
            jnp.concatenate([chosen, rejected], axis=-1)
        )
        token = self.param("prior", nn.initializers.normal(0.02), (self.hidden,))
        # At the start the prior counts as softplus(1.0) = 1.3 choices.
        kappa = nn.softplus(self.param("kappa", nn.initializers.ones, ()))
        count = mask.sum()
        if self.pooling == "mean":
            total = jnp.sum(choices, axis=0, where=mask[:, None])
            pooled = (kappa * token + total) / (kappa + count)
        elif self.pooling == "attention":
            pooled = self._attend(token, choices, mask)
        else:
            raise ValueError(
                f"`pooling` is 'mean' or 'attention', not {self.pooling!r}"
            )
        output = MLP([self.hidden, self.hidden, 2 * self.latent_dim])(pooled)
        mean, raw_std = jnp.split(output, 2, axis=-1)
        # The scale is bounded on both sides, because objectives without a KL do not
        # bound it: without this, log_std was seen to overflow within 400 steps.
        log_std = jnp.log(0.01 + 0.99 * nn.sigmoid(raw_std - 2.0))
        log_std -= 0.5 * jnp.log1p(count / kappa)
        if self.standard_prior:
            prior = latent.standard_normal(self.latent_dim)
            mean = jnp.where(count == 0, prior.mean, mean)
            log_std = jnp.where(count == 0, prior.log_std, log_std)
        return DiagonalGaussian(mean, log_std)

    def _attend(
        self, token: jax.Array, choices: jax.Array, mask: jax.Array
    ) -> jax.Array:
        """Pools choices `[N, H]` and the prior token by attention, to `[H]`."""
        values = jnp.concatenate([token[None], choices])
        visible = jnp.concatenate([jnp.ones(1, bool), mask])
        query = self.param("query", nn.initializers.normal(1.0), (1, self.hidden))
        pooled = nn.MultiHeadDotProductAttention(num_heads=self.num_heads)(
            query, values, mask=visible[None, None, :]
        )
        return pooled[0]
