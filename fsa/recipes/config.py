"""Configs: what may stand in them, and what is built from them.

The library takes plain arguments; this file and experiments/ alone know ConfigDicts.
"""

import difflib
import math
from collections.abc import Callable
from typing import Any

import jax
from jax import checkpoint_policies
from ml_collections import ConfigDict

from fsa.data import dataset
from fsa.data.sources.attributes import ATTRIBUTES
from fsa.data.tasks.people import CHOICES, RATINGS, People
from fsa.data.tasks.simulated import Continuum, TwoTypes
from fsa.data.tasks.task import TEST, VALID, Task
from fsa.errors import InputError
from fsa.evaluation.generated_texts import VALIDITY
from fsa.language.attention_kernels import ATTENTIONS
from fsa.language.huggingface import architecture
from fsa.language.scoring import POOLINGS
from fsa.models.encoder import ContextEncoder
from fsa.models.policy import LATENTS, spec_of
from fsa.models.reward import CONDITIONINGS, LIKELIHOODS, OBJECTIVES
from fsa.parallel import sharding
from fsa.training.policy_loss import LOSSES
from fsa.training.run_directory import flatten


def _number(low, high=math.inf, kind=(int, float)):
    """A number in [low, high]."""

    def check(value):
        if isinstance(value, bool) or not isinstance(value, kind):
            return f"is a {'whole ' if kind is int else ''}number"
        if low <= value <= high and math.isfinite(value):
            return None
        return f"is in [{low}, {high}]"

    return check


def _whole(low, high=math.inf):
    return _number(low, high, int)


def _one_of(*choices):
    return lambda value: None if value in choices else f"is one of {choices}"


def _sizes(low):
    """Different whole numbers from `low` up, in order."""

    def check(value):
        is_list = isinstance(value, list | tuple) and len(value)
        whole = is_list and all(_whole(low)(n) is None for n in value)
        if whole and list(value) == sorted(set(value)):
            return None
        return f"is a growing list of whole numbers, e.g. ({low}, 5, 10)"

    return check


def _widths(value):
    if isinstance(value, list | tuple) and all(_whole(1)(n) is None for n in value):
        return None
    return "is a list of widths, e.g. (64,)"


def _optional(check):
    return lambda value: None if value is None else check(value)


def _is_text(value):
    return None if isinstance(value, str) else "is a text"


def _is_path(value):
    return None if isinstance(value, str) and value else "is a path"


def _modulations(value):
    try:
        spec_of(value)
    except (TypeError, ValueError) as error:
        return f"is a list of (map of a layer, modulation): {error}"
    return None


def _attributes(value):
    if isinstance(value, list | tuple) and set(value) <= set(ATTRIBUTES):
        return None
    return f"is a list of {', '.join(ATTRIBUTES)}"


def _is_shape(value):
    if not isinstance(value, list | tuple):
        return "is a list of (field of config.json, value)"
    try:
        architecture.arguments(dict(value), "shape") if value else None
    except (TypeError, ValueError, InputError) as error:
        return f"is a list of (field of config.json, value): {error}"
    return None


def _is_remat(value):
    if value == "" or isinstance(value, str) and hasattr(checkpoint_policies, value):
        return None
    return "is a policy of jax.checkpoint_policies, or empty"


_POSITIVE = _number(1e-12)
_SHARE = _number(0, 1)
_FLAG = _one_of(True, False)

