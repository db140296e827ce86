"""Measures one method on one dataset, as a file; what was measured is not again.

Shapes: U test people, C context sizes.
"""

import json
import pathlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from fsa import folders, json_files
from fsa.data.tasks.people import People
from fsa.data.tasks.task import TEST
from fsa.evaluation.scores import calibration, right, user_means
from fsa.rivals import scoring
from fsa.rivals.method import Method, TrainingPeople

# Finer differences mean nothing, and files stay small.
_DIGITS = 5


class Cell(NamedTuple):
    """One measurement of a benchmark.

    Attributes:
      dataset: name of the dataset.
      method: name of the method.
      seed: of the training and of the test episodes.
      share: of the people in training.
    """

    dataset: str
    method: str
    seed: int
    share: float = 1.0

    def path(self, workdir: pathlib.Path) -> pathlib.Path:
        """Returns the file of the measurement."""
        name = f"{self.seed}-{round(100 * self.share)}.json"
        return workdir / "cells" / self.dataset / self.method / name


def measure(
    method: Method,
    people: TrainingPeople,
    seed: int,
    *,
    episodes_per_user: int,
    batches: Sequence[int] = (10, 1000),
) -> dict[str, Any]:
    """Fits a method and scores it on test people.

    Args:
      method: the method.
      people: to fit to; the test people are those of the same task.
      seed: of the training and of the test episodes.
      episodes_per_user: episodes of each test person.
      batches: numbers of people who are served together while times are measured.

    Returns:
      What a file holds: names of `users`; `nll` and `right`, `[U, C]` each, the means
      over a person's choices; `flips`, the share of predictions that turn when the
      context is reversed, `ece` and `ece_if_calibrated`, `[C]` each; the setting that
      was chosen, the seconds of the clock and of the processor that training took, and
      the costs of a new person.
    """
    task = people.task
    clock, processor = time.perf_counter(), time.process_time()
    fitted = method.fit(people, jax.random.key(seed))
    fitted = jax.block_until_ready(fitted)
    seconds = time.perf_counter() - clock, time.process_time() - processor
    predict = scoring.predictor(
        method,
        task,
        TEST,
        people.num_context,
        episodes_per_user=episodes_per_user,
        seed=seed,
        diagnose=True,
    )
    users = task.users(TEST)
    found = predict(fitted.values, users=users)
    scored = _scored(predict, task, users, len(found.mask))
    mask = found.mask
    turned = right(found.log_prob) != right(found.flipped)
    sizes = range(len(people.num_context))
    real = mask.astype(bool)
    errors = [calibration(found.log_prob[:, :, c], real) for c in sizes]
    costs = scoring.cost(
        method, fitted.values, task, main_size(people), batches=batches
    )
    return {
        "n_context": list(people.num_context),
        "users": [task.data.users[TEST].names[user] for user in scored],
        "nll": _rounded(user_means(-found.log_prob, mask)),
        "right": _rounded(user_means(right(found.log_prob), mask)),
        "flips": _rounded(user_means(turned, mask).mean(0)),
        "ece": _rounded([error for error, _ in errors]),
        "ece_if_calibrated": _rounded([error for _, error in errors]),
        "setting": _finite(fitted.setting),
        "valid_nll": _finite(fitted.valid_nll),
        "seconds": seconds[0],
        "processor_seconds": seconds[1],
        "milliseconds": {str(k): v for k, v in costs.milliseconds.items()},
        "bytes": costs.num_bytes,
    }


def main_size(people: TrainingPeople) -> int:
    """Returns the context size that is compared: 10, or the largest below it."""
    return max(n for n in people.num_context if n <= 10)


def write(workdir: pathlib.Path, cell: Cell, found: Mapping[str, Any]) -> None:
    """Writes the file of a measurement, wholly or not at all."""
    path = cell.path(workdir)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {**cell._asdict(), **found}
    folders.write_text(path, json.dumps(content, allow_nan=False) + "\n")


def read_all(workdir: pathlib.Path) -> Iterator[tuple[Cell, dict[str, Any]]]:
    """Yields all measurements of a folder, in the order of their names."""
    for path in sorted((workdir / "cells").rglob("*.json")):
        found = json_files.read(path)
        yield Cell(*(found[name] for name in Cell._fields)), found


def _scored(predict, task: People, users: np.ndarray, count: int) -> np.ndarray:
    """Returns the users whom a predictor scored: those with a target."""
    if len(users) == count:
        return users

    @jax.jit
    @jax.vmap
    def has_target(user):
        def one(episode):
            test, _ = predict.draw(task.constants, user, episode)
            return test.episode.target.mask.any()

        return jax.vmap(one)(np.arange(predict.episodes_per_user)).any()

    return users[np.asarray(has_target(users))]


def _rounded(values: Any) -> list:
    return np.round(np.asarray(values, float), _DIGITS).tolist()


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
