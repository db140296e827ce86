import numpy as np
import pytest

from fsa.cost_model.device_groups import axes, pairs, replica_groups

MESH = {"data": 2, "fsdp": 3, "tensor": 5}


def along(*names):
    """Groups along axes of MESH, from its array of devices."""
    devices = np.arange(30).reshape(2, 3, 5)
    last = [list(MESH).index(name) for name in names]
    moved = np.moveaxis(devices, last, range(3 - len(last), 3))
    return moved.reshape(-1, np.prod([MESH[name] for name in names]))


def as_text(groups):
    examples = (",".join(map(str, group)) for group in groups)
    return "{" + ",".join(f"{{{example}}}" for example in examples) + "}"


@pytest.mark.parametrize(
    "names", [("data",), ("fsdp",), ("tensor",), ("data", "fsdp"), ("fsdp", "tensor")]
)
def test_listed_groups_are_traced_to_their_axes(names):
    text = f", channel_id=7, replica_groups={as_text(along(*names))}, dimensions={{0}}"
    found = replica_groups(text, 30)
    np.testing.assert_array_equal(found, along(*names))
    assert axes(found, MESH) == names


@pytest.mark.parametrize(
    "text, names",
    [
        ("[6,5]<=[30]", ("tensor",)),
        ("[15,2]<=[2,15]T(1,0)", ("data",)),
        ("[10,3]<=[2,3,5]T(0,2,1)", ("fsdp",)),
        ("mesh['a'=2,'b'=15] {'a'}", ("data",)),
        ("mesh['a'=2,'b'=15] {'b'}", ("fsdp", "tensor")),
        ("mesh['a'=6,'b'=5] {'a':(2)3}", ("fsdp",)),
        ("mesh['a'=6,'b'=5] {'a':(1)2}", ("data",)),
        ("mesh['a'=5,'b'=6], device_ids=([6,5]T(1,0)) {'a'}", ("tensor",)),
    ],
)
def test_strided_groups_and_those_of_meshes_are_the_listed_ones(text, names):
    found = replica_groups(f", replica_groups={text}, use_global_device_ids=true", 30)
    assert sorted(map(sorted, found)) == sorted(map(sorted, along(*names)))
    assert axes(found, MESH) == names


def test_devices_in_an_order_of_their_own():
    text = "replica_groups=mesh['a'=2,'b'=2], device_ids=(0,2,1,3) {'b'}"
    assert replica_groups(text, 4).tolist() == [[0, 2], [1, 3]]


def test_no_group_is_all_devices():
    assert axes(replica_groups("replica_groups={}, x=1", 30), MESH) == tuple(MESH)
    assert axes(replica_groups(", channel_id=1", 30), MESH) == tuple(MESH)


def test_a_ring_lies_on_its_axis():
    ring = [(at, at - at % 5 + (at + 1) % 5) for at in range(30)]
    text = f", source_target_pairs={as_text(ring)}, x=1"
    assert axes(pairs(text), MESH) == ("tensor",)


def test_another_syntax_is_an_error():
    with pytest.raises(ValueError, match="replica groups"):
        replica_groups("replica_groups=<all>", 4)
