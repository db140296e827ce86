"""The transformer: padding, causality, caches, log-probs, precision, conditioning.

That its logits are those of the real families is shown in test_huggingface.py.
"""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import policies
import pytest
from random_variables import random_variables
from slow import slow_but

from fsa.conditioning import (
    bridge,
    condition,
    fold,
    hypernet,
    low_rank,
    report,
    scale,
    shift,
)
from fsa.language import layers
from fsa.language.transformer import Cache, Transformer, init_cache

pytestmark = pytest.mark.usefixtures("quick_compile")

# Sizes that differ, so that no swapped axis passes.
V, W, L, N, K, H, F = 61, 20, 3, 4, 2, 6, 28
B, T = 2, 11
PLAIN = {}
# Every feature of a family of models.
FULL = {
    "activation": "gelu_tanh",
    "norm_offset": 1.0,
    "post_norms": True,
    "biases": layers.MAPS,
    "qk_norm": True,
    "attention_scale": 0.3,
    "attention_soft_cap": 2.0,
    "final_soft_cap": 3.0,
    "embedding_scale": W**0.5,
    "tied": True,
    "windows": (4, None, 4),
    "rope_theta": 1000.0,
    "local_rope_theta": 10.0,
    "rope_factor": 4.0,
    "rope_band": (1.0, 2.5, 16.0),
}
MODELS = {"plain": PLAIN, "full": FULL}
NAMES = slow_but(("full",), MODELS)


def make(**arguments):
    return Transformer(V, W, L, N, K, H, F, **arguments)


@functools.cache
def ready(name, **arguments):
    """(model, variables, jitted apply) of one of `MODELS`."""
    model = make(**MODELS[name], **arguments)
    return (
        model,
        random_variables(model),
        jax.jit(model.apply, static_argnames=("method", "chunk")),
    )


def tokens(seed=0, *shape):
    rng = np.random.default_rng(seed)
    return rng.integers(0, V, shape or (B, T)).astype(np.int32)


def assert_close(a, b, tolerance=1e-5):
    np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", NAMES)
def test_padding_changes_nothing(name):
    model, params, apply = ready(name)
    batch = tokens()
    wanted, _ = apply(params, batch, mask=np.ones(batch.shape, bool))
    assert wanted.shape == (B, T, V) and wanted.dtype == jnp.float32
    assert_close(apply(params, batch)[0], wanted)
    for left in (0, 3, 5):
        padded, mask = tokens(9, B, T + 5), np.zeros((B, T + 5), bool)
        padded[:, left : left + T], mask[:, left : left + T] = batch, True
        logits, _ = apply(params, padded, mask=mask)
        assert_close(logits[:, left : left + T], wanted)
        assert np.isfinite(logits).all()


@pytest.mark.parametrize("name", MODELS)
def test_a_token_depends_on_itself_and_those_before(name):
    _, params, apply = ready(name)
    batch = tokens()
    changed = batch.copy()
    changed[:, 5] = (changed[:, 5] + 1) % V
    moved = np.abs(apply(params, changed)[0] - apply(params, batch)[0]).max((0, 2))
    assert not moved[:5].any() and (moved[5:] > 1e-4).all()


def test_a_window_reaches_so_far_and_no_further():
    model = make(windows=(4, 3, 1))
    params = random_variables(model)
    batch = tokens()
    changed = batch.copy()
    changed[:, 2] = (changed[:, 2] + 1) % V
    apply = jax.jit(model.apply)
    moved = np.abs(apply(params, changed)[0] - apply(params, batch)[0]).max((0, 2))
    # Each layer looks back its window less itself: 3 + 2 + 0 tokens.
    assert (moved[2:8] > 0).all() and not moved[8:].any()


def test_rotation_depends_on_distance_alone():
    rng = np.random.default_rng(0)
    query, key = rng.standard_normal((2, 1, 1, 1, H)).astype(np.float32)
    frequencies = make(rope_theta=10.0)._frequencies(None)

    def product(i, j):
        def turn(x, position):
            angles = (position * frequencies)[None, None]
            return layers.rotate(x, np.sin(angles), np.cos(angles))

        return float((turn(query, i) * turn(key, j)).sum())

    assert product(5, 5) == pytest.approx(float((query * key).sum()), rel=1e-5)
    assert product(9, 4) == pytest.approx(product(6, 1), rel=1e-4)
    assert product(9, 4) != pytest.approx(product(9, 5), rel=1e-2)


