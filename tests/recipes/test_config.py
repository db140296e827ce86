"""Configs: every experiment builds, and what makes no sense is refused by name."""

import copy
import importlib
import itertools
import pathlib

import jax
import jax.numpy as jnp
import pytest
from policies import language_model

from experiments import choices
from experiments.policy import corpus
from experiments.synthetic import continuum, two_types
from fsa.data.tasks.pairs import batch_shapes
from fsa.episodes import Choices, Episode, Options
from fsa.errors import InputError
from fsa.language.huggingface import architecture
from fsa.language.transformer import Transformer, with_biases
from fsa.models.policy import Policy, shifted, spec_of
from fsa.models.reward import RewardModel, episode_loss
from fsa.recipes.config import (
    build_task,
    check,
    model_arguments,
    policy_arguments,
    resolve,
)
from fsa.recipes.presets import MODELS, POLICIES
from fsa.training import language_model_loss, policy_loss
from fsa.training.run_directory import flatten
from fsa.training.step import init_state, make_optimizer

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
EXPERIMENTS = sorted(
    str(path.relative_to(REPOSITORY).with_suffix("")).replace("/", ".")
    for path in (REPOSITORY / "experiments").rglob("*.py")
    if "def get_config(" in path.read_text()
)
OF_POLICIES = [name for name in EXPERIMENTS if ".policy." in name]
OF_REWARDS = [name for name in EXPERIMENTS if name not in OF_POLICIES]
VARIANTS = [(name, model) for name in OF_REWARDS for model in MODELS]
VARIANTS += [("experiments.synthetic.two_types", f"noisy-{model}") for model in MODELS]
BASELINES = ("btl", "dpl")
# One of each kind of task, and thus every field.
TASKS = {
    "two_types": two_types.get_config,
    "continuum": continuum.get_config,
    "people": choices.get_config,
    "pairs": corpus.get_config,
    "corpus": lambda: corpus.get_config("language"),
}


def some_episode():
    """Shapes of any episode."""

    def options(size):
        features = jax.ShapeDtypeStruct((size, 5), jnp.float32)
        return Options(features, jax.ShapeDtypeStruct((size,), jnp.int32))

    def some_choices(size):
        mask = jax.ShapeDtypeStruct((size,), bool)
        return Choices(options(size), options(size), mask)

    group = jax.ShapeDtypeStruct((), jnp.int32)
    return Episode(some_choices(3), some_choices(2), group)


@pytest.mark.parametrize(("name", "model"), VARIANTS)
def test_every_experiment_builds(name, model):
    """Up to a state of the right shape, and a loss of its objective."""
    config = resolve(importlib.import_module(name).get_config(model))
    episode, num_items = some_episode(), 13
    if config["task"]["name"] != "people":
        task = build_task(config)
        num_items = task.num_items
        draw = (task.constants, jnp.int32(0), jax.random.key(0))
        episode = jax.eval_shape(task.train_episode, *draw)
        assert episode.context.mask.shape == (config["task"]["max_context"],)
        assert episode.target.mask.shape == (config["task"]["num_targets"],)
    module = RewardModel(**model_arguments(config, num_items))
    optimizer = make_optimizer(**config["optimizer"], steps=config["train"]["steps"])

    def start_and_loss(key, episode):
        variables = module.init(key, episode)
        objective = dict(config["objective"])
        loss, _ = episode_loss(
            module,
            variables,
            episode,
            key,
            objective=objective.pop("name"),
            **objective,
        )
        return init_state(variables, optimizer), loss

    state, loss = jax.eval_shape(start_and_loss, jax.random.key(0), episode)
    assert loss.shape == ()
    assert ("context" in state.params) == (model.split("noisy-")[-1] not in BASELINES)


