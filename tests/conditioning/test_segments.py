"""One example that holds tokens of several users: each token by its own segment."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from arrays import error, normal
from jax import lax

from fsa.conditioning import (
    MaterializationError,
    bridge,
    condition,
    fold,
    hypernet,
    low_rank,
    report,
    scale,
    shift,
    user_axes,
)

SEGMENTS = np.array([1, 1, 1, 0, 2, 2, 2])
TOKENS, WIDTH, HIDDEN, USERS = len(SEGMENTS), 5, 6, 3
PARAMS = {
    "embed": normal(0, 11, WIDTH),
    "in": normal(1, WIDTH, HIDDEN),
    "bias": normal(2, HIDDEN),
    "layers": normal(3, 2, HIDDEN, HIDDEN),
    "heads": normal(4, HIDDEN, 2, 3),
    "out": normal(5, 2, 3, WIDTH),
    "gain": normal(6, WIDTH),
}
BOTH = scale("both") + low_rank(2)
SPECS = {
    "all": [
        ("layers", BOTH.layout(stacked=True)),
        ("heads", BOTH.layout((1, 2))),
        ("bias", shift()),
        ("gain", scale()),
        (".*", BOTH),
    ],
    "generated": [("in|embed", low_rank(2, factors="generated") + shift())],
}


def model(p, tokens, mask):
    """Attention within segments; everything else is token by token."""
    x = p["embed"][tokens]
    x = jnp.tanh(x @ p["in"] + p["bias"])
    x, _ = lax.scan(lambda x, w: (x + jnp.tanh(x @ w), None), x, p["layers"])
    heads = jnp.einsum("td,dhk->thk", x, p["heads"])
    scores = jnp.einsum("thk,shk->hts", heads, heads)
    weights = jax.nn.softmax(jnp.where(mask, scores, -1e9))
    mixed = jnp.einsum("hts,shk->thk", weights, heads)
    x = jnp.einsum("thk,hkd->td", mixed, p["out"]) * p["gain"]
    return x @ p["embed"].T


def modulations(name, hyper, z):
    modulate = hypernet(SPECS[name], 3).apply
    return jax.vmap(modulate, (None, 0), user_axes(hyper))(hyper, z)


def hypernetwork(name):
    init = hypernet(SPECS[name], 3).init
    shapes = jax.eval_shape(init, jax.random.key(0), PARAMS)
    return jax.tree.map(lambda s: normal(s.size, *s.shape, std=0.3), shapes)


TEXT = np.array([1, 4, 2, 9, 4, 4, 7])


def packed(name, params, hyper, z):
    mask = SEGMENTS[:, None] == SEGMENTS[None]
    tree = condition(params, modulations(name, hyper, z), segments=SEGMENTS)
    return bridge(model, strict=True)(tree, jnp.asarray(TEXT), mask)


def apart(name, params, hyper, z):
    """Each user's tokens alone, with that user's folded parameters."""
    modulate = hypernet(SPECS[name], 3).apply
    outs = []
    for user in dict.fromkeys(SEGMENTS.tolist()):
        own = fold(condition(params, modulate(hyper, z[user])))
        tokens = TEXT[user == SEGMENTS]
        outs.append(model(own, tokens, np.ones((len(tokens),) * 2, bool)))
    return jnp.concatenate(outs)


@pytest.mark.parametrize(
    "name", [pytest.param("all", marks=pytest.mark.slow), "generated"]
)
def test_packed_equals_apart(name):
    hyper, z = hypernetwork(name), normal(9, USERS, 3)

    def value(fn):
        def loss(params, hyper, z):
            out = fn(name, params, hyper, z)
            return (out * jnp.cos(jnp.arange(out.size).reshape(out.shape))).sum(), out

        return jax.value_and_grad(loss, (0, 1, 2), has_aux=True)

    both = jax.jit(lambda *a: [value(fn)(*a) for fn in (packed, apart)])
    assert error(*both(PARAMS, hyper, z)) < 1e-4


def test_tokens_that_are_not_the_first_axis_are_refused():
    hyper = hypernetwork("all")
    tree = condition(
        PARAMS, modulations("all", hyper, normal(9, USERS, 3)), segments=SEGMENTS
    )
    for wrong in (
        lambda p, x: p["in"].T @ x,
        lambda p, x: x[:, 0] @ p["in"],
        lambda p, x: x.T @ jnp.exp(p["in"]),
    ):
        with pytest.raises(MaterializationError, match=r"^in \(.*segment"):
            bridge(wrong)(tree, normal(1, 5, TOKENS))
    with pytest.raises(ValueError, match="^bias .*segment"):
        fold(tree)


def test_the_report_says_what_a_token_costs():
    hyper = hypernetwork("all")
    tree = condition(
        PARAMS, modulations("all", hyper, normal(9, USERS, 3)), segments=SEGMENTS
    )
    found = report(model, tree, jnp.asarray(TEXT), np.eye(TOKENS) > 0)
    costs = {use.path: use.numbers_per_token for use in found.uses}
    # A gate of rank 2, a scale of the inputs, and one of the outputs.
    assert costs["in"] == 2 + WIDTH + HIDDEN
    assert costs["bias"] == HIDDEN and costs["gain"] == WIDTH
    assert "a token" in str(found)
