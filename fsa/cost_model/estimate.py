"""Turns counts into seconds: a roofline (Williams et al. 2009) of one step.

Assumed: products run at the chip's bfloat16 peak, memory and links at their full
bandwidth; an instruction takes the longer of its arithmetic and its memory traffic, one
after the other; collectives use all links of a chip and hide behind computation, but
those between slices do not hide behind those within. So it is a bound from below; what
is lost when nothing hides is the bound from above.
"""

from typing import NamedTuple

from fsa.cost_model.chips import Chip
from fsa.cost_model.cost import Costs


class Seconds(NamedTuple):
    """Of one step.

    Attributes:
      compute: of arithmetic and memory.
      links: of collectives within a slice.
      network: of those between slices.
    """

    compute: float
    links: float
    network: float

    @property
    def overlapped(self) -> float:
        """Where everything hides behind the slowest."""
        return max(self.compute, self.links, self.network)

    @property
    def serial(self) -> float:
        """Where nothing hides."""
        return self.compute + self.links + self.network


def seconds(costs: Costs, chip: Chip) -> Seconds:
    """How long a step takes at best.

    Args:
      costs: of one device.
      chip: that the device belongs to.

    Raises:
      ValueError: if slices communicate whose network is unpublished.
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
