"""Converts configs to plain Python, checks them, and reads those of older versions.

`fsa.recipes.fields` defines the fields. A config has sections, `{"train": {"steps":
1000}}`; a flat config has dotted names, `{"train.steps": 1000}`.
"""

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import jax
from etils import epath
from flax.traverse_util import unflatten_dict
from ml_collections import ConfigDict

from fsa.data.tasks.packing import PADDED, ROWS
from fsa.data.tasks.people import RATINGS
from fsa.errors import InputError, did_you_mean
from fsa.inference.saved_model import KINDS, LANGUAGE_MODEL, POLICY, REWARD_MODEL
from fsa.language.attention_kernels import SPLASH, XLA
from fsa.models import linear_reward, reward_models
from fsa.models.encoder import ContextEncoder
from fsa.models.reward_models import LINEAR
from fsa.parallel import sharding
from fsa.recipes.fields import RESPONSES, TASKS, Field, fields_of
from fsa.training import run_directory, run_paths
from fsa.training.policy_loss import DISTILLATION
from fsa.training.run_directory import flatten

Config = dict[str, Any]

# Fields that rows of several texts need, and the values they may have: a step takes
# some rows after others, whoever's texts they hold.
PACKABLE = {
    "train.parallel": ("mesh",),
    "train.accumulate": (1,),
    "language_model.attention": (XLA, SPLASH),
}

# Sizes of a mesh on which every device holds all parameters.
_ALONE = {"fsdp": 1, "tensor": 1}

# Arguments of the library whose names differ from those of their fields.
_FIELDS_OF_ARGUMENTS = {"test_context": "eval.num_context"}

# (field, value of older versions) -> value of this version.
_NEW_VALUES = {("task.train_on", "judgements"): RATINGS}

# Before the field `kind` existed, these values of `task.name` decided the kind of run.
_KIND_OF_TASK = {"pairs": POLICY, "corpus": LANGUAGE_MODEL}


def resolve(
    config: ConfigDict | Mapping[str, Any],
    num_devices: int | None = None,
    workdir: epath.PathLike | None = None,
) -> Config:
    """Returns a config as plain Python, after `check` has accepted it.

    Args:
      config: the config.
      num_devices: see `check`.
      workdir: the run directory that the config is for, if it is known; what a run of
        an earlier version has recorded there is accepted.

    Raises:
      InputError: if it is no config, or as `check`.
    """
    if not isinstance(config, ConfigDict | Mapping):
        raise InputError(
            f"`config`: must be a ConfigDict or a dict of fields, not {config!r}"
        )
    plain = config.to_dict() if isinstance(config, ConfigDict) else dict(config)
    flat = _rename_values(flatten(plain))
    plain = unflatten_dict(flat, sep=".")
    recorded = None
    if workdir is not None and (epath.Path(workdir) / "config.json").exists():
        recorded = read(workdir)
    check(plain, num_devices, recorded)
    return plain


def read(workdir: epath.PathLike) -> Config:
    """Reads the config of a run, and upgrades it if an older version wrote it.

    Its paths can be opened from the current folder, see `fsa.training.run_paths`.

    Raises:
      InputError: if the config is missing or damaged.
    """
    return run_paths.from_saved(upgrade(run_directory.read_config(workdir)), workdir)


def mesh_sizes(
    config: Config, fsdp: int | None = None, tensor: int | None = None
) -> dict[str, int]:
    """Returns the sizes `fsdp` and `tensor` of the mesh on which a run is used.

    Args:
      config: the config of the run.
      fsdp: the size that is wanted; None for that of the training.
      tensor: likewise.

    Returns:
      The sizes of the training count only if they divide the devices that there are
      now; otherwise they are 1.

    Raises:
      InputError: if sizes that are wanted do not divide the devices.
    """
    wanted = {name: size for name, size in (("fsdp", fsdp), ("tensor", tensor)) if size}
    trained = {**_ALONE, **config.get("mesh", {})}
    if wanted:
        found = {**_ALONE, **wanted}
        sharding.sizes(**found, num_devices=jax.device_count())
        return found
    divides = jax.device_count() % (trained["fsdp"] * trained["tensor"]) == 0
    return trained if divides else dict(_ALONE)


def upgrade(config: Config) -> Config:
    """Returns a config of an older version in the form of this version.

    Missing fields get their defaults, which reproduce what older versions did. Other
    faults are left for `check` to find.
    """
    if not isinstance(config, dict):
        raise InputError(f"config: must be an object of fields, not {config!r}")
    flat = _rename_values(flatten(config))
    task = str(flat.get("task.name"))
    kind = flat.setdefault("kind", _KIND_OF_TASK.get(task, REWARD_MODEL))
    if kind != REWARD_MODEL and task in _KIND_OF_TASK:
        del flat["task.name"]
    if kind in KINDS:
        fields = fields_of(kind, task)
        flat = {name: f.default_of(kind) for name, f in fields.items()} | flat
    for name in flat:
        if any(other.startswith(f"{name}.") for other in flat):
            raise InputError(f"config.{name}={flat[name]!r}: must be a section")
    return unflatten_dict(flat, sep=".")


