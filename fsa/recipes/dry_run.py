"""Compiles a step of a config for devices that need not exist.

The step is that of training, of evaluation (predictions for some people), or the
writing of texts for some people, by the functions that `fsa train`, `evaluate` and
`steer` run.

Shapes: B texts, T tokens of a prompt.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fsa.cost_model.chips import Chip
from fsa.cost_model.compile_step import compile_step
from fsa.cost_model.dry_run_result import DryRun
from fsa.cost_model.flops import flops
from fsa.data.tasks.packing import ROWS
from fsa.data.tasks.pairs import batch_shapes
from fsa.data.tasks.task import TEST
from fsa.errors import InputError
from fsa.evaluation.implicit_reward import PolicyPredictor
from fsa.inference.saved_model import POLICY, REWARD_MODEL
from fsa.inference.steerer import Steerer
from fsa.language.attention_kernels import XLA
from fsa.language.language_model import LanguageModel, writer
from fsa.models.policy import SHARDING_RULES
from fsa.parallel.examples import parts_of
from fsa.parallel.sharding import BATCH_AXES, make_mesh, shardings, with_shardings
from fsa.recipes import policy_run
from fsa.recipes.config import Config
from fsa.recipes.kinds import RECIPES
from fsa.recipes.run import AbstractRun, build_optimizer, build_runner
from fsa.training.step import init_state

TRAIN, EVALUATE, WRITE = STEPS = ("train", "evaluate", "write")


def dry_run(
    config: Config,
    devices: list,
    chip: Chip | None,
    slices: int = 1,
    keep: Callable[[str], None] | None = None,
    *,
    step: str = TRAIN,
    texts: int = 8,
) -> DryRun:
    """Compiles a step of a checked config and reports what it needs.

    Args:
      config: a config that was checked for as many devices.
      devices: the devices of all slices.
      chip: the kind of chip, if it is known.
      slices: number of slices that the devices belong to.
      keep: takes the text of the compiled program.
      step: one of `STEPS`; the last two are for policies.
      texts: number of texts that a device writes together.

    Raises:
      InputError: if these devices cannot run the config, or its kind has no such step.
    """
    if step != TRAIN:
        if config["kind"] != POLICY:
            raise InputError(f"`step`={step}: the config is not that of a policy")
        mesh = make_mesh(**config["mesh"], devices=devices)
        if step == EVALUATE:
            jitted, arguments = _evaluation(config, mesh)
        else:
            jitted, arguments = _writing(config, mesh, texts)
        return compile_step(
            jitted,
            arguments,
            mesh=mesh.shape,
            # Of writing, prefill and one token: nobody knows how long texts will be.
            useful_flops=flops(jitted, *arguments, while_trips=1),
            chip=chip,
            slices=slices,
            advice=_advice_without_training(mesh),
            keep=keep,
        )
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


def _evaluation(config: Config, mesh: Mesh) -> tuple[Any, tuple]:
    """Returns what predicts for as many people as are predicted together."""
    found, settings = _as_loaded(config), config["eval"]
    predict = PolicyPredictor(
        found.policy,
        None,
        TEST,
        num_context=tuple(settings["num_context"]),
        episodes_per_user=1,
        beta=config["dpo"]["beta"],
        users_at_once=settings["users_at_once"],
        mesh=mesh,
    )
    users = batch_shapes(
        batch_size=predict.batch_size,
        max_context=max(settings["num_context"]),
        num_targets=settings["num_targets"],
        num_pairs=None,
        num_features=found.num_features,
        length=max(config["task"]["buckets"]),
    )
    variables, base = _split(found, mesh)
    return predict.jitted, (variables, base, _by_example(users, mesh))


def _writing(config: Config, mesh: Mesh, texts: int) -> tuple[Any, tuple]:
    """Returns what writes the longest texts to the longest prompts, each at its z."""
    found, task = _as_loaded(config), config["task"]
    steerer = Steerer(
        found.policy,
        found.variables,
        LanguageModel(found.policy.language_model, found.base, None, "", texts, mesh),
        task["pooling"],
        task["buckets"],
    )
    write = writer(
        steerer.language.model,
        steerer.decoder,
        mesh,
        max_new_tokens=task["max_response"],
        # Any token may end a text, which changes nothing of what is compiled.
        stop_tokens=(0,),
    )
    number = texts * parts_of(mesh)
    examples = (
        jax.ShapeDtypeStruct((number, found.policy.latent_dim), jnp.float32),
        jax.ShapeDtypeStruct((number, task["max_prompt"]), jnp.int32),
        jax.ShapeDtypeStruct((number, task["max_prompt"]), bool),
        jax.ShapeDtypeStruct((number,), jnp.int32),
    )
    variables, base = _split(found, mesh)
    scalar = jax.ShapeDtypeStruct((), jnp.int32)
    scalars = (with_shardings(scalar, NamedSharding(mesh, PartitionSpec())),) * 2
    examples = _by_example(examples, mesh)
    return write.jitted, (base, variables["params"], *scalars, examples)


def _as_loaded(config: Config) -> policy_run.AbstractPolicy:
    """Returns the policy as `Steerer.load` makes it, which needs no gradients."""
    own = {**config["language_model"], "attention": XLA, "remat": ""}
    return policy_run.abstract_policy({**config, "language_model": own})


def _split(found: policy_run.AbstractPolicy, mesh: Mesh) -> tuple[Any, Any]:
    """Returns the shapes of a policy's variables and of its language model, placed."""
    trees = found.variables, found.base
    return tuple(
        with_shardings(tree, shardings(tree, mesh, SHARDING_RULES)) for tree in trees
    )


def _by_example(tree: Any, mesh: Mesh) -> Any:
    by_example = NamedSharding(mesh, PartitionSpec(BATCH_AXES))
    return with_shardings(tree, jax.tree.map(lambda _: by_example, tree))


def _advice_without_training(mesh: Mesh) -> list[str]:
    """Returns what reduces the memory of evaluation and writing."""
    sizes: Mapping[str, int] = mesh.shape
    lines = []
    if sizes["data"] > 1:
        number = sizes["data"] * sizes["fsdp"]
        lines.append(f"--config.mesh.fsdp={number} stores parameters in more parts")
    lines.append("fewer people or texts at a time, or more chips")
    return lines


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
    if config.get("task", {}).get("packing") == ROWS:
        lines.append(
            "--config.task.rows_at_once=1 computes one row of each chip at a time"
        )
    elif examples > settings["accumulate"]:
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
