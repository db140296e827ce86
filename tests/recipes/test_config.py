"""Configs that describe no run are refused, naming the field; old ones are upgraded."""

import copy
import json
import re

import jax
import pytest

from experiments import choices
from experiments.policy import corpus
from experiments.synthetic import continuum, two_types
from fsa.errors import InputError
from fsa.recipes.config import check, resolve, upgrade
from fsa.training.run_directory import flatten

# One of each kind, and of each task of reward models, and thus every field.
CONFIGS = {
    "two_types": two_types.get_config,
    "continuum": continuum.get_config,
    "people": choices.get_config,
    "policy": corpus.get_config,
    "language_model": lambda: corpus.get_config("language"),
}


def changed(config, name, *value):
    """A copy with another value at a dotted name, or without the field."""
    config = copy.deepcopy(config)
    *parents, last = name.split(".")
    holder = config
    for parent in parents:
        holder = holder[parent]
    holder.pop(last, None)
    if value:
        holder[last] = value[0]
    return config


def names(message, name):
    """Whether a message names a field."""
    return re.search(rf"(config\.|mean ){re.escape(name)}\b", message)


def refusal(config):
    """What `check` has to say."""
    with pytest.raises(InputError) as refused:
        check(config)
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize("name_of_config", CONFIGS)
def test_every_field_is_needed_and_checked(name_of_config):
    config = resolve(CONFIGS[name_of_config]())
    for name in flatten(config):
        assert names(refusal(changed(config, name)), name)
        assert names(refusal(changed(config, name, object())), name)


@pytest.mark.parametrize("name_of_config", CONFIGS)
def test_every_misspelt_field_is_named(name_of_config):
    """With the right spelling where the field is missing, as after a typing error."""
    config = resolve(CONFIGS[name_of_config]())
    for name, value in flatten(config).items():
        if name not in ("kind", "task.name"):
            found = refusal(changed(changed(config, name), name + "s", value))
            assert names(found, name + "s") and names(found, name)
        stranger = changed(config, name + "_of_mine", value)
        assert names(refusal(stranger), name + "_of_mine")


@pytest.mark.parametrize(
    ("of", "name", "value"),
    [
        ("two_types", "kind", "reward"),
        ("two_types", "kind", ["policy"]),
        ("two_types", "seed", -1),
        ("two_types", "seed", 0.5),
        ("two_types", "task.name", "two_type"),
        ("two_types", "task.name", ["two_types"]),
        ("two_types", "task.slope", 0.0),
        ("two_types", "model.reward", "film"),
        ("two_types", "model.item_embeddings", None),
        ("two_types", "objective.beta", float("nan")),
        ("two_types", "optimizer.learning_rate", 0.0),
        ("two_types", "train.average_decay", 1.0),
        ("two_types", "eval.num_context", (3, 1)),
        ("two_types", "task.max_context", 100_000),
        ("two_types", "eval.num_context", (0, 100_000)),
        ("people", "task.num_targets", 100_000),
        ("policy", "eval.num_targets", 100_000),
        ("continuum", "task.personal", -0.5),
        ("people", "task.train_on", "votes"),
        ("people", "task.min_choices", 1),
        ("policy", "task.buckets", (48, 24)),
        ("policy", "language_model.dtype", "int8"),
        ("policy", "policy.modulations", (("mlp", "scale"),)),
        ("policy", "dpo.label_smoothing", 0.6),
        ("policy", "eval.attribute", "wit"),
        ("policy", "eval.weighed_attributes", ("wit",)),
        ("language_model", "transformer.head_dim", 1),
    ],
)
def test_a_value_out_of_range(of, name, value):
    config = changed(resolve(CONFIGS[of]()), name, value)
    assert names(refusal(config), name)