def some_pairs(config):
    """Shapes of a batch, with features as wide as the language model."""
    return batch_shapes(
        batch_size=config["train"]["batch_size"],
        max_context=3,
        num_targets=config["task"]["num_targets"],
        num_pairs=config["task"]["num_pairs"],
        num_features=5,
        length=config["task"]["buckets"][0],
    )


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        *itertools.product(OF_POLICIES, POLICIES),
        ("experiments.policy.stories", "paper"),
    ],
)
def test_every_policy_builds(name, variant):
    """Up to a state that holds what is trained, and a loss of its options."""
    config = importlib.import_module(name).get_config(variant)
    config = resolve(config, config.mesh.fsdp * config.mesh.tensor)
    arguments = policy_arguments(config, 2)
    model, base = with_biases(*language_model(), shifted(arguments["modulations"]))
    modulated = Policy(model, RewardModel(**model_arguments(config, 0)), **arguments)
    objective = config["objective"]
    loss_fn = policy_loss.make_loss(
        modulated,
        **config["dpo"],
        objective=objective["name"],
        kl_weight=objective["beta"],
        num_samples=objective["num_samples"],
    )

    def start_and_loss(key, base, batch):
        variables = modulated.init(key, base, 5)
        loss, _ = loss_fn(variables, ({"base": base}, batch), key)
        return variables["params"], loss

    params, loss = jax.eval_shape(
        start_and_loss, jax.random.key(0), base, some_pairs(config)
    )
    assert loss.shape == ()
    assert params.keys() == {"reward", "hyper"}
    wanted = {path for path, _ in spec_of(config["policy"]["modulations"])}
    assert params["hyper"]["leaves"].keys() == wanted


def test_the_language_model_of_the_corpus_builds():
    config = resolve(corpus.get_config("language"))
    described = architecture.llama(**config["transformer"], vocab_size=11)
    model = Transformer(**architecture.arguments(described))
    loss_fn = language_model_loss.make_loss(model, 0)
    tokens = jax.ShapeDtypeStruct((3, 9), jnp.int32)

    def start_and_loss(key, tokens):
        variables = model.init(key, tokens)
        return variables["params"], loss_fn(variables, ((), tokens), key)[0]

    params, loss = jax.eval_shape(start_and_loss, jax.random.key(0), tokens)
    assert loss.shape == ()
    sizes = config["transformer"]
    kernel = params["layers"]["mlp"]["gate"]["kernel"]
    assert kernel.shape == tuple(sizes[n] for n in ("num_layers", "width", "mlp_width"))


def test_an_unknown_model(launch, tmp_path):
    finished = launch(
        "train",
        "--config=experiments/synthetic/two_types.py:npbtl",
        f"--workdir={tmp_path}/run",
    )
    assert finished.code == 2
    assert finished.err.count("\n") == 1
    assert "model 'npbtl' is none of np-btl, " in finished.err


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


def refusal(config):
    """What `check` has to say."""
    with pytest.raises(InputError) as refused:
        check(config)
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize("task", TASKS)
def test_every_field_is_needed_and_checked(task):
    config = resolve(TASKS[task]())
    for name in flatten(config):
        assert refusal(changed(config, name)).startswith(f"config.{name}: missing")
        nonsense = refusal(changed(config, name, object()))
        assert nonsense.startswith(f"config.{name}=<object")


@pytest.mark.parametrize("task", TASKS)
def test_every_misspelt_field_is_named(task):
    """With the right spelling where the field is missing, as after a typing error."""
    config = resolve(TASKS[task]())
    for name, value in flatten(config).items():
        if name != "task.name":
            misspelt = changed(changed(config, name), name + "s", value)
            wanted = f"config.{name}s: no such field; did you mean {name}?"
            assert refusal(misspelt) == wanted
        stranger = changed(config, name + "_of_mine", value)
        assert refusal(stranger).startswith(f"config.{name}_of_mine: no such field")


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("seed", -1, "seed is in [0, "),
        ("seed", 0.5, "seed is a whole number"),
        ("seed", True, "seed is a whole number"),
        ("task.name", "two_type", "name is one of ('two_types', "),
        ("task.name", ["two_types"], "name is one of"),
        ("task.max_context", -1, "max_context is in [0, "),
        ("task.num_targets", 0, "num_targets is in [1, "),
        ("task.slope", 0.0, "slope is in "),
        ("model.hidden", 0, "hidden is in [1, "),
        ("model.hidden", "wide", "hidden is a whole number"),
        ("model.pooling", "max", "pooling is one of ('mean', 'attention')"),
        ("model.likelihood", "logit", "likelihood is one of ('btl', 'dpl')"),
        ("model.reward", "film", "reward is one of ('concatenated', 'modulated')"),
        ("model.item_dropout", 1.5, "item_dropout is in [0, 1]"),
        ("model.item_embeddings", None, "item_embeddings is one of (True, False)"),
        ("objective.name", "map", "name is one of ('deterministic', "),
        ("objective.num_samples", 0, "num_samples is in [1, "),
        ("objective.beta", float("nan"), "beta is in [0, "),
        ("optimizer.learning_rate", 0.0, "learning_rate is in "),
        ("optimizer.learning_rate", float("inf"), "learning_rate is in "),
        ("optimizer.clip_norm", -1.0, "clip_norm is in "),
        ("train.steps", 0, "steps is in [1, "),
        ("train.steps", 1000.0, "steps is a whole number"),
        ("train.average_decay", 1.0, "average_decay is in [0, "),
        ("train.parallel", "threads", "parallel is one of ('mesh', 'pmap')"),
        ("eval.num_context", (3, 1), "num_context is a growing list"),
        ("eval.num_context", (0, 0), "num_context is a growing list"),
        ("eval.num_context", (-1, 2), "num_context is a growing list"),
        ("eval.num_context", (0.0, 2.0), "num_context is a growing list"),
        ("eval.num_context", (), "num_context is a growing list"),
        ("eval.num_context", 3, "num_context is a growing list"),
        ("eval.num_context", "013", "num_context is a growing list"),
    ],
)
def test_a_value_that_cannot_be(tiny, name, value, why):
    assert refusal(changed(tiny(), name, value)).startswith(
        f"config.{name}={value!r}: {why}"
    )


