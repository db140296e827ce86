"""Bayesian inference of a person's z from observations of linear utilities.

The prior is a mixture of C diagonal Gaussians. Given observations, the log posterior
of each component is concave in z: Newton steps find its mode, and the curvature there
gives a Gaussian (Laplace's approximation; MacKay 2003, chapter 27). `refine` improves
mean, covariance and evidence by expectation propagation (Minka 2001), which matches
moments of each observation in place of the curvature at the mode. Both are
differentiable by everything that they are given.

Functions take one unbatched person; callers `jax.vmap` over people.

Shapes: N observations, C components, D latent dimensions.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import cho_solve
from jax.scipy.special import logsumexp

from fsa.latent import observations
from fsa.latent.gaussian import at_least_float32
from fsa.latent.mixture import Mixture, Posterior, half_log_det, quadrature, variance
from fsa.latent.observations import Observations

# A Newton step changes no utility by more than this, so that it stays where the
# curvature that it was computed from still tells something.
_TRUST = 3.0
# Shares of a Newton step that the line search tries.
_SHARES = np.array([1.0, 0.5, 0.25, 0.0625])


def laplace(
    observed: Observations,
    prior: Mixture,
    *,
    num_steps: int = 8,
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
      num_steps: number of Newton steps.
      start: `[C, D]`, where they begin, such as the modes before the last observation;
        by default the means of the prior.
      tolerance: steps have converged if another one would move z by less than this, in
        standard deviations of the posterior.
    """
    chex.assert_rank([prior.log_weight, prior.mean, prior.log_std], [1, 2, 2])
    chex.assert_equal_shape([prior.mean, prior.log_std])
    chex.assert_equal(observed.features.shape[-1], prior.mean.shape[-1])
    prior = jax.tree.map(at_least_float32, prior)
    start = prior.mean if start is None else start

    def component(mean, log_std, z):
        precision = jnp.exp(-2 * log_std)
        find = jax.lax.stop_gradient((observed, mean, precision))
        z = jax.lax.fori_loop(
            0, num_steps, lambda _, z: _newton_step(*find, z), jax.lax.stop_gradient(z)
        )
        # One more step, of which only the slope is differentiated, has the derivatives
        # of the mode: H dz = d slope.
        slope, _ = _derivatives(observed, mean, precision, z)
        _, hessian = _derivatives(*find, z)
        step = cho_solve((jnp.linalg.cholesky(hessian), True), slope)
        converged = step @ hessian @ step < tolerance**2
        # A full step is only right at the mode.
        z += jnp.where(converged, step, step - jax.lax.stop_gradient(step))
        _, hessian = _derivatives(observed, mean, precision, z)
        cholesky = jnp.linalg.cholesky(hessian)
        evidence = (
            _log_joint(observed, mean, precision, z)
            - jnp.sum(log_std)
            - half_log_det(cholesky)
        )
        return z, cholesky, evidence, converged

    mode, cholesky, evidence, converged = jax.vmap(component)(
        prior.mean, prior.log_std, jnp.broadcast_to(start, prior.mean.shape)
    )
    return _mixed(prior, mode, cholesky, evidence, converged)


def _mixed(prior: Mixture, mean, cholesky, evidence, converged) -> Posterior:
    """Weighs components by their evidence `[C]`."""
    joint = jax.nn.log_softmax(prior.log_weight) + evidence
    total = logsumexp(joint)
    return Posterior(joint - total, mean, cholesky, total, converged)


def _log_joint(observed: Observations, mean, precision, z) -> jax.Array:
    """Returns the log posterior of one component, up to what only the prior decides."""
    return observed.log_prob(z) - 0.5 * jnp.sum(precision * (z - mean) ** 2)


def _derivatives(
    observed: Observations, mean, precision, z
) -> tuple[jax.Array, jax.Array]:
    """Returns the slope `[D]` and minus the curvature `[D, D]` of `_log_joint`."""
    slope, curvature = observations.slope_and_curvature(
        observed.utility(z), observed.low, observed.high
    )
    features = observed.features
    hessian = (features.T * (observed.weight * curvature)) @ features
    return (
        features.T @ (observed.weight * slope) - precision * (z - mean),
        hessian + jnp.diag(precision),
    )


def _newton_step(observed: Observations, mean, precision, z) -> jax.Array:
    """Moves z towards the mode; the log posterior never falls."""
    slope, hessian = _derivatives(observed, mean, precision, z)
    step = cho_solve((jnp.linalg.cholesky(hessian), True), slope)
    moved = jnp.max(
        jnp.abs(observed.features @ step) * (observed.weight > 0), initial=0
    )
    step *= jnp.minimum(1.0, _TRUST / jnp.maximum(moved, 1e-12))
    tried = z + jnp.append(_SHARES, 0.0)[:, None].astype(z.dtype) * step
    values = jax.vmap(lambda z: _log_joint(observed, mean, precision, z))(tried)
    return tried[jnp.argmax(values)]


