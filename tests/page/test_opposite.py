"""The opposite of a person, kept where people are."""

import numpy as np
import scipy.stats

from fsa.latent import DiagonalGaussian, Mixture, mixture
from fsa.serving.page.opposite import between, opposite

PRIOR = DiagonalGaussian(np.array([1.0, -1.0, 0.0]), np.log([1.0, 2.0, 0.5]))


def distance(z):
    return np.sum(((z - PRIOR.mean) / np.exp(PRIOR.log_std)) ** 2)


def test_near_people_are_mirrored():
    z = np.array([1.5, -2.0, 0.3])
    assert np.allclose(opposite(z, PRIOR), 2 * PRIOR.mean - z)
    assert np.allclose(opposite(opposite(z, PRIOR), PRIOR), z)


def test_the_opposite_of_somebody_far_is_on_the_edge_of_the_region():
    z = np.array([9.0, 9.0, 9.0])
    found = opposite(z, PRIOR)
    assert np.isclose(distance(found), scipy.stats.chi2.ppf(0.9, 3))
    gap = z - PRIOR.mean
    assert np.allclose(
        (found - PRIOR.mean) / np.linalg.norm(found - PRIOR.mean),
        -gap / np.linalg.norm(gap),
    )


def test_the_mean_is_its_own_opposite():
    assert np.allclose(opposite(PRIOR.mean, PRIOR), PRIOR.mean)


def test_a_mixture_counts_by_its_mean_and_covariance():
    prior = mixture.of_prior(
        Mixture(np.zeros(2), np.array([[-3.0], [3.0]]), np.zeros((2, 1)))
    )
    assert np.allclose(opposite(np.array([3.0]), prior), [-3.0])
    # Variance 1 within and 9 between components.
    most = np.sqrt(10 * scipy.stats.chi2.ppf(0.9, 1))
    assert np.allclose(opposite(np.array([50.0]), prior), [-most], rtol=1e-5)


def test_between_goes_from_one_to_the_other():
    z = np.array([1.5, -2.0, 0.3])
    assert np.allclose(between(z, PRIOR, 0), z)
    assert np.allclose(between(z, PRIOR, 1), opposite(z, PRIOR))
    assert np.allclose(between(z, PRIOR, 0.5), PRIOR.mean)
