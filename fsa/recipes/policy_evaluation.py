"""Evaluates a policy, or a baseline on its data, by predictions and written texts."""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from etils import epath

from fsa import folders
from fsa.data.tasks.linear_probe import probe
from fsa.data.tasks.pairs import PairTask
from fsa.data.tasks.task import TEST
from fsa.errors import InputError
from fsa.evaluation import evaluation_file, figure_style, figures, report, scores
from fsa.evaluation.generated_texts import (
    Sample,
    TextEvaluator,
    page,
)
from fsa.evaluation.implicit_reward import (
    PolicyPredictor,
    bayes_optimal,
    language_model_accuracy,
    margins,
)
from fsa.evaluation.methods import (
    Between,
    InContext,
    Method,
    Partway,
    Reranked,
    Steered,
)
from fsa.evaluation.predictions import Predictions
from fsa.evaluation.reward_agreement import agreement
from fsa.inference.steered_texts import side_by_side
from fsa.inference.steerer import Steerer
from fsa.models.policy import INFERRED
from fsa.parallel import processes
from fsa.parallel.examples import find_mesh
from fsa.recipes.config import Config
from fsa.recipes.other_data import OtherData, folder_for
from fsa.recipes.policy_run import load_task
from fsa.recipes.responses import pin_language_model

POLICY_METHOD, RERANK, IN_CONTEXT = METHODS = ("policy", "rerank", "in-context")

# Users of each group for whom texts are written, and texts for each, if they are for
# people to read and no attribute is measured.
_FEW_WRITERS, _FEW_PROMPTS = 4, 2


def evaluate(
    config: Config,
    run_dir: epath.Path,
    *,
    method: str = POLICY_METHOD,
    other: OtherData | None = None,
    full: bool = False,
    batch_size: int = 64,
) -> dict[str, Any]:
    """Predicts choices and writes texts; prints tables, writes files into the run.

    Args:
      config: the config of the run, with the paths of its data and language model.
      run_dir: the run directory.
      method: one of `METHODS`: the policy; the best by the reward model of 16 texts of
        its language model; or its language model with the choices as examples.
      other: the dataset if it is not the run's own; then no texts are written.
      full: whether to print all measures.
      batch_size: number of texts that a device writes together.

    Returns:
      The content of `evaluation.json`.

    Raises:
      InputError: if data or language model are missing or damaged, or if the method is
        "rerank" and the reward model was not trained to the end.
    """
    if not config["language_model"]["digest"]:
        config = pin_language_model(config)
    settings = config["eval"]
    sizes = tuple(settings["num_context"])
    # Baselines and scores on other data have their own folders in the run directory.
    folder = run_dir if method == POLICY_METHOD else run_dir / method
    folder = folder_for(folder, other)
    model = config["language_model"]["path"]
    steerer = Steerer.load(
        run_dir,
        model=model,
        any_data=True,
        examples_at_once=batch_size,
        mesh=find_mesh(**config["mesh"]),
    )
    task = load_task(config, steerer.language)
    predictions, writer = _apply(method, config, steerer, task)
    evaluation = scores.evaluation(
        predictions, task, sizes, num_resamples=settings["num_resamples"]
    )
    evaluation["method"], evaluation["probe"] = method, probe(task)
    evaluation["margins"] = margins(predictions, task)
    evaluation["language_model_accuracy"] = language_model_accuracy(task)
    if method == POLICY_METHOD and _has_reward_model(config):
        by_reward = _predict(config, steerer, task, by_reward=True, diagnose=False)
        evaluation |= agreement(predictions, by_reward)
    if other:
        evaluation["data"] = other.digest
    if settings["weighed_attributes"]:
        best = bayes_optimal(
            task, settings["weighed_attributes"], sizes, settings["slope"]
        )
        evaluation["ceiling_accuracy"] = best.accuracy.mean(1).tolist()
        evaluation["ceiling_nll"] = best.nll.mean(1).tolist()
    print(report.summary(evaluation, full=full))
    name = f"{run_dir.name} on {folder.name}" if other else run_dir.name

    def write() -> list[str]:
        folder.mkdir(parents=True, exist_ok=True)
        evaluation_file.write(folder / "evaluation.json", evaluation)
        drawn = figures.write_all(predictions, evaluation, task.groups, folder, name)
        return [str(folder / "evaluation.json"), *map(str, drawn)]

    # Before texts, which take long or may fail.
    files = processes.on_first(write)
    # Texts do not depend on the choices that are predicted.
    if not other:
        texts = _text_evaluator(config, steerer, task, writer)
        files += _add_texts(evaluation, texts, folder, name, full)
        for table in _add_lines(evaluation, texts, steerer, task, settings):
            processes.on_first(
                functools.partial(_write_line, evaluation, table, folder, name, full)
            )
    print("Written:", *files)
    print("Your own model and choices: docs/policies.md")
    return evaluation


