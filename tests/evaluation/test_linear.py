"""Linear models of choices, against general optimizers."""

import numpy as np
import pytest
from scipy import optimize, special

from fsa.evaluation import linear

P, F, N, M = 61, 5, 7, 3  # choices, features, context choices, target choices


def differences(seed, count=P, scale=1.0):
    rng = np.random.default_rng(seed)
    weights = np.linspace(-1, 1, F)
    gaps = scale * rng.normal(size=(count, F))
    wins = rng.uniform(size=count) < special.expit(gaps @ weights)
    return np.where(wins[:, None], gaps, -gaps)


def newton(gaps, std):
    """Logistic regression by Newton's method, whose Hessian is written out."""
    w = np.zeros(F)
    for _ in range(30):
        p = special.expit(gaps @ w)
        gradient = gaps.T @ (1 - p) - w / std**2
        hessian = (gaps * (p * (1 - p))[:, None]).T @ gaps + np.eye(F) / std**2
        w += np.linalg.solve(hessian, gradient)
    return w


@pytest.mark.parametrize("std", [0.2, 1.0, 5.0])
def test_fit(std):
    gaps = differences(0)
    found = linear.fit(gaps, std)
    np.testing.assert_allclose(found, newton(gaps, std), atol=1e-4)


def test_fit_does_not_depend_on_the_order_of_choices():
    gaps = differences(0)
    shuffled = np.random.default_rng(1).permutation(gaps)
    np.testing.assert_allclose(linear.fit(gaps, 1), linear.fit(shuffled, 1), atol=1e-4)


def test_select():
    """Held-out choices of the same people call for weights, coin flips do not."""
    stds = (0.001, 1.0)
    assert linear.select(differences(0), differences(1), stds) == 1.0
    coin = np.random.default_rng(2).normal(size=(P, F))
    assert linear.select(coin, np.concatenate([coin, -coin]), stds) == 0.001


def shifted(context, target, w, std):
    """The arguments of `shifted_log_odds` for one person, by the definition."""
    products = (std**2 * x @ context.T for x in (context, target))
    return context @ w, target @ w, *products


@pytest.mark.parametrize("std", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("size", [1.0, 6.0])
def test_shifted_log_odds(std, size):
    """Equals the log odds at the optimum over v itself, also after surprises."""
    rng = np.random.default_rng(3)
    context, target = differences(4, N), differences(5, M)
    w = size * rng.normal(size=F)

    def loss(v):
        odds = context @ (w + v)
        value = np.logaddexp(0, -odds).sum() + v @ v / (2 * std**2)
        return value, v / std**2 - special.expit(-odds) @ context

    v = optimize.minimize(loss, np.zeros(F), jac=True, options={"gtol": 1e-9}).x
    arguments = shifted(context, target, w, std)
    found = linear.shifted_log_odds(*arguments, steps=200)
    np.testing.assert_allclose(found, target @ (w + v), atol=1e-5)
    brief = linear.shifted_log_odds(*arguments)
    np.testing.assert_allclose(brief, target @ (w + v), atol=0.02)


def test_padding_and_batches():
    """A choice whose inner products are 0 changes nothing, nor do others in a batch."""
    w, std = np.linspace(1, -1, F), 1.5
    context, target = differences(6, N), differences(7, M)
    few = linear.shifted_log_odds(*shifted(context[:4], target, w, std))
    own, wanted, inner, cross = shifted(context, target, w, std)
    known = np.arange(N) < 4
    padded = (
        own,
        wanted,
        inner * known * known[:, None],
        cross * known,
    )
    other = shifted(differences(8, N), target, w, std)
    batch = [np.stack(pair) for pair in zip(padded, other, strict=True)]
    np.testing.assert_allclose(linear.shifted_log_odds(*batch)[0], few, atol=1e-12)


def test_nothing_is_shifted_without_context():
    own, wanted, inner, cross = shifted(
        differences(0, N), differences(1, M), np.ones(F), 1
    )
    found = linear.shifted_log_odds(own, wanted, 0 * inner, 0 * cross)
    np.testing.assert_array_equal(found, wanted)
