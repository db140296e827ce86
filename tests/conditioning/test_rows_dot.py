"""The product of rows with a matrix, against JAX's own, and what XLA makes of it."""

import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from arrays import error, float64, normal

from fsa.conditioning import Conditioned, bridge, matmul, report
from fsa.conditioning.program_cost import program_cost
from fsa.conditioning.rows_dot import NAME, rows_dot

USERS, TOKENS, RANK, OUTPUTS = 3, 5, 2, 7
INPUTS, WIDE = 8, 512
MATRIX = normal(1, RANK, OUTPUTS)


def product(rows, matrix):
    return rows_dot(rows, matrix, rows.dtype)


def wide(*arrays):
    return [jnp.asarray(x, float) for x in arrays]


@pytest.mark.parametrize(
    "lead",
    [
        pytest.param((), marks=pytest.mark.slow),
        pytest.param((TOKENS,), marks=pytest.mark.slow),
        (USERS, TOKENS),
    ],
)
def test_all_derivatives_are_those_of_the_plain_product(lead):
    def derivatives(fn):
        def value(rows, matrix):
            return jnp.sin(fn(rows, matrix)).sum()

        both = 0, 1
        gradient = jax.grad(value, both)
        return {
            "forward": jax.jacfwd(value, both),
            "reverse": gradient,
            "forward over reverse": jax.jacfwd(gradient, both),
            "reverse over reverse": jax.jacrev(gradient, both),
        }

    with float64():
        args = wide(normal(0, *lead, RANK), MATRIX)
        for (name, found), wanted in zip(
            derivatives(product).items(), derivatives(jnp.matmul).values(), strict=True
        ):
            assert error(jax.jit(found)(*args), wanted(*args)) < 1e-14, name


def axes():
    ways = itertools.product((None, 0, 1), repeat=2)
    return [pair for pair in ways if pair != (None, None)]


@pytest.mark.parametrize("in_axes", axes())
def test_it_maps_over_rows_and_matrices(in_axes):
    shapes = (TOKENS, RANK), (RANK, OUTPUTS)
    args = [
        normal(n, *shape)
        if axis is None
        else jnp.moveaxis(normal(n, USERS, *shape), 0, axis)
        for n, (shape, axis) in enumerate(zip(shapes, in_axes, strict=True))
    ]

    def mapped(fn):
        def value(*both):
            return (fn(*both) ** 2).sum()

        def total(*both):
            return jax.vmap(value, in_axes)(*both).sum()

        both = 0, 1
        return lambda *args: (
            jax.vmap(jax.value_and_grad(value, both), in_axes)(*args),
            jax.grad(total, both)(*args),
        )

    with float64():
        args = wide(*args)
        found, wanted = (mapped(fn)(*args) for fn in (product, jnp.matmul))
        assert error(found, wanted) < 1e-14


def test_sums_and_results_have_the_wanted_precision():
    rows, matrix = (normal(n, 4, 4).astype(jnp.bfloat16) for n in range(2))
    out = rows_dot(rows, matrix, jnp.float32)
    assert out.dtype == jnp.float32
    exact = np.asarray(rows, float) @ np.asarray(matrix, float)
    np.testing.assert_allclose(out, exact, rtol=1e-6, atol=1e-6)
    both = jax.grad(lambda *both: rows_dot(*both, jnp.float32).sum(), (0, 1))
    ones = np.ones((4, 4))
    wanted = ones @ np.asarray(matrix, float).T, np.asarray(rows, float).T @ ones
    for gradient, exact in zip(both(rows, matrix), wanted, strict=True):
        assert gradient.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.asarray(gradient, float), exact, rtol=0.01)


def test_the_precision_of_products_is_that_of_the_context():
    def inside(rows, matrix):
        with jax.default_matmul_precision("highest"):
            return product(rows, matrix)

    for fn in (inside, jax.grad(lambda *both: inside(*both).sum(), 1)):
        text = jax.jit(fn).lower(normal(0, TOKENS, RANK), MATRIX).as_text()
        assert "HIGHEST" in text and "DEFAULT" not in text


def test_a_matrix_may_have_more_axes():
    """As a factor of a map to heads has; sharded axes must not be joined."""
    rows, matrix = normal(0, USERS, TOKENS, RANK), normal(1, RANK, 3, 4)

    def value(fn):
        return jax.value_and_grad(lambda *both: jnp.sin(fn(*both)).sum(), (0, 1))

    with float64():
        args = wide(rows, matrix)
        found, wanted = (
            value(fn)(*args)
            for fn in (product, lambda x, w: jnp.einsum("utr,rhk->uthk", x, w))
        )
        assert error(found, wanted) < 1e-14
    assert " reshape" not in str(jax.make_jaxpr(value(product))(rows, matrix))


def compiled_gradient(factor, multiply):
    """The program of the gradient of an output factor, with GELU behind the product."""

    def loss(factor, x, y):
        out = jax.vmap(multiply, (0, None))(x, factor)
        return jax.nn.gelu(out + y).sum()

    rows = 8, 32
    args = factor, normal(1, *rows, INPUTS), normal(2, *rows, WIDE)
    program = jax.jit(jax.grad(loss)).lower(*args)
    return program.compile({"xla_disable_all_hlo_passes": False}).as_text()


def test_no_wide_array_is_transposed_for_the_gradient():
    factor, turned = normal(0, INPUTS, WIDE), rf"f32\[{WIDE},(?:8,32|256)\]"
    # What is looked for is there in the gradient of the plain product.
    assert re.findall(turned, compiled_gradient(factor, jnp.matmul))
    assert not re.findall(turned, compiled_gradient(factor, product))


def test_the_gradient_of_an_output_factor_is_not_rewritten():
    """XLA would contract the wide array first, and transpose the thin result."""

    def multiply(x, factor):
        # Laid out as in a parameter, with the rank last.
        term = normal(3, INPUTS, 1, RANK), factor
        return matmul(x, Conditioned(jnp.zeros((INPUTS, WIDE)), (), (term,)))

    text = compiled_gradient(normal(0, 1, WIDE, RANK), multiply)
    assert f"f32[{RANK},{WIDE}]" in text
    assert not re.findall(rf"= f32\[{WIDE},{RANK}\]\S* dot\(", text)


def test_its_cost_is_that_of_the_plain_product():
    args = normal(0, USERS, TOKENS, RANK), MATRIX
    found, wanted = (
        program_cost(jax.make_jaxpr(fn)(*args)) for fn in (product, jnp.matmul)
    )
    assert found == wanted


def test_a_model_that_is_conditioned_already_can_be_conditioned_again():
    """Here the output factor of the model's own low rank differs by user."""
    inner = normal(3, 4, 1, RANK), normal(4, 1, 1, RANK)

    def model(params, x):
        factor = params["factor"][None]  # [1, O, R]
        weight = Conditioned(params["kernel"], (), ((*inner, factor),))
        return bridge(jnp.matmul, strict=True)(x, weight)

    x = normal(5, TOKENS, 4)
    base, delta = normal(6, OUTPUTS, RANK), normal(7, OUTPUTS, 1)
    kernel = normal(8, 4, OUTPUTS)
    lazy = {"kernel": kernel, "factor": Conditioned(base, (delta,), ())}
    built = {"kernel": kernel, "factor": base * (1 + delta)}
    assert NAME in str(jax.make_jaxpr(functools.partial(model, built))(x))
    assert error(bridge(model, strict=True)(lazy, x), model(built, x)) < 1e-6
    assert not report(model, lazy, x).materialized
