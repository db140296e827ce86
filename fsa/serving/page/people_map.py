"""A map of people: z on the two axes along which people differ most.

The axes are the first two principal components of the z of many people. What is
believed of one person is drawn as contours, each the smallest region that holds a share
of the probability: of a mixture that may be several loops.

Shapes: P people, D latent dimensions, C components, L loops, V points of a loop.
"""

import dataclasses
from typing import NamedTuple, Self

import contourpy
import numpy as np

from fsa.latent import DiagonalGaussian, Posterior

# The shares of the probability that contours hold.
SHARES = (0.5, 0.9)

# V, so that a page can turn one loop into another point by point.
_POINTS = 72
# Lines of the grid through each component, and the standard deviations they reach.
_LINES, _REACH = 41, 4.0
# A component of less weight is not drawn.
_LEAST_WEIGHT = 1e-3


class Components(NamedTuple):
    """A mixture of Gaussians on the map.

    Attributes:
      weight: `[C]`, sums to one.
      mean: `[C, 2]`.
      covariance: `[C, 2, 2]`.
    """

    weight: np.ndarray
    mean: np.ndarray
    covariance: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class PeopleMap:
    """Where z is drawn.

    Attributes:
      origin: `[D]`, the mean of people.
      axes: `[2, D]`, orthonormal; the second one is 0 if z has one dimension.
      share: `[2]`, the share of the variance among people along each axis.
    """

    origin: np.ndarray
    axes: np.ndarray
    share: np.ndarray

    @classmethod
    def of(cls, z: np.ndarray) -> Self:
        """Finds the axes of people with z `[P, D]`.

        The largest entry of each axis is positive, so that a map does not depend on how
        a singular value decomposition is computed.
        """
        z = np.asarray(z, float)
        origin = z.mean(axis=0)
        _, size, axes = np.linalg.svd(z - origin, full_matrices=False)
        largest = np.abs(axes).argmax(axis=1)
        signs = np.sign(axes[np.arange(len(axes)), largest])
        missing = max(0, 2 - len(axes))
        axes = np.pad(axes * signs[:, None], [(0, missing), (0, 0)])
        variance = np.pad(size**2, (0, missing))
        return cls(origin, axes[:2], variance[:2] / max(variance.sum(), 1e-30))

    def place(self, z: np.ndarray) -> np.ndarray:
        """Returns where z `[..., D]` is on the map, `[..., 2]`."""
        return (np.asarray(z, float) - self.origin) @ self.axes.T

    def components(self, q: DiagonalGaussian | Posterior) -> Components:
        """Returns what a distribution over `[D]` is on the map."""
        if isinstance(q, Posterior):
            half = np.asarray(q.inverse, float)
            covariance = np.einsum("cij,cik->cjk", half, half)
            weight = np.exp(np.asarray(q.log_weight, float))
            mean = np.asarray(q.component_mean, float)
        else:
            covariance = np.diag(np.exp(2 * np.asarray(q.log_std, float)))[None]
            weight, mean = np.ones(1), np.asarray(q.mean, float)[None]
        flat = self.axes @ covariance @ self.axes.T
        # An axis that does not exist has a width nevertheless, so that loops have area.
        least = 1e-4 * max(np.trace(flat.mean(axis=0)), 1e-8)
        return Components(
            weight / weight.sum(), self.place(mean), flat + least * np.eye(2)
        )


def density(components: Components, points: np.ndarray) -> np.ndarray:
    """Returns the density of a mixture at points `[..., 2]`."""
    total = np.zeros(points.shape[:-1])
    for weight, mean, covariance in zip(*components, strict=True):
        gap = points - mean
        distance = np.einsum("...i,ij,...j->...", gap, np.linalg.inv(covariance), gap)
        scale = 2 * np.pi * np.sqrt(np.linalg.det(covariance))
        total += weight * np.exp(-0.5 * distance) / scale
    return total


def contours(
    components: Components, shares: tuple[float, ...] = SHARES
) -> list[list[np.ndarray]]:
    """Computes the regions of highest density that hold shares of the probability.

    Args:
      components: a mixture.
      shares: the shares.

    Returns:
      For each share its L loops `[V, 2]`, counterclockwise from the rightmost point.
    """
    kept = components.weight >= _LEAST_WEIGHT
    components = Components(*(x[kept] for x in components))
    x, y = (_lines(components, axis) for axis in (0, 1))
    values = density(components, np.stack(np.meshgrid(x, y), axis=-1))
    area = np.outer(np.gradient(y), np.gradient(x))
    generator = contourpy.contour_generator(x, y, values)
    return [
        [_evenly(line) for line in generator.lines(level)]
        for level in _levels(values, area, shares)
    ]


def bounds(points: np.ndarray, margin: float = 0.2) -> np.ndarray:
    """Returns the rectangle that holds points `[..., 2]`: lower left corner and sizes.

    Neither size is less than a quarter of the other one.

    Returns:
      `[2, 2]`.
    """
    flat = points.reshape(-1, 2)
    low, high = flat.min(axis=0), flat.max(axis=0)
    size = np.maximum(high - low, max((high - low).max() / 4, 1e-6)) * (1 + 2 * margin)
    return np.stack([(low + high - size) / 2, size])


def _lines(components: Components, axis: int) -> np.ndarray:
    """Returns the places of grid lines, which are dense where a component is narrow."""
    std = np.sqrt(components.covariance[:, axis, axis])
    reach = np.linspace(-_REACH, _REACH, _LINES)
    # Equal components have lines that differ by rounding, between which nothing fits.
    lines = np.unique((components.mean[:, axis, None] + std[:, None] * reach).ravel())
    kept = np.diff(lines, prepend=-np.inf) > 1e-3 * std.min()
    return lines[kept]


def _levels(values: np.ndarray, area: np.ndarray, shares) -> np.ndarray:
    """Returns the densities above which a grid holds shares of the probability."""
    order = np.argsort(-values, axis=None)
    sorted_values = values.ravel()[order]
    mass = sorted_values * area.ravel()[order]
    # A cell has its density in its middle.
    held = np.cumsum(mass) - mass / 2
    return np.interp(np.asarray(shares) * mass.sum(), held, sorted_values)


def _evenly(line: np.ndarray) -> np.ndarray:
    """Returns a closed line as V points at equal distances, see `contours`."""
    x, y = line[:-1].T
    if np.sum(x * np.roll(y, -1) - y * np.roll(x, -1)) < 0:
        line = line[::-1]
    first = int(line[:-1, 0].argmax())
    line = np.concatenate([np.roll(line[:-1], -first, axis=0), line[first : first + 1]])
    along = np.append(0, np.cumsum(np.linalg.norm(np.diff(line, axis=0), axis=1)))
    wanted = np.linspace(0, along[-1], _POINTS, endpoint=False)
    return np.stack([np.interp(wanted, along, each) for each in line.T], axis=1)
