"""The benchmark of scale runs at tiny sizes, and counts choices and tokens."""

import jax
import numpy as np
import pytest

from benchmarks import scale
from benchmarks.scale import (
    Btl,
    Curve,
    Dpo,
    Point,
    btl_call,
    dpo_call,
    run,
    to_markdown,
)

pytestmark = pytest.mark.usefixtures("quick_compile")

BTL = Btl(batch=3, users=7, context=2, targets=5, features=4, hidden=8, items=11)
DPO = Dpo(tokens=8, users=2, pairs=1, width=16, layers=1, vocab=11)


@pytest.mark.slow
def test_it_writes_tables_and_a_picture(tmp_path):
    curves = (Curve(BTL, "batch", (3,)), Curve(DPO, "tokens", (7,)))
    run(curves, 1, tmp_path / "out.md")
    text = (tmp_path / "out.md").read_text()
    assert "**NP-BTL: choices/s by batch**, else Btl(batch=3, " in text
    assert "**NP-DPO: tokens/s by tokens**" in text and "| | 3 |" in text
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_choices_and_tokens_are_those_of_a_step():
    call, (state, constants, examples, key), steps, choices = btl_call(BTL)
    state, metrics = jax.jit(call)(state, constants, examples, key)
    assert steps == len(examples.step) == int(state.step)
    assert choices == 3 * 5
    np.testing.assert_array_equal(metrics["choices"], [5] * steps)
    _, (_, (_, batch), _), steps, tokens = dpo_call(DPO)
    assert (steps, tokens) == (1, batch.responses.tokens.size)
    assert tokens == 2 * 1 * 2 * 8


def test_rates_are_medians(monkeypatch):
    monkeypatch.setattr(
        scale, "in_turns", lambda programs, rounds: dict.fromkeys(programs, [9, 2, 1])
    )
    # A call takes 2 seconds and makes ten steps of 3 x 5 choices.
    (point,) = scale.measure(Curve(BTL, "batch", (3,)), 3)
    assert point == Point(3, 0.2, 75)
    text = to_markdown([(Curve(BTL, "batch", (3,)), [point])], 3)
    assert "| ms a step | 200.00 |\n| a second | 75 |\n" in text
