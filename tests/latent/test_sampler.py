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
    """Log-evidence by draws from a component of the prior; mean and probabilities.

    The latter two have their standard errors with them, as those of `sampled`.
    """
    rng = np.random.default_rng(component)
    noise = rng.normal(size=(DRAWS, prior.mean.shape[1]))
    z = np.asarray(prior.mean)[component] + noise * np.exp(prior.log_std)[component]
    log_weight = special.log_expit(z @ np.asarray(observed.features).T).sum(1)
    evidence = special.logsumexp(log_weight) - np.log(DRAWS)
    weight = np.exp(log_weight - log_weight.max())
    weight /= weight.sum()
    assert 1 / (weight**2).sum() > 10_000  # Else there is nothing to compare with.
    found = []
    for x in (z, special.expit(z @ np.asarray(targets).T)):
        mean = weight @ x
        found.append((mean, np.sqrt(weight**2 @ (x - mean) ** 2)))
    return evidence, *found


def sampled(prior, observed, component, targets):
    """Mean and probabilities by NUTS of one component, each with its standard error."""
    diagnostics = pytest.importorskip("numpyro.diagnostics")
    numpyro_infer = pytest.importorskip("numpyro.infer")
    mean, std = prior.mean[component], jnp.exp(prior.log_std)[component]

    def potential(z):
        return 0.5 * jnp.sum(((z - mean) / std) ** 2) - observed.log_prob(z)

    chains = numpyro_infer.MCMC(
        numpyro_infer.NUTS(potential_fn=potential),
        num_warmup=500,
        num_samples=4_000,
        num_chains=4,
        chain_method="vectorized",
        progress_bar=False,
    )
    chains.run(jax.random.key(0), init_params=jnp.tile(mean, (4, 1)))
    z = np.asarray(chains.get_samples(group_by_chain=True))
    return [
        (x.mean((0, 1)), x.std((0, 1)) / diagnostics.effective_sample_size(x) ** 0.5)
        for x in (z, special.expit(z @ np.asarray(targets).T))
    ]


@pytest.mark.slow
@pytest.mark.parametrize("n", [1, 3, 10, 30])
def test_means_and_probabilities_are_those_of_samplers(n):
    with jax.enable_x64(True):
        prior = two_components(3)
        prior = jax.tree.map(lambda x: x.astype(jnp.float64), prior)
        _, observed, targets = person(jax.random.key(n), prior, n, 1.0)
        drawn = [weighted_draws(prior, observed, c, targets) for c in range(2)]
        evidence = np.array([of_component[0] for of_component in drawn])
        weight = special.softmax(np.asarray(prior.log_weight) + evidence)
        mean, probability = (
            weight @ np.array([of_component[i][0] for of_component in drawn])
            for i in (1, 2)
        )
        for component in range(2):
            found = sampled(prior, observed, component, targets)
            for (x, x_error), (y, y_error) in zip(
                found, drawn[component][1:], strict=True
            ):
                # Five standard errors, since there are 23 values.
                assert (abs(x - y) < 5 * np.hypot(x_error, y_error)).all()
                assert max(x_error.max(), y_error.max()) < 0.02
        for num_sweeps, (of_mean, of_probability) in ((0, LAPLACE), (3, SWEEPS)):
            q = infer(observed, prior, num_sweeps)
            assert (abs(q.mean - mean) < of_mean * q.std).all()
            found = np.exp(mixture.predict(q, targets, jnp.zeros(len(targets))))
            assert (abs(found - probability) < of_probability).all()
