"""Which devices a collective joins, and which axes of a mesh those span."""

import math
import re
from collections.abc import Mapping

import numpy as np

_IOTA = re.compile(r"\[([\d,]+)\](?:<=\[([\d,]+)\])?(?:T\(([\d,]+)\))?")
_AXIS = re.compile(r"'([^']+)'(?::\((\d+)\)(\d+))?")


def replica_groups(attributes: str, num_devices: int) -> np.ndarray:
    """The groups of a collective, `[groups, devices of each]`.

    Args:
      attributes: of its instruction. Groups are listed ({{0,1},{2,3}}), strided
        ([2,2]<=[2,2]T(1,0)) or axes of a mesh of the compiler's own
        (mesh['a'=2,'b'=2] {'b'}).
      num_devices: of the program; all of them where no group is named.

    Raises:
      ValueError: for another syntax.
    """
    found = re.search(r"\breplica_groups=(.*)", attributes)
    text = found[1] if found else "{}"
    if text.startswith("{{"):
        listed = re.match(r"\{(\{[\d,]*\},?)*\}", text)[0]
        rows = re.findall(r"\{([\d,]+)\}", listed[1:-1])
        return np.array([_integers(row) for row in rows])
    if text.startswith("{}"):
        return np.arange(num_devices)[None]
    if text.startswith("mesh["):
        return _of_mesh(text)
    if iota := _IOTA.match(text):
        return _strided(*iota.groups()).reshape(_integers(iota[1]))
    raise ValueError(f"unknown replica groups {text[:80]!r}")


def pairs(attributes: str) -> np.ndarray:
    """(source, target) of each transfer of a collective-permute, `[pairs, 2]`."""
    text = re.search(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}", attributes)[1]
    return np.array([_integers(p) for p in re.findall(r"\{([\d,]+)\}", text)])


def axes(groups: np.ndarray, mesh: Mapping[str, int]) -> tuple[str, ...]:
    """The axes of a mesh along which members of one group differ.

    Args:
      groups: `[groups, members]`, positions in the mesh's devices in a row.
      mesh: axis -> size, major to minor.
    """
    places = np.array(np.unravel_index(groups, tuple(mesh.values())))
    differs = (places != places[..., :1]).any(axis=(1, 2))
    return tuple(name for name, d in zip(mesh, differs, strict=True) if d)


def _integers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def _strided(shape: str, reshape: str | None, order: str | None) -> np.ndarray:
    """Device numbers in the order of an iota."""
    reshape = _integers(reshape or shape)
    devices = np.arange(math.prod(reshape)).reshape(reshape)
    return devices.transpose(_integers(order)) if order else devices


def _of_mesh(text: str) -> np.ndarray:
    """Groups along axes, or parts of axes (major part, size), of a named mesh."""
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
