"""Fewer people in training, to see how predictions depend on their number."""

import dataclasses

import numpy as np

from fsa.data.tasks.people import People
from fsa.data.tasks.task import TRAIN


def take(task: People, share: float, seed: int) -> People:
    """Returns the task with a share of its training people; smaller ones are nested.

    Args:
      task: the people.
      share: above 0, at most 1.
      seed: of who is taken.
    """
    if share == 1:
        return task
    users = task.users(TRAIN)
    shuffled = np.random.default_rng(seed).permutation(users)
    kept = np.sort(shuffled[: max(1, round(share * len(users)))])
    table = task.data.users[TRAIN].take(kept)
    data = dataclasses.replace(task.data, users={**task.data.users, TRAIN: table})
    return dataclasses.replace(task, data=data)
