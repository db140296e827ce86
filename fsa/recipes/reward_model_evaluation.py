"""Evaluates a reward model on test users, whom no run is trained on."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from fsa.data.tasks.simulated import TwoTypes
from fsa.data.tasks.task import TEST
from fsa.episodes import Options, first_choices
from fsa.evaluation import evaluation_file, report, scores
from fsa.evaluation.predictions import FewShotPredictor
from fsa.inference.ranker import Ranker
from fsa.recipes.config import Config
from fsa.recipes.reward_model_run import load_task

# Test users and their episodes are the same for every seed of a model.
_EVALUATION_SEED = 20241217


def evaluate(config: Config, run_dir: epath.Path) -> dict[str, Any]:
    """Predicts choices; prints a table, writes files into the run directory.

    Args:
      config: the config of the run.
      run_dir: the run directory.

    Returns:
      The content of `evaluation.json`.

    Raises:
      InputError: if the data of the run are missing or damaged.
    """
    ranker = Ranker.load(run_dir)
    task = load_task(config)
    settings = config["eval"]
    sizes = tuple(settings["num_context"])
    predict = FewShotPredictor(
        ranker.model,
        task,
        TEST,
        num_context=sizes,
        episodes_per_user=settings["episodes_per_user"],
        num_samples=settings["num_samples"],
        deterministic=ranker.deterministic,
        key=jax.random.key(_EVALUATION_SEED),
    )
    predictions = predict(ranker.variables)
    evaluation = scores.evaluation(
        predictions, task, sizes, num_resamples=settings["num_resamples"]
    )
    files = [run_dir / "evaluation.json"]
    evaluation_file.write(files[0], evaluation)
    print(report.table(evaluation))
    files += report.plot_all(predictions, evaluation, task.groups, run_dir)
    if isinstance(task, TwoTypes):
        files.append(run_dir / "rewards.png")
        _plot_rewards(ranker, task, sizes, files[-1])
    print("Written:", *map(str, files))
    return evaluation


def _plot_rewards(
    ranker: Ranker,
    task: TwoTypes,
    sizes: tuple[int, ...],
    path: epath.Path,
    users: int = 20,
) -> None:
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
    report.plot_rewards(by_type, y, sizes, path)
