"""What `report` says of costs: against XLA's own count, closed forms, and folding."""

import math

import jax
import jax.numpy as jnp
import pytest
from arrays import normal
from jax import lax

from fsa.conditioning import (
    Conditioned,
    Cost,
    bridge,
    condition,
    hypernet,
    low_rank,
    report,
    scale,
    user_axes,
)
from fsa.conditioning.program_cost import program_cost

TOKENS, INPUTS, OUTPUTS, RANK = 13, 24, 32, 3


def weight(scaled=True, rank=RANK):
    base = normal(0, INPUTS, OUTPUTS)
    scales = (normal(1, 1, OUTPUTS),) if scaled else ()
    shapes = (INPUTS, 1, rank), (1, 1, rank), (1, OUTPUTS, rank)
    terms = (tuple(normal(n, *s) for n, s in enumerate(shapes)),) if rank else ()
    return Conditioned(base, scales, terms)


def product(w, x):
    return x @ w


def cost(fn, *args):
    return program_cost(jax.make_jaxpr(fn)(*args))


def by_xla(fn, *args):
    """XLA's count before it fuses; it multiplies no loop by its length."""
    return jax.jit(fn).lower(*args).cost_analysis()


X = normal(9, TOKENS, INPUTS)
KERNEL = normal(3, 3, 5, 7)
PROGRAMS = {
    "product": (lambda x, w: x @ w, X, normal(1, INPUTS, OUTPUTS)),
    "batched": (
        lambda x, w: jnp.einsum("btd,bdf->btf", x, w),
        *(normal(0, 2, 3, 5), normal(1, 2, 5, 7)),
    ),
    "arithmetic": (lambda x: (x + 1) * x - x / 2, X),
    "convolution": (
        lambda x, w: lax.conv_general_dilated(
            *(x, w, (1,), "VALID"), dimension_numbers=("NWC", "WIO", "NWC")
        ),
        *(normal(0, 2, 9, 5), KERNEL),
    ),
    "grouped convolution": (
        lambda x, w: lax.conv_general_dilated(
            *(x, w, (1,), "VALID"),
            dimension_numbers=("NWC", "WIO", "NWC"),
            feature_group_count=2,
        ),
        *(normal(0, 2, 9, 4), normal(1, 3, 2, 6)),
    ),
    "by parts": (bridge(product, strict=True), weight(), X),
    "by parts, mapped over users": (
        jax.vmap(bridge(product, strict=True), (None, 0)),
        *(weight(), normal(0, 5, TOKENS, INPUTS)),
    ),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_operations_are_those_that_xla_counts(name):
    fn, *args = PROGRAMS[name]
    assert cost(fn, *args).flops == by_xla(fn, *args)["flops"]


@pytest.mark.parametrize("name", ["product", "batched", "convolution"])
def test_bytes_of_a_product_are_those_that_xla_counts(name):
    fn, *args = PROGRAMS[name]
    assert cost(fn, *args).bytes == by_xla(fn, *args)["bytes accessed"]


def test_loops_count_as_often_as_they_run():
    w = normal(0, INPUTS, INPUTS)
    once = cost(lambda x: x @ w, X)

    def looped(x):
        return lax.scan(lambda x, _: (x @ w, None), x, None, length=7)[0]

    assert cost(looped, X) == once.times(7)
    assert cost(jax.checkpoint(looped), X) == once.times(7)
    both = lambda x: lax.cond(x[0, 0] > 0, lambda: looped(x), lambda: x)  # noqa: E731
    assert 0 <= cost(both, X).flops - once.times(7).flops < 3
    assert cost(lambda x: lax.while_loop(lambda x: x[0, 0] > 0, lambda x: x @ w, x), X)
    assert Cost(1, 2) + Cost(3, 4) == Cost(4, 6)


def test_the_report_counts_what_modulations_add():
    found = report(product, weight(), X)
    plain = 2 * TOKENS * INPUTS * OUTPUTS
    assert found.unconditioned.flops == plain
    down_and_up = 2 * TOKENS * RANK * (INPUTS + OUTPUTS)
    # The gate, the sum of both, the scale of the product, and its 1.
    around = TOKENS * RANK + 2 * TOKENS * OUTPUTS + OUTPUTS
    assert found.cost.flops == plain + down_and_up + around
    assert found.ratio == found.cost.flops / plain
    assert f"{found.ratio:.3f} times" in str(found)


def test_folding_is_as_good_where_the_operations_are():
    found = report(product, weight(), X)
    assert found.folding.bytes == 4 * INPUTS * OUTPUTS
    calls = found.calls_to_fold
    assert 1 < calls < math.inf

    def by_parts(n):
        return n * found.cost.flops

    def folded(n):
        return found.folding.flops + n * found.unconditioned.flops

    assert folded(calls) <= by_parts(calls) and folded(calls - 1) > by_parts(calls - 1)
    assert f"from {calls:,.0f} calls" in str(found)


def test_what_is_built_in_each_call_is_better_folded():
    found = report(lambda p, x: x @ jnp.exp(p["w"]), {"w": weight()}, X)
    assert "Built in each call: w." in str(found)
    assert found.calls_to_fold == 1


def test_segments_are_not_folded_and_cost_numbers_a_token():
    params = {"w": normal(0, INPUTS, OUTPUTS)}
    for modulation, numbers in ((low_rank(RANK), RANK), (scale(), OUTPUTS)):
        init, modulate = hypernet([("w", modulation)], 2)
        hyper = init(jax.random.key(0), params)
        both = jax.vmap(modulate, (None, 0), user_axes(hyper))(hyper, jnp.ones((2, 2)))
        segments = jnp.arange(TOKENS) % 2
        tree = condition(params, both, segments=segments)
        found = report(lambda p, x: x @ p["w"], tree, X)
        assert found.folding is None and found.calls_to_fold == math.inf
        assert f"Each token reads {numbers} numbers" in str(found)
