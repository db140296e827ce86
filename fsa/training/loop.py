"""The training loop: dispatch, validate, save, resume, report.

Shapes: S steps of one call, B rows of a global batch.
"""

import logging
from collections.abc import Callable
from typing import Any

import jax

from fsa.training.checkpoint import TRAINING, VARIABLES, Checkpoints
from fsa.training.metrics import MetricsWriter
from fsa.training.parallel import MakeRows, Runner
from fsa.training.progress import Reporter
from fsa.training.step import TrainState

_LOG = logging.getLogger(__name__)


def train(
    state: TrainState,
    *,
    runner: Runner,
    tables: Any,
    make_rows: MakeRows,
    key: jax.Array,
    validate: Callable[[TrainState], dict[str, float]],
    checkpoints: Checkpoints,
    writer: Callable[[int], MetricsWriter],
    meta: dict[str, Any],
    steps: int,
    steps_per_call: int,
    validate_every: int,
    progress: bool = True,
) -> TrainState:
    """Trains to `steps`, from the last sound checkpoint if there is one.

    Calls start at multiples of `steps_per_call` whether the run was interrupted or not,
    and everything random is keyed by step and row, so an interrupted run ends with the
    very parameters of an uninterrupted one.

    Args:
      state: where a fresh run starts, and the structure of what is restored.
      runner: runs S steps.
      tables: arrays that all rows share.
      make_rows: rows of the global batch of a step.
      key: the run's random key.
      validate: metrics on held-out users; its `score` picks the best checkpoint, lower
        is better.
      checkpoints: where to resume from and save to.
      writer: opens the metrics for a run that resumes at a step.
      meta: JSON saved with every checkpoint.
      steps: to end at, a multiple of `validate_every`.
      steps_per_call: S.
      validate_every: steps between validations, each followed by a save; a multiple of
        `steps_per_call`.
      progress: show a bar with rate and time left.

    Returns:
      The final state, saved.

    Raises:
      InputError: for a checkpoint of another model, and for a loss that is not finite;
        what was saved before is kept.
    """
    start = checkpoints.latest_step or 0
    state = runner.place(state)
    if start:
        state, key = from_items(checkpoints.restore(start, to_items(state, key)))
        state = runner.place(state)
        _LOG.info("Resuming from step %d", start)
    tables, key = runner.place(tables), runner.place(key)
    report = Reporter(writer(start), start, steps, progress)
    for first in range(start, steps, steps_per_call):
        rows = runner.batch(make_rows, first, steps_per_call)
        state, values = runner(state, tables, rows, key)
        done = first + steps_per_call
        report.later(done, values)
        if done % validate_every == 0:
            report.now()
            held_out = validate(state)
            report.held_out(done, held_out)
            checkpoints.save(
                done, to_items(state, key), score=held_out["score"], meta=meta
            )
    checkpoints.wait()
    report.close()
    return state


def to_items(state: TrainState, key: jax.Array) -> dict[str, Any]:
    """What a checkpoint holds."""
    return {
        VARIABLES: state.variables,
        TRAINING: {
            "step": state.step,
            "params": state.params,
            "opt_state": state.opt_state,
            "key": jax.random.key_data(key),
        },
    }


def from_items(items: dict[str, Any]) -> tuple[TrainState, jax.Array]:
    """The inverse of `to_items`."""
    frozen = dict(items[VARIABLES])
    average = frozen.pop("params")
    training = items[TRAINING]
    state = TrainState(
        step=training["step"],
        params=training["params"],
        average=average,
        frozen=frozen,
        opt_state=training["opt_state"],
    )
    return state, jax.random.wrap_key_data(training["key"])
