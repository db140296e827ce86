"""The hypernetwork: what it modulates, that it starts as nothing, what it refuses."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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


def noisy(tree, seed=0, size=0.1):
    """Any fixed values: a fresh hypernetwork would hide what is not used."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: x + size * rng.normal(size=x.shape).astype("f4"), tree
    )


def model(params, x):
    x = jnp.tanh(x @ params["dense"]["kernel"] + params["dense"]["bias"])
    heads = jnp.einsum("td,dhk->thk", x, params["heads"]["kernel"])
    x = (heads + params["heads"]["bias"]).sum(1)
    return jax.lax.scan(
        lambda c, w: ((c @ w)[:, :3], (c @ w).sum()), x, params["stack"]
    )


@pytest.mark.parametrize("options", [{}, {"trunk": (6, 4)}, {"normalize": True}])
def test_fresh_is_the_identity_bitwise(options):
    params = noisy(PARAMS)
    init, modulate = hypernet(SPEC, 3, **options)
    hyper = jax.jit(init)(jax.random.key(0), params)
    conditioned = condition(params, modulate(hyper, jnp.array([1.0, -2.0, 0.5])))
    for w, folded in zip(
        jax.tree.leaves(params), jax.tree.leaves(fold(conditioned)), strict=True
    ):
        np.testing.assert_array_equal(w, folded)
    x = jax.random.normal(jax.random.key(1), (13, 5))
    plain, same = jax.jit(model)(params, x), jax.jit(bridge(model))(conditioned, x)
    jax.tree.map(np.testing.assert_array_equal, plain, same)
    # But it can leave it: something of every head gets a gradient.
    gradient = jax.grad(
        lambda h: bridge(model)(condition(params, modulate(h, jnp.ones(3))), x)[1].sum()
    )(hyper)
    moved = [
        any(float(jnp.abs(g).max()) > 0 for g in jax.tree.leaves(delta))
        for delta in gradient["leaves"].values()
    ]
    assert len(moved) == 5 and all(moved)


def test_shapes_of_modulations():
    init, modulate = hypernet(SPEC, 3)
    found = modulate(init(jax.random.key(0), PARAMS), jnp.ones(3))
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


def test_modulations_are_affine_in_z_without_a_trunk():
    init, modulate = hypernet(SPEC, 3)
    hyper = noisy(jax.jit(init)(jax.random.key(0), PARAMS))
    z = jax.random.normal(jax.random.key(1), (3,))
    head = hyper["leaves"]["dense/kernel"].scales[0]
    wanted = np.einsum("d,dab->ab", z, head.kernel) + head.bias
    found = modulate(hyper, z)["dense/kernel"]
    np.testing.assert_allclose(found.scales[0], wanted, rtol=1e-5)
    # A learned basis does not depend on z.
    np.testing.assert_array_equal(
        found.terms[0][0], hyper["leaves"]["dense/kernel"].terms[0][0]
    )
    lines = jax.vmap(modulate, (None, 0))(
        hyper, interpolate(z, -z, jnp.array([0, 0.5, 1]))
    )
    middle = jax.tree.map(lambda x: x[1] - (x[0] + x[2]) / 2, lines)
    affine = [d.scales for d in middle.values()]
    assert max(float(jnp.abs(x).max()) for x in jax.tree.leaves(affine)) < 1e-6


def test_normalize_counts_direction_only():
    init, modulate = hypernet(SPEC, 3, normalize=True)
    hyper = noisy(jax.jit(init)(jax.random.key(0), PARAMS))
    z = jnp.array([1.0, 2.0, -1.0])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        modulate(hyper, z),
        modulate(hyper, 7 * z),
    )


def test_float32_over_bfloat16():
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), PARAMS)
    init, modulate = hypernet(SPEC, 3)
    conditioned = condition(
        params, modulate(init(jax.random.key(0), params), jnp.ones(3))
    )
    leaf = conditioned["dense"]["kernel"]
    assert leaf.base.dtype == jnp.bfloat16
    assert {x.dtype for x in jax.tree.leaves((leaf.scales, leaf.terms))} == {
        jnp.dtype("float32")
    }
    assert fold(conditioned)["dense"]["kernel"].dtype == jnp.bfloat16
    assert fold(conditioned, jnp.float32)["dense"]["kernel"].dtype == jnp.float32


def test_interpolate_meets_its_ends_exactly():
    a, b = jnp.array([0.1, 0.2]), jnp.array([0.7, -0.3])
    path = interpolate(a, b, jnp.linspace(0, 1, 5))
    assert path.shape == (5, 2)
    np.testing.assert_array_equal(path[0], a)
    np.testing.assert_array_equal(path[-1], b)
    np.testing.assert_allclose(interpolate(a, b, 0.5), (a + b) / 2)


def test_first_match_wins_and_none_leaves_alone():
    spec = [("heads/.*", None), (".*kernel", scale())]
    init, modulate = hypernet(spec, 3)
    found = modulate(init(jax.random.key(0), PARAMS), jnp.ones(3))
    assert list(found) == ["dense/kernel"]
    conditioned = condition(PARAMS, found)
    assert is_conditioned(conditioned["dense"]["kernel"])
    assert conditioned["heads"] is not None and not is_conditioned(conditioned["stack"])


