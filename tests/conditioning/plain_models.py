"""Small models as plain functions of a tree, each with a spec of its modulations.

In every model the activations of one example are smaller than the smallest weight that
is modulated, so that an array of the size of users x weight can only be a copy of a
weight for each user. Sizes that meet differ, so that no swapped axis passes.

Shapes: T tokens, D width, F hidden, H heads, G queries a key head has, K head size.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from arrays import normal
from jax import lax

from fsa.conditioning import lora, low_rank, scale, shift

EXAMPLES = 13
BOTH = scale("both") + low_rank(2)
GENERATED = scale() + low_rank(2, factors="generated")


@dataclasses.dataclass(frozen=True)
class Model:
    """A model that knows nothing of conditioning, and a spec for it.

    Attributes:
      apply: `(params, one example of x) -> array`.
      params: a pytree.
      spec: for `hypernet`.
      x: `[EXAMPLES, ...]`.
    """

    apply: Callable[[Any, jax.Array], jax.Array]
    params: Any
    spec: Sequence
    x: jax.Array


PLAIN: dict[str, Callable[[], Model]] = {}


def _model(make):
    PLAIN[make.__name__] = make
    return make


def examples(*shape):
    """Inputs [EXAMPLES, *shape]."""
    return normal(1, EXAMPLES, *shape)


def tokens(length, vocabulary):
    return np.random.default_rng(1).integers(0, vocabulary, (EXAMPLES, length))


def weights(**shapes):
    """Named weights; vectors near 1, as gains are."""
    return {
        name: normal(n, *shape, std=0.3) + (len(shape) == 1)
        for n, (name, shape) in enumerate(shapes.items())
    }


@_model
def mlp():
    def apply(p, x):
        x = jax.nn.gelu(x @ p["in"]["w"] + p["in"]["b"])
        return x @ p["out"]["w"] + p["out"]["b"]

    params = {"in": weights(w=(7, 11), b=(11,)), "out": weights(w=(11, 5), b=(5,))}
    spec = [
        ("in/w", BOTH + shift("input")),
        ("out/w", GENERATED + lora(3)),
        (".*/b", shift()),
    ]
    return Model(apply, params, spec, examples(3, 7))


@_model
def conv_net():
    """Strides, a window of two sizes, and features in groups."""

    def conv(x, w, strides, groups=1):
        return lax.conv_general_dilated(
            *(x[None], w, strides, "SAME"),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )[0]

    def apply(p, x):
        x = jax.nn.relu(conv(x, p["first"], (1, 2)) + p["bias"])
        x = jax.nn.relu(conv(x, p["grouped"], (2, 1), groups=2))
        return x.mean((0, 1)) @ p["head"]

    params = weights(first=(3, 2, 5, 6), bias=(6,), grouped=(2, 3, 3, 22), head=(22, 7))
    spec = [
        ("first", scale() + scale("input").layout(3, 2) + low_rank(2).layout(3, 2)),
        ("grouped", scale("both").layout(3, 2)),
        ("bias", shift()),
        ("head", BOTH),
    ]
    return Model(apply, params, spec, examples(4, 3, 5))


@_model
def lstm():
    def apply(p, x):
        def step(carry, x):
            h, c = carry
            gates = x @ p["w"] + h @ p["u"] + p["b"]
            i, f, g, o = jnp.split(gates, 4)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            h = jax.nn.sigmoid(o) * jnp.tanh(c)
            return (h, c), h

        zeros = jnp.zeros(p["u"].shape[0])
        return lax.scan(step, (zeros, zeros), x)[1]

    params = weights(w=(5, 28), u=(7, 28), b=(28,))
    return Model(apply, params, [("[wu]", BOTH), ("b", shift())], examples(3, 5))


def _attend(q, k, v):
    """[T, H, K] of each; causal."""
    scores = jnp.einsum("thk,shk->hts", q, k) / q.shape[-1] ** 0.5
    mask = jnp.tril(jnp.ones(scores.shape[1:], bool))
    weights = jax.nn.softmax(jnp.where(mask, scores, -1e9))
    return jnp.einsum("hts,shk->thk", weights, v)


@_model
def attention_einsum():
    def apply(p, x):
        q, k, v = (
            jnp.einsum("td,dhk->thk", x, p[name]) + p["bias"][n]
            for n, name in enumerate("qkv")
        )
        return jnp.einsum("thk,hkd->td", _attend(q, k, v), p["out"])

    params = weights(q=(7, 2, 5), k=(7, 2, 5), v=(7, 2, 5), out=(2, 5, 7))
    params["bias"] = normal(9, 3, 2, 5)
    spec = [
        ("[qk]", (scale("both") + low_rank(3)).layout((1, 2))),
        ("v", GENERATED.layout((1, 2))),
        ("out", BOTH),
        ("bias", shift().layout((1, 2), (), stacked=True)),
    ]
    return Model(apply, params, spec, examples(3, 7))


@_model
def attention_dot_general():
    """One kernel [3 H K, D] for q, k and v, stored output first."""

    def dot(x, w, contract):
        dimensions = ((x.ndim - 1,), (contract,)), ((), ())
        return lax.dot_general(x, w, dimensions, preferred_element_type=jnp.float32)

    def apply(p, x):
        qkv = dot(x, p["qkv"], 1).reshape(-1, 3, 2, 5)
        heads = _attend(*jnp.moveaxis(qkv, 1, 0))
        return dot(heads.reshape(-1, 10), p["out"], 0)

    params = weights(qkv=(30, 11), out=(10, 11))
    return Model(
        apply, params, [("qkv", BOTH.layout(0)), ("out", BOTH)], examples(2, 11)
    )


@_model
def tied_embeddings():
    def apply(p, x):
        x = jnp.take(p["table"], x, axis=0) + p["position"][: x.shape[0]]
        x = x + jnp.tanh(x @ p["mix"])
        return x @ p["table"].T

    params = weights(table=(17, 11), position=(5, 11), mix=(11, 11))
    # Positions are smaller than activations, so a copy of them could not be told.
    spec = [("table|mix", scale("both") + low_rank(2))]
    return Model(apply, params, spec, tokens(3, 17))


def _block(x, layer):
    h = x * lax.rsqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-6) * layer["gain"]
    return x + jax.nn.silu(h @ layer["up"]) @ layer["down"]


def _stack(apply):
    params = weights(up=(3, 11, 17), down=(3, 17, 11))
    params["gain"] = 1 + normal(5, 3, 11, std=0.1)
    spec = [
        ("up|down", (scale("both") + low_rank(2)).layout(stacked=True)),
        ("gain", scale().layout(stacked=True)),
    ]
    return Model(apply, params, spec, examples(2, 11))


@_model
def scan_over_layers():
    def apply(p, x):
        return lax.scan(lambda x, layer: (_block(x, layer), None), x, p)[0]

    return _stack(apply)


@_model
def remat():
    def apply(p, x):
        for n in range(3):
            x = jax.checkpoint(_block)(x, jax.tree.map(lambda w, n=n: w[n], p))
        return x

    return _stack(apply)


@_model
def scan_and_remat():
    def apply(p, x):
        block = jax.checkpoint(
            _block, policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable
        )
        return lax.scan(lambda x, layer: (block(x, layer), None), x, p)[0]

    return _stack(apply)


@_model
def mixture_of_experts():
    """Dense gating over the two best of three experts."""

    def apply(p, x):
        logits = x @ p["router"]
        worst = logits.min(-1, keepdims=True)
        gates = jax.nn.softmax(jnp.where(logits > worst, logits, -1e9))
        h = jax.nn.silu(jnp.einsum("td,edf->etf", x, p["up"]))
        return jnp.einsum("te,etf,efd->td", gates, h, p["down"])

    params = weights(up=(3, 11, 17), down=(3, 17, 11), router=(11, 3))
    # The router is smaller than activations, so a copy of it could not be told.
    spec = [("up|down", BOTH.layout(stacked=True))]
    return Model(apply, params, spec, examples(2, 11))


def _rotate(x):
    """Rotary positions over halves of the last axis of [T, ..., K] (Su et al. 2021)."""
    half = x.shape[-1] // 2
    angle = jnp.arange(x.shape[0])[:, None] * 10.0 ** -jnp.arange(half)
    angle = angle.reshape(x.shape[0], *(1,) * (x.ndim - 2), half)
    a, b = x[..., :half], x[..., half:]
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


@_model
def grouped_query_rotary():
    """Two key heads, each with three queries; the norm's gain is modulated too."""

    def apply(p, x):
        x = x * lax.rsqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-6) * p["norm"]
        q = _rotate((x @ p["q"]).reshape(-1, 2, 3, 4))
        k = _rotate((x @ p["k"]).reshape(-1, 2, 4))
        v = (x @ p["v"]).reshape(-1, 2, 4)
        scores = jnp.einsum("thgk,shk->hgts", q, k) / 2
        mixed = jnp.einsum("hgts,shk->thgk", jax.nn.softmax(scores), v)
        return mixed.reshape(-1, 24) @ p["out"]

    params = weights(norm=(11,), q=(11, 24), k=(11, 8), v=(11, 8), out=(24, 11))
    spec = [("norm", scale()), ("v", GENERATED), (".*", BOTH)]
    return Model(apply, params, spec, examples(3, 11))
