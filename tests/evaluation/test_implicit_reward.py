"""Implicit rewards against one user at a time, and what a linear probe sees."""

import dataclasses

import jax
import numpy as np
import policies
import pytest

from fsa.conditioning import fold
from fsa.data.collect import collect
from fsa.data.scored_responses import Responses
from fsa.data.tables import Choice
from fsa.data.tasks.pairs import PairTask
from fsa.episodes import Choices
from fsa.evaluation import scores
from fsa.evaluation.implicit_reward import PolicyPredictor, probe
from fsa.language.token_table import TokenTable

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
def predictions(steerer, task):
    return predict(steerer, task)


@pytest.fixture(scope="module")
def by_hand(steerer):
    """(user's row, n) -> log p of the targets `[M]` and q(z | C), nothing padded."""
    policy, variables, base = (
        steerer.policy,
        steerer.variables,
        steerer.language.variables,
    )
    logits_of = jax.jit(steerer.language.model.apply)
    folded = jax.jit(lambda z: fold(policy.condition(variables, base, z)))

    def log_prob(params, responses, m, side):
        tokens = responses.tokens[m, side]
        start, stop = responses.start[m, side], responses.stop[m, side]
        logits = np.float64(logits_of(params, tokens[None])[0])[0, : stop - 1]
        logits -= np.logaddexp.reduce(logits, axis=-1, keepdims=True)
        return logits[np.arange(stop - 1), tokens[1:stop]][start - 1 :].sum()

    def predicted(row, n, reverse=False):
        chosen, rejected = (
            jax.tree.map(lambda x: x[:n], side) for side in row.episode.context[:2]
        )
        if reverse:
            chosen, rejected = rejected, chosen
        q = policy.encode(variables, Choices(chosen, rejected, np.ones(n, bool)))
        own = folded(q.mean)
        ratios = [
            [
                log_prob(own, row.responses, m, side)
                - log_prob(base, row.responses, m, side)
                for side in (0, 1)
            ]
            for m in range(len(row.reference))
        ]
        margin = BETA * -np.diff(ratios)[:, 0]
        return -np.logaddexp(0, -margin), q

    return predicted


def test_predictions_are_those_of_each_user_alone(task, predictions, by_hand):
    users = task.users("test")
    assert predictions.log_prob.shape == (len(users), 2, len(SIZES), 3)
    # Not all of them, which takes a minute; every axis gets several of its indices.
    for u, e, c in [(0, 0, 0), (5, 1, 2), (3, 0, 1)]:
        batch = task.test_batch("test", [users[u]], e)
        row = jax.tree.map(lambda x: x[0], batch)
        expected, q = by_hand(row, SIZES[c])
        np.testing.assert_allclose(predictions.log_prob[u, e, c], expected, atol=1e-4)
        np.testing.assert_allclose(predictions.latent_mean[u, e, c], q.mean, atol=1e-5)
        turned, _ = by_hand(row, SIZES[c], reverse=True)
        np.testing.assert_allclose(predictions.flipped[u, e, c], turned, atol=1e-4)
        _, prior = by_hand(row, 0)
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


