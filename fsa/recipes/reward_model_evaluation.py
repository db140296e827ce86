"""Evaluates a reward model on test users, whom no run is trained on."""

import logging
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from matplotlib.figure import Figure

from fsa.data.tasks import order
from fsa.data.tasks.people import People
from fsa.data.tasks.simulated import TwoTypes
from fsa.data.tasks.task import TEST, Task
from fsa.episodes import Options, first_choices
from fsa.errors import InputError
from fsa.evaluation import evaluation_file, figure_style, figures, report, scores
from fsa.evaluation.predictions import FewShotPredictor
from fsa.inference import saved_model
from fsa.inference.ranker import Ranker
from fsa.parallel import processes
from fsa.parallel.examples import find_mesh
from fsa.recipes.config import Config
from fsa.recipes.other_data import OtherData, folder_for
from fsa.recipes.reward_model_run import load_task
from fsa.training import run_data

_LOG = logging.getLogger(__name__)

# Test users and their episodes are the same for every seed of a model.
_EVALUATION_SEED = 20241217

_EMBED = "embed it with the same model and template as the run's data"


def predictor(config: Config, ranker: Ranker, task: Task) -> FewShotPredictor:
    """Makes what predicts test people, on the same episodes for every run of a task."""
    settings = config["eval"]
    return FewShotPredictor(
        ranker.model,
        task,
        TEST,
        num_context=tuple(settings["num_context"]),
        episodes_per_user=settings["episodes_per_user"],
        num_samples=settings["num_samples"],
        deterministic=ranker.deterministic,
        key=jax.random.key(_EVALUATION_SEED),
        progress=True,
        mesh=find_mesh(),
    )


def evaluate(
    config: Config,
    run_dir: epath.Path,
    *,
    other: OtherData | None = None,
    full: bool = False,
) -> dict[str, Any]:
    """Predicts choices; prints a table, writes files into the run directory.

    Args:
      config: the config of the run, with the path of the dataset.
      run_dir: the run directory.
      other: the dataset if it is not the run's own.
      full: whether to print all measures.

    Returns:
      The content of `evaluation.json`.

    Raises:
      InputError: if the data are missing or damaged, or if another dataset has not the
        features that the model was trained on, or ratings that it was not trained on.
    """
    folder = folder_for(run_dir, other)
    ranker = Ranker.load(run_dir, any_data=True)
    if other:
        _check_other(config, run_dir)
    # Of another dataset, which may have only some of the ratings.
    task = load_task(config, getattr(ranker.model, "levels", ()))
    if other and task.num_features != ranker.num_features:
        raise InputError(
            f"{config['task']['path']}: has {task.num_features} features of each item, "
            f"and the model was trained on {ranker.num_features}; {_EMBED}"
        )
    settings = config["eval"]
    predict = predictor(config, ranker, task)
    sizes = predict.num_context
    everybody = task.users(TEST)
    # Simulated people are as many as the config says.
    users = order.spread(everybody, settings.get("most_users", len(everybody)))
    predictions = predict(ranker.variables, users=users)
    evaluation = scores.evaluation(
        predictions, task, sizes, num_resamples=settings["num_resamples"]
    )
    if isinstance(task, People):
        evaluation["context"] = task.context
    if other:
        evaluation["data"] = other.digest
    name = f"{run_dir.name} on {folder.name}" if other else run_dir.name

    def write() -> None:
        warn_unconverged(config, run_dir, evaluation)
        folder.mkdir(exist_ok=True)
        files = [folder / "evaluation.json"]
        evaluation_file.write(files[0], evaluation)
        print(report.summary(evaluation, full=full))
        if len(users) < len(everybody):
            print(
                f"{len(users):,} of {len(everybody):,} test people were predicted, "
                "spread evenly (eval.most_users)"
            )
        files += figures.write_all(predictions, evaluation, task.groups, folder, name)
        if isinstance(task, TwoTypes):
            files.append(folder / "rewards.png")
            figure_style.save(_rewards(ranker, task, sizes, name), files[-1])
        print("Written:", *map(str, files))

    processes.on_first(write)
    return evaluation


def warn_unconverged(
    config: Config, run_dir: epath.Path, evaluation: dict[str, Any]
) -> None:
    """Warns if the posterior of some people was not found in so many steps."""
    converged = evaluation["diagnostics"].get("converged", [1.0])
    if (least := min(converged)) < 1:
        steps = config["model"]["num_steps"]
        size = evaluation["n_context"][converged.index(least)]
        _LOG.warning(
            "%s: the posterior of %.2g%% of people was not found in model.num_steps=%d "
            "steps after %d choices; their predictions are less exact than others, so "
            "train with more steps",
            run_dir,
            100 * (1 - least),
            steps,
            size,
        )


def _check_other(config: Config, run_dir: epath.Path) -> None:
    """Raises InputError if features of another dataset mean something else."""
    path = config["task"]["path"]
    if config["model"]["item_embeddings"]:
        raise InputError(
            f"`data`={path}: the model has an embedding of each item of its own data "
            "(model.item_embeddings), so it knows no others"
        )
    known = saved_model.data_of(run_dir)
    if known is None:
        _LOG.warning(
            "%s: an older version did not record what embedded the run's data; make "
            "sure that %s was embedded with the same model and template",
            run_dir,
            path,
        )
    elif differ := run_data.differences(known, path, ("template", "embedder")):
        raise InputError(f"{path}: {'; '.join(differ)}; {_EMBED}")


def _rewards(
    ranker: Ranker,
    task: TwoTypes,
    sizes: tuple[int, ...],
    name: str,
    users: int = 20,
) -> Figure:
    """Draws reward curves of the first test users of each type, at each size n."""
    y = np.linspace(0, 1, 101, dtype=np.float32)
    options = Options(y[:, None], np.full(len(y), -1, np.int32))

    @jax.jit
    def curves_of(user):
        key = jax.random.key(_EVALUATION_SEED)
        episode = task.test_episode((), TEST, user, key).episode

        def at_size(n):
            return ranker.mean_rewards(first_choices(episode.context, n), options)

        return episode.group, jax.vmap(at_size)(jnp.array(sizes))

    group, curves = jax.lax.map(curves_of, jnp.arange(10 * users))
    by_type = [np.asarray(curves)[np.asarray(group) == t][:users] for t in (0, 1)]
    title = f"{name}: {users} test people of each type"
    return figures.rewards(by_type, y, sizes, title)
