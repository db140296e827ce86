"""Frozen integers under modulations: qwix's arrays, and the memory of their program."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from arrays import error, normal

from fsa.conditioning import bridge, condition, fold, hypernet, low_rank, scale

USERS, TOKENS, INPUTS, OUTPUTS, LATENT = 8, 3, 96, 128, 3
X, Z = normal(0, USERS, TOKENS, INPUTS), normal(1, USERS, LATENT)
W = normal(2, INPUTS, OUTPUTS)


def hypernetwork(spec, params):
    init, modulate = hypernet(spec, LATENT)
    shapes = jax.eval_shape(init, jax.random.key(0), params)
    return modulate, jax.tree.map(lambda s: normal(s.size, *s.shape, std=0.3), shapes)


def for_each_user(fn):
    return jax.jit(jax.vmap(fn, (None, None, 0, 0)))


@pytest.mark.parametrize("dtype", ["int8", "int4", "float8_e4m3fn"])
@pytest.mark.parametrize("call", ["dot", "dequantize"])
def test_arrays_of_qwix(call, dtype):
    """Equal to the modulated and dequantised weight, by qwix's own product too."""
    qwix = pytest.importorskip("qwix")
    params = {"w": qwix.quantize(W, dtype, channelwise_axes=[1])}
    modulate, hyper = hypernetwork([("w/qvalue", scale("both") + low_rank(2))], params)

    def model(params, x):
        if call == "dot":
            return qwix.dot(x, params["w"])
        return x @ qwix.dequantize(params["w"])

    def by_parts(params, hyper, z, x):
        tree = condition(params, modulate(hyper, z))
        return bridge(model, strict=True)(tree, x)

    def reference(params, hyper, z, x):
        w = fold(condition(params, modulate(hyper, z)), jnp.float32)["w"]
        return x @ (w.qvalue * w.scale)

    results = (for_each_user(f)(params, hyper, Z, X) for f in (by_parts, reference))
    assert error(*results) < 1e-5


def test_memory_of_a_quantised_base():
    """No float copy for each user, and little more than the unconditioned model."""
    integers = np.round(np.asarray(W) * 20).astype("i1")
    params = {"q": jnp.asarray(integers), "step": jnp.full((1, OUTPUTS), 0.05)}
    modulate, hyper = hypernetwork([("q", scale("both") + low_rank(2))], params)

    def model(params, x):
        return x @ (params["q"].astype(x.dtype) * params["step"])

    def by_parts(params, hyper, z, x):
        tree = condition(params, modulate(hyper, z))
        return bridge(model, strict=True)(tree, x)

    def folded(params, hyper, z, x):
        return model(fold(condition(params, modulate(hyper, z)), jnp.float32), x)

    def plain(params, hyper, z, x):
        return model(params, x)

    def temporary(fn):
        compiled = for_each_user(fn).lower(params, hyper, Z, X).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    copy = 4 * INPUTS * OUTPUTS
    assert temporary(folded) >= USERS * copy
    # Modulated inputs and outputs of all users, and factors; XLA itself may cast the
    # weight once for all users, as it does without modulations.
    activations = 4 * USERS * TOKENS * (INPUTS + OUTPUTS)
    assert temporary(by_parts) <= temporary(plain) + copy + 3 * activations
    print(*map(temporary, (plain, by_parts, folded)))
