"""The benchmark of accelerators, run on CPU at tiny sizes."""

import json

import jax
import jax.numpy as jnp
import pytest

from benchmarks import generate, gpu, language_model
from benchmarks.dpo_variants import Sizes
from benchmarks.gpu import (
    FORWARD,
    Report,
    Timing,
    matmul_peak,
    measure_adapters,
    measure_attention,
    measure_generation,
    measure_steps,
    sections,
    table_of_steps,
)
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
    ("name", "millions"),
    [
        ("smollm2-135m", 134.515),
        ("qwen2.5-0.5b", 494.033),
        ("qwen2.5-1.5b", 1543.714),
    ],
)
def test_shapes_have_as_many_parameters_as_the_models(name, millions):
    """The numbers on their pages of Hugging Face."""
    model = Transformer(**architecture.arguments(Sizes(model=name).described))
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), int))
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))
    assert count / 1e6 == pytest.approx(millions, abs=1e-3)


@pytest.fixture
def tiny(monkeypatch, quick_compile):
    monkeypatch.setitem(language_model.MODELS, "tiny", SHAPE)


@pytest.mark.slow
def test_it_measures_all_steps(tiny):
    _, base = TINY.make()
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(base)}
    assert dtypes == {jnp.dtype("bfloat16")}
    timings = measure_steps(TINY, 1)
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


@pytest.mark.slow
def test_generation_and_adapters(tiny):
    sizes = generate.Sizes(model="tiny", users=2, prompt=3, new=4)
    texts = measure_generation(sizes, 1)
    assert [row[0] for row in texts.rows] == [generate.PLAIN, *generate.MODULATIONS]
    (row,) = measure_adapters(TINY, 3, 1).rows
    assert row[1] > 0


@pytest.mark.slow
def test_attention_kernels_are_compared_on_the_same_step(tiny, monkeypatch):
    """A kernel that there is on CPUs stands for cuDNN's."""
    monkeypatch.setattr(gpu, "CUDNN", gpu.XLA)
    (row,) = measure_attention(TINY, 2).rows
    assert row[0] == gpu.XLA and row[2] == 1


def test_what_is_measured_first_is_kept_if_the_time_ends(tmp_path):
    names = [name for name, _ in sections(TINY, ["a", "b"], 3, 1, 1e12)]
    assert names[:3] == ["steps of a", "steps of b", "attention"]
    report = Report(tmp_path, 1e12)
    report.add(gpu.Table("steps", {"ms": ".1f"}, [("plain", 2.0), ("film", None)]))
    report.leave_out("adapters")
    (file,) = tmp_path.glob("gpu-*.json")
    content = json.loads(file.read_text())
    assert content["tables"][0]["rows"] == [["plain", 2.0], ["film", None]]
    assert content["left_out"] == ["adapters"]
    text = file.with_suffix(".md").read_text()
    assert "| plain | 2.0 |" in text and "| film | - |" in text


def test_the_peak_is_that_of_the_best_round(monkeypatch):
    monkeypatch.setattr(gpu, "in_turns", lambda programs, rounds: {"": [4.0, 2.0, 3.0]})
    assert matmul_peak(8, 3, turns=5) == 2 * 8**3 * 5 / 2


def test_mfu_is_of_both_peaks():
    timings = [
        Timing(FORWARD, [1.0] * 3, done=10**12, needed=10**12),
        Timing(TINY.plain, [2.0, 4.0, 2.0], done=3 * 10**12, needed=2 * 10**12),
        Timing(TINY.low_rank, [2.2, 4.4, 2.2], done=4 * 10**12, needed=2 * 10**12),
    ]
    text = table_of_steps(TINY, timings, 4e12, 8e12).to_markdown()
    assert text.startswith("**tiny: 28 tokens a step**")
    assert f"| {TINY.plain} | 2,000.0 | 1.000 | 14 | 3 | 25.0% | 12.5% |" in text
    assert f"| {TINY.low_rank} | 2,200.0 | 1.100 | 13 | 4 | 22.7% | 11.4% |" in text
    assert "| - |" in table_of_steps(TINY, timings, 4e12, None).to_markdown()
