"""What the bridge does before a loop, and that results are those of folded weights."""

import jax
import jax.numpy as jnp
import pytest
from arrays import error, float64, normal
from jax import lax

from fsa.conditioning import Conditioned, bridge, fold, report, rows_dot


def weight(seed, inputs=11, outputs=7, by_inputs=False):
    """A weight with a scale of its outputs, or inputs, and rank 1."""
    scale = normal(seed, inputs, 1) if by_inputs else normal(seed, 1, outputs)
    factors = (
        normal(seed + 1, inputs, 1, 1),
        normal(seed + 2, 1, 1, 1),
        normal(seed + 3, 1, outputs, 1),
    )
    return Conditioned(0.3 * normal(seed + 4, inputs, outputs), (scale,), (factors,))


def net(params, x, reverse=False):
    """A recurrent net whose two gates multiply inputs and state by a weight each."""

    def step(h, x):
        gates = [x @ params[f"in {n}"] + h @ params[f"state {n}"] for n in range(2)]
        new = jnp.tanh(gates[0]) * jax.nn.sigmoid(gates[1])
        h = jnp.concatenate([new, h[:4]])
        return h, h

    return lax.scan(step, jnp.ones(11), x, reverse=reverse)[1]


def net_params(**options):
    names = [f"{side} {n}" for side in ("in", "state") for n in range(2)]
    return {name: weight(10 * n, **options) for n, name in enumerate(names)}


X = normal(99, 5, 11)


def products_in_loop(fn, *args):
    """Number of products in the body of the one scan of a function."""
    jaxpr = jax.make_jaxpr(fn)(*args).jaxpr
    body = next(e for e in jaxpr.eqns if e.primitive.name == "scan").params["jaxpr"]
    names = [e.primitive.name for e in body.jaxpr.eqns]
    return names.count("dot_general") + names.count(rows_dot.NAME)


@pytest.mark.parametrize(
    ("by_inputs", "reverse"),
    [
        (False, False),
        pytest.param(False, True, marks=pytest.mark.slow),
        pytest.param(True, False, marks=pytest.mark.slow),
        (True, True),
    ],
)
def test_values_and_gradients_are_those_of_folded_weights(reverse, by_inputs):

    def loss(run, params, x):
        return (run(params, x, reverse=reverse) ** 2).sum()

    def lazy(params, x):
        return loss(bridge(net, strict=True), params, x)

    def built(params, x):
        return loss(net, fold(params), x)

    found, wanted = (jax.jit(jax.value_and_grad(f, (0, 1))) for f in (lazy, built))
    # In float64, as processors differ in the order of sums.
    with float64():
        params = net_params(by_inputs=by_inputs)
        params, x = jax.tree.map(lambda a: a.astype(float), (params, X))
        assert error(found(params, x), wanted(params, x)) < 1e-12


def test_a_step_has_one_product_of_the_state_and_none_of_the_inputs():
    params = net_params()
    # With the joined weight, and with each of two factors of the low rank.
    assert products_in_loop(bridge(net, strict=True), params, X) == 3


def test_weights_whose_inputs_are_scaled_apart_are_not_joined():
    params = net_params(by_inputs=True)
    assert products_in_loop(bridge(net, strict=True), params, X) == 2 * 3


def test_every_joined_weight_is_reported():
    found = report(net, net_params(), X)
    assert {use.path for use in found.uses} == set(net_params())


def test_products_that_would_need_much_memory_stay_in_the_loop():
    wide = {"w": weight(0, outputs=1000)}

    def run(params, x):
        return lax.scan(lambda h, x: (h + (x @ params["w"]).sum(), h), 0.0, x)[1]

    bridged = bridge(run, strict=True)
    assert products_in_loop(bridged, wide, X) == 3
    assert error(bridged(wide, X), run(fold(wide), X)) < 1e-5