@pytest.mark.parametrize(
    ("task", "name", "value", "why"),
    [
        ("continuum", "task.personal", -0.5, "personal is in [0, "),
        ("people", "task.path", "", "path is a path"),
        ("people", "task.train_on", "votes", "train_on is one of ('choices', "),
        ("people", "task.min_choices", 1, "min_choices is in [2, "),
        ("people", "task.max_gap", -0.5, "max_gap is in [0, "),
        ("pairs", "task.buckets", (48, 24), "buckets is a growing list"),
        ("pairs", "task.buckets", (0, 48), "buckets is a growing list"),
        ("pairs", "task.max_response", 0, "max_response is in [1, "),
        ("pairs", "task.pooling", "max", "pooling is one of ('mean', 'last')"),
        ("pairs", "language_model.path", "", "path is a path"),
        ("pairs", "language_model.dtype", "int8", "dtype is one of ('float32', "),
        ("pairs", "language_model.remat", "all", "remat is a policy of jax.check"),
        ("pairs", "policy.latent", "user", "latent is one of ('inferred', 'group', "),
        ("pairs", "policy.modulations", (("mlp", "scale"),), "modulations is a list "),
        ("pairs", "policy.modulations", 3, "modulations is a list of (map of a layer"),
        ("pairs", "policy.trunk", (0,), "trunk is a list of widths"),
        ("pairs", "dpo.loss", "kto", "loss is one of ('dpo', 'ipo')"),
        ("pairs", "dpo.beta", 0, "beta is in "),
        ("pairs", "dpo.label_smoothing", 0.6, "label_smoothing is in [0, 0.499]"),
        ("pairs", "dpo.nll_weight", -1, "nll_weight is in [0, "),
        ("pairs", "eval.attribute", "wit", "attribute is one of ('', "),
        ("corpus", "transformer.head_dim", 1, "head_dim is in [2, "),
        ("corpus", "task.sequences", 0, "sequences is in [1, "),
    ],
)
def test_a_value_that_cannot_be_of_other_tasks(task, name, value, why):
    config = changed(resolve(TASKS[task]()), name, value)
    assert refusal(config).startswith(f"config.{name}={value!r}: {why}")


@pytest.mark.parametrize(
    ("model", "name", "value", "message"),
    [
        (
            "btl",
            "objective.name",
            "ml",
            "config.objective.name='ml': needs model.latent_dim above 0",
        ),
        (
            "np-btl",
            "model.latent_dim",
            0,
            "config.objective.name='ml': needs model.latent_dim above 0",
        ),
        (
            "btl",
            "model.reward",
            "modulated",
            "config.model.reward='modulated': needs model.latent_dim above 0",
        ),
        (
            "np-btl",
            "model.standard_prior",
            True,
            "config.model.standard_prior=True: is true for objective.name=vpl, else",
        ),
        (
            "vpl",
            "model.standard_prior",
            False,
            "config.model.standard_prior=False: is true for objective.name=vpl, else",
        ),
        (
            "vpl",
            "objective.name",
            "elbo",
            "config.model.standard_prior=True: is true for objective.name=vpl, else",
        ),
        (
            "np-btl",
            "train.validate_every",
            3,
            "config.train.validate_every=3: must be a multiple of train.steps_per_call",
        ),
        (
            "np-btl",
            "train.steps",
            7,
            "config.train.steps=7: must be a multiple of train.validate_every",
        ),
    ],
)
def test_fields_at_odds(tiny, model, name, value, message):
    assert refusal(changed(tiny(model), name, value)).startswith(message)