def test_frequencies_are_scaled_by_band():
    model = make(rope_theta=1e4, rope_factor=8.0, rope_band=(1.0, 4.0, 64.0))
    base = 1e4 ** (-np.arange(0, H, 2) / H)
    turns = 64 * base / (2 * math.pi)
    assert turns[0] > 4 and turns[2] < 1
    scaled = model._frequencies(None)
    np.testing.assert_allclose(scaled[[0, 2]], base[[0, 2]] / [1, 8], rtol=1e-6)
    linear = make(rope_theta=1e4, rope_factor=8.0)._frequencies(None)
    np.testing.assert_allclose(linear, base / 8, rtol=1e-6)
    # Halfway through the band, in turns, is the mean of both.
    middle = make(rope_factor=8.0, rope_band=(turns[1] - 1, turns[1] + 1, 64.0))
    wanted = base[1] * (1 + 1 / 8) / 2
    assert middle._frequencies(None)[1] == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_cache_gives_the_same_at_every_position(name):
    """Prefill with padding on the left, then more tokens at once, then single ones."""
    model, params, apply = ready(name)
    batch, mask = tokens(), np.ones((B, T), bool)
    mask[1, :3] = False
    wanted, _ = apply(params, batch, mask=mask)
    cache = init_cache(model, B, T + 2)
    parts = []
    for start, stop in ((0, 4), (4, 8), (8, 9), (9, 10), (10, 11)):
        logits, cache = apply(
            params, batch[:, start:stop], mask=mask[:, start:stop], cache=cache
        )
        parts.append(logits)
    assert int(cache.index) == T and cache.mask.sum() == mask.sum()
    together = np.concatenate(parts, 1)
    np.testing.assert_allclose(together[mask], wanted[mask], rtol=1e-4, atol=1e-5)


def test_cache_can_be_mapped_over_users():
    model, params, apply = ready("full")
    batches = tokens(3, 3, B, T)
    cache = init_cache(model, B, T)
    axes = Cache(0, 0, 0, None)
    caches = Cache(*(jnp.stack([x] * 3) for x in cache[:3]), cache.index)
    step = jax.jit(
        jax.vmap(lambda t, c: model.apply(params, t, cache=c), (0, axes), (0, axes))
    )
    first, caches = step(batches[:, :, :5], caches)
    second, _ = step(batches[:, :, 5:10], caches)
    for i, batch in enumerate(batches):
        together = np.concatenate([first[i], second[i]], 1)
        assert_close(together, apply(params, batch)[0][:, :10], 1e-4)


def test_more_tokens_than_the_cache_holds_are_refused():
    model, params, _ = ready("plain")
    with pytest.raises(ValueError, match="cache of 10"):
        model.apply(params, tokens(), cache=init_cache(model, B, T - 1))


@pytest.mark.parametrize(
    ("name", "chunk"), [("plain", None), ("plain", 1), ("full", None), ("full", 4)]
)
def test_log_probs(name, chunk):
    _, params, apply = ready(name)
    batch, mask = tokens(), np.ones((B, T), bool)
    mask[0, :4], mask[1, -2:] = False, False
    found = apply(params, batch, mask=mask, method="log_probs", chunk=chunk)
    logits = np.asarray(apply(params, batch, mask=mask)[0], np.float64)
    normed = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    wanted = np.zeros((B, T))
    for b in range(B):
        # The first real token has nothing before it.
        for t in np.flatnonzero(mask[b])[1:]:
            wanted[b, t] = normed[b, t - 1, batch[b, t]]
    assert found.dtype == jnp.float32
    assert_close(found, wanted)


def test_log_probs_never_hold_all_logits():
    model, params, _ = ready("plain", remat="nothing_saveable")
    batch = tokens(0, B, 17)

    def loss(params, chunk):
        scores = model.apply(params, batch, method="log_probs", chunk=chunk)
        return scores.mean()

    at_once, chunked = (
        jax.jit(jax.value_and_grad(functools.partial(loss, chunk=chunk)))
        .lower(params)
        .compile()
        for chunk in (None, 4)
    )
    jax.tree.map(assert_close, chunked(params), at_once(params))
    # Two axes of logits [B, 16, V] in any order.
    sizes = rf"f32\[(?:{B},16,{V}|16,{B},{V}|{B * 16},{V})\]"
    assert re.search(sizes, at_once.as_text())
    assert not re.search(sizes, chunked.as_text())


@pytest.mark.slow
def test_remat_changes_what_is_kept_not_gradients():
    model, params, _ = ready("plain")

    def gradient(remat):
        def loss(params):
            own = model.clone(remat=remat)
            return own.apply(params, tokens(), method="log_probs").sum()

        traced = jax.jit(jax.grad(loss)).trace(params)
        return traced.lower().compile()(params), str(traced.jaxpr)

    wanted, text = gradient(None)
    assert "remat" not in text and "checkpoint" not in text
    for policy in ("nothing_saveable", "dots_saveable"):
        found, text = gradient(policy)
        jax.tree.map(lambda a, b: assert_close(a, b, 1e-4), found, wanted)
        assert "remat" in text or "checkpoint" in text


