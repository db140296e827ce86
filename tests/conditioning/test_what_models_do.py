"""What models do with weights before they multiply by them: by parts, against folding.

All quick cases are one program, and all slow ones, since compiling each apart would
take most of the time.
"""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from arrays import error, normal
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from slow import slow_but

from fsa.conditioning import (
    Conditioned,
    MaterializationError,
    bridge,
    condition,
    fold,
    hypernet,
    lora,
    low_rank,
    matmul,
    report,
    scale,
    shift,
)


def weight(seed, *shape, sides="both", terms=True):
    """A weight with a scale of some sides, rank 2 and a shift of its output."""
    lead, (inputs, outputs) = shape[:-2], shape[-2:]
    rows, columns = (*lead, inputs, 1), (*lead, 1, outputs)
    ones = (1,) * len(shape)
    scales = {"both": (rows, columns), "output": (columns,), "": ()}[sides]
    factors = [(*rows, 2), (*ones, 2), (*columns, 2)]
    return Conditioned(
        0.3 * normal(seed, *shape),
        tuple(0.3 * normal(seed + 1 + n, *s) for n, s in enumerate(scales)),
        (
            tuple(0.4 * normal(seed + 4 + n, *s) for n, s in enumerate(factors)),
            (0.3 * normal(seed + 8, *columns, 1),),
        )
        if terms
        else (),
    )


X = normal(99, 3, 5)
MASK = np.tril(np.ones((5, 7), "f4"))
SQUARE = weight(20, 5, 5)
LAYERS = [weight(10 * n, 5, 5) for n in (3, 4, 5)]
PLAIN = [*LAYERS[:1], normal(7, 5, 5), dataclasses.replace(LAYERS[1], terms=())]
QUERY = weight(70, 5, 7, sides="output")


def through(x, w):
    return jnp.tanh(x @ w), None


def looped(axis):
    def run(ws, x):
        stacked = jnp.moveaxis(jnp.stack(ws, axis), axis, 0)
        return lax.scan(through, x, stacked)[0]

    return run


def padded(config, value=0.0):
    return lambda w, x: x @ lax.pad(w, value, config)[:5]


CASES = {
    "stacked, then scanned": (LAYERS, looped(0)),
    "stacked along another axis": (LAYERS, looped(1)),
    "layers of which some are unconditioned": (PLAIN, looped(0)),
    "trees of layers stacked": (
        [{"w": w} for w in LAYERS],
        lambda ws, x: lax.scan(
            lambda x, p: through(x, p["w"]),
            x,
            jax.tree.map(lambda *w: jnp.stack(w), *ws),
        )[0],
    ),
    "an ensemble": (LAYERS, lambda ws, x: jax.vmap(lambda w: x @ w)(jnp.stack(ws))),
    "joined after a number": (
        QUERY,
        lambda w, x: x @ jnp.concatenate([w, w * 3e-4, -w, jnp.ones((5, 2))], 1),
    ),
    "repeated for groups of heads": (
        QUERY,
        lambda w, x: x @ jnp.tile(w, (1, 2)) + x @ jnp.repeat(w, 2, 1),
    ),
    "named for remat": (QUERY, lambda w, x: x @ checkpoint_name(w, "w")),
    "barrier": (QUERY, lambda w, x: x @ lax.optimization_barrier((w, x))[0]),
    "rounded": (QUERY, lambda w, x: x @ lax.reduce_precision(w, 8, 23)),
    "remat returns it": (QUERY, lambda w, x: x @ jax.checkpoint(lambda w: w.T)(w).T),
    "mask": (weight(1, 5, 7), lambda w, x: x @ (w * MASK)),
    "mask first, bool": (weight(1, 5, 7), lambda w, x: x @ ((MASK > 0) * w)),
    "mask of rows": (weight(1, 5, 7), lambda w, x: x @ (w * MASK[:, 2:3])),
    "mask, transposed": (weight(1, 5, 7), lambda w, x: (w * MASK).T @ x.T),
    "where": (weight(1, 5, 7), lambda w, x: x @ jnp.where(MASK > 0, w, 0)),
    "where not": (weight(1, 5, 7), lambda w, x: x @ jnp.where(MASK > 0, 0, w)),
    "where a number": (weight(1, 5, 7), lambda w, x: x @ jnp.where(MASK > 0, w, -2)),
    "where an array": (weight(1, 5, 7), lambda w, x: x @ jnp.where(MASK > 0, w, MASK)),
    "triangular": (weight(1, 5, 5), lambda w, x: x @ jnp.tril(w) + x @ jnp.triu(w, 1)),
    "a step's mask under scan": (
        weight(2, 3, 5, 5),
        lambda w, x: lax.scan(through, x, w * jnp.tril(jnp.ones((5, 5))))[0],
    ),
    "divided by an array": (weight(1, 5, 7), lambda w, x: x @ (w / (MASK + 2))),
    "by a vector": (weight(1, 5, 7), lambda w, x: x @ (w * jnp.arange(7.0))),
    "by an example's vector": (weight(1, 5, 7), lambda w, x: x @ (w * x[0, :, None])),
    "a tiny number": (weight(1, 5, 7), lambda w, x: x @ (w * 1e-6 * x[0, 0])),
    "plus an array": (weight(1, 5, 7), lambda w, x: x @ (w + MASK)),
    "plus an example's vector": (
        weight(1, 5, 5),
        lambda w, x: x @ (w - x[0, :, None] + x[1]),
    ),
    "by a scale of groups": (
        weight(1, 6, 7),
        lambda w, x: (
            jnp.tile(x, 2)[:, :6]
            @ (w.reshape(2, 3, 7) * (1 + jnp.arange(14.0).reshape(2, 1, 7))).reshape(
                6, 7
            )
        ),
    ),
    "from an array": (weight(1, 5, 7), lambda w, x: x @ (MASK - w)),
    "padded": (weight(1, 5, 7), padded(((0, 2, 0), (1, 3, 0)))),
    "padded within and cut": (weight(1, 5, 7), padded(((-1, 4, 1), (0, -2, 0)))),
    "padded with a number": (weight(1, 5, 7), padded(((1, 2, 0), (0, 1, 0)), 2.5)),
    "padded by jnp": (
        weight(1, 5, 7),
        lambda w, x: x @ jnp.pad(w, ((0, 0), (1, 1)), constant_values=1.5),
    ),
}


