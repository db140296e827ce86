"""A reward model of responses, and the policy whose z it gives."""

import json
import shutil

import jax
import numpy as np
import pytest
from policies import MODULATIONS, TINY, choices, write_all

from benchmarks.survive import sound
from experiments.policy import corpus, stories
from fsa.data.tasks.people import People
from fsa.episodes import Choices, Options
from fsa.inference import saved_model
from fsa.inference.steerer import Steerer
from fsa.recipes import config as configs
from fsa.recipes import policy_run, reward_model_run
from fsa.training.checkpoint import VARIABLES
from fsa.training.monitor.metrics import read_metrics

pytestmark = pytest.mark.usefixtures("quick_compile")

SHARED = ("task.max_context", "task.num_targets", "task.max_response", "task.buckets")
# Both stages know the responses and are scored alike.
SHARED += ("train.batch_size", "eval.num_context", "eval.num_targets")
STEPS = {"train.steps": 4, "train.steps_per_call": 2, "train.validate_every": 2}


def fields(folder, **given):
    """Flags of fields, those that both stages share among them."""
    shared = {name: TINY[name] for name in SHARED}
    paths = {
        "task.path": folder / "choices",
        "language_model.path": folder / "language",
    }
    # Of another width than the language model's states.
    features = {"task.pooling": "last_and_form"}
    given = {**shared, **STEPS, **paths, **features, **given}
    return [f"--config.{name}={value}" for name, value in given.items()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With `choices` and `language`."""
    return write_all(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def train_reward(launch, folder):
    """Trains the first stage: `train_reward(workdir, **fields)`."""

    def run(workdir, **given):
        small = {"model.hidden": 8, "model.latent_dim": 3, "model.num_sweeps": 0}
        line = fields(folder, **{**small, "task.min_choices": 2, **given})
        config = "--config=experiments/policy/corpus.py:reward"
        return launch("train", config, *line, f"--workdir={workdir}")

    return run


@pytest.fixture(scope="module")
def reward(quick_compile, train_reward, tmp_path_factory):
    """The run of a first stage."""
    workdir = tmp_path_factory.mktemp("runs") / "reward"
    finished = train_reward(workdir)
    assert finished.code == 0, finished.err
    return workdir


@pytest.fixture(scope="module")
def train_policy(launch, folder):
    """Trains the second stage: `train_policy(workdir, reward, **fields)`."""

    def run(workdir, reward, **given):
        small = {"policy.modulations": MODULATIONS, "optimizer.warmup_steps": 1}
        line = fields(folder, **{**small, "policy.reward_model": reward, **given})
        config = "--config=experiments/policy/corpus.py:distillation"
        return launch("train", config, *line, f"--workdir={workdir}")

    return run


@pytest.fixture(scope="module")
def policy(train_policy, reward, tmp_path_factory):
    """The run of a second stage."""
    workdir = tmp_path_factory.mktemp("runs") / "policy"
    finished = train_policy(workdir, reward, **{"task.candidates": 2})
    assert finished.code == 0, finished.err
    return workdir


def refusal(finished):
    """The last line of a command that was refused."""
    assert finished.code == 2, finished.err
    assert "Traceback" not in finished.err
    return finished.err.splitlines()[-1]


@pytest.mark.parametrize("variant", corpus.VARIANTS)
def test_every_variant_of_the_corpus_is_a_config(variant):
    configs.resolve(corpus.get_config(variant))


@pytest.mark.parametrize("variant", stories.MOOD)
def test_every_stage_for_mood_is_a_config(variant):
    configs.resolve(stories.get_config(variant))


def test_a_policy_keeps_the_reward_model_as_it_was_trained(reward, policy):
    _, second = sound(policy)
    config = json.loads((policy / "config.json").read_text())["policy"]
    with saved_model.open_best(reward, saved_model.REWARD_MODEL) as (first, restore):
        jax.tree.map(
            np.testing.assert_array_equal, second[VARIABLES]["reward"], restore()
        )
        assert config["reward_digest"] == first["origin"]["checkpoint"]
    assert second[VARIABLES]["params"].keys() == {"hyper"}
    rows = read_metrics(policy, "valid")
    # A sample of users is validated, with the most choices known.
    assert all("nll_at_2" in row and "nll_at_0" not in row for row in rows)


@pytest.mark.slow
def test_a_policy_that_was_moved_needs_no_first_stage(reward, policy, folder, tmp_path):
    """z is the posterior mean by the reward model, of the same features."""
    shutil.copytree(policy, tmp_path / "moved")
    path = tmp_path / "moved" / "config.json"
    config = json.loads(path.read_text())
    config["policy"]["reward_model"] = str(tmp_path / "gone")
    path.write_text(json.dumps(config))
    steerer = Steerer.load(tmp_path / "moved")
    rows = [row for row in choices() if row.split == "test"][:2]
    found = steerer.latent([(row.prompt, row.chosen, row.rejected) for row in rows])
    with saved_model.open_best(reward, saved_model.REWARD_MODEL) as (_, restore):
        variables = restore()
    task = reward_model_run.load_task(configs.read(reward))
    assert isinstance(task, People)
    data = task.data
    prompts = (data.prompts[i] for i in data.item_prompt)
    index = {pair: i for i, pair in enumerate(zip(prompts, data.texts, strict=True))}
    sides = [[getattr(row, side) for row in rows] for side in ("chosen", "rejected")]
    items = [
        np.array(
            [index[row.prompt, text] for row, text in zip(rows, side, strict=True)]
        )
        for side in sides
    ]
    options = [Options(data.features[np.array(i)], np.full(len(i), -1)) for i in items]
    context = Choices(*options, np.ones(len(rows), bool))
    model = steerer.policy.reward_model
    q = model.apply(variables, context, method="encode")
    np.testing.assert_allclose(found, q.mean, rtol=1e-4, atol=1e-5)
    assert np.abs(found - steerer.latent([])).max() > 1e-4


@pytest.mark.slow
def test_another_reward_model_at_the_same_path_is_refused(
    reward, policy, train_reward, train_policy, tmp_path
):
    shutil.copytree(policy, tmp_path / "policy")
    other = tmp_path / "reward"
    assert train_reward(other, seed=1).code == 0
    message = refusal(train_policy(tmp_path / "policy", other))
    assert "config.policy.reward_model" in message
    # The same one may have moved.
    shutil.copytree(reward, tmp_path / "moved")
    finished = train_policy(tmp_path / "policy", tmp_path / "moved")
    assert finished.code == 0, finished.err


def test_a_reward_model_of_other_features_is_refused(
    reward, train_policy, folder, tmp_path
):
    scored = sorted((folder / "choices").glob("responses-*"))
    other = {"task.pooling": "last"}
    message = refusal(train_policy(tmp_path / "policy", reward, **other))
    assert "task.pooling='last_and_form'" in message and "'last'" in message
    assert not (tmp_path / "policy" / "checkpoints").exists()
    # To score responses may take hours.
    assert sorted((folder / "choices").glob("responses-*")) == scored


def test_the_second_stage_has_a_dry_run(reward, folder):
    """Its shapes are those that are trained, and it reads no language model."""
    config = corpus.get_config("distillation")
    config.task.pooling = "last_and_form"
    config.policy.reward_model = str(reward)
    config.language_model.path = str(folder / "language")
    config.policy.modulations = MODULATIONS
    config.task.max_response = TINY["task.max_response"]
    run = policy_run.abstract(configs.resolve(config))
    assert run.variables["reward"].keys() == {"params", "statistics"}
    loss, metrics = jax.eval_shape(
        run.loss_fn, run.variables, (run.constants, run.examples), jax.random.key(0)
    )
    assert loss.shape == metrics["margin"].shape == ()


def test_what_is_no_reward_model_of_responses_is_refused(
    policy, train_policy, tmp_path
):
    for path in (policy, tmp_path / "nothing"):
        message = refusal(train_policy(tmp_path / "new", path))
        assert f"config.policy.reward_model={path}: " in message


def test_a_reward_model_of_responses_ranks_nothing_by_itself(reward, launch, tmp_path):
    options = tmp_path / "options.jsonl"
    options.write_text('{"option": "a"}\n{"option": "b"}\n')
    line = f"--workdir={reward}", f"--options={options}"
    assert "config.policy.reward_model" in refusal(launch("predict", *line))