def test_low_precision_keeps_float32_where_it_matters():
    model, params, apply = ready("full")
    wanted, _ = apply(params, tokens())
    low = model.clone(dtype=jnp.bfloat16)
    traced = jax.jit(low.apply).trace(params, tokens())
    logits, _ = traced.lower().compile()(params, tokens())
    assert logits.dtype == jnp.float32
    error = np.abs(logits - wanted)
    assert 1e-5 < error.mean() < 0.1 * np.abs(wanted).mean()
    program = str(traced.jaxpr)
    # Softmax and norms; other operations are in bfloat16.
    for primitive in ("exp", "rsqrt"):
        dtypes = set(re.findall(rf":(\w+)\[[\d,]*\] = {primitive} ", program))
        assert dtypes == {"f32"}, primitive
    assert "bf16[2,11,4,6] = dot_general" in program


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"num_kv_heads": 3}, "num_heads"),
        ({"head_dim": 5}, "head_dim"),
        ({"activation": "relu"}, "activation"),
        ({"remat": "everything"}, "everything"),
        ({"biases": ("mlp/down", "mlp/out")}, "mlp/out"),
        ({"windows": (4, None)}, "windows"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        random_variables(make().clone(**arguments))


def specification():
    """Modulates every parameter: scales, and shifts or adds ranks where possible."""

    def stacked(modulation, output=-1, input=None):
        return modulation.layout(output, input, stacked=True)

    return [
        (".*/(query|key|value)/kernel", stacked(scale() + low_rank(2), (-2, -1))),
        (".*/(query|key|value)/bias", stacked(shift(), (-2, -1), ())),
        (".*layers/.*/kernel", stacked(scale() + low_rank(2))),
        (".*layers/.*/bias", stacked(shift())),
        (".*layers/.*/scale", stacked(scale() + shift())),
        (".*final_norm/scale", scale() + shift()),
        (".*embedding", scale()),
    ]


@pytest.mark.slow
def test_conditioning_equals_folding():
    """Several users at once, strict, with scan, remat, tied embedding and gradients."""
    users = 5
    model, params, _ = ready("full", remat="nothing_saveable")
    init, modulate = hypernet(specification(), latent_dim=3)
    shapes = jax.eval_shape(lambda: init(jax.random.key(1), params))
    hyper = policies.noisy(shapes, 1, std=0.2)
    z = jax.random.normal(jax.random.key(2), (users, 3))
    batches = tokens(4, users, B, T)
    apply = functools.partial(model.apply, method="log_probs", chunk=6)

    def lazy(hyper, z, batch):
        return bridge(apply, strict=True)(condition(params, modulate(hyper, z)), batch)

    def folded(hyper, z, batch):
        return apply(fold(condition(params, modulate(hyper, z))), batch)

    def value_and_gradient(one):
        def loss(hyper):
            scores = jax.vmap(one, (None, 0, 0))(hyper, z, batches)
            return scores.mean(), scores

        return jax.jit(jax.value_and_grad(loss, has_aux=True))

    program = value_and_gradient(lazy).lower(hyper).compile()
    folded_program = value_and_gradient(folded).lower(hyper).compile()
    (_, scores), gradient = program(hyper)
    (_, wanted), wanted_gradient = folded_program(hyper)
    assert_close(scores, wanted)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(
            a, b, rtol=1e-3, atol=1e-5 * float(np.abs(b).max())
        ),
        gradient,
        wanted_gradient,
    )
    # Users differ, so what was compared depends on z.
    assert np.abs(scores[0] - scores[1]).max() > 1e-3
    assert copies(folded_program.as_text(), params, users)
    assert not copies(program.as_text(), params, users)


def copies(program, params, users):
    """Returns sizes of arrays in a compiled program that are users x a kernel."""
    kernels = [x.size for x in jax.tree.leaves(params) if x.size >= K * H * W]
    sizes = {users * size for n in kernels for size in (n, n // L)}
    shapes = re.findall(r"f32\[([\d,]+)\]", program)
    return sizes & {math.prod(map(int, shape.split(","))) for shape in shapes}


def test_a_kernel_from_states_to_logits_is_conditioned_by_parts():
    model, params, _ = ready("plain")
    spec = [(".*unembed/kernel", scale("both") + low_rank(2)), (".*", None)]
    init, modulate = hypernet(spec, latent_dim=3)
    conditioned = condition(
        params, modulate(init(jax.random.key(0), params), np.ones(3))
    )
    apply = functools.partial(model.apply, method="log_probs", chunk=4)
    uses = report(apply, conditioned, tokens())
    assert "params/unembed/kernel" in {use.path for use in uses.uses}
    assert not uses.materialized
