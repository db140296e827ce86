"""Scores of made-up predictions, computed by hand."""

import numpy as np
import pytest

from fsa.data.tasks.simulated import Continuum, TwoTypes
from fsa.data.tasks.task import TEST, VALID
from fsa.evaluation import scores
from fsa.evaluation.predictions import Predictions
from fsa.recipes.run import validation_scores

D = 2
TASK_SIZES = dict(
    batch_size=2,
    max_context=5,
    num_targets=7,
    test_context=5,
    test_targets=7,
    num_users={VALID: 5, TEST: 11},
)


def some_predictions(rng, log_prob, flipped=None, **changes):
    """Predictions [U, E, C, M] with every target real, C = 2."""
    users, episodes, sizes, targets = log_prob.shape
    fields = dict(
        log_prob=log_prob,
        flipped=log_prob if flipped is None else flipped,
        bayes=None,
        effective_samples=None,
        mask=np.ones((users, episodes, targets), bool),
        informative=np.ones((users, episodes, sizes), bool),
        target_differs=np.ones((users, episodes, targets), bool),
        latent_mean=rng.normal(size=(users, episodes, sizes, D)),
        latent_kl=rng.gamma(2.0, size=(users, episodes, sizes, D)),
        group=np.arange(users) % 2,
    )
    return Predictions(**{**fields, **changes})


def test_shares_of_people_whose_posterior_was_found():
    rng, task = np.random.default_rng(0), Continuum(**TASK_SIZES)
    converged = np.array([[[True, True]], [[True, False]], [[True, False]]])
    log_prob = np.log(rng.uniform(0.2, 0.8, (3, 1, 2, 4)))
    found = some_predictions(rng, log_prob, converged=converged)
    assert scores.diagnose(found, task)["converged"] == pytest.approx([1, 1 / 3])
    assert validation_scores(found, (0, 2))["converged"] == pytest.approx(4 / 6)
    unknown = some_predictions(rng, log_prob)
    assert "converged" not in scores.diagnose(unknown, task)
    assert "converged" not in validation_scores(unknown, (0, 2))


def test_right_is_more_than_half():
    p = np.array([0.9, 0.5, 0.1, 0.50001, 0.49999, 0.0])
    with np.errstate(divide="ignore"):
        found = scores.right(np.log(p))
    assert found.tolist() == [1, 0.5, 0, 1, 0, 0]
    # A rounding error in log(1/2) is still a tie.
    assert scores.right(np.float32(-np.log(2))) == 0.5


def test_means_of_users_weigh_targets_alike():
    values = np.array([[[[1.0, 2, 9]], [[4.0, 9, 9]]], [[[5.0, 9, 9]], [[9, 9, 7.0]]]])
    mask = np.array([[[1, 1, 0], [1, 0, 0]], [[1, 0, 0], [0, 0, 1]]], bool)
    values = np.where(mask[:, :, None], values, np.nan)
    found = scores.user_means(values, mask)
    np.testing.assert_allclose(found, [[7 / 3], [6]])


def test_interval_is_of_the_mean_over_users():
    rng = np.random.default_rng(0)
    values = rng.normal([[0.0, 10.0]], [[1.0, 0.1]], (401, 2))
    found = scores.bootstrap_interval(values, 1000)
    error = values.std(0) / np.sqrt(401)
    expected = np.stack([values.mean(0) - 1.96 * error, values.mean(0) + 1.96 * error])
    # The bootstrap's own noise is a tenth of the half-width.
    np.testing.assert_allclose(found, expected.T, atol=0.3 * error.max())
    np.testing.assert_allclose((found - expected.T)[1], 0, atol=0.3 * error[1])
    assert np.array_equal(found, scores.bootstrap_interval(values, 1000))
    assert not np.array_equal(found, scores.bootstrap_interval(values, 1000, seed=1))
    assert np.isnan(scores.bootstrap_interval(values[:1], 10)).all()


def test_interval_of_users_who_agree():
    np.testing.assert_allclose(scores.bootstrap_interval(np.full((5, 1), 0.7), 50), 0.7)


