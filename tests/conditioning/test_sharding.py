"""Conditioned models on eight devices: the same numbers, and no weight moved for it.

This file is also a script that runs on those devices and prints what the tests read,
see conftest.py.

Shapes: U users, one example each; T tokens; D width.
"""

import collections
import functools
import json
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from arrays import error, noisy, normal
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from fsa.conditioning import (
    bridge,
    condition,
    einsum,
    fold,
    hypernet,
    is_conditioned,
    low_rank,
    matmul,
    scale,
    shift,
    take,
)

# Eight devices take long; quick tests of them are in test_devices.py.
pytestmark = pytest.mark.slow

LATENT, LAYERS, HEADS, HEAD, WIDTH, HIDDEN, VOCABULARY, USERS = (
    5,
    3,
    4,
    8,
    32,
    48,
    40,
    8,
)
# No axis of a weight has this size, so that shapes tell weights from activations.
TOKENS = 13

SPEC = [
    ("embed", scale()),
    ("layers/qkv", (scale() + low_rank(2)).layout((2, 3, 4), stacked=True)),
    ("layers/bias", shift().layout(stacked=True)),
    ("layers/.*", (scale("both") + low_rank(2)).layout(stacked=True)),
]
FSDP = {
    "embed": P(None, "fsdp"),
    "layers": {
        "qkv": P(None, "fsdp"),
        "out": P(None, None, None, "fsdp"),
        "up": P(None, "fsdp"),
        "down": P(None, None, "fsdp"),
        "bias": P(),
    },
}
TENSOR = {
    "embed": P("tensor"),
    "layers": {
        "qkv": P(None, None, None, "tensor"),
        "out": P(None, "tensor"),
        "up": P(None, None, "tensor"),
        "down": P(None, "tensor"),
        "bias": P(None, "tensor"),
    },
}
# Mesh, sharding of the weights, axes of the examples, and whether the model constrains
# activations to be sharded by examples alone; otherwise XLA may shard their features
# instead of gathering weights.
CASES = {
    "data x fsdp, 4x2": ((4, 2), FSDP, ("data", "fsdp"), True),
    "data x fsdp, 2x4": ((2, 4), FSDP, ("data", "fsdp"), True),
    "data x fsdp, 4x2, features too": ((4, 2), FSDP, ("data", "fsdp"), False),
    "data x tensor, 2x4": ((2, 4), TENSOR, ("data",), False),
}
STYLES = ("bridge", "explicit")


def init_params():
    shapes = {
        "qkv": (LAYERS, WIDTH, 3, HEADS, HEAD),
        "out": (LAYERS, HEADS, HEAD, WIDTH),
        "up": (LAYERS, WIDTH, HIDDEN),
        "down": (LAYERS, HIDDEN, WIDTH),
    }
    std = 1 / math.sqrt(WIDTH)
    layers = {
        name: normal(n, *shape, std=std)
        for n, (name, shape) in enumerate(shapes.items())
    }
    layers["bias"] = jnp.zeros((LAYERS, HIDDEN))
    return {"embed": normal(9, VOCABULARY, WIDTH, std=std), "layers": layers}


def transformer(
    params, tokens, *, constrain, matmul=jnp.matmul, einsum=jnp.einsum, take=jnp.take
):
    """One example: tokens `[T]` to logits `[T, V]`; `constrain` gets activations."""

    def layer(x, w):
        x = constrain(x)
        q, k, v = einsum("td,dnhk->nthk", x, w["qkv"])
        logits = jnp.einsum("thk,shk->hts", q, k) / math.sqrt(HEAD)
        mixed = jnp.einsum("hts,shk->thk", jax.nn.softmax(logits), v)
        x = constrain(x + einsum("thk,hkd->td", mixed, w["out"]))
        # A vector gains nothing from staying conditioned.
        bias = fold(w["bias"])
        return x + matmul(jax.nn.gelu(matmul(x, w["up"]) + bias), w["down"]), None

    x, _ = lax.scan(layer, take(params["embed"], tokens, axis=0), params["layers"])
    return einsum("td,vd->tv", constrain(x), params["embed"])


def program(style, axes, constrain):
    """`(params, hyper, z [U, ...], tokens [U, T]) -> logits and gradients`."""
    vmap = functools.partial(jax.vmap, spmd_axis_name=axes)
    modulate = hypernet(SPEC, LATENT).apply
    model = functools.partial(transformer, constrain=constrain)
    if style == "bridge":
        apply = bridge(model, strict=True)
    elif style == "explicit":
        apply = functools.partial(model, matmul=matmul, einsum=einsum, take=take)

    def forward(params, hyper, z, tokens):
        if style == "unconditioned":
            return vmap(model, (None, 0))(params, tokens)
        return vmap(lambda z, t: apply(condition(params, modulate(hyper, z)), t))(
            z, tokens
        )

    def loss(params, hyper, z, tokens):
        logits = forward(params, hyper, z, tokens)
        return jnp.mean(logits * jnp.cos(jnp.arange(VOCABULARY))), logits

    return jax.value_and_grad(loss, (0, 1), has_aux=True)


