"""Distributions of the latent preference z, and its inference from what people tell.

* `gaussian`: diagonal Gaussians, which a context encoder infers;
* `observations`: choices, ties, likes and ratings in one form;
* `mixture`: the prior and the posterior of z in a model that is linear in z;
* `inference`: that posterior, from observations;
* `blocks`: many observations in fixed memory.
"""

from fsa.latent.gaussian import (
    DiagonalGaussian,
    at_least_float32,
    kl,
    kl_per_dimension,
    log_prob,
    product,
    sample,
    standard_normal,
)
from fsa.latent.inference import laplace, refine
from fsa.latent.mixture import Mixture, Posterior, kl_parts, mean_or_samples
from fsa.latent.observations import Observations

__all__ = [
    "DiagonalGaussian",
    "Mixture",
    "Observations",
    "Posterior",
    "at_least_float32",
    "kl",
    "kl_parts",
    "kl_per_dimension",
    "laplace",
    "log_prob",
    "mean_or_samples",
    "product",
    "refine",
    "sample",
    "standard_normal",
]
