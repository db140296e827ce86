"""Compiles a training step for devices that need not exist, and reports what it needs.

No array is made: the step's arguments are shapes with shardings.
"""

import importlib.util
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from fsa.cost_model import chips, cost
from fsa.cost_model.dry_run_result import DryRun, Memory
from fsa.errors import InputError, missing_extra

_BYTES = {"B": 1, "K": 2.0**10, "M": 2.0**20, "G": 2.0**30, "T": 2.0**40}


def find_devices(topology: str, slices: int = 1) -> tuple[list, chips.Chip | None]:
    """Returns the devices of a topology, and their kind of chip.

    Args:
      topology: of each slice, such as "v5e:16x16", which needs the TPU compiler; or
        "local" for the devices of this machine, whose chip is not known.
      slices: number of slices of that topology.

    Raises:
      InputError: if no such topology is sold, or the TPU compiler is not installed.
    """
    if topology == "local":
        if slices > 1:
            raise InputError(f"`slices`={slices}: this machine is one slice; leave out")
        return jax.devices(), None
    chip = chips.find_chip(topology)
    if slices > 1 and chip.network is None:
        raise InputError(
            f"`slices`={slices}: the bandwidth between slices of {topology} is not "
            "published; take v5e or v5p"
        )
    # Without these settings the compiler looks for a TPU and for its metadata server.
    jax.config.update("jax_platforms", "cpu")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    from jax.experimental import topologies

    options: dict[str, Any] = {"num_slices": slices} if slices > 1 else {}
    if topology.endswith(":1x1"):
        options["chips_per_host_bounds"] = (1, 1, 1)
    try:
        found = topologies.get_topology_desc(
            platform="tpu", topology_name=topology, **options
        )
    except (ImportError, RuntimeError) as error:
        if importlib.util.find_spec("libtpu") is None:
            what = f"`topology`={topology}: the TPU compiler"
            raise missing_extra("tpu", what, error) from error
        why = str(error).partition("\n")[0]
        raise InputError(f"`topology`={topology}: the TPU compiler: {why}") from error
    return list(found.devices), chip


def compile_step(
    jitted: Any,
    arguments: Sequence[Any],
    *,
    mesh: Mapping[str, int],
    useful_flops: float,
    chip: chips.Chip | None = None,
    slices: int = 1,
    advice: Sequence[str] = (),
    keep: Callable[[str], None] | None = None,
) -> DryRun:
    """Compiles a step and returns the memory, work and communication that it needs.

    Args:
      jitted: the step, a function under `jax.jit`.
      arguments: of the step, trees of `jax.ShapeDtypeStruct` with shardings.
      mesh: axis -> size of the mesh of those shardings, in its order.
      useful_flops: floating-point operations of one step on all devices together,
        without recomputation.
      chip: the kind of chip, if it is known.
      slices: number of slices that the devices belong to.
      advice: lines that say how to reduce memory, for a step that does not fit.
      keep: called with the text of the compiled program.
    """
    num_devices = math.prod(mesh.values())
    per_chip = chip.devices if chip else 1
    result = {
        "chips": num_devices // per_chip,
        "useful_flops": useful_flops * per_chip / num_devices,
        "chip": chip,
    }
    hbm = chip and chip.hbm
    try:
        compiled = jitted.trace(*arguments).lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        size = _argument_bytes(arguments)
        temporary = temporary_bytes(str(error), size)
        memory = Memory(
            arguments=size * per_chip,
            temporary=temporary and temporary * per_chip,
            peak=temporary and (size + temporary) * per_chip,
            hbm=hbm,
        )
        return DryRun(
            **result, fits=False, memory=memory, costs=None, advice=tuple(advice)
        )
    text = compiled.as_text()
    if keep:
        keep(text)
    stats = compiled.memory_analysis()
    memory = Memory(
        arguments=stats.argument_size_in_bytes * per_chip,
        temporary=stats.temp_size_in_bytes * per_chip,
        peak=_peak_bytes(stats) * per_chip,
        hbm=hbm,
    )
    # The compiler refuses temporaries that do not fit, but does not count arguments.
    fits = None if hbm is None else memory.peak <= hbm
    return DryRun(
        **result,
        fits=fits,
        memory=memory,
        costs=cost.count(text, mesh, slices),
        advice=tuple(advice) if fits is False else (),
    )


def temporary_bytes(message: str, arguments: int) -> float | None:
    """Returns the memory beside the arguments that a compiler's error message names.

    Args:
      message: of the error RESOURCE_EXHAUSTED.
      arguments: bytes of the program's arguments on one device.

    Returns:
      Bytes of one device, or None if the message does not name them.
    """
    size = r"([\d.]+)([BKMGT])"
    if found := re.search(rf"HLO temporaries \({size}\)", message):
        return float(found[1]) * _BYTES[found[2]]
    if found := re.search(rf"Used {size} of {size} hbm", message):
        return float(found[1]) * _BYTES[found[2]] - arguments
    return None


def _argument_bytes(arguments: Any) -> int:
    """Returns the bytes of a tree of shapes with shardings on one device."""

    def size(x):
        return math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize

    return sum(map(size, jax.tree.leaves(arguments)))


def _peak_bytes(stats) -> int:
    """Returns the most memory in use at a time; outputs may share that of arguments."""
    return (
        stats.argument_size_in_bytes
        + stats.output_size_in_bytes
        - stats.alias_size_in_bytes
        + stats.temp_size_in_bytes
        + stats.generated_code_size_in_bytes
    )
