import pytest

from fsa.cost_model.chips import CHIPS, sold
from fsa.errors import InputError


@pytest.mark.parametrize(
    "topology, number",
    [
        ("v5e:1x1", 1),
        ("v5e:16x16", 256),
        ("v6e:8x16", 128),
        ("v5p:2x2x1", 4),
        ("v5p:4x4x4", 64),
        ("v5p:8x8x8", 512),
        ("v5p:16x16x24", 6144),
        ("v4:4x4x8", 128),
        ("tpu7x:4x4x4", 64),
    ],
)
def test_what_is_sold(topology, number):
    chip, chips = sold(topology)
    assert chip is CHIPS[topology.split(":")[0]]
    assert chips == number


@pytest.mark.parametrize(
    "topology",
    [
        "v5e:32x32",  # Larger than a pod.
        "v5e:3x3",
        "v5e:16x8",  # Sold the other way round.
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
def test_what_nobody_sells_is_refused_in_one_line(topology):
    with pytest.raises(InputError, match="--topology") as raised:
        sold(topology)
    assert "\n" not in str(raised.value)
