"""The people whom a run was trained on, as dots of a map.

Shapes: P people, D latent dimensions.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from fsa.data import dataset
from fsa.data.dataset import Dataset
from fsa.data.tasks.task import TRAIN, VALID
from fsa.latent import mixture
from fsa.models.linear_reward import RATINGS, LinearRewardModel
from fsa.recipes import config as configs
from fsa.recipes.reward_model_run import load_task
from fsa.serving.person_model import PersonModel
from fsa.sizes import FEW_CHOICES
from fsa.training import run_directory

# Most people who are drawn, and of how many answers each.
_PEOPLE, _ANSWERS = 200, FEW_CHOICES
# Where people's texts would have to be embedded first, z is drawn from the prior.
_SAMPLES = 1000


class Crowd(NamedTuple):
    """People to compare somebody with.

    Attributes:
      z: `[P, D]`, the posterior means of people.
      group: `[P]` int, index into `names`; None if groups are not known.
      names: of the groups.
      are_people: whether z is that of people; otherwise it is drawn from the prior.
    """

    z: np.ndarray
    group: np.ndarray | None
    names: tuple[str, ...]
    are_people: bool = True


def load(model: PersonModel, workdir: str, seed: int = 0) -> Crowd:
    """Infers z of people of a run: simulated ones, or those of its dataset.

    Args:
      model: of the run.
      workdir: the run directory.
      seed: of who is drawn.

    Raises:
      InputError: if the run's dataset is damaged.
    """
    ranker = model.ranker
    if model.steerer is not None:
        return _of_prior(model, seed)
    if ranker.data_path is None:
        return _simulated(model, workdir, seed)
    data = dataset.load(ranker.data_path)
    people, group = _of_dataset(model, data, seed)
    if not people:
        return _of_prior(model, seed)
    known = len(data.groups) > 1
    return Crowd(
        _means(model, people),
        np.array(group) if known else None,
        data.groups if known else (),
    )


def _of_prior(model: PersonModel, seed: int) -> Crowd:
    q = model.posterior([])
    draws = mixture.mean_or_samples(
        q, jax.random.key(seed), _SAMPLES, deterministic=False
    )
    return Crowd(np.asarray(draws), None, (), are_people=False)


def _simulated(model: PersonModel, workdir: str, seed: int) -> Crowd:
    task = load_task(configs.read(run_directory.locate(workdir)))
    key = jax.random.key(seed)
    draw = jax.vmap(lambda user: task.test_episode(task.constants, VALID, user, key))
    drawn = jax.device_get(jax.jit(draw)(np.arange(_PEOPLE, dtype=np.int32))).episode
    people = [
        {"chosen": chosen, "rejected": rejected}
        for chosen, rejected in zip(
            *(side.features for side in drawn.context[:2]), strict=True
        )
    ]
    known = len(task.groups) > 1
    return Crowd(
        _means(model, people),
        drawn.group if known else None,
        task.groups if known else (),
    )


def _means(model: PersonModel, people: list[dict[str, Any]]) -> np.ndarray:
    """Infers z of each, by the program that infers somebody's who asks later."""
    return np.stack([model.ranker.posterior(**told).mean for told in people])


def _of_dataset(model: PersonModel, data: Dataset, seed: int) -> tuple[list, list[int]]:
    """Returns what training people told, by the arguments of `Ranker.rank`."""
    table = data.users[TRAIN]
    rng = np.random.default_rng(seed)
    people, group = [], []
    for user in rng.permutation(len(table.names)):
        told = next(_told(model, data, int(user), rng), None)
        if told and len(people) < _PEOPLE:
            people.append(told)
            group.append(int(table.group[user]))
    return people, group


def _told(
    model: PersonModel, data: Dataset, user: int, rng: np.random.Generator
) -> Iterator[dict[str, list[Any]]]:
    """Yields what a person told, in the form that the model was trained on first."""
    table = data.users[TRAIN]
    items, values = table.items[user], table.values[user]
    linear = model.ranker.model
    if isinstance(linear, LinearRewardModel) and linear.context == RATINGS:
        if len(items):
            pairs = zip(_options(data, items), values.tolist(), strict=True)
            yield {"rated": list(pairs)[:_ANSWERS]}
    chosen, rejected = table.chosen[user], table.rejected[user]
    if not len(chosen) and len(items):
        chosen, rejected = _pairs(items, values, data.item_prompt, rng)
    if len(chosen):
        sides = (_options(data, side[:_ANSWERS]) for side in (chosen, rejected))
        yield dict(zip(("chosen", "rejected"), sides, strict=True))


def _pairs(items, values, prompt, rng) -> tuple[np.ndarray, np.ndarray]:
    """Makes choices of rated items: neighbours of a random order that differ."""
    order = rng.permutation(len(items))
    a, b = order[:-1:2], order[1::2]
    differ = (values[a] != values[b]) & (prompt[items[a]] == prompt[items[b]])
    a, b = a[differ], b[differ]
    first = values[a] > values[b]
    return items[np.where(first, a, b)], items[np.where(first, b, a)]


def _options(data: Dataset, items: np.ndarray) -> list[tuple[str, str]]:
    return [(data.prompts[data.item_prompt[i]], data.texts[i]) for i in items.tolist()]