# Of every run; then of those that infer z; then those of each task.
_COMMON = {
    "seed": _whole(0, 2**31 - 1),
    "optimizer.learning_rate": _POSITIVE,
    "optimizer.warmup_steps": _whole(0),
    "optimizer.weight_decay": _number(0),
    "optimizer.clip_norm": _POSITIVE,
    "train.steps": _whole(1),
    "train.batch_size": _whole(1),
    "train.steps_per_call": _whole(1),
    "train.validate_every": _whole(1),
    "train.average_decay": _number(0, 1 - 1e-9),
    "train.keep_last": _whole(2),
    "train.skip_bad_steps": _whole(0),
    "train.parallel": _one_of("mesh", "pmap"),
    "train.accumulate": _whole(1),
    "mesh.fsdp": _whole(1),
    "mesh.tensor": _whole(1),
}
_FEW_SHOT = {
    "task.max_context": _whole(0),
    "task.num_targets": _whole(1),
    "model.hidden": _whole(1),
    "model.latent_dim": _whole(0),
    "model.likelihood": _one_of(*LIKELIHOODS),
    "model.reward": _one_of(*CONDITIONINGS),
    "model.pooling": _one_of("mean", "attention"),
    "model.standard_prior": _FLAG,
    "model.item_embeddings": _FLAG,
    "model.item_dropout": _SHARE,
    "objective.name": _one_of(*OBJECTIVES),
    "objective.num_samples": _whole(1),
    "objective.beta": _number(0),
    "eval.num_context": _sizes(0),
    "eval.num_targets": _whole(1),
    "eval.episodes_per_user": _whole(1),
    "eval.valid_episodes_per_user": _whole(1),
    "eval.num_samples": _whole(1),
    "eval.num_resamples": _whole(1),
}
_SIMULATED = {**_FEW_SHOT, "eval.users": _whole(1), "eval.valid_users": _whole(1)}
_BY_TASK = {
    "two_types": {**_SIMULATED, "task.slope": _optional(_POSITIVE)},
    "continuum": {**_SIMULATED, "task.personal": _number(0), "task.shared": _number(0)},
    "people": {
        **_FEW_SHOT,
        "task.path": _is_path,
        "task.train_on": _one_of(CHOICES, RATINGS),
        "task.min_choices": _whole(2),
        "task.pairing_noise": _number(0),
        "task.max_gap": _optional(_number(0)),
        "task.min_margin": _number(0),
    },
    "pairs": {
        **_FEW_SHOT,
        "task.path": _is_path,
        "task.num_pairs": _optional(_whole(1)),
        "task.max_prompt": _whole(1),
        "task.max_response": _whole(1),
        "task.buckets": _sizes(1),
        "task.system": _is_text,
        "task.separator": _is_text,
        "task.end": _FLAG,
        "task.date": _is_text,
        "task.pooling": _one_of(*POOLINGS),
        "language_model.path": _is_path,
        "language_model.digest": _is_text,
        "language_model.shape": _is_shape,
        "language_model.dtype": _one_of("float32", "bfloat16"),
        "language_model.remat": _is_remat,
        "language_model.attention": _one_of(*ATTENTIONS),
        "policy.latent": _one_of(*LATENTS),
        "policy.modulations": _modulations,
        "policy.trunk": _widths,
        "policy.normalize": _FLAG,
        "policy.train_base": _FLAG,
        "dpo.loss": _one_of(*LOSSES),
        "dpo.beta": _POSITIVE,
        "dpo.label_smoothing": _number(0, 0.499),
        "dpo.nll_weight": _number(0),
        "dpo.reward_weight": _number(0),
        "dpo.reward_steps": _whole(0),
        "eval.users_at_once": _whole(1),
        "eval.attribute": _one_of("", *ATTRIBUTES),
        "eval.weighed_attributes": _attributes,
        "eval.slope": _POSITIVE,
        "eval.validity": _one_of(*VALIDITY),
        "eval.writers_per_group": _whole(1),
        "eval.prompts_per_writer": _whole(1),
    },
    "corpus": {
        "task.sequences": _whole(1),
        "transformer.width": _whole(1),
        "transformer.num_layers": _whole(1),
        "transformer.num_heads": _whole(1),
        "transformer.num_kv_heads": _whole(1),
        "transformer.head_dim": _whole(2),
        "transformer.mlp_width": _whole(1),
        "eval.sequences": _whole(1),
    },
}


def check(config: dict[str, Any], num_devices: int | None = None):
    """Refuses a config that cannot mean anything, before anything is built.

    Args:
      config: plain.
      num_devices: that it is to run on; those of all processes by default.

    Raises:
      InputError: naming the field: unknown, missing, of the wrong type, out of range,
        or at odds with another field.
    """
    flat = flatten(config)
    # It decides which other fields there are.
    name = {"task.name": _one_of(*_BY_TASK)}
    _check_fields(flat, name)
    known = _COMMON | name | _BY_TASK[flat["task.name"]]
    for name in sorted(flat.keys() - known):
        close = difflib.get_close_matches(name, known.keys() - flat.keys(), n=1)
        hint = f"did you mean {close[0]}?" if close else "see fsa/recipes/config.py"
        raise InputError(f"config.{name}: no such field; {hint}")
    _check_fields(flat, known)
    _check_together(flat, num_devices or jax.device_count())


def _check_fields(flat: dict[str, Any], checks: dict[str, Callable]):
    for name, wrong_with in checks.items():
        if name not in flat:
            raise InputError(f"config.{name}: missing; see fsa/recipes/presets.py")
        if wrong := wrong_with(flat[name]):
            last = name.split(".")[-1]
            raise InputError(f"config.{name}={flat[name]!r}: {last} {wrong}")


def _check_together(flat: dict[str, Any], num_devices: int):
    def refuse(name, why):
        raise InputError(f"config.{name}={flat[name]!r}: {why}")

    _check_mesh(flat, num_devices, refuse)
    if flat["train.validate_every"] % flat["train.steps_per_call"]:
        refuse("train.validate_every", "must be a multiple of train.steps_per_call")
    if flat["train.steps"] % flat["train.validate_every"]:
        refuse("train.steps", "must be a multiple of train.validate_every")
    if flat["task.name"] == "corpus":
        _check_transformer(flat, refuse)
        return
    _check_few_shot(flat, refuse)
    if flat["task.name"] == "pairs":
        _check_policy(flat, refuse)


