"""Users over eight devices, each with modulations of their own: equal to one device.

This file is also a script that runs on those devices and prints what the tests read,
see conftest.py. Examples, latents and weights are sharded, and `jax.shard_map` checks
over which axes of the mesh each value varies, as it does by default.

Shapes: U users, one example each; T tokens; D width; F hidden.
"""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from arrays import error, noisy, normal
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from fsa.conditioning import (
    MaterializationError,
    bridge,
    condition,
    hypernet,
    low_rank,
    scale,
    shift,
)
from fsa.conditioning.hypernet import Head
from fsa.conditioning.rules import part_spec

# Eight devices take long; quick tests of them are in test_devices.py.
pytestmark = pytest.mark.slow

USERS, TOKENS, WIDTH, HIDDEN, LATENT = 16, 3, 6, 8, 3
SPECS = {
    "scale": [("in|out", scale("both"))],
    "film": [("in|out", scale()), ("bias", shift())],
    "low_rank": [("in|out", low_rank(2))],
    "all": [("in|out", scale("both") + low_rank(2)), ("bias", shift())],
}
STACKED = ("layers", (scale("both") + low_rank(2)).layout(stacked=True))


def parameters(dtype=jnp.float32):
    shapes = {
        "in": (WIDTH, HIDDEN),
        "bias": (HIDDEN,),
        "layers": (2, HIDDEN, HIDDEN),
        "out": (HIDDEN, WIDTH),
    }
    return {
        name: normal(n, *shape, std=0.3).astype(dtype)
        for n, (name, shape) in enumerate(shapes.items())
    }


def model(p, x):
    """One example `[T, D]`, with layers under `lax.scan`."""
    x = jnp.tanh(x @ p["in"] + p["bias"])
    x, _ = lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, p["layers"])
    return x @ p["out"]


def program(name, model=model):
    """`(params, hyper, z, x) -> ((loss, outputs), gradients)`, and a hyper for it."""
    spec = [STACKED, *SPECS[name]] if name == "all" else SPECS[name]
    init, modulate = hypernet(spec, LATENT)
    apply = bridge(model, strict=True)

    def loss(params, hyper, z, x):
        def example(z, x):
            return apply(condition(params, modulate(hyper, z)), x)

        out = jax.vmap(example)(z, x).astype(jnp.float32)
        weights = jnp.cos(jnp.arange(TOKENS * WIDTH)).reshape(TOKENS, WIDTH)
        return (out * weights).sum(), out

    shapes = jax.eval_shape(init, jax.random.key(0), parameters())
    hyper = noisy(jax.tree.map(lambda x: jnp.zeros(x.shape), shapes))
    return jax.value_and_grad(loss, (0, 1, 2), has_aux=True), hyper


def examples(dtype=jnp.float32):
    return normal(8, USERS, LATENT), normal(9, USERS, TOKENS, WIDTH).astype(dtype)


def wide(tree):
    return jax.tree.map(lambda x: x.astype(jnp.float32), tree)


@functools.cache
def on_one_device(name, dtype=jnp.float32):
    step, hyper = program(name)
    arguments = parameters(dtype), hyper, *examples(dtype)
    return jax.device_get(wide(jax.jit(step)(*arguments)))


def compare(result, name, dtype=jnp.float32):
    return error(jax.device_get(wide(result)), on_one_device(name, dtype))


def data_parallel(name, dtype=jnp.float32):
    """Users over all devices, everything else on each."""
    mesh = Mesh(np.array(jax.devices()), ("data",))
    step, hyper = program(name)

    def local(*arguments):
        (loss, out), gradients = step(*arguments)
        return (lax.psum(loss, "data"), out), gradients

    users = P("data")
    run = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(P(), P(), users, users),
        out_specs=((P(), users), (P(), P(), users)),
    )
    arguments = parameters(dtype), hyper, *examples(dtype)
    return compare(jax.jit(run)(*arguments), name, dtype)


def heads_specs(hyper, weights):
    """The sharding of a hypernetwork whose weights are sharded as `weights`."""
    shapes = {name: w.shape for name, w in parameters().items()}

    def spec_of(path, head):
        own = functools.partial(part_spec, weights[path], shape=shapes[path])
        if isinstance(head, Head):
            inner = own(head.bias.shape)
            return Head(P(None, *inner), inner)
        return own(head.shape)

    return {
        "trunk": [],
        "leaves": {
            path: jax.tree.map(
                functools.partial(spec_of, path),
                delta,
                is_leaf=lambda x: isinstance(x, Head),
            )
            for path, delta in hyper["leaves"].items()
        },
    }


def sharded_weights(model, weights, axis):
    """Users over `data`, weights over another axis by hand."""
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("data", axis))
    step, hyper = program("all", functools.partial(model, axis))
    specs = weights, heads_specs(hyper, weights), P("data"), P("data")

    def local(*arguments):
        (loss, out), gradients = step(*arguments)
        return (lax.psum(loss, "data"), out), gradients

    run = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=specs,
        out_specs=((P(), P("data")), (*specs[:2], P("data"))),
    )
    result = jax.jit(run)(parameters(), hyper, *examples())
    return compare(result, "all")


