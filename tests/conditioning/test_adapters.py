"""LoRA factors of modulations: exact, and back; what is none is refused by name."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from arrays import error, noisy, normal

from fsa.conditioning import (
    condition,
    fold,
    hypernet,
    interpolate,
    lora,
    low_rank,
    scale,
    shift,
)
from fsa.conditioning.adapters import (
    Lora,
    concatenate,
    from_lora,
    nearest,
    pad,
    to_lora,
)
from fsa.conditioning.leaf import Delta

D = 3
PARAMS = {
    "dense": {"kernel": normal(0, 5, 7), "bias": normal(1, 7)},
    "heads": normal(2, 7, 2, 3),
    "out": normal(3, 4, 2, 3, 5),
    "stack": normal(4, 4, 3, 11),
}
# What becomes an adapter exactly, in every layout.
SPEC = [
    ("dense/kernel", low_rank(2) + lora(1)),
    ("heads", (low_rank(2, factors="generated") + low_rank(1)).layout((1, 2))),
    ("out", low_rank(3).layout(-1, (1, 2), stacked=True)),
    ("stack", (low_rank(3) + shift("input") + shift()).layout(stacked=True)),
]
RANKS = {"dense/kernel": 3, "heads": 3, "out": 3, "stack": 5}


def modulations_of(spec, z, seed=0):
    init, modulate = hypernet(spec, D, trunk=(4,))
    start = jax.eval_shape(lambda: init(jax.random.key(0), PARAMS))
    hyper = noisy(jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), start), seed)
    return jax.jit(modulate)(hyper, jnp.asarray(z))


@jax.jit
def folded(modulations):
    return fold(condition(PARAMS, modulations))


def flat(path, w):
    """A parameter as `[L, I, O]`, by hand."""
    shapes = {
        "dense/kernel": (1, 5, 7),
        "heads": (1, 7, 6),
        "out": (4, 6, 5),
        "stack": (4, 3, 11),
    }
    return np.reshape(w, shapes[path])


def parameter(path, tree=PARAMS):
    return functools.reduce(lambda part, key: part[key], path.split("/"), tree)


def test_the_parameters_with_an_adapter_are_those_that_are_folded():
    modulations = modulations_of(SPEC, normal(5, D))
    found = to_lora(SPEC, PARAMS, modulations)
    whole = folded(modulations)
    assert found.keys() == RANKS.keys()
    for path, adapter in found.items():
        assert adapter.rank == RANKS[path]
        w = flat(path, parameter(path)) + np.asarray(adapter.a) @ np.asarray(adapter.b)
        assert error(w, flat(path, parameter(path, whole))) < 1e-6, path


def test_gates_that_are_one_and_what_z_adds():
    """w + A diag(1 + h(z)) B: at z = 0 the adapter is A B, which is none of z."""
    spec = [("dense/kernel", low_rank(3))]
    init, modulate = hypernet(spec, D)
    hyper = init(jax.random.key(0), PARAMS)
    a, gate, b = hyper["leaves"]["dense/kernel"].terms[0]
    gate = dataclasses.replace(
        gate, kernel=normal(8, *gate.kernel.shape), bias=jnp.ones_like(gate.bias)
    )
    b = normal(9, *b.shape)
    hyper["leaves"]["dense/kernel"] = Delta(terms=((a, gate, b),))
    a, b = np.asarray(a)[:, 0], np.asarray(b)[0]
    for z in (np.zeros(D), np.float64(normal(5, D))):
        gates = 1 + z @ np.asarray(gate.kernel)[:, 0, 0]
        adapter = to_lora(spec, PARAMS, modulate(hyper, jnp.asarray(z, jnp.float32)))
        found = adapter["dense/kernel"]
        assert error(found.a[0] @ found.b[0], np.float32((a * gates) @ b.T)) < 1e-5


def test_it_becomes_modulations_again():
    modulations = modulations_of(SPEC, normal(5, D))
    back = from_lora(SPEC, PARAMS, to_lora(SPEC, PARAMS, modulations))
    expected, found = (folded(m) for m in (modulations, back))
    for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        assert error(a, b) < 1e-6


@pytest.mark.slow
def test_several_users_at_once():
    latents = normal(6, 3, D)
    many = jax.vmap(lambda z: to_lora(SPEC, PARAMS, modulations_of(SPEC, z)))(latents)
    x = normal(7, 3, 2, 5)

    def outputs(adapter, x):
        conditioned = condition(PARAMS, from_lora(SPEC, PARAMS, adapter))
        return x @ conditioned["dense"]["kernel"]

    found = jax.vmap(outputs)(many, x)
    for user in range(3):
        one = folded(modulations_of(SPEC, latents[user]))
        assert error(found[user], x[user] @ one["dense"]["kernel"]) < 1e-5


@pytest.mark.parametrize(
    ("path", "modulation"),
    [
        ("dense/kernel", scale()),
        ("dense/kernel", low_rank(2) + scale("input")),
        ("dense/bias", shift()),
    ],
)
def test_what_is_no_adapter_is_refused_by_name(path, modulation):
    spec = [(path, modulation), *SPEC[1:]]
    with pytest.raises(ValueError, match=re.escape(path)):
        to_lora(spec, PARAMS, modulations_of(spec, normal(5, D)))


def test_the_nearest_adapter():
    """Against NumPy's decomposition in float64 (Eckart & Young 1936)."""
    spec = [("stack", (scale("both") + low_rank(1)).layout(stacked=True))]
    modulations = modulations_of(spec, normal(5, D))
    update = folded(modulations)["stack"] - PARAMS["stack"]
    u, s, v = np.linalg.svd(np.float64(update), full_matrices=False)
    for rank in (1, 2, 3):
        found, errors = nearest(spec, PARAMS, modulations, rank)
        best = (u[..., :rank] * s[:, None, :rank]) @ v[:, :rank]
        adapter = found["stack"]
        assert adapter.rank == rank
        assert error(adapter.a @ adapter.b, np.float32(best)) < 1e-5
        left = np.linalg.norm(update - best) / np.linalg.norm(update)
        np.testing.assert_allclose(errors["stack"], left, atol=1e-5)
    with pytest.raises(ValueError, match="dense/bias"):
        spec = [("dense/bias", shift())]
        nearest(spec, PARAMS, modulations_of(spec, normal(5, D)), 1)


