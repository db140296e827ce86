"""Texts of refilled rows against `generate`, which writes each of them alone."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import compilations
from random_variables import random_variables

from fsa.language import generation as g
from fsa.language.row_batch import LENGTH, STOP, RowPrograms, Text, write_all
from fsa.language.transformer import Transformer, init_cache, unstacked

pytestmark = pytest.mark.usefixtures("quick_compile")

MOST, SEED, STOPS = 40, 5, (1, 2)
MODEL = Transformer(
    vocab_size=23,
    width=20,
    num_layers=3,
    num_heads=6,
    num_kv_heads=2,
    head_dim=4,
    mlp_width=28,
)
PROMPTS = [[3 + i % 17] * (1 + 7 * i % 19) for i in range(30)]


@dataclasses.dataclass(eq=False)
class Kept(Text):
    prompt: list[int]
    example_id: int
    own: Any = None
    max_new_tokens: int = MOST
    seed: int = SEED
    count: int = 0
    tokens: list[int] = dataclasses.field(default_factory=list)
    end: str | None = None

    def receive(self, tokens, end):
        assert self.end is None
        self.tokens += tokens
        self.end = end


@functools.cache
def stacked():
    return MODEL, jax.tree.map(jnp.asarray, random_variables(MODEL))


@functools.cache
def parts(apart):
    return unstacked(*stacked()) if apart else stacked()


@functools.cache
def alone():
    """The tokens of each text, as `generate` writes it by itself."""
    run = jax.jit(
        lambda variables, prompt, mask, i: g.generate(
            g.decoder(MODEL, variables),
            prompt,
            mask,
            jax.random.key(SEED),
            max_new_tokens=MOST,
            stop_tokens=STOPS,
            example_ids=i[None],
        )
    )
    found = []
    for i, prompt in enumerate(PROMPTS):
        tokens, mask = run(parts(False)[1], *g.left_pad([prompt], length=32), i)
        found.append(np.asarray(tokens)[np.asarray(mask)].tolist())
    return found


@functools.cache
def programs(apart):
    model, _ = parts(apart)
    return RowPrograms(
        lambda variables, own: g.decoder(model, variables),
        lambda keys, logits, own: jax.vmap(g.sample)(keys, logits),
        STOPS,
        g.cache_axes(model),
    )


def written(rows, apart):
    texts = [Kept(prompt, i) for i, prompt in enumerate(PROMPTS)]
    write_all(programs(apart), parts(apart)[1], texts, rows)
    return texts


@pytest.mark.parametrize(
    ("rows", "apart"),
    [
        (4, False),
        pytest.param(5, True, marks=pytest.mark.slow),
        pytest.param(64, True, marks=pytest.mark.slow),
    ],
)
def test_texts_are_those_written_alone(rows, apart):
    texts = written(rows, apart)
    assert [text.tokens for text in texts] == alone()
    # Some end by themselves and some are cut, or this says little.
    ends = [STOP if text.tokens[-1] in STOPS else LENGTH for text in texts]
    assert [text.end for text in texts] == ends and len(set(ends)) == 2


def test_rows_are_refilled(monkeypatch):
    """Four rows decode far fewer tokens than batches that wait for their longest."""
    calls, advance = [], RowPrograms.advance
    monkeypatch.setattr(
        RowPrograms,
        "advance",
        lambda self, *xs: calls.append(len(xs[1].token)) or advance(self, *xs),
    )
    lengths = [len(text.tokens) for text in written(4, False)]
    decoded = programs(False).at_once * sum(calls)
    waiting = sum(4 * max(lengths[i : i + 4]) for i in range(0, len(lengths), 4))
    assert sum(lengths) - len(lengths) <= decoded < 0.8 * waiting


def test_other_texts_run_the_same_programs():
    written(4, False)
    with compilations() as found:
        written(4, False)
    assert not found


def test_layers_apart_compute_the_same_without_memory():
    model, variables = parts(True)
    tokens = np.array([PROMPTS[3][:2] + [5, 9], [7, 8, 4, 11]])
    wanted, whole = MODEL.apply(
        parts(False)[1], tokens, cache=init_cache(MODEL, *tokens.shape)
    )
    found, cache = model.apply(variables, tokens, cache=init_cache(model, 2, 4))
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    np.testing.assert_allclose(jnp.stack(cache.keys), whole.keys, atol=1e-5)
    # The layer lies where it lay in the stack: its place there is a multiple of the 64
    # bytes that XLA wants arrays to begin at, as those of real models are.
    stack = parts(False)[1]["params"]["layers"]["mlp"]["up"]["kernel"]
    own = variables["params"]["layers_1"]["mlp"]["up"]["kernel"]
    place = own.unsafe_buffer_pointer() - stack.unsafe_buffer_pointer()
    assert place == own.nbytes == stack.nbytes // 3 and place % 64 == 0
