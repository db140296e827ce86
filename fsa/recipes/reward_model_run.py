"""A run of a reward model: BTL, DPL, NP-BTL or VPL on simulated users or on people."""

import functools
from collections.abc import Sequence
from typing import Any

import jax

from fsa.data import dataset, scored_responses
from fsa.data.dataset import Dataset
from fsa.data.tasks.people import CHOICES, RATINGS, People
from fsa.data.tasks.simulated import Continuum, IdealPoint, TwoTypes
from fsa.data.tasks.task import TEST, VALID, Task
from fsa.evaluation.predictions import FewShotPredictor
from fsa.inference.saved_model import RESPONSES, describe_reward_model
from fsa.models import reward_models
from fsa.models.reward_models import AnyRewardModel
from fsa.parallel.sharding import make_mesh
from fsa.recipes import responses
from fsa.recipes.config import Config
from fsa.recipes.run import (
    AbstractRun,
    Run,
    model_arguments,
    shapes_of,
    tell_how_to_evaluate,
    validation_scores,
)
from fsa.training import reward_loss


def prepare(config: Config, recorded: Config | None) -> Config:
    """Completes a config, see `fsa.recipes.kinds.Kind`."""
    if config["task"]["name"] != RESPONSES:
        return config
    return responses.pin_language_model(config, recorded)


def build(config: Config, init_key: jax.Array, valid_key: jax.Array) -> Run:
    """Builds the run of a checked config, see `fsa.recipes.kinds.Kind`."""
    task, data = _load(config)
    levels = task.levels if isinstance(task, People) else ()
    arguments = model_arguments(config, task.num_items, levels)
    model = reward_models.make(arguments)
    deterministic = config["objective"]["name"] == "deterministic"
    predict = FewShotPredictor(
        model,
        task,
        VALID,
        num_context=config["eval"]["num_context"],
        episodes_per_user=config["eval"]["valid_episodes_per_user"],
        num_samples=config["eval"]["num_samples"],
        deterministic=deterministic,
        key=valid_key,
        diagnose=False,
    )
    return Run(
        variables=reward_loss.init_variables(model, task, init_key),
        loss_fn=build_loss(config, model, task),
        constants=task.constants,
        make_examples=functools.partial(reward_loss.make_examples, task),
        validate=lambda state: validation_scores(
            predict(state.variables), predict.num_context
        ),
        sharding_rules=reward_loss.SHARDING_RULES,
        description=describe_reward_model(
            config, arguments, deterministic=deterministic
        ),
        finish=tell_how_to_evaluate,
        data=data,
    )


def abstract(config: Config) -> AbstractRun:
    """Returns the shapes of a run; reads the data, since its step contains them.

    Raises:
      InputError: if the data are missing, damaged or too few.
    """
    return shapes_of(build(config, *jax.random.split(jax.random.key(0))), config)


def build_loss(config: Config, model: AnyRewardModel, task: Task):
    """Makes the loss of a checked config."""
    objective = dict(config["objective"])
    name = objective.pop("name")
    return reward_loss.make_loss(model, task, objective=name, **objective)


def load_task(config: Config, levels: Sequence[float] = ()) -> Task:
    """Makes the task of a reward model from a checked config; reads its data.

    Args:
      config: the config.
      levels: the ratings that a trained model knows, where it knows any.

    Raises:
      InputError: if the data are missing, damaged, too few, or have other ratings.
    """
    return _load(config, levels)[0]


def _load(config: Config, levels: Sequence[float] = ()) -> tuple[Task, Dataset | None]:
    """Returns the task of a config, and the dataset as it is on disk, if any."""
    name = config["task"]["name"]
    if name == RESPONSES:
        mesh = make_mesh(**config["mesh"])
        language = responses.load_language_model(config, mesh)
        data, scored = responses.load_embedded(config, language)
        embedded = scored_responses.embedded(data, scored)
        return People(embedded, **people_arguments(config)), data
    if name == "people":
        task = config["task"]
        data = dataset.load(task["path"], most_in_memory=task["most_in_memory"])
        arguments = people_arguments(config)
        return People(data, **arguments, known_levels=tuple(levels)), data
    return _simulated(config), None


def _simulated(config: Config) -> Task:
    task, evaluation = config["task"], config["eval"]
    sizes = _sizes(config)
    sizes["num_users"] = {VALID: evaluation["valid_users"], TEST: evaluation["users"]}
    if task["name"] == "two_types":
        return TwoTypes(**sizes, slope=task["slope"])
    if task["name"] == "ideal_point":
        return IdealPoint(**sizes, personal=task["personal"])
    return Continuum(**sizes, personal=task["personal"], shared=task["shared"])


def people_arguments(config: Config) -> dict[str, Any]:
    """Returns the arguments of `People`, except the data, from a checked config."""
    names = ("min_choices", "train_on", "pairing_noise", "max_gap", "min_margin")
    # Responses are chosen between, and never rated.
    settings = {"train_on": CHOICES, **config["task"]}
    chosen = {name: settings[name] for name in names if name in settings}
    # Votes are made of choices, by the model.
    context = RATINGS if config["model"]["context"] == RATINGS else CHOICES
    return {**_sizes(config), **chosen, "context": context, "seed": config["seed"]}


def _sizes(config: Config) -> dict[str, Any]:
    task, evaluation = config["task"], config["eval"]
    return dict(
        batch_size=config["train"]["batch_size"],
        max_context=task["max_context"],
        num_targets=task["num_targets"],
        test_context=max(evaluation["num_context"]),
        test_targets=evaluation["num_targets"],
    )