COLLECTIVE = re.compile(
    r"= (.+?) (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)"
    r"(?:-start)?\("
)


def collectives(compiled):
    """How often each kind gives an array of each shape: {(kind, shape): number}."""
    return collections.Counter(
        (kind, tuple(map(int, sizes.split(","))) if sizes else ())
        for shapes, kind in COLLECTIVE.findall(compiled.as_text())
        for sizes in re.findall(r"\w+\[([\d,]*)\]", shapes)
    )


def weight_gathers(compiled):
    """Gathers that give a layer's weight or more, and no tokens: {shape: number}."""
    least = WIDTH * HEADS * HEAD
    found = collectives(compiled).items()
    return collections.Counter(
        {
            shape: n
            for (kind, shape), n in found
            if kind == "all-gather"
            and TOKENS not in shape
            and math.prod(shape) >= least
        }
    )


def on_a_mesh(case):
    """What a case shows, by style."""
    shape, specs, axes, constrained = CASES[case]
    names = ("data", "fsdp" if specs is FSDP else "tensor")
    mesh = Mesh(np.array(jax.devices()).reshape(shape), names)

    def put(tree, *spec):
        return jax.device_put(tree, NamedSharding(mesh, P(*spec)))

    def constrain(x):
        sharding = NamedSharding(mesh, P(*[None] * x.ndim))
        return lax.with_sharding_constraint(x, sharding) if constrained else x

    shardings = jax.tree.map(
        lambda spec: NamedSharding(mesh, spec), specs, is_leaf=lambda x: type(x) is P
    )
    params = init_params()
    # A learned basis starts random, but noise alone will do.
    shapes = jax.eval_shape(hypernet(SPEC, LATENT).init, jax.random.key(1), params)
    hyper = noisy(jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes))
    z = normal(2, USERS, LATENT)
    tokens = np.random.default_rng(3).integers(0, VOCABULARY, (USERS, TOKENS))
    inputs = (params, hyper, z, tokens)
    sharded = (
        *(jax.device_put(params, shardings), put(hyper)),
        *(put(z, axes), put(tokens, axes)),
    )

    shown = {}
    for style in ("unconditioned", *STYLES):
        compiled = jax.jit(program(style, axes, constrain)).lower(*sharded).compile()
        (_, logits), gradients = compiled(*sharded)
        (_, same_logits), same_gradients = alone(style)(*inputs)
        gathers = weight_gathers(compiled)
        if style == "unconditioned":
            before, layout = gathers, jax.tree.map(lambda g: g.sharding, gradients[0])
        shown[style] = {
            "forward": error(logits, same_logits),
            "gradients": error(gradients, same_gradients),
            "layout": same_shardings(gradients[0], layout),
            "gathers": gathers.total(),
            "extra": [*map(str, (gathers - before).elements())],
        }
    modulate = hypernet(SPEC, LATENT).apply
    conditioned = jax.jit(lambda params, *at: condition(params, modulate(*at)))(
        sharded[0], sharded[1], np.asarray(z)[0]
    )
    bases = jax.tree.map(lambda leaf: leaf.base, conditioned, is_leaf=is_conditioned)
    return {**shown, "bases": same_shardings(bases, shardings)}


def same_shardings(tree, wanted):
    """Whether each array has the sharding it should have."""
    return jax.tree.leaves(
        jax.tree.map(lambda x, s: x.sharding.is_equivalent_to(s, x.ndim), tree, wanted)
    )


@functools.cache
def alone(style):
    """The program on one device."""
    return jax.jit(program(style, None, lambda x: x))


def a_gathered_weight():
    """What the count of gathers must see: one weight, gathered on purpose."""
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("data", "tensor"))
    w = jax.device_put(jnp.ones((WIDTH, HIDDEN)), NamedSharding(mesh, P("tensor")))
    replicated = NamedSharding(mesh, P())
    gather = jax.jit(lambda w: lax.with_sharding_constraint(w, replicated) * 2)
    return weight_gathers(gather.lower(w).compile()).total()


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("case", CASES)
def test_sharded_equals_unsharded(shown, case, style):
    assert shown["devices"] == 8
    assert shown[case][style]["forward"] < 1e-5
    assert shown[case][style]["gradients"] < 1e-5


@pytest.mark.parametrize("case", CASES)
def test_weights_keep_their_sharding(shown, case):
    """The w of conditioned leaves as given; gradients as without conditioning."""
    assert shown[case]["bases"] == [True] * 6
    assert [shown[case][style]["layout"] for style in STYLES] == [[True] * 6] * 2


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("case", CASES)
def test_no_weight_is_gathered_that_was_not(shown, case, style):
    assert shown[case][style]["extra"] == []


def test_gathers_of_weights_are_seen(shown):
    """By examples alone: a layer's four, forward and backward, and the embedding."""
    assert shown["gathered"] == 1
    gathers = [shown[case]["unconditioned"]["gathers"] for case in CASES]
    assert gathers == [9, 9, 1, 0]


if __name__ == "__main__":
    figures = {case: on_a_mesh(case) for case in CASES}
    figures |= {"devices": len(jax.devices()), "gathered": a_gathered_weight()}
    print(json.dumps(figures))
