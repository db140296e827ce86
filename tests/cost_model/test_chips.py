"""Topologies: those that are sold, and no others."""

import pytest

from fsa.cost_model.chips import CHIPS, find_chip
from fsa.errors import InputError


@pytest.mark.parametrize(
    "topology",
    [
        "v5e:1x1",
        "v5e:16x16",
        "v6e:8x16",
        "v5p:2x2x1",
        "v5p:4x4x4",
        "v5p:8x8x8",
        "v5p:16x16x24",  # The largest slice, of 6144 chips.
        "v4:4x4x8",
        "tpu7x:4x4x4",
    ],
)
def test_topologies_that_are_sold_have_their_chip(topology):
    assert find_chip(topology) is CHIPS[topology.split(":")[0]]


@pytest.mark.parametrize(
    "topology",
    [
        "v5e:32x32",  # Larger than a pod.
        "v5e:3x3",
        "v5e:16x8",  # Sold as 8x16.
        "v5e:4x4x4",
        "v6e:2x2x1",
        "v5p:4x4",
        "v5p:8x4x4",
        "v5p:4x4x6",
        "v5p:16x24x24",
        "v5p:0x4x4",
        "v5p:04x4x4",
        "v5p",
        "v3:4x4",
        "16x16",
        "",
    ],
)
def test_topologies_that_are_not_sold_are_refused(topology):
    with pytest.raises(InputError, match="`topology`"):
        find_chip(topology)
