"""The training step, against AdamW written out in float64.

`quick_compile` keeps compiled programs, as several tests compile the same step.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fsa.conditioning.hypernet import Head
from fsa.language.transformer import Transformer
from fsa.training.step import init_state, make_optimizer, make_step

pytestmark = pytest.mark.usefixtures("quick_compile")

PEAK, WARMUP, STEPS, DECAY = 0.1, 2, 6, 0.3
B1, B2, EPS = 0.9, 0.999, 1e-8
EXAMPLES, WIDTH = 8, 3


def loss_fn(variables, batch, key):
    """Squared error of a linear model; `frozen` shifts the input."""
    x, y = batch
    shifted = x - variables["frozen"]["mean"]
    error = shifted @ variables["params"]["w"] + variables["params"]["b"] - y
    return jnp.mean(error**2), {"bias": jnp.mean(error)}


def some_variables():
    rng = np.random.default_rng(0)
    params = {"w": rng.normal(size=(WIDTH, 1)), "b": rng.normal(size=1)}
    frozen = {"mean": rng.normal(size=WIDTH)}
    variables = {"params": params, "frozen": frozen}
    return jax.tree.map(lambda x: x.astype(np.float32), variables)


def some_batch():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(EXAMPLES, WIDTH)), rng.normal(size=(EXAMPLES, 1))
    return x.astype(np.float32), y.astype(np.float32)


def optimizer(clip_norm=1.0):
    return make_optimizer(
        learning_rate=PEAK,
        steps=STEPS,
        warmup_steps=WARMUP,
        weight_decay=DECAY,
        clip_norm=clip_norm,
    )


def rate(step):
    """Linear warm-up from 0, then a cosine to 0 at the last step."""
    if step < WARMUP:
        return PEAK * step / WARMUP
    done = min((step - WARMUP) / (STEPS - WARMUP), 1)
    return PEAK * 0.5 * (1 + np.cos(np.pi * done))


def reference(variables, batch, clip_norm):
    """Parameters, losses and gradient norms of AdamW (Loshchilov and Hutter 2019)."""
    variables = jax.tree.map(np.float64, variables)
    params, mean = variables["params"], variables["frozen"]["mean"]
    x, y = map(np.float64, batch)
    first = {name: np.zeros_like(p) for name, p in params.items()}
    second = {name: np.zeros_like(p) for name, p in params.items()}
    losses, norms = [], []
    for t in range(STEPS):
        error = (x - mean) @ params["w"] + params["b"] - y
        grads = {
            "w": 2 * (x - mean).T @ error / EXAMPLES,
            "b": 2 * error.mean(axis=0),
        }
        losses.append(np.mean(error**2))
        norms.append(np.sqrt(sum((g**2).sum() for g in grads.values())))
        clip = min(1, clip_norm / norms[-1])
        for name, grad in grads.items():
            first[name] = B1 * first[name] + (1 - B1) * clip * grad
            second[name] = B2 * second[name] + (1 - B2) * (clip * grad) ** 2
            m = first[name] / (1 - B1 ** (t + 1))
            v = second[name] / (1 - B2 ** (t + 1))
            decay = DECAY * params[name] if name == "w" else 0
            params[name] = params[name] - rate(t) * (m / (np.sqrt(v) + EPS) + decay)
    return params, losses, norms


@pytest.mark.parametrize("clip_norm", [0.01, 100.0])
def test_is_adamw(clip_norm):
    """Over warm-up and decay, with every gradient clipped and with none."""
    variables, batch = some_variables(), some_batch()
    step = jax.jit(make_step(loss_fn, optimizer(clip_norm)))
    state = init_state(variables, optimizer(clip_norm))
    losses, norms = [], []
    for _ in range(STEPS):
        state, metrics = step(state, batch, jax.random.key(0))
        losses.append(metrics["loss"])
        norms.append(metrics["grad_norm"])
    params, wanted_losses, wanted_norms = reference(variables, batch, clip_norm)
    for name, wanted in params.items():
        np.testing.assert_allclose(state.params[name], wanted, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(losses, wanted_losses, rtol=1e-4)
    # The norms are those before clipping.
    np.testing.assert_allclose(norms, wanted_norms, rtol=1e-4)
    assert clip_norm < min(wanted_norms) or clip_norm > max(wanted_norms)
    assert state.step == STEPS


def test_decay_leaves_out_vectors_and_biases():
    heads = {"kernel": jnp.ones((3, 2, 2)), "bias": jnp.ones((2, 2))}
    params = {"heads": heads, "bias": jnp.ones(2), "scale": jnp.ones(())}
    decaying = make_optimizer(
        learning_rate=PEAK, steps=2, warmup_steps=0, weight_decay=DECAY
    )
    zero = jax.tree.map(jnp.zeros_like, params)
    updates, _ = jax.jit(lambda: decaying.update(zero, decaying.init(params), params))()
    np.testing.assert_allclose(updates["heads"]["kernel"], -PEAK * DECAY, rtol=1e-6)
    np.testing.assert_array_equal(updates["heads"]["bias"], 0)
    np.testing.assert_array_equal(updates["bias"], 0)
    np.testing.assert_array_equal(updates["scale"], 0)


@pytest.mark.parametrize("decays_stacked_scales", [False, True])
def test_decay_leaves_out_the_norms_of_stacked_layers(decays_stacked_scales):
    """In a stack as in a single layer, but for a run that began otherwise."""
    model = Transformer(
        vocab_size=5,
        width=4,
        num_layers=3,
        num_heads=2,
        num_kv_heads=1,
        head_dim=2,
        mlp_width=3,
        qk_norm=True,
        post_norms=True,
        biases=("attention/query", "mlp/up"),
    )
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 2), int))
    params = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), shapes["params"])
    decaying = make_optimizer(
        learning_rate=PEAK,
        steps=2,
        warmup_steps=0,
        weight_decay=DECAY,
        decays_stacked_scales=decays_stacked_scales,
    )
    zero = jax.tree.map(jnp.zeros_like, params)
    updates, _ = jax.jit(lambda: decaying.update(zero, decaying.init(params), params))()
    decayed = {"spared": 0, "decayed": 0}
    for path, update in jax.tree_util.tree_leaves_with_path(updates):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        stacked_scale = name.endswith("scale") and name.startswith("layers/")
        spared = name.endswith(("scale", "bias")) and not (
            stacked_scale and decays_stacked_scales
        )
        decayed["spared" if spared else "decayed"] += 1
        np.testing.assert_allclose(update, 0 if spared else -PEAK * DECAY, rtol=1e-6)
    # Six stacked norms, one at the end, two biases; seven maps and two embeddings.
    assert sum(decayed.values()) == 18
    assert decayed["spared"] == (3 if decays_stacked_scales else 9)


def test_frozen_collections_do_not_change():
    variables = some_variables()
    state = init_state(variables, optimizer())
    assert state.variables.keys() == variables.keys()
    step = jax.jit(make_step(loss_fn, optimizer()))
    for _ in range(2):
        state, _ = step(state, some_batch(), jax.random.key(0))
    mean = state.variables["frozen"]["mean"]
    np.testing.assert_array_equal(mean, variables["frozen"]["mean"])
    assert (state.params["w"] != variables["params"]["w"]).all()


def test_axis_name_gives_the_full_batch():
    key, batch = jax.random.key(0), some_batch()
    step = jax.jit(make_step(loss_fn, optimizer()))
    # After the first update, whose learning rate is 0.
    state, _ = step(init_state(some_variables(), optimizer()), batch, key)
    wanted = step(state, batch, key)
    parts = jax.tree.map(lambda x: x.reshape(4, 2, -1), batch)
    mapped = jax.vmap(
        make_step(loss_fn, optimizer(), axis_name="data"),
        in_axes=(None, 0, None),
        axis_name="data",
    )
    split = jax.jit(mapped)(state, parts, key)

    for i in range(4):
        part = jax.tree.map(lambda x, i=i: x[i], split)
        chex.assert_trees_all_close(part, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("number", [2, 4])
def test_micro_batches_give_the_full_batch(number):
    """Up to rounding, although each sees other examples."""
    key, (x, y) = jax.random.key(0), some_batch()
    shift = jnp.ones(())

    def shifted(variables, batch, key):
        shift, (x, y) = batch
        loss, metrics = loss_fn(variables, (x, y + shift), key)
        return loss, {**metrics, "examples": jnp.float32(len(x))}

    def run(**keywords):
        step = jax.jit(make_step(shifted, optimizer(), average_decay=0.5, **keywords))
        state = init_state(some_variables(), optimizer())
        for _ in range(3):
            state, metrics = step(state, (shift, (x, y)), key)
        return state, metrics

    (state, metrics), (wanted, wanted_metrics) = run(accumulate=number), run()
    assert wanted_metrics.pop("examples") == EXAMPLES
    assert metrics.pop("examples") == EXAMPLES / number
    chex.assert_trees_all_close(
        (state, metrics), (wanted, wanted_metrics), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("decay", [0.0, 0.15, 0.99])
def test_the_average_follows(decay):
    """Exponentially, forgetting the start; with 0 it is the last parameters."""
    state = init_state(some_variables(), optimizer())
    wanted = np.float64(state.params["w"])
    step = jax.jit(make_step(loss_fn, optimizer(), average_decay=decay))
    for t in range(STEPS):
        state, _ = step(state, some_batch(), jax.random.key(0))
        keep = min(decay, (1 + t) / (10 + t))
        wanted = keep * wanted + (1 - keep) * np.float64(state.params["w"])
    np.testing.assert_allclose(state.average["w"], wanted, rtol=1e-5)
    np.testing.assert_array_equal(state.variables["params"]["w"], state.average["w"])
    if decay == 0:
        np.testing.assert_array_equal(state.average["w"], state.params["w"])


def test_the_key_and_the_batch_reach_the_loss():
    def noisy(variables, batch, key):
        noise = jax.random.normal(key, batch.shape)
        return jnp.sum(variables["params"]["w"] * (batch + noise)), {}

    state = init_state({"params": {"w": jnp.ones(2)}}, optimizer())
    step = jax.jit(make_step(noisy, optimizer()))
    batch, keys = jnp.arange(2.0), jax.random.split(jax.random.key(0), 2)
    losses = [step(state, batch, key)[1]["loss"] for key in keys]
    wanted = [jnp.sum(batch + jax.random.normal(key, (2,))) for key in keys]
    np.testing.assert_allclose(losses, wanted, rtol=1e-6)


def test_heads_have_a_rate_of_their_own():
    """At every step the heads move as far as at that rate, all else as without it."""
    kernel, bias = jnp.ones((3, 2)), jnp.ones(2)
    factors = (jnp.ones((4, 2)), Head(kernel, bias), jnp.ones((2, 4)))
    reward = {"kernel": kernel, "bias": bias}
    params = {"hyper": {"leaves": {"w": factors}}, "reward": reward}
    grads = jax.tree.map(lambda x: jnp.linspace(-1, 2, x.size).reshape(x.shape), params)
    options = dict(steps=STEPS, warmup_steps=WARMUP, weight_decay=DECAY)

    def updates(learning_rate, **rate):
        made = make_optimizer(learning_rate=learning_rate, **rate, **options)
        state, found = made.init(params), []
        for _ in range(STEPS - 1):
            step, state = made.update(grads, state, params)
            found.append(step)
        return found

    low, high = updates(PEAK), updates(7 * PEAK)
    for own, a, b in zip(
        updates(PEAK, head_learning_rate=7 * PEAK), low, high, strict=True
    ):
        _, gates, _ = own["hyper"]["leaves"]["w"]
        chex.assert_trees_all_close(gates, b["hyper"]["leaves"]["w"][1], rtol=1e-5)
        for i in (0, 2):
            wanted = a["hyper"]["leaves"]["w"][i]
            chex.assert_trees_all_equal(own["hyper"]["leaves"]["w"][i], wanted)
        chex.assert_trees_all_equal(own["reward"], a["reward"])
    assert float(jnp.abs(low[-1]["reward"]["kernel"]).max()) > 0
