"""The speed and memory of TPU chips, and the topologies in which they are sold.

From the pages of Google Cloud, read in November 2026: docs.cloud.google.com/tpu/docs/
v4, v5e, v5p, v6e and tpu7x. The links of v4 are from Jouppi et al. 2023, table 4. The
memory is what libtpu 0.0.42.1 reports as available to a program that asks for more.
"""

import dataclasses
import math
import re

from fsa.errors import InputError

_GB, _GIB = 1e9, 2.0**30

# Shapes below a cube of 4x4x4 chips; above it, every shape of whole cubes is sold.
_SMALL = ("2x2x1", "2x2x2", "2x2x4", "2x4x4")
_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")


@dataclasses.dataclass(frozen=True)
class Chip:
    """A kind of chip.

    Attributes:
      peak: bfloat16 FLOPs a second.
      hbm: bytes of memory that a program may use.
      hbm_bandwidth: bytes a second between memory and processor.
      links: bytes a second that it sends to its neighbours, over all links.
      network: bytes a second that it sends to other slices; None if unpublished.
      shapes: topologies that are sold, except those of whole cubes.
      most: chips in the largest slice of cubes; 0 if none is sold.
      devices: number of JAX devices of one chip.
    """

    peak: float
    hbm: float
    hbm_bandwidth: float
    links: float
    network: float | None
    shapes: tuple[str, ...]
    most: int = 0
    devices: int = 1


# A "bidirectional" bandwidth on the pages is the sum of both directions.
CHIPS = {
    "v4": Chip(
        peak=275e12,
        hbm=30.5 * _GIB,
        hbm_bandwidth=1200 * _GB,
        links=300 * _GB,
        network=None,
        shapes=_SMALL,
        most=4096,
        devices=2,
    ),
    "v5e": Chip(
        peak=197e12,
        hbm=15.75 * _GIB,
        hbm_bandwidth=819 * _GB,
        links=400 / 2 * _GB,
        # 6.4 Tbps for 256 chips.
        network=6400 / 256 / 8 * _GB,
        shapes=_FLAT,
    ),
    "v5p": Chip(
        peak=459e12,
        hbm=95.74 * _GIB,
        hbm_bandwidth=2765 * _GB,
        links=1200 / 2 * _GB,
        network=50 / 8 * _GB,
        shapes=_SMALL,
        most=6144,
    ),
    "v6e": Chip(
        peak=918e12,
        hbm=31.25 * _GIB,
        hbm_bandwidth=1638 * _GB,
        links=800 / 2 * _GB,
        network=None,
        shapes=_FLAT,
    ),
    "tpu7x": Chip(
        peak=2307e12,
        hbm=189.5 * _GIB,
        hbm_bandwidth=7380 * _GB,
        links=1200 / 2 * _GB,
        network=None,
        shapes=_SMALL,
        most=9216,
        devices=2,
    ),
}


def find_chip(topology: str) -> Chip:
    """Returns the chip of a topology such as "v5e:16x16".

    Raises:
      InputError: if no such topology is sold.
    """
    generation, _, shape = topology.partition(":")
    if generation not in CHIPS:
        raise InputError(
            f"`topology`={topology}: name a chip of {', '.join(CHIPS)} and a shape, "
            "such as v5e:16x16, or local"
        )
    chip = CHIPS[generation]
    sizes = [int(n) for n in re.findall(r"\d+", shape)]
    if shape not in chip.shapes and not _is_cubes(shape, sizes, chip.most):
        cubes = f", or AxBxC of multiples of 4, A <= B <= C, up to {chip.most} chips"
        raise InputError(
            f"`topology`={topology}: no such shape is sold; {generation} comes as "
            f"{', '.join(chip.shapes)}{cubes if chip.most else ''}"
        )
    return chip


def _is_cubes(shape: str, sizes: list[int], most: int) -> bool:
    return (
        re.fullmatch(r"[1-9]\d*(x[1-9]\d*){2}", shape) is not None
        and sizes == sorted(sizes)
        and not any(size % 4 for size in sizes)
        and math.prod(sizes) <= most
    )
