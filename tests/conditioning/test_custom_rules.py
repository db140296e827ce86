"""Rules of one's own: of primitives, kernels, and functions with custom derivatives."""

import jax
import jax.numpy as jnp
import pytest
from arrays import error, normal
from jax.experimental import pallas as pl
from jax.extend import core
from jax.interpreters import mlir

from fsa.conditioning import (
    Conditioned,
    MaterializationError,
    NotSeparable,
    bridge,
    fold,
    matmul_rule,
    register_rule,
    report,
    with_rule,
)

X = normal(9, 3, 5)


def weight():
    factors = normal(3, 5, 1, 2), normal(4, 1, 1, 2), normal(5, 1, 7, 2)
    scales = normal(1, 5, 1), normal(2, 1, 7)
    return Conditioned(normal(0, 5, 7), scales, (factors,))


def by_kernel(x, w):
    def kernel(x_ref, w_ref, out_ref):
        out_ref[...] = x_ref[...] @ w_ref[...]

    shape = jax.ShapeDtypeStruct((x.shape[0], w.shape[1]), x.dtype)
    return pl.pallas_call(kernel, out_shape=shape, interpret=True)(x, w)


@jax.custom_vjp
def own_product(x, w):
    return x @ w


own_product.defvjp(
    lambda x, w: (x @ w, (x, w)),
    lambda saved, g: (g @ saved[1].T, saved[0].T @ g),
)


@pytest.mark.parametrize("fn", [by_kernel, own_product])
def test_a_function_without_a_rule_is_refused_by_name(fn):
    with pytest.raises(MaterializationError, match="with_rule"):
        bridge(lambda w, x: fn(x, w), strict=True)(weight(), X)
    both = jax.jit(lambda w: (bridge(lambda w: fn(X, w))(w), fn(X, fold(w))))
    assert error(*both(weight())) < 1e-5


@pytest.mark.parametrize("fn", [by_kernel, own_product])
def test_a_rule_of_a_product(fn):
    ruled = with_rule(fn, matmul_rule(fn))

    def loss(w, x, apply):
        return jnp.sin(apply(w, x)).sum()

    ways = bridge(lambda w, x: ruled(x, w), strict=True), lambda w, x: x @ fold(w)

    @jax.jit
    def run(w, x):
        if fn is by_kernel:  # The kernel has no derivative.
            return [loss(w, x, way) for way in ways]
        return [jax.value_and_grad(loss, (0, 1))(w, x, way) for way in ways]

    assert error(*run(weight(), X)) < 1e-5
    assert not report(lambda w, x: ruled(x, w), weight(), X).materialized


def test_a_function_with_a_rule_is_as_before_on_arrays():
    ruled = with_rule(own_product, matmul_rule(own_product))
    w, xs = fold(weight()), normal(7, 4, 3, 5)

    def loss(fn):
        return lambda w, x: jnp.sin(jax.vmap(fn, (0, None))(x, w)).sum()

    ways = [jax.value_and_grad(loss(fn), (0, 1)) for fn in (ruled, own_product)]
    assert error(*jax.jit(lambda *a: [way(*a) for way in ways])(w, xs)) < 1e-6


def test_a_model_that_maps_such_a_function():
    """Its own program is evaluated then, and that has a rule of no kernel."""
    ruled = with_rule(jnp.matmul, matmul_rule(jnp.matmul))
    xs = normal(7, 4, 3, 5)

    def model(w, xs):
        scale = jnp.float32(2.0)
        inner = with_rule(lambda x, w: scale * (x @ w), lambda x, w: 2.0 * (x @ w))
        return jax.vmap(ruled, (0, None))(xs, w) + inner(xs, w)

    both = jax.jit(lambda w: (bridge(model, strict=True)(w, xs), model(fold(w), xs)))
    assert error(*both(weight())) < 1e-5


def test_a_rule_that_gives_up():
    def never(x, w):
        raise NotSeparable("never")

    model = with_rule(lambda x, w: x @ w, never)
    both = jax.jit(lambda w: (bridge(lambda w: model(X, w))(w), X @ fold(w)))
    assert error(*both(weight())) < 1e-5


def test_a_rule_of_a_primitive():
    doubled = core.Primitive("doubled")
    doubled.def_impl(lambda w: 2 * w)
    doubled.def_abstract_eval(lambda w: w)
    mlir.register_lowering(doubled, mlir.lower_fun(lambda w: 2 * w, False))

    def model(w, x):
        return x @ doubled.bind(w)

    with pytest.raises(MaterializationError, match="register_rule"):
        bridge(model, strict=True)(weight(), X)

    @register_rule(doubled)
    def rule(w):
        term = ((w.terms[0][0] * 2, *w.terms[0][1:]),)
        return Conditioned(2 * w.base, w.scales, term)

    result = jax.jit(bridge(model, strict=True))(weight(), X)
    assert error(result, 2 * X @ fold(weight())) < 1e-5
    with pytest.raises(ValueError, match="doubled"):
        register_rule("doubled")


def test_a_custom_derivative_may_be_given_up():
    def model(w, x):
        return own_product(x, w)

    apply = bridge(model, strict=True, inline=("own_product",))
    both = jax.jit(lambda w: (apply(w, X), X @ fold(w)))
    assert error(*both(weight())) < 1e-5


def test_an_adjoint_of_diffrax_is_named():
    """Its default is a custom derivative; the one that is named goes part by part."""
    diffrax = pytest.importorskip("diffrax")
    w = Conditioned(0.3 * normal(0, 5, 5), (0.3 * normal(1, 1, 5),))

    def model(w, x, adjoint):
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(lambda t, x, w: jnp.tanh(x @ w)),
            *(diffrax.Euler(), 0.0, 1.0, 0.25, x),
            **{"args": w, "adjoint": adjoint, "max_steps": 8},
        )
        return solution.ys[-1].sum()

    with pytest.raises(MaterializationError, match="DirectAdjoint"):
        bridge(model, strict=True)(w, X[0], diffrax.RecursiveCheckpointAdjoint())
    apply, direct = bridge(model, strict=True), diffrax.DirectAdjoint()

    @jax.jit
    def both(w):
        ways = apply, lambda w, *rest: model(fold(w), *rest)
        return [jax.value_and_grad(way)(w, X[0], direct) for way in ways]

    assert error(*both(w)) < 1e-4
