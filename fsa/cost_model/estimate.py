"""Estimates the time of a step from its costs: a roofline (Williams et al. 2009).

Assumptions: products run at the chip's bfloat16 peak, memory and links at their full
bandwidth. Instructions run one after the other, and each takes the longer of its
arithmetic and its memory traffic. Collectives use all links of a chip.

Two figures are given. `overlapped` lets computation, collectives within a slice and
collectives between slices run at the same time; `serial` runs them one after the other.
Both are lower bounds for real chips, which do not reach their peaks.
"""

from typing import NamedTuple

from fsa.cost_model.chips import Chip
from fsa.cost_model.cost import Costs


class Seconds(NamedTuple):
    """The seconds of one step by what takes them.

    Attributes:
      compute: arithmetic and memory traffic.
      links: collectives within a slice.
      network: collectives between slices.
    """

    compute: float
    links: float
    network: float

    @property
    def overlapped(self) -> float:
        """Seconds of a step if all communication overlaps with computation."""
        return max(self.compute, self.links, self.network)

    @property
    def serial(self) -> float:
        """Seconds of a step if nothing overlaps."""
        return self.compute + self.links + self.network


def seconds(costs: Costs, chip: Chip) -> Seconds:
    """Returns the shortest time that a step can take.

    Args:
      costs: of one device.
      chip: the chip that the device belongs to.

    Raises:
      ValueError: if slices communicate and the bandwidth between them is unpublished.
    """
    share = 1 / chip.devices
    compute = sum(
        each.count
        * max(
            each.flops / (chip.peak * share), each.bytes / (chip.hbm_bandwidth * share)
        )
        for each in costs.operations
    )
    within = sum(c.sent * c.count for c in costs.collectives if not c.between_slices)
    between = sum(c.sent * c.count for c in costs.collectives if c.between_slices)
    if between and chip.network is None:
        raise ValueError("the bandwidth between slices of this chip is unpublished")
    return Seconds(
        compute=compute,
        links=within / (chip.links * share),
        network=between / (chip.network * share) if between else 0.0,
    )