def test_users_at_once_change_nothing(steerer, task, predictions):
    """Six users in parts of four, the last filled up, and in one of eight."""
    again = predict(steerer, task, users_at_once=8)
    for a, b in zip(jax.tree.leaves(predictions), jax.tree.leaves(again), strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_contexts_of_fewer_choices_are_prefixes(steerer, task, predictions):
    """So that sizes can be left out, or asked for alone, and all face one target."""
    one = predict(steerer, task, num_context=(1,), diagnose=False)
    assert one.flipped is None
    np.testing.assert_allclose(
        one.log_prob[:, :, 0], predictions.log_prob[:, :, 1], atol=1e-4
    )
    # What lies behind the prefix is never looked at.
    users = task.users("test")
    batch = task.test_batch("test", users[:4], 0)
    context = batch.episode.context
    spoilt = context.chosen._replace(features=context.chosen.features.copy())
    spoilt.features[:, 1:] = 1e3
    changed = batch._replace(
        episode=batch.episode._replace(context=context._replace(chosen=spoilt))
    )
    run = predictor(steerer, task)._run
    variables, base = steerer.variables, steerer.language.variables
    found = run(variables, base, changed)
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


@pytest.mark.parametrize("latent", ["none", "group"])
def test_policies_without_inference(language_folder, task, latent):
    """One policy for all, or for each group, whatever the context."""
    steerer = policies.make_steerer(language_folder, latent=latent, num_groups=2)
    found = predict(steerer, task, episodes_per_user=1)
    assert found.latent_mean is None and found.latent_kl is None
    for n in (1, 2):
        np.testing.assert_allclose(found.log_prob[:, :, n], found.log_prob[:, :, 0])
    user = task.users("test")[4]
    row = jax.tree.map(lambda x: x[0], task.test_batch("test", [user], 0))
    z = np.ones((1, 1)) if latent == "none" else np.eye(2)[[row.episode.group]]
    flat = TokenTable.of(
        [
            (row.responses.tokens[m, side, : row.responses.stop[m, side]], start)
            for m in range(3)
            for side, start in enumerate(row.responses.start[m])
        ]
    )
    ratio = steerer.log_probs(flat, np.repeat(z, 6, axis=0).astype(np.float32))
    ratio = (ratio - row.reference.ravel()).reshape(3, 2)
    expected = -np.logaddexp(0, -BETA * (ratio[:, 0] - ratio[:, 1]))
    np.testing.assert_allclose(found.log_prob[4, 0, 0], expected, atol=1e-4)


F, NUM_ITEMS = 6, 400


def planted(slopes, seed=0, noise=False):
    """A task of users who choose by `slopes[group]` times feature 2 of two items."""
    rng = np.random.default_rng(seed)
    features = rng.normal(0, 1, (NUM_ITEMS, F)) * np.array([50, 1, 0.01, 9, 1, 1])
    features = (features + 3).astype(np.float32)
    rows = []
    for split, count in {"train": 12, "valid": 12, "test": 2}.items():
        for user in range(count):
            group = "ab"[user % 2]
            for _ in range(40):
                pair = rng.choice(NUM_ITEMS, 2, replace=False)
                value = slopes[group] * features[pair, 2]
                first = rng.random() < 0.5 if noise else value[0] > value[1]
                a, b = pair if first else pair[::-1]
                rows.append(
                    Choice(f"{split}{user}", "ask", f"{a}", f"{b}", split, group)
                )
    data = collect(rows, [])
    order = [int(text) for text in data.texts]
    count = len(order)
    found = Responses(
        TokenTable.of([([1, 2], 1)] * count),
        np.zeros(count, np.float32),
        features[order],
        {},
        "key",
    )
    sizes = dict(max_context=1, num_targets=1, test_context=1, test_targets=1)
    return PairTask(data, found, batch_size=2, buckets=(4,), **sizes)


def test_probe_finds_a_direction_that_groups_disagree_about():
    """Small beside the other dimensions, so that it takes standardising."""
    found = probe(planted({"a": 1, "b": -1}))
    assert set(found) == {"a", "b"}
    assert all(accuracy > 0.9 for accuracy in found.values())
    # Without dividing by the spread the penalty would hide it.
    assert all(a > 0.9 for a in probe(planted({"a": 1, "b": 1}), ridge=0.1).values())


def test_probe_sees_nothing_in_noise():
    """240 held-out choices of a group: five standard errors are 16 points."""
    for seed in range(3):
        for accuracy in probe(planted({"a": 1, "b": 1}, seed, noise=True)).values():
            assert abs(accuracy - 0.5) < 5 * 0.5 / np.sqrt(6 * 40)


def test_probe_is_ridge_regression_on_both_directions_of_each_choice():
    task = planted({"a": 1, "b": -1}, noise=True)
    gaps, groups = task.differences("train")
    held_out, held_out_groups = task.differences("valid")
    std = task.statistics()[1]
    for index, name in enumerate(task.groups):
        x = gaps[groups == index] / std
        # Ridge as least squares with rows that pull weights to 0.
        pull = np.sqrt(2 * 2.0 * len(x) / F) * np.eye(F)
        inputs = np.concatenate([x, -x, pull])
        labels = np.concatenate([np.ones(len(x)), -np.ones(len(x)), np.zeros(F)])
        weight = np.linalg.lstsq(inputs, labels, rcond=None)[0]
        expected = np.mean(held_out[held_out_groups == index] / std @ weight > 0)
        assert probe(task, ridge=2.0)[name] == pytest.approx(expected)


def test_probe_leaves_out_a_group_without_held_out_users():
    task = planted({"a": 1, "b": -1})
    valid = task.data.users["valid"]
    kept = valid.group == 0
    fewer = dataclasses.replace(
        valid,
        names=tuple(n for n, k in zip(valid.names, kept, strict=True) if k),
        **{
            field.name: getattr(valid, field.name)[kept]
            for field in dataclasses.fields(valid)
            if isinstance(getattr(valid, field.name), np.ndarray)
        },
    )
    data = dataclasses.replace(task.data, users={**task.data.users, "valid": fewer})
    assert set(probe(dataclasses.replace(task, data=data))) == {task.groups[0]}
