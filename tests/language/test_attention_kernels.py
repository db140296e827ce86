"""Attention by kernels, against the plain one; splash is interpreted on a CPU."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fsa.language import attention_kernels
from fsa.language.transformer import Transformer

LENGTH, REAL = 140, (140, 97)


def make(**options):
    sizes = dict(vocab_size=31, width=24, num_layers=1, num_heads=4, num_kv_heads=2)
    return Transformer(**{**sizes, "head_dim": 6, "mlp_width": 20, **options})


def both(attention, **options):
    """(loss, gradients) of the plain attention and of another, padding on the right."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(31, size=(len(REAL), LENGTH)).astype(np.int32)
    mask = np.arange(LENGTH) < np.array(REAL)[:, None]

    def of(model, variables):
        def loss(variables):
            log_probs = model.apply(
                variables, tokens, mask=mask, method=model.log_probs
            )
            return jnp.mean(jnp.sum(log_probs * jnp.cos(jnp.arange(LENGTH)), axis=1))

        return jax.value_and_grad(loss)(variables)

    plain = make(**options)
    variables = plain.init(jax.random.key(0), tokens[:, :1])
    return of(plain, variables), of(plain.clone(attention=attention), variables)


@pytest.mark.parametrize(
    "options", [{}, {"windows": (9,)}, {"attention_soft_cap": 0.5}]
)
def test_splash_is_plain_attention(options, monkeypatch):
    interpreted = functools.partial(attention_kernels.attend, interpret=True)
    monkeypatch.setattr(attention_kernels, "attend", interpreted)
    (wanted, wanted_grads), (found, grads) = both("splash", **options)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
        grads,
        wanted_grads,
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attention": "flash"}, "attention is one of"),
        (
            {"attention": "splash", "num_layers": 2, "windows": (9, None)},
            "one window for all layers",
        ),
        ({"attention": "cudnn"}, "cudnn computes in bfloat16"),
        (
            {"attention": "cudnn", "dtype": jnp.bfloat16},
            "no heads of 6 features",
        ),
    ],
)
def test_what_a_kernel_cannot_compute(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options).init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs a GPU")
def test_cudnn_is_plain_attention():
    (wanted, _), (found, _) = both("cudnn", dtype=jnp.bfloat16, head_dim=64)
    np.testing.assert_allclose(found, wanted, rtol=1e-2)
