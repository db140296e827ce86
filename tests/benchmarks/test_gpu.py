"""The benchmark of accelerators, run on CPU at tiny sizes."""

import re

import jax
import jax.numpy as jnp
import pytest

from benchmarks import gpu, language_model
from benchmarks.dpo_variants import Sizes
from benchmarks.gpu import FORWARD, Timing, matmul_peak, measure, to_markdown
from benchmarks.language_model import MODELS
from fsa.language.huggingface import architecture
from fsa.language.transformer import Transformer

TINY = Sizes(
    users=2,
    pairs=1,
    context=2,
    prompt=3,
    response=4,
    rank=2,
    dtype="bfloat16",
    model="tiny",
)
# As the 1.5B, but small: 2 layers of width 8 with biases, 2 heads that share one.
SHAPE = {
    **MODELS["qwen2.5-1.5b"],
    "vocab_size": 11,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 12,
}


@pytest.mark.parametrize(
    ("name", "millions"), [("smollm2-135m", 134.515), ("qwen2.5-1.5b", 1543.714)]
)
def test_shapes_have_as_many_parameters_as_the_models(name, millions):
    """The numbers on their pages of Hugging Face."""
    model = Transformer(**architecture.arguments(Sizes(model=name).described))
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), int))
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))
    assert count / 1e6 == pytest.approx(millions, abs=1e-3)


@pytest.mark.slow
def test_it_measures_all_steps(monkeypatch, quick_compile):
    monkeypatch.setitem(language_model.MODELS, "tiny", SHAPE)
    _, base = TINY.make()
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(base)}
    assert dtypes == {jnp.dtype("bfloat16")}
    timings = measure(TINY, 1)
    names = [each.name for each in timings]
    assert names == [FORWARD, TINY.plain, TINY.film, TINY.low_rank]
    # Maps of a layer, attention over 7 tokens, and logits for 6 (7 less the last).
    maps = 8 * 8 + 2 * 8 * 4 + 8 * 8 + 3 * 8 * 12
    per_response = 2 * (7 * 2 * maps + 2 * 2 * 7 * 7 * 8 + 6 * 8 * 11)
    forward, *steps = timings
    assert forward.needed == forward.done == 4 * per_response
    for step in steps:
        assert step.needed == 2 * forward.needed < step.done
        assert step.seconds[0] > 0
    assert re.search(
        r"\*\*tiny\*\*: 28 tokens a step", to_markdown({"tiny": (TINY, timings)}, 1e9)
    )


def test_the_peak_is_that_of_the_best_round(monkeypatch):
    monkeypatch.setattr(gpu, "in_turns", lambda programs, rounds: {"": [4.0, 2.0, 3.0]})
    assert matmul_peak(8, 3, turns=5) == 2 * 8**3 * 5 / 2


def test_mfu_is_of_both_peaks(monkeypatch):
    monkeypatch.setattr(gpu, "peak_flops", lambda kind: 8e12)
    timings = [
        Timing(FORWARD, [1.0] * 3, done=10**12, needed=10**12),
        Timing(TINY.plain, [2.0, 4.0, 2.0], done=3 * 10**12, needed=2 * 10**12),
        Timing(TINY.low_rank, [2.2, 4.4, 2.2], done=4 * 10**12, needed=2 * 10**12),
    ]
    text = to_markdown({"x": (TINY, timings)}, 4e12)
    assert f"| {TINY.plain} | 2,000.0 | 1.000 | 14 | 3 | 25.0% | 12.5% |" in text
    assert f"| {TINY.low_rank} | 2,200.0 | 1.100 | 13 | 4 | 22.7% | 11.4% |" in text
