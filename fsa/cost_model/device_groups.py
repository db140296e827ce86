"""Finds the devices that a collective joins, and the mesh axes that they span."""

import math
import re
from collections.abc import Mapping

import numpy as np

_IOTA = re.compile(r"\[([\d,]+)\](?:<=\[([\d,]+)\])?(?:T\(([\d,]+)\))?")
_AXIS = re.compile(r"'([^']+)'(?::\((\d+)\)(\d+))?")


def replica_groups(attributes: str, num_devices: int) -> np.ndarray:
    """Returns the groups of devices of a collective, `[groups, devices of each]`.

    Args:
      attributes: attributes of its instruction. Groups are written as a list
        ({{0,1},{2,3}}), with strides ([2,2]<=[2,2]T(1,0)), or as axes of a mesh that
        the compiler made (mesh['a'=2,'b'=2] {'b'}).
      num_devices: devices of the program, which form one group if none is written.

    Raises:
      ValueError: if the groups are written in another way.
    """
    found = re.search(r"\breplica_groups=(.*)", attributes)
    text = found[1] if found else "{}"
    if text.startswith("{{"):
        listed = re.match(r"\{(\{[\d,]*\},?)*\}", text)[0]
        groups = re.findall(r"\{([\d,]+)\}", listed[1:-1])
        return np.array([_integers(group) for group in groups])
    if text.startswith("{}"):
        return np.arange(num_devices)[None]
    if text.startswith("mesh["):
        return _of_mesh(text)
    if iota := _IOTA.match(text):
        return _strided(*iota.groups()).reshape(_integers(iota[1]))
    raise ValueError(f"unknown replica groups {text[:80]!r}")


def pairs(attributes: str) -> np.ndarray:
    """Returns (source, target) of a collective-permute's transfers, `[pairs, 2]`."""
    text = re.search(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}", attributes)[1]
    return np.array([_integers(p) for p in re.findall(r"\{([\d,]+)\}", text)])


def axes(groups: np.ndarray, mesh: Mapping[str, int]) -> tuple[str, ...]:
    """Returns the axes of a mesh along which members of a group differ.

    Args:
      groups: `[groups, members]`, positions in the flattened array of devices.
      mesh: axis -> size, major to minor.
    """
    places = np.array(np.unravel_index(groups, tuple(mesh.values())))
    differs = (places != places[..., :1]).any(axis=(1, 2))
    return tuple(name for name, d in zip(mesh, differs, strict=True) if d)


def _integers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def _strided(shape: str, reshape: str | None, order: str | None) -> np.ndarray:
    """Returns device numbers in the order that an iota describes."""
    reshape = _integers(reshape or shape)
    devices = np.arange(math.prod(reshape)).reshape(reshape)
    return devices.transpose(_integers(order)) if order else devices


def _of_mesh(text: str) -> np.ndarray:
    """Returns groups along axes, or along parts of axes, of a mesh with named axes."""
    found = re.match(r"mesh\[([^\]]*)\](?:, device_ids=\((.*?)\))? \{([^}]*)\}", text)
    sizes = {name: int(n) for name, n in re.findall(r"'([^']+)'=(\d+)", found[1])}
    ids = found[2]
    if ids is None:
        devices = np.arange(math.prod(sizes.values()))
    elif ids.startswith("["):
        devices = _strided(*_IOTA.match(ids).groups())
    else:
        devices = np.array(_integers(ids))
    chosen, dims = [], []
    wanted = {
        name: (int(major or 1), int(size or sizes[name]))
        for name, major, size in _AXIS.findall(found[3])
    }
    for name, full in sizes.items():
        major, size = wanted.get(name, (1, 1))
        chosen.append(len(dims) + 1)
        dims += [major, size, full // (major * size)]
    devices = devices.reshape(dims)
    last = np.moveaxis(devices, chosen, range(len(dims) - len(chosen), len(dims)))
    return last.reshape(-1, math.prod(dims[i] for i in chosen))