def tensor_parallel():
    """Outputs of one product and inputs of the next are split, and summed."""

    def split(axis, p, x):
        x = jnp.tanh(x @ p["in"] + p["bias"])

        def layer(x, w):  # Split by inputs; what it gives is split again.
            y = jnp.tanh(lax.psum(x @ w, axis))
            n = x.shape[-1]
            return lax.dynamic_slice_in_dim(y, lax.axis_index(axis) * n, n, 1), None

        x, _ = lax.scan(layer, x, p["layers"])
        return lax.psum(x @ p["out"], axis)

    weights = {
        "in": P(None, "tensor"),
        "bias": P("tensor"),
        "layers": P(None, "tensor"),
        "out": P("tensor"),
    }
    return sharded_weights(split, weights, "tensor")


def gathered_weights():
    """Weights are stored in parts and gathered in the model, as with FSDP."""

    def gathering(axis, p, x):
        options = {"axis_name": axis, "tiled": True, "to": "invarying"}
        gather = functools.partial(lax.all_gather, **options)
        p = dict(p)
        p["in"] = gather(p["in"], axis=1)
        p["out"] = gather(p["out"], axis=0)
        return model(p, x)

    weights = {"in": P(None, "fsdp"), "bias": P(), "layers": P(), "out": P("fsdp")}
    return sharded_weights(gathering, weights, "fsdp")


def refused_gather():
    """Parts of a weight that devices modulate each by their own user's gain."""
    mesh = Mesh(np.array(jax.devices()), ("data",))

    def gathering(p, x):
        return x @ lax.all_gather(p, "data", axis=0, tiled=True)

    def local(w, z, x):
        apply = bridge(gathering, strict=True)
        init, modulate = hypernet([("w", scale())], LATENT)
        hyper = jax.eval_shape(init, jax.random.key(0), {"w": w})
        hyper = jax.tree.map(lambda s: jnp.ones(s.shape), hyper)
        leaf = condition({"w": w}, modulate(hyper, z[0]))["w"]
        return apply(leaf, x[0])[None]

    users = P("data")
    run = jax.shard_map(local, mesh=mesh, in_specs=(users,) * 3, out_specs=users)
    try:
        run(normal(0, 16, 5), normal(1, 8, LATENT), normal(2, 8, TOKENS, 16))
    except MaterializationError as found:
        return str(found)
    return ""


def by_pmap(name):
    """Each device has two users; gradients are summed over devices."""
    step, hyper = program(name)

    def local(params, hyper, z, x):
        (loss, out), (of_params, of_hyper, of_z) = step(params, hyper, z, x)
        summed = lax.psum((loss, of_params, of_hyper), "data")
        return (summed[0], out), (*summed[1:], of_z)

    def run(params, hyper, z, x):
        split = [a.reshape(8, USERS // 8, *a.shape[1:]) for a in (z, x)]
        mapped = jax.pmap(local, "data", in_axes=(None, None, 0, 0))
        (loss, out), (*summed, of_z) = mapped(params, hyper, *split)
        first = jax.tree.map(lambda a: a[0], (loss, summed))
        joined = [a.reshape(USERS, *a.shape[2:]) for a in (out, of_z)]
        return (first[0], joined[0]), (*first[1], joined[1])

    return compare(run(parameters(), hyper, *examples()), name)


def explicit_axes():
    """A mesh whose axes are part of types: products say how they are sharded."""
    mesh = jax.make_mesh(
        (4, 2), ("data", "tensor"), axis_types=(AxisType.Explicit,) * 2
    )
    weights = {
        "in": P(None, "tensor"),
        "bias": P("tensor"),
        "layers": P(None, "tensor"),
        "out": P("tensor"),
    }

    def split(p, x):
        x = jnp.tanh(x @ p["in"] + p["bias"])

        def layer(x, w):
            y = jnp.tanh(jnp.einsum("td,df->tf", x, w, out_sharding=P()))
            return jax.sharding.reshard(y, P(None, "tensor")), None

        x, _ = lax.scan(layer, x, p["layers"])
        return jnp.einsum("td,df->tf", x, p["out"], out_sharding=P())

    step, hyper = program("all", split)
    arguments = parameters(), hyper, *examples()
    specs = weights, heads_specs(hyper, weights), P("data"), P("data")

    def put(tree, spec):
        is_spec = lambda x: isinstance(x, P)  # noqa: E731
        if isinstance(spec, P):
            return jax.device_put(tree, NamedSharding(mesh, spec))
        shardings = jax.tree.map(
            lambda s: NamedSharding(mesh, s), spec, is_leaf=is_spec
        )
        return jax.device_put(tree, shardings)

    with jax.set_mesh(mesh):
        placed = [put(tree, spec) for tree, spec in zip(arguments, specs, strict=True)]
        return compare(jax.jit(step)(*placed), "all")


CHECKS = {
    **{name: functools.partial(data_parallel, name) for name in SPECS if name != "all"},
    "tensor parallel": tensor_parallel,
    "pmap": functools.partial(by_pmap, "all"),
}
if hasattr(jax, "set_mesh"):  # Not in the oldest versions that the package runs on.
    CHECKS |= {"explicit axes": explicit_axes, "gathered weights": gathered_weights}


@pytest.mark.parametrize("check", CHECKS)
def test_equal_to_one_device(shown, check):
    """Outputs, and gradients of weights, hypernetwork and latents."""
    assert shown[check] < 1e-5


def test_bfloat16_weights_on_devices(shown):
    """To the rounding of sums of bfloat16."""
    assert shown["bfloat16"] < 0.02


def test_parts_that_devices_modulate_apart_are_not_gathered(shown):
    assert "all_gather" in shown["refused"]


if __name__ == "__main__":
    figures = {name: check() for name, check in CHECKS.items()}
    figures["bfloat16"] = data_parallel("film", jnp.bfloat16)
    print(json.dumps(figures | {"refused": refused_gather()}))
