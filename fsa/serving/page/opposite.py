"""The opposite of a person: z mirrored at the mean of the prior.

Beyond what people are like, a policy writes what no person wants, or no language at
all, so the opposite is kept where 90 % of people are.

Shapes: D latent dimensions.
"""

import numpy as np
import scipy.stats

from fsa.latent import DiagonalGaussian, Posterior

# The share of people inside the region that the opposite is kept in.
SHARE = 0.9


def opposite(z: np.ndarray, prior: DiagonalGaussian | Posterior) -> np.ndarray:
    """Returns the opposite `[D]` of z `[D]`, inside the 90 % region of the prior.

    The region is that of a Gaussian with the prior's mean and covariance.
    """
    mean = np.asarray(prior.mean, float)
    gap = mean - np.asarray(z, float)
    distance = gap @ np.linalg.solve(_covariance(prior), gap)
    most = scipy.stats.chi2.ppf(SHARE, len(mean))
    return mean + gap * min(1.0, np.sqrt(most / max(distance, 1e-30)))


def between(
    z: np.ndarray, prior: DiagonalGaussian | Posterior, share: float
) -> np.ndarray:
    """Returns z `[D]` at a share of the way from a person, 0, to the opposite, 1."""
    return (1 - share) * np.asarray(z, float) + share * opposite(z, prior)


def _covariance(prior: DiagonalGaussian | Posterior) -> np.ndarray:
    if isinstance(prior, Posterior):
        return np.asarray(prior.covariance, float)
    return np.diag(np.exp(2 * np.asarray(prior.log_std, float)))
