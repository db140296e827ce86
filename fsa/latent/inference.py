"""Bayesian inference of a person's z from observations of linear utilities.

The prior is a mixture of C diagonal Gaussians. Given observations, the log posterior
of each component is concave in z: Newton steps find its mode, and the curvature there
gives a Gaussian (Laplace's approximation; MacKay 2003, chapter 27). `refine` improves
mean, covariance and evidence by expectation propagation (Minka 2001), which matches
moments of each observation in place of the curvature at the mode. Both are
differentiable by everything that they are given.

Functions take one unbatched person; callers `jax.vmap` over people.

Shapes: N observations, C components, D latent dimensions, Q quadrature points. Inside,
observations are blocked, see `fsa.latent.blocks`.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp

from fsa.latent import blocks, observations, small_matrices
from fsa.latent.gaussian import at_least_float32
from fsa.latent.mixture import (
    Mixture,
    Posterior,
    half_log_det,
    quadrature,
    variance,
)
from fsa.latent.observations import Observations

# Shares of a Newton step that are tried.
_SHARES = 0.5 ** np.arange(6)


def laplace(
    observed: Observations,
    prior: Mixture,
    *,
    num_steps: int = 32,
    start: jax.Array | None = None,
    tolerance: float = 1e-3,
) -> Posterior:
    """Approximates the posterior by a Gaussian at the mode of each component.

    The log-evidence of a component is that of Laplace's approximation,

        log p(observed | z) + log N(z; m, s^2) + D/2 log 2 pi - 1/2 log det H

    at the mode z, with H minus the second derivative of the first two terms.
    Derivatives of the mode are those of the implicit function theorem, so memory does
    not grow with the number of steps.

    Args:
      observed: of N observations.
      prior: of C components over `[D]`.
      num_steps: the most Newton steps; they end once they have converged.
      start: `[C, D]`, where they begin, such as the modes before the last observation;
        by default the means of the prior.
      tolerance: steps have converged if another one would move z by less than this, in
        standard deviations of the posterior.
    """
    chex.assert_rank([prior.log_weight, prior.mean, prior.log_std], [1, 2, 2])
    chex.assert_equal_shape([prior.mean, prior.log_std])
    chex.assert_equal(observed.features.shape[-1], prior.mean.shape[-1])
    prior = jax.tree.map(at_least_float32, prior)
    start = prior.mean if start is None else at_least_float32(start)
    observed = _blocked(observed)

    def component(mean, log_std, z):
        precision = jnp.exp(-2 * log_std)
        find = jax.lax.stop_gradient((observed, mean, precision))
        z = _newton(*find, jax.lax.stop_gradient(z), num_steps, tolerance)
        # One more step, of which only the slope is differentiated, has the derivatives
        # of the mode: H dz = d slope.
        slope, _ = _derivatives(observed, mean, precision, z)
        _, hessian = _derivatives(*find, z)
        step = _solve(small_matrices.cholesky(hessian)[1], slope)
        converged = step @ slope < tolerance**2
        # A full step is only right at the mode.
        z += jnp.where(converged, step, step - jax.lax.stop_gradient(step))
        _, hessian = _derivatives(observed, mean, precision, z)
        cholesky, inverse = small_matrices.cholesky(hessian)
        evidence = (
            blocks.total(lambda block: block.log_prob(z), observed)
            - 0.5 * jnp.sum(precision * (z - mean) ** 2)
            - jnp.sum(log_std)
            - half_log_det(cholesky)
        )
        return z, cholesky, inverse, evidence, converged

    found = jax.vmap(component)(
        prior.mean, prior.log_std, jnp.broadcast_to(start, prior.mean.shape)
    )
    return _mixed(prior, *found)


def _blocked(observed: Observations) -> Observations:
    """Splits observations into blocks; padding gets an interval of some probability."""
    observed = blocks.split(observed)
    real = observed.weight > 0
    return observed._replace(
        low=jnp.where(real, observed.low, 0),
        high=jnp.where(real, observed.high, jnp.inf),
    )


def _mixed(prior: Mixture, mean, cholesky, inverse, evidence, converged) -> Posterior:
    """Weighs components by their evidence `[C]`."""
    joint = jax.nn.log_softmax(prior.log_weight) + evidence
    total = logsumexp(joint)
    return Posterior(joint - total, mean, cholesky, inverse, total, converged)


def _derivatives(
    observed: Observations, mean, precision, z
) -> tuple[jax.Array, jax.Array]:
    """Returns slope `[D]` and minus the curvature `[D, D]` of the log posterior."""

    def of_block(block):
        slope, curvature = observations.slope_and_curvature(
            block.utility(z), block.low, block.high
        )
        features, weight = block.features, block.weight
        return features.T @ (weight * slope), (
            features.T * weight * curvature
        ) @ features

    slope, hessian = blocks.total(of_block, observed)
    return slope - precision * (z - mean), hessian + jnp.diag(precision)


def _newton(observed, mean, precision, z, num_steps, tolerance) -> jax.Array:
    """Climbs to the mode by damped Newton steps."""

    def unfinished(state):
        count, _, left = state
        return (count < num_steps) & (left >= tolerance**2)

    def move(state):
        count, z, _ = state
        slope, hessian = _derivatives(observed, mean, precision, z)
        step = _solve(small_matrices.cholesky(hessian)[1], slope)
        share = _share(observed, mean, precision, z, step)
        return count + 1, z + share * step, step @ slope

    left = jnp.full((), jnp.inf, z.dtype)
    return jax.lax.while_loop(unfinished, move, (0, z, left))[1]


def _share(observed, mean, precision, z, step) -> jax.Array:
    """Returns how much of a Newton step to go, such that the posterior does not fall.

    It is the largest tried share at which the way still leads upwards. One that is safe
    untried, by which every step ends as Newton's do, follows from this: the third
    derivative by u of a log-likelihood of ours is at most its second. So where no
    utility moves by more than d, the whole step is safe for d up to 1, else log(1 + d)
    / d of it (Sun & Tran-Dinh 2019, theorem 2).
    """
    tried = jnp.asarray(_SHARES, z.dtype)

    def of_block(block):
        u, moved = block.utility(z), block.features @ step
        slope, _ = observations.slope_and_curvature(
            u + tried[:, None] * moved, block.low, block.high
        )
        return slope @ (block.weight * moved)

    here = jnp.sum(precision * (z - mean) * step)
    upwards = blocks.total(of_block, observed) - here
    upwards -= tried * jnp.sum(precision * step**2)
    moved = jnp.abs(observed.features @ step) * (observed.weight > 0)
    most = jnp.maximum(jnp.max(moved, initial=0), 1)
    safe = jnp.where(most > 1, jnp.log1p(most) / most, 1)
    return jnp.maximum(safe, jnp.max(jnp.where(upwards >= 0, tried, 0)))


def refine(
    posterior: Posterior, observed: Observations, prior: Mixture, *, num_sweeps: int = 2
) -> Posterior:
    """Improves each component's Gaussian by expectation propagation.

    Each observation is a factor of u alone. It is approximated by a Gaussian one, such
    that the product of that with the other factors has the mean and the variance of u
    that it has with the observation itself (Minka 2001; Rasmussen & Williams 2006,
    section 3.6). All factors change at once in a sweep; the first ones are those of the
    curvature at the mode. Once a sweep changes them by as much as the one before, this
    and later ones go only half of the way, a quarter and so on.

    Args:
      posterior: what `laplace` returned for the same arguments.
      observed: of N observations.
      prior: of C components over `[D]`.
      num_sweeps: number of sweeps.
    """
    prior = jax.tree.map(at_least_float32, prior)
    observed = _blocked(observed)

    def component(mean, log_std, mode):
        precision = jnp.exp(-2 * log_std)

        def sweep(state, _):
            factors, last, rate = state
            q_mean, _, inverse = _with_factors(observed, mean, precision, factors)
            matched = blocks.each(
                lambda block: _match_moments(*block, q_mean, inverse),
                (observed, factors),
            )
            # Many observations of one utility overshoot together, and would swing.
            change = jax.lax.stop_gradient(_change(factors, matched))
            rate = jnp.where(change > 0.9 * last, rate / 2, rate)
            factors = jax.tree.map(
                lambda old, new: old + rate * (new - old), factors, matched
            )
            return (factors, change, rate), None

        factors = blocks.each(lambda block: _at_mode(block, mode), observed)
        first = factors, jnp.asarray(jnp.inf, mode.dtype), jnp.ones((), mode.dtype)
        (factors, _, _), _ = jax.lax.scan(sweep, first, length=num_sweeps)
        q_mean, cholesky, inverse = _with_factors(observed, mean, precision, factors)
        # The integral of the prior times all factors, each scaled to have with the
        # others the mass that its observation has with them.
        evidence = (
            blocks.total(
                lambda block: _log_scaled(*block, q_mean, inverse), (observed, factors)
            )
            - 0.5 * jnp.sum(precision * (q_mean - mean) ** 2)
            - jnp.sum(log_std)
            - half_log_det(cholesky)
        )
        return q_mean, cholesky, inverse, evidence

    found = jax.vmap(component)(prior.mean, prior.log_std, posterior.component_mean)
    return _mixed(prior, *found, posterior.converged)


def _change(factors, others) -> jax.Array:
    """Returns how much the precisions of factors differ, relative to their sum."""
    old, new = factors[0], others[0]
    total = jnp.sum(old)
    return jnp.sum(jnp.abs(new - old)) / jnp.where(total > 0, total, 1)


def _at_mode(observed: Observations, mode):
    """Returns the Gaussian factors that have the slope and curvature at the mode.

    A factor is exp(-t u^2 / 2 + v u), with (t, v) `[N]` each.
    """
    u = observed.utility(mode)
    slope, curvature = observations.slope_and_curvature(u, observed.low, observed.high)
    return observed.weight * curvature, observed.weight * (slope + curvature * u)


def _with_factors(observed, mean, precision, factors):
    """Returns mean, Cholesky factor and its inverse of the prior times the factors."""

    def of_block(block):
        observed, (t, v) = block
        features = observed.features
        return (features.T * t) @ features, features.T @ (v - t * observed.offset)

    hessian, right = blocks.total(of_block, (observed, factors))
    cholesky, inverse = small_matrices.cholesky(hessian + jnp.diag(precision))
    return _solve(inverse, right + precision * mean), cholesky, inverse


def _solve(inverse: jax.Array, right: jax.Array) -> jax.Array:
    """Solves for the matrix whose Cholesky factor has this inverse."""
    return (inverse @ right) @ inverse


def _log_factor(factors, u):
    t, v = factors
    return v * u - 0.5 * t * u**2


def _tilted(observed: Observations, factors, mean, inverse):
    """Puts each observation in the place of its own factor.

    Returns:
      `[N]` each: mean and standard deviation of u with the factor; the log of the
      mass, relative to that, with the observation; mean and variance with it, of u
      in standard deviations from the mean.
    """
    m = observed.utility(mean)
    s = jnp.sqrt(variance(observed.features, inverse))
    # Placed by the Gaussian with the factor: that without may be far wider than the
    # observation, and none of its quadrature points near.
    nodes, log_weights = quadrature(m, s, observed.low, observed.high)
    u = m[:, None] + s[:, None] * nodes
    log_p = observations.log_prob(u, observed.low[:, None], observed.high[:, None])
    t, v = factors
    log_factor = _log_factor((t[:, None], v[:, None]), u)
    joint = log_weights + observed.weight[:, None] * log_p - log_factor
    mass = logsumexp(joint, axis=1)
    p = jnp.exp(joint - mass[:, None])
    moved = jnp.sum(p * nodes, axis=1)
    spread = jnp.sum(p * (nodes - moved[:, None]) ** 2, axis=1)
    return m, s, mass, moved, spread


def _match_moments(observed: Observations, factors, mean, inverse):
    t, v = factors
    m, s, _, moved, spread = _tilted(observed, factors, mean, inverse)
    # The curvature of what a factor stands for is between 0 and this, and so is its
    # precision: then the product of the other factors is a Gaussian as well.
    most = 0.25 * observed.weight * observations.num_ends(observed.low, observed.high)
    new_t = jnp.clip(t + (1 / spread - 1) / s**2, 0, most)
    # Such that the mean is matched whatever the precision.
    new_v = v + moved / s + (m + s * moved) * (new_t - t)
    real = observed.weight > 0
    return jnp.where(real, new_t, 0), jnp.where(real, new_v, 0)


def _log_scaled(observed: Observations, factors, mean, inverse):
    """Returns the log of all factors at the mean, scaled to observations' masses."""
    m, _, mass, _, _ = _tilted(observed, factors, mean, inverse)
    real = observed.weight > 0
    return jnp.sum(jnp.where(real, _log_factor(factors, m) + mass, 0))