def test_confidence_is_in_the_predicted_option():
    mask = np.array([[True, True], [False, True]])
    log_prob = np.log([[0.9, 0.2], [0.3, 0.5]])
    stated, correct = scores.confidence(log_prob, mask)
    np.testing.assert_allclose(stated, [0.9, 0.8, 0.5])
    assert correct.tolist() == [1, 0, 0.5]


def test_calibration_of_a_calibrated_and_of_a_boastful_model():
    rng = np.random.default_rng(11)
    p = rng.uniform(0.5, 1, 20_000)
    right = rng.uniform(size=p.shape) < p

    def error(stated):
        log_prob = np.log(np.where(right, stated, 1 - stated)).reshape(100, 200)
        return scores.calibration(log_prob, np.ones((100, 200), bool))

    ece, expected = error(p)
    # A bin's mean has a standard error of at most 0.011, its size 0.8 of that.
    assert 0 < expected < 0.01
    assert abs(ece - expected) < 0.007
    boastful, expected = error(1 - (1 - p) / 3)
    gap = np.mean(1 - (1 - p) / 3) - right.mean()
    np.testing.assert_allclose(boastful, gap, atol=0.005)
    assert expected < 0.01


def test_flip_rate_by_hand():
    """Counted: informative contexts and disputed targets alone."""
    yes, no = np.log(0.9), np.log(0.2)
    # One user, one episode, three sizes, four targets.
    log_prob = np.array([[[[yes, yes, no, yes]] * 3]])
    flipped = np.array([[[[no, no, yes, no], [no, yes, yes, no], [yes, yes, no, no]]]])
    predictions = some_predictions(
        np.random.default_rng(0),
        log_prob,
        flipped,
        informative=np.array([[[False, True, True]]]),
        target_differs=np.array([[[True, True, True, False]]]),
    )
    assert scores.flip_rate(predictions) == [None, 2 / 3, 0.0]


def test_summary_of_hand_made_predictions():
    p = np.array([[[[0.9, 0.2], [0.8, 0.7]]], [[[0.6, 0.5], [0.1, 0.9]]]])
    mask = np.array([[[True, True]], [[True, False]]])
    rng = np.random.default_rng(0)
    predictions = some_predictions(
        rng, np.log(p), mask=mask, bayes=np.log(np.full_like(p, 0.75))
    )
    found = scores.summarize(predictions, 100)
    assert found["users"] == 2
    # Means over users of means over their targets.
    np.testing.assert_allclose(found["accuracy"], [(0.5 + 1) / 2, (1 + 0) / 2])
    nll = -np.log(p)
    first, second = nll[0, 0].mean(1), nll[1, 0, :, 0]
    np.testing.assert_allclose(found["nll"], (first + second) / 2)
    assert found["ceiling_accuracy"] == [1, 1]
    np.testing.assert_allclose(found["ceiling_nll"], -np.log(0.75))
    for index in range(2):
        low, high = found["accuracy_ci"][index]
        assert low <= found["accuracy"][index] <= high
        stated = np.maximum(p, 1 - p)[:, 0, index][mask[:, 0]]
        correct = (p > 0.5)[:, 0, index][mask[:, 0]]
        # Ten bins of three predictions: each is its own bin.
        expected = np.abs(stated - correct).mean()
        np.testing.assert_allclose(found["ece"][index], expected, rtol=1e-5)