@pytest.mark.parametrize(
    ("variant", "fields", "message"),
    [
        (
            "np-dpo",
            {"task.buckets": (24, 48), "train.steps_per_call": 2},
            "config.train.steps_per_call=2: is 1 where task.buckets are several",
        ),
        (
            "np-dpo",
            {"dpo.reward_steps": 300, "train.steps": 300},
            "config.dpo.reward_steps=300: must be below train.steps",
        ),
        (
            "dpo",
            {"dpo.reward_steps": 1},
            "config.dpo.reward_steps=1: is 0 where policy.latent is not inferred",
        ),
        (
            "dpo",
            {"dpo.loss": "ipo", "dpo.label_smoothing": 0.1},
            "config.dpo.label_smoothing=0.1: is 0 for dpo.loss=ipo",
        ),
        (
            "np-dpo",
            {"model.latent_dim": 0},
            "config.model.latent_dim=0: must be above 0 where policy.latent is inferr",
        ),
        (
            "np-dpo",
            {"model.item_embeddings": True},
            "config.model.item_embeddings=True: is false for policies",
        ),
        (
            "language",
            {"transformer.num_kv_heads": 3},
            "config.transformer.num_kv_heads=3: must divide transformer.num_heads",
        ),
        (
            "language",
            {"transformer.head_dim": 5},
            "config.transformer.head_dim=5: must be even",
        ),
    ],
)
def test_fields_of_policies_at_odds(variant, fields, message):
    config = resolve(corpus.get_config(variant))
    for name, value in fields.items():
        config = changed(config, name, value)
    assert refusal(config).startswith(message)


def test_a_batch_that_the_devices_cannot_share(tiny, monkeypatch):
    config = tiny(**{"train.batch_size": 8})
    monkeypatch.setattr(jax, "device_count", lambda: 3)
    message = "train.batch_size=8 is not a multiple of the 3 devices"
    assert refusal(config).startswith(message)
    check(changed(config, "train.batch_size", 9))


def test_a_mesh_that_the_devices_do_not_make(tiny, monkeypatch):
    config = tiny(**{"train.batch_size": 8})
    monkeypatch.setattr(jax, "device_count", lambda: 8)
    meshed = changed(config, "mesh.fsdp", 4)
    check(meshed)
    # Devices that compute a row together share it.
    check(changed(changed(meshed, "mesh.tensor", 2), "train.batch_size", 4))
    message = "mesh.fsdp=4 times mesh.tensor=3 does not divide the number of devices, 8"
    assert refusal(changed(meshed, "mesh.tensor", 3)).startswith(message)
    assert refusal(changed(meshed, "train.parallel", "pmap")).startswith(
        "config.train.parallel='pmap': has no fsdp"
    )


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        (
            "--config.model.hiden=3",
            "error: --config.model.hiden: the config has no field 'hiden'; ",
        ),
        (
            "--config.modle.hidden=3",
            "error: --config.modle.hidden: the config has no field 'modle'; ",
        ),
        ("--config.model.hidden=0", "error: config.model.hidden=0: hidden is in [1, "),
        (
            "--config.model.hidden=wide",
            "error: flag --config.model.hidden=wide: ",
        ),
        (
            "--config.eval.num_context=(3,1)",
            "error: config.eval.num_context=(3, 1): num_context is a growing list",
        ),
        (
            "--config.objective.name=vpl",
            "error: config.model.standard_prior=False: is true for objective.name=vpl",
        ),
        (
            "--config.task.name=continum",
            "error: config.task.name='continum': name is one of ('two_types', ",
        ),
    ],
)
def test_on_the_command_line(launch, tmp_path, argument, message):
    """One line, exit code 2, and nothing begun."""
    finished = launch(
        "train",
        "--config=experiments/synthetic/two_types.py",
        f"--workdir={tmp_path}/run",
        argument,
    )
    assert finished.code == 2
    assert finished.err.startswith(message)
    assert finished.err.count("\n") == 1
    assert not (tmp_path / "run").exists()
