"""Diagonal Gaussians against scipy, numerical integration and precision algebra."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads
from scipy import integrate, stats

from fsa import latent
from fsa.latent import DiagonalGaussian

pytestmark = pytest.mark.usefixtures("quick_compile")

B, N, D, K = 2, 7, 5, 20_011  # leading axis, factors, dimensions, samples
PROPERTY = settings(max_examples=20, deadline=None, derandomize=True)
SEEDS = st.integers(0, 10_000)

kl_per_dimension = jax.jit(latent.kl_per_dimension)
kl, log_prob, product = map(jax.jit, (latent.kl, latent.log_prob, latent.product))
sample = jax.jit(latent.sample, static_argnames="num_samples")


def everything(q, p, factors, mask, key):
    """Every function of the module, once."""
    return (
        latent.kl(q, p),
        latent.log_prob(q, p.mean),
        latent.product(factors, mask, p),
        latent.mean_or_samples(q, key, 3, deterministic=False),
        latent.mean_or_samples(q, key, 3, deterministic=True),
    )


compiled = jax.jit(everything)


def gaussian(seed, *shape, dtype=np.float32):
    rng = np.random.default_rng(seed)
    mean, log_std = rng.normal(size=(2, *shape)).astype(dtype)
    return DiagonalGaussian(mean, 0.7 * log_std)


def wide(distribution):
    """(mean, std) in float64."""
    mean, log_std = (np.asarray(x, np.float64) for x in distribution)
    return mean, np.exp(log_std)


def test_kl_is_the_integral_that_defines_it():
    with jax.enable_x64(True):
        q, p = gaussian(0, D, dtype=np.float64), gaussian(1, D, dtype=np.float64)
        found = kl_per_dimension(q, p)
    for d in range(D):
        one, other = (stats.norm(wide(x)[0][d], wide(x)[1][d]) for x in (q, p))

        def integrand(z, one=one, other=other):
            return one.pdf(z) * (one.logpdf(z) - other.logpdf(z))

        low, high = one.mean() - 12 * one.std(), one.mean() + 12 * one.std()
        expected, _ = integrate.quad(integrand, low, high, epsabs=1e-12)
        np.testing.assert_allclose(found[d], expected, rtol=1e-8)


@PROPERTY
@given(SEEDS)
def test_kl_against_variances(seed):
    q, p = gaussian(seed, B, D), gaussian(seed + 1, B, D)
    (m, s), (pm, ps) = wide(q), wide(p)
    expected = np.log(ps / s) + (s**2 + (m - pm) ** 2) / (2 * ps**2) - 0.5
    found = kl_per_dimension(q, p)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    assert (np.asarray(found) >= 0).all()
    total = kl(q, p)
    assert total.shape == (B,)
    np.testing.assert_allclose(total, expected.sum(-1), rtol=1e-4)


def test_kl_of_a_distribution_with_itself_is_zero():
    q = gaussian(2, B, D)
    assert not np.asarray(kl_per_dimension(q, q)).any()


def test_kl_of_nearly_equal_spreads_keeps_its_digits():
    """It is about log_ratio^2, far below the rounding of the ratio of variances."""
    log_std = np.array([1e-3, -1e-3, 2e-3], np.float32)
    q, p = DiagonalGaussian(np.zeros(3), log_std), latent.standard_normal(3)
    ratio = log_std.astype(np.float64)
    expected = 0.5 * np.expm1(2 * ratio) - ratio
    np.testing.assert_allclose(kl_per_dimension(q, p), expected, rtol=1e-3)


def naive_product(factors, mask, prior):
    (mean, std), (prior_mean, prior_std) = wide(factors), wide(prior)
    total, weighted = 1 / prior_std**2, prior_mean / prior_std**2
    for i in np.flatnonzero(mask):
        total = total + 1 / std[i] ** 2
        weighted = weighted + mean[i] / std[i] ** 2
    return weighted / total, 0.5 * np.log(1 / total)


@PROPERTY
@given(
    SEEDS,
    # Few counts, since each is a shape to compile once padding is removed.
    st.sampled_from([0, 3, N]).flatmap(
        lambda count: st.permutations([i < count for i in range(N)]).map(np.array)
    ),
)
def test_product_adds_precisions_of_what_is_real(seed, mask):
    factors, prior = gaussian(seed, N, D), gaussian(seed + 1, D)
    found = product(factors, mask, prior)
    for got, expected in zip(found, naive_product(factors, mask, prior), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
    # The values in the padding do not matter.
    spoilt = DiagonalGaussian(
        np.where(mask[:, None], factors.mean, np.nan),
        np.where(mask[:, None], factors.log_std, np.nan),
    )
    kept = DiagonalGaussian(factors.mean[mask], factors.log_std[mask])
    removed = product(kept, np.ones(mask.sum(), bool), prior)
    for got, expected in zip(product(spoilt, mask, prior), removed, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [0, N])
def test_product_of_nothing_is_the_prior(size):
    prior = gaussian(3, D)
    found = product(gaussian(4, size, D), np.zeros(size, bool), prior)
    np.testing.assert_allclose(found.mean, prior.mean, rtol=1e-6)
    np.testing.assert_allclose(found.log_std, prior.log_std, rtol=1e-5, atol=1e-6)


def test_product_is_bayes_rule():
    """Log-densities of prior and factors add up to the product's, plus a constant."""
    factors, prior = gaussian(5, N, D), gaussian(6, D)
    found = product(factors, np.ones(N, bool), prior)
    z = np.random.default_rng(0).normal(size=(11, D)).astype(np.float32)
    total = np.asarray(log_prob(prior, z))
    for i in range(N):
        total = total + log_prob(jax.tree.map(lambda x, i=i: x[i], factors), z)
    difference = np.asarray(total - log_prob(found, z))
    assert np.ptp(difference) < 1e-4 * np.ptp(total)


