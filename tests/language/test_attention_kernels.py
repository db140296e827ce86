"""Attention kernels against plain attention; splash is interpreted on a CPU."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_variables import random_variables

from fsa.errors import InputError
from fsa.language import attention_kernels
from fsa.language.transformer import Transformer

pytestmark = pytest.mark.usefixtures("quick_compile")

# Less than a block of the kernel, which the tokens are padded to.
LENGTH, REAL = 40, (40, 27)


def make(**options):
    sizes = dict(vocab_size=31, width=24, num_layers=1, num_heads=4, num_kv_heads=2)
    return Transformer(**{**sizes, "head_dim": 6, "mlp_width": 20, **options})


def both(attention, **options):
    """Returns (loss, gradients) of plain attention and of another one."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(31, size=(len(REAL), LENGTH)).astype(np.int32)
    mask = np.arange(LENGTH) < np.array(REAL)[:, None]

    def of(model, variables):
        @jax.jit
        @jax.value_and_grad
        def loss(variables):
            log_probs = model.apply(
                variables, tokens, mask=mask, method=model.log_probs
            )
            return jnp.mean(jnp.sum(log_probs * jnp.cos(jnp.arange(LENGTH)), axis=1))

        return loss(variables)

    plain = make(**options)
    variables = random_variables(plain)
    return of(plain, variables), of(plain.clone(attention=attention), variables)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, marks=pytest.mark.slow),
        {"windows": (9,), "attention_soft_cap": 0.5},
    ],
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
        ({"attention": "flash"}, "flash"),
        ({"attention": "splash", "num_layers": 2, "windows": (9, None)}, "window"),
        ({"attention": "cudnn"}, "bfloat16"),
        ({"attention": "cudnn", "dtype": jnp.bfloat16}, "6"),
    ],
)
def test_what_a_kernel_cannot_compute(options, message):
    with pytest.raises(ValueError, match=message):
        random_variables(make(**options))


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs a GPU")
def test_cudnn_is_plain_attention():
    (wanted, _), (found, _) = both("cudnn", dtype=jnp.bfloat16, head_dim=64)
    np.testing.assert_allclose(found, wanted, rtol=1e-2)


@pytest.mark.parametrize(
    ("attention", "runs"), [("xla", "cpu"), ("cudnn", "gpu"), ("splash", "tpu")]
)
def test_a_kernel_runs_on_its_own_kind_of_device(attention, runs):
    for platform in ("cpu", "gpu", "tpu"):
        if platform == runs or attention == "xla":
            attention_kernels.check_device(attention, platform)
            continue
        with pytest.raises(InputError, match=f"`attention`={attention}"):
            attention_kernels.check_device(attention, platform)
