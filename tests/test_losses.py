"""Losses against scipy, closed forms and float64 NumPy; stable at the extremes."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads
from scipy import special, stats

from fsa import losses
from fsa.latent import DiagonalGaussian

pytestmark = pytest.mark.usefixtures("quick_compile")

K, M, D = 5, 7, 3  # samples of z, targets, latent dimensions
BETA = 0.7
PROPERTY = settings(max_examples=20, deadline=None, derandomize=True)
SEEDS = st.integers(0, 10_000)
# Few counts of real targets, since each is a shape to compile once padding is removed.
MASKS = st.sampled_from([0, 3, M]).flatmap(
    lambda count: st.permutations([i < count for i in range(M)]).map(np.array)
)
GAPS = (-1e4, -1e3, -88.0, -20.0, -1.0, 0.0, 0.3, 5.0, 40.0, 1e4)


def example(seed, dtype=np.float32):
    """Log-probabilities [K, M] and the means and log stds of q and p over [D]."""
    rng = np.random.default_rng(seed)
    log_probs = -rng.exponential(2.0, (K, M))
    gaussians = rng.normal(size=(4, D))
    return tuple(x.astype(dtype) for x in (log_probs, *gaussians))


# name: value of (log_probs, mask, q_mean, q_log_std, p_mean, p_log_std)
OBJECTIVES = {
    "deterministic": lambda lp, mask, *_: losses.deterministic(lp[0], mask),
    "ml": lambda lp, mask, *_: losses.ml(lp, mask),
    "elbo": lambda lp, mask, *qp: losses.elbo(
        lp, mask, DiagonalGaussian(*qp[:2]), DiagonalGaussian(*qp[2:]), beta=BETA
    ),
    "vpl": lambda lp, mask, *qp: losses.vpl(
        lp, mask, DiagonalGaussian(*qp[:2]), beta=BETA
    ),
}


def objectives(*args):
    return {name: objective(*args) for name, objective in OBJECTIVES.items()}


# One program for all of them.
all_objectives = jax.jit(objectives)

joint_log_likelihood = jax.jit(losses.joint_log_likelihood)
marginal_log_prob = jax.jit(losses.marginal_log_prob)
calibration_error = jax.jit(
    losses.expected_calibration_error, static_argnames="num_bins"
)


@jax.jit
def both_likelihoods(a, s, b, t):
    """BTL and DPL log-probabilities of a chosen over b."""
    return losses.btl_log_prob(a, b), losses.dpl_log_prob(a, s, b, t)


@jax.jit
def dpl_value_and_slopes(*args):
    """Values [P] and, for each argument [P], the slopes [P]."""
    return jax.vmap(jax.value_and_grad(losses.dpl_log_prob, argnums=(0, 1, 2, 3)))(
        *args
    )


def reference(name, log_probs, mask, q_mean, q_log_std, p_mean, p_log_std):
    """The objectives once more, in float64 and by way of scipy."""
    log_probs = np.asarray(log_probs, np.float64)
    joint = [sum(row[mask]) for row in log_probs]

    def kl(mean, log_std, other_mean, other_log_std):
        total = 0.0
        for m, s, pm, ps in zip(mean, log_std, other_mean, other_log_std, strict=True):
            variance, other = np.exp(2.0 * s), np.exp(2.0 * ps)
            total += 0.5 * np.log(other / variance) - 0.5
            total += (variance + (float(m) - pm) ** 2) / (2 * other)
        return total

    q = [np.asarray(x, np.float64) for x in (q_mean, q_log_std)]
    p = [np.asarray(x, np.float64) for x in (p_mean, p_log_std)]
    return {
        "deterministic": -joint[0],
        "ml": -np.log(np.mean(np.exp(joint))),
        "elbo": -np.mean(joint) + BETA * kl(*q, *p),
        "vpl": -np.mean(joint) + BETA * kl(*q, np.zeros(D), np.zeros(D)),
    }[name]


def test_btl_is_log_sigmoid_of_the_gap():
    gaps = np.array(GAPS, np.float32)
    value_and_slopes = jax.value_and_grad(losses.btl_log_prob, argnums=(0, 1))
    values, (slopes, others) = jax.jit(jax.vmap(value_and_slopes))(gaps, 0 * gaps)
    wide = gaps.astype(np.float64)
    np.testing.assert_allclose(values, special.log_expit(wide), rtol=1e-6, atol=1e-37)
    np.testing.assert_allclose(slopes, special.expit(-wide), rtol=1e-5, atol=1e-37)
    assert np.array_equal(others, -slopes)


@pytest.mark.parametrize("stds", [(1.0, 0.5), (1e-3, 1e-3), (30.0, 7.0)])
def test_dpl_is_log_normal_cdf(stds):
    gaps = np.array(GAPS, np.float32)
    wide = [np.broadcast_to(np.float32(s), gaps.shape) for s in stds]
    values, slopes = dpl_value_and_slopes(gaps, wide[0], 0 * gaps, wide[1])
    x = gaps.astype(np.float64) / np.hypot(*map(np.float64, wide))
    np.testing.assert_allclose(values, stats.norm.logcdf(x), rtol=3e-5, atol=1e-7)
    assert np.isfinite(slopes).all()


@pytest.mark.parametrize("std", [1e-3, 1.0, 30.0])
def test_dpl_gradient_is_the_inverse_mills_ratio(std):
    """Also for very unlikely choices."""
    gaps = -np.geomspace(1e-2, 1e4, len(GAPS)).astype(np.float32)
    stds = np.full_like(gaps, std)
    slopes = dpl_value_and_slopes(gaps, stds, 0 * gaps, stds)[1]
    scale = np.sqrt(2.0) * stds.astype(np.float64)
    x = gaps.astype(np.float64) / scale
    # phi(x) / Phi(x), free of cancellation in the scaled complementary error function.
    mills = np.sqrt(2 / np.pi) / special.erfcx(-x / np.sqrt(2))
    np.testing.assert_allclose(slopes[0], mills / scale, rtol=1e-2)
    np.testing.assert_allclose(slopes[2], -mills / scale, rtol=1e-2)
    # d/ds of (a - b) / hypot(s, t) is -x s / (s^2 + t^2).
    expected = -mills * x * stds.astype(np.float64) / scale**2
    np.testing.assert_allclose(slopes[1], expected, rtol=1e-2)
    np.testing.assert_allclose(slopes[3], expected, rtol=1e-2)


@PROPERTY
@given(SEEDS)
def test_the_two_orders_have_probabilities_that_add_to_one(seed):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(0, 10, (2, M)).astype(np.float32)
    s, t = rng.gamma(2.0, 1.0, (2, M)).astype(np.float32) + 1e-3
    orders = np.exp([both_likelihoods(a, s, b, t), both_likelihoods(b, t, a, s)])
    np.testing.assert_allclose(orders.sum(0), 1, rtol=1e-5)


def test_likelihoods_in_float64():
    rng = np.random.default_rng(1)
    a, b = rng.normal(0, 30, (2, 101))
    s, t = rng.gamma(2.0, 1.0, (2, 101))
    with jax.enable_x64(True):
        btl, dpl = both_likelihoods(a, s, b, t)
    np.testing.assert_allclose(btl, special.log_expit(a - b), rtol=1e-12)
    expected = stats.norm.logcdf((a - b) / np.hypot(s, t))
    np.testing.assert_allclose(dpl, expected, rtol=1e-9, atol=1e-15)


@PROPERTY
@given(SEEDS, MASKS)
def test_masking_equals_removal(seed, mask):
    log_probs, *gaussians = example(seed)
    # The values in the padding must not matter, not even NaN.
    padded = log_probs.copy()
    padded[:, ~mask] = np.resize([np.nan, -np.inf, 1e30], (~mask).sum())
    kept = log_probs[:, mask]
    found = all_objectives(padded, mask, *gaussians)
    expected = all_objectives(kept, np.ones(kept.shape[1], bool), *gaussians)
    for name, value in found.items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-5, atol=1e-5)
    joint = joint_log_likelihood(padded, mask)
    np.testing.assert_allclose(joint, kept.sum(1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [0, M])
def test_without_real_targets_the_likelihood_is_one(size):
    empty = np.zeros(size, bool)
    log_probs = np.full((K, size), -3.0, np.float32)
    assert np.array_equal(joint_log_likelihood(log_probs, empty), np.zeros(K))
    found = all_objectives(log_probs, empty, *np.zeros((4, D), np.float32))
    assert found["deterministic"] == 0
    np.testing.assert_allclose(found["ml"], 0, atol=1e-6)


@PROPERTY
@given(SEEDS, st.sampled_from([1.0, 100.0, 1e4]))
def test_marginal_averages_probabilities(seed, scale):
    log_probs = scale * example(seed)[0]
    wide = log_probs.astype(np.float64)
    expected = special.logsumexp(wide, axis=0) - np.log(K)
    np.testing.assert_allclose(marginal_log_prob(log_probs), expected, rtol=1e-5)


def test_marginal_of_choices_that_are_impossible_for_some_samples_or_all():
    log_probs = np.array([[0.0, -np.inf], [-np.inf, -np.inf]], np.float32)
    expected = [np.log(0.5), -np.inf]
    np.testing.assert_allclose(marginal_log_prob(log_probs), expected, rtol=1e-6)


@PROPERTY
@given(SEEDS, MASKS)
def test_objectives_equal_float64_numpy(seed, mask):
    args = example(seed)
    for name, value in all_objectives(args[0], mask, *args[1:]).items():
        expected = reference(name, args[0], mask, *args[1:])
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-5)
        assert value.shape == () and value.dtype == jnp.float32


def test_objectives_at_extreme_rewards():
    """All but one sample give the targets probability 0; the loss stays finite."""
    rewards = np.full((K, M), -1e4, np.float32)
    rewards[0] = 1e4
    mask = np.ones(M, bool)

    @jax.jit
    @jax.value_and_grad
    def loss(rewards):
        return losses.ml(losses.btl_log_prob(rewards, 0.0), mask)

    value, slopes = loss(rewards)
    np.testing.assert_allclose(value, np.log(K), rtol=1e-6)
    assert np.isfinite(slopes).all()
    # If every sample fails, the gradient goes to the best of them.
    rewards = -1e4 - np.arange(K * M, dtype=np.float32).reshape(K, M)
    value, slopes = loss(rewards)
    np.testing.assert_allclose(value, M * 1e4 + M * (M - 1) / 2 + np.log(K), rtol=1e-6)
    np.testing.assert_allclose(slopes[0], -1, rtol=1e-5)
    np.testing.assert_allclose(slopes[1:], 0, atol=1e-20)


def test_elbo_whose_posterior_is_the_prior_is_the_mean_nll():
    log_probs, mean, log_std, *_ = example(3)
    mask = np.arange(M) != 2
    expected = -np.mean([row[mask].sum() for row in log_probs.astype(np.float64)])
    found = all_objectives(log_probs, mask, mean, log_std, mean, log_std)
    np.testing.assert_allclose(found["elbo"], expected, rtol=1e-6)
    found = all_objectives(log_probs, mask, *np.zeros((4, D), np.float32))
    np.testing.assert_allclose(found["vpl"], expected, rtol=1e-6)


def test_elbo_bounds_ml():
    """Jensen: with q = p the bound is at least the marginal, and they differ."""
    log_probs, mean, log_std, *_ = example(4)
    mask = np.ones(M, bool)
    found = all_objectives(log_probs, mask, mean, log_std, mean, log_std)
    assert found["elbo"] - found["ml"] > 0.1


@settings(PROPERTY, max_examples=5)
@given(SEEDS, MASKS)
def test_ml_with_one_sample_is_deterministic(seed, mask):
    log_probs, *gaussians = example(seed)
    found = all_objectives(log_probs[:1], mask, *gaussians)
    np.testing.assert_allclose(found["ml"], found["deterministic"], rtol=1e-6)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_objective_gradients(name):
    mask = np.arange(M) % 3 != 1
    with jax.enable_x64(True):
        args = tuple(map(jnp.asarray, example(5, np.float64)))
        objective = jax.jit(lambda lp, *qp: OBJECTIVES[name](lp, mask, *qp))
        check_grads(objective, args, order=1)


def test_likelihood_gradients():
    rng = np.random.default_rng(6)
    with jax.enable_x64(True):
        a, b = map(jnp.asarray, rng.normal(0, 3, (2, M)))
        s, t = map(jnp.asarray, rng.gamma(2.0, 1.0, (2, M)) + 0.1)
        check_grads(both_likelihoods, (a, s, b, t), order=1)


def users(count):
    """Arguments of the objectives for a batch of users."""
    log_probs, *gaussians = map(
        np.stack, zip(*(example(seed) for seed in range(count)), strict=True)
    )
    masks = np.random.default_rng(7).random((count, M)) < 0.6
    return log_probs, masks, *gaussians


def one_by_one(fn, args):
    """What `fn` returns for each user alone, stacked."""
    each = [fn(*(x[u] for x in args)) for u in range(len(args[0]))]
    return jax.tree.map(lambda *x: np.stack(x), *each)


class TransformationsTest(chex.TestCase):
    """The same values for users together, with and without jit and on a device."""

    @chex.all_variants(with_pmap=False)
    def test_objectives_of_users(self):
        args = users(3)
        expected = one_by_one(all_objectives, args)
        assert all(np.ptp(values) > 0.1 for values in expected.values())
        found = self.variant(jax.vmap(objectives))(*args)
        chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=1e-7)


def test_means_over_devices_are_the_means_over_users():
    """Values and slopes under `jax.pmap`; chex simulates several devices."""
    args = users(6)

    @jax.jit
    def values_and_slopes(*args):
        return objectives(*args), jax.jacrev(objectives)(*args)

    def of_device(*args):
        of_users = jax.vmap(values_and_slopes)(*args)
        return jax.lax.pmean(jax.tree.map(lambda x: x.mean(0), of_users), "devices")

    with chex.fake_pmap():
        on_devices = [x.reshape(3, 2, *x.shape[1:]) for x in args]
        found = jax.pmap(of_device, axis_name="devices")(*on_devices)
    alone = one_by_one(values_and_slopes, args)
    expected = jax.tree.map(lambda x: np.stack([x.mean(0)] * 3), alone)
    chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=1e-7)


def test_bfloat16_objectives_lose_nothing_but_the_rounding_of_the_input():
    mask = np.arange(M) != 4
    half = tuple(jnp.asarray(x, jnp.bfloat16) for x in example(8))
    rounded = tuple(np.asarray(x, np.float64) for x in half)
    for name, value in all_objectives(half[0], mask, *half[1:]).items():
        assert value.dtype == jnp.float32
        expected = reference(name, rounded[0], mask, *rounded[1:])
        np.testing.assert_allclose(value, expected, rtol=1e-5)


def test_bfloat16_likelihoods_and_scores():
    rng = np.random.default_rng(9)
    raw = *rng.normal(0, 3, (2, 101)), *rng.gamma(2.0, 1.0, (2, 101))
    a, b, s, t = half = [jnp.asarray(x, jnp.bfloat16) for x in raw]
    wide = [np.asarray(x, np.float64) for x in half]
    gap = wide[0] - wide[1]
    p = jnp.asarray(rng.uniform(0.5, 1, 101), jnp.bfloat16)
    btl, dpl = both_likelihoods(a, s, b, t)
    cases = (
        (btl, special.log_expit(gap)),
        (dpl, stats.norm.logcdf(gap / np.hypot(wide[2], wide[3]))),
        (marginal_log_prob(a), special.logsumexp(wide[0]) - np.log(101)),
        # The gap of each prediction is exact in float32, and none cancels another.
        (
            calibration_error(p, jnp.ones(101, jnp.bfloat16)),
            np.mean(1 - np.asarray(p, np.float64)),
        ),
    )
    for value, expected in cases:
        assert value.dtype == jnp.float32
        np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-7)


def reference_calibration_error(confidence, correct, num_bins):
    """Sort, cut at the multiples of P / num_bins, weigh each bin's gap by its size."""
    order = np.argsort(confidence)
    confidence = np.asarray(confidence, np.float64)[order]
    correct = np.asarray(correct, np.float64)[order]
    size = len(order)
    error = 0.0
    for b in range(num_bins):
        part = slice(size * b // num_bins, size * (b + 1) // num_bins)
        gap = np.mean(correct[part]) - np.mean(confidence[part])
        error += len(correct[part]) / size * abs(gap)
    return error


@pytest.mark.parametrize("size, num_bins", [(11, 1), (10, 10), (23, 7), (1009, 10)])
def test_calibration_error(size, num_bins):
    rng = np.random.default_rng(size)
    confidence = rng.uniform(0.5, 1.0, size).astype(np.float32)
    correct = rng.uniform(size=size) < 0.7
    value = calibration_error(confidence, correct, num_bins=num_bins)
    expected = reference_calibration_error(confidence, correct, num_bins)
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-7)