def _apply(
    method: str, config: Config, steerer: Steerer, task: PairTask
) -> tuple[Predictions, Method]:
    """Returns a method's predictions of test choices, and the method itself."""
    if method == IN_CONTEXT:
        in_context = InContext(steerer.language, task)
        return in_context.predict(config["eval"]["num_context"]), in_context
    by_reward = method == RERANK
    if by_reward and not _has_reward_model(config):
        raise InputError(
            "`method`=rerank: the reward model was not trained to the end; give one by "
            "config.policy.reward_model, or train with config.dpo.reward_weight above 0"
        )
    predictions = _predict(config, steerer, task, by_reward=by_reward)
    return predictions, (Reranked if by_reward else Steered)(steerer, task)


def _predict(
    config: Config, steerer: Steerer, task: PairTask, *, by_reward: bool, **options: Any
) -> Predictions:
    """Returns predictions by the policy's implicit reward or by its reward model."""
    settings = config["eval"]
    predict = PolicyPredictor(
        steerer.policy,
        task,
        TEST,
        num_context=tuple(settings["num_context"]),
        episodes_per_user=settings["episodes_per_user"],
        beta=config["dpo"]["beta"],
        by_reward=by_reward,
        users_at_once=settings["users_at_once"],
        mesh=steerer.language.mesh,
        **options,
    )
    return predict(steerer.variables, steerer.language.variables)


def _has_reward_model(config: Config) -> bool:
    """Returns whether a policy has a reward model that was trained to the end."""
    return bool(config["policy"]["reward_model"] or config["dpo"]["reward_weight"])


def _text_evaluator(
    config: Config, steerer: Steerer, task: PairTask, writer: Method
) -> TextEvaluator:
    settings = config["eval"]
    writers, prompts = settings["writers_per_group"], settings["prompts_per_writer"]
    if not settings["attribute"]:
        # Nothing is measured that would need many.
        writers, prompts = min(writers, _FEW_WRITERS), min(prompts, _FEW_PROMPTS)
    return TextEvaluator(
        steerer.language,
        writer,
        task,
        tuple(settings["num_context"]),
        attribute=settings["attribute"],
        validity=settings["validity"],
        users_per_group=writers,
        prompts_per_user=prompts,
        max_new_tokens=settings["max_new_tokens"] or config["task"]["max_response"],
        num_resamples=settings["num_resamples"],
    )


def _add_texts(
    evaluation: dict[str, Any],
    texts: TextEvaluator,
    folder: epath.Path,
    name: str,
    full: bool,
) -> list[str]:
    """Adds measures of written texts; prints and writes them, returns the files."""
    measured, samples = texts()
    evaluation |= measured

    def write() -> list[str]:
        evaluation_file.write(folder / "evaluation.json", evaluation)
        print(f"\n{report.texts_summary(evaluation, full=full)}")
        return [*map(str, _write_texts(evaluation, samples, folder, name))]

    return processes.on_first(write)


def _write_line(
    evaluation: Mapping[str, Any],
    table: Callable[..., str],
    folder: epath.Path,
    name: str,
    full: bool,
) -> None:
    """Prints and writes what `_add_lines` has added."""
    evaluation_file.write(folder / "evaluation.json", evaluation)
    print(f"\n{table(evaluation, full=full)}")
    _draw_steering(evaluation, folder, name)


def _add_lines(
    evaluation: dict[str, Any],
    texts: TextEvaluator,
    steerer: Steerer,
    task: PairTask,
    settings: Mapping[str, Any],
) -> Iterator[Callable[..., str]]:
    """Adds measures of texts at other z, which take as long again, one by one.

    Yields:
      What formats, of the evaluation, that which was added.
    """
    infers = steerer.policy.latent == INFERRED
    if not (isinstance(texts.method, Steered) and infers and texts.attribute):
        return
    if points := tuple(settings["partway"]):
        found = texts.between(Partway(steerer, task), points)
        evaluation["partway"] = {"points": points, "groups": found}
        yield report.partway_table
    if len(task.groups) > 1 and (points := tuple(settings["between"])):
        found = texts.between(Between(steerer, task), points)
        evaluation["interpolation"] = {"points": points, "groups": found}
        yield report.interpolation_table


def _write_texts(
    evaluation: dict[str, Any], samples: list[Sample], folder: epath.Path, name: str
) -> list[epath.Path]:
    """Shows texts and what was measured in them; returns the files written."""
    sizes = evaluation["n_context"]
    folders.write_text(folder / "samples.md", page(samples, sizes))
    _print_samples(samples, sizes)
    return [folder / "samples.md", _draw_steering(evaluation, folder, name)]


def _draw_steering(
    evaluation: Mapping[str, Any], folder: epath.Path, name: str
) -> epath.Path:
    """Draws what was measured in texts; returns the file."""
    title = figures.title_of(name, evaluation["users"])
    figure_style.save(figures.steering(evaluation, title), folder / "steering.png")
    return folder / "steering.png"


def _print_samples(samples: list[Sample], sizes: tuple[int, ...]) -> None:
    """Prints the texts of the first user of each group."""
    for sample in {sample.group: sample for sample in samples[::-1]}.values():
        of_size = zip(sizes, sample.steered, strict=True)
        texts = {f"{n or 'none'} known": text for n, text in of_size}
        print(f"\nA user of group {sample.group}:")
        print(side_by_side(sample.prompt, {"language model": sample.reference} | texts))
