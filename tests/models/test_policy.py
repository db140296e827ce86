"""Policies: equal to the language model when fresh, and to the folded model after."""

import functools
import math
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from policies import language_model, noisy
from slow import slow_but

from fsa.conditioning import fold
from fsa.episodes import Choices, Options
from fsa.language.token_table import PaddedTokens
from fsa.models.policy import Policy, response_log_probs, spec_of
from fsa.models.reward import RewardModel

pytestmark = pytest.mark.usefixtures("quick_compile")

# B sequences, T tokens, F features, N context choices, D latent dimensions. Neither T
# nor T - 1 goes into a weight, so that sizes tell activations from copies of weights.
B, T, F, N, D, GROUPS = 2, 14, 5, 7, 3, 4
MAPS = (
    *("attention/query", "attention/key", "attention/value", "attention/out"),
    *("mlp/gate", "mlp/up", "mlp/down"),
)


def on_all(text):
    return tuple((name, text) for name in MAPS)


# name: (modulations, options of the language model).
KINDS = {
    "scale": (on_all("scale"), {}),
    "scale both": (on_all("scale('both')"), {}),
    "low_rank": (on_all("low_rank(2)"), {}),
    "generated": (on_all("low_rank(2, factors='generated')"), {}),
    "lora": (on_all("lora(2)"), {}),
    "low_rank + scale": (on_all("low_rank(2) + scale"), {}),
    "FiLM": (
        tuple((f"attention/{part}", "scale + shift") for part in ("query", "value")),
        {"biases": ("attention/query", "attention/key", "attention/value")},
    ),
}


NAMES = slow_but(("low_rank + scale", "FiLM"), KINDS)
cached_language_model = functools.cache(language_model)


def make(modulations=KINDS["low_rank + scale"][0], model_options=None, **options):
    """A policy and the variables of its language model."""
    model, base = cached_language_model(**(model_options or {}))
    reward_model = RewardModel(hidden=8, latent_dim=D)
    return Policy(model, reward_model, modulations, num_groups=GROUPS, **options), base


def some_responses(seed=0, shape=(B,)):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(3, 80, (*shape, T)).astype(np.int32)
    start, stop = rng.integers(2, 5, shape), rng.integers(6, T + 1, shape)
    return PaddedTokens(tokens, start.astype(np.int32), stop.astype(np.int32))


def some_context(seed=0):
    rng = np.random.default_rng(seed)

    def options():
        features = rng.normal(size=(N, F)).astype(np.float32)
        return Options(features, np.full(N, -1, np.int32))

    return Choices(options(), options(), np.arange(N) < N - 2)


@functools.cache
def ready(kind):
    """(policy, base, fresh variables, log-probs by parts and folded weights).

    The variables have no reward model, which log-probs at a given z do not need.
    """
    modulations, model_options = KINDS[kind]
    policy, base = make(modulations, model_options)

    @jax.jit
    def log_probs(variables, z):
        conditioned = policy.condition(variables, base, z)
        return policy.log_probs(conditioned, some_responses()), fold(conditioned)

    hyper = jax.jit(policy.hypernet.init)(jax.random.key(0), base)
    return policy, base, {"params": {"hyper": hyper}}, log_probs


@functools.cache
def scorer(**model_options):
    """The compiled log-probs of an unconditioned language model, by its variables."""
    model, _ = cached_language_model(**model_options)
    return jax.jit(lambda base: response_log_probs(model, base, some_responses()))


def unconditioned(**model_options):
    return scorer(**model_options)(cached_language_model(**model_options)[1])


def shifted(variables, seed=1):
    """The variables with other parameters of the hypernetwork than fresh ones."""
    params = variables["params"]
    hyper = noisy(params["hyper"], seed)
    return {**variables, "params": {**params, "hyper": hyper}}


@pytest.mark.parametrize("kind", NAMES)
def test_a_fresh_policy_is_the_language_model(kind):
    """Up to the last bits, for any z."""
    _, _, variables, log_probs = ready(kind)
    wanted = unconditioned(**KINDS[kind][1])
    # Products with 1 and sums with 0 are exact, but XLA fuses the two programs
    # differently, which on some processors changes the order of other sums.
    for z in noisy(jnp.zeros((3, D)), std=10):
        np.testing.assert_array_max_ulp(log_probs(variables, z)[0], wanted, 4)


@pytest.mark.parametrize("kind", NAMES)
def test_conditioning_equals_folding(kind):
    _, _, variables, log_probs = ready(kind)
    variables = shifted(variables)
    found, folded = zip(*(log_probs(variables, z) for z in np.eye(D)), strict=True)
    wanted = [scorer(**KINDS[kind][1])(weights) for weights in folded]
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    plain = unconditioned(**KINDS[kind][1])
    assert (np.abs(np.array(wanted) - plain) > 0.01).all()
    # LoRA alone does not depend on z.
    assert (np.ptp(wanted, axis=0) > 0.01).all() == (kind != "lora")


