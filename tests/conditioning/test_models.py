"""Models of five styles through the bridge, strictly: right, and without a copy.

Each is compared with `vmap` over weights folded for each example, and with a loop over
examples in Python. The compiled program is searched for an array as large as a weight
for each user.
"""

import dataclasses
import functools
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from arrays import normal
from library_models import LIBRARIES
from plain_models import BOTH, EXAMPLES, PLAIN, Model, examples
from slow import slow_but

from fsa.conditioning import (
    MaterializationError,
    bridge,
    condition,
    fold,
    hypernet,
    is_conditioned,
    report,
)
from fsa.conditioning.spec import resolve

MODELS = PLAIN | LIBRARIES
# Each of them is compiled long, and has a quick one of its library beside it.
# The quickest of each library, and plain ones whose weights take other ways.
QUICK_NAMES = {
    "scan_and_remat",
    "attention_dot_general",
    "conv_net",
    "mixture_of_experts",
    "tied_embeddings",
    "linen_attention",
    "nnx_lstm",
    "equinox_gru",
    "haiku_layer_stack",
}
NAMES = slow_but(QUICK_NAMES, MODELS)
USERS, LATENT = 11, 3
USER_OF_EXAMPLE = np.arange(EXAMPLES) % USERS  # Two users have two examples.
# The program is read before it becomes machine code, which need not be fast.
QUICK = {
    "compiler_options": {
        "xla_backend_optimization_level": 0,
        "xla_cpu_use_fusion_emitters": False,
    }
}


@dataclasses.dataclass(frozen=True)
class Program:
    """The text of a compiled program, and its result."""

    text: str
    result: Any


@dataclasses.dataclass(frozen=True)
class Case:
    """A model with a hypernetwork that is far from the identity."""

    model: Any
    hyper: Any
    modulate: Any
    z: jax.Array

    def conditioned(self, params, hyper, z):
        return condition(params, self.modulate(hyper, z))

    def bridged(self, params, hyper, z, x, *, strict=True):
        apply = bridge(self.model.apply, strict=strict)
        return apply(self.conditioned(params, hyper, z), x)

    def folded(self, params, hyper, z, x):
        return self.model.apply(fold(self.conditioned(params, hyper, z)), x)

    @property
    def arguments(self):
        return self.model.params, self.hyper, self.z

    def forward(self, apply):
        """All examples by `vmap`, as a function of params, hyper and z of users."""

        def run(params, hyper, z):
            example = functools.partial(apply, params, hyper)
            return jax.vmap(example)(z[USER_OF_EXAMPLE], self.model.x)

        return run

    def gradient(self, apply):
        """`((loss, outputs), gradients)` of `forward`."""

        def loss(*arguments):
            out = self.forward(apply)(*arguments)
            return (out * _cotangent(out.shape)).sum(), out

        return jax.value_and_grad(loss, (0, 1, 2), has_aux=True)

    @functools.cached_property
    def smallest_weight(self) -> int:
        """Size of the smallest weight, of one layer, that is larger than its parts."""
        arguments = self.model.params, self.hyper, self.z[0]
        shapes = jax.eval_shape(self.conditioned, *arguments)
        leaves = jax.tree.leaves(shapes, is_leaf=is_conditioned)
        lazy = [leaf for leaf in leaves if is_conditioned(leaf)]
        found = resolve(self.model.spec, self.model.params).values()
        return min(
            math.prod(leaf.shape[modulation.stacked :])
            for leaf, (modulation, _) in zip(lazy, found, strict=True)
            if leaf.is_compact
        )


def _cotangent(shape):
    return normal(3, *shape)


@functools.cache
def case(name) -> Case:
    return make_case(MODELS[name]())


def make_case(model) -> Case:
    init, modulate = hypernet(model.spec, LATENT)
    hyper = jax.tree.map(
        lambda x: normal(x.size, *x.shape, std=0.1),
        jax.eval_shape(init, jax.random.key(0), model.params),
    )
    return Case(model, hyper, modulate, normal(2, USERS, LATENT))


@functools.cache
def program(name, way, kind) -> Program:
    """`way` is "bridged" or "folded", `kind` is "forward" or "gradient"."""
    this = case(name)
    run = getattr(this, kind)(getattr(this, way))
    compiled = jax.jit(run, **QUICK).lower(*this.arguments).compile()
    return Program(compiled.as_text(), compiled(*this.arguments))


