"""Policies: at first the language model, then that of each user, folded or not."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from policies import language_model, noisy

from fsa.conditioning import fold
from fsa.episodes import Choices, Options
from fsa.language.token_table import Padded
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


def make(modulations=KINDS["low_rank + scale"][0], model_options=None, **options):
    """A policy and the variables of its language model."""
    model, base = language_model(**(model_options or {}))
    reward_model = RewardModel(hidden=8, latent_dim=D)
    return Policy(model, reward_model, modulations, num_groups=GROUPS, **options), base


def some_responses(seed=0, shape=(B,)):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(3, 80, (*shape, T)).astype(np.int32)
    start, stop = rng.integers(2, 5, shape), rng.integers(6, T + 1, shape)
    return Padded(tokens, start.astype(np.int32), stop.astype(np.int32))


def some_context(seed=0):
    rng = np.random.default_rng(seed)

    def options():
        features = rng.normal(size=(N, F)).astype(np.float32)
        return Options(features, np.full(N, -1, np.int32))

    return Choices(options(), options(), np.arange(N) < N - 2)


@functools.cache
def ready(kind):
    """(policy, base, fresh variables, log-probs by parts, log-probs folded)."""
    modulations, model_options = KINDS[kind]
    policy, base = make(modulations, model_options)

    @jax.jit
    def log_probs(variables, z):
        conditioned = policy.condition(variables, base, z)
        responses = some_responses()
        return (
            policy.log_probs(conditioned, responses),
            response_log_probs(policy.language_model, fold(conditioned), responses),
        )

    return policy, base, policy.init(jax.random.key(0), base, F), log_probs


@functools.cache
def unconditioned(**model_options):
    model, base = language_model(**model_options)
    return jax.jit(functools.partial(response_log_probs, model))(base, some_responses())


def shifted(variables, seed=1):
    """The variables with other parameters of the hypernetwork than fresh ones."""
    params = variables["params"]
    hyper = noisy(params["hyper"], seed)
    return {**variables, "params": {**params, "hyper": hyper}}


@pytest.mark.parametrize("kind", KINDS)
def test_a_fresh_policy_is_the_language_model(kind):
    """But for the last bit, for any z."""
    _, _, variables, log_probs = ready(kind)
    wanted = unconditioned(**KINDS[kind][1])
    # Products with 1 and sums with 0 round nothing, but XLA fuses the two programs
    # otherwise, on some processors down to the order of other sums.
    for z in noisy(jnp.zeros((3, D)), std=10):
        np.testing.assert_array_max_ulp(log_probs(variables, z)[0], wanted, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_conditioning_equals_folding(kind):
    _, _, variables, log_probs = ready(kind)
    variables = shifted(variables)
    found, wanted = zip(*(log_probs(variables, z) for z in np.eye(D)), strict=True)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    plain = unconditioned(**KINDS[kind][1])
    assert (np.abs(np.array(wanted) - plain) > 0.01).all()
    # LoRA alone is the same for everybody.
    assert (np.ptp(wanted, axis=0) > 0.01).all() == (kind != "lora")


def test_scale_of_queries_is_one_factor_for_each_feature_of_each_head():
    policy, base = make((("attention/query", "scale"),))
    variables = shifted(policy.init(jax.random.key(0), base, F))
    z = np.float32([0.5, -1, 2])
    name = "params/layers/attention/query/kernel"
    (head,) = variables["params"]["hyper"]["leaves"][name].scales
    model = policy.language_model
    sizes = model.num_layers, 1, model.num_heads, model.head_dim
    factors = 1 + np.einsum("d,dlwnh->lwnh", z, head.kernel) + head.bias
    assert factors.shape == sizes
    by_hand = jax.tree.map(np.copy, base)
    by_hand["params"]["layers"]["attention"]["query"]["kernel"] *= factors

    @jax.jit
    def log_probs(variables, by_hand):
        conditioned = policy.condition(variables, base, z)
        responses = some_responses()
        return (
            policy.log_probs(conditioned, responses),
            response_log_probs(model, by_hand, responses),
        )

    found, wanted = log_probs(variables, by_hand)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    assert (np.abs(wanted - unconditioned()) > 0.01).all()


@pytest.mark.parametrize(
    ("modulations", "message"),
    [
        ((("attention/qeury", "scale"),), "'attention/qeury' is none of attention/que"),
        ((("layers/mlp/down", "scale"),), "'layers/mlp/down' is none of"),
        ((("mlp/down", "scale * 2"),), "it is made of scale, shift, low_rank, lora"),
        ((("mlp/down", "low_rank(0)"),), "rank"),
        ((("mlp/down", "scale('sideways')"),), "side is one of input, output, both"),
    ],
)
def test_a_specification_that_means_nothing(modulations, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        spec_of(modulations)


def test_a_shift_needs_a_bias():
    policy, base = make((("mlp/down", "scale + shift"),))
    with pytest.raises(ValueError, match="mlp/down/bias.*matches none of"):
        policy.init(jax.random.key(0), base, F)


def latents(latent):
    """The policy's latent of (context seed, order, group)."""
    policy, base = make(latent=latent)
    variables = policy.init(jax.random.key(0), base, F)
    params = variables["params"]
    # A fresh encoder says little.
    params = {**params, "reward": noisy(params["reward"])}
    find = jax.jit(functools.partial(policy.latent_of, {**variables, "params": params}))

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
    """Where it is trained; else only what stands in `params` is."""
    assert "base" not in ready("lora")[2]["params"]
    policy, base = make((("mlp/down", "scale"),), train_base=True)
    variables = policy.init(jax.random.key(0), base, F)
    copy = variables["params"]["base"]
    jax.tree.map(np.testing.assert_array_equal, copy, base)
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


def test_no_user_has_a_weight_of_its_own():
    """In forward and gradient as they are compiled, which folding shows can fail."""
    users = 5
    policy, base, variables, _ = ready("low_rank + scale")
    z = noisy(jnp.zeros((users, D)))
    responses = some_responses(1, (users, B))

    def compiled(prepare):
        def one(variables, base, z, responses):
            conditioned = prepare(policy.condition(variables, base, z))
            return policy.log_probs(conditioned, responses)

        def loss(variables, base):
            each = jax.vmap(one, (None, None, 0, 0))
            return each(variables, base, z, responses).mean()

        program = jax.jit(jax.value_and_grad(loss)).lower(variables, base).compile()
        return program.as_text()

    assert not copies(compiled(lambda conditioned: conditioned), base, users)
    assert copies(compiled(fold), base, users)


def copies(program, base, users):
    """Sizes of arrays in a compiled program that are users x a weight."""
    model = language_model()[0]
    least = model.width * model.num_kv_heads * model.head_dim
    weights = [x.size for x in jax.tree.leaves(base) if x.size >= least]
    sizes = {users * size for n in weights for size in (n, n // model.num_layers)}
    shapes = re.findall(r"f32\[([\d,]+)\]", program)
    return sizes & {math.prod(map(int, shape.split(","))) for shape in shapes}
