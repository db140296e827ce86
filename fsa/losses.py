"""Choice likelihoods, few-shot objectives and scores, as pure functions.

Each function takes one unbatched example and returns one value that is not averaged:
callers `jax.vmap` over users and take their own means. All log-probabilities are in
nats, computed and returned in at least float32. A wrong shape or type is refused by
`chex` when the function is traced.

Shapes: M target choices, K samples of the latent z, D latent dimensions, P predictions,
and `...` for any axes. Masks are true where a choice is real and false where it is
padding.
"""

import chex
import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp
from jax.scipy.stats import norm

from fsa import latent
from fsa.latent import DiagonalGaussian, at_least_float32


def btl_log_prob(chosen_reward: jax.Array, rejected_reward: jax.Array) -> jax.Array:
    """Returns the log-probability of a choice under Bradley-Terry-Luce.

        log p(a > b) = log sigmoid(r(a) - r(b))

    (Bradley & Terry 1952; Kobalczyk et al. 2024, equation 1).

    Args:
      chosen_reward: `[...]`.
      rejected_reward: `[...]`, broadcast against `chosen_reward`.

    Returns:
      `[...]`, at most 0; linear in the reward gap where the choice is unlikely.
    """
    gap = at_least_float32(chosen_reward) - at_least_float32(rejected_reward)
    return jax.nn.log_sigmoid(gap)


def dpl_log_prob(
    chosen_mean: jax.Array,
    chosen_std: jax.Array,
    rejected_mean: jax.Array,
    rejected_std: jax.Array,
) -> jax.Array:
    """Returns the log-probability of a choice when utilities are Gaussian.

        log p(a > b) = log Phi((m_a - m_b) / sqrt(s_a^2 + s_b^2))

    with the exact normal CDF Phi: the mean and variance form of distributional
    preference learning (Siththaranjan et al. 2023).

    Args:
      chosen_mean: `[...]`.
      chosen_std: of the shape of `chosen_mean`, positive.
      rejected_mean: `[...]`, broadcast against `chosen_mean`.
      rejected_std: of the shape of `rejected_mean`, positive.

    Returns:
      `[...]`, at most 0.
    """
    chex.assert_equal_shape([chosen_mean, chosen_std])
    chex.assert_equal_shape([rejected_mean, rejected_std])
    gap = at_least_float32(chosen_mean) - at_least_float32(rejected_mean)
    scale = jnp.hypot(at_least_float32(chosen_std), at_least_float32(rejected_std))
    return _log_normal_cdf(gap / scale)


@jax.custom_jvp
def _log_normal_cdf(x: jax.Array) -> jax.Array:
    """Returns log Phi(x), with a derivative that is exact far in the lower tail, too.

    JAX's own derivative, exp(log pdf - log cdf), cancels there: at -1e4 it is 58% off.
    """
    return norm.logcdf(x)


@_log_normal_cdf.defjvp
def _log_normal_cdf_jvp(primals, tangents):
    (x,), (tangent,) = primals, tangents
    value = _log_normal_cdf(x)
    # The inverse Mills ratio pdf / cdf; below -20 by its asymptotic series.
    far = jnp.minimum(x, -20.0)
    square = far**-2
    tail = -far / (1 - square * (1 - 3 * square))
    near = jnp.exp(norm.logpdf(jnp.maximum(x, -20.0)) - jnp.maximum(value, -205.0))
    return value, tangent * jnp.where(x < -20.0, tail, near)


def dpo(
    chosen_log_ratio: jax.Array,
    rejected_log_ratio: jax.Array,
    *,
    beta: float,
    label_smoothing: float = 0.0,
) -> jax.Array:
    """Returns the loss of direct preference optimisation (Rafailov et al. 2023, eq. 7).

        -log sigmoid(beta * (log pi(y_w)/pi_ref(y_w) - log pi(y_l)/pi_ref(y_l)))

    For a policy conditioned on z it is the objective of Kobalczyk et al. 2024,
    equation 9.

    Args:
      chosen_log_ratio: `[...]`, `log pi(y_w | x, z) - log pi_ref(y_w | x)`, each summed
        over the response's tokens.
      rejected_log_ratio: `[...]`, the same of y_l.
      beta: the weight of the KL to the reference; beta times a log ratio is the
        implicit reward.
      label_smoothing: the share of choices that are assumed to be reversed by noise
        (Mitchell 2023, equation 3), below 1/2.

    Returns:
      `[...]`, in nats.
    """
    chex.assert_equal_shape([chosen_log_ratio, rejected_log_ratio])
    margin = beta * (
        at_least_float32(chosen_log_ratio) - at_least_float32(rejected_log_ratio)
    )
    right, wrong = jax.nn.log_sigmoid(margin), jax.nn.log_sigmoid(-margin)
    return -(1 - label_smoothing) * right - label_smoothing * wrong