def test_diagnostics_of_hand_made_latents():
    rng = np.random.default_rng(0)
    mean = np.zeros((7, 2, 2, D))
    # At the second size, unit 0 tells users apart and unit 1 tells episodes apart.
    mean[:, :, 1, 0] = np.linspace(-1, 1, 7)[:, None]
    mean[:, 0, 1, 1], mean[:, 1, 1, 1] = -1, 1
    kl = np.zeros((7, 2, 2, D))
    kl[:, :, 1] = [0.5, 2.0]
    effective = rng.uniform(100, 200, (7, 2, 2))
    predictions = some_predictions(
        rng,
        np.log(np.full((7, 2, 2, 3), 0.6)),
        latent_mean=mean,
        latent_kl=kl,
        effective_samples=effective,
    )
    task = Continuum(**TASK_SIZES)
    found = scores.diagnose(predictions, task)
    assert found["latent_dim"] == D
    assert found["active_units"] == [0, 1]
    assert found["kl_per_dimension"] == [[0, 0], [0.5, 2.0]]
    assert found["flips_are_types"] is False
    samples = found["bayes_effective_samples"]
    np.testing.assert_allclose(
        samples["median"], [np.median(effective[:, :, c]) for c in (0, 1)]
    )
    np.testing.assert_allclose(
        samples["5th_percentile"],
        [np.quantile(effective[:, :, c].ravel(), 0.05) for c in (0, 1)],
    )
    # What is exact has no sample size to report.
    exact = predictions._replace(effective_samples=np.full((7, 2, 2), np.inf))
    assert "bayes_effective_samples" not in scores.diagnose(exact, task)


def test_coverage_of_intervals_by_hand():
    """Of one user with three targets, the last of which is no real one, at two n."""
    log_prob = np.zeros((1, 1, 2, 3))
    interval = np.array([[[0.1, 0.3], [0.2, 0.9], [0.0, 1.0]], [[0.3, 0.4]] * 3])
    changes = dict(
        mask=np.array([[[True, True, False]]]),
        interval=interval[None, None],
        latent_mean=None,
        latent_kl=None,
    )
    rng, true = np.random.default_rng(0), np.array([[[0.31, 0.3, 0.5]]])
    known = some_predictions(rng, log_prob, log_odds=true, **changes)
    assert scores.interval_coverage(known) == [0.5, 1.0]
    unknown = some_predictions(rng, log_prob, **changes)
    assert scores.interval_coverage(unknown) is None


def test_evaluation_tells_groups_apart():
    """Group 0 is always right, group 1 never."""
    p = np.where(np.arange(5) % 2 == 0, 0.8, 0.3)[:, None, None, None]
    log_prob = np.log(np.broadcast_to(p, (5, 2, 2, 3)))
    predictions = some_predictions(np.random.default_rng(0), log_prob)
    task = TwoTypes(**TASK_SIZES)
    found = scores.evaluation(predictions, task, (0, 3), num_resamples=50)
    assert found["n_context"] == [0, 3]
    assert found["users"] == 5
    np.testing.assert_allclose(found["accuracy"], 3 / 5)
    groups = found["groups"]
    assert {name: g["users"] for name, g in groups.items()} == {
        "type 0": 3,
        "type 1": 2,
    }
    assert groups["type 0"]["accuracy"] == [1, 1]
    assert groups["type 1"]["accuracy"] == [0, 0]
    np.testing.assert_allclose(groups["type 1"]["nll"], -np.log(0.3))
    assert found["ceiling_accuracy"] is None and found["ceiling_nll"] is None
    # Where all are of one kind there is nothing to tell apart.
    one = scores.evaluation(
        predictions._replace(group=np.zeros(5, int)),
        Continuum(**TASK_SIZES),
        (0, 3),
        num_resamples=50,
    )
    assert one["groups"] == {}


def test_the_gain_is_that_of_the_same_users():
    """Users differ, and everybody gains 1/3: the gain is sure, the accuracy is not."""
    right_at = np.array([[[0, 0, 1], [0, 1, 1]], [[1, 1, 0], [1, 1, 1]]] * 3)
    p = np.where(right_at, 0.8, 0.3)[:, None]
    predictions = some_predictions(np.random.default_rng(0), np.log(p))
    predictions = predictions._replace(mask=np.ones((6, 1, 3), bool))
    found = scores.summarize(predictions, 50)
    np.testing.assert_allclose(found["gain"], [0, 1 / 3], atol=1e-9)
    np.testing.assert_allclose(found["gain_ci"], [[0, 0], [1 / 3, 1 / 3]], atol=1e-9)
    low, high = found["accuracy_ci"][1]
    assert high - low > 0.1
