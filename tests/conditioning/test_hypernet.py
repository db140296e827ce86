"""The hypernetwork: what it modulates, that it starts as nothing, what it refuses."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from arrays import error, noisy, normal
from slow import slow_but

from fsa.conditioning import (
    Conditioned,
    Delta,
    bridge,
    condition,
    describe,
    fold,
    hypernet,
    interpolate,
    is_conditioned,
    lora,
    low_rank,
    parse,
    scale,
    shift,
    user_axes,
)

PARAMS = {
    "dense": {"kernel": jnp.ones((5, 7)), "bias": jnp.ones(7)},
    "heads": {"kernel": jnp.ones((7, 2, 3)), "bias": jnp.ones((2, 3))},
    "stack": jnp.ones((4, 3, 11)),
}
SPEC = [
    ("dense/kernel", scale("both") + low_rank(2)),
    ("heads/kernel", (low_rank(2, factors="generated") + scale()).layout((1, 2))),
    ("heads/bias", shift().layout((0, 1), ())),
    (".*/bias", shift() + scale()),
    ("stack", (scale() + low_rank(3) + lora(1)).layout(stacked=True)),
]


def model(params, x):
    x = jnp.tanh(x @ params["dense"]["kernel"] + params["dense"]["bias"])
    heads = jnp.einsum("td,dhk->thk", x, params["heads"]["kernel"])
    x = (heads + params["heads"]["bias"]).sum(1)
    return jax.lax.scan(
        lambda c, w: ((c @ w)[:, :3], (c @ w).sum()), x, params["stack"]
    )


OPTIONS = {
    "": {},
    "trunk": {"trunk": (6, 4)},
    "normalize": {"normalize": True},
    "outputs": {"zero": "outputs"},
    "outputs, trunk": {"zero": "outputs", "trunk": (6, 4)},
}


@pytest.fixture(scope="module")
def fresh():
    """Fresh parameters of the hypernetwork with each of `OPTIONS`."""

    @jax.jit
    def run(key, params):
        return {n: hypernet(SPEC, 3, **o).init(key, params) for n, o in OPTIONS.items()}

    return run(jax.random.key(0), PARAMS)


@pytest.fixture(scope="module")
def hyper(fresh):
    """Parameters far from fresh."""
    return noisy(fresh[""])


def shapes_of_modulations(spec, params, latent_dim=3):
    init, modulate = hypernet(spec, latent_dim)

    def run(params):
        return modulate(init(jax.random.key(0), params), jnp.ones(latent_dim))

    return jax.eval_shape(run, params)


@pytest.mark.parametrize("options", slow_but(("", "outputs"), OPTIONS))
def test_fresh_is_the_identity_bitwise(options, fresh):
    modulate = hypernet(SPEC, 3, **OPTIONS[options]).apply
    params, x = noisy(PARAMS), normal(1, 13, 5)

    @jax.jit
    def run(params, hyper, z, x):
        def apply(hyper):
            return bridge(model)(condition(params, modulate(hyper, z)), x)

        folded = fold(condition(params, modulate(hyper, z)))
        gradient = jax.grad(lambda hyper: apply(hyper)[1].sum())(hyper)
        return (folded, apply(hyper)), (params, model(params, x)), gradient

    z = jnp.array([1.0, -2.0, 0.5])
    result, wanted, gradient = run(params, fresh[options], z, x)
    jax.tree.map(np.testing.assert_array_equal, result, wanted)
    # But it can be trained: an array of every head gets a gradient.
    moved = [
        any(float(jnp.abs(g).max()) > 0 for g in jax.tree.leaves(delta))
        for delta in gradient["leaves"].values()
    ]
    assert len(moved) == 5 and all(moved)


def test_outputs_begin_at_zero_where_gates_do_not(fresh):
    """They get a gradient at once, and in all directions; gates get none yet."""
    term, plain = (
        fresh[name]["leaves"]["dense/kernel"].terms[0] for name in ("outputs", "")
    )
    inputs, gate, outputs = term
    np.testing.assert_array_equal(inputs, plain[0])
    assert gate.kernel.shape == (3, 1, 1, 2) and gate.kernel.std() > 0.3
    assert not gate.bias.any() and not outputs.any()
    assert not plain[1].kernel.any() and plain[2].all()

    def loss(hyper):
        z = jnp.array([1.0, -2.0, 0.5])
        modulations = hypernet(SPEC, 3, zero="outputs").apply(hyper, z)
        return bridge(model)(condition(PARAMS, modulations), normal(1, 13, 5))[1].sum()

    of_inputs, of_gate, of_outputs = jax.jit(jax.grad(loss))(fresh["outputs"])[
        "leaves"
    ]["dense/kernel"].terms[0]
    assert of_outputs.all()
    assert not of_inputs.any() and not of_gate.kernel.any()


def test_gates_are_as_large_as_z_is_long():
    params = {"w": jnp.ones((2, 2))}
    for latent_dim in (4, 64):
        init, modulate = hypernet([("w", low_rank(4000))], latent_dim, zero="outputs")
        z = jnp.full(latent_dim, 3 / np.sqrt(latent_dim))
        gate = modulate(init(jax.random.key(0), params), z)["w"].terms[0][1]
        assert gate.std() == pytest.approx(3, rel=0.05)


def test_what_starts_at_zero_has_two_names():
    with pytest.raises(ValueError, match="`zero` is one of gates, outputs, not 'all'"):
        hypernet(SPEC, 3, zero="all")


def test_shapes_of_modulations():
    found = shapes_of_modulations(SPEC, PARAMS)
    shapes = {
        path: ([s.shape for s in d.scales], [[f.shape for f in t] for t in d.terms])
        for path, d in found.items()
    }
    assert shapes == {
        "dense/bias": ([(7,)], [[(7, 1)]]),
        "dense/kernel": ([(5, 1), (1, 7)], [[(5, 1, 2), (1, 1, 2), (1, 7, 2)]]),
        "heads/bias": ([], [[(2, 3, 1)]]),
        "heads/kernel": ([(1, 2, 3)], [[(7, 1, 1, 2), (1, 2, 3, 2)]]),
        "stack": (
            [(4, 1, 11)],
            [
                [(4, 3, 1, 3), (4, 1, 1, 3), (4, 1, 11, 3)],
                [(4, 3, 1, 1), (4, 1, 11, 1)],
            ],
        ),
    }


def test_modulations_are_affine_in_z_without_a_trunk(hyper):
    modulate = jax.jit(jax.vmap(hypernet(SPEC, 3).apply, (None, 0)))
    z = normal(1, 3)
    found = modulate(hyper, jnp.stack([z, 0 * z, -z]))
    for path, delta in found.items():
        heads = hyper["leaves"][path]
        for part, head in zip(delta.scales, heads.scales, strict=True):
            wanted = np.tensordot(z, head.kernel, 1) + head.bias
            np.testing.assert_allclose(part[0], wanted, rtol=1e-5, atol=1e-6)
    # A learned basis does not depend on z.
    for basis in found["dense/kernel"].terms[0][0]:
        np.testing.assert_array_equal(
            basis, hyper["leaves"]["dense/kernel"].terms[0][0]
        )
    for delta in found.values():
        for first, middle, last in map(np.asarray, delta.scales):
            np.testing.assert_allclose(middle, (first + last) / 2, atol=1e-6)


def test_gradient_of_heads_is_an_outer_product(hyper):
    modulate = hypernet(SPEC, 3).apply
    z = normal(1, 2, 3)
    gain = normal(2, 2, 2, 3, 1)  # of each user's shift of heads and features

    def loss(hyper):
        shifts = jax.vmap(modulate, (None, 0))(hyper, z)["heads/bias"].terms[0][0]
        return (shifts * gain).sum()

    head = jax.jit(jax.grad(loss))(hyper)["leaves"]["heads/bias"].terms[0][0]
    np.testing.assert_allclose(
        head.kernel, np.einsum("ud,u...->d...", z, gain), rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(head.bias, gain.sum(0), rtol=1e-5, atol=1e-6)


def test_normalize_counts_direction_only(fresh):
    modulate = jax.jit(hypernet(SPEC, 3, normalize=True).apply)
    hyper, z = noisy(fresh["normalize"]), jnp.array([1.0, 2.0, -1.0])
    assert error(modulate(hyper, z), modulate(hyper, 7 * z)) < 1e-5


def test_float32_over_bfloat16():
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), PARAMS)
    conditioned = condition(params, shapes_of_modulations(SPEC, params))
    leaf = conditioned["dense"]["kernel"]
    assert leaf.base.dtype == jnp.bfloat16
    assert {x.dtype for x in jax.tree.leaves((leaf.scales, leaf.terms))} == {
        jnp.dtype("float32")
    }
    own, wide = jax.eval_shape(lambda c: (fold(c), fold(c, jnp.float32)), conditioned)
    assert own["dense"]["kernel"].dtype == jnp.bfloat16
    assert wide["dense"]["kernel"].dtype == jnp.float32


def test_interpolate_meets_its_ends_exactly():
    a, b = jnp.array([0.1, 0.2]), jnp.array([0.7, -0.3])
    path = jax.jit(interpolate)(a, b, jnp.linspace(0, 1, 5))
    assert path.shape == (5, 2)
    np.testing.assert_array_equal(path[0], a)
    np.testing.assert_array_equal(path[-1], b)
    np.testing.assert_allclose(jax.jit(interpolate)(a, b, 0.5), (a + b) / 2)


def test_first_match_wins_and_none_leaves_alone():
    found = shapes_of_modulations([("heads/.*", None), (".*kernel", scale())], PARAMS)
    assert list(found) == ["dense/kernel"]
    conditioned = condition(PARAMS, found)
    assert is_conditioned(conditioned["dense"]["kernel"])
    assert conditioned["heads"] is not None and not is_conditioned(conditioned["stack"])


@pytest.mark.parametrize(
    "spec, message",
    [
        ([("nothing", scale())], r"'nothing' \(scale\(output\)\).* 5 .*dense/bias"),
        ([("dense", scale())], "'dense'"),
        ([(".*", scale()), ("stack", scale())], "'stack'.*earlier pattern"),
        ([("(", scale())], r"'\('"),
        ([(".*bias", low_rank(2))], r"dense/bias \(7\).*low_rank.*input"),
        ([("dense/bias", scale("input"))], "dense/bias.*input"),
        ([("dense/kernel", scale().layout(2))], r"\(5x7\).*axis 2"),
        ([("dense/kernel", scale().layout((0, 1)))], "dense/kernel.*full delta"),
        ([("heads/bias", shift().layout((0, 1)))], r"layout\(output, input=\(\)\)"),
        ([("dense/kernel", scale().layout(1, 1))], "dense/kernel.*two roles"),
        (
            [("dense/bias", low_rank(1).layout(stacked=True))],
            "dense/bias.*input and an output",
        ),
        ([("stack", scale().layout(0, stacked=True))], "stack.*two roles"),
    ],
)
def test_what_does_not_fit_is_refused(spec, message):
    with pytest.raises(ValueError, match=message):
        hypernet(spec, 3).init(jax.random.key(0), PARAMS)


def test_wrong_arguments():
    with pytest.raises(ValueError, match="`side`.*'full'"):
        scale("full")
    with pytest.raises(ValueError, match="`rank`.* 0"):
        low_rank(0)
    with pytest.raises(ValueError, match="`factors`"):
        low_rank(2, factors="random")
    with pytest.raises(ValueError, match="two layouts"):
        scale().layout(0) + shift().layout(1)
    with pytest.raises(TypeError, match="'stack'.*Modulation"):
        hypernet([("stack", "scale")], 3).init(jax.random.key(0), PARAMS)
    with pytest.raises(ValueError, match="`latent_dim`"):
        hypernet(SPEC, 0)
    with pytest.raises(ValueError, match=r"`z`.*\(2, 3\), not \(3,\)"):
        hypernet(SPEC, 3).apply({}, jnp.ones((2, 3)))


def test_modulations_of_another_model():
    with pytest.raises(ValueError, match="dense/gain"):
        condition(PARAMS, {"dense/gain": Delta()})
    wrong = Delta((jnp.ones((1, 6)),))
    with pytest.raises(ValueError, match=r"dense/kernel: .*\(1, 6\).*\(5, 7\)"):
        condition(PARAMS, {"dense/kernel": wrong})


def test_describe(capsys):
    describe(SPEC, PARAMS, 3)
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split()[0]: line.split() for line in lines[2:]}
    # 5 + 7 of the scale and 2 gates a user; a basis of 2 x (5 + 7).
    assert rows["dense/kernel"][1] == "5x7"
    assert rows["dense/kernel"][-2:] == [str(24 + 14 * 4), "14"]
    hyper = jax.eval_shape(hypernet(SPEC, 3).init, jax.random.key(0), PARAMS)
    assert int(lines[-1].split()[-2].replace(",", "")) == sum(
        x.size for x in jax.tree.leaves(hyper)
    )
    describe(SPEC, PARAMS)
    assert "24 + 14 (D + 1)" in capsys.readouterr().out


def test_several_examples_of_one_user_in_one_call(hyper):
    params, modulate = noisy(PARAMS), hypernet(SPEC, 3).apply
    user_of_example = np.array([2, 0, 0, 1, 2])
    z, x = normal(1, 3, 3), normal(2, 5, 13, 5)

    def conditioned(z):
        return condition(params, modulate(hyper, z))

    @jax.jit
    def together(z, x):
        def example(z, x):
            return bridge(model, strict=True)(conditioned(z), x)

        return jax.vmap(example)(z[user_of_example], x)

    @jax.jit
    def alone(z, x):
        return model(fold(conditioned(z)), x)

    result = together(z, x)
    for n, user in enumerate(user_of_example):
        one = jax.tree.map(lambda out, n=n: out[n], result)
        assert error(one, alone(z[user], x[n])) < 1e-5


def test_conditioned_leaves_in_a_tree_of_parameters():
    leaf = Conditioned(jnp.ones((2, 3)))
    assert fold({"w": leaf, "b": 1.0})["b"] == 1.0


def test_a_config_can_name_a_modulation():
    assert parse("scale + low_rank(8)") == scale() + low_rank(8)
    assert parse("shift('both')") == shift("both")
    assert parse("lora(2) + low_rank(3, factors='generated')") == lora(2) + low_rank(
        3, factors="generated"
    )


@pytest.mark.parametrize(
    "text",
    ["", "gain", "scale - shift", "low_rank", "low_rank(0)", "scale(", "3", "f()"],
)
def test_a_modulation_that_a_config_cannot_name(text):
    with pytest.raises(ValueError, match=f"^modulation {re.escape(repr(text))}: "):
        parse(text)


def test_modulations_of_many_users_share_what_z_does_not_decide(hyper):
    modulate, axes = hypernet(SPEC, 3).apply, user_axes(hyper)
    z, x = normal(1, 5, 3), normal(2, 5, 2, 5)

    def example(modulations, x):
        return bridge(model, strict=True)(condition(PARAMS, modulations), x)

    @jax.jit
    def run(hyper, z, x):
        many = jax.vmap(modulate, (None, 0), axes)(hyper, z)
        by_axes = jax.vmap(example, (axes, 0))(many, x)
        each = jax.vmap(lambda z, x: example(modulate(hyper, z), x))(z, x)
        return many, modulate(hyper, z[3]), by_axes, each

    many, fourth, by_axes, each = run(hyper, z, x)
    assert error(by_axes, each) < 1e-5
    shared = {"dense/kernel": 2, "stack": 4}  # Bases of low_rank, and lora's.
    for path, delta in many.items():
        one = fourth[path]
        pairs = list(zip(jax.tree.leaves(delta), jax.tree.leaves(one), strict=True))
        same = [a.shape == b.shape for a, b in pairs]
        assert sum(same) == shared.get(path, 0)
        for (a, b), is_shared in zip(pairs, same, strict=True):
            np.testing.assert_allclose(a if is_shared else a[3], b, rtol=1e-5)
