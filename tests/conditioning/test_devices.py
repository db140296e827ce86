"""A conditioned parameter over eight devices: constraints, `shard_map` and `pmap`.

This file is also a script that runs on those devices and prints what the tests read,
see conftest.py. Complete models on a mesh are in test_sharding.py.

Shapes: U users, one example each; T tokens; D width.
"""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from arrays import error, normal
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from fsa.conditioning import Conditioned, bridge, fold

USERS, TOKENS, WIDTH = 8, 13, 16


def square():
    """A `[D, D]` weight with a scale of each side and rank 2."""
    term = (WIDTH, 1, 2), (1, 1, 2), (1, WIDTH, 2)
    shapes = (WIDTH, WIDTH), (WIDTH, 1), (1, WIDTH), *term
    base, *parts = (normal(n, *shape, std=0.3) for n, shape in enumerate(shapes))
    return Conditioned(base, tuple(parts[:2]), (tuple(parts[2:]),))


def examples():
    return normal(9, USERS, TOKENS, WIDTH)


def a_constraint():
    """On a weight in the model: each part is constrained as the weight is."""
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("data", "tensor"))
    sharding = NamedSharding(mesh, P("data", "tensor"))

    def model(w, x):
        return jnp.tanh(x @ lax.with_sharding_constraint(w, sharding))

    leaf, x = square(), examples()
    run = jax.vmap(bridge(model, strict=True), (None, 0))
    equations = jax.make_jaxpr(bridge(model, strict=True))(leaf, x[0]).eqns
    return {
        "error": error(jax.jit(run)(leaf, x), jnp.tanh(x @ fold(leaf))),
        "specs": sorted(
            # The rank, if there is one, is left open.
            f"{v.aval.shape} {tuple(eqn.params['sharding'].spec[:2])}"
            for eqn in equations
            if eqn.primitive.name == "sharding_constraint"
            for v in eqn.invars
        ),
    }


def inside_shard_map():
    """A model that splits its contraction by `shard_map`, under vmap over users."""
    mesh = Mesh(np.array(jax.devices()), ("tensor",))

    def product(x, w):
        return lax.psum(x @ w, "tensor")

    def model(w, x):
        specs = (P(None, "tensor"), P("tensor"))
        split = jax.shard_map(product, mesh=mesh, in_specs=specs, out_specs=P())
        return jnp.tanh(split(x, w))

    def loss(apply, leaf, x):
        out = jax.vmap(apply, (None, 0))(leaf, x)
        return jnp.mean(out * jnp.cos(jnp.arange(out.shape[-1]))), out

    def run(apply, x):
        take_gradients = jax.grad(functools.partial(loss, apply), has_aux=True)
        return jax.jit(take_gradients)(square(), x)

    def folded(leaf, x):
        return jnp.tanh(x @ fold(leaf))

    return error(run(bridge(model, strict=True), examples()), run(folded, examples()))


def around_by_shard_map():
    """Users split over devices by `shard_map`, the model within it conditioned."""
    mesh = Mesh(np.array(jax.devices()), ("data",))
    apply = bridge(lambda w, x: jnp.tanh(x @ w), strict=True)
    run = jax.shard_map(
        lambda leaf, x: jax.vmap(apply, (None, 0))(leaf, x),
        mesh=mesh,
        in_specs=(P(), P("data")),
        out_specs=P("data"),
    )
    result = jax.jit(run)(square(), examples())
    return error(result, jnp.tanh(examples() @ fold(square())))


def by_pmap():
    """Each device has one example with its own gain; all have the weight."""
    apply = bridge(lambda w, x: jnp.tanh(x @ w), strict=True)
    leaf, x = square(), examples()
    gains = jnp.linspace(-0.5, 0.5, USERS)

    def modulated(leaf, gain):
        scales = (*leaf.scales, gain.reshape(1, 1))
        return Conditioned(leaf.base, scales, leaf.terms)

    def step(leaf, gain, x):
        gradient = jax.grad(lambda leaf: apply(modulated(leaf, gain), x).sum())(leaf)
        return lax.psum(gradient, "data")

    def total(leaf):
        pairs = zip(gains, x, strict=True)
        return sum(jnp.tanh(x @ fold(modulated(leaf, g))).sum() for g, x in pairs)

    result = jax.pmap(step, "data", in_axes=(None, 0, 0))(leaf, gains, x)
    return error(jax.tree.map(lambda g: g[0], result), jax.grad(total)(leaf))


def placed():
    """Parts put on a mesh each with a sharding of its own, and computed with there."""
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("data", "tensor"))
    leaf = square()

    def sharding(part):
        axes = ("data", "tensor", None)[: part.ndim]
        names = [
            n if size > 2 else None for n, size in zip(axes, part.shape, strict=True)
        ]
        return NamedSharding(mesh, P(*names))

    shardings = jax.tree.map(sharding, leaf)
    on_mesh = jax.device_put(leaf, shardings)
    kept = jax.tree.map(lambda x, s: x.sharding == s, on_mesh, shardings)
    result = jax.jit(lambda leaf, x: x @ leaf)(on_mesh, examples())
    return {
        "error": error(result, examples() @ fold(leaf)),
        "kept": jax.tree.leaves(kept),
    }


CHECKS = {
    "constraint": a_constraint,
    "inside shard_map": inside_shard_map,
    "around by shard_map": around_by_shard_map,
    "pmap": by_pmap,
    "placed": placed,
}


def test_a_sharding_constraint_reaches_each_part(shown):
    assert shown["constraint"]["error"] < 1e-5
    assert shown["constraint"]["specs"] == [
        "(1, 1, 2) (None, None)",
        "(1, 16) (None, 'tensor')",
        "(1, 16, 2) (None, 'tensor')",
        "(16, 1) ('data', None)",
        "(16, 1, 2) ('data', None)",
        "(16, 16) ('data', 'tensor')",
    ]


@pytest.mark.parametrize("check", ["inside shard_map", "around by shard_map", "pmap"])
def test_mapped_over_devices(shown, check):
    assert shown[check] < 1e-5


def test_parts_are_placed_as_any_array(shown):
    assert shown["placed"]["error"] < 1e-5
    assert shown["placed"]["kept"] == [True] * 6


if __name__ == "__main__":
    print(json.dumps({name: check() for name, check in CHECKS.items()}))
