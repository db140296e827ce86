"""Baselines on the episodes that a predictor scores."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from fsa.data.tasks.task import VALID, reversed_test_episode
from fsa.episodes import Choices, Episode, Options
from fsa.evaluation import baselines, linear
from fsa.evaluation.baselines import Drawn, LinearModel, Pairs
from fsa.evaluation.predictions import FewShotPredictor
from fsa.latent import DiagonalGaussian

pytestmark = pytest.mark.usefixtures("quick_compile")

U, E, N, M, ITEMS, F = 9, 2, 4, 3, 17, 3


def pairs(rng, users, size, people_differ=None):
    """Random pairs; the option with the larger reward is chosen, if there is one."""
    both = np.stack(
        [rng.choice(ITEMS, 2, replace=False) for _ in range(users * E * size)]
    ).reshape(users, E, size, 2)
    if people_differ is not None:
        reward = people_differ[:, None, None]
        first, second = (
            np.take_along_axis(reward, both[..., i, None], -1)[..., 0] for i in (0, 1)
        )
        both = np.where((first > second)[..., None], both, both[..., ::-1])
    return Pairs(both[..., 0], both[..., 1], np.ones((users, E, size), bool))


def drawn(seed, rewards=None, users=U):
    rng = np.random.default_rng(seed)
    return Drawn(*(pairs(rng, users, size, rewards) for size in (N, N, M)))


@pytest.fixture
def features():
    return np.random.default_rng(1).normal(size=(ITEMS, F))


def test_item_log_prob():
    target = Pairs(np.array([[[0, 1]]]), np.array([[[2, 2]]]), np.ones((1, 1, 2), bool))
    found = baselines.item_log_prob(np.array([1.0, 3.0, 3.0]), target)
    expected = np.log([[[[special.expit(-2.0), 0.5]]]])
    np.testing.assert_allclose(found, expected)


def test_shifted_log_prob_of_one_person_at_a_time(features):
    """Padding and choices beyond n are not seen, whatever items they name."""
    model = LinearModel(features, np.array([1.0, -1.0, 0.5]), 1.5)
    some = drawn(0)
    mask = np.ones((U, E, N), bool)
    mask[3, 1, 2:] = False
    context, sizes = some.context._replace(mask=mask), (0, 1, 3)
    found = baselines.shifted_log_prob(model, context, some.target, sizes)
    assert found.shape == (U, E, len(sizes), M)
    for u, e in ((0, 0), (3, 1)):
        gaps = features[context.chosen[u, e]] - features[context.rejected[u, e]]
        target = (
            features[some.target.chosen[u, e]] - features[some.target.rejected[u, e]]
        )
        for c, n in enumerate(sizes):
            known = gaps[: min(n, mask[u, e].sum())]
            odds = linear.shifted_log_odds(
                known @ model.weights,
                target @ model.weights,
                1.5**2 * known @ known.T,
                1.5**2 * target @ known.T,
            )
            expected = np.log(special.expit(odds))
            np.testing.assert_allclose(found[u, e, c], expected, atol=1e-9)


def test_fit_linear_finds_what_people_share_and_what_differs(features):
    weights = np.array([2.0, -1.0, 0.5])
    alike = np.tile(features @ weights, (U, 1))
    groups = [drawn(seed, alike) for seed in range(3)]
    model = baselines.fit_linear(features, groups)
    cosine = model.weights @ weights / np.linalg.norm(model.weights)
    assert cosine / np.linalg.norm(weights) > 0.95
    gaps = [
        model.features[x.chosen] - model.features[x.rejected]
        for d in groups
        for x in (d.context, d.target)
    ]
    norms = np.concatenate([(g[:, 0] ** 2).sum(-1).ravel() for g in gaps])
    assert np.isclose(norms.mean(), 1)
    # Opposite people share nothing.
    sign = np.where(np.arange(U) % 2, 1, -1)[:, None]
    opposite = baselines.fit_linear(
        features, [drawn(s, sign * alike) for s in range(3)]
    )
    assert opposite.shift > model.shift
    assert np.linalg.norm(opposite.weights) < np.linalg.norm(model.weights)


def test_fit_linear_does_not_depend_on_the_order_of_people(features):
    rng = np.random.default_rng(5)
    groups = [drawn(seed, rng.normal(size=(U, ITEMS))) for seed in range(2)]
    shuffled = [group.take(rng.permutation(U)) for group in groups]
    first, second = (baselines.fit_linear(features, g) for g in (groups, shuffled))
    np.testing.assert_allclose(first.weights, second.weights, atol=1e-5)
    assert first.shift == second.shift


class Episodes:
    """A task whose items are numbers that name user, place and draw."""

    constants = jnp.int32(0)

    def users(self, split):
        return np.arange(U, dtype=np.int32)

    def fetch(self, split, users, own):
        return users[own]

    def test_episode(self, constants, split, user, key):
        def choices(first, size):
            item = 100 * user + first + jnp.arange(size)
            item += constants + 1000 * jax.random.randint(key, (), 0, 50)
            options = Options(item[:, None].astype(float), item)
            return Choices(options, options, jnp.ones(size, bool))

        return reversed_test_episode(Episode(choices(0, N), choices(10, M), user))

    def bayes_log_prob(self, episode, key):
        return None


class Named:
    """A model whose predictions are the names of the targets."""

    latent_dim = 0

    def apply(self, variables, *args, method):
        return method(*args)

    def encode(self, context):
        return DiagonalGaussian(jnp.zeros(0), jnp.zeros(0))

    def log_prob(self, target, z):
        return -target.chosen.features[None, :, 0]


def test_draws_are_the_episodes_that_are_predicted():
    predict = FewShotPredictor(
        Named(),
        Episodes(),
        VALID,
        num_context=(0, 2),
        episodes_per_user=E,
        num_samples=1,
        deterministic=True,
        key=jax.random.key(0),
    )
    some, constants = np.array([6, 2], np.int32), jnp.int32(7)
    found = predict(None, users=some, constants=constants)
    target = baselines.draw(predict, constants, some).target
    np.testing.assert_allclose(-found.log_prob[:, :, 0], target.chosen)
    np.testing.assert_array_equal(target.chosen[:, :, 0] // 100 % 10, [[6, 6], [2, 2]])
    # The same as among all users, with the task's own constants.
    everybody = predict(None)
    np.testing.assert_allclose(found.log_prob, everybody.log_prob[some] - 7)
