"""The posterior against NUTS (Hoffman & Gelman 2014), as numpyro has it.

NUTS samples the posterior of each component of the prior, which is log-concave. Of the
mixture it samples components too rarely: at n = 3 its probabilities erred by up to
0.0095, where draws from the prior, weighted by the likelihood, differ from ours by
0.0002. Such draws know both components by construction, and weigh them here.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from benchmarks.posterior import infer, person, two_components
from fsa.latent import mixture

# What each may err, as benchmarks/results/posterior.md has it, with some to spare.
LAPLACE, SWEEPS = (0.35, 0.04), (0.03, 0.005)
# Draws from each component of the prior.
DRAWS = 1_000_000


def weighted_draws(prior, observed, component, targets):
    """Log-evidence, mean and probabilities by draws from a component of the prior."""
    rng = np.random.default_rng(component)
    noise = rng.normal(size=(DRAWS, prior.mean.shape[1]))
    z = np.asarray(prior.mean)[component] + noise * np.exp(prior.log_std)[component]
    log_weight = special.log_expit(z @ np.asarray(observed.features).T).sum(1)
    evidence = special.logsumexp(log_weight) - np.log(DRAWS)
    weight = np.exp(log_weight - log_weight.max())
    weight /= weight.sum()
    assert 1 / (weight**2).sum() > 10_000  # Else there is nothing to compare with.
    return evidence, weight @ z, weight @ special.expit(z @ np.asarray(targets).T)


def sampled(prior, observed, component, targets):
    """Mean and probabilities by NUTS of one component."""
    numpyro_infer = pytest.importorskip("numpyro.infer")
    mean, std = prior.mean[component], jnp.exp(prior.log_std)[component]

    def potential(z):
        return 0.5 * jnp.sum(((z - mean) / std) ** 2) - observed.log_prob(z)

    chains = numpyro_infer.MCMC(
        numpyro_infer.NUTS(potential_fn=potential),
        num_warmup=500,
        num_samples=8_000,
        num_chains=4,
        chain_method="vectorized",
        progress_bar=False,
    )
    chains.run(jax.random.key(0), init_params=jnp.tile(mean, (4, 1)))
    z = np.asarray(chains.get_samples())
    return z.mean(0), special.expit(z @ np.asarray(targets).T).mean(0)


@pytest.mark.slow
@pytest.mark.parametrize("n", [1, 3, 10, 30])
def test_means_and_probabilities_are_those_of_samplers(n):
    with jax.enable_x64(True):
        prior = two_components(3)
        prior = jax.tree.map(lambda x: x.astype(jnp.float64), prior)
        _, observed, targets = person(jax.random.key(n), prior, n, 1.0)
        drawn = [weighted_draws(prior, observed, c, targets) for c in range(2)]
        evidence, means, probabilities = map(np.array, zip(*drawn, strict=True))
        weight = special.softmax(np.asarray(prior.log_weight) + evidence)
        mean, probability = weight @ means, weight @ probabilities
        for component in range(2):
            of_mean, of_targets = sampled(prior, observed, component, targets)
            assert abs(of_mean - means[component]).max() < 0.03
            assert abs(of_targets - probabilities[component]).max() < 0.005
        for num_sweeps, (of_mean, of_probability) in ((0, LAPLACE), (3, SWEEPS)):
            q = infer(observed, prior, num_sweeps)
            assert (abs(q.mean - mean) < of_mean * q.std).all()
            found = np.exp(mixture.predict(q, targets, jnp.zeros(len(targets))))
            assert (abs(found - probability) < of_probability).all()
