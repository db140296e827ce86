"""Every operation on a conditioned parameter against the same on the folded one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from arrays import error, normal

from fsa.conditioning import Conditioned, NotSeparable, fold, is_conditioned
from fsa.conditioning import leaf as leaf_lib

SHAPE = (5, 7, 3)


def conditioned(shape=SHAPE, rank=2):
    """A scale of the first axis, one of the others, a low-rank term and a shift."""
    first = (shape[0],) + (1,) * (len(shape) - 1)
    rest = (1,) + shape[1:]
    ones = (1,) * len(shape)
    return Conditioned(
        normal(0, *shape),
        (normal(1, *first), normal(2, *rest)),
        (
            (normal(3, *first, rank), normal(4, *ones, rank), normal(5, *rest, rank)),
            (normal(6, *rest, 1),),
        ),
    )


def by_hand(leaf):
    """The module's formula in float64, with nothing but broadcasting."""
    w = np.asarray(leaf.base, np.float64)
    for scale in leaf.scales:
        w = w * (1 + np.asarray(scale, np.float64))
    for term in leaf.terms:
        product = np.ones((*leaf.shape, 1))
        for factor in term:
            product = product * np.asarray(factor, np.float64)
        w = w + product.sum(-1)
    return w


def test_materialize_is_the_formula():
    leaf = conditioned()
    built = jax.jit(Conditioned.materialize)(leaf)
    np.testing.assert_allclose(built, by_hand(leaf), rtol=1e-5, atol=1e-5)
    assert built.shape == leaf.shape == SHAPE
    assert (leaf.ndim, leaf.size, leaf.dtype) == (3, 105, jnp.float32)


STRUCTURE = {
    "T": lambda w: w.T,
    "transpose": lambda w: w.transpose(2, 0, 1),
    "transpose, tuple": lambda w: w.transpose((1, 2, 0)),
    "merge": lambda w: w.reshape(5, 21),
    "merge and split": lambda w: w.reshape(5, 3, 7),
    "axes of size 1": lambda w: w.reshape(1, 5, 7, 1, 3),
    "inferred size": lambda w: w.reshape(5, -1),
    "integer": lambda w: w[2],
    "ellipsis": lambda w: w[-1, ..., 1:],
    "steps": lambda w: w[:, 2:6:2, ::-1],
    "last axis": lambda w: w[..., 0],
    "array": lambda w: w[jnp.array([3, 0, 3])],
    "slice and array": lambda w: w[1:4, jnp.array([[0, 6], [2, 2]])],
    "two arrays": lambda w: w[jnp.array([1, 2]), jnp.array([0, 5])],
    "twice": lambda w: w[:, 0][:, 1],
    "astype": lambda w: w.astype(jnp.float32),
}


@pytest.fixture(scope="module")
def structured():
    """(result, result built, wanted) of each operation, from one program."""

    @jax.jit
    def run(leaf):
        folded = leaf.materialize()
        outs = {name: op(leaf) for name, op in STRUCTURE.items()}
        return {
            name: (out, out.materialize(), STRUCTURE[name](folded))
            for name, out in outs.items()
        }

    return run(conditioned())


@pytest.mark.parametrize("name", STRUCTURE)
def test_structure(structured, name):
    result, built, wanted = structured[name]
    assert is_conditioned(result)
    assert result.shape == wanted.shape
    assert error(built, wanted) < 1e-5


def test_parts_stay_smaller_than_the_weight():
    leaf = jax.eval_shape(
        lambda leaf: leaf.transpose(2, 0, 1).reshape(3, 5, 7, 1), conditioned()
    )
    parts = jax.tree.leaves((leaf.scales, leaf.terms))
    assert max(part.size for part in parts) <= 2 * 21 < leaf.size


def test_what_changes_axes_otherwise_is_refused():
    with pytest.raises(ValueError, match=r"\(5, 7, 3\) to \(35, 3\)"):
        conditioned().reshape(35, 3)
    with pytest.raises(TypeError, match="None"):
        conditioned()[None]
    with pytest.raises(IndexError, match="4 indices for 3 axes"):
        conditioned()[0, 0, 0, 0]


def test_concatenate():
    def heads(seed, width):
        return Conditioned(
            normal(seed, 5, width),
            (normal(seed + 1, 1, width),),
            ((normal(seed + 2, 5, 1, 2), normal(seed + 3, 1, width, 2)),),
        )

    leaves = [heads(0, 3), heads(10, 7), Conditioned(normal(20, 5, 2))]
    joined = jax.jit(lambda leaves: leaf_lib.concatenate(leaves, 1).materialize())
    wanted = np.concatenate([by_hand(leaf) for leaf in leaves], 1)
    np.testing.assert_allclose(joined(leaves), wanted, rtol=1e-5, atol=1e-5)
    with pytest.raises(NotSeparable, match="axis 0"):
        leaf_lib.concatenate(leaves[:1] * 2, 0)


def test_a_vector_gains_nothing_from_laziness():
    bias = Conditioned(normal(0, 5), (), ((normal(1, 5, 1),),))
    assert not bias.is_compact
    assert conditioned().is_compact


def test_bfloat16_weights_keep_float32_modulations():
    leaf = conditioned().astype(jnp.bfloat16)
    built, exact = jax.jit(lambda x: (x.materialize(), fold(x, jnp.float32)))(leaf)
    assert leaf.dtype == built.dtype == jnp.bfloat16
    assert {part.dtype for part in jax.tree.leaves(leaf.scales)} == {jnp.dtype("f4")}
    assert exact.dtype == jnp.float32
    np.testing.assert_allclose(exact, by_hand(leaf), rtol=1e-5, atol=1e-5)


def test_is_a_pytree():
    leaf = conditioned()

    def total(leaf):
        return leaf.materialize().sum()

    @jax.jit
    def run(leaf):
        doubled = jax.tree.map(lambda x: 2 * x, leaf)
        stacked = jax.tree.map(lambda *x: jnp.stack(x), leaf, doubled)
        tangent = jax.tree.map(jnp.ones_like, leaf)
        _, change = jax.jvp(total, (leaf,), (tangent,))
        both = jax.vmap(Conditioned.materialize)(stacked)
        return doubled, both, change, jax.grad(total)(leaf)

    doubled, both, change, gradient = run(leaf)
    assert is_conditioned(doubled)
    np.testing.assert_array_equal(doubled.base, 2 * leaf.base)
    np.testing.assert_allclose(both[1], by_hand(doubled), rtol=1e-5, atol=1e-4)
    total_gradient = sum(float(x.sum()) for x in jax.tree.leaves(gradient))
    np.testing.assert_allclose(change, total_gradient, rtol=1e-4)