def test_calibration_error_of_known_cases():
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.5, 1.0, 20_011).astype(np.float32)
    error = calibration_error
    assert error(confidence, confidence) < 1e-6
    np.testing.assert_allclose(error(confidence, confidence - 0.2), 0.2, rtol=1e-4)
    # Too sure where it is sure and too unsure where it is not: 0.1 in every bin.
    shifted = np.where(confidence > np.median(confidence), -0.1, 0.1) + confidence
    np.testing.assert_allclose(error(confidence, shifted), 0.1, rtol=1e-3)
    # 10 bins of 2000 outcomes, whose means have a standard error of at most 0.011.
    assert error(confidence, rng.uniform(size=20_011) < confidence) < 0.02


@PROPERTY
@given(SEEDS)
def test_calibration_error_does_not_depend_on_order(seed):
    rng = np.random.default_rng(seed)
    confidence = rng.permutation(np.linspace(0.5, 1.0, 53, dtype=np.float32))
    correct = rng.uniform(size=53) < 0.6
    order = rng.permutation(53)
    np.testing.assert_allclose(
        calibration_error(confidence[order], correct[order]),
        calibration_error(confidence, correct),
        rtol=1e-5,
    )


RATIOS = [(0.0, 0.0), (3.0, -2.0), (-40.0, 60.0), (1e4, -1e4)]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_dpo_is_the_smoothed_cross_entropy_of_the_margin(smoothing):
    chosen, rejected = np.array(RATIOS, np.float64).T
    margin = 0.3 * (chosen - rejected)
    expected = (1 - smoothing) * np.logaddexp(0, -margin) + smoothing * np.logaddexp(
        0, margin
    )
    found = losses.dpo(
        jnp.array(chosen, jnp.float32),
        jnp.array(rejected, jnp.float32),
        beta=0.3,
        label_smoothing=smoothing,
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_smoothed_dpo_stops_where_the_odds_are_those_of_the_noise():
    """At margin log((1 - e) / e) the slope is zero; without smoothing it never is."""
    margin = np.log(0.9 / 0.1)

    def loss(ratio, smoothing):
        return losses.dpo(ratio, jnp.zeros(()), beta=2.0, label_smoothing=smoothing)

    assert abs(jax.grad(loss)(margin / 2, 0.1)) < 1e-6
    assert jax.grad(loss)(margin / 2, 0.0) < -0.1


def test_ipo_is_least_at_a_gap_of_half_over_beta():
    gaps = np.linspace(-5, 5, 2001)
    found = losses.ipo(jnp.array(gaps, jnp.float32), jnp.zeros(2001), beta=0.25)
    assert gaps[np.argmin(found)] == pytest.approx(2.0)
    assert float(losses.ipo(jnp.float32(3), jnp.float32(0), beta=0.25)) == 1.0


def test_distillation_is_the_squared_error_of_the_implicit_reward():
    first, second = np.array(RATIOS, np.float64).T
    gap = np.linspace(-9, 9, len(first))
    expected = (0.3 * (first - second) - np.clip(gap, -2, 2)) ** 2
    given = (jnp.array(x, jnp.float32) for x in (first, second, gap))
    found = losses.distillation(*given, beta=0.3, clip=2.0)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.slow
def test_distillation_ends_at_the_policy_that_is_best_for_the_reward():
    """It is proportional to the reference times exp(r / beta), for any reference."""
    beta, reward = 0.7, jnp.array([0.3, -1.1, 2.0, 0.0])
    reference = jax.nn.log_softmax(jnp.array([0.1, 1.2, -0.4, 0.6]))
    first, second = jnp.triu_indices(4, 1)

    def loss(logits):
        ratio = jax.nn.log_softmax(logits) - reference
        gap = reward[first] - reward[second]
        return losses.distillation(ratio[first], ratio[second], gap, beta=beta).sum()

    best = reference + reward / beta
    assert loss(best) < 1e-10
    np.testing.assert_allclose(jax.grad(loss)(best), 0, atol=1e-5)
    # Beyond a constant there is no other one.
    assert loss(best.at[2].add(0.1)) > 1e-3


def shaped(*shapes, of=jnp.float32):
    return [jax.ShapeDtypeStruct((2, *shape), of) for shape in shapes]


MASK, GAUSSIAN = shaped((M,), of=bool), DiagonalGaussian(*shaped((D,), (D,)))
dpo, ipo, distillation = (
    functools.partial(loss, beta=1.0)
    for loss in (losses.dpo, losses.ipo, losses.distillation)
)

# Calls with a wrong shape or type, most of which would broadcast to a wrong number.
WRONG = {
    "dpl, std": (losses.dpl_log_prob, shaped((M,), (1,), (M,), (M,))),
    "dpl, std of the rejected": (losses.dpl_log_prob, shaped((M,), (M,), (M,), ())),
    "dpo": (dpo, shaped((M,), (1,))),
    "ipo": (ipo, shaped((M,), ())),
    "distillation": (distillation, shaped((M,), (M,), ())),
    "joint, mask": (losses.joint_log_likelihood, shaped((M,), (M,))),
    "joint, size": (losses.joint_log_likelihood, shaped((K, 1)) + MASK),
    "joint, rank": (losses.joint_log_likelihood, shaped(()) + MASK),
    "marginal": (losses.marginal_log_prob, shaped(())),
    "deterministic": (losses.deterministic, shaped((K, M)) + MASK),
    "ml": (losses.ml, shaped((M,)) + MASK),
    "elbo": (losses.elbo, [*shaped((M,)), *MASK, GAUSSIAN, GAUSSIAN]),
    "elbo, prior": (
        losses.elbo,
        [*shaped((K, M)), *MASK, GAUSSIAN, DiagonalGaussian(*shaped((1,), (1,)))],
    ),
    "vpl": (
        losses.vpl,
        [*shaped((K, M)), *MASK, DiagonalGaussian(*shaped((K, D), (K, D)))],
    ),
    "calibration error": (losses.expected_calibration_error, shaped((M,), (1,))),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_shapes_and_types_are_refused(case):
    """While they are traced, under jit and vmap."""
    fn, args = WRONG[case]
    with pytest.raises(AssertionError, match="Chex"):
        jax.eval_shape(jax.jit(jax.vmap(fn)), *args)


def test_broadcast_of_likelihoods():
    """All pairs of options at once, as rankings need them."""
    rewards = np.random.default_rng(2).normal(size=M).astype(np.float32)
    found = losses.btl_log_prob(rewards[:, None], rewards[None])
    expected = special.log_expit(rewards[:, None] - rewards[None])
    np.testing.assert_allclose(found, expected, rtol=1e-5)
