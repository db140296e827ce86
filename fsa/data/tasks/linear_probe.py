"""A linear probe, which tests whether embeddings predict the users' preferences."""

import numpy as np

from fsa.data.tasks.pairs import PairTask


def probe(task: PairTask, *, ridge: float = 1.0) -> dict[str, float]:
    """Measures how well a linear function of embeddings predicts each group's choices.

    Ridge regression of the labels on standardised differences of embeddings, fitted to
    the choices of each group's training users and scored on its validation users: a
    policy cannot be steered by an attribute that this probe does not see.

    Args:
      task: the embeddings and the choices.
      ridge: penalty on the weights, relative to the number of choices.

    Returns:
      {group: accuracy on held-out choices}; a group without training or validation
      users is left out.
    """
    gaps, groups = task.differences("train")
    held_out, held_out_groups = task.differences("valid")
    _, std = task.statistics()
    found = {}
    for index, name in enumerate(task.groups):
        x = gaps[groups == index] / std
        y = held_out[held_out_groups == index] / std
        if not (len(x) and len(y)):
            continue
        # Every choice counts in both directions, so there is no intercept.
        penalty = ridge * len(x) * np.eye(x.shape[1]) / x.shape[1]
        weight = np.linalg.solve(x.T @ x + penalty, x.sum(0))
        found[name] = float(np.mean(y @ weight > 0))
    return found