def test_samples_have_the_moments_of_the_distribution():
    q = gaussian(7, D)
    z = np.asarray(sample(q, jax.random.key(0), K), np.float64)
    assert z.shape == (K, D)
    mean, std = wide(q)
    standardized = (z - mean) / std
    error = 5 / np.sqrt(K)
    assert (np.abs(standardized.mean(0)) < error).all()
    assert (np.abs(standardized.std(0) - 1) < error / np.sqrt(2)).all()
    correlation = np.corrcoef(standardized.T) - np.eye(D)
    assert (np.abs(correlation) < error).all()
    assert stats.kstest(standardized.ravel(), "norm").pvalue > 1e-4


def test_samples_follow_the_key():
    q = gaussian(8, D)
    first, again, other = (
        np.asarray(sample(q, jax.random.key(s), 3)) for s in (1, 1, 2)
    )
    assert np.array_equal(first, again)
    assert not np.isclose(first, other).any()


def test_samples_are_reparameterised():
    """z = mean + std * noise: dz/dmean = 1 and dz/dlog_std = z - mean."""
    q, key = gaussian(9, D), jax.random.key(3)
    weights = np.random.default_rng(0).normal(size=(11, D)).astype(np.float32)

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def weighted(q):
        z = latent.sample(q, key, 11)
        return jnp.sum(weights * z), z

    slopes, z = weighted(q)
    np.testing.assert_allclose(slopes.mean, weights.sum(0), rtol=1e-5)
    expected = (weights * (z - q.mean)).sum(0)
    np.testing.assert_allclose(slopes.log_std, expected, rtol=1e-4, atol=1e-5)


@PROPERTY
@given(SEEDS)
def test_log_density(seed):
    q = gaussian(seed, B, D)
    z = np.random.default_rng(seed).normal(0, 3, (B, D)).astype(np.float32)
    expected = stats.norm.logpdf(z.astype(np.float64), *wide(q)).sum(-1)
    np.testing.assert_allclose(log_prob(q, z), expected, rtol=1e-5, atol=1e-5)


