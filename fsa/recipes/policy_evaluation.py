"""Evaluates a policy, or a baseline on its data, by predictions and written texts."""

from typing import Any

from etils import epath

from fsa.data.tasks.linear_probe import probe
from fsa.data.tasks.pairs import PairTask
from fsa.data.tasks.task import TEST
from fsa.errors import InputError
from fsa.evaluation import evaluation_file, report, scores
from fsa.evaluation.generated_texts import (
    Sample,
    TextEvaluator,
    page,
    side_by_side,
)
from fsa.evaluation.implicit_reward import PolicyPredictor, bayes_optimal, margins
from fsa.evaluation.methods import Between, InContext, Method, Reranked, Steered
from fsa.evaluation.predictions import Predictions
from fsa.inference.steerer import Steerer
from fsa.models.policy import INFERRED
from fsa.recipes.config import Config
from fsa.recipes.policy_run import load_task, pin_language_model

POLICY_METHOD, RERANK, IN_CONTEXT = METHODS = ("policy", "rerank", "in-context")

# Positions of the interpolation between users of two groups, 0 and 1 being the users.
_POINTS = (0.0, 0.25, 0.5, 0.75, 1.0)


def evaluate(
    config: Config,
    run_dir: epath.Path,
    *,
    method: str = POLICY_METHOD,
    data: str | None = None,
) -> dict[str, Any]:
    """Predicts choices and writes texts; prints tables, writes files into the run.

    Args:
      config: the config of the run.
      run_dir: the run directory.
      method: one of `METHODS`: the policy; the best by the reward model of 16 texts of
        its language model; or its language model with the choices as examples.
      data: folder of another dataset to predict, in place of the run's own.

    Returns:
      The content of `evaluation.json`.

    Raises:
      InputError: if data or language model are missing or damaged, or if the method is
        "rerank" and the reward model was not trained to the end.
    """
    if data:
        # Texts do not depend on the choices that are predicted, so none are written.
        task_settings = {**config["task"], "path": data}
        settings = {**config["eval"], "attribute": ""}
        config = {**config, "task": task_settings, "eval": settings}
    if not config["language_model"]["digest"]:
        config = pin_language_model(config)
    settings = config["eval"]
    sizes = tuple(settings["num_context"])
    steerer = Steerer.load(run_dir)
    task = load_task(config, steerer.language)
    predictions, writer = _apply(method, config, steerer, task)
    evaluation = scores.evaluation(
        predictions, task, sizes, num_resamples=settings["num_resamples"]
    )
    evaluation["method"], evaluation["probe"] = method, probe(task)
    evaluation["margins"] = margins(predictions, task)
    if settings["weighed_attributes"]:
        best = bayes_optimal(
            task, settings["weighed_attributes"], sizes, settings["slope"]
        )
        evaluation["ceiling_accuracy"] = best.accuracy.mean(1).tolist()
        evaluation["ceiling_nll"] = best.nll.mean(1).tolist()
    print(report.table(evaluation))
    # Baselines and scores on other data have their own folders in the run directory.
    folder = run_dir if method == POLICY_METHOD else run_dir / method
    folder = folder / epath.Path(data).name if data else folder
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / "evaluation.json"]
    if settings["attribute"]:
        texts = _text_evaluator(config, steerer, task, writer)
        files += _write_texts(evaluation, texts, steerer, task, sizes, folder)
    evaluation_file.write(files[0], evaluation)
    files += report.plot_all(predictions, evaluation, task.groups, folder)
    print("Written:", *map(str, files))
    print("Your own model and choices: docs/policies.md")
    return evaluation


def _apply(
    method: str, config: Config, steerer: Steerer, task: PairTask
) -> tuple[Predictions, Method]:
    """Returns a method's predictions of test choices, and the method itself."""
    settings = config["eval"]
    if method == IN_CONTEXT:
        in_context = InContext(steerer.language, task)
        return in_context.predict(settings["num_context"]), in_context
    by_reward = method == RERANK
    if by_reward and not config["dpo"]["reward_weight"]:
        raise InputError(
            "`method`=rerank: the reward model was not trained to the end; train with "
            "config.dpo.reward_weight above 0"
        )
    predict = PolicyPredictor(
        steerer.policy,
        task,
        TEST,
        num_context=tuple(settings["num_context"]),
        episodes_per_user=settings["episodes_per_user"],
        beta=config["dpo"]["beta"],
        by_reward=by_reward,
        users_at_once=settings["users_at_once"],
    )
    predictions = predict(steerer.variables, steerer.language.variables)
    return predictions, (Reranked if by_reward else Steered)(steerer, task)


def _text_evaluator(
    config: Config, steerer: Steerer, task: PairTask, writer: Method
) -> TextEvaluator:
    settings = config["eval"]
    return TextEvaluator(
        steerer.language,
        writer,
        task,
        tuple(settings["num_context"]),
        attribute=settings["attribute"],
        validity=settings["validity"],
        users_per_group=settings["writers_per_group"],
        prompts_per_user=settings["prompts_per_writer"],
        max_new_tokens=config["task"]["max_response"],
        num_resamples=settings["num_resamples"],
    )


def _write_texts(
    evaluation: dict[str, Any],
    texts: TextEvaluator,
    steerer: Steerer,
    task: PairTask,
    sizes: tuple[int, ...],
    folder: epath.Path,
) -> list[epath.Path]:
    """Adds measures of written texts to an evaluation; returns the files written."""
    found, samples = texts()
    evaluation |= found
    print(report.generated_table(evaluation))
    infers = steerer.policy.latent == INFERRED
    if isinstance(texts.method, Steered) and infers and len(task.groups) > 1:
        found = texts.between(Between(steerer, task), _POINTS)
        evaluation["interpolation"] = {"points": _POINTS, "groups": found}
        print(report.interpolation_table(evaluation))
    files = [folder / "steering.png", folder / "samples.md"]
    report.plot_steering(evaluation, files[0])
    files[1].write_text(page(samples, sizes))
    _print_samples(samples, sizes)
    return files


def _print_samples(samples: list[Sample], sizes: tuple[int, ...]) -> None:
    """Prints the texts of the first user of each group."""
    for sample in {sample.group: sample for sample in samples[::-1]}.values():
        of_size = zip(sizes, sample.steered, strict=True)
        texts = {f"after {n} choices": text for n, text in of_size}
        print(f"\nA user of group {sample.group}:")
        print(side_by_side(sample.prompt, {"language model": sample.reference} | texts))
