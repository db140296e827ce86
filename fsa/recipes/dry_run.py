"""Compiles the training step of a config for devices that need not exist."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from fsa.cost_model.chips import Chip
from fsa.cost_model.compile_step import compile_step
from fsa.cost_model.dry_run_result import DryRun
from fsa.cost_model.flops import flops
from fsa.inference.saved_model import REWARD_MODEL
from fsa.parallel.sharding import make_mesh
from fsa.recipes.config import Config
from fsa.recipes.kinds import RECIPES
from fsa.recipes.run import AbstractRun, build_optimizer, build_runner
from fsa.training.step import init_state


def dry_run(
    config: Config,
    devices: list,
    chip: Chip | None,
    slices: int = 1,
    keep: Callable[[str], None] | None = None,
) -> DryRun:
    """Compiles the training step of a checked config and reports what it needs.

    Args:
      config: a config that was checked for as many devices.
      devices: the devices of all slices.
      chip: the kind of chip, if it is known.
      slices: number of slices that the devices belong to.
      keep: takes the text of the compiled program.

    Raises:
      InputError: if these devices cannot run the config.
    """
    run = RECIPES[config["kind"]].abstract(config)
    optimizer = build_optimizer(config)
    mesh = make_mesh(**config["mesh"], devices=devices)
    runner = build_runner(config, run.loss_fn, run.sharding_rules, optimizer, mesh)
    return compile_step(
        runner.jitted,
        _arguments(run, runner, optimizer),
        mesh=mesh.shape,
        useful_flops=_useful_flops(run),
        chip=chip,
        slices=slices,
        advice=_advice(config, mesh),
        keep=keep,
    )


def _arguments(run: AbstractRun, runner, optimizer) -> tuple:
    """Returns the arguments of a call of one step, as shapes with shardings."""

    def placed(x, sharding):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    def stacked(x):
        one = jax.ShapeDtypeStruct((1, *x.shape), x.dtype)
        return placed(one, runner.example_sharding)

    state = jax.eval_shape(lambda v: init_state(v, optimizer), run.variables)
    key = jax.eval_shape(lambda: jax.random.key(0))
    state, constants, key = (
        jax.tree.map(placed, tree, runner.shardings(tree))
        for tree in (state, run.constants, key)
    )
    return state, constants, jax.tree.map(stacked, run.examples), key


def _useful_flops(run: AbstractRun) -> float:
    """Returns the FLOPs of one step on all devices, without recomputation.

    The gradients of activations cost as much as a forward pass. Those of weights cost
    as much again, but if only few parameters are trained, this cost is neglected.
    """
    key = jax.eval_shape(lambda: jax.random.key(0))
    # A loop of unknown length is the search for z, beside the language model nothing.
    batch = run.constants, run.examples
    forward = flops(run.loss_fn, run.variables, batch, key, while_trips=1)
    return forward * (3 if run.trains_all else 2)


def _advice(config: Config, mesh: Mesh) -> list[str]:
    """Returns config changes that reduce memory, the least costly first."""
    sizes: Mapping[str, int] = mesh.shape
    settings: dict[str, Any] = config["train"]
    lines = []
    if config.get("language_model", {}).get("remat") == "":
        lines.append("--config.language_model.remat=nothing_saveable recomputes layers")
    if sizes["data"] > 1:
        lines.append(
            f"--config.mesh.fsdp={sizes['data'] * sizes['fsdp']} stores parameters and "
            "optimizer state in more parts"
        )
    examples = settings["batch_size"] // (sizes["data"] * sizes["fsdp"])
    if examples > settings["accumulate"]:
        lines.append(
            f"--config.train.accumulate={examples} computes one example of each chip "
            "at a time"
        )
    elif config["kind"] != REWARD_MODEL and sizes["fsdp"] % 2 == 0:
        lines.append(
            f"--config.mesh.fsdp={sizes['fsdp'] // 2} "
            f"--config.mesh.tensor={2 * sizes['tensor']} "
            f"--config.train.accumulate={2 * examples} lets more chips compute a user "
            "together"
        )
    lines.append("more chips, or chips with more memory")
    return lines