def test_the_way_between_two_people():
    """Ranks are concatenated: an average of factors would be another update."""
    ends = [to_lora(SPEC, PARAMS, modulations_of(SPEC, normal(s, D))) for s in (5, 6)]
    one, other = (adapter["heads"] for adapter in ends)
    middle = concatenate([one, other], [0.25, 0.75])
    expected = interpolate(one.a @ one.b, other.a @ other.b, 0.75)
    assert error(middle.a @ middle.b, expected) < 1e-6
    average = Lora(*jax.tree.map(lambda x, y: 0.25 * x + 0.75 * y, one, other))
    assert error(average.a @ average.b, expected) > 1e-2


def test_ranks_of_zeros_change_nothing():
    adapter = Lora(normal(1, 2, 5, 3), normal(2, 2, 3, 4))
    wide = pad(adapter, 8)
    assert wide.rank == 8
    np.testing.assert_allclose(wide.a @ wide.b, adapter.a @ adapter.b, rtol=1e-6)
    with pytest.raises(ValueError, match="rank"):
        pad(adapter, 2)


def test_an_adapter_of_another_model_is_refused():
    with pytest.raises(ValueError, match="elsewhere"):
        from_lora(
            SPEC, PARAMS, {"elsewhere": Lora(normal(0, 1, 5, 2), normal(0, 1, 2, 7))}
        )
    with pytest.raises(ValueError, match="dense/kernel"):
        wrong = Lora(normal(0, 1, 6, 2), normal(0, 1, 2, 7))
        from_lora(SPEC, PARAMS, {"dense/kernel": wrong})
