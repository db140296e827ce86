"""Implicit rewards, against those of one user at a time."""

import functools

import jax
import numpy as np
import policies
import pytest

from fsa.episodes import Choices
from fsa.evaluation import scores
from fsa.evaluation.implicit_reward import PolicyPredictor, language_model_accuracy

pytestmark = pytest.mark.usefixtures("quick_compile")

BETA = 0.7
SIZES = (0, 1, 2)


@pytest.fixture(scope="module")
def steerer(language_folder):
    return policies.make_steerer(language_folder)


@pytest.fixture(scope="module")
def task(steerer):
    return policies.make_task(steerer.language)


def predictor(steerer, task, **options):
    defaults = dict(
        num_context=SIZES,
        episodes_per_user=2,
        beta=BETA,
        users_at_once=4,
        progress=False,
    )
    return PolicyPredictor(steerer.policy, task, "test", **(defaults | options))


def predict(steerer, task, **options):
    made = predictor(steerer, task, **options)
    return made(steerer.variables, steerer.language.variables)


@pytest.fixture(scope="module")
def shared(steerer, task):
    """A predictor that several tests call, compiled once."""
    return predictor(steerer, task)


@pytest.fixture(scope="module")
def predictions(steerer, shared):
    return shared(steerer.variables, steerer.language.variables)


def at_latent(steerer, z, example):
    """Computes log p of one user's targets `[M]` at z."""
    model, base = steerer.language.model, steerer.language.variables
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), example.responses)
    own = policies.log_probs(model, policies.folded(steerer, z), *flat)
    ratio = np.reshape(own - policies.log_probs(model, base, *flat), (-1, 2))
    return -np.logaddexp(0, -BETA * (ratio[:, 0] - ratio[:, 1]))


def posterior(steerer, example, n, reverse=False):
    """Infers q(z | C) from one user's first n choices, without padding."""
    chosen, rejected = (
        jax.tree.map(lambda x: x[:n], side) for side in example.episode.context[:2]
    )
    if reverse:
        chosen, rejected = rejected, chosen
    context = Choices(chosen, rejected, np.ones(n, bool))
    return encode(steerer.policy, steerer.variables, context)


@functools.partial(jax.jit, static_argnums=0)
def encode(policy, variables, context):
    return policy.encode(variables, context)


def test_predictions_are_those_of_each_user_alone(steerer, task, predictions):
    users = task.users("test")
    assert predictions.log_prob.shape == (len(users), 2, len(SIZES), 3)
    # Not all of them, which takes long; every axis gets several of its indices.
    for u, e, c in [(0, 0, 0), (5, 1, 2), (3, 0, 1)]:
        batch = task.test_batch("test", [users[u]], e)
        example = jax.tree.map(lambda x: x[0], batch)
        q = posterior(steerer, example, SIZES[c])
        expected = at_latent(steerer, q.mean, example)
        np.testing.assert_allclose(predictions.log_prob[u, e, c], expected, atol=1e-4)
        np.testing.assert_allclose(predictions.latent_mean[u, e, c], q.mean, atol=1e-5)
        flipped = posterior(steerer, example, SIZES[c], reverse=True).mean
        expected = at_latent(steerer, flipped, example)
        np.testing.assert_allclose(predictions.flipped[u, e, c], expected, atol=1e-4)
        prior = posterior(steerer, example, 0)
        ratio = np.exp(2 * (np.float64(q.log_std) - prior.log_std))
        gap = (np.float64(q.mean) - prior.mean) / np.exp(prior.log_std)
        kl = 0.5 * (ratio + gap**2 - 1 - np.log(ratio))
        np.testing.assert_allclose(
            predictions.latent_kl[u, e, c], kl, rtol=1e-5, atol=1e-4
        )
        assert predictions.group[u] == batch.episode.group[0]
    assert predictions.mask.all() and predictions.informative[:, :, 1:].all()
    assert not predictions.informative[:, :, 0].any()


def test_context_and_its_direction_matter(predictions):
    log_prob, flipped = predictions.log_prob, predictions.flipped
    np.testing.assert_allclose(log_prob[:, :, 0], flipped[:, :, 0], atol=1e-5)
    for n in (1, 2):
        assert np.abs(log_prob[:, :, n] - log_prob[:, :, n - 1]).mean() > 1e-3
        assert np.abs(log_prob[:, :, n] - flipped[:, :, n]).mean() > 1e-3