@pytest.mark.parametrize(
    ("of", "name", "value"),
    [
        ("two_types", "task.max_context", 20_000),
        ("people", "task.num_targets", 20_000),
        ("two_types", "eval.num_context", (0, 20_000)),
        ("policy", "eval.num_targets", 20_000),
    ],
)
def test_a_limit_does_not_hold_for_what_a_run_has_recorded(of, name, value):
    """Runs of versions without it go on, but no other value is let in with them."""
    config = changed(resolve(CONFIGS[of]()), name, value)
    check(config, recorded=json.loads(json.dumps(config)))
    other = changed(config, name, (0, 30_000) if isinstance(value, tuple) else 30_000)
    with pytest.raises(InputError, match=name):
        check(other, recorded=config)
    wrong = changed(config, name, -1)
    with pytest.raises(InputError, match=name):
        check(wrong, recorded=wrong)


def test_the_config_that_a_run_has_recorded_is_resolved(tmp_path):
    config = CONFIGS["two_types"]()
    config.task.max_context = 20_000
    with pytest.raises(InputError, match="task.max_context"):
        resolve(config, workdir=tmp_path)
    (tmp_path / "config.json").write_text(config.to_json())
    assert resolve(config, workdir=tmp_path)["task"]["max_context"] == 20_000


@pytest.mark.parametrize(
    ("model", "name", "value", "refused"),
    [
        ("btl", "objective.name", "ml", "objective.name"),
        ("np-btl", "model.latent_dim", 0, "objective.name"),
        ("btl", "model.reward", "modulated", "model.reward"),
        ("np-btl", "model.standard_prior", True, "model.standard_prior"),
        ("vpl", "model.standard_prior", False, "model.standard_prior"),
        ("vpl", "objective.name", "elbo", "model.standard_prior"),
        ("np-btl", "train.validate_every", 3, "train.validate_every"),
        ("np-btl", "train.steps", 7, "train.steps"),
        ("bayes", "objective.name", "ml", "objective.name"),
        ("np-btl", "model.reward", "linear", "objective.name"),
        ("np-btl", "objective.name", "evidence", "objective.name"),
        ("bayes", "model.latent_dim", 0, "objective.name"),
        ("np-btl", "model.context", "votes", "model.context"),
        ("bayes", "model.context", "ratings", "model.context"),
        ("bayes", "model.likelihood", "dpl", "model.likelihood"),
        ("bayes", "model.pooling", "attention", "model.pooling"),
        ("np-btl", "model.dropout", 0.5, "model.dropout"),
        ("btl", "model.num_components", 7, "model.num_components"),
    ],
)
def test_fields_in_conflict(tiny, model, name, value, refused):
    assert names(refusal(changed(tiny(model), name, value)), refused)


@pytest.mark.parametrize(
    ("variant", "fields", "refused"),
    [
        (
            "np-dpo",
            {"task.buckets": (24, 48), "train.steps_per_call": 2},
            "train.steps_per_call",
        ),
        (
            "np-dpo",
            {"task.packing": "rows", "train.accumulate": 2},
            "task.packing",
        ),
        (
            "np-dpo",
            {"task.packing": "rows", "language_model.attention": "cudnn"},
            "task.packing",
        ),
        (
            "np-dpo",
            {"task.packing": "padded", "task.rows_at_once": 2},
            "task.rows_at_once",
        ),
        (
            "np-dpo",
            {"dpo.reward_steps": 300, "train.steps": 300},
            "dpo.reward_steps",
        ),
        ("dpo", {"dpo.reward_steps": 1}, "dpo.reward_steps"),
        ("dpo", {"dpo.loss": "ipo", "dpo.label_smoothing": 0.1}, "dpo.label_smoothing"),
        ("reward", {"model.item_embeddings": True}, "model.item_embeddings"),
        ("np-dpo", {"dpo.loss": "distillation"}, "dpo.loss"),
        ("np-dpo", {"policy.reward_digest": "a"}, "policy.reward_digest"),
        ("distillation", {"dpo.reward_steps": 1}, "dpo.reward_steps"),
        ("distillation", {"dpo.reward_weight": 0.5}, "dpo.reward_weight"),
        ("distillation", {"model.hidden": 9}, "model.hidden"),
        ("distillation", {"objective.num_samples": 9}, "objective.num_samples"),
        ("dpo", {"policy.reward_model": "a"}, "policy.reward_model"),
        ("np-dpo", {"model.latent_dim": 0}, "model.latent_dim"),
        ("np-dpo", {"model.item_embeddings": True}, "model.item_embeddings"),
        ("np-dpo", {"task.num_pairs": 5}, "task.num_pairs"),
        ("np-dpo", {"task.min_context": 11}, "task.min_context"),
        ("given-np-dpo", {"task.candidates": 2}, "task.candidates"),
        (
            "np-dpo",
            {"model.reward": "linear", "objective.name": "predictive"},
            "model.reward",
        ),
        ("language", {"transformer.num_kv_heads": 3}, "transformer.num_kv_heads"),
        ("language", {"transformer.head_dim": 5}, "transformer.head_dim"),
    ],
)
def test_fields_of_policies_in_conflict(variant, fields, refused):
    config = resolve(corpus.get_config(variant))
    for name, value in fields.items():
        config = changed(config, name, value)
    assert names(refusal(config), refused)