def test_scale_of_queries_is_one_factor_for_each_feature_of_each_head():
    policy, base, fresh, log_probs = ready("scale")
    z = np.float32([0.5, -1, 2])
    name = "params/layers/attention/query/kernel"
    hyper = dict(fresh["params"]["hyper"])
    hyper["leaves"] = {**hyper["leaves"], name: noisy(hyper["leaves"][name])}
    (head,) = hyper["leaves"][name].scales
    model = policy.language_model
    sizes = model.num_layers, 1, model.num_heads, model.head_dim
    factors = 1 + np.einsum("d,dlwnh->lwnh", z, head.kernel) + head.bias
    assert factors.shape == sizes
    by_hand = jax.tree.map(np.copy, base)
    by_hand["params"]["layers"]["attention"]["query"]["kernel"] *= factors
    wanted = scorer()(by_hand)
    found, _ = log_probs({"params": {"hyper": hyper}}, z)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    assert (np.abs(wanted - unconditioned()) > 0.01).all()


@pytest.mark.parametrize(
    ("modulations", "message"),
    [
        ((("attention/qeury", "scale"),), "modulations.*attention/qeury"),
        ((("layers/mlp/down", "scale"),), "modulations.*layers/mlp/down"),
        ((("mlp/down", "scale * 2"),), "scale"),
        ((("mlp/down", "low_rank(0)"),), "rank"),
        ((("mlp/down", "scale('sideways')"),), "side"),
    ],
)
def test_wrong_modulations_are_refused(modulations, message):
    with pytest.raises(ValueError, match=message):
        spec_of(modulations)


def test_a_shift_needs_a_bias():
    policy, base = make((("mlp/down", "scale + shift"),))
    with pytest.raises(ValueError, match="mlp/down/bias"):
        jax.eval_shape(policy.hypernet.init, jax.random.key(0), base)


@functools.cache
def random_variables():
    """Variables of a policy in which everything is random, the reward model too."""
    policy, base = make()
    init = functools.partial(policy.init, num_features=F)
    variables = noisy(jax.eval_shape(init, jax.random.key(0), base))
    return {**variables, "statistics": jax.tree.map(np.abs, variables["statistics"])}


def latents(latent):
    """The policy's latent of (context seed, order, group)."""
    policy, _ = make(latent=latent)
    find = jax.jit(functools.partial(policy.latent_of, random_variables()))

    def of(seed=0, order=range(N), group=1):
        context = jax.tree.map(lambda x: x[np.array(order)], some_context(seed))
        z = np.asarray(find(context, np.int32(group)))
        assert z.shape == (policy.latent_dim,)
        return z

    return of


def test_inferred_latents_follow_the_choices_in_any_order():
    of = latents("inferred")
    np.testing.assert_allclose(of(order=[6, 2, 4, 0, 5, 1, 3]), of(), atol=1e-5)
    np.testing.assert_array_equal(of(group=2), of())
    assert np.abs(of(seed=1) - of()).max() > 0.01


def test_latents_of_groups_ignore_the_choices():
    of = latents("group")
    for group in range(GROUPS):
        for seed in range(2):
            np.testing.assert_array_equal(of(seed, group=group), np.eye(GROUPS)[group])


def test_without_a_latent_all_are_alike():
    of = latents("none")
    np.testing.assert_array_equal(of(seed=1, group=2), of())
    assert of().any()


def test_the_language_model_is_trained_as_a_copy():
    """With `train_base`; without it, the language model is no part of `params`."""
    assert set(random_variables()["params"]) == {"reward", "hyper"}
    policy, base = make((("mlp/down", "scale"),), train_base=True)
    variables = policy.init(jax.random.key(0), base, F)
    chex.assert_trees_all_equal(variables["params"]["base"], base)
    score = jax.jit(
        lambda variables, base: policy.log_probs(
            policy.condition(variables, base, jnp.ones(D)), some_responses()
        )
    )
    np.testing.assert_array_equal(score(variables, base), unconditioned())
    other = jax.tree.map(lambda x: 1.1 * x, base)
    np.testing.assert_array_equal(score(variables, other), unconditioned())
    trained = {**variables, "params": {**variables["params"], "base": other}}
    assert (np.abs(score(trained, base) - unconditioned()) > 0.01).all()


@pytest.mark.slow
def test_no_user_has_a_weight_of_its_own():
    """In the compiled forward and backward pass; with folding the check does fail."""
    users = 5
    policy, base, variables, _ = ready("low_rank + scale")
    z = noisy(jnp.zeros((users, D)))
    responses = some_responses(1, (users, B))

    def compiled(prepare, transform):
        def one(variables, base, z, responses):
            conditioned = prepare(policy.condition(variables, base, z))
            return policy.log_probs(conditioned, responses)

        def loss(variables, base):
            each = jax.vmap(one, (None, None, 0, 0))
            return each(variables, base, z, responses).mean()

        program = jax.jit(transform(loss)).lower(variables, base).compile()
        return program.as_text()

    found = compiled(lambda conditioned: conditioned, jax.value_and_grad)
    assert not copies(found, base, users)
    assert copies(compiled(fold, lambda loss: loss), base, users)


def copies(program, base, users):
    """Sizes of arrays in a compiled program that are users x a weight."""
    model = language_model()[0]
    least = model.width * model.num_kv_heads * model.head_dim
    weights = [x.size for x in jax.tree.leaves(base) if x.size >= least]
    sizes = {users * size for n in weights for size in (n, n // model.num_layers)}
    shapes = re.findall(r"f32\[([\d,]+)\]", program)
    return sizes & {math.prod(map(int, shape.split(","))) for shape in shapes}
