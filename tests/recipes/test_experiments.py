"""Every experiment file, with each of its arguments, describes a run that can be."""

import functools
import importlib
import itertools
import pathlib

import jax
import jax.numpy as jnp
import pytest
from policies import language_model
from slow import slow_but

from experiments.policy import corpus
from fsa.data.tasks.pairs import batch_shapes
from fsa.episodes import Choices, Episode, Options
from fsa.language.transformer import with_biases
from fsa.models import reward_models
from fsa.models.policy import shifted, spec_of
from fsa.recipes import language_model_run, policy_run, reward_model_run
from fsa.recipes.config import resolve
from fsa.recipes.presets import MODELS, POLICIES
from fsa.recipes.run import build_optimizer, model_arguments
from fsa.training.step import init_state

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
EXPERIMENTS = sorted(
    str(path.relative_to(REPOSITORY).with_suffix("")).replace("/", ".")
    for path in (REPOSITORY / "experiments").rglob("*.py")
    if "def get_config(" in path.read_text()
)
OF_POLICIES = [name for name in EXPERIMENTS if ".policy." in name]
# Files of the same presets with another language model, of which others are quick.
LIKE_OTHERS = [
    f"experiments.policy.{name}" for name in ("llama3_70b", "qwen2_1_5b", "qwen2_7b")
]
OF_REWARDS = [name for name in EXPERIMENTS if name not in OF_POLICIES]
VARIANTS = [(name, model) for name in OF_REWARDS for model in MODELS]
VARIANTS += [("experiments.synthetic.two_types", f"noisy-{model}") for model in MODELS]
# To trace a model takes longer than to read its config. Quick tests trace all models of
# one experiment, and one model of the others.
TRACED = slow_but(
    [v for v in VARIANTS if "two_types" in v[0] or v[1] == "np-btl"], VARIANTS
)
BASELINES = ("btl", "dpl")
EVERY_POLICY = [
    *itertools.product(OF_POLICIES, POLICIES),
    ("experiments.policy.stories", "paper"),
]
QUICK_POLICIES = [
    (name, variant)
    for name, variant in EVERY_POLICY
    if ".corpus" in name
    or variant == "paper"
    or variant == "np-dpo"
    and name not in LIKE_OTHERS
]


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
def test_every_config_of_a_reward_model_is_valid(name, model):
    resolve(importlib.import_module(name).get_config(model))


@pytest.mark.parametrize(("name", "model"), TRACED)
def test_every_reward_model(name, model):
    """Up to a state of the right shape, and a loss of its objective."""
    config = resolve(importlib.import_module(name).get_config(model))
    episode, num_items = some_episode(), 13
    if config["task"]["name"] != "people":
        task = reward_model_run.load_task(config)
        num_items = task.num_items
        draw = (task.constants, jnp.int32(0), jax.random.key(0))
        episode = jax.eval_shape(task.train_episode, *draw)
        assert episode.context.mask.shape == (config["task"]["max_context"],)
        assert episode.target.mask.shape == (config["task"]["num_targets"],)
    module = reward_models.make(model_arguments(config, num_items))
    optimizer = build_optimizer(config)
    objective = dict(config["objective"])
    loss_of = functools.partial(
        reward_models.episode_loss, module, objective=objective.pop("name"), **objective
    )

    def start_and_loss(key, episode):
        variables = module.init(key, episode)
        return init_state(variables, optimizer), loss_of(variables, episode, key)[0]

    state, loss = jax.eval_shape(start_and_loss, jax.random.key(0), episode)
    assert loss.shape == ()
    # A context encoder, or the prior that Bayes' rule begins with.
    infers = not {"context", "prior"}.isdisjoint(state.params)
    assert infers == (model.split("noisy-")[-1] not in BASELINES)


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


@pytest.mark.parametrize(("name", "variant"), slow_but(QUICK_POLICIES, EVERY_POLICY))
def test_every_policy(name, variant):
    """Up to variables that hold what is trained, and a loss of its options."""
    config = importlib.import_module(name).get_config(variant)
    config = resolve(config, config.mesh.fsdp * config.mesh.tensor)
    modulations = config["policy"]["modulations"]
    model, base = with_biases(*language_model(), shifted(modulations))
    policy = policy_run.make_policy(config, model, 2)
    loss_fn = policy_run.build_loss(config, policy)
    width = jnp.zeros(5)

    def start_and_loss(key, base, batch):
        statistics = (width, width)
        variables, constants = policy_run.assemble(policy, base, statistics, key)
        loss, _ = loss_fn(variables, (constants, batch), key)
        return variables["params"], loss

    params, loss = jax.eval_shape(
        start_and_loss, jax.random.key(0), base, some_pairs(config)
    )
    assert loss.shape == ()
    assert params.keys() == {"reward", "hyper"}
    wanted = {path for path, _ in spec_of(modulations)}
    assert params["hyper"]["leaves"].keys() == wanted


def test_the_language_model_of_the_corpus():
    config = corpus.get_config("language")
    config.task.sequences = config.eval.sequences = 3
    config.train.batch_size = 2
    run = language_model_run.abstract(resolve(config))
    sizes = config.transformer
    kernel = run.variables["params"]["layers"]["mlp"]["gate"]["kernel"]
    assert kernel.shape == (sizes.num_layers, sizes.width, sizes.mlp_width)
    loss, _ = jax.eval_shape(
        run.loss_fn, run.variables, (run.constants, run.examples), jax.random.key(0)
    )
    assert loss.shape == ()


def test_an_unknown_argument(launch, tmp_path):
    finished = launch(
        "train",
        "--config=experiments/synthetic/two_types.py:npbtl",
        f"--workdir={tmp_path}/run",
    )
    assert finished.code == 2
    assert finished.err.count("\n") == 1
    assert "npbtl" in finished.err
