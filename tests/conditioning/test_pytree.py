"""A conditioned parameter as a leaf of what others write: optimizers, checkpoints, jax.

The bridge's own control flow is in test_bridge.py, devices are in test_sharding.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from arrays import normal as unit_normal
from jax import lax

from fsa.conditioning import Conditioned, fold, is_conditioned, matmul


def normal(seed, *shape):
    return unit_normal(seed, *shape, std=0.3)


def square(*stack):
    """A `[..., 5, 5]` weight with a scale of its output and rank 2."""
    term = (normal(2, *stack, 5, 1, 2), normal(3, *stack, 1, 5, 2))
    return Conditioned(normal(0, *stack, 5, 5), (normal(1, *stack, 1, 5),), (term,))


def tree():
    return {"layers": square(4), "out": {"kernel": square(), "bias": normal(5, 5)}}


X = normal(9, 3, 5)


def loss(params, x=X):
    x, _ = lax.scan(lambda x, w: (jnp.tanh(matmul(x, w)), None), x, params["layers"])
    out = x @ params["out"]["kernel"] + params["out"]["bias"]
    return (out * jnp.cos(jnp.arange(15).reshape(3, 5))).sum()


def agree(result, wanted):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        result,
        wanted,
    )


def test_gradients_of_parts_through_a_scan():
    """Helpers need no bridge, and a stack is sliced by `lax.scan` as any array."""
    ways = loss, lambda params: loss(fold(params))
    agree(
        *jax.jit(lambda params: [jax.value_and_grad(f)(params) for f in ways])(tree())
    )


@pytest.mark.parametrize(
    "transform",
    [
        jax.checkpoint,
        jax.jit,
        lambda fn: jax.pmap(lambda *args: fn(*jax.tree.map(jnp.asarray, args))),
        lambda fn: jax.vmap(fn, (0, None)),
        lambda fn: lambda w, x: lax.map(lambda w: fn(w, x), w),
        lambda fn: lambda w, x: lax.cond(x.sum() < 9, fn, lambda w, x: 0 * x, w, x),
        lambda fn: lambda w, x: fn(jax.tree.map(lax.stop_gradient, w), x),
    ],
    ids=["remat", "jit", "pmap", "vmap", "map", "cond", "jax.tree"],
)
def test_transformed_as_a_weight_is(transform, request):
    stacked = request.node.callspec.id in ("pmap", "vmap", "map")
    leaf = square(1) if stacked else square()
    x = X[None] if request.node.callspec.id == "pmap" else X

    def value(fn, leaf, x):
        def total(leaf, x):
            return jnp.sum(jnp.sin(transform(fn)(leaf, x)))

        return jax.value_and_grad(total, (0, 1))(leaf, x)

    def both(leaf, x):
        ways = (lambda w, x: x @ w), (lambda w, x: x @ w.materialize())
        return [value(fn, leaf, x) for fn in ways]

    # `jax.pmap` inside of `jax.jit` would move arrays between devices.
    is_pmap = request.node.callspec.id == "pmap"
    agree(*(both if is_pmap else jax.jit(both))(leaf, x))


def test_trees_and_paths():
    leaf = square()
    paths = [
        jax.tree_util.keystr(path)
        for path, _ in jax.tree_util.tree_leaves_with_path({"w": leaf})
    ]
    assert paths == [
        "['w'].base",
        "['w'].scales[0]",
        "['w'].terms[0][0]",
        "['w'].terms[0][1]",
    ]
    assert jax.tree.leaves({"w": leaf}, is_leaf=is_conditioned) == [leaf]
    leaves, treedef = jax.tree.flatten(leaf)
    assert is_conditioned(jax.tree.unflatten(treedef, leaves))
    assert treedef == jax.tree.structure(jax.eval_shape(lambda: leaf))


def test_device_put_with_a_sharding():
    device = jax.devices()[0]
    sharding = jax.sharding.SingleDeviceSharding(device)
    for target in (device, sharding, jax.tree.map(lambda _: sharding, square())):
        placed = jax.device_put(square(), target)
        assert is_conditioned(placed)
        assert {x.sharding for x in jax.tree.leaves(placed)} == {sharding}
        agree(placed, square())


def test_optax_updates_parts():
    optax = pytest.importorskip("optax")
    params = tree()
    labels = jax.tree.map(lambda _: "frozen", params)
    labels["layers"] = Conditioned("frozen", ("trained",), (("trained", "trained"),))
    optimizer = optax.multi_transform(
        {"trained": optax.adam(0.05), "frozen": optax.set_to_zero()}, labels
    )
    state, losses = jax.jit(optimizer.init)(params), []

    @jax.jit
    def step(params, state):
        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value

    for _ in range(11):
        params, state, value = step(params, state)
        losses.append(float(value))
    assert losses[-1] < losses[0] - 1
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), params, tree())
    assert moved["layers"].scales == (True,) and moved["layers"].terms == ((True,) * 2,)
    moved["layers"] = moved["layers"].base
    assert not any(jax.tree.leaves(moved))


def test_orbax_restores_what_was_saved(tmp_path):
    checkpoint = pytest.importorskip("orbax.checkpoint")
    params = tree()
    params["out"]["kernel"] = params["out"]["kernel"].astype(jnp.bfloat16)
    with checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "params", params)
        checkpointer.wait_until_finished()
        shapes = jax.eval_shape(lambda: params)
        restored = checkpointer.restore(tmp_path / "params", shapes)
    assert jax.tree.structure(restored) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, restored, params)
    assert restored["out"]["kernel"].dtype == jnp.bfloat16
