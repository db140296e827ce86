"""The map of people: axes, and contours that hold the share that they say."""

import matplotlib.path
import numpy as np
import pytest
import scipy.stats

from fsa.latent import DiagonalGaussian, Posterior
from fsa.serving.page import people_map
from fsa.serving.page.people_map import Components, PeopleMap

NARROW = np.array([[0.02, 0.01], [0.01, 0.03]])


def mixture(*parts):
    weight, mean, covariance = zip(*parts, strict=True)
    return Components(*map(np.array, (weight, mean, covariance)))


def share_inside(loops, components, count=40_000):
    """The share of draws of a mixture that lie in an odd number of loops."""
    rng = np.random.default_rng(1)
    which = rng.choice(len(components.weight), count, p=components.weight)
    half = np.linalg.cholesky(components.covariance)[which]
    noise = np.einsum("kij,kj->ki", half, rng.normal(size=(count, 2)))
    points = components.mean[which] + noise
    inside = [matplotlib.path.Path(loop).contains_points(points) for loop in loops]
    return (np.sum(inside, axis=0) % 2).mean()


@pytest.mark.parametrize(
    "components",
    [
        mixture((1.0, [2.0, -1.0], np.diag([4.0, 0.25]))),
        mixture((0.7, [-3.0, 0.0], NARROW), (0.3, [3.0, 1.0], np.eye(2))),
        mixture((0.5, [0.0, 0.0], NARROW), (0.5, [0.0, 0.0], NARROW)),
        mixture((0.5, [-1.0, 0.0], np.eye(2)), (0.5, [1.0, 0.0], 0.1 * np.eye(2))),
    ],
    ids=["one", "two apart", "two alike", "two that overlap"],
)
def test_contours_hold_their_share(components):
    for share, loops in zip((0.5, 0.9), people_map.contours(components), strict=True):
        assert abs(share_inside(loops, components) - share) < 0.015


def test_contours_of_one_component_are_its_ellipses():
    covariance = np.array([[2.0, 0.6], [0.6, 0.5]])
    found = people_map.contours(mixture((1.0, [1.0, 2.0], covariance)))
    for share, loops in zip((0.5, 0.9), found, strict=True):
        (loop,) = loops
        gap = loop - [1.0, 2.0]
        squared = np.einsum("vi,ij,vj->v", gap, np.linalg.inv(covariance), gap)
        assert np.allclose(squared, scipy.stats.chi2.ppf(share, 2), rtol=0.03)
        # Counterclockwise, from the rightmost point on.
        assert loop[:, 0].argmax() == 0 and loop[3, 1] > loop[0, 1]


def test_two_that_are_apart_have_two_loops_and_a_light_one_has_none():
    far = [5.0, 0.0]
    both = mixture((0.5, [-5.0, 0.0], NARROW), (0.5, far, NARROW))
    light = mixture((0.9999, [-5.0, 0.0], NARROW), (0.0001, far, NARROW))
    assert [len(loops) for loops in people_map.contours(both)] == [2, 2]
    assert [len(loops) for loops in people_map.contours(light)] == [1, 1]


def test_axes_are_the_principal_components():
    rng = np.random.default_rng(0)
    z = rng.normal(size=(500, 4)) * [0.1, 3.0, 1.0, 0.2] + [5, 6, 7, 8]
    found = PeopleMap.of(z)
    values, vectors = np.linalg.eigh(np.cov(z.T, ddof=0))
    assert np.allclose(np.abs(found.axes @ vectors[:, [3, 2]]), np.eye(2), atol=1e-6)
    assert np.allclose(found.share, values[[3, 2]] / values.sum())
    assert np.allclose(found.place(z).var(axis=0), values[[3, 2]])
    assert np.allclose(PeopleMap.of(z[::-1]).axes, found.axes)


def test_a_posterior_is_projected():
    """Against draws of z, for both kinds of distribution."""
    rng = np.random.default_rng(2)
    people = PeopleMap.of(rng.normal(size=(50, 3)) * [2, 1, 0.5])
    half = np.linalg.cholesky([[1, 0.3, 0], [0.3, 2, 0.1], [0, 0.1, 0.5]])
    q = Posterior(
        log_weight=np.zeros(1),
        component_mean=np.array([[0.5, -1.0, 2.0]]),
        cholesky=np.linalg.inv(half)[None].transpose(0, 2, 1),
        inverse=half.T[None],
        log_evidence=np.zeros(()),
        converged=np.ones(1, bool),
    )
    found = people.components(q)
    draws = people.place(rng.normal(size=(200_000, 3)) @ half.T + q.component_mean[0])
    assert np.allclose(found.mean[0], draws.mean(axis=0), atol=0.02)
    assert np.allclose(found.covariance[0], np.cov(draws.T), atol=0.03)
    diagonal = DiagonalGaussian(np.array([1.0, 2, 3]), np.log([0.5, 1.0, 2.0]))
    wanted = people.axes @ np.diag([0.25, 1.0, 4.0]) @ people.axes.T
    assert np.allclose(people.components(diagonal).covariance[0], wanted, atol=1e-3)


def test_people_of_one_dimension_have_a_map():
    found = PeopleMap.of(np.array([[1.0], [2.0], [4.0]]))
    assert found.axes.tolist() == [[1.0], [0.0]]
    q = DiagonalGaussian(np.array([2.0]), np.zeros(1))
    (inner,), (outer,) = people_map.contours(found.components(q))
    assert np.ptp(outer[:, 0]) > 10 * np.ptp(outer[:, 1]) > 0
    assert np.ptp(inner[:, 0]) < np.ptp(outer[:, 0])


def test_bounds_hold_all_points():
    points = np.array([[0.0, 0.0], [10.0, 0.1], [4.0, -0.2]])
    (left, bottom), (width, height) = people_map.bounds(points)
    assert left < 0 and bottom < -0.2 and left + width > 10 and bottom + height > 0.1
    assert height >= width / 4.2