def _check_mesh(flat: dict[str, Any], num_devices: int, refuse: Callable):
    wanted = flat["mesh.fsdp"], flat["mesh.tensor"]
    if flat["train.parallel"] == "pmap" and wanted != (1, 1):
        refuse("train.parallel", "has no fsdp and no tensor axis, which mesh has")
    sizes = sharding.sizes(*wanted, num_devices)
    shape = dict(zip(sharding.AXES, sizes, strict=True))
    sharding.check_batch_size(flat["train.batch_size"], shape, flat["train.accumulate"])


def _check_transformer(flat: dict[str, Any], refuse: Callable):
    if flat["transformer.num_heads"] % flat["transformer.num_kv_heads"]:
        refuse("transformer.num_kv_heads", "must divide transformer.num_heads")
    if flat["transformer.head_dim"] % 2:
        refuse("transformer.head_dim", "must be even")


def _check_few_shot(flat: dict[str, Any], refuse: Callable):
    heads = ContextEncoder.num_heads
    if flat["model.pooling"] == "attention" and flat["model.hidden"] % heads:
        refuse("model.hidden", f"attention needs a multiple of {heads}")
    objective, dim = flat["objective.name"], flat["model.latent_dim"]
    if not dim and objective != "deterministic":
        refuse("objective.name", "needs model.latent_dim above 0")
    if not dim and flat["model.reward"] == "modulated":
        refuse("model.reward", "needs model.latent_dim above 0")
    if flat["model.standard_prior"] != (objective == "vpl"):
        refuse("model.standard_prior", "is true for objective.name=vpl, else false")


def _check_policy(flat: dict[str, Any], refuse: Callable):
    if len(flat["task.buckets"]) > 1 and flat["train.steps_per_call"] > 1:
        refuse("train.steps_per_call", "is 1 where task.buckets are several")
    if flat["policy.latent"] == "inferred" and not flat["model.latent_dim"]:
        refuse("model.latent_dim", "must be above 0 where policy.latent is inferred")
    if flat["model.item_embeddings"]:
        refuse("model.item_embeddings", "is false for policies, which write new items")
    if (flat["task.num_pairs"] or 0) > flat["task.num_targets"]:
        refuse("task.num_pairs", "must be at most task.num_targets")
    if not flat["dpo.reward_steps"] < flat["train.steps"]:
        refuse("dpo.reward_steps", "must be below train.steps")
    if flat["policy.latent"] != "inferred":
        for name in ("dpo.reward_steps", "dpo.reward_weight"):
            if flat[name]:
                refuse(name, "is 0 where policy.latent is not inferred")
    if flat["dpo.loss"] == "ipo" and flat["dpo.label_smoothing"]:
        refuse("dpo.label_smoothing", "is 0 for dpo.loss=ipo")


def build_task(config: dict[str, Any]) -> Task:
    """The task of a checked config.

    Raises:
      InputError: if its data are missing, damaged or too few.
    """
    task, evaluation = config["task"], config["eval"]
    sizes = dict(
        batch_size=config["train"]["batch_size"],
        max_context=task["max_context"],
        num_targets=task["num_targets"],
        test_context=max(evaluation["num_context"]),
        test_targets=evaluation["num_targets"],
    )
    if task["name"] == "people":
        return People(
            dataset.load(task["path"]),
            **sizes,
            min_choices=task["min_choices"],
            train_on=task["train_on"],
            pairing_noise=task["pairing_noise"],
            max_gap=task["max_gap"],
            min_margin=task["min_margin"],
            seed=config["seed"],
        )
    sizes["num_users"] = {VALID: evaluation["valid_users"], TEST: evaluation["users"]}
    if task["name"] == "two_types":
        return TwoTypes(**sizes, slope=task["slope"])
    return Continuum(**sizes, personal=task["personal"], shared=task["shared"])


def policy_arguments(config: dict[str, Any], num_groups: int) -> dict[str, Any]:
    """The arguments of `Policy`, but for its models, in a checked config."""
    policy = config["policy"]
    return {
        **policy,
        "modulations": tuple(map(tuple, policy["modulations"])),
        "trunk": tuple(policy["trunk"]),
        "num_groups": num_groups,
    }


def model_arguments(config: dict[str, Any], num_items: int) -> dict[str, Any]:
    """The arguments of `RewardModel` in a checked config, for a task's items."""
    arguments = dict(config["model"])
    arguments["conditioning"] = arguments.pop("reward")
    embed = arguments.pop("item_embeddings")
    return {**arguments, "num_items": num_items if embed else 0}


def resolve(config: ConfigDict, num_devices: int | None = None) -> dict[str, Any]:
    """The config as plain, checked Python; see `check`."""
    plain = config.to_dict()
    check(plain, num_devices)
    return plain