def _rename_values(flat: Config) -> Config:
    """Replaces values of fields that older versions called otherwise."""
    return {
        name: _NEW_VALUES.get((name, value), value) if isinstance(value, str) else value
        for name, value in flat.items()
    }


def check(
    config: Config, num_devices: int | None = None, recorded: Config | None = None
) -> None:
    """Checks that a config describes a run, before anything is built.

    Args:
      config: the config as plain Python.
      num_devices: number of devices of the run; by default those of all processes.
      recorded: the config that the run has recorded, if any. Limits that are newer than
        the run do not hold for its values.

    Raises:
      InputError: if a field is unknown, missing, out of range, or in conflict with
        another field; the message names the field.
    """
    flat = flatten(config)
    check_names(flat)
    _check_fields(flat, known_fields(flat), flatten(recorded or {}))
    _check_together(flat, num_devices or jax.device_count())


def known_fields(flat: Mapping[str, Any]) -> dict[str, Field]:
    """Returns the fields that a flat config should have, by its kind and task.

    Raises:
      InputError: if its kind or task does not exist.
    """
    kind, task = flat.get("kind"), flat.get("task.name")
    # These two fields decide which other fields the config has.
    deciding = fields_of(REWARD_MODEL, TASKS[0])
    names = ("kind", "task.name") if kind == REWARD_MODEL else ("kind",)
    _check_fields(flat, {name: deciding[name] for name in names})
    return fields_of(kind, task)


def check_names(flat: Mapping[str, Any]) -> None:
    """Raises InputError for a field that a flat config should not have."""
    known = known_fields(flat)
    kind, task = flat["kind"], flat.get("task.name")
    for name in sorted(flat.keys() - known):
        of = f"kind={kind}" + (f" and task.name={task}" if kind == REWARD_MODEL else "")
        raise InputError(
            f"config.{name}: {of} has no such field; {did_you_mean(name, known)}"
            "fsa train --config=FILE --help_fields lists them"
        )


@contextlib.contextmanager
def naming_fields(config: Mapping[str, Any]) -> Iterator[None]:
    """Replaces names of arguments in the library's errors by those of config fields.

    "`batch_size`=3 ..." becomes "config.train.batch_size=3 ...".

    Args:
      config: a config with sections, or a flat one.
    """
    names = {argument: [field] for argument, field in _FIELDS_OF_ARGUMENTS.items()}
    for name in flatten(dict(config)):
        names.setdefault(name.rpartition(".")[2], []).append(name)

    def as_field(found: re.Match) -> str:
        fields = names.get(found[1], ())
        return f"config.{fields[0]}" if len(fields) == 1 else found[0]

    try:
        yield
    except InputError as error:
        message = re.sub(r"`(\w+)`", as_field, str(error))
        raise InputError(message) from error