QUICK = {
    "stacked, then scanned",
    "layers of which some are unconditioned",
    "an ensemble",
    "joined after a number",
    "repeated for groups of heads",
    "remat returns it",
    "mask",
    "where",
    "where a number",
    "triangular",
    "by a vector",
    "by an example's vector",
    "plus an array",
    "by a scale of groups",
    "from an array",
    "padded with a number",
}


def total(out):
    return (out * jnp.cos(jnp.arange(out.size).reshape(out.shape))).sum()


def both_ways(names):
    """{case: (value and gradients by parts, those of the folded weight)}."""
    cases = {name: CASES[name] for name in names}

    @jax.jit
    def run(weights, x):
        outs = {}
        for name, (_, fn) in cases.items():

            def loss(w, x, apply):
                out = apply(w, x)
                return total(out), out

            ways = bridge(fn, strict=True), lambda w, x, fn=fn: fn(fold(w), x)
            outs[name] = [
                jax.value_and_grad(loss, (0, 1), has_aux=True)(weights[name], x, way)
                for way in ways
            ]
        return outs

    return run({name: w for name, (w, _) in cases.items()}, X)


@pytest.fixture(scope="module")
def quick_ways():
    return both_ways(name for name in CASES if name in QUICK)


@pytest.fixture(scope="module")
def slow_ways():
    return both_ways(name for name in CASES if name not in QUICK)


@pytest.mark.parametrize("name", slow_but(QUICK, CASES))
def test_by_parts(request, name):
    ways = "quick_ways" if name in QUICK else "slow_ways"
    result, wanted = request.getfixturevalue(ways)[name]
    largest = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(wanted))
    for got, right in zip(
        jax.tree.leaves(result), jax.tree.leaves(wanted), strict=True
    ):
        scale = max(float(jnp.abs(right).max()), 1e-2 * largest)
        np.testing.assert_allclose(got, right, rtol=1e-4, atol=1e-5 * scale)
    leaf, fn = CASES[name]
    assert not report(fn, leaf, X).materialized