def test_gradients():
    with jax.enable_x64(True):
        q, p = (
            jax.tree.map(jnp.asarray, gaussian(s, D, dtype=np.float64)) for s in (0, 1)
        )
        factors = jax.tree.map(jnp.asarray, gaussian(2, N, D, dtype=np.float64))
        mask = np.arange(N) % 2 == 0
        key = jax.random.key(0)
        check_grads(
            lambda q, p, factors: compiled(q, p, factors, mask, key),
            (q, p, factors),
            order=1,
        )


def test_bfloat16_loses_nothing_but_the_rounding_of_the_input():
    half = [
        jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), g)
        for g in (gaussian(0, D), gaussian(1, D), gaussian(2, N, D))
    ]
    full = [jax.tree.map(lambda x: x.astype(jnp.float32), g) for g in half]
    mask, key = np.arange(N) != 2, jax.random.key(0)

    found, expected = (jax.tree.leaves(compiled(*x, mask, key)) for x in (half, full))
    for got, exact in zip(found, expected, strict=True):
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, exact, rtol=1e-6)


def test_mean_or_samples():
    q, key = gaussian(3, D), jax.random.key(0)
    run = jax.jit(
        latent.mean_or_samples, static_argnames=("num_samples", "deterministic")
    )
    mean, samples = (run(q, key, 4, deterministic=value) for value in (True, False))
    assert np.array_equal(mean, q.mean[None])
    assert np.array_equal(samples, sample(q, key, 4))


class TransformationsTest(chex.TestCase):
    """The same numbers for users together, with and without jit and on a device."""

    @chex.all_variants(with_pmap=False)
    def test_everything(self):
        q, p, factors = gaussian(0, B, D), gaussian(1, B, D), gaussian(2, B, N, D)
        mask = np.random.default_rng(0).random((B, N)) < 0.5
        keys = jax.random.split(jax.random.key(0), B)
        args = q, p, factors, mask, keys
        found = self.variant(jax.vmap(everything))(*args)
        alone = [compiled(*jax.tree.map(lambda x, b=b: x[b], args)) for b in range(B)]
        expected = jax.tree.map(lambda *x: np.stack(x), *alone)
        chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=1e-6)


def shapes(*shapes, of=jnp.float32):
    """A distribution of shapes (of mean, of log_std), or an array of one shape."""
    arrays = [jax.ShapeDtypeStruct((B, *shape), of) for shape in shapes]
    return DiagonalGaussian(*arrays) if len(arrays) == 2 else arrays[0]


# Calls with a wrong shape or type, most of which would broadcast to a wrong number.
WRONG = {
    "samples of a batch": (
        lambda q: latent.sample(q, jax.random.key(0), 3),
        [shapes((B, D), (B, D))],
    ),
    "mean of a batch": (
        lambda q: latent.mean_or_samples(q, None, 3, deterministic=True),
        [shapes((B, D), (B, D))],
    ),
    "a single log_std": (
        lambda q: latent.sample(q, jax.random.key(0), 3),
        [shapes((D,), (1,))],
    ),
    "log-density of a scalar": (latent.log_prob, [shapes((D,), (D,)), shapes((1,))]),
    "KL to one dimension": (latent.kl, [shapes((D,), (D,)), shapes((1,), (1,))]),
    "product of other dimensions": (
        latent.product,
        [shapes((N, 1), (N, 1)), shapes((N,), of=bool), shapes((D,), (D,))],
    ),
    "product with a mask of numbers": (
        latent.product,
        [shapes((N, D), (N, D)), shapes((N,)), shapes((D,), (D,))],
    ),
    "product with one mask for all": (
        latent.product,
        [shapes((N, D), (N, D)), shapes((1,), of=bool), shapes((D,), (D,))],
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_shapes_and_types_are_refused(case):
    """While they are traced, under jit and vmap."""
    fn, args = WRONG[case]
    with pytest.raises(AssertionError, match="Chex"):
        jax.eval_shape(jax.jit(jax.vmap(fn)), *args)