def refine(
    posterior: Posterior, observed: Observations, prior: Mixture, *, num_sweeps: int = 3
) -> Posterior:
    """Improves each component's Gaussian by expectation propagation.

    Each observation is a factor of u alone. It is approximated by a Gaussian one, such
    that the product of that with the other factors has the mean and the variance of u
    that it has with the observation itself (Minka 2001; Rasmussen & Williams 2006,
    section 3.6). All factors change at once in a sweep; the first ones are those of the
    curvature at the mode.

    Args:
      posterior: what `laplace` returned for the same arguments.
      observed: of N observations.
      prior: of C components over `[D]`.
      num_sweeps: number of sweeps.
    """
    prior = jax.tree.map(at_least_float32, prior)

    def component(mean, log_std, mode):
        precision = jnp.exp(-2 * log_std)
        u = observed.utility(mode)
        slope, curvature = observations.slope_and_curvature(
            u, observed.low, observed.high
        )
        factors = observed.weight * curvature, observed.weight * (slope + curvature * u)
        for _ in range(num_sweeps):
            q_mean, cholesky = _with_factors(observed, mean, precision, factors)
            factors = _match_moments(observed, q_mean, cholesky, factors)
        q_mean, cholesky = _with_factors(observed, mean, precision, factors)
        evidence = _ep_evidence(observed, mean, precision, q_mean, cholesky, factors)
        return q_mean, cholesky, evidence

    found = jax.vmap(component)(prior.mean, prior.log_std, posterior.component_mean)
    return _mixed(prior, *found, posterior.converged)


def _with_factors(observed, mean, precision, factors):
    """Returns mean and Cholesky factor of the prior times Gaussian factors of u.

    A factor is exp(-t u^2 / 2 + v u), with (t, v) `[N]` each.
    """
    t, v = factors
    features = observed.features
    cholesky = jnp.linalg.cholesky((features.T * t) @ features + jnp.diag(precision))
    right = features.T @ (v - t * observed.offset) + precision * mean
    return cho_solve((cholesky, True), right), cholesky


def _moments_of_u(observed: Observations, mean, cholesky):
    """Returns mean and variance `[N]` of the utilities under a Gaussian of z."""
    return observed.utility(mean), variance(observed.features, cholesky)


def _cavity(observed, mean, cholesky, factors):
    """Returns mean and variance `[N]` of each u without its own factor."""
    t, v = factors
    m, s2 = _moments_of_u(observed, mean, cholesky)
    without = jnp.maximum(1 / s2 - t, 1e-6)
    return (m / s2 - v) / without, 1 / without


def _tilted(observed: Observations, m, s2):
    """Returns normaliser's log, mean, variance `[N]` of N(u; m, s2) p(observed | u)."""
    nodes, log_weights = quadrature()
    u = m[:, None] + jnp.sqrt(s2)[:, None] * nodes
    log_p = observations.log_prob(u, observed.low[:, None], observed.high[:, None])
    joint = log_weights + observed.weight[:, None] * log_p
    total = logsumexp(joint, axis=1)
    p = jnp.exp(joint - total[:, None])
    mean = jnp.sum(p * u, axis=1)
    return total, mean, jnp.sum(p * (u - mean[:, None]) ** 2, axis=1)


def _match_moments(observed, mean, cholesky, factors):
    m, s2 = _cavity(observed, mean, cholesky, factors)
    _, tilted_mean, tilted_variance = _tilted(observed, m, s2)
    # A concave log-likelihood narrows every Gaussian; quadrature errs a little.
    t = jnp.maximum(1 / tilted_variance - 1 / s2, 0)
    v = tilted_mean * (t + 1 / s2) - m / s2
    real = observed.weight > 0
    return jnp.where(real, t, 0), jnp.where(real, v, 0)


def _ep_evidence(observed, mean, precision, q_mean, cholesky, factors):
    """Returns the log-evidence, see Rasmussen & Williams 2006, equation 3.65."""
    t, v = factors
    m, s2 = _cavity(observed, q_mean, cholesky, factors)
    log_z, _, _ = _tilted(observed, m, s2)
    # log of the normaliser of N(u; m, s2) exp(-t u^2 / 2 + v u).
    narrowed = 1 + t * s2
    log_gauss = (
        -0.5 * jnp.log(narrowed) + (v * m + 0.5 * v**2 * s2 - 0.5 * t * m**2) / narrowed
    )
    # log of the integral of the prior times all Gaussian factors.
    u = observed.utility(q_mean)
    log_all = (
        jnp.sum(v * u - 0.5 * t * u**2)
        - 0.5 * jnp.sum(precision * (q_mean - mean) ** 2)
        + 0.5 * jnp.sum(jnp.log(precision))
        - half_log_det(cholesky)
    )
    return log_all + jnp.sum(jnp.where(observed.weight > 0, log_z - log_gauss, 0))