def test_per_user_arrays_stay_small():
    """What a mask, padding or an added array makes of the parts is no copy of w."""
    users, x = 11, normal(1, 3, 19)
    mask = np.tril(np.ones((19, 23), "f4"))
    models = {
        "mask": lambda w: x @ (w * mask),
        "where": lambda w: x @ jnp.where(mask > 0, w, -2),
        "plus": lambda w: x @ (w + mask),
        "padded": lambda w: x @ lax.pad(w, 2.5, ((1, 2, 0), (0, 1, 0)))[:19],
    }
    leaf = weight(1, 19, 23)
    parts = jax.tree.map(
        lambda part: jnp.stack([part] * users), (leaf.scales, leaf.terms)
    )
    for name, model in models.items():
        apply = bridge(model, strict=True)

        def one(parts, apply=apply):
            return apply(Conditioned(leaf.base, *parts))

        sizes = [
            v.aval.size
            for eqn in jax.make_jaxpr(jax.vmap(one))(parts).eqns
            for v in eqn.outvars
        ]
        # A product with a mask costs x's tokens x rank x width for each user.
        assert max(sizes) < users * leaf.size, name


def quantized(dtype):
    rng = np.random.default_rng(0)
    q = jnp.asarray(rng.integers(-8, 8, (31, 37)).astype("i1")).astype(dtype)
    return {"q": q, "scale": jnp.asarray(rng.uniform(1e-3, 1e-2, (1, 37)), jnp.float32)}


QUANTIZED = {
    "cast and multiplied": lambda p, x: x @ (p["q"].astype(x.dtype) * p["scale"]),
    "multiplied afterwards": lambda p, x: (x @ p["q"].astype(x.dtype)) * p["scale"],
    "product with integers": lambda p, x: (
        lax.dot_general(
            *(x, p["q"], (((1,), (0,)), ((), ()))), preferred_element_type=jnp.float32
        )
        * p["scale"]
    ),
    "looked up": lambda p, x: p["q"][jnp.argmax(x, 1)].astype(x.dtype) * p["scale"],
}