def distillation(
    first_log_ratio: jax.Array,
    second_log_ratio: jax.Array,
    reward_gap: jax.Array,
    *,
    beta: float,
    clip: float = jnp.inf,
) -> jax.Array:
    """Returns the loss of regressing the implicit reward onto a reward.

        (beta * (log pi(a)/pi_ref(a) - log pi(b)/pi_ref(b)) - (r(a) - r(b)))^2

    (Fisch et al. 2024, equation 7; REBEL, Gao et al. 2024, algorithm 1). It is 0 at the
    solution of the objective that beta weighs, pi proportional to pi_ref exp(r / beta).

    Args:
      first_log_ratio: `[...]`, `log pi(a | x, z) - log pi_ref(a | x)`.
      second_log_ratio: `[...]`, the same of b.
      reward_gap: `[...]`, r(a, z) - r(b, z), in units of the caller's choice.
      beta: see `dpo`.
      clip: the largest gap that is asked for. People who choose without noise make
        gaps grow without bound.

    Returns:
      `[...]`.
    """
    chex.assert_equal_shape([first_log_ratio, second_log_ratio, reward_gap])
    margin = beta * (
        at_least_float32(first_log_ratio) - at_least_float32(second_log_ratio)
    )
    return (margin - jnp.clip(at_least_float32(reward_gap), -clip, clip)) ** 2


def ipo(
    chosen_log_ratio: jax.Array, rejected_log_ratio: jax.Array, *, beta: float
) -> jax.Array:
    """Returns the loss of identity preference optimisation (Azar et al. 2023, eq. 17).

        (h - 1 / (2 beta))^2

    with h the gap between the log ratios. Its minimum is at a finite gap, whereas `dpo`
    falls with every wider gap.

    Args:
      chosen_log_ratio: `[...]`, see `dpo`.
      rejected_log_ratio: `[...]`.
      beta: tau of the paper.

    Returns:
      `[...]`.
    """
    chex.assert_equal_shape([chosen_log_ratio, rejected_log_ratio])
    gap = at_least_float32(chosen_log_ratio) - at_least_float32(rejected_log_ratio)
    return (gap - 1 / (2 * beta)) ** 2


def joint_log_likelihood(log_probs: jax.Array, mask: jax.Array) -> jax.Array:
    """Returns the log-likelihood of all targets together, given one z: a masked sum.

    Args:
      log_probs: `[..., M]`.
      mask: `[M]`.

    Returns:
      `[...]`; 0 if no target is real.
    """
    chex.assert_rank(mask, 1)
    chex.assert_type(mask, bool)
    chex.assert_shape(log_probs, (..., *mask.shape))
    return jnp.sum(jnp.where(mask, at_least_float32(log_probs), 0.0), axis=-1)


def marginal_log_prob(log_probs: jax.Array) -> jax.Array:
    """Averages probabilities over samples of z (Monte Carlo), in log space.

    Args:
      log_probs: `[K, ...]`, `log p(choice | z_k)` with z_k drawn from the posterior.

    Returns:
      `[...]`, `log (1/K) sum_k p(choice | z_k)`.
    """
    chex.assert_shape(log_probs, (None, ...))
    return logsumexp(at_least_float32(log_probs), axis=0) - jnp.log(log_probs.shape[0])


