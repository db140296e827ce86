"""The bridge: primitives and control flow, what materialises, and that it says so."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from arrays import error, normal
from jax import lax

from fsa.conditioning import (
    Conditioned,
    MaterializationError,
    bridge,
    fold,
    is_conditioned,
    report,
)


def square(seed=0, stack=()):
    """An [..., 5, 5] weight with a scale of each side and rank 2."""
    ones = (1,) * len(stack)
    return Conditioned(
        0.3 * normal(seed, *stack, 5, 5),
        (0.3 * normal(seed + 1, *stack, 5, 1), 0.3 * normal(seed + 2, *stack, 1, 5)),
        (
            (
                normal(seed + 3, *stack, 5, 1, 2),
                0.3 * normal(seed + 4, *ones, 1, 1, 2),
                0.3 * normal(seed + 5, *stack, 1, 5, 2),
            ),
        ),
    )


X = normal(99, 3, 5)


def body(x, w):
    return jnp.tanh(x @ w), (x @ w).sum()


BY_PARTS = {
    "matmul": (square(), lambda w, x: x @ w),
    "scaled": (square(), lambda w, x: x @ (w * 2.0 / 3.0)),
    "negated": (square(), lambda w, x: x @ -w),
    "plus a constant": (square(), lambda w, x: x @ (w + jnp.eye(5) - 0.5)),
    "from a constant": (square(), lambda w, x: x @ (1.0 - w)),
    "scaled by the example": (square(), lambda w, x: x @ (w * x[0, 0] / x[1, 1])),
    "transposed": (square(), lambda w, x: x @ w.T),
    "split": (square(), lambda w, x: sum(x @ part for part in jnp.split(w, 5, 1))),
    "joined": (
        Conditioned(normal(0, 5, 7), (normal(1, 1, 7),)),
        lambda w, x: x @ jnp.concatenate([w, -w, jnp.eye(5)], 1),
    ),
    "cast": (square(), lambda w, x: x @ w.astype(jnp.float32)),
    "stopped": (square(), lambda w, x: x @ lax.stop_gradient(w)),
    "reversed": (square(), lambda w, x: x @ lax.rev(w, (0,))),
    "broadcast": (square(), lambda w, x: jnp.broadcast_to(w, (3, 5, 5)) @ x[..., None]),
    "new axes": (square(), lambda w, x: jnp.squeeze(w[None, :, None], 0)[:, 0].T @ x.T),
    "jit": (square(), lambda w, x: jax.jit(lambda w: w.T)(w) @ x.T),
    "indexed by the example": (square(), lambda w, x: w[jnp.argmax(x, 1)] * 2 + x),
    "remat": (square(), lambda w, x: jax.checkpoint(body)(x, w)),
    "stacked": (square(stack=(4,)), lambda w, x: lax.scan(body, x, w)),
    "stacked, remat, reversed": (
        square(stack=(4,)),
        lambda w, x: lax.scan(jax.checkpoint(body), x, w, reverse=True),
    ),
    "unstacked by a counter": (
        square(stack=(4,)),
        lambda w, x: lax.fori_loop(0, 4, lambda i, x: jnp.tanh(x @ w[i]), x),
    ),
    "carried unchanged": (
        square(),
        lambda w, x: lax.scan(lambda c, _: ((c[0], c[1] @ c[0]), 0), (w, x), None, 3)[
            0
        ][1],
    ),
    "while": (
        square(),
        lambda w, x: lax.while_loop(
            lambda c: (jnp.abs(c[1] @ w) < 50).all() & (c[0] < 5),
            lambda c: (c[0] + 1, 2 * c[1] @ w),
            (0, x),
        )[1],
    ),
    "cond": (
        square(),
        lambda w, x: lax.cond(x[0, 0] > 0, lambda x: x @ w, lambda x: (w.T @ x.T).T, x),
    ),
    "activations": (square(), lambda w, x: jax.nn.relu(jax.nn.softplus(x @ w))),
}


@pytest.mark.parametrize("name", BY_PARTS)
def test_by_parts(name):
    """Strictly, and with the gradient of every part and of x."""
    leaf, fn = BY_PARTS[name]
    differentiable = name != "while"

    def loss(fn, leaf, x):
        outs = jax.tree.leaves(fn(leaf, x))
        return sum(
            (out * jnp.cos(jnp.arange(out.size).reshape(out.shape))).sum()
            for out in outs
        )

    def folded(leaf, x):
        return fn(fold(leaf), x)

    @jax.jit
    def run(leaf, x):
        ways = bridge(fn, strict=True), folded
        if not differentiable:
            return [(loss(way, leaf, x), ()) for way in ways]
        return [jax.value_and_grad(loss, (1, 2))(way, leaf, x) for way in ways]

    result, wanted = run(leaf, X)
    largest = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(wanted))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * largest),
        result,
        wanted,
    )
    assert not report(fn, leaf, X).materialized


@jax.custom_jvp
def sharp(w):
    return w * 2


@sharp.defjvp
def _(primals, tangents):
    return sharp(*primals), tangents[0] * 100


MATERIALIZED = {
    "dot_general": lambda w, x: x @ (w @ w),
    "exp": lambda w, x: x @ jnp.exp(w),
    "custom_jvp_call": lambda w, x: x @ sharp(w),
    "return": lambda w, x: w,
    "reduce_sum": lambda w, x: x * w.sum(),
    "scan": lambda w, x: lax.scan(lambda c, _: (c + 1, 0), w, None, 2)[0] @ x.T,
    "reshape": lambda w, x: w.reshape(25)[:5] + x,
}


@pytest.mark.parametrize("primitive", MATERIALIZED)
def test_what_materialises_is_right_reported_and_refused(primitive):
    fn, leaf = MATERIALIZED[primitive], square()
    both = jax.jit(lambda leaf, x: (bridge(fn)(leaf, x), fn(fold(leaf), x)))
    assert error(*both(leaf, X)) < 1e-5
    found = report(
        lambda params, x: fn(params["layer"]["w"], x), {"layer": {"w": leaf}}, X
    )
    uses = found.materialized
    assert {use.path for use in uses} == {"layer/w"}
    assert {use.primitive for use in uses} == {primitive}
    assert {use.bytes_per_user for use in uses} == {4 * 25}
    assert all(
        use.primitive == "return" or "test_bridge.py" in use.source for use in uses
    )
    assert "materialised: " in str(found)
    with pytest.raises(MaterializationError, match=f"5x5.*by {primitive}"):
        bridge(fn, strict=True)(leaf, X)


def test_a_custom_derivative_is_kept():
    def bridged(leaf):
        return bridge(MATERIALIZED["custom_jvp_call"])(leaf, X).sum()

    def folded(leaf):
        return (X @ sharp(fold(leaf))).sum()

    both = jax.jit(lambda leaf: [jax.grad(fn)(leaf) for fn in (bridged, folded)])
    gradient, wanted = both(square())
    assert error(gradient, wanted) < 1e-4
    assert float(jnp.abs(gradient.base).max()) > 10


def test_an_index_that_users_share_gives_no_activation():
    """A permuted weight is still a weight; an embedding of a token is an activation."""
    order = np.array([4, 2, 0, 1, 3])
    shared = report(lambda w, x: x @ jnp.exp(w[order]), square(), X)
    assert [use.primitive for use in shared.materialized] == ["exp"]
    own = report(lambda w, x: jnp.exp(w[jnp.argmax(x, 1)]), square(), X)
    assert not own.materialized
    in_a_loop = report(
        lambda w, x: lax.fori_loop(0, 4, lambda i, x: x @ jnp.exp(w[i]), x),
        square(stack=(4,)),
        X,
    )
    assert [use.primitive for use in in_a_loop.materialized] == ["exp"]


def test_what_an_example_looks_up_is_an_activation():
    """It may meet another conditioned weight."""

    def fn(w, x):
        n = jnp.argmax(x[0])
        one = lax.dynamic_index_in_dim(w, n, keepdims=False)
        return (jnp.concatenate([one[None], w[jnp.argmax(x, 1)], x]) @ w).sum()

    leaf = square()
    both = jax.jit(lambda w, x: (bridge(fn, strict=True)(w, x), fn(fold(w), x)))
    assert error(*both(leaf, X)) < 1e-4
    assert not report(fn, leaf, X).materialized


def test_a_weight_scaled_by_an_example_is_still_a_weight():
    found = report(lambda w, x: x @ jnp.exp(w * x[0, 0] + x[1, 1]), square(), X)
    assert [use.primitive for use in found.materialized] == ["exp"]


def test_arguments_and_results_keep_their_structure():
    def fn(params, x, flag, scale=2.0, *, activation=None):
        out = activation(x @ params["w"]) * scale
        return {"out": out if flag else None, "same": params["b"]}

    @jax.jit
    def run(params):
        ways = (bridge(fn), params), (fn, fold(params))
        return [way(own, X, True, activation=jnp.tanh) for way, own in ways]

    result, wanted = run({"w": square(), "b": jnp.ones(2)})
    assert set(result) == {"out", "same"}
    assert error(result, wanted) < 1e-5
    assert bridge(fn)({"w": X[0], "b": X}, X, False, activation=jnp.sin)["out"] is None


def test_report_takes_shapes():
    shapes = jax.eval_shape(lambda: (square(), X))
    assert is_conditioned(shapes[0])
    found = report(lambda w, x: x @ w, *shapes)
    assert [use.primitive for use in found.uses] == ["dot_general"]
