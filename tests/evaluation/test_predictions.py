"""Predictions: what a model is shown, and what it is asked."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from fsa.data.tasks.simulated import Continuum, TwoTypes
from fsa.data.tasks.task import TEST, VALID, Task, reversed_test_episode
from fsa.episodes import Choices, Episode, Options
from fsa.evaluation.predictions import FewShotPredictor
from fsa.latent import DiagonalGaussian
from fsa.models.linear_reward import LinearRewardModel
from fsa.models.reward import RewardModel
from fsa.training import reward_loss

pytestmark = pytest.mark.usefixtures("quick_compile")

USERS, EPISODES, N, M, D = 11, 3, 5, 7, 2
SIZES = (0, 1, 3, 5)
TASK_SIZES = dict(
    batch_size=2,
    max_context=N,
    num_targets=M,
    test_context=N,
    test_targets=M,
    num_users={VALID: 5, TEST: USERS},
)


class Spy:
    """A model whose z is the context itself, and whose answers name the targets.

    log p of target m is -(its chosen option + the sum of the context's chosen ones).
    """

    latent_dim = 2 * N

    def apply(self, variables, *args, method):
        return method(*args)

    def encode(self, context):
        shown = jnp.stack(
            [x.features[:, 0] for x in (context.chosen, context.rejected)]
        )
        mean = jnp.where(context.mask, shown, -1.0).ravel()
        return DiagonalGaussian(mean, jnp.full_like(mean, -3.0))

    def log_prob(self, target, z):
        context = jnp.where(z[:, :N] > 0, z[:, :N], 0.0).sum(axis=1)
        return -(target.chosen.features[:, 0] + context[:, None])


def predictor(model, task: Task, sizes=SIZES, **kwargs):
    settings = dict(
        num_context=sizes,
        episodes_per_user=EPISODES,
        num_samples=2,
        deterministic=True,
        key=jax.random.key(0),
        examples_at_once=4 * EPISODES,
    )
    return FewShotPredictor(model, task, TEST, **{**settings, **kwargs})


@pytest.fixture(scope="module")
def spied():
    """What the spy saw of TwoTypes, with the exact choices."""
    return predictor(Spy(), TwoTypes(**TASK_SIZES))(None)


def test_shapes(spied):
    shapes = {name: np.shape(value) for name, value in spied._asdict().items()}
    user, size = (USERS, EPISODES), (USERS, EPISODES, len(SIZES))
    targets, latent = (*size, M), (*size, 2 * N)
    assert shapes == {
        "log_prob": targets,
        "flipped": targets,
        "bayes": targets,
        "effective_samples": size,
        "mask": (*user, M),
        "informative": size,
        "target_differs": (*user, M),
        "latent_mean": latent,
        "latent_kl": latent,
        "group": (USERS,),
        # Of models that are linear in z, and of tasks whose choices are not certain.
        "interval": (),
        "log_odds": (),
        # Of models that infer z by steps.
        "converged": (),
    }


@pytest.mark.slow
@pytest.mark.parametrize("make", [Continuum, functools.partial(TwoTypes, slope=5.0)])
def test_intervals_of_log_odds_and_the_true_ones(make):
    task = make(**TASK_SIZES)
    model = LinearRewardModel(hidden=8, latent_dim=3, num_steps=6, num_sweeps=0)
    variables = reward_loss.init_variables(model, task, jax.random.key(0))
    found = predictor(model, task)(variables)
    low, high = np.moveaxis(found.interval, -1, 0)
    assert low.shape == found.log_prob.shape and (low < high).all()
    assert found.converged.shape == low.shape[:-1] and found.converged.all()
    # The probability of a choice is the mean over z, which is in most intervals.
    stated = special.logit(np.exp(np.float64(found.log_prob)))
    assert np.mean((low < stated) & (stated < high)) > 0.99
    # The choices are draws of the true probabilities: the likelier option is chosen as
    # often as they say.
    assert found.log_odds.shape == (USERS, EPISODES, M)
    true = special.expit(np.float64(found.log_odds))
    expected = np.maximum(true, 1 - true)
    error = np.mean(true > 0.5) - expected.mean()
    assert abs(error) < 4 * np.sqrt(np.sum(expected * (1 - expected))) / true.size


def test_contexts_are_prefixes_of_one_another(spied):
    full = spied.latent_mean[:, :, -1].reshape(USERS, EPISODES, 2, N)
    assert (full >= 0).all()
    for index, n in enumerate(SIZES):
        shown = spied.latent_mean[:, :, index].reshape(USERS, EPISODES, 2, N)
        expected = np.where(np.arange(N) < n, full, -1)
        assert np.array_equal(shown, expected)


def test_targets_are_the_same_after_every_context(spied):
    full = spied.latent_mean[:, :, -1].reshape(USERS, EPISODES, 2, N)[:, :, 0]
    asked = -spied.log_prob[:, :, 0]
    for index, n in enumerate(SIZES):
        shown = full[..., :n].sum(-1)
        expected = -(asked + shown[..., None])
        np.testing.assert_allclose(spied.log_prob[:, :, index], expected, rtol=1e-4)
    # No target is in the context, and every episode is another.
    assert not np.isin(asked, full).any()
    assert len(np.unique(asked)) == asked.size
    assert spied.mask.all()


def test_flipped_contexts_are_those_of_the_other_type(spied):
    """Where the types disagree, the other option of the same pair is the chosen one."""
    chosen, rejected = np.moveaxis(
        spied.latent_mean[:, :, -1].reshape(USERS, EPISODES, 2, N), 2, 0
    )

    def order(user_type):
        reward = functools.partial(TwoTypes.reward, user_type=user_type)
        return np.asarray(reward(chosen)) > np.asarray(reward(rejected))

    differs = order(0) != order(1)
    other = np.where(differs, rejected, chosen)
    for index, n in enumerate(SIZES):
        shown = spied.log_prob[:, :, 0] - spied.flipped[:, :, index]
        expected = np.broadcast_to(other[..., :n].sum(-1, keepdims=True), shown.shape)
        np.testing.assert_allclose(shown, expected, rtol=1e-4, atol=1e-5)
        informative = differs[..., :n].any(-1)
        assert np.array_equal(spied.informative[:, :, index], informative)
    assert differs.any() and not differs.all()


def test_kl_is_from_the_prior_of_no_context(spied):
    """Both stds are exp(-3), so the KL is half the squared shift over exp(-6)."""
    shift = spied.latent_mean - spied.latent_mean[:, :, :1]
    expected = 0.5 * shift.astype(np.float64) ** 2 * np.exp(6)
    np.testing.assert_allclose(spied.latent_kl, expected, rtol=1e-4)
    assert not spied.latent_kl[:, :, 0].any()


def test_bayes_sees_the_same_context(spied):
    """In the exact task it is certain or has no idea, and never wrong."""
    p = np.exp(spied.bayes)
    told = spied.informative[..., None]
    unsure = ~told & spied.target_differs[:, :, None]
    np.testing.assert_allclose(p, np.where(unsure, 0.5, 1), rtol=1e-6)
    assert np.isinf(spied.effective_samples).all()


class Recorded:
    """A task whose episodes are its constants, and whose Bayes optimum is unknown."""

    def __init__(self, seed=0):
        rng = np.random.default_rng(seed)

        def choices(size):
            def options():
                features = rng.normal(size=(USERS, size, 1)).astype(np.float32)
                return Options(features, np.full((USERS, size), -1, np.int32))

            return Choices(options(), options(), np.ones((USERS, size), bool))

        self.constants = Episode(choices(N), choices(M), np.zeros(USERS, np.int32))

    def users(self, split):
        return np.arange(USERS)

    def fetch(self, split, users, own):
        return users[own]

    def test_episode(self, constants, split, user, key):
        return reversed_test_episode(jax.tree.map(lambda x: x[user], constants))

    def bayes_log_prob(self, episode, key):
        return None


def test_a_model_without_context_has_the_prior_alone():
    """A small model of random parameters, averaging over samples of z."""
    task, model = Recorded(), RewardModel(hidden=8, latent_dim=D)
    episode = jax.tree.map(lambda x: x[0], task.constants)
    shapes = jax.eval_shape(model.init, jax.random.key(0), episode)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: rng.normal(0, 0.7, x.shape).astype(np.float32), shapes["params"]
    )
    statistics = {"options": {"mean": np.zeros(1), "std": np.ones(1)}}
    predict = predictor(model, task, deterministic=False)
    found = predict({"params": params, "statistics": statistics})
    # The same noise, and no choice to flip.
    np.testing.assert_allclose(
        found.log_prob[:, :, 0], found.flipped[:, :, 0], rtol=1e-5
    )
    prior = found.latent_mean[:, :, 0]
    np.testing.assert_allclose(prior, np.broadcast_to(prior[0, 0], prior.shape))
    assert (found.latent_mean[:, :, 1:].std(0) > 1e-4).all()
    assert found.latent_kl[:, :, 0].max() < 1e-6
    assert (found.latent_kl[:, :, 1:].sum(-1) > 1e-4).all()
    # Reversed choices are other choices, so every prediction moves once there are any.
    moved = np.abs(found.log_prob - found.flipped).max(-1) > 1e-5
    assert np.array_equal(moved, found.informative)
    assert np.array_equal(found.informative[0, 0], [n > 0 for n in SIZES])
    assert found.log_prob.max() < 0
    assert found.bayes is None and found.effective_samples is None


class Unasked(TwoTypes):
    """The task, in which every other user has no target."""

    def test_episode(self, constants, split, user, key):
        test = super().test_episode(constants, split, user, key)
        target = test.episode.target
        target = target._replace(mask=target.mask & (user % 2 == 0))
        return test._replace(episode=test.episode._replace(target=target))


def test_users_without_a_target_are_not_scored(spied):
    """As happens when no two ratings of a user make a choice.

    Nor do the sizes asked for or the batches change what the others are shown.
    """
    found = predictor(
        Spy(), Unasked(**TASK_SIZES), (3,), diagnose=False, examples_at_once=1
    )(None)
    assert found.group.shape == ((USERS + 1) // 2,)
    np.testing.assert_array_equal(found.group, spied.group[::2])
    for name in ("log_prob", "latent_mean"):
        got, everyone = getattr(found, name), getattr(spied, name)
        np.testing.assert_allclose(got[:, :, 0], everyone[::2, :, 2], rtol=1e-5)
    assert found.mask.any((1, 2)).all()
    assert found.flipped is None and found.bayes is None