def test_rows_times_a_weight_on_the_left_keep_their_layout():
    w = weight(0)
    rows = normal(1, 2, 5, 11)

    def run(w, rows):  # [I, O] and [B, T, I] to [O, B, T]
        return lax.dot_general(w, rows, (((0,), (2,)), ((), ())))

    found = bridge(run, strict=True)
    assert error(found(w, rows), run(fold(w), rows)) < 1e-5
    dots = [
        e
        for e in jax.make_jaxpr(found)(w, rows).jaxpr.eqns
        if e.primitive.name in ("dot_general", rows_dot.NAME)
    ]
    assert dots and all(e.invars[0].aval.shape[:2] == (2, 5) for e in dots)


def test_a_product_of_constants_is_computed_before_the_loop():
    start = jnp.ones(11)

    def run(params, start):
        def step(h, _):
            return jnp.tanh(h + start @ params["w"]), None

        return lax.scan(step, jnp.zeros(7), None, length=3)[0]

    params = {"w": weight(0)}
    bridged = bridge(run, strict=True)
    assert products_in_loop(bridged, params, start) == 0
    assert error(bridged(params, start), run(fold(params), start)) < 1e-5


def test_products_of_two_conditioned_weights_are_not_joined():
    """A weight that the loop carries meets two others, which are joined with arrays."""
    params = {name: weight(10 * n, 11, 11) for n, name in enumerate("uvw")}

    def run(params, x):
        def step(h, w):
            return jnp.tanh(h @ (w @ params["u"]) + h @ (w @ params["v"])), None

        layers = jnp.stack([params["w"]] * 2)
        return lax.scan(step, x, layers)[0]

    bridged = bridge(run)
    assert error(bridged(params, X[0]), run(fold(params), X[0])) < 1e-5
    built = {use.reason for use in report(run, params, X[0]).materialized}
    assert built == {"two conditioned parameters meet"}


def test_a_callback_before_a_product_runs_in_each_step():
    params = {"w": weight(0)}

    def run(params, x):
        def step(h, x):
            doubled = jax.pure_callback(
                lambda x: 2 * x, jax.ShapeDtypeStruct(x.shape, x.dtype), x
            )
            return h + doubled @ params["w"], None

        return lax.scan(step, jnp.zeros(7), x)[0]

    bridged = bridge(run, strict=True)
    assert products_in_loop(bridged, params, X) == 3
    assert error(bridged(params, X), run(fold(params), X)) < 1e-5


def test_random_numbers_of_each_step_are_kept():
    """Of some generators, keys that are mapped draw other numbers than one by one."""
    params = {"w": weight(0)}
    keys = jax.random.split(jax.random.key(0, impl="rbg"), len(X))

    def run(params, data):
        def step(h, data):
            x, key = data
            x = x * jax.random.bernoulli(key, shape=x.shape)
            return h + x @ params["w"], None

        return lax.scan(step, jnp.zeros(7), data)[0]

    found = bridge(run, strict=True)(params, (X, keys))
    assert error(found, run(fold(params), (X, keys))) < 1e-5


PRODUCTS = {
    "transposed weight": (lambda w, x: x @ w.T, 0),
    "a part unused": (lambda w, x: jnp.split(w @ x, [2, 3])[1], 0),
    "after a branch": (lambda w, x: w @ lax.cond(x[0] > 0, jnp.sin, jnp.cos, x), 1),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_what_a_step_has_left(name):
    """No product, unless a branch comes before: mapped, it would take both branches."""
    product, expected = PRODUCTS[name]
    w = weight(0, 7, 11)
    params = {"w": Conditioned(w.base, w.scales)}

    def run(params, x):
        return lax.scan(lambda h, x: (h + product(params["w"], x).sum(), h), 0.0, x)

    bridged = bridge(run, strict=True)
    assert products_in_loop(bridged, params, X) == expected
    assert error(bridged(params, X), run(fold(params), X)) < 1e-5
