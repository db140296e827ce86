"""The parts of a decoder layer: norm, attention, MLP.

Shapes: B examples, T tokens of a call, S slots that they attend to, W width, N query
heads, K key and value heads, H features of a head. A row of several texts is one
example without an axis of examples.
"""

import functools
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from fsa.language import attention_kernels, range_attention
from fsa.parallel.sharding import TENSOR, constrain

# The linear maps of a layer, named by the paths of their modules.
MAPS = (
    "attention/query",
    "attention/key",
    "attention/value",
    "attention/out",
    "mlp/gate",
    "mlp/up",
    "mlp/down",
)

ACTIVATIONS = {
    "silu": jax.nn.silu,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
}


class Attended(NamedTuple):
    """Positions and masks of the tokens of a call, which all layers share.

    A kind is a set of layers with the same window.

    Attributes:
      sin: `[kinds, B, T, H / 2]`, sines of the rotary angles.
      cos: `[kinds, B, T, H / 2]`, cosines of the rotary angles.
      mask: `[kinds, B, T, S]`, true where a token attends to a slot; `[kinds, T]` int32
        for a row of several texts, the first token that each token attends to, or for
        splash, which has a window of its own, the first of its text.
      index: `[]`, the slot of the first token.
    """

    sin: jax.Array
    cos: jax.Array
    mask: jax.Array
    index: jax.Array

    @property
    def of_row(self) -> bool:
        """Whether the tokens are those of a row of several texts."""
        return self.mask.ndim == 2

    def of(self, kind: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Returns (sin, cos, mask) for the layers of one kind."""
        if self.mask.shape[0] == 1:
            kind = 0
        return self.sin[kind], self.cos[kind], self.mask[kind]


class RMSNorm(nn.Module):
    """x / rms(x) * (offset + scale), in float32 (Zhang and Sennrich 2019).

    Attributes:
      epsilon: added to the mean square.
      offset: 1 if the stored scale is to be added to 1 (Gemma), else 0.
      param_dtype: dtype of the scale.
    """

    epsilon: float
    offset: float
    param_dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalizes over the last axis."""
        init = nn.initializers.constant(1.0 - self.offset)
        scale = self.param("scale", init, (x.shape[-1],), self.param_dtype)
        wide = x.astype(jnp.float32)
        mean_square = jnp.square(wide).mean(-1, keepdims=True)
        normed = wide * lax.rsqrt(mean_square + self.epsilon)
        return (normed * (self.offset + scale.astype(jnp.float32))).astype(x.dtype)


class Attention(nn.Module):
    """Grouped-query attention with rotary positions.

    Attributes:
      num_heads: N, a multiple of `num_kv_heads`.
      num_kv_heads: K.
      head_dim: H.
      scale: factor of the products of queries and keys.
      soft_cap: None, or c in c * tanh(product / c).
      biases: the maps of `MAPS` that have a bias.
      kernel: one of `attention_kernels.ATTENTIONS`; with a cache it is always "xla".
      window: window of all layers, for other kernels than "xla", which use the mask.
      norm: makes the norms of queries and of keys; None for no norms.
      dtype: dtype of the computation, except for the softmax.
      param_dtype: dtype of the parameters.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    soft_cap: float | None
    biases: Collection[str]
    kernel: str
    window: int | None
    norm: Callable[..., nn.Module] | None
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        layer: jax.Array,
        kind: jax.Array,
        attended: Attended,
        stored: tuple[jax.Array, jax.Array] | None,
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array] | None]:
        """Applies the attention of one layer.

        Args:
          x: input of the layer, `[B, T, W]`, or `[T, W]` of a row.
          layer: `[]`, number of the layer; None if `stored` is of this layer alone.
          kind: `[]`, index into the kinds of `attended`.
          attended: positions and masks.
          stored: None, or the keys and values of a `Cache`.

        Returns:
          (output like x, `stored` with the keys and values of x written).
        """
        sin, cos, mask = attended.of(kind)

        def project(name, features, axis=-1):
            return nn.DenseGeneral(
                features,
                axis=axis,
                use_bias=f"attention/{name}" in self.biases,
                dtype=self.dtype,
                param_dtype=self.param_dtype,
                name=name,
            )

        kv_heads = (self.num_kv_heads, self.head_dim)
        query = project("query", (self.num_heads, self.head_dim))(x)
        key = project("key", kv_heads)(x)
        value = project("value", kv_heads)(x)
        if self.norm:
            query = self.norm(name="query_norm")(query)
            key = self.norm(name="key_norm")(key)
        query, key = rotate(query, sin, cos), rotate(key, sin, cos)
        query, key, value = (
            constrain(x, None, TENSOR, None) for x in (query, key, value)
        )
        if stored is not None:
            new = key.swapaxes(1, 2), value.swapaxes(1, 2)
            stored = tuple(
                _written(old, layer, attended.index, x.astype(old.dtype))
                for old, x in zip(stored, new, strict=True)
            )
            own = stored if layer is None else (slots[layer] for slots in stored)
            key, value = (slots.astype(self.dtype) for slots in own)
        if attended.of_row:
            out = self.attend_row(query, key, value, mask)
        elif stored is None and self.kernel != attention_kernels.XLA:
            out = attention_kernels.attend(
                self.kernel,
                query,
                key,
                value,
                scale=self.scale,
                soft_cap=self.soft_cap,
                window=self.window,
            )
        else:
            if stored is None:
                key, value = key.swapaxes(1, 2), value.swapaxes(1, 2)
            out = self.attend(query, key, value, mask)
        return project("out", x.shape[-1], axis=(-2, -1))(out), stored

    def attend_row(self, query, key, value, first):
        """Averages values `[T, K, H]` for queries `[T, N, H]` within each text.

        `first` `[T]` is the mask of a row, see `Attended`.
        """
        caps = {"scale": self.scale, "soft_cap": self.soft_cap}
        if self.kernel == attention_kernels.XLA:
            return range_attention.attend(query, key, value, first, **caps)
        query, key, value, texts = (x[None] for x in (query, key, value, first))
        out = attention_kernels.attend(
            *(self.kernel, query, key, value), **caps, window=self.window, texts=texts
        )
        return out[0]

    def attend(self, query, key, value, mask):
        """Averages values `[B, K, S, H]` for queries `[B, T, N, H]`, by plain XLA."""
        groups = query.reshape(*query.shape[:2], self.num_kv_heads, -1, self.head_dim)
        products = self.scale * jnp.einsum(
            "btkgh,bksh->bkgts", groups, key, preferred_element_type=jnp.float32
        )
        products = soft_capped(products, self.soft_cap)
        # Finite, so that padding, which attends to nothing, gives no NaN.
        lowest = jnp.finfo(products.dtype).min
        products = jnp.where(mask[:, None, None], products, lowest)
        weights = jax.nn.softmax(products, axis=-1).astype(value.dtype)
        return jnp.einsum("bkgts,bksh->btkgh", weights, value).reshape(query.shape)


class MLP(nn.Module):
    """down(activation(gate(x)) * up(x)) (Shazeer 2020).

    Attributes:
      width: width of the hidden layer.
      activation: one of `ACTIVATIONS`.
      biases: the maps of `MAPS` that have a bias.
      dtype: dtype of the computation.
      param_dtype: dtype of the parameters.
    """

    width: int
    activation: str
    biases: Collection[str]
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies the MLP over the last axis."""

        def dense(name, features):
            return nn.Dense(
                features,
                use_bias=f"mlp/{name}" in self.biases,
                dtype=self.dtype,
                param_dtype=self.param_dtype,
                name=name,
            )

        gate = ACTIVATIONS[self.activation](dense("gate", self.width)(x))
        hidden = constrain(gate * dense("up", self.width)(x), None, TENSOR)
        return dense("down", x.shape[-1])(hidden)


class Layer(nn.Module):
    """Attention and MLP, each with a norm before it and possibly a norm after it.

    Attributes:
      attention: makes the attention module.
      mlp: makes the MLP module.
      norm: makes a norm module.
      post_norms: whether outputs are normalized before they are added (Gemma).
    """

    attention: Callable[..., nn.Module]
    mlp: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]
    post_norms: bool

    @nn.compact
    def __call__(self, carry, layer, kind, attended: Attended):
        """Applies one layer, as a step of a scan whose carry is (x, stored)."""

        def post(name, x):
            return self.norm(name=name)(x) if self.post_norms else x

        x, stored = carry
        x = constrain(x, None, None)
        normed = self.norm(name="attention_norm")(x)
        attention = self.attention(name="attention")
        out, stored = attention(normed, layer, kind, attended, stored)
        x = constrain(x + post("post_attention_norm", out), None, None)
        out = self.mlp(name="mlp")(self.norm(name="mlp_norm")(x))
        return (x + post("post_mlp_norm", out), stored), None


def _written(slots, layer, index, new):
    """Writes keys or values `[B, K, T, H]` of a layer into their slots."""
    at = (0, 0, index, 0)
    if layer is None:
        return lax.dynamic_update_slice(slots, new, at)
    return lax.dynamic_update_slice(slots, new[None], (layer, *at))


def rotate(x: jax.Array, sin: jax.Array, cos: jax.Array) -> jax.Array:
    """Rotates features i and i + H / 2 of each head by an angle (Su et al. 2021).

    Args:
      x: `[..., T, N, H]`.
      sin: sines of the angles, `[..., T, H / 2]`.
      cos: cosines of the angles, `[..., T, H / 2]`.
    """
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    sin, cos = sin[..., None, :], cos[..., None, :]
    turned = (first * cos - second * sin, second * cos + first * sin)
    return jnp.concatenate(turned, -1).astype(x.dtype)


def soft_capped(x: jax.Array, cap: float | None) -> jax.Array:
    """Returns cap * tanh(x / cap), or x if `cap` is None."""
    return x if cap is None else cap * jnp.tanh(x / cap)