def choice_metrics(log_probs: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
    """Returns `nll` in nats and `accuracy` of predicted choices, per real target.

    Args:
      log_probs: `[M]`, of what was chosen.
      mask: `[M]`.
    """
    right = (log_probs > jnp.log(0.5)) & mask
    return {
        "nll": mean_nll(log_probs, mask),
        "accuracy": right.sum() / jnp.maximum(mask.sum(), 1),
    }


def mean_nll(log_probs: jax.Array, mask: jax.Array) -> jax.Array:
    """Returns the negative log-likelihood per real target; 0 if none is real.

    Args:
      log_probs: `[..., M]`, of what was chosen.
      mask: `[M]`.

    Returns:
      `[...]` in nats.
    """
    return -joint_log_likelihood(log_probs, mask) / jnp.maximum(mask.sum(), 1)


def deterministic(log_probs: jax.Array, mask: jax.Array) -> jax.Array:
    """Returns the negative log-likelihood of the targets at z = E[z | C].

    Args:
      log_probs: `[M]`.
      mask: `[M]`.

    Returns:
      A scalar, summed over targets.
    """
    chex.assert_rank(log_probs, 1)
    return -joint_log_likelihood(log_probs, mask)


def ml(log_probs: jax.Array, mask: jax.Array) -> jax.Array:
    """Returns the negative log marginal likelihood of all targets jointly.

        -log (1/K) sum_k p(T | z_k) with z_k ~ q(z | C)

    is its Monte-Carlo estimate, the maximum-likelihood objective of neural processes
    (Foong et al. 2020, section 4).

    Args:
      log_probs: `[K, M]`.
      mask: `[M]`.

    Returns:
      A scalar, summed over targets.
    """
    chex.assert_rank(log_probs, 2)
    return -marginal_log_prob(joint_log_likelihood(log_probs, mask))


def elbo(
    log_probs: jax.Array,
    mask: jax.Array,
    posterior: DiagonalGaussian,
    prior: DiagonalGaussian,
    *,
    beta: float = 1.0,
) -> jax.Array:
    """Returns the negative evidence lower bound of a neural process.

        -E[log p(T | z)] + beta * KL(q(z | C u T) || q(z | C)) with z ~ q(z | C u T)

    (Garnelo et al. 2018, equation 6).

    Args:
      log_probs: `[K, M]`, at K samples of `posterior`.
      mask: `[M]`.
      posterior: q(z | C u T) over `[D]`.
      prior: q(z | C) over `[D]`.
      beta: weight of the KL. Both terms are sums, over targets and over latent
        dimensions, so beta = 1 gives the bound.

    Returns:
      A scalar, summed over targets.
    """
    chex.assert_rank([log_probs, *posterior, *prior], [2, 1, 1, 1, 1])
    expected_nll = -jnp.mean(joint_log_likelihood(log_probs, mask), axis=0)
    return expected_nll + beta * latent.kl(posterior, prior)


def vpl(
    log_probs: jax.Array,
    mask: jax.Array,
    posterior: DiagonalGaussian,
    *,
    beta: float = 1.0,
) -> jax.Array:
    """Returns the negative bound of variational preference learning.

    As `elbo`, with the posterior given the context alone and the prior N(0, I) (Poddar
    et al. 2024, equation 4).

    Args:
      log_probs: `[K, M]`, at K samples of `posterior`.
      mask: `[M]`.
      posterior: q(z | C) over `[D]`.
      beta: weight of the KL.

    Returns:
      A scalar, summed over targets.
    """
    prior = latent.standard_normal(posterior.mean.shape[-1])
    return elbo(log_probs, mask, posterior, prior, beta=beta)


def expected_calibration_error(
    confidence: jax.Array, correct: jax.Array, *, num_bins: int = 10
) -> jax.Array:
    """Returns the mean gap between confidence and accuracy over bins of equal size.

    Predictions are sorted by confidence and cut into `num_bins` bins whose sizes
    differ by at most one (Nguyen & O'Connor 2015; Naeini et al. 2015 for the error).

    Args:
      confidence: `[P]`, probability given to the predicted option.
      correct: `[P]`, 1 where the prediction was right, 0 where it was wrong, or a
        fraction.
      num_bins: at most P.

    Returns:
      A scalar in [0, 1], each bin weighted by its number of predictions.
    """
    chex.assert_rank([confidence, correct], 1)
    chex.assert_equal_shape([confidence, correct])
    confidence = at_least_float32(confidence)
    gap = at_least_float32(correct) - confidence
    size = confidence.shape[0]
    order = jnp.argsort(confidence)
    # Python integers: rank * num_bins outgrows int32 at a few hundred million.
    edges = jnp.array([size * b // num_bins for b in range(1, num_bins)], jnp.int32)
    bins = jnp.searchsorted(edges, jnp.arange(size), side="right")
    totals = jax.ops.segment_sum(gap[order], bins, num_segments=num_bins)
    return jnp.sum(jnp.abs(totals)) / size
