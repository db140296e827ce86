"""The benchmark of DPO steps runs at tiny sizes, and its counts are right."""

import functools

import jax
import numpy as np
import pytest

from benchmarks import measures
from benchmarks.dpo_report import Measured, limits, to_markdown
from benchmarks.dpo_variants import Sizes, make_steps
from benchmarks.language_model import OUTPUTS

pytestmark = pytest.mark.usefixtures("quick_compile")

TINY = Sizes(
    users=2, pairs=1, context=2, prompt=3, response=4, width=16, layers=2, vocab=11
)


STEPS = make_steps(TINY)


@functools.cache
def stepped(name):
    """Returns (state before, state after, metrics) of a variant."""
    step, arguments = STEPS[name]()
    return arguments[0], *jax.jit(step)(*arguments)


@pytest.mark.slow
def test_a_stored_reference_is_what_the_step_would_compute():
    _, stored, metrics = stepped(TINY.low_rank)
    _, computed, again = stepped(TINY.computed)
    for name in metrics:
        np.testing.assert_allclose(metrics[name], again[name], rtol=1e-4, atol=1e-5)
    for a, b in zip(*map(jax.tree.leaves, (stored, computed)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", [TINY.plain, TINY.film, TINY.low_rank, TINY.given])
def test_steps_train_what_they_should(name):
    before, _, metrics = stepped(name)
    # At the start the policy is the reference.
    assert float(metrics["loss"]) == pytest.approx(
        np.log(2) + 2 * float(metrics["nll"]), rel=1e-5
    )
    assert float(metrics["grad_norm"]) > 1e-4
    paths = {
        f"params/layers/{where}/{leaf}"
        for where in OUTPUTS
        for leaf in ("kernel", *(["bias"] if name == TINY.film else []))
    }
    text = str(jax.tree.structure(before.params["hyper"]))
    assert all(path in text for path in paths)
    assert ("bias" in text) == (name == TINY.film)


@pytest.mark.slow
def test_a_peak_counts_what_a_program_holds_for_a_while():
    size = 64_000_000
    before = measures.peak_memory(lambda: 0)
    during = measures.peak_memory(lambda: np.ones(size, np.uint8).sum())
    assert 0.9 * size < during - before < 1.5 * size
    # Memory that was given back no longer counts.
    assert measures.peak_memory(lambda: 0) < before + size // 2


def test_the_table_pairs_rounds_and_compares_with_what_is_promised():
    # The second round is slow for all: medians of ratios are 1.04, 1.2 and 0.6.
    table = {
        TINY.plain: Measured(10**9, 100, 1000, [1.0, 9.0, 1.0]),
        TINY.film: Measured(10**9, 105, 1010, [1.04, 9.36, 1.04]),
        TINY.low_rank: Measured(10**9, 110, 1020, [1.2, 10.8, 1.2]),
        TINY.given: Measured(10**9, 103, 1030, [1.03, 9.27, 1.03]),
        TINY.computed: Measured(15 * 10**8, 110, 1020, [2.0, 18.0, 2.0]),
        "TRL": Measured(10**9, 0, 0, [3.0, 18.0, 3.0]),
    }
    lines = limits(TINY, table)
    assert "| time of NP-DPO, scale + shift | 1.04 | at most 1.05 |" in lines
    assert "| time of NP-DPO, low_rank(8) | 1.20 | at most 1.10 |" in lines
    assert "| peak of NP-DPO, low_rank(8) | 1.02 | at most 1.10 |" in lines
    assert "| time of NP-DPO, low_rank(8), z given | 1.03 | at most 1.05 |" in lines
    assert "| peak of NP-DPO, low_rank(8), z given | 1.03 | at most 1.05 |" in lines
    saved = "share of the step that a stored reference saves"
    assert f"| {saved} | 0.40 | at least 0.20 |" in lines
    assert "| tokens/s of DPO, lora(8), to TRL's | 3.00 | aim: 1.50 |" in lines
    text = to_markdown(TINY, table, "trl 9", peak_tflops=0.01)
    # 28 tokens a step, and a GFLOP a second of ten.
    row = "| DPO, lora(8) | 1,000 | 1.00 | 28 | 1.0 | 0 | 1.00 | 0 | 1.00 | 10.0% |"
    assert row in text
    assert "| TRL | 3,000 | 3.00 | 9 | 1.0 | - | - | - | - | 3.3% |" in text
    assert text.endswith("TRL: trl 9\n")
