"""The options that `fsa ask` and the page of `fsa serve` ask a person about."""

from typing import Any

import jax
import numpy as np

from fsa.data import dataset
from fsa.data.columns import read_options
from fsa.data.dataset import Dataset
from fsa.data.tasks.task import TEST
from fsa.inference.ranker import Ranker
from fsa.recipes import config as configs
from fsa.recipes.reward_model_run import load_task
from fsa.training import run_data, run_directory

# Options that are drawn, if nobody says how many.
NUM_OPTIONS = 40


def read(path: str) -> list[Any]:
    """Returns the options of a table with the column option.

    Raises:
      InputError: for a table without options.
    """
    return [row["option"] for _, row in read_options(path, ["option"])]


def of_run(
    ranker: Ranker, *, count: int = NUM_OPTIONS, seed: int = 0
) -> tuple[list[Any], list[str] | None]:
    """Draws options of the run's dataset, or as its simulated people see them.

    Args:
      ranker: of the run, with the dataset.
      count: how many options, at most.
      seed: seed of the draw.

    Returns:
      The options, and their ids if they are items with texts.

    Raises:
      InputError: if the dataset is missing or damaged.
    """
    if ranker.data_path is None:
        return _simulated(ranker.workdir, count, seed), None
    run_data.check_there(ranker.workdir, ranker.data_path)
    data = dataset.load(ranker.data_path)
    drawn = _drawn(data, count, seed)
    options = [(data.prompts[data.item_prompt[i]], data.texts[i]) for i in drawn]
    if not any(text for _, text in options):
        return [data.features[i].tolist() for i in drawn], None
    return options, [data.item_ids[i] for i in drawn]


def _drawn(data: Dataset, count: int, seed: int) -> np.ndarray:
    """Draws items of some prompts, all of a prompt before those of the next one."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(data.item_ids))
    rank = rng.permutation(len(data.prompts))[data.item_prompt[order]]
    return order[np.argsort(rank, kind="stable")][:count]


def _simulated(workdir: str, count: int, seed: int) -> list[list[float]]:
    """Draws options as simulated people see them."""
    task = load_task(configs.read(run_directory.locate(workdir)))
    key = jax.random.key(seed)
    drawn = task.test_episode(task.constants, TEST, np.int32(0), key).episode.target
    features = np.concatenate([drawn.chosen.features, drawn.rejected.features])
    return np.round(features[:count], 3).tolist()
