"""The posterior against NUTS (Hoffman & Gelman 2014), as numpyro has it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.posterior import infer, person, two_components
from fsa.latent import mixture

# What each may err, as benchmarks/results/posterior.md has it, with some to spare.
LAPLACE, SWEEPS = (0.35, 0.04), (0.03, 0.005)


@pytest.mark.slow
@pytest.mark.parametrize("n", [1, 3, 10, 30])
def test_means_and_probabilities_are_those_of_a_sampler(n):
    numpyro_infer = pytest.importorskip("numpyro.infer")
    with jax.enable_x64(True):
        prior = two_components(3)
        prior = jax.tree.map(lambda x: x.astype(jnp.float64), prior)
        _, observed, targets = person(jax.random.key(n), prior, n, 1.0)
        nothing = mixture.of_prior(prior)

        def potential(z):
            return -observed.log_prob(z) - mixture.log_prob(nothing, z)

        chains = numpyro_infer.MCMC(
            numpyro_infer.NUTS(potential_fn=potential),
            num_warmup=500,
            num_samples=15_000,
            num_chains=4,
            chain_method="vectorized",
            progress_bar=False,
        )
        chains.run(jax.random.key(0), init_params=jnp.zeros((4, 3)))
        z = np.asarray(chains.get_samples())
        probability = np.mean(jax.nn.sigmoid(z @ targets.T), axis=0)
        for num_sweeps, (of_mean, of_probability) in ((0, LAPLACE), (3, SWEEPS)):
            q = infer(observed, prior, num_sweeps)
            assert (abs(q.mean - z.mean(0)) < of_mean * z.std(0)).all()
            found = np.exp(mixture.predict(q, targets, jnp.zeros(len(targets))))
            assert (abs(found - probability) < of_probability).all()
