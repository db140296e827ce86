"""Methods that learn, each on people whose preferences were planted."""

import jax
import jax.numpy as jnp
import numpy as np
import planted
import pytest

from fsa.rivals import basis, weights
from fsa.rivals.ideal_point import IdealPoint
from fsa.rivals.lore import Lore
from fsa.rivals.method import TrainingPeople
from fsa.rivals.mrm import Mrm
from fsa.rivals.pal import Pal
from fsa.rivals.pref import Pref

COUNTS = (150, 6, 6)
NUM_ITEMS, NUM_FEATURES = 60, 4
FAST = {
    "steps": 240,
    "batch_size": 32,
    "hidden": 16,
    "valid_episodes": 1,
    "rates": (1e-2,),
    "warmup_steps": 10,
    "weight_decay": 0.0,
}


def features(seed=0):
    return np.random.default_rng(seed).normal(size=(NUM_ITEMS, NUM_FEATURES))


def people_of(rewards, x):
    data = planted.by_rewards(rewards, x, COUNTS, num_choices=40)
    return TrainingPeople(planted.people(data, context=20, targets=20), (20,))


def explained(found, true):
    """Share of the variance of `true` `[I, K]` that is linear in `found` `[I, L]`."""
    found = np.c_[found, np.ones(len(found))]
    rest = true - found @ np.linalg.lstsq(found, true, rcond=None)[0]
    return 1 - rest.var(0) / true.var(0)


@pytest.mark.slow
def test_lore_recovers_a_planted_basis():
    """Two base rewards, one for each feature, of which people have convex weights."""
    x = features()
    share = np.random.default_rng(1).uniform(size=sum(COUNTS))[:, None]
    rewards = 4 * (share * x[:, 0] + (1 - share) * x[:, 1])
    method = Lore(size=2, **FAST)
    values = method.fit(people_of(rewards, x), jax.random.key(0)).values
    options = planted.choices(x, range(NUM_ITEMS), range(NUM_ITEMS)).chosen
    found = np.asarray(basis.apply(method.module, values, options))
    assert (explained(found, x[:, :2]) > 0.9).all()
    assert (explained(found[:, :1], x[:, :2]) < 0.9).any()


@pytest.fixture(scope="module")
def points():
    """People who choose what is near to their point of a plane."""
    x = features(2)
    ideal = np.random.default_rng(3).normal(size=(sum(COUNTS), 2)) * 1.5
    rewards = -((x[None, :, :2] - ideal[:, None]) ** 2).sum(-1)
    return people_of(rewards, x), ideal, x


def told_and_true(method, values, person, x, ideal):
    """A person's choices from all pairs of items with the first: odds and true odds."""
    target = planted.choices(x, range(1, NUM_ITEMS), [0] * (NUM_ITEMS - 1))
    log_prob = method.predict(values, person, target)
    odds = log_prob - jnp.log1p(-jnp.exp(log_prob))
    true = -((x[:, :2] - ideal) ** 2).sum(-1)
    return np.asarray(odds), true[1:] - true[0]


def correlations(method, values, people, ideal, x):
    """Correlation of told and true odds for each test person, after 20 choices."""
    table, found = people.task.data.users["test"], []
    for user in range(COUNTS[2]):
        context = planted.choices(x, table.chosen[user][:20], table.rejected[user][:20])
        person = method.adapt(values, context)
        own = ideal[COUNTS[0] + COUNTS[1] + user]
        found.append(np.corrcoef(*told_and_true(method, values, person, x, own))[0, 1])
    return np.array(found)


@pytest.mark.slow
def test_pal_recovers_planted_ideal_points(points):
    people, ideal, x = points
    method = Pal(size=6, dimensions=2, **FAST)
    values = method.fit(people, jax.random.key(0)).values
    assert np.median(correlations(method, values, people, ideal, x)) > 0.85


@pytest.mark.slow
def test_ideal_points_need_no_features(points):
    people, ideal, x = points
    blind = np.zeros_like(x)
    method = IdealPoint(num_items=NUM_ITEMS, size=3, **{**FAST, "steps": 600})
    values = method.fit(people, jax.random.key(0)).values
    found = correlations(method, values, people, ideal, x)
    assert np.median(found) > 0.85
    target = planted.choices(x, [3, 5], [7, 9])
    same = planted.choices(blind, [3, 5], [7, 9])
    person = method.adapt(values, target)
    np.testing.assert_array_equal(
        method.predict(values, person, target), method.predict(values, person, same)
    )


@pytest.mark.slow
def test_pref_takes_the_spread_of_training_people_as_prior():
    """Nobody's weights are their mean; a person's are the most probable ones."""
    x = features(5)
    people = people_of(np.zeros((sum(COUNTS), NUM_ITEMS)), x)
    method = Pref(size=4, hidden=8)
    variables = method.init(people, jax.random.key(0))
    table = np.random.default_rng(0).normal(size=(COUNTS[0], 3)) @ np.diag([1, 2, 3])
    variables["params"]["people"] = jnp.asarray(table / basis.FASTER)
    (values,) = method.finish(variables)
    np.testing.assert_allclose(values.prior.mean, table.mean(0), atol=1e-5)
    np.testing.assert_allclose(
        values.prior.covariance, np.cov(table.T, bias=True), atol=2e-3
    )
    nobody = planted.choices(x, [0], [1], mask=[False])
    np.testing.assert_allclose(
        method.adapt(values, nobody), values.prior.mean, atol=1e-5
    )
    known = planted.choices(x, [0, 2], [1, 3])
    found = basis.differences(method.module, values.variables, known)
    best = weights.most_probable(
        found[:, 1:], found[:, 0], known.mask, values.prior
    ).mean
    np.testing.assert_allclose(method.adapt(values, known), best, atol=1e-5)


def test_a_step_of_mrm_is_the_gradient_computed_by_hand():
    x = features(4)
    context = planted.choices(
        x, [1, 2, 3, 4], [5, 6, 7, 8], mask=[True, True, True, False]
    )
    method = Mrm(size=5, adapt_steps=1, hidden=8)
    people = people_of(np.zeros((sum(COUNTS), NUM_ITEMS)), x)
    values = method.init(people, jax.random.key(0))
    values["params"]["log_rate"] = jnp.log(0.7)
    phi = np.float64(basis.differences(method.module, values, context))[:3]
    start = np.float64(values["params"]["start"])
    p = 1 / (1 + np.exp(-(phi @ start)))
    by_hand = start + 0.7 * ((1 - p)[:, None] * phi).mean(0)
    np.testing.assert_allclose(method.adapt(values, context), by_hand, rtol=1e-5)


def test_mrm_counts_people_who_are_hard_to_predict_more():
    losses = jnp.array([0.1, 0.2, 0.3, 2.0])
    slope = jax.grad(Mrm(softness=0.1).over_people)(losses)
    assert slope[3] > 2 * abs(slope[0])
