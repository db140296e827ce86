"""A transformer, and the ways of conditioning it that `conditioning.py` compares."""

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from fsa.conditioning import bridge, condition, fold, hypernet, low_rank, scale
from fsa.conditioning.hypernet import Head

HEADS = 8
LATENT_DIM = 16
PLAIN = "unconditioned"
SCALE = "scale, explicit"
BOTH = "scale + rank"
RANK = f"{BOTH}, explicit"
FIXED_BASIS = f"{BOTH}, fixed basis"
MATERIALISED = "materialised"


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Sizes of a run; each user has one example of `tokens` tokens."""

    users: int = 16
    tokens: int = 64
    width: int = 512
    layers: int = 4
    rank: int = 8


def init_params(sizes: Sizes) -> dict:
    """Draws the weights of a pre-norm transformer without embeddings."""
    d = sizes.width
    shapes = {"qkv": (d, 3 * d), "out": (d, d), "up": (d, 4 * d), "down": (4 * d, d)}

    def layer(key):
        keys = jax.random.split(key, len(shapes))
        return {
            name: jax.random.normal(k, shape) / math.sqrt(shape[0])
            for k, (name, shape) in zip(keys, shapes.items(), strict=True)
        }

    keys = jax.random.split(jax.random.key(0), sizes.layers)
    return {f"layer_{n}": layer(key) for n, key in enumerate(keys)}


def transformer(params: dict, x: jax.Array, films: jax.Array | None = None):
    """Runs the transformer on one example `[T, width]`; `@` takes conditioned weights.

    `films` `[layers, 2, width]` scales and shifts the residual stream after a block.
    """

    def norm(x):
        return x * jax.lax.rsqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-6)

    for n, layer in enumerate(params.values()):
        qkv = (norm(x) @ layer["qkv"]).reshape(len(x), 3, HEADS, -1)
        attended = jax.nn.dot_product_attention(qkv[:, 0], qkv[:, 1], qkv[:, 2])
        x = x + attended.reshape(x.shape) @ layer["out"]
        x = x + jax.nn.gelu(norm(x) @ layer["up"]) @ layer["down"]
        if films is not None:
            x = x * (1 + films[n, 0]) + films[n, 1]
    return x


def materialised(params: dict, x: jax.Array) -> jax.Array:
    """Runs the transformer with weights that are built for each user."""
    return transformer(fold(params), x)


def fixed_basis(hyper):
    """Stops the gradients of all that does not depend on z, such as a learned basis."""

    def keep(x):
        return x if isinstance(x, Head) else jax.lax.stop_gradient(x)

    return jax.tree.map(keep, hyper, is_leaf=lambda x: isinstance(x, Head))


def variants(sizes: Sizes) -> dict[str, tuple[Callable, tuple]]:
    """Returns {name: (function of (learned, params, x), its arguments)}.

    `learned` is the hypernetwork, the films, or for the plain model a factor of the
    inputs, whose gradient needs the same backward pass without that of weights.
    """
    params = jax.jit(lambda: init_params(sizes))()
    x = jax.random.normal(jax.random.key(1), (sizes.users, sizes.tokens, sizes.width))
    z = jax.random.normal(jax.random.key(2), (sizes.users, LATENT_DIM))
    films = jnp.full((sizes.users, sizes.layers, 2, sizes.width), 0.01)

    @functools.cache
    def hypernetwork(modulation):
        init, modulate = hypernet([(".*", modulation)], LATENT_DIM)

        @jax.jit
        def moved(key, params):
            # Not the identity, so that nothing can be optimised away.
            return jax.tree.map(lambda a: a + 0.01, init(key, params))

        return moved(jax.random.key(3), params), modulate

    def conditioned(run, modulation, learned=lambda hyper: hyper):
        hyper, modulate = hypernetwork(modulation)

        def apply(hyper, params, x):
            hyper = learned(hyper)

            def example(z, x):
                return run(condition(params, modulate(hyper, z)), x)

            return jax.vmap(example)(z, x)

        return apply, (hyper, params, x)

    def plain(gain, params, x):
        return jax.vmap(transformer, (None, 0))(params, x * gain)

    def residual(films, params, x):
        return jax.vmap(lambda f, x: transformer(params, x, f))(films, x)

    both = scale() + low_rank(sizes.rank)
    bridged = bridge(transformer, strict=True)
    return {
        PLAIN: (plain, (jnp.ones(()), params, x)),
        "residual FiLM": (residual, (films, params, x)),
        SCALE: conditioned(transformer, scale()),
        "scale, bridge": conditioned(bridged, scale()),
        f"scale, {MATERIALISED}": conditioned(materialised, scale()),
        RANK: conditioned(transformer, both),
        f"{BOTH}, bridge": conditioned(bridged, both),
        FIXED_BASIS: conditioned(transformer, both, fixed_basis),
        f"{BOTH}, {MATERIALISED}": conditioned(materialised, both),
    }