@pytest.mark.parametrize(
    "dtype",
    [
        jnp.int8,
        pytest.param(jnp.int4, marks=pytest.mark.slow),
        pytest.param(jnp.float8_e4m3fn, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("name", QUANTIZED)
def test_quantized_weights(name, dtype):
    """Equal to the dequantised weight, and no array of floats as large as it."""
    model, params, x = QUANTIZED[name], quantized(dtype), normal(1, 5, 3, 31)
    init, modulate = hypernet([("q", scale("both") + low_rank(2))], 3)
    shapes = jax.eval_shape(init, jax.random.key(0), params)
    hyper = jax.tree.map(lambda s: normal(s.size, *s.shape, std=0.3), shapes)

    def loss(hyper, z, x, params, folded):
        tree = condition(params, modulate(hyper, z))
        tree = fold(tree, jnp.float32) if folded else tree
        return total((model if folded else bridge(model, strict=True))(tree, x))

    def run(hyper, z, params, folded):
        def all_users(hyper):
            one = lambda z, x: loss(hyper, z, x, params, folded)  # noqa: E731
            return jax.vmap(one)(z, x).sum()

        return jax.value_and_grad(all_users)(hyper)

    arguments = hyper, normal(2, 5, 3), params
    both = [jax.jit(run, static_argnums=3)(*arguments, folded) for folded in (0, 1)]
    assert error(*both) < 1e-4
    program = str(jax.make_jaxpr(run, static_argnums=3)(*arguments, 0))
    assert "f32[31,37]" not in program.replace(" ", "")


@pytest.mark.parametrize("dtype", [jnp.int8, jnp.uint4, jnp.bool_, jnp.float8_e5m2])
def test_no_modulated_value_is_rounded_to_a_quantised_dtype(dtype):
    """Seven scaled by 10 % would stay seven; nor is a table of integers rounded."""
    params = {"q": jnp.ones((5, 7)).astype(dtype)}
    leaf = Conditioned(params["q"], (jnp.full((1, 7), 0.1),))
    with pytest.raises(ValueError, match="q holds .*`dtype`"):
        fold({"q": leaf})
    np.testing.assert_allclose(fold(leaf, jnp.float32), 1.1)
    looked_up = bridge(lambda p, i: p["q"][i].astype(jnp.float32), strict=True)
    np.testing.assert_allclose(looked_up({"q": leaf}, jnp.arange(3)), 1.1)


def test_quantized_weights_are_folded_to_floats_only():
    params = {"layer": {"q": jnp.full((5, 7), 7, jnp.int8)}}
    init, modulate = hypernet([(".*", scale())], 3)
    hyper = jax.tree.map(lambda x: x + 0.1, init(jax.random.key(0), params))
    conditioned = condition(params, modulate(hyper, jnp.zeros(3)))
    with pytest.raises(ValueError, match="layer/q.*`dtype`"):
        fold(conditioned)
    np.testing.assert_allclose(fold(conditioned, jnp.float32)["layer"]["q"], 7.7)
    # Integer arithmetic has no modulated value, with and without `strict`.
    for model in (
        lambda p, x: x @ (p["layer"]["q"] & 3).astype(jnp.float32),
        lambda p, x: x.astype(jnp.int8) @ p["layer"]["q"],
        lambda p, x: p["layer"]["q"],
    ):
        with pytest.raises(MaterializationError, match="layer/q.*int8"):
            bridge(model)(conditioned, X)


def test_scalar_parameters():
    """A temperature, and one for each layer of a stack."""
    params = {"w": normal(0, 5, 7), "t": jnp.float32(0.7), "each": jnp.arange(1.0, 4.0)}
    spec = [
        ("w", scale()),
        ("t", scale() + shift()),
        ("each", shift().layout(stacked=True)),
    ]

    def model(p, x):
        out = jax.nn.softmax(x @ p["w"] / p["t"])
        return lax.scan(lambda out, each: (jnp.sin(out * each), None), out, p["each"])[
            0
        ]

    init, modulate = hypernet(spec, 3)
    hyper = jax.tree.map(lambda x: x + 0.1, init(jax.random.key(0), params))
    assert hyper["leaves"]["t"].scales[0].kernel.shape == (3,)

    @jax.jit
    def run(z):
        conditioned = condition(params, modulate(hyper, z))
        return bridge(model, strict=True)(conditioned, X), model(fold(conditioned), X)

    assert error(*run(jnp.ones(3))) < 1e-5
    for modulation in (scale("input"), low_rank(2), lora(1)):
        with pytest.raises(ValueError, match="t .scalar.*axis"):
            hypernet([("t", modulation)], 3).init(jax.random.key(0), params)


def test_numbers_stay_numbers():
    """As arguments, NumPy's too, and as results."""

    def model(w, x, heads, flag):
        out = (x @ w).reshape(x.shape[0], heads, -1) if flag else x
        return {"out": out, "loss": 1.5, "n": heads, "name": "model", "none": None}

    result = bridge(model, strict=True)(QUERY, X, np.int64(7), np.bool_(True))
    assert result["out"].shape == (3, 7, 1)
    assert type(result["loss"]) is float and result["name"] == "model"
    assert type(result["n"]) is np.int64 and result["none"] is None
    constant = bridge(lambda w, x: jnp.float32(2) + 0 * 1)(QUERY, X)
    assert isinstance(constant, jax.Array)
    # The last equation may be a constant, which jax keeps as a literal.
    literal = bridge(lambda w, x: jax.jit(lambda: 3.0)())(QUERY, X)
    assert isinstance(literal, jax.Array) and literal == 3
    assert report(model, QUERY, X, 7, True).uses


@pytest.mark.parametrize(
    "wrong",
    [
        lambda w, x: jnp.dot(x, w),
        lambda w, x: x + w,
        lambda w, x: 2 * w,
        lambda w, x: -w,
        lambda w, x: lax.dot(x, w),
        lambda w, x: jnp.sum(w),
        lambda w, x: w.sum(),
        lambda w, x: np.asarray(w),
        lambda w, x: jax.nn.relu(w),
        lambda w, x: [row for row in w],
    ],
)
def test_a_forgotten_bridge_is_named(wrong):
    with pytest.raises((TypeError, AttributeError), match="bridge"):
        wrong(QUERY, X)
    with pytest.raises((TypeError, AttributeError), match="bridge"):
        jax.jit(wrong)(QUERY, X)


def test_a_weight_that_a_branch_returns_is_named():
    def model(w, x):
        return x @ lax.cond(x[0, 0] > 0, lambda: w, lambda: 2 * w)

    with pytest.raises(MaterializationError, match="by cond at .*test_what_models_do"):
        bridge(model, strict=True)(QUERY, X)
    assert error(bridge(model)(QUERY, X), model(fold(QUERY), X)) < 1e-5


def test_helpers_name_the_line_of_the_model():
    with pytest.raises(MaterializationError, match=pathlib.Path(__file__).name):
        matmul(QUERY, QUERY.T)