def test_a_sample_of_users_is_spread_over_all(steerer, task, predictions):
    """Those of a group follow one another, and a sample needs some of each."""
    found = predict(steerer, task, max_users=4)
    assert len(task.users("test")) == 6
    for mine, every in zip(found, predictions, strict=True):
        if mine is not None:
            np.testing.assert_allclose(mine, every[[0, 1, 3, 4]], atol=1e-5)


def test_users_at_once_change_nothing(steerer, task, predictions):
    """Six users in batches of four, the last filled up, and in one of eight.

    Nor do the context sizes: contexts are prefixes of one another and face one target.
    """
    again = predict(
        steerer, task, users_at_once=8, num_context=SIZES[1:], diagnose=False
    )
    assert again.flipped is None
    of_sizes = ("log_prob", "informative", "latent_mean", "latent_kl")
    for name in (*of_sizes, "mask", "target_differs", "group"):
        expected, found = getattr(predictions, name), getattr(again, name)
        expected = expected[:, :, 1:] if name in of_sizes else expected
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_choices_after_the_first_n_are_not_read(steerer, task, shared, predictions):
    users = task.users("test")
    batch = task.test_batch("test", users[:4], 0)
    context = batch.episode.context
    spoilt = context.chosen._replace(features=context.chosen.features.copy())
    spoilt.features[:, 1:] = 1e3
    changed = batch._replace(
        episode=batch.episode._replace(context=context._replace(chosen=spoilt))
    )
    found = shared._run(steerer.variables, steerer.language.variables, changed)
    np.testing.assert_allclose(
        found.log_prob[:, :2], predictions.log_prob[:4, 0, :2], atol=1e-4
    )
    assert np.abs(found.log_prob[:, 2] - predictions.log_prob[:4, 0, 2]).max() > 1e-3


def test_evaluation_of_each_group(predictions, task):
    """The summary that evaluation.json holds, against a mean by hand."""
    found = scores.evaluation(predictions, task, SIZES, num_resamples=20)
    assert set(found["groups"]) == set(policies.GROUPS) == set(task.groups)
    right = predictions.log_prob > np.log(0.5)
    for index, name in enumerate(task.groups):
        of_group = right[predictions.group == index].mean((0, 1, 3))
        np.testing.assert_allclose(found["groups"][name]["accuracy"], of_group)
        assert found["groups"][name]["users"] == policies.USERS["test"]


@pytest.mark.parametrize(
    "latent", ["none", pytest.param("group", marks=pytest.mark.slow)]
)
def test_policies_without_inference(language_folder, task, latent):
    """One policy for all, or for each group, whatever the context."""
    steerer = policies.make_steerer(language_folder, latent=latent, num_groups=2)
    found = predict(steerer, task, episodes_per_user=1, diagnose=False)
    assert found.latent_mean is None and found.latent_kl is None
    for n in (1, 2):
        np.testing.assert_allclose(found.log_prob[:, :, n], found.log_prob[:, :, 0])
    user = task.users("test")[4]
    example = jax.tree.map(lambda x: x[0], task.test_batch("test", [user], 0))
    z = np.ones(1) if latent == "none" else np.eye(2)[example.episode.group]
    expected = at_latent(steerer, z.astype(np.float32), example)
    np.testing.assert_allclose(found.log_prob[4, 0, 0], expected, atol=1e-4)


def test_the_language_model_itself(steerer, task):
    """Which response of each target it finds more probable, by another computation."""
    model, base = steerer.language.model, steerer.language.variables
    table, found = task.data.users["test"], {name: [] for name in task.groups}
    for user in task.users("test"):
        responses = task.test_batch("test", np.array([user]), 0).responses
        flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[3:]), responses)
        log_probs = policies.log_probs(model, base, *flat).reshape(-1, 2)
        right = np.mean(log_probs[:, 0] > log_probs[:, 1])
        found[task.groups[table.group[user]]].append(right)
    expected = {name: np.mean(of_users) for name, of_users in found.items()}
    assert language_model_accuracy(task) == pytest.approx(expected)
    assert any(0 < share < 1 for share in expected.values())
