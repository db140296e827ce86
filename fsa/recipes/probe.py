"""`probe`: says before a long training whether few-shot prediction may work on data.

All training and validation people are scored, in folds, by models that others trained:
popularity, linear models, and a reward model after a short training on a quarter, a
half and all of the others. Test people are not looked at.

Shapes: U people, C context sizes, S numbers of training people, I items, F features.
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from fsa import bars
from fsa.data import dataset, manifest
from fsa.data.dataset import Dataset
from fsa.data.tasks import folds, order
from fsa.data.tasks.folds import FoldedPeople
from fsa.data.tasks.people import CHOICES, RATINGS
from fsa.data.tasks.task import TRAIN, VALID
from fsa.errors import InputError
from fsa.evaluation import baselines, verdict
from fsa.evaluation.predictions import FewShotPredictor, Predictions
from fsa.evaluation.scores import bootstrap_interval, right, user_means
from fsa.evaluation.verdict import Scores
from fsa.models import reward_models
from fsa.models.reward_models import AnyRewardModel
from fsa.recipes import config as configs
from fsa.recipes import presets
from fsa.recipes.config import Config
from fsa.recipes.fields import PEOPLE
from fsa.recipes.reward_model_run import build_loss, people_arguments
from fsa.recipes.run import build_optimizer, build_runner, model_arguments
from fsa.training import reward_loss
from fsa.training.reward_loss import Examples
from fsa.training.step import init_state

# With fewer people, intervals are too wide to say anything and not reliable.
MIN_PEOPLE = 20

# Shares of the people of other folds that the reward model is trained on.
_SHARES = (0.25, 0.5, 1.0)

# Most people have so many choices for each choice of the largest context, so that there
# are others to predict.
_CHOICES_PER_CONTEXT = 1.5

# Samples of z of a prediction; more take as long as the training.
_MOST_SAMPLES = 16


class _Training(NamedTuple):
    """What all short trainings share, so that the step is compiled once."""

    task: FoldedPeople
    runner: Any
    optimizer: Any
    variables: Any
    key: jax.Array
    steps: int


def default_config(path: epath.PathLike, model: str = "np-btl") -> ConfigDict:
    """Returns a config on a dataset, trained on its choices if it has any.

    Args:
      path: the dataset.
      model: one of `presets.MODELS`.

    Raises:
      InputError: if there is no dataset, or no such model.
    """
    config = presets.people(model)
    config.task.path = str(path)
    # The probe reads the dataset itself, which may take long.
    counted = manifest.read(pathlib.Path(path), "counts")["counts"]
    config.task.train_on = CHOICES if counted[TRAIN]["choices"] else RATINGS
    return config


def probe(
    config: ConfigDict | Mapping[str, Any], *, steps: int = 200
) -> dict[str, Any]:
    """Measures how well people are predicted after a minute or two of training.

    Args:
      config: the config of a reward model of people, such as `default_config`'s. Its
        steps are not used.
      steps: updates of each short training, of which there are 12.

    Returns:
      The content of `probe.json`, for `fsa.evaluation.probe_report`: counts, the
      accuracy of every prediction, the NLL of the reward model, the comparisons of
      `verdict.compare` and `verdict.fall`, answers, and sentences. A dataset without
      features has counts and popularity alone.

    Raises:
      InputError: before any training, if the dataset is missing or has too few people
        or too few choices of each; and if a loss is not finite.
    """
    config = _brief(config, steps)
    with configs.naming_fields(config):
        data = dataset.load(config["task"]["path"], need_features=False)
        task, sizes = _task(config, data)
        measure = _measure if data.embedder else _measure_popularity
        return {
            "data": config["task"]["path"],
            "embedder": data.embedder,
            "train_on": task.train_on,
            "steps": steps,
            "seed": config["seed"],
            "counts": counts(data),
            "people": len(task.users(VALID)),
            "folds": task.num_folds,
            "n_context": list(sizes),
            **measure(config, task, sizes),
        }


def predict_in_folds(
    config: ConfigDict | Mapping[str, Any], *, steps: int, trainings: int = 1
) -> tuple[tuple[int, ...], list[Predictions]]:
    """Predicts all people of train and valid by models that other people trained.

    Args:
      config: as for `probe`. Two configs that differ in the model or its training alone
        are scored on the same episodes of the same people.
      steps: updates of each training.
      trainings: models for each fold, with random numbers of their own.

    Returns:
      The context sizes `[C]`, and the predictions of the people by each training.

    Raises:
      InputError: as `probe`.
    """
    config = _brief(config, steps)
    with configs.naming_fields(config):
        task, sizes = _task(config, dataset.load(config["task"]["path"]))
        predict = dataclasses.replace(_predictor(config, task, sizes), diagnose=False)
        training = _training(config, task, predict.model)
        found = []
        for number in range(trainings):
            if number:
                key = jax.random.fold_in(jax.random.key(config["seed"]), number)
                training = _again(training, predict.model, key)
            parts = []
            for fold in range(task.num_folds):
                constants = task.constants_without(fold)
                variables = _train(training, constants, task.trained(fold))
                users = task.scored(fold)
                parts.append(predict(variables, users=users, constants=constants))
            found.append(jax.tree.map(lambda *x: np.concatenate(x), *parts))
    return sizes, found


def counts(data: Dataset) -> dict[str, dict[str, Any]]:
    """Counts users, choices and ratings by split, with quartiles over users.

    Quartiles are over the users who have any, and all 0 if nobody has.
    """

    def quartiles(lengths: np.ndarray) -> list[float]:
        some = lengths[lengths > 0]
        return np.quantile(some, (0.25, 0.5, 0.75)).tolist() if len(some) else [0.0] * 3

    basic = dataset.counts(data)
    return {
        split: {
            **basic[split],
            "choices_of_a_user": quartiles(table.chosen.lengths),
            "ratings_of_a_user": quartiles(table.items.lengths),
        }
        for split, table in data.users.items()
    }


def _brief(config: ConfigDict | Mapping[str, Any], steps: int) -> Config:
    """Returns the checked config of a short training, which is one call of the step."""
    if isinstance(config, ConfigDict):
        config = config.to_dict()
    if config.get("task", {}).get("name") != PEOPLE:
        raise InputError("`config`: give that of a reward model of people")
    call = {"steps": steps, "steps_per_call": steps, "validate_every": steps}
    warmup = min(config["optimizer"]["warmup_steps"], steps // 4)
    return configs.resolve(
        {
            **config,
            "train": {**config["train"], **call},
            "optimizer": {**config["optimizer"], "warmup_steps": warmup},
        }
    )


def _task(config: Config, data: Dataset) -> tuple[FoldedPeople, tuple[int, ...]]:
    """Makes the task, with context sizes that most people have choices for."""
    given = people_arguments(config)
    if given["context"] == RATINGS:
        raise InputError(
            f"`context`={RATINGS}: a probe compares what choices tell; set it to votes"
        )
    pooled = folds.pool(data)
    asked = sorted({0, *config["eval"]["num_context"]})
    if len(asked) < 2:
        raise InputError("`test_context`: give a context size above 0")

    def with_context(n: int) -> FoldedPeople:
        # Whoever is scored can be trained on too.
        least = max(2, min(given["min_choices"], n + 1))
        changes = {"test_context": n, "min_choices": least}
        return FoldedPeople(pooled, **{**given, **changes})

    found = with_context(asked[1]).num_choices[VALID]
    most = np.median(found[found > 0]) / _CHOICES_PER_CONTEXT
    sizes = tuple(n for n in asked if n <= max(most, asked[1]))
    task = with_context(sizes[-1])
    people = min(len(task.users(split)) for split in (TRAIN, VALID))
    if people < MIN_PEOPLE:
        raise InputError(
            f"{people} people of train and valid have {sizes[-1] + 1} choices or more, "
            f"and a probe needs {MIN_PEOPLE}; add people"
        )
    return task, sizes


def _predictor(config: Config, task: FoldedPeople, sizes) -> FewShotPredictor:
    settings = config["eval"]
    return FewShotPredictor(
        reward_models.make(model_arguments(config, task.num_items, task.levels)),
        task,
        VALID,
        num_context=sizes,
        episodes_per_user=settings["valid_episodes_per_user"],
        num_samples=min(settings["num_samples"], _MOST_SAMPLES),
        deterministic=config["objective"]["name"] == "deterministic",
        key=jax.random.key(config["seed"]),
    )


def _measure_popularity(config: Config, task: FoldedPeople, sizes) -> dict[str, Any]:
    """Scores popularity, which needs no features."""
    predict = _predictor(config, task, sizes)
    accuracies = []
    for fold in range(task.num_folds):
        constants = task.constants_without(fold)
        target = baselines.draw(predict, constants, task.scored(fold)).target
        accuracies.append(_popularity(constants, target))
    why = (
        "The items have no features, so that nothing else can be told: run "
        f"fsa embed --data={config['task']['path']} --model=FOLDER, or prepare the "
        "dataset with ready-made vectors."
    )
    accuracy = {"popularity": _with_interval(config, np.concatenate(accuracies))}
    return {"accuracy": accuracy, "verdict": [why]}


def _measure(config: Config, task: FoldedPeople, sizes) -> dict[str, Any]:
    """Scores all predictions, compares them, and says what that means."""
    predict = _predictor(config, task, sizes)
    training = _training(config, task, predict.model)
    people = [_nested(task.trained(fold)) for fold in range(task.num_folds)]
    parts = []
    with bars.Bar(task.num_folds * len(_SHARES), "Probing", "training") as bar:
        for fold in range(task.num_folds):
            constants = task.constants_without(fold)
            model = []
            for trained in people[fold]:
                variables = _train(training, constants, trained)
                model.append(
                    predict(variables, users=task.scored(fold), constants=constants)
                )
                bar.advance()
            parts.append(_scores(predict, constants, fold, model))
    # People are the axis before context sizes, or the only one.
    scores = jax.tree.map(
        lambda *x: np.concatenate(x, axis=max(x[0].ndim - 2, 0)), *parts
    )
    trained_on = [int(np.mean(list(map(len, of)))) for of in zip(*people, strict=True)]
    return _found(config, scores, sizes, trained_on)


def _nested(people: np.ndarray) -> list[np.ndarray]:
    """Returns the first people, as many as each of the shares."""
    return [people[: max(1, int(share * len(people)))] for share in _SHARES]


def _training(config: Config, task: FoldedPeople, model: AnyRewardModel) -> _Training:
    init_key, key = jax.random.split(jax.random.key(config["seed"]))
    optimizer = build_optimizer(config)
    runner = build_runner(
        config, build_loss(config, model, task), reward_loss.SHARDING_RULES, optimizer
    )
    variables = reward_loss.init_variables(model, task, init_key)
    return _Training(
        task=task,
        runner=runner,
        optimizer=optimizer,
        # On the host, since a step reuses the memory of its state.
        variables=jax.tree.map(np.array, jax.device_get(variables)),
        key=key,
        steps=config["train"]["steps"],
    )


def _again(training: _Training, model: AnyRewardModel, key: jax.Array) -> _Training:
    """Returns a training with other random numbers."""
    init_key, key = jax.random.split(key)
    variables = reward_loss.init_variables(model, training.task, init_key)
    return training._replace(variables=jax.device_get(variables), key=key)


def _train(training: _Training, constants, people: np.ndarray) -> Any:
    """Trains on some of the people; returns the averaged variables."""
    task, runner = training.task, training.runner

    def make_examples(step: int, positions: np.ndarray) -> Examples:
        first = step * task.batch_size
        users = order.visited(people, first, task.batch_size, task.seed)
        return Examples(np.full_like(positions, step), positions, users[positions])

    state, metrics = runner(
        runner.place(init_state(training.variables, training.optimizer)),
        runner.place(constants),
        runner.batch(make_examples, 0, training.steps),
        runner.place(training.key),
    )
    if not np.isfinite(jax.device_get(metrics["loss"])).all():
        raise InputError("the loss is not finite; lower `learning_rate`")
    return state.variables


def _scores(
    predict: FewShotPredictor, constants, fold: int, model: Sequence[Predictions]
) -> Scores:
    """Scores the people of a fold, given predictions of each number of people."""
    task = predict.task
    mean, std = task.statistics()
    features = (task.data.features - mean) / std
    # Of everybody, so that the draws are compiled for one number of people.
    everybody = task.users(VALID)
    drawn = baselines.draw(predict, constants, everybody)
    groups = [drawn.take(task.fold[everybody] == k) for k in range(task.num_folds)]
    own = groups.pop(fold)
    # `predict` leaves out people whose ratings happened to give no pair.
    own = own.take(own.target.mask.any((1, 2)))
    fitted = baselines.fit_linear(features, groups)

    def shifted(context) -> np.ndarray:
        log_prob = baselines.shifted_log_prob(
            fitted, context, own.target, predict.num_context
        )
        return user_means(right(log_prob), own.target.mask)

    by_own = shifted(own.context)
    return Scores(
        popularity=_popularity(constants, own.target),
        # At n = 0 nothing is shifted.
        linear=by_own[:, 0],
        shifted=by_own,
        shifted_others=shifted(own.flipped),
        model=np.stack([user_means(right(p.log_prob), p.mask) for p in model]),
        model_others=user_means(right(model[-1].flipped), model[-1].mask),
        nll=user_means(-model[-1].log_prob, model[-1].mask),
    )


def _popularity(constants, target: baselines.Pairs) -> np.ndarray:
    """Returns the accuracy of popularity for each person with a target, `[U]`."""
    log_prob = baselines.item_log_prob(np.asarray(constants["popularity"]), target)
    scored = target.mask.any((1, 2))
    return user_means(right(log_prob[scored]), target.mask[scored])[:, 0]


def _with_interval(config: Config, accuracy: np.ndarray) -> dict[str, list]:
    """Returns mean and interval over people of scores `[U]` or `[U, C]`."""
    accuracy = accuracy.reshape(len(accuracy), -1)
    interval = bootstrap_interval(accuracy, config["eval"]["num_resamples"])
    return {"mean": accuracy.mean(0).tolist(), "ci": interval.tolist()}


def _found(config: Config, scores: Scores, sizes, trained_on) -> dict[str, Any]:
    """Returns the part of `probe.json` that depends on scores."""
    num_resamples = config["eval"]["num_resamples"]
    compared = verdict.compare(scores, sizes, num_resamples)
    fallen = verdict.fall(scores, num_resamples)
    curves = [f"reward model, {people} people" for people in trained_on]
    accuracy = {
        "popularity": scores.popularity,
        "linear": scores.linear,
        "linear, shifted": scores.shifted,
        **dict(zip(curves, scores.model, strict=True)),
        "reward model, somebody else's choices": scores.model_others,
    }
    return {
        "trained_on": trained_on,
        "accuracy": {name: _with_interval(config, x) for name, x in accuracy.items()},
        "nll": _with_interval(config, scores.nll),
        "nll_fallen": fallen._asdict(),
        "curves": curves,
        "comparisons": {name: c._asdict() for name, c in compared.items()},
        "answers": verdict.answers(compared),
        "verdict": verdict.sentences(scores, sizes, trained_on, compared, fallen),
    }