def _check_fields(
    flat: Mapping[str, Any],
    fields: Mapping[str, Field],
    recorded: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    def plain(value):
        return list(value) if isinstance(value, tuple) else value

    for name, field in fields.items():
        if name not in flat:
            raise InputError(f"config.{name}: missing; it must be {field.range_text}")
        same = name in recorded and plain(recorded[name]) == plain(flat[name])
        if wrong := field.wrong(flat[name], recorded=same):
            raise InputError(f"config.{name}={flat[name]!r}: {wrong}")


def _check_together(flat: Mapping[str, Any], num_devices: int) -> None:
    def refuse(name, why):
        raise InputError(f"config.{name}={flat[name]!r}: {why}")

    _check_mesh(flat, num_devices, refuse)
    if flat["train.validate_every"] % flat["train.steps_per_call"]:
        refuse("train.validate_every", "must be a multiple of train.steps_per_call")
    if flat["train.steps"] % flat["train.validate_every"]:
        refuse("train.steps", "must be a multiple of train.validate_every")
    if flat["kind"] == LANGUAGE_MODEL:
        _check_transformer(flat, refuse)
        return
    _check_few_shot(flat, refuse)
    if flat["kind"] == POLICY:
        _check_policy(flat, refuse)


def _check_mesh(flat: Mapping[str, Any], num_devices: int, refuse: Callable) -> None:
    wanted = flat["mesh.fsdp"], flat["mesh.tensor"]
    if flat["train.parallel"] == "pmap" and wanted != (1, 1):
        refuse("train.parallel", "pmap has no fsdp and no tensor axis; use mesh")
    with naming_fields(flat):
        sizes = sharding.sizes(*wanted, num_devices)
        shape = dict(zip(sharding.AXES, sizes, strict=True))
        sharding.check_batch_size(
            flat["train.batch_size"], shape, flat["train.accumulate"]
        )


def _check_transformer(flat: Mapping[str, Any], refuse: Callable) -> None:
    if flat["transformer.num_heads"] % flat["transformer.num_kv_heads"]:
        refuse("transformer.num_kv_heads", "must divide transformer.num_heads")
    if flat["transformer.head_dim"] % 2:
        refuse("transformer.head_dim", "must be even")


def _check_few_shot(flat: Mapping[str, Any], refuse: Callable) -> None:
    heads = ContextEncoder.num_heads
    if flat["model.pooling"] == "attention" and flat["model.hidden"] % heads:
        refuse("model.hidden", f"must be a multiple of {heads} for attention pooling")
    objective, dim = flat["objective.name"], flat["model.latent_dim"]
    if not dim and objective != "deterministic":
        refuse("objective.name", "needs model.latent_dim above 0")
    if not dim and flat["model.reward"] in ("modulated", LINEAR):
        refuse("model.reward", "needs model.latent_dim above 0")
    of_linear = linear_reward.OBJECTIVES
    if (flat["model.reward"] == LINEAR) != (objective in of_linear):
        names = " or ".join(of_linear)
        refuse("objective.name", f"must be {names} for model.reward={LINEAR} only")
    of_ratings = flat.get("model.context") == linear_reward.RATINGS
    if of_ratings and flat.get("task.train_on") != RATINGS:
        refuse("model.context", f"needs task.train_on={RATINGS}, of a dataset")
    _check_model_fields(flat, refuse)
    if flat.get("task.name") == RESPONSES and flat["model.item_embeddings"]:
        refuse("model.item_embeddings", "must be false: z is inferred from any texts")
    if flat["model.standard_prior"] != (objective == "vpl"):
        refuse(
            "model.standard_prior", "must be true for objective.name=vpl, else false"
        )


def _check_model_fields(flat: Mapping[str, Any], refuse: Callable) -> None:
    """Refuses fields that the model does not have, as they would do nothing."""
    reward = flat["model.reward"]
    used = reward_models.attributes(reward)
    for name in sorted(reward_models.all_attributes() - used):
        field = known_fields(flat).get(f"model.{name}")
        if field and flat[field.name] != field.default_of(flat["kind"]):
            refuse(field.name, f"does nothing where model.reward is {reward}")


def _check_given_reward(flat: Mapping[str, Any], refuse: Callable) -> None:
    """Refuses fields of a reward model that is not trained here, and the reverse."""
    if not flat["policy.reward_model"]:
        if flat["dpo.loss"] == DISTILLATION:
            refuse("dpo.loss", "needs policy.reward_model, the run of a reward model")
        if flat["policy.reward_digest"]:
            refuse("policy.reward_digest", "needs policy.reward_model")
        return
    for name in ("dpo.reward_steps", "dpo.reward_weight"):
        if flat[name]:
            refuse(name, "must be 0 where policy.reward_model is given")
    for name, field in known_fields(flat).items():
        of_reward = name.startswith(("model.", "objective."))
        if of_reward and flat[name] != field.default_of(flat["kind"]):
            refuse(name, "does nothing where policy.reward_model is given")


def _check_policy(flat: Mapping[str, Any], refuse: Callable) -> None:
    if flat["task.packing"] == ROWS:
        for name, wanted in PACKABLE.items():
            if flat[name] not in wanted:
                values = " or ".join(map(str, wanted))
                refuse("task.packing", f"needs {name}={values}; use {PADDED}")
    if flat["task.packing"] == PADDED and flat["task.rows_at_once"]:
        refuse("task.rows_at_once", f"does nothing where task.packing is {PADDED}")
    if flat["task.candidates"] > 1 and flat["dpo.loss"] != DISTILLATION:
        refuse("task.candidates", f"is for dpo.loss={DISTILLATION}; elsewhere it is 1")
    if len(flat["task.buckets"]) > 1 and flat["train.steps_per_call"] > 1:
        refuse("train.steps_per_call", "must be 1 where task.buckets has several")
    if flat["policy.latent"] == "inferred" and not flat["model.latent_dim"]:
        refuse("model.latent_dim", "must be above 0 where policy.latent is inferred")
    if flat["model.reward"] == LINEAR:
        refuse("model.reward", f"cannot be {LINEAR} in a policy")
    if flat["model.item_embeddings"]:
        refuse("model.item_embeddings", "must be false: a policy writes new responses")
    if flat["task.min_context"] > flat["task.max_context"]:
        refuse("task.min_context", "must be at most task.max_context")
    if (flat["task.num_pairs"] or 0) > flat["task.num_targets"]:
        refuse("task.num_pairs", "must be at most task.num_targets")
    if not flat["dpo.reward_steps"] < flat["train.steps"]:
        refuse("dpo.reward_steps", "must be below train.steps")
    if flat["policy.latent"] != "inferred":
        for name in ("dpo.reward_steps", "dpo.reward_weight"):
            if flat[name]:
                refuse(name, "must be 0 where policy.latent is not inferred")
        if flat["policy.reward_model"]:
            refuse("policy.reward_model", "needs policy.latent=inferred")
    _check_given_reward(flat, refuse)
    if flat["dpo.loss"] == "ipo" and flat["dpo.label_smoothing"]:
        refuse("dpo.label_smoothing", "must be 0 for dpo.loss=ipo")
