"""Mixtures of Gaussians against numpy, scipy and numerical integration."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, optimize, special, stats

from fsa import latent
from fsa.latent import DiagonalGaussian, Mixture, Posterior, mixture

pytestmark = pytest.mark.usefixtures("quick_compile")

C, D, M, K = 2, 3, 5, 30_000


def posterior(seed=0, num_components=C, dim=D):
    """Components of any weight, mean and covariance."""
    rng = np.random.default_rng(seed)
    lower = np.tril(rng.normal(size=(num_components, dim, dim)), -1)
    diagonal = rng.uniform(0.5, 2, size=(num_components, dim))
    cholesky = lower + diagonal[..., None] * np.eye(dim)
    return Posterior(
        jax.nn.log_softmax(jnp.asarray(rng.normal(size=num_components), jnp.float32)),
        jnp.asarray(2 * rng.normal(size=(num_components, dim)), jnp.float32),
        jnp.asarray(cholesky, jnp.float32),
        jnp.asarray(np.linalg.inv(cholesky), jnp.float32),
        jnp.zeros(()),
        jnp.ones(num_components, bool),
    )


def parts(q):
    """Weights, means and covariances, in float64."""
    cholesky = np.asarray(q.cholesky, np.float64)
    covariance = np.linalg.inv(cholesky @ cholesky.transpose(0, 2, 1))
    weight = np.exp(np.asarray(q.log_weight, np.float64))
    return weight / weight.sum(), np.asarray(q.component_mean, np.float64), covariance


def utilities(seed=1):
    rng = np.random.default_rng(seed)
    features, offset = rng.normal(size=(M, D)), rng.normal(size=M)
    return jnp.asarray(features, jnp.float32), jnp.asarray(offset, jnp.float32)


def marginals(q, features, offset):
    """Weights `[C]`, and means and standard deviations `[C, M]` of utilities."""
    weight, mean, covariance = parts(q)
    f = np.asarray(features, np.float64)
    std = np.sqrt(np.einsum("md,cde,me->cm", f, covariance, f))
    return weight, mean @ f.T + np.asarray(offset), std


def test_log_prob_is_that_of_scipy():
    q, z = posterior(), np.random.default_rng(2).normal(size=(4, D))
    expected = sum(
        w * stats.multivariate_normal(m, s).pdf(z)
        for w, m, s in zip(*parts(q), strict=True)
    )
    found = jax.vmap(lambda z: mixture.log_prob(q, z))(jnp.asarray(z, jnp.float32))
    np.testing.assert_allclose(found, np.log(expected), rtol=1e-4)


def test_moments_are_those_of_samples_and_of_algebra():
    q = posterior()
    weight, mean, covariance = parts(q)
    expected = weight @ mean
    second = covariance + np.einsum("ci,cj->cij", mean, mean)
    spread = np.einsum("c,cij->ij", weight, second) - np.outer(expected, expected)
    np.testing.assert_allclose(q.mean, expected, rtol=1e-5)
    np.testing.assert_allclose(q.covariance, spread, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(q.std, np.sqrt(np.diag(spread)), rtol=1e-4)
    z = np.asarray(mixture.sample(q, jax.random.key(0), K))
    error = 5 * np.sqrt(np.diag(spread) / K)
    assert (abs(z.mean(0) - expected) < error).all()
    np.testing.assert_allclose(np.cov(z.T), spread, atol=0.03 * np.abs(spread).max())


@pytest.mark.parametrize("num_components", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_kl_and_entropy_are_integrals(num_components):
    q, p = (posterior(seed, num_components, 1) for seed in (3, 4))

    z = np.linspace(-12, 12, 20_001)

    def density(q):
        return sum(
            w * stats.norm(m[0], s[0, 0] ** 0.5).pdf(z)
            for w, m, s in zip(*parts(q), strict=True)
        )

    of_q, of_p = density(q), density(p)
    key = jax.random.key(1)
    for found, integrand in (
        (mixture.kl(q, p, key, K), special.rel_entr(of_q, of_p)),
        (mixture.entropy(q, key, K), special.entr(of_q)),
    ):
        expected = integrate.simpson(integrand, x=z)
        np.testing.assert_allclose(found, expected, rtol=0.02, atol=0.02)


@pytest.mark.slow
def test_kl_of_one_component_is_that_of_a_gaussian():
    mean, log_std = (
        jnp.array([[0.3, -1.0], [0.0, 0.5]]),
        jnp.array([[-0.2, 0.4], [0, 0]]),
    )
    q, p = (
        mixture.of_prior(Mixture(jnp.ones(1), m[None], s[None]))
        for m, s in zip(mean, log_std, strict=True)
    )
    expected = latent.kl(*map(DiagonalGaussian, mean, log_std))
    found = mixture.kl(q, p, jax.random.key(0), K)
    np.testing.assert_allclose(found, expected, rtol=0.02)
    entropy = mixture.entropy(q, jax.random.key(0), K)
    expected = np.sum(log_std[0]) + np.log(2 * np.pi * np.e)
    np.testing.assert_allclose(entropy, expected, rtol=0.01)
    terms = latent.kl_parts(q, p, jax.random.key(0), K)
    np.testing.assert_allclose(terms.sum(), found)


@pytest.mark.parametrize(
    "ends, scale",
    [
        *itertools.product([(0, np.inf), (-np.inf, 0)], [0.1, 1.0, 10.0, 50.0]),
        *itertools.product([(-0.01, 0.01), (1, 3)], [0.1, 1.0, 10.0]),
    ],
)
def test_predictions_are_integrals(ends, scale):
    q, (features, offset) = posterior(), utilities()
    features, offset = scale * features, scale * offset
    found = mixture.predict(q, features, offset, low=ends[0], high=ends[1])
    weight, mean, std = marginals(q, features, offset)
    x = np.linspace(-10, 10, 40_001)
    u = mean[..., None] + std[..., None] * x
    p = (
        (special.expit(ends[1] - u) - special.expit(ends[0] - u))
        @ stats.norm.pdf(x)
        * (x[1] - x[0])
    )
    # An interval under a far wider Gaussian has few points to each of its ends.
    few = scale >= 10 and np.isfinite(ends).all()
    atol = 2e-3 if few else 1e-4
    np.testing.assert_allclose(np.exp(found), weight @ p, rtol=0.01, atol=atol)


ENDS = [
    *[(0, np.inf), (-np.inf, 0), (-0.01, 0.01), (-0.5, 0.5), (0, 1), (0, 3)],
    *[(-2, 6), (0, 10), (0, 30), (-60, 60)],
]


def dense(mean, std, low, high):
    """The integral of an observation under a Gaussian of u, and the moments with it.

    Gauss-Legendre rules of 24 points on many panels, which are short at the ends.
    """
    finite = [end for end in (low, high) if np.isfinite(end)]
    steps = np.array([-60, -30, -15, -8, -4, -2, -1, 0, 1, 2, 4, 8, 15, 30, 60])
    edges = [mean + std * np.linspace(-12, 12, 41), *[end + steps for end in finite]]
    edges = np.unique(np.clip(np.concatenate(edges), *edges[0][[0, -1]]))
    nodes, weights = np.polynomial.legendre.leggauss(24)
    half = np.diff(edges)[:, None] / 2
    u = (half * nodes + edges[:-1, None] + half).ravel()
    p = special.expit(high - u) - special.expit(low - u)
    p *= stats.norm(mean, std).pdf(u) * (half * weights).ravel()
    total = p.sum()
    own = (p @ u) / total
    return total, own, (p @ (u - own) ** 2) / total


@pytest.mark.parametrize(("low", "high"), ENDS)
def test_quadrature_under_narrow_and_wide_gaussians(low, high):
    """Probabilities, and the moments that expectation propagation matches."""
    stds = np.array([0.1, 0.3, 1, 3, 10, 30])
    std, far = (x.ravel() for x in np.meshgrid(stds, [-4, -1, -0.5, 0, 0.3, 2]))
    mean = far * np.maximum(std, 1)
    x, log_weight = jax.jit(mixture.quadrature)(
        *np.float32([mean, std, np.full(36, low), np.full(36, high)])
    )
    u = np.float64(x) * std[:, None] + mean[:, None]
    p = np.exp(np.float64(log_weight))
    p *= special.expit(high - u) - special.expit(low - u)
    found = p.sum(1)
    wanted, own, spread = np.array(
        [dense(*at, low, high) for at in zip(mean, std, strict=True)]
    ).T
    both = np.isfinite(low) and np.isfinite(high)
    np.testing.assert_allclose(found, wanted, atol=1e-4 if both else 2e-5)
    likely = wanted > 0.01
    p = (p / found[:, None])[likely]
    moved = (p * u[likely]).sum(1)
    variance = (p * (u[likely] - moved[:, None]) ** 2).sum(1)
    np.testing.assert_allclose(found[likely], wanted[likely], rtol=0.01)
    assert (abs(moved - own[likely]) < 0.01 * std[likely]).all()
    np.testing.assert_allclose(variance, spread[likely], rtol=0.15)


@pytest.mark.slow
def test_no_options_have_no_predictions():
    assert mixture.predict(posterior(), jnp.zeros((0, D)), jnp.zeros(0)).shape == (0,)


def test_a_pair_and_its_reverse_have_total_probability_one():
    q, (features, offset) = posterior(), utilities()
    for scale in (0.0, 1.0, 30.0):
        f, o = scale * features, scale * offset
        total = np.exp(mixture.predict(q, f, o)) + np.exp(mixture.predict(q, -f, -o))
        np.testing.assert_allclose(total, 1, atol=1e-6)


def test_predictions_have_finite_derivatives_where_nothing_is_uncertain():
    q, (features, offset) = posterior(), utilities()
    for f in (jnp.zeros_like(features), 1e4 * features):
        slopes = jax.grad(
            lambda f, o, q: mixture.predict(q, f, o).sum(), (0, 1), allow_int=True
        )(f, offset, q)
        assert all(np.isfinite(x).all() for x in slopes)


def test_quantiles_are_those_of_the_mixture():
    q, (features, offset) = posterior(), utilities()
    levels = np.array([0.01, 0.05, 0.5, 0.95])
    found = mixture.quantiles(q, features, offset, levels)
    assert found.shape == (4, M)
    weight, mean, std = marginals(q, features, offset)
    for i, level in enumerate(levels):
        for m in range(M):
            expected = optimize.brentq(
                lambda u, level=level, m=m: (
                    weight @ stats.norm.cdf(u, mean[:, m], std[:, m]) - level
                ),
                -50,
                50,
            )
            np.testing.assert_allclose(found[i, m], expected, atol=1e-3)


@pytest.mark.slow
def test_quantiles_of_many_people_and_of_one_component():
    q = jax.tree.map(lambda *x: jnp.stack(x), posterior(0, 1), posterior(5, 1))
    features, offset = utilities()
    found = jax.vmap(mixture.quantiles, (0, None, None, None))(
        q, features, offset, jnp.array([0.05, 0.95])
    )
    for person in range(2):
        one = jax.tree.map(lambda x, person=person: x[person], q)
        _, mean, std = marginals(one, features, offset)
        half = stats.norm.ppf(0.95) * std[0]
        np.testing.assert_allclose(found[person, 0], mean[0] - half, atol=1e-4)
        np.testing.assert_allclose(found[person, 1], mean[0] + half, atol=1e-4)


def test_the_prior_is_a_posterior_of_nothing():
    prior = Mixture(jnp.array([1.0, 0.0]), jnp.ones((2, D)), 0.3 * jnp.ones((2, D)))
    q = mixture.of_prior(prior)
    np.testing.assert_allclose(np.exp(q.log_weight).sum(), 1, rtol=1e-6)
    np.testing.assert_allclose(q.std, np.exp(0.3), rtol=1e-5)
    assert q.log_evidence == 0