def per_user_loop(name):
    """Outputs and gradients summed in a Python loop: weights of one user at a time."""
    this = case(name)

    def loss(params, hyper, z, x, cotangent):
        out = this.folded(params, hyper, z, x)
        return (out * cotangent).sum(), out

    step = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True), **QUICK)
    out_shape = jax.eval_shape(this.forward(this.folded), *this.arguments).shape
    cotangents = np.asarray(_cotangent(out_shape))
    x, z = np.asarray(this.model.x), np.asarray(this.z)
    outs, totals, of_z = [], [], np.zeros_like(z)
    for n, user in enumerate(USER_OF_EXAMPLE):
        (*gradients, z_gradient), out = step(
            *(this.model.params, this.hyper, z[user], x[n], cotangents[n])
        )
        outs.append(out)
        totals.append(gradients)
        of_z[user] += z_gradient
    params, hyper = jax.tree.map(lambda *g: sum(map(np.asarray, g)), *totals)
    return np.stack(outs), (params, hyper, of_z)


def copies(text, this):
    """Shapes in a compiled program that could hold a weight for each user."""
    least = USERS * this.smallest_weight
    shapes = set(re.findall(r"\b[a-z]+\d+\w*\[([\d,]+)\]", text))
    return [s for s in shapes if math.prod(map(int, s.split(","))) >= least]


def assert_near(result, wanted, tolerance):
    """Relative to the largest number of all."""
    largest = max(float(np.abs(x).max()) for x in jax.tree.leaves(wanted))
    assert largest > 0
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * largest),
        result,
        wanted,
    )


@pytest.mark.parametrize("name", NAMES)
def test_fold_equals_unfold(name):
    (_, outs), gradients = program(name, "bridged", "gradient").result
    forward = program(name, "bridged", "forward").result
    by_vmap = program(name, "folded", "forward").result
    by_loop, loop_gradients = per_user_loop(name)
    for wanted in (by_vmap, by_loop):
        assert_near(outs, wanted, 1e-5)
        assert_near(forward, wanted, 1e-5)
    for of_one, wanted_of_one in zip(gradients, loop_gradients, strict=True):
        assert_near(of_one, wanted_of_one, 1e-4)


@pytest.mark.parametrize("kind", ["forward", "gradient"])
@pytest.mark.parametrize("name", NAMES)
def test_no_copy_of_a_weight_per_user(name, kind):
    assert not copies(program(name, "bridged", kind).text, case(name))


@pytest.mark.parametrize("name", NAMES)
def test_the_copy_of_folded_weights_is_found(name):
    """By the same reading, so that the test above can fail."""
    assert copies(program(name, "folded", "forward").text, case(name))


def normalized_weights():
    """The norm of each column of a modulated weight is no sum of its parts."""

    def apply(p, x):
        return x @ (p["w"] / jnp.linalg.norm(p["w"], axis=0)) @ p["out"]

    params = {"w": normal(0, 7, 11), "out": normal(1, 11, 17)}
    return Model(apply, params, [(".*", BOTH)], examples(3, 7))


def gates_that_are_joined():
    """Kernels side by side, of which each scales the inputs otherwise."""
    model = LIBRARIES["linen_optimized_lstm"]()
    return dataclasses.replace(model, spec=[(".*/h./kernel", BOTH)])


FORCED = {
    normalized_weights: ({"w"}, 4 * 7 * 11),
    gates_that_are_joined: ({f"params/cell/h{g}/kernel" for g in "ifgo"}, 4 * 11 * 11),
}


@pytest.mark.parametrize("make", FORCED)
def test_the_report_is_right_where_materialisation_is_forced(make):
    paths, size = FORCED[make]
    this = make_case(make())
    conditioned = this.conditioned(this.model.params, this.hyper, this.z[0])
    found = report(this.model.apply, conditioned, this.model.x[0]).materialized
    assert {use.path for use in found} == paths
    assert {use.bytes_per_user for use in found} == {size}
    assert size == 4 * this.smallest_weight
    with pytest.raises(MaterializationError, match=f"{found[0].path} .* for each user"):
        jax.eval_shape(this.forward(this.bridged), *this.arguments)
    run = this.forward(functools.partial(this.bridged, strict=False))
    compiled = jax.jit(run, **QUICK).lower(*this.arguments).compile()
    assert copies(compiled.as_text(), this)
    wanted = jax.jit(this.forward(this.folded), **QUICK)(*this.arguments)
    assert_near(compiled(*this.arguments), wanted, 1e-5)
