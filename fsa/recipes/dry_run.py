"""Compiles the training step of a config for devices that need not be there.

Shapes alone: no weights and no choices are read. `launch.compile` is the command line.
"""

import os
import re
from collections.abc import Callable
from typing import Any

import jax

from fsa.cost_model import chips, cost
from fsa.cost_model.dry_run_result import DryRun, Memory
from fsa.cost_model.flops import flops
from fsa.errors import InputError
from fsa.parallel.sharding import make_mesh
from fsa.recipes.abstract import AbstractRun, abstract_run
from fsa.recipes.runs import make_runner
from fsa.training.step import init_state, make_optimizer

_SIZES = {"B": 1, "K": 2.0**10, "M": 2.0**20, "G": 2.0**30, "T": 2.0**40}


def find_devices(topology: str, slices: int) -> tuple[list, chips.Chip | None]:
    """The devices of a topology, and what chips they are.

    Raises:
      InputError: if nobody sells it, or the compiler for it is not installed.
    """
    if topology == "local":
        return jax.devices(), None
    chip, _ = chips.sold(topology)
    if slices > 1 and chip.network is None:
        raise InputError(
            f"--slices={slices}: the bandwidth between slices of {topology} is not "
            "published; take v5e or v5p"
        )
    # Without these the compiler looks for a TPU, and for its metadata server.
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
        raise InputError(
            f"--topology={topology}: no TPU compiler ({error}); install fsa[tpu] in an "
            "environment of its own"
        ) from error
    return list(found.devices), chip


def dry_run(
    config: dict[str, Any],
    devices: list,
    chip: chips.Chip | None,
    slices: int = 1,
    keep: Callable[[str], None] = lambda text: None,
) -> DryRun:
    """Compiles the training step of a checked config for devices.

    Args:
      config: checked.
      devices: of all slices.
      chip: what they are, if known.
      slices: that the devices make up.
      keep: takes the text of the compiled program.

    Raises:
      InputError: for a config that these devices cannot run.
    """
    run = abstract_run(config)
    optimizer = make_optimizer(**config["optimizer"], steps=config["train"]["steps"])
    mesh = make_mesh(**config["mesh"], devices=devices)
    runner = make_runner(config, run, optimizer, mesh)
    arguments = _arguments(run, runner, optimizer)
    per_chip = chip.devices if chip else 1
    given = {
        "chips": len(devices) // per_chip,
        "useful_flops": _useful_flops(run) * per_chip / len(devices),
        "chip": chip,
    }
    hbm = chip and chip.hbm
    advice = tuple(_advice(config, mesh.shape))
    try:
        compiled = runner.jitted.trace(*arguments).lower().compile()
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
        return DryRun(**given, fits=False, memory=memory, costs=None, advice=advice)
    text = compiled.as_text()
    keep(text)
    stats = compiled.memory_analysis()
    memory = Memory(
        arguments=stats.argument_size_in_bytes * per_chip,
        temporary=stats.temp_size_in_bytes * per_chip,
        peak=_peak(stats) * per_chip,
        hbm=hbm,
    )
    # The compiler refuses temporaries that find no room, without counting arguments.
    fits = hbm is None or memory.peak <= hbm
    return DryRun(
        **given,
        fits=fits,
        memory=memory,
        costs=cost.count(text, mesh.shape, slices),
        advice=() if fits else advice,
    )


def _arguments(run: AbstractRun, runner, optimizer):
    """What a call of one step takes, in shapes with shardings."""

    def placed(x, sharding):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    def stacked(x):
        return placed(
            jax.ShapeDtypeStruct((1, *x.shape), x.dtype), runner.example_sharding
        )

    state = jax.eval_shape(lambda v: init_state(v, optimizer), run.variables)
    key = jax.eval_shape(lambda: jax.random.key(0))
    shared = (
        jax.tree.map(placed, tree, runner.shardings(tree))
        for tree in (state, run.constants, key)
    )
    state, constants, key = shared
    return state, constants, jax.tree.map(stacked, run.examples), key


def _useful_flops(run: AbstractRun) -> float:
    """Of one step of all devices, without recomputation.

    A backward pass costs as much as a forward pass for the gradients of activations,
    and again for those of weights, which few parameters need if few are trained.
    """
    key = jax.eval_shape(lambda: jax.random.key(0))
    forward = flops(run.loss_fn, run.variables, (run.constants, run.examples), key)
    return forward * (3 if run.trains_all else 2)


def _argument_bytes(arguments: Any) -> int:
    """Of one device."""

    def size(x):
        part = x.sharding.shard_shape(x.shape)
        return jax.ShapeDtypeStruct(part, x.dtype).size * x.dtype.itemsize

    return sum(map(size, jax.tree.leaves(arguments)))


def _peak(stats) -> int:
    return (
        stats.argument_size_in_bytes
        + stats.output_size_in_bytes
        - stats.alias_size_in_bytes
        + stats.temp_size_in_bytes
        + stats.generated_code_size_in_bytes
    )


def temporary_bytes(message: str, arguments: int) -> float | None:
    """The bytes beside the arguments that the compiler says it would need."""
    size = r"([\d.]+)([BKMGT])"
    if found := re.search(rf"HLO temporaries \({size}\)", message):
        return float(found[1]) * _SIZES[found[2]]
    if found := re.search(rf"Used {size} of {size} hbm", message):
        return float(found[1]) * _SIZES[found[2]] - arguments
    return None


def _advice(config: dict[str, Any], mesh) -> list[str]:
    """What would take less memory, least costly first."""
    lines = []
    if "language_model" in config and not config["language_model"]["remat"]:
        lines.append("--config.language_model.remat=nothing_saveable recomputes layers")
    if mesh["data"] > 1:
        lines.append(
            f"--config.mesh.fsdp={mesh['data'] * mesh['fsdp']} stores parameters and "
            "optimizer state in more parts"
        )
    examples = config["train"]["batch_size"] // (mesh["data"] * mesh["fsdp"])
    if examples > config["train"]["accumulate"]:
        lines.append(
            f"--config.train.accumulate={examples} computes an example of each chip at a time"
        )
    elif "language_model" in config and mesh["fsdp"] % 2 == 0:
        lines.append(
            f"--config.mesh.fsdp={mesh['fsdp'] // 2} "
            f"--config.mesh.tensor={2 * mesh['tensor']} "
            f"--config.train.accumulate={2 * examples} lets more chips compute a user "
            "together"
        )
    lines.append("more chips, or chips with more memory")
    return lines
