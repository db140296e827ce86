"""What an answer is expected to tell, against brute force and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from fsa.latent import mixture, questions
from fsa.latent.mixture import Mixture, Posterior

pytestmark = pytest.mark.usefixtures("quick_compile")

D = 3
CUTS = {"choice": (0.0,), "tie": (-0.7, 0.7), "rating": (-1.0, 0.3, 2.0)}

information_gain = jax.jit(questions.information_gain)
gain_of_samples = jax.jit(questions.gain_of_samples)
gain_about = jax.jit(questions.gain_about)


def made(scale=1.0, seed=0) -> Posterior:
    """A posterior of two components with full covariances."""
    rng = np.random.default_rng(seed)
    factor = np.tril(rng.normal(size=(2, D, D)) * 0.3) + np.eye(D)
    return Posterior(
        log_weight=jnp.log(jnp.array([0.3, 0.7])),
        component_mean=jnp.asarray(rng.normal(size=(2, D)), jnp.float32),
        cholesky=jnp.asarray(factor / scale, jnp.float32),
        inverse=jnp.asarray(np.linalg.inv(factor / scale), jnp.float32),
        log_evidence=jnp.zeros(()),
        converged=jnp.ones(2, bool),
    )


def asked(count=8, seed=1):
    rng = np.random.default_rng(seed)
    features, offset = rng.normal(size=(count, D)), rng.normal(size=count)
    return features.astype(np.float32), offset.astype(np.float32)


def answers(u, cuts):
    """p(answer | u), `[A, ...]`, in float64."""
    below = [special.expit(np.asarray(cut) - u) for cut in cuts]
    ends = [np.zeros_like(u), *below, np.ones_like(u)]
    return np.diff(np.stack(ends), axis=0)


def information(p, weight):
    """Mutual information of answers `[A, S]` at weighted points `[S]`."""
    expected = p @ weight
    return special.entr(expected).sum() - special.entr(p).sum(0) @ weight


def by_integration(posterior, features, offset, cuts):
    """The same by a fine grid of u under each component, in float64."""
    grid = np.linspace(-12, 12, 40_001)
    density = np.exp(-0.5 * grid**2)
    density /= density.sum()
    found = []
    for f, g in zip(features, offset, strict=True):
        u, weight = [], []
        for log_weight, mean, factor in zip(
            *map(np.float64, posterior[:3]), strict=True
        ):
            std = np.sqrt(f @ np.linalg.solve(factor @ factor.T, f))
            u.append(mean @ f + g + std * grid)
            weight.append(np.exp(log_weight) * density)
        p = answers(np.concatenate(u), cuts)
        found.append(information(p, np.concatenate(weight)))
    return np.array(found)


@pytest.mark.parametrize("cuts", CUTS.values(), ids=CUTS)
@pytest.mark.parametrize(("scale", "atol"), [(1.0, 2e-6), (5.0, 1e-4)])
def test_against_integration(cuts, scale, atol):
    posterior, (features, offset) = made(scale), asked()
    found = information_gain(posterior, features, offset, cuts=cuts)
    wanted = by_integration(posterior, features, offset, cuts)
    np.testing.assert_allclose(found, wanted, atol=atol)
    assert found.max() < np.log(len(cuts) + 1)


@pytest.mark.parametrize(
    "cuts",
    [
        pytest.param(cuts, id=name, marks=[] if name == "choice" else pytest.mark.slow)
        for name, cuts in CUTS.items()
    ],
)
def test_against_samples_of_z(cuts):
    posterior, (features, offset) = made(), asked()
    z = mixture.sample(posterior, jax.random.key(0), 20_000)
    log_prob = questions.answers(z @ features.T + offset, cuts)
    np.testing.assert_allclose(jnp.exp(log_prob).sum(0), 1, rtol=1e-5)
    wanted = information_gain(posterior, features, offset, cuts=cuts)
    found = gain_of_samples(log_prob)
    np.testing.assert_allclose(found, wanted, atol=4e-3)
    p = answers(np.asarray(z @ features.T + offset, np.float64), cuts)
    by_hand = [
        information(p[:, :, m], np.full(len(z), 1 / len(z))) for m in range(len(offset))
    ]
    np.testing.assert_allclose(found, by_hand, atol=1e-5)


def test_a_question_whose_answer_tells_nothing():
    """Its answer is known, or is a matter of chance at every z."""
    features = np.array([[1, 0, 0], [1, 0, 0], [0, 0, 0], [1, 0, 0]], np.float32)
    offset = np.array([60, -60, 0.3, 0], np.float32)
    gain = information_gain(made(), features, offset)
    np.testing.assert_allclose(gain[:3], 0, atol=1e-6)
    assert gain[3] > 0.05


def test_the_order_of_the_two_options_does_not_matter():
    posterior, (features, offset) = made(3.0), asked()
    for cuts in (CUTS["choice"], CUTS["tie"]):
        found = information_gain(posterior, features, offset, cuts=cuts)
        other = information_gain(posterior, -features, -offset, cuts=cuts)
        np.testing.assert_allclose(found, other, atol=1e-6)


def test_what_is_known_is_not_asked_again():
    """A narrower posterior leaves less to be told, down to nothing."""
    features, offset = asked()
    gains = [
        information_gain(made(scale), features, 0 * offset)
        for scale in (2.0, 0.5, 0.02)
    ]
    # The second component's mean decides where the first one would.
    assert (gains[1] < gains[0]).all() and gains[2].max() < gains[0].min()
    np.testing.assert_allclose(
        gains[2], by_integration(made(0.02), features, 0 * offset, (0.0,)), atol=1e-5
    )


@pytest.mark.slow
def test_information_about_the_best_of_two_options():
    """Which of two is the best is the sign of u, whose groups are known."""
    prior = Mixture(jnp.zeros(1), jnp.full((1, 1), 0.4), jnp.zeros((1, 1)))
    z = mixture.sample(mixture.of_prior(prior), jax.random.key(1), 20_000)
    slopes = jnp.array([1.0, -1.0, 3.0])
    log_prob = questions.answers(z * slopes)
    rewards = jnp.concatenate([0 * z, z], axis=1)
    grid = np.linspace(-9, 9, 40_000) + 0.4
    density = np.exp(-0.5 * (grid - 0.4) ** 2)
    density /= density.sum()
    wanted = []
    for slope in slopes:
        p = answers(grid * float(slope), (0.0,))
        within = 0
        for side in (grid > 0, grid <= 0):
            weight = density * side
            within += weight.sum() * special.entr(p @ weight / weight.sum()).sum()
        wanted.append(special.entr(p @ density).sum() - within)
    for group in (questions.same_best(rewards), questions.same_order(rewards)):
        # `gain_about` compares all samples with all groups.
        found = gain_about(group[:4000], log_prob[:, :4000])
        np.testing.assert_allclose(found, wanted, atol=0.02)


def test_groups_of_one_sample_are_z_itself():
    z = mixture.sample(made(), jax.random.key(2), 50)
    features, offset = asked()
    log_prob = questions.answers(z @ features.T + offset, CUTS["tie"])
    every = gain_of_samples(log_prob)
    found = gain_about(jnp.arange(50), log_prob)
    np.testing.assert_allclose(found, every, atol=1e-6)
    one = gain_about(jnp.zeros(50, int), log_prob)
    np.testing.assert_allclose(one, 0, atol=1e-6)
    # To know a group is to know less than z.
    coarse = gain_about(jnp.arange(50) // 5, log_prob)
    assert (coarse < every).all()


def test_groups():
    rewards = jnp.array([[0.0, 1, 2], [1, 0, 2], [5, 6, 7], [3, 2, 1]])
    best, order = (
        np.asarray(f(rewards)) for f in (questions.same_best, questions.same_order)
    )
    assert best[0] == best[1] == best[2] != best[3]
    assert order[0] == order[2] and len(set(order)) == 3
    # More options than samples.
    wide = questions.same_best(jnp.eye(3, 40)[:, ::-1])
    assert sorted(wide.tolist()) == [0, 1, 2]


def test_double_precision_is_kept():
    with jax.enable_x64(True):
        posterior = jax.tree.map(lambda x: jnp.asarray(np.asarray(x)), made())
        posterior = posterior._replace(
            component_mean=posterior.component_mean.astype(jnp.float64),
            cholesky=posterior.cholesky.astype(jnp.float64),
            inverse=jnp.linalg.inv(posterior.cholesky.astype(jnp.float64)),
        )
        features, offset = (x.astype(np.float64) for x in asked())
        found = information_gain(posterior, features, offset)
        assert found.dtype == jnp.float64
        wanted = by_integration(posterior, features, offset, (0.0,))
        np.testing.assert_allclose(found, wanted, atol=1e-6)