def test_a_batch_that_the_devices_cannot_share(tiny, monkeypatch):
    config = tiny(**{"train.batch_size": 8})
    monkeypatch.setattr(jax, "device_count", lambda: 3)
    assert "train.batch_size=8" in refusal(config)
    check(changed(config, "train.batch_size", 9))


def test_a_mesh_that_the_devices_do_not_make(tiny, monkeypatch):
    config = tiny(**{"train.batch_size": 8})
    monkeypatch.setattr(jax, "device_count", lambda: 8)
    meshed = changed(config, "mesh.fsdp", 4)
    check(meshed)
    # Devices that compute an example together share it.
    check(changed(changed(meshed, "mesh.tensor", 2), "train.batch_size", 4))
    assert "mesh.tensor=3" in refusal(changed(meshed, "mesh.tensor", 3))
    assert names(refusal(changed(meshed, "train.parallel", "pmap")), "train.parallel")


@pytest.mark.parametrize("name_of_config", CONFIGS)
def test_a_config_that_lacks_fields_is_upgraded(name_of_config):
    """Each field that is lost comes back with its default, all others stay."""
    config = resolve(CONFIGS[name_of_config]())
    config = changed(config, "seed", 7)
    assert upgrade(config) == config
    older = changed(changed(config, "train.keep_last"), "mesh.fsdp")
    assert upgrade(older) == config


def test_names_of_older_versions():
    config = changed(resolve(choices.get_config()), "task.train_on", "judgements")
    assert upgrade(config)["task"]["train_on"] == "ratings"
    policy = resolve(corpus.get_config())
    older = changed(changed(policy, "task.name", "pairs"), "kind")
    assert upgrade(older) == policy
    language = resolve(corpus.get_config("language"))
    older = changed(changed(language, "task.name", "corpus"), "kind")
    assert upgrade(older) == language


def test_a_section_that_is_none():
    with pytest.raises(InputError, match="config.train"):
        upgrade({"kind": "policy", "train": 3})


@pytest.mark.parametrize(
    ("argument", "named"),
    [
        ("--config.model.hiden=3", "--config.model.hiden"),
        ("--config.modle.hidden=3", "--config.modle.hidden"),
        ("--config.model.hidden=0", "config.model.hidden=0"),
        ("--config.model.hidden=wide", "--config.model.hidden=wide"),
        ("--config.eval.num_context=(3,1)", "config.eval.num_context"),
        ("--config.objective.name=vpl", "config.model.standard_prior"),
        ("--config.task.name=continum", "config.task.name"),
    ],
)
def test_on_the_command_line(launch, tmp_path, argument, named):
    """One line, exit code 2, and nothing begun."""
    finished = launch(
        "train",
        "--config=experiments/synthetic/two_types.py",
        f"--workdir={tmp_path}/run",
        argument,
    )
    assert finished.code == 2
    assert named in finished.err
    assert finished.err.count("\n") == 1
    assert not (tmp_path / "run").exists()