@pytest.mark.parametrize(
    "spec, message",
    [
        (
            [("nothing", scale())],
            r"'nothing' \(scale\(output\)\) matches none of 5.*de",
        ),
        ([("dense", scale())], "'dense'.*matches none"),
        ([(".*", scale()), ("stack", scale())], "'stack'.*an earlier pattern"),
        ([("(", scale())], r"'\(' is no regular expression"),
        ([(".*bias", low_rank(2))], r"dense/bias \(7\) cannot take low_rank.*input"),
        ([("dense/bias", scale("input"))], "dense/bias.*no input axes"),
        ([("dense/kernel", scale().layout(2))], r"\(5x7\).*no axis 2"),
        ([("dense/kernel", scale().layout((0, 1)))], "a full delta for each user"),
        ([("heads/bias", shift().layout((0, 1)))], r"layout\(output, input=\(\)\)"),
        ([("dense/kernel", scale().layout(1, 1))], "an axis has two roles"),
        ([("dense/bias", shift().layout(stacked=True))], "too few axes"),
        ([("stack", scale().layout(0, stacked=True))], "an axis has two roles"),
    ],
)
def test_what_does_not_fit_is_refused(spec, message):
    with pytest.raises(ValueError, match=message):
        hypernet(spec, 3).init(jax.random.key(0), PARAMS)


def test_wrong_arguments():
    with pytest.raises(ValueError, match="'full': a full delta"):
        scale("full")
    with pytest.raises(ValueError, match="rank is a positive integer, not 0"):
        low_rank(0)
    with pytest.raises(ValueError, match="factors are"):
        low_rank(2, factors="random")
    with pytest.raises(ValueError, match="two layouts"):
        scale().layout(0) + shift().layout(1)
    with pytest.raises(TypeError, match="is no Modulation"):
        hypernet([("stack", "scale")], 3).init(jax.random.key(0), PARAMS)
    with pytest.raises(ValueError, match="latent_dim is at least 1"):
        hypernet(SPEC, 0)
    init, modulate = hypernet(SPEC, 3)
    with pytest.raises(ValueError, match=r"\(2, 3\), not \(3,\); jax.vmap"):
        modulate(init(jax.random.key(0), PARAMS), jnp.ones((2, 3)))


def test_modulations_of_another_model():
    with pytest.raises(ValueError, match="no parameter dense/gain to modulate"):
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
    init, modulate = hypernet(SPEC, 3)
    hyper = init(jax.random.key(0), PARAMS)
    assert int(lines[-1].split()[-2].replace(",", "")) == sum(
        x.size for x in jax.tree.leaves(hyper)
    )
    describe(SPEC, PARAMS)
    assert "24 + 14 (D + 1)" in capsys.readouterr().out


def test_several_rows_of_one_user_in_one_call():
    params, (init, modulate) = noisy(PARAMS), hypernet(SPEC, 3)
    hyper = noisy(jax.jit(init)(jax.random.key(0), params), 1)
    z = jax.random.normal(jax.random.key(1), (3, 3))
    user = jnp.array([2, 0, 0, 1, 2])
    x = jax.random.normal(jax.random.key(2), (5, 13, 5))

    @jax.jit
    def apply(params, hyper, z, x):
        def row(z, x):
            return bridge(model, strict=True)(condition(params, modulate(hyper, z)), x)

        return jax.vmap(row)(z, x)

    result = apply(params, hyper, z[user], x)
    for n, u in enumerate(user):
        folded = fold(condition(params, modulate(hyper, z[u])))
        wanted = model(folded, x[n])
        for a, b in zip(result, wanted, strict=True):
            np.testing.assert_allclose(a[n], b, atol=1e-5 * float(jnp.abs(b).max()))


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


def test_modulations_of_many_users_share_what_z_does_not_decide():
    init, modulate = hypernet(SPEC, 3)
    hyper = noisy(jax.jit(init)(jax.random.key(0), PARAMS))
    z = jax.random.normal(jax.random.key(1), (5, 3))
    axes = user_axes(hyper)
    many = jax.vmap(modulate, (None, 0), axes)(hyper, z)
    shared = {"dense/kernel": 2, "stack": 4}  # Bases of low_rank, and lora's.
    for path, delta in many.items():
        one = modulate(hyper, z[3])[path]
        pairs = list(zip(jax.tree.leaves(delta), jax.tree.leaves(one), strict=True))
        same = [a.shape == b.shape for a, b in pairs]
        assert sum(same) == shared.get(path, 0)
        for (a, b), whole in zip(pairs, same, strict=True):
            np.testing.assert_allclose(a if whole else a[3], b, rtol=1e-5)

    def row(modulations, x):
        return bridge(model, strict=True)(condition(PARAMS, modulations), x)

    def alone(z, x):
        return row(modulate(hyper, z), x)

    x = jax.random.normal(jax.random.key(2), (5, 2, 5))
    found = jax.jit(jax.vmap(row, (axes, 0)))(many, x)
    expected = jax.jit(jax.vmap(alone))(z, x)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
