"""The loss of policies, against float64 NumPy and one user at a time."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from policies import language_model, noisy
from scipy.special import log_expit
from slow import slow_but

from fsa import episodes
from fsa.conditioning import fold
from fsa.data.tasks import packing as packing_of
from fsa.data.tasks.packing import Packing
from fsa.data.tasks.pairs import PackedBatch, PairBatch
from fsa.episodes import Choices, Episode, Options
from fsa.language.token_table import PaddedTokens, TokenTable
from fsa.language.transformer import with_biases
from fsa.models.linear_reward import LinearRewardModel
from fsa.models.policy import Policy, response_log_probs, shifted
from fsa.models.reward import RewardModel, episode_loss
from fsa.training import policy_loss
from fsa.training.policy_loss import make_loss
from fsa.training.runner import MeshRunner
from fsa.training.step import init_state

pytestmark = pytest.mark.usefixtures("quick_compile")

# B users, N context choices, M target choices, T tokens, F features, D latents.
B, N, M, T, F, D = 3, 5, 4, 11, 7, 3
NUM_TARGETS = (4, 2, 1)
BETA, KL_WEIGHT, KEY = 0.3, 0.7, jax.random.key(5)
# The unit of the rewards that distillation regresses onto.
REWARD_STD = 1.7
LOSSES = {
    "DPO": dict(nll_weight=0.0),
    "DPO with smoothing": dict(nll_weight=0.0, label_smoothing=0.2),
    "DPO with NLL": dict(nll_weight=0.6),
    "IPO": dict(loss="ipo", nll_weight=0.6),
}


@functools.cache
def make(**options):
    """(policy, base, variables), with random numbers in all parameters."""
    model, base = language_model()
    modulations = ("attention/value", "scale"), ("mlp/down", "low_rank(2)")
    policy = Policy(
        model, RewardModel(hidden=8, latent_dim=D), modulations, num_groups=2, **options
    )
    variables = jax.eval_shape(lambda: policy.init(jax.random.key(0), base, F))
    variables = {**variables, "params": noisy(variables["params"], 1)}
    statistics = {"mean": np.full(F, 0.1), "std": np.full(F, 0.9)}
    return policy, base, {**variables, "statistics": {"options": statistics}}


def some_choices(rng, mask):
    def options():
        features = rng.normal(size=(*mask.shape, F)).astype(np.float32)
        return Options(features, np.full(mask.shape, -1, np.int32))

    return Choices(options(), options(), mask)


def some_batch(step=0, padding=None):
    """A batch of users with `NUM_TARGETS` of M targets.

    What the masked targets contain is random; another `padding` draws it anew.
    """
    rng = np.random.default_rng(0)
    context = some_choices(rng, np.arange(N) < [[0], [2], [5]])
    real = np.arange(M) < np.array(NUM_TARGETS)[:, None]
    pair = real[..., None]
    tokens = rng.integers(3, 80, (B, M, 2, T)).astype(np.int32)
    start = rng.integers(2, 5, (B, M, 2)).astype(np.int32)
    stop = rng.integers(6, T + 1, (B, M, 2)).astype(np.int32)
    reference = rng.uniform(-60, -5, (B, M, 2)).astype(np.float32)
    target = some_choices(rng, real)
    responses = PaddedTokens(tokens, *(np.where(pair, x, 0) for x in (start, stop)))
    reference = np.where(pair, reference, 0)
    if padding is not None:
        rng = np.random.default_rng(padding)
        other = some_choices(rng, real)

        def in_padding(x, y):
            return np.where(real.reshape(real.shape + (1,) * (x.ndim - 2)), x, y)

        target = jax.tree.map(in_padding, target, other)
        tokens = in_padding(tokens, rng.integers(3, 80, tokens.shape, np.int32))
        responses = responses._replace(tokens=tokens)
        noise = rng.uniform(-60, -5, reference.shape).astype(np.float32)
        reference = in_padding(reference, noise)
    return PairBatch(
        step=np.full(B, step, np.int32),
        position=np.arange(B, dtype=np.int32),
        user=np.arange(B, dtype=np.int32),
        episode=Episode(context, target, np.int32([0, 1, 1])),
        responses=responses,
        reference=reference,
    )


def user_of(batch, index):
    return jax.tree.map(lambda x: x[index], batch)


@functools.cache
def programs(latent):
    """Functions of one user: log-probs of folded parameters, q, z."""
    policy, base, variables = make(latent=latent)

    def log_probs(z, responses):
        folded = fold(policy.condition(variables, base, z))
        flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), responses)
        return response_log_probs(policy.language_model, folded, flat)

    encode = functools.partial(policy.encode, variables)
    latent_of = functools.partial(policy.latent_of, variables)
    return jax.jit(log_probs), jax.jit(encode), jax.jit(latent_of)


def by_hand(
    batch, latents, *, loss="dpo", label_smoothing=0.0, nll_weight, latent="inferred"
):
    """Means over users of the loss and its metrics, without the KL."""
    users = []
    for index, z in enumerate(latents):
        example = user_of(batch, index)
        scores = np.float64(programs(latent)[0](z, example.responses)).reshape(M, 2)
        values = []
        for m in range(NUM_TARGETS[index]):
            gap = np.subtract(*(scores[m] - example.reference[m]))
            value = (gap - 1 / (2 * BETA)) ** 2
            if loss == "dpo":
                right, wrong = log_expit(BETA * gap), log_expit(-BETA * gap)
                value = -(1 - label_smoothing) * right - label_smoothing * wrong
            length = example.responses.stop[m, 0] - example.responses.start[m, 0]
            nll = -scores[m, 0] / length
            margin = BETA * gap
            values.append([value + nll_weight * nll, nll, margin, margin > 0])
        users.append(np.mean(values, axis=0))
    names = "loss", "nll", "margin", "accuracy"
    means = dict(zip(names, np.mean(users, axis=0), strict=True))
    stops = zip(batch.responses.stop, NUM_TARGETS, strict=True)
    tokens = np.mean([stop[:number].sum() for stop, number in stops])
    return {**means, "choices": np.mean(NUM_TARGETS), "tokens": tokens}


def found_by(options, batch=None, latent="inferred"):
    """The loss and its metrics as floats."""
    policy, base, variables = make(latent=latent)
    loss_fn = jax.jit(make_loss(policy, beta=BETA, kl_weight=KL_WEIGHT, **options))
    batch = some_batch() if batch is None else batch
    loss, metrics = loss_fn(variables, ({"base": base}, batch), KEY)
    return {name: float(x) for name, x in {"loss": loss, **metrics}.items()}


def assert_same(found, wanted):
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=2e-5, err_msg=name)


@pytest.mark.parametrize("name", slow_but(("DPO with NLL", "IPO"), LOSSES))
def test_the_loss_is_the_mean_over_users(name):
    batch, (_, encode, _) = some_batch(), programs("inferred")
    means = [encode(user_of(batch, i).episode.context).mean for i in range(B)]
    wanted = by_hand(batch, means, **LOSSES[name])
    assert_same(found_by(LOSSES[name]), {**wanted, "kl": 0})
    # Some choices are predicted and some are not.
    assert 0 < wanted["accuracy"] < 1
    assert np.ptp(means, axis=0).max() > 0.01


@pytest.mark.parametrize(
    "latent", [pytest.param("group", marks=pytest.mark.slow), "none"]
)
def test_baselines_are_conditioned_on_the_group_or_on_nothing(latent):
    options = LOSSES["DPO with NLL"]
    latents = {"group": np.eye(2)[[0, 1, 1]], "none": np.ones((B, 1))}[latent]
    wanted = by_hand(some_batch(), np.float32(latents), latent=latent, **options)
    assert_same(found_by(options, latent=latent), {**wanted, "kl": 0})


@pytest.mark.parametrize(
    "objective",
    [
        pytest.param("ml", marks=pytest.mark.slow),
        "elbo",
        pytest.param("vpl", marks=pytest.mark.slow),
    ],
)
def test_objectives_draw_z_and_may_hold_it_to_a_prior(objective):
    batch, (_, encode, _) = some_batch(), programs("inferred")
    options = LOSSES["DPO with NLL"]
    latents, kls = [], []
    for index in range(B):
        context, target, _ = user_of(batch, index).episode
        q = prior = jax.tree.map(np.float64, encode(context))
        if objective == "elbo":
            q = encode(episodes.concatenate(context, target))
        if objective == "vpl":
            prior = type(q)(np.zeros(D), np.zeros(D))
        noise = jax.random.normal(episodes.example_key(KEY, 0, index), (1, D))[0]
        mean, log_std = jax.tree.map(np.float64, q)
        latents.append(np.float32(mean + np.exp(log_std) * noise))
        variance = np.exp(2 * (log_std - prior.log_std))
        shift = ((mean - prior.mean) / np.exp(prior.log_std)) ** 2
        kls.append(0.5 * (variance + shift - 1 - np.log(variance)).sum())
    kls = np.array(kls) * (objective != "ml")
    wanted = by_hand(batch, latents, **options)
    wanted["loss"] += KL_WEIGHT * np.mean(kls / NUM_TARGETS)
    wanted["kl"] = kls.mean()
    assert_same(found_by({**options, "objective": objective}), wanted)
    assert (wanted["kl"] > 0.01) == (objective != "ml")


@functools.cache
def gradient_program(reward_steps):
    """Compiled once for all tests; under "elbo" z depends on the targets, too."""
    policy, base, variables = make(latent="inferred")
    options = dict(nll_weight=0.6, reward_steps=reward_steps, objective="elbo")
    loss_fn = make_loss(policy, beta=BETA, **options)

    def loss(params, batch):
        return loss_fn({**variables, "params": params}, ({"base": base}, batch), KEY)

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


def gradient(batch, reward_steps=0):
    """((loss, metrics), gradients of the parameters)."""
    _, _, variables = make(latent="inferred")
    program = gradient_program(reward_steps)
    return jax.device_get(program(variables["params"], batch))


def test_padded_targets_change_nothing():
    found, wanted = gradient(some_batch(padding=1)), gradient(some_batch())
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(
            a, b, rtol=1e-4, atol=1e-5 * max(1, np.abs(b).max())
        ),
        found,
        wanted,
    )


def test_the_policy_reads_the_first_pairs_alone():
    """Targets without tokens count for the reward model only."""
    options, batch, pairs = dict(nll_weight=0.6), some_batch(), 2
    first = batch._replace(
        responses=jax.tree.map(lambda x: x[:, :pairs], batch.responses),
        reference=batch.reference[:, :pairs],
    )
    target = batch.episode.target
    fewer = target._replace(mask=target.mask & (np.arange(M) < pairs))
    short = batch._replace(episode=batch.episode._replace(target=fewer))
    assert (short.episode.target.mask != target.mask).any()
    found, wanted = found_by(options, first), found_by(options, short)
    assert found.pop("choices") > wanted.pop("choices")
    assert_same(found, wanted)
    rewarded = dict(**options, reward_weight=1.0)
    gap = found_by(rewarded, first)["loss"] - found_by(rewarded, short)["loss"]
    assert abs(gap) > 1e-3


def is_zero(tree):
    return {not x.any() for x in jax.tree.leaves(tree)}


@pytest.mark.slow
def test_at_first_only_the_reward_model_is_trained():
    """On the same episodes, by its own objective."""
    policy, _, variables = make(latent="inferred")
    (loss, metrics), grads = gradient(some_batch(1), reward_steps=2)
    assert is_zero(grads["hyper"]) == {True}
    for part in ("options", "context", "head_option", "head_latent"):
        assert is_zero(grads["reward"][part]) == {False}, part
    batch = some_batch(1)
    of_user = jax.jit(
        functools.partial(
            *(episode_loss, policy.reward_model, policy.reward_variables(variables)),
            objective="elbo",
            num_samples=4,
        )
    )
    examples = (user_of(batch, i) for i in range(B))
    keys = (episodes.example_key(KEY, 1, i) for i in range(B))
    each = [
        of_user(example.episode, key)
        for example, key in zip(examples, keys, strict=True)
    ]
    np.testing.assert_allclose(loss, np.mean([x for x, _ in each]), rtol=1e-5)
    for name in ("nll", "accuracy", "kl"):
        wanted = np.mean([own[name] for _, own in each])
        np.testing.assert_allclose(metrics[name], wanted, rtol=1e-5)
    assert metrics["margin"] == 0


@pytest.mark.slow
def test_then_the_policy_and_its_encoder_are():
    (loss, metrics), grads = gradient(some_batch(2), reward_steps=2)
    assert {True} != is_zero(grads["hyper"])
    for part in ("options", "context"):
        assert is_zero(grads["reward"][part]) == {False}, part
    for part in ("head_option", "head_latent", "head"):
        assert is_zero(grads["reward"][part]) == {True}, part
    (wanted, _), wanted_grads = gradient(some_batch(2))
    np.testing.assert_allclose(loss, wanted, rtol=1e-6)
    chex.assert_trees_all_close(grads, wanted_grads, rtol=1e-4, atol=1e-5)
    assert metrics["margin"] != 0


@pytest.mark.slow
def test_training_the_language_model_leaves_the_reference():
    """A step reuses the memory of what it trains, but the base keeps its own."""
    policy, base, variables = make(latent="none", train_base=True)
    base = jax.tree.map(jnp.asarray, base)
    params = {**variables["params"], "base": jax.tree.map(jnp.copy, base)}
    optimizer = optax.sgd(0.1)
    state = init_state({**variables, "params": params}, optimizer)
    examples = some_batch()
    run = MeshRunner(make_loss(policy), optimizer, batch_size=len(examples.user))
    batch = run.batch(lambda step, positions: examples, 0, 1)
    state, _ = run(run.place(state), run.place({"base": base}), batch, KEY)
    jax.tree.map(np.testing.assert_array_equal, base, language_model()[1])
    trained = state.params["base"]["params"]["layers"]["mlp"]["down"]["kernel"]
    assert (trained != base["params"]["layers"]["mlp"]["down"]["kernel"]).any()


@functools.cache
def given(kind="linear"):
    """A policy with a frozen reward model, its variables, and z of each user."""
    model, base = language_model()
    modulations = ("attention/value", "scale"), ("mlp/down", "low_rank(2)")
    # Few steps to the mode, for these are compiled for each test.
    quick = dict(num_components=2, num_steps=3, num_sweeps=0)
    frozen = LinearRewardModel(hidden=8, latent_dim=D, **quick)
    if kind == "encoder":
        frozen = RewardModel(hidden=8, latent_dim=D)
    policy = Policy(model, frozen, modulations, frozen_reward=True)
    variables = jax.eval_shape(lambda: policy.init(jax.random.key(0), base, F))
    statistics = {"options": {"mean": np.full(F, 0.1), "std": np.full(F, 0.9)}}
    reward = noisy(variables["reward"], 2, std=0.5) | {"statistics": statistics}
    variables = {"params": noisy(variables["params"], 1), "reward": reward}
    contexts = some_batch().episode.context
    encode = jax.vmap(functools.partial(policy.encode, variables))
    return policy, base, variables, np.asarray(jax.jit(encode)(contexts).mean)


def given_loss(kind="linear", **options):
    """Loss, metrics and gradients of a policy whose z is given."""
    policy, base, variables, _ = given(kind)
    loss_fn = make_loss(policy, beta=BETA, **options)

    def loss(params, batch):
        constants = {"base": base, "reward_std": jnp.float32(REWARD_STD)}
        return loss_fn({**variables, "params": params}, (constants, batch), KEY)

    return jax.value_and_grad(loss, has_aux=True), variables["params"]


@pytest.mark.parametrize(
    "kind", [pytest.param("linear", marks=pytest.mark.slow), "encoder"]
)
def test_a_given_z_is_the_posterior_mean_of_a_reward_model(kind):
    policy, base, variables, latents = given(kind)
    batch, options = some_batch(), LOSSES["DPO with NLL"]

    @jax.jit
    def log_probs(z, responses):
        return policy.pair_log_probs(variables, base, z, responses)

    gaps = []
    for index, z in enumerate(latents):
        example = user_of(batch, index)
        scores = np.float64(log_probs(z, example.responses))
        gap = BETA * np.subtract(*(scores - example.reference).T)
        gaps.append(gap[: NUM_TARGETS[index]].mean())
    program, params = given_loss(kind, **options)
    (_, metrics), gradients = jax.jit(program)(params, batch)
    np.testing.assert_allclose(metrics["margin"], np.mean(gaps), rtol=1e-4)
    assert gradients.keys() == {"hyper"}
    # The first user has told nothing, the last one much.
    assert np.abs(latents[0] - latents[2]).max() > 0.05


@pytest.mark.parametrize(
    "loss", [pytest.param("dpo", marks=pytest.mark.slow), "distillation"]
)
def test_a_step_with_a_given_z_has_no_branch(loss):
    """A branch keeps what both sides need for their gradients, in time and memory."""
    program, params = given_loss(loss=loss)
    assert "cond[" not in str(jax.make_jaxpr(program)(params, some_batch()))
    with_branch = gradient_program(2), make(latent="inferred")[2]["params"]
    assert "cond[" in str(jax.make_jaxpr(with_branch[0])(with_branch[1], some_batch()))


@pytest.mark.slow
def test_distillation_does_not_depend_on_the_order_of_a_pair():
    """The response with the higher reward is the one that is to stay likely."""
    batch = some_batch()
    target = batch.episode.target
    turned = batch._replace(
        episode=batch.episode._replace(
            target=target._replace(chosen=target.rejected, rejected=target.chosen)
        ),
        responses=jax.tree.map(lambda x: x[:, :, ::-1], batch.responses),
        reference=batch.reference[:, :, ::-1],
    )
    program, params = given_loss(loss="distillation", nll_weight=0.6)
    program = jax.jit(program)
    found, wanted = program(params, turned), program(params, batch)
    chex.assert_trees_all_close(found, wanted, rtol=1e-5, atol=1e-6)


def test_distillation_regresses_onto_rewards_at_z(monkeypatch):
    monkeypatch.setattr(
        policy_loss,
        "_latent_on_the_way",
        lambda policy, variables, context, key: policy.encode(variables, context).mean,
    )
    policy, base, variables, latents = given()
    batch, clip, values = some_batch(), 0.5, []

    @jax.jit
    def of_user(z, example):
        target = example.episode.target
        sides = target.chosen, target.rejected
        rewards = [policy.reward(variables, side, z) for side in sides]
        return policy.pair_log_probs(variables, base, z, example.responses), rewards

    for index, z in enumerate(latents):
        example = user_of(batch, index)
        scores, rewards = jax.tree.map(np.float64, of_user(z, example))
        gap = np.subtract(*(scores - example.reference).T)
        wanted = np.clip(np.subtract(*rewards) / REWARD_STD, -clip, clip)
        values.append(((BETA * gap - wanted) ** 2)[: NUM_TARGETS[index]].mean())
    program, params = given_loss(loss="distillation", nll_weight=0.0, clip=clip)
    (found, _), _ = jax.jit(program)(params, batch)
    np.testing.assert_allclose(found, np.mean(values), rtol=1e-4)


def test_the_spread_of_rewards_is_over_real_pairs_of_all_batches(monkeypatch):
    """The number that brings rewards of any size to the same size."""
    monkeypatch.setattr(
        policy_loss,
        "_latent_on_the_way",
        lambda policy, variables, context, key: policy.encode(variables, context).mean,
    )
    policy, _, variables, latents = given()
    first = some_batch().episode
    # A second batch whose rewards differ by none, and where padding is random.
    none = first.target._replace(rejected=first.target.chosen)
    found = policy_loss.reward_std(
        policy, variables, [first, first._replace(target=none)], KEY
    )
    squares = []
    for index, z in enumerate(latents):
        target = user_of(some_batch(), index).episode.target
        sides = target.chosen, target.rejected
        rewards = [np.float64(policy.reward(variables, side, z)) for side in sides]
        squares.extend((np.subtract(*rewards) ** 2)[: NUM_TARGETS[index]])
    wanted = np.sqrt(sum(squares) / (2 * len(squares)))
    np.testing.assert_allclose(found, wanted, rtol=1e-4)


def test_rewards_of_people_are_those_at_draws_of_the_prior():
    """Of all items, for one person after another; contexts do not count."""
    policy, _, variables, _ = given()
    batch = some_batch().episode
    contexts = [user_of(batch.context, index) for index in (0, 2)]
    features = np.concatenate([np.float32(side.features) for side in batch.target[:2]])
    features = features.reshape(-1, features.shape[-1])
    found, other = (
        policy_loss.rewards_of_people(policy, variables, features, context, KEY, 300)
        for context in contexts
    )
    assert found.shape == (len(features), 300)
    np.testing.assert_allclose(found, other, rtol=1e-5, atol=1e-5)
    nobody = policy.encode(variables, episodes.first_choices(contexts[0], 0))
    z = np.random.default_rng(0).normal(nobody.mean, nobody.std, (2000, D))
    options = Options(features, np.full(len(features), -1))
    reward = jax.jit(jax.vmap(lambda z: policy.reward(variables, options, z)))
    wanted = reward(jnp.float32(z)).T
    error = 4 * wanted.std(1) / np.sqrt(300)
    assert (np.abs(found.mean(1) - wanted.mean(1)) < error).all()
    np.testing.assert_allclose(found.std(1), wanted.std(1), rtol=0.25)


def test_half_of_the_time_z_is_somebody_on_the_way():
    policy, _, variables, latents = given()
    example = user_of(some_batch(), 2)
    draw = jax.jit(
        jax.vmap(
            lambda key: policy_loss._latent_on_the_way(
                policy, variables, example.episode.context, key
            )
        )
    )
    moved = np.abs(draw(jax.random.split(KEY, 400)) - latents[2]).max(-1) > 1e-5
    assert 0.42 < moved.mean() < 0.58


def test_a_loss_of_another_name_is_refused():
    with pytest.raises(ValueError, match="`loss`"):
        make_loss(make(latent="none")[0], loss="kto")


def packed(batch):
    """A batch whose pairs share rows; at most two pairs a row."""
    packing = Packing((32, 64), places=2, longest=2 * T)
    real, responses = batch.episode.target.mask, batch.responses
    stops, starts = responses.stop.ravel(), responses.start.ravel()
    tokens = responses.tokens.reshape(-1, T)
    own = [t[:stop].tolist() for t, stop in zip(tokens, stops, strict=True)]
    table = TokenTable.of(list(zip(own, starts, strict=True)))
    items = np.arange(B * M * 2).reshape(B, M, 2)
    rows = packing_of.pack(
        packing,
        table,
        batch.reference.ravel(),
        np.where(real[..., None], items, -1),
        np.arange(B),
    )
    pairs = real.sum(-1, dtype=np.int32)
    shared = (batch.step, batch.position, batch.user, batch.episode)
    return PackedBatch(*shared, pairs, rows)


def shifting(**options):
    """`make` with modulations of biases, and of all axes that heads have."""
    modulations = (
        ("attention/query", "shift"),
        ("attention/out", "scale + shift"),
        ("mlp/gate", "scale + shift"),
    )
    model, base = with_biases(*language_model(), shifted(modulations))
    reward_model = RewardModel(hidden=8, latent_dim=D)
    policy = Policy(model, reward_model, modulations, **options)
    variables = jax.eval_shape(lambda: policy.init(jax.random.key(0), base, F))
    statistics = {"mean": np.full(F, 0.1), "std": np.full(F, 0.9)}
    params = noisy(variables["params"], 1)
    return policy, base, {"params": params, "statistics": {"options": statistics}}


PACKED = {
    "NP-DPO, low rank": (
        lambda: make(latent="inferred"),
        dict(nll_weight=0.6, objective="elbo", kl_weight=0.2, reward_weight=0.3),
    ),
    "NP-DPO, scale + shift": (shifting, dict(nll_weight=0.6)),
    "DPO": (lambda: make(latent="none"), dict(nll_weight=0.0)),
    "IPO with groups": (lambda: make(latent="group"), dict(loss="ipo")),
    "the base too": (lambda: make(latent="none", train_base=True), {}),
    "distillation": (lambda: given()[:3], dict(loss="distillation", nll_weight=0.6)),
    "the reward first": (lambda: make(latent="inferred"), dict(reward_steps=2)),
}


# The first of them has every part of the loss; the others are compiled as long.
CASES = slow_but(("DPO",), PACKED)


@pytest.mark.parametrize("case", CASES)
def test_rows_of_several_texts_give_the_same_loss_and_gradients(case):
    (policy, base, variables), options = PACKED[case][0](), PACKED[case][1]
    loss_fn = make_loss(policy, beta=BETA, **options)
    constants = {"base": None if policy.train_base else base, "reward_std": REWARD_STD}

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def program(params, batch):
        return loss_fn({**variables, "params": params}, (constants, batch), KEY)

    batch = some_batch(step=2)
    wanted = program(variables["params"], batch)
    rows = packed(batch)
    # Rows of both lengths, some of them with two pairs.
    counts = [(own.pair >= 0).sum(-1) for own in rows.rows]
    assert all(own.any() for own in counts) and np.max(counts) == 2
    found = program(variables["params"], rows)

    def same(own, other):
        # Sums in another order differ by the size of what is added, not of the sum.
        scale = max(1.0, np.abs(other).max())
        np.testing.assert_allclose(own, other, rtol=0, atol=1e-5 * scale)

    jax.tree.map(same, found, wanted)
