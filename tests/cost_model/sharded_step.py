"""A script that compiles a step with known collectives for 2 x 2 x 2 devices.

`python sharded_step.py TOPOLOGY`, with local or a topology of 8 chips, which needs the
TPU compiler. It prints, as JSON, the bytes that are sent and those that theory expects.
"""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fsa.cost_model import cost
from fsa.cost_model.compile_step import find_devices

LAYERS, WIDTH, HIDDEN, EXAMPLES = 3, 256, 512, 64
SIZES = {"data": 2, "fsdp": 2, "tensor": 2}


def loss(weights, x):
    def layer(x, pair):
        up, down = pair
        return x + jnp.tanh(x @ up) @ down, None

    x, _ = jax.lax.scan(layer, x, weights)
    return jnp.mean(x**2)


def step(weights, x):
    gradient = jax.grad(loss)(weights, x)
    return jax.tree.map(lambda w, g: w - 0.1 * g, weights, gradient)


def compile_text(devices):
    mesh = Mesh(np.array(devices).reshape(tuple(SIZES.values())), tuple(SIZES))

    def array(shape, *spec):
        sharding = NamedSharding(mesh, PartitionSpec(*spec))
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)

    weights = (
        array((LAYERS, WIDTH, HIDDEN), None, "fsdp", "tensor"),
        array((LAYERS, HIDDEN, WIDTH), None, "tensor", "fsdp"),
    )
    x = array((EXAMPLES, WIDTH), ("data", "fsdp"))
    placed = jax.tree.map(lambda w: w.sharding, weights)
    jitted = jax.jit(step, out_shardings=placed, donate_argnums=0)
    return jitted.lower(weights, x).compile().as_text()


def expected():
    """Bytes that a device sends; every array is split in two."""
    weights = 4 * LAYERS * 2 * WIDTH * HIDDEN // SIZES["tensor"]
    examples = EXAMPLES // (SIZES["data"] * SIZES["fsdp"])
    return {
        # In the forward and in the backward pass.
        "gathered": 2 * weights / 2,
        "scattered": weights / 2,
        "reduced": 2 * weights / SIZES["fsdp"] / 2,
        # The output of down in the forward pass, of up in the backward pass.
        "activations": 2 * 2 * 4 * LAYERS * examples * WIDTH / 2,
    }


if __name__ == "__main__":
    counted = cost.count(compile_text(find_devices(sys.argv[1])[0]), SIZES)
    sent = {f"{'+'.join(axes)} {kind}": n for (axes, kind), n in counted.sent().items()}
    print(json.dumps({"sent": sent, "expected": expected()}))
