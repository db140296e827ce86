"""Texts in one row against each text alone, for every kind of attention layer."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from policies import DESCRIBED, language_model
from slow import slow_but

from fsa.language import attention_kernels

pytestmark = pytest.mark.usefixtures("quick_compile")

LENGTHS, WANTED_FROM = (7, 3, 12, 1), 2
LAYERS = DESCRIBED["num_hidden_layers"]
KINDS = {
    "plain": {},
    "windows, caps, own unembedding": dict(
        windows=(4, None),
        local_rope_theta=100.0,
        attention_soft_cap=3.0,
        final_soft_cap=2.0,
        qk_norm=True,
        tied=not DESCRIBED["tie_word_embeddings"],
    ),
}
# Splash has one window for all layers.
OF_SPLASH = {
    "splash": {},
    "splash with a window and a cap": dict(
        windows=(4,) * LAYERS, attention_soft_cap=3.0
    ),
}
QUICK = ("plain", "splash")


@pytest.mark.parametrize("kind", slow_but(QUICK, (*KINDS, *OF_SPLASH)))
def test_a_row_gives_each_text_what_it_has_alone(kind, monkeypatch):
    model, variables = language_model(**{**KINDS, **OF_SPLASH}[kind])
    in_rows = model
    if kind in OF_SPLASH:
        interpreted = functools.partial(attention_kernels.attend, interpret=True)
        monkeypatch.setattr(attention_kernels, "attend", interpreted)
        in_rows = model.clone(attention=attention_kernels.SPLASH)
    texts, begins, begin, tokens, wanted = some_row()

    def row(variables):
        return in_rows.apply(
            variables, tokens, jnp.array(begin), wanted, method=model.row_log_probs
        )

    alone = jax.jit(lambda text: model.apply(variables, text, method=model.log_probs))
    found = jax.jit(row)(variables)
    for first, text in zip(begins, texts, strict=False):
        own = np.where(np.arange(len(text)) >= WANTED_FROM, alone(text[None])[0], 0)
        np.testing.assert_allclose(found[first : first + len(text)], own, atol=2e-5)
    np.testing.assert_array_equal(found[begins[-1] :], 0)


def some_row():
    """Texts, where each begins, and the row of them with two tokens of padding."""
    rng = np.random.default_rng(0)
    texts = [rng.integers(3, 80, n).astype(np.int32) for n in LENGTHS]
    filled = np.int32([5, 5])
    begins = np.cumsum((0, *LENGTHS))
    begin = np.repeat(begins, (*LENGTHS, len(filled)))
    begin[-1] += 1
    tokens = np.concatenate([*texts, filled])
    wanted = np.arange(len(tokens)) - begin >= WANTED_FROM
    return texts, begins, begin, tokens, wanted


@pytest.mark.slow
@pytest.mark.parametrize("kind", OF_SPLASH)
def test_splash_has_the_gradients_of_plain_rows(kind, monkeypatch):
    """Of several rows, mapped as training maps those that a device computes at once."""
    model, variables = language_model(**OF_SPLASH[kind])
    interpreted = functools.partial(attention_kernels.attend, interpret=True)
    monkeypatch.setattr(attention_kernels, "attend", interpreted)
    _, _, begin, tokens, wanted = some_row()
    rows = np.stack([tokens, tokens[::-1]]), np.stack([begin] * 2)

    def gradient(attention):
        own = model.clone(attention=attention)

        def of_row(variables, tokens, begin):
            method = own.row_log_probs
            return own.apply(variables, tokens, begin, wanted, method=method)

        @jax.jit
        @jax.grad
        def loss(variables):
            found = jax.vmap(of_row, (None, 0, 0))(variables, *map(jnp.array, rows))
            return (found * jnp.cos(jnp.arange(len(tokens)))).sum()

        return loss(variables)

    def same(found, wanted):
        scale = max(1.0, np.abs(wanted).max())
        np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-5 * scale)

    jax.tree.map(same, gradient(attention_kernels.SPLASH), gradient("xla"))
