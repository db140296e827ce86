"""What training people judged, as one matrix of people and items.

Shapes: U training people, I items.
"""

import numpy as np

from fsa.data.tasks.people import CHOICES, People
from fsa.data.tasks.task import TRAIN


def matrix(task: People) -> tuple[np.ndarray, np.ndarray]:
    """Returns how much training people like items, and which of them they judged.

    A chosen item counts 1 and a rejected one -1, as a mean over a person's choices; a
    rating is counted from the middle between a person's highest and lowest, which are 1
    and -1.

    Args:
      task: whose `train_on` says whether choices or ratings count.

    Returns:
      `[U, I]` float32 in [-1, 1], 0 where nothing was judged, and `[U, I]` bool. People
      whom the task does not train on are left out.
    """
    table = task.data.users[TRAIN]
    users = task.users(TRAIN)
    shape = len(table.names), len(task.data.features)
    total, count = np.zeros((2, *shape), np.float32)
    if task.train_on == CHOICES:
        rows = np.repeat(np.arange(shape[0]), table.chosen.lengths)
        for lists, value in ((table.chosen, 1.0), (table.rejected, -1.0)):
            np.add.at(total, (rows, lists.flat), value)
            np.add.at(count, (rows, lists.flat), 1.0)
    else:
        rows = np.repeat(np.arange(shape[0]), table.items.lengths)
        for user in users:
            values = table.values[int(user)]
            apart = values - (values.max() + values.min()) / 2
            longest = np.abs(apart).max()
            own = total[user]
            own[table.items[int(user)]] = apart / longest if longest else 0.0
        np.add.at(count, (rows, table.items.flat), 1.0)
    liked = total / np.maximum(count, 1)
    return liked[users], count[users] > 0


def wins(task: People) -> np.ndarray:
    """Counts the training people who prefer item a to item b, `[I, I]` float32.

    Those who chose a over b or, where ratings are trained on, rated it higher.
    """
    size = len(task.data.features)
    counted = np.zeros((size, size), np.float32)
    if task.train_on == CHOICES:
        table = task.data.users[TRAIN].take(task.users(TRAIN))
        np.add.at(counted, (table.chosen.flat, table.rejected.flat), 1.0)
        return counted
    liked, known = matrix(task)
    for item in range(size):
        own = liked[:, item : item + 1]
        counted[item] = (known & known[:, item : item + 1] & (own > liked)).sum(0)
    return counted
