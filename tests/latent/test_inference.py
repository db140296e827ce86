"""Inference of z against scipy, numerical integration, and each other's derivatives."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy import optimize
from scipy.special import log_expit, logsumexp

from fsa.latent import Mixture, Observations, blocks, laplace, mixture, refine

pytestmark = pytest.mark.usefixtures("quick_compile")

D = 3


def prior_of(dim, dtype=np.float32):
    """Two components of different weight, mean and width."""
    rng = np.random.default_rng(dim)
    return Mixture(
        np.array([0.2, 1.1], dtype),
        rng.normal(size=(2, dim)).astype(dtype),
        np.stack([np.full(dim, -0.6), np.linspace(-0.3, 0.4, dim)]).astype(dtype),
    )


def told(seed, n, dim=D, scale=1.0, dtype=np.float32):
    """Choices, ties, dislikes and ratings in turn, of different weights."""
    rng = np.random.default_rng(seed)
    kind = np.arange(n) % 4
    return Observations.of(
        jnp.asarray(scale * rng.normal(size=(n, dim)), dtype),
        jnp.asarray(rng.normal(size=n), dtype),
        jnp.asarray(rng.choice([0.5, 1.0, 2.0], size=n), dtype),
        low=np.choose(kind, [0.0, -0.5, -np.inf, -1.0]).astype(dtype),
        high=np.choose(kind, [np.inf, 0.5, 0.0, 2.0]).astype(dtype),
    )


def log_likelihood(observed, z):
    """In NumPy, of z `[..., D]`."""
    features, offset, low, high, weight = (np.asarray(x) for x in observed)
    u = z @ features.T + offset
    above, below = log_expit(u - low), log_expit(high - u)
    with np.errstate(invalid="ignore"):
        return (above + below + np.log(-np.expm1(low - high))) @ weight


def log_prior(prior, z):
    """In NumPy, `[C, ...]` of z `[..., D]`, with the weights of components."""
    weight, mean, log_std = (np.asarray(x, np.float64) for x in prior)
    axes = tuple(range(1, z.ndim))
    mean, log_std = (np.expand_dims(x, axes) for x in (mean, log_std))
    density = -0.5 * ((z - mean) / np.exp(log_std)) ** 2 - log_std
    weight = np.expand_dims(weight - logsumexp(weight), axes)
    return weight + (density - 0.5 * np.log(2 * np.pi)).sum(-1)


@functools.partial(jax.jit, static_argnames=("num_sweeps", "num_steps"))
def infer(observed, prior, num_sweeps=0, num_steps=32, start=None):
    q = laplace(observed, prior, num_steps=num_steps, start=start)
    return refine(q, observed, prior, num_sweeps=num_sweeps) if num_sweeps else q


def assert_equal(a, b, tolerance=1e-5):
    """Of two posteriors."""
    assert a.converged.all() and b.converged.all()
    for x, y in zip(a[:-1], b[:-1], strict=True):
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance)


def test_mode_curvature_and_evidence_are_those_of_the_log_posterior():
    with jax.enable_x64(True):
        prior, observed = prior_of(D, np.float64), told(0, 12, dtype=np.float64)
        q = infer(observed, prior)
        assert q.converged.all()
        joint = []
        for c in range(2):

            def cost(z, c=c):
                return -log_likelihood(observed, z) - log_prior(prior, z)[c]

            found = optimize.minimize(cost, np.zeros(D), method="BFGS", tol=1e-9)
            np.testing.assert_allclose(q.component_mean[c], found.x, atol=1e-6)
            curvature = jax.hessian(
                lambda z, c=c: (
                    -observed.log_prob(z)
                    + 0.5
                    * jnp.sum(((z - prior.mean[c]) / jnp.exp(prior.log_std[c])) ** 2)
                )
            )(jnp.asarray(found.x))
            np.testing.assert_allclose(
                q.cholesky[c] @ q.cholesky[c].T, curvature, rtol=1e-4
            )
            log_det = np.linalg.slogdet(curvature)[1]
            joint.append(-found.fun + D / 2 * np.log(2 * np.pi) - log_det / 2)
    np.testing.assert_allclose(q.log_evidence, logsumexp(joint), atol=1e-6)
    np.testing.assert_allclose(q.log_weight, joint - logsumexp(joint), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("num_sweeps, tolerance", [(0, 0.15), (4, 4e-3)])
def test_evidence_weights_and_moments_are_integrals(num_sweeps, tolerance):
    z = np.linspace(-12, 12, 20_001)[:, None]
    prior = prior_of(1)
    for seed, n in enumerate((0, 1, 4, 13)):
        observed = told(seed, n, dim=1)
        q = infer(observed, prior, num_sweeps)
        joint = log_prior(prior, z) + log_likelihood(observed, z)
        joint += np.log(z[1, 0] - z[0, 0])
        total = logsumexp(joint)
        np.testing.assert_allclose(q.log_evidence, total, atol=tolerance)
        weights = np.exp(logsumexp(joint, axis=1) - total)
        np.testing.assert_allclose(np.exp(q.log_weight), weights, atol=tolerance)
        p = np.exp(joint - total).sum(axis=0)
        mean = p @ z[:, 0]
        np.testing.assert_allclose(q.mean[0], mean, atol=tolerance)
        std = np.sqrt(p @ (z[:, 0] - mean) ** 2)
        np.testing.assert_allclose(q.std[0], std, atol=tolerance)


@pytest.mark.parametrize("num_sweeps, tolerance", [(0, 0.2), (4, 0.01)])
def test_evidence_and_mean_are_those_of_importance_sampling(num_sweeps, tolerance):
    rng = np.random.default_rng(0)
    prior, observed = prior_of(D), told(5, 9)
    z = prior.mean[:, None] + np.exp(prior.log_std)[:, None] * rng.normal(
        size=(2, 200_000, D)
    )
    weight = np.exp(prior.log_weight - logsumexp(prior.log_weight))
    log_p = np.log(weight)[:, None] + log_likelihood(observed, z)
    total = logsumexp(log_p) - np.log(z.shape[1])
    p = np.exp(log_p - logsumexp(log_p))
    q = infer(observed, prior, num_sweeps)
    np.testing.assert_allclose(q.log_evidence, total, atol=tolerance)
    np.testing.assert_allclose(q.mean, np.einsum("ck,ckd->d", p, z), atol=tolerance)
    np.testing.assert_allclose(np.exp(q.log_weight), p.sum(1), atol=tolerance)


def summary(num_sweeps):
    """A number that depends on everything that is inferred."""

    def of(features, offset, low, high, weight, prior):
        observed = Observations(features, offset, low, high, weight)
        q = laplace(observed, prior, tolerance=1e-6)
        if num_sweeps:
            q = refine(q, observed, prior, num_sweeps=num_sweeps)
        new = jnp.arange(2.0 * D).reshape(2, D) / D - 0.7
        return (
            mixture.predict(q, new, jnp.array([0.1, -0.2])).sum()
            + q.log_evidence
            + jnp.sum(jnp.sin(q.covariance))
        )

    return of


@pytest.mark.parametrize("num_sweeps", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_derivatives_are_those_of_differences(num_sweeps):
    with jax.enable_x64(True):
        prior, observed = prior_of(D, np.float64), told(1, 8, dtype=np.float64)
        # Infinite ends have no differences.
        observed = observed._replace(
            low=jnp.maximum(observed.low, -4), high=jnp.minimum(observed.high, 4)
        )
        of = jax.jit(summary(num_sweeps))
        check_grads(of, (*observed, prior), order=1, modes=["rev"], rtol=1e-5)


@pytest.mark.slow
def test_derivatives_are_those_of_unrolled_steps():
    with jax.enable_x64(True):
        prior, observed = prior_of(D, np.float64), told(2, 8, dtype=np.float64)
        direction = jnp.array([0.3, -1.0, 0.5])

        def unrolled(features, mean, log_std):
            seen = observed._replace(features=features)

            def cost(z):
                return 0.5 * jnp.sum(((z - mean) / jnp.exp(log_std)) ** 2) - (
                    seen.log_prob(z)
                )

            z = mean
            for _ in range(12):
                z -= 0.7 * jnp.linalg.solve(jax.hessian(cost)(z), jax.grad(cost)(z))
            for _ in range(4):
                z -= jnp.linalg.solve(jax.hessian(cost)(z), jax.grad(cost)(z))
            return z @ direction

        def implicit(features, mean, log_std):
            one = Mixture(jnp.zeros(1), mean[None], log_std[None])
            q = laplace(observed._replace(features=features), one)
            return q.component_mean[0] @ direction

        at = observed.features, prior.mean[0], prior.log_std[0]
        expected, found = (
            jax.jit(jax.value_and_grad(f, (0, 1, 2)))(*at) for f in (unrolled, implicit)
        )
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-7)


@pytest.mark.parametrize("num_sweeps", [0, pytest.param(3, marks=pytest.mark.slow)])
def test_order_and_padding_do_not_count(num_sweeps):
    prior, observed = prior_of(D), told(3, 10)
    q = infer(observed, prior, num_sweeps)
    order = np.random.default_rng(0).permutation(10)
    assert_equal(
        infer(Observations(*(x[order] for x in observed)), prior, num_sweeps), q
    )
    rubbish = told(4, 6)._replace(weight=jnp.zeros(6))
    padded = Observations(
        *(jnp.concatenate(pair) for pair in zip(observed, rubbish, strict=True))
    )
    assert_equal(infer(padded, prior, num_sweeps), q)


@pytest.mark.slow
def test_weight_two_is_the_observation_twice():
    prior, observed = prior_of(D), told(3, 10)
    twice = Observations(*(jnp.concatenate([x, x]) for x in observed))
    double = observed._replace(weight=2 * observed.weight)
    assert_equal(infer(double, prior), infer(twice, prior))
    # Sweeps take it as one factor instead of two.
    one, two = (infer(x, prior, 3) for x in (double, twice))
    np.testing.assert_allclose(one.mean, two.mean, atol=0.01)
    np.testing.assert_allclose(one.log_evidence, two.log_evidence, atol=0.02)


@pytest.mark.parametrize("num_sweeps", [0, pytest.param(3, marks=pytest.mark.slow)])
def test_who_has_told_nothing_has_the_prior(num_sweeps):
    prior = prior_of(D)
    expected = mixture.of_prior(prior)
    assert_equal(infer(told(0, 0), prior, num_sweeps), expected, 1e-6)
    nothing = told(0, 4)._replace(weight=jnp.zeros(4))
    assert_equal(infer(nothing, prior, num_sweeps), expected, 1e-6)


@pytest.mark.slow
def test_half_precision_becomes_float32_and_float64_stays():
    low = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), prior_of(D))
    q = infer(told(0, 5, dtype=jnp.bfloat16), low, 2)
    assert {x.dtype.name for x in q} == {"float32", "bool"}
    with jax.enable_x64(True):
        q = infer(told(0, 5, dtype=np.float64), prior_of(D, np.float64), 2)
        assert {x.dtype.name for x in q} == {"float64", "bool"}


def chosen(key, n, scale, dim=8):
    """Choices of a person who is drawn from N(0, I)."""
    keys = jax.random.split(key, 3)
    features = scale * jax.random.normal(keys[0], (n, dim))
    u = features @ jax.random.normal(keys[1], (dim,))
    wins = u + jax.random.logistic(keys[2], (n,)) > 0
    return Observations.of(
        jnp.where(wins[:, None], features, -features), jnp.zeros(n), jnp.ones(n)
    )


@pytest.mark.parametrize("n", [pytest.param(3, marks=pytest.mark.slow), 100])
def test_twelve_newton_steps_suffice_for_everybody(n):
    standard = Mixture(jnp.zeros(1), jnp.zeros((1, 8)), jnp.zeros((1, 8)))

    @jax.jit
    @jax.vmap
    def converged(key, scale):
        return laplace(chosen(key, n, scale), standard, num_steps=12).converged

    keys = jax.random.split(jax.random.key(n), 192)
    assert converged(keys, jnp.repeat(jnp.array([0.3, 1, 3, 5]), 48)).all()


def hard_cases():
    """Observations `[300]` of what an approximation might fail at, by name."""
    rng = np.random.default_rng(0)
    n, ones = 300, jnp.ones(300)
    unit = jnp.asarray(rng.normal(size=(n, D)), jnp.float32)
    zeros = jnp.zeros(n)
    z = jnp.array([1.0, -2.0, 0.5])
    steep = 10 * unit * jnp.sign(unit @ z)[:, None]
    one = jnp.broadcast_to(10 * unit[:1], (n, D))
    few = jnp.where(jnp.arange(n) < 2, 1.0, 0.0)
    level = jnp.clip(jnp.floor(unit @ z), -2, 1)
    return {
        "steep": Observations.of(steep, zeros, ones),
        "one steep": Observations.of(steep, zeros, few / 2),
        "contradictory": Observations.of(10 * unit, zeros, ones),
        "two that contradict": Observations.of(
            one * jnp.where(jnp.arange(n) % 2, 1, -1)[:, None], zeros, few
        ),
        "duplicates": Observations.of(one, zeros, ones),
        "heavy": Observations.of(one, zeros, 1000 * few),
        "narrow ties": Observations.of(10 * unit, zeros, ones, low=-0.01, high=0.01),
        "one narrow tie": Observations.of(one, zeros, few / 2, low=-0.01, high=0.01),
        "far offset": Observations.of(one, zeros - 300, few),
        "an option with itself": Observations.of(0 * unit, zeros, ones),
        "ratings": Observations.of(
            unit,
            zeros,
            ones,
            low=jnp.where(level == -2, -jnp.inf, level),
            high=jnp.where(level == 1, jnp.inf, level + 1),
        ),
    }


@pytest.mark.slow
def test_sweeps_are_safe_where_observations_are_hard():
    prior = prior_of(D)
    cases = hard_cases()
    observed = jax.tree.map(lambda *x: jnp.stack(x), *cases.values())

    def result(observed, num_sweeps):
        q = laplace(observed, prior)
        q = refine(q, observed, prior, num_sweeps=num_sweeps)
        return q.log_evidence, q

    @jax.jit
    @jax.vmap
    def slopes_and_many(observed):
        (_, few), slope = jax.value_and_grad(result, has_aux=True)(observed, 3)
        return few, slope, *(result(observed, k)[1] for k in (15, 16))

    few, slope, many, next_to_many = slopes_and_many(observed)
    for case, name in enumerate(cases):
        for q in (few, many):
            one = jax.tree.map(lambda x, case=case: x[case], q)
            assert all(np.isfinite(x).all() for x in one), name
            assert one.converged.all(), name
            # No observation of ours widens a Gaussian.
            inverse = np.exp(-prior.log_std)
            widths = jax.vmap(lambda c: jnp.linalg.inv(c @ c.T))(one.cholesky)
            widths = np.diagonal(widths, axis1=1, axis2=2)
            assert (widths * inverse**2 < 1.001).all(), name
        for x in (slope.features, slope.offset, slope.weight):
            assert np.isfinite(x[case]).all(), name
        # Sweeps settle: nothing swings.
        np.testing.assert_allclose(
            many.mean[case], next_to_many.mean[case], atol=0.02, err_msg=name
        )


@pytest.mark.parametrize("scale", [3.0, 20.0])
def test_one_observation_in_one_dimension_has_exact_moments(scale):
    # One factor is all that there is, so sweeps have nothing to approximate.
    z = np.linspace(-9, 9, 100_001)[:, None]
    prior = Mixture(np.zeros(1, np.float32), np.zeros((1, 1)), np.zeros((1, 1)))
    for low, high in ((0, np.inf), (-0.01, 0.01), (1, 4)):
        observed = Observations.of(
            jnp.full((1, 1), scale),
            jnp.full(1, -scale),
            jnp.ones(1),
            low=low,
            high=high,
        )
        q = infer(observed, prior, 6)
        joint = log_prior(prior, z)[0] + log_likelihood(observed, z)
        total = logsumexp(joint)
        p = np.exp(joint - total)
        mean = p @ z[:, 0]
        std = np.sqrt(p @ (z[:, 0] - mean) ** 2)
        np.testing.assert_allclose(q.mean[0], mean, atol=2e-3 * std)
        np.testing.assert_allclose(q.std[0], std, rtol=2e-3)
        np.testing.assert_allclose(
            q.log_evidence, total + np.log(z[1, 0] - z[0, 0]), atol=2e-3
        )


def test_one_more_choice_from_the_last_mode_is_the_batch_whatever_the_order():
    prior, observed = prior_of(D), told(7, 4)
    batch = infer(observed, prior)
    for order in itertools.permutations(range(4)):
        start, weight = None, np.zeros(4, np.float32)
        for i in order:
            weight[i] = observed.weight[i]
            one_more = observed._replace(weight=jnp.asarray(weight))
            start = infer(one_more, prior, start=start).component_mean
        assert_equal(infer(observed, prior, start=start), batch, 1e-5)


@pytest.mark.slow
def test_a_warm_start_needs_fewer_steps():
    standard = Mixture(jnp.zeros(1), jnp.zeros((1, 8)), jnp.zeros((1, 8)))

    @jax.jit
    @jax.vmap
    def arrived(key):
        observed = chosen(key, 30, 1.0)
        before = observed._replace(weight=observed.weight.at[-1].set(0))
        start = laplace(before, standard).component_mean
        found = [
            laplace(observed, standard, num_steps=2, start=s).converged
            for s in (None, start)
        ]
        return jnp.concatenate(found)

    cold, warm = arrived(jax.random.split(jax.random.key(0), 64)).T
    assert warm.mean() > 0.8
    assert cold.mean() < 0.05


@pytest.mark.slow
def test_blocks_change_nothing(monkeypatch):
    prior, observed = prior_of(D), told(8, 50)

    def run(block):
        monkeypatch.setattr(blocks, "split", functools.partial(split, block=block))

        def result(features):
            seen = observed._replace(features=features)
            q = refine(laplace(seen, prior), seen, prior, num_sweeps=2)
            return q.log_evidence + q.mean.sum(), q

        (_, q), slope = jax.jit(jax.value_and_grad(result, has_aux=True))(
            observed.features
        )
        return q, slope

    split = blocks.split
    (whole, slope), (parts, other) = run(50), run(16)
    assert_equal(whole, parts)
    np.testing.assert_allclose(slope, other, atol=1e-5)


@pytest.mark.slow
def test_memory_does_not_grow_with_what_is_computed_for_each_observation():
    def temporary(n):
        arguments = jax.eval_shape(lambda: told(0, 1)), prior_of(D)
        observed = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((n, *x.shape[1:]), x.dtype), arguments[0]
        )
        compiled = infer.lower(observed, arguments[1], num_sweeps=3).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    few, many = 10 * blocks.BLOCK, 50 * blocks.BLOCK
    growth = (temporary(many) - temporary(few)) / (many - few)
    # Bytes an observation: a padded copy and two numbers for each factor and component,
    # where one array of quadrature points has 200.
    assert growth < 120
