"""Agreement of a policy and its reward model over people."""

import numpy as np

from fsa.evaluation.predictions import Predictions
from fsa.evaluation.reward_agreement import agreement, kendall_tau


def tau_b(x, y):
    """Kendall's tau-b, by its definition."""
    i, j = np.triu_indices(len(x), 1)
    a, b = np.sign(x[i] - x[j]), np.sign(y[i] - y[j])
    return (a * b).sum() / np.sqrt((a**2).sum() * (b**2).sum())


def test_kendalls_tau_by_its_definition():
    first, second = np.random.default_rng(0).integers(0, 5, (2, 11, 3)).astype(float)
    found = kendall_tau(first, second)
    wanted = [tau_b(*pair) for pair in zip(first.T, second.T, strict=True)]
    np.testing.assert_allclose(found, wanted)


def test_there_is_no_tau_where_everybody_is_equal():
    first = np.array([[1.0, 0.2], [1.0, 0.3], [1.0, 0.9]])
    assert kendall_tau(first, first[::-1] ** 2) == [None, -1.0]


def test_agreement_is_over_people_and_their_real_targets():
    """Of three people with two targets, the last one's second target is padding."""
    none = dict.fromkeys(Predictions._fields)
    mask = np.array([[[1, 1]], [[1, 1]], [[1, 0]]], bool)

    def predictions(*probability):
        log_prob = np.log(np.reshape(probability, (3, 1, 1, 2)))
        return Predictions(**(none | {"log_prob": log_prob, "mask": mask}))

    policy = predictions(0.9, 0.9, 0.9, 0.1, 0.2, 0.9)
    reward = predictions(0.8, 0.7, 0.1, 0.6, 0.3, 0.9)
    found = agreement(policy, reward)
    assert found == {"reward_accuracy": [0.5], "kendall_tau": [1.0]}
