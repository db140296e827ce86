"""The training loop: runs steps, validates, saves, resumes, reports and stops.

Shapes: S steps of one call, B examples of a global batch.
"""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

import grain
import jax
import numpy as np

from fsa import folders
from fsa.data.tasks.task import number_of
from fsa.errors import InputError
from fsa.parallel.preemption import Preemption
from fsa.parallel.processes import is_first
from fsa.training.checkpoint import TRAINING, VARIABLES, Checkpoints
from fsa.training.monitor.finite import FiniteCheck
from fsa.training.monitor.metrics import MetricsWriter, NoMetrics
from fsa.training.monitor.profiling import Profile
from fsa.training.monitor.progress import Reporter
from fsa.training.monitor.throughput import Throughput
from fsa.training.monitor.watchdog import Watchdog
from fsa.training.runner import MakeExamples, Runner
from fsa.training.step import TrainState

_LOG = logging.getLogger(__name__)

# Number of calls whose examples are made in advance, and of threads that make them.
_AHEAD = 2


def train(
    state: TrainState,
    *,
    runner: Runner,
    constants: Any,
    make_examples: MakeExamples,
    key: jax.Array,
    validate: Callable[[TrainState], dict[str, float]],
    checkpoints: Checkpoints,
    writer: Callable[[int], MetricsWriter],
    meta: dict[str, Any],
    steps: int,
    steps_per_call: int,
    validate_every: int,
    skip_bad_steps: int = 0,
    progress: bool = True,
    profile: Profile | None = None,
) -> TrainState:
    """Trains until step `steps`, from the last sound checkpoint if there is one.

    Calls start at multiples of `steps_per_call` whether or not the run was interrupted,
    and all random numbers depend on step and position in the batch. So an interrupted
    run ends with exactly the parameters of an uninterrupted one. All processes of a run
    must call this.

    Args:
      state: the state of a new run; it also gives the structure of what is restored.
      runner: runs S steps.
      constants: arrays that all examples share.
      make_examples: makes examples of the global batch of a step; called from threads.
      key: the run's random key.
      validate: returns metrics on held-out users; the best checkpoint is the one with
        the lowest `score`.
      checkpoints: where to resume from and save to.
      writer: opens the metrics of a run that resumes at a step; called in process 0.
      meta: JSON that is saved with every checkpoint.
      steps: the last step, a multiple of `validate_every`.
      steps_per_call: S.
      validate_every: steps between validations, each followed by a save; a multiple of
        `steps_per_call`.
      skip_bad_steps: number of updates that may be skipped in a run because they are
        not finite; above 0, the optimizer must be one of
        `fsa.training.monitor.finite.skip_not_finite`.
      progress: whether to show a bar with rate and time left.
      profile: profiles some of the steps; by default none.

    Returns:
      The final state, which is also saved.

    Raises:
      InputError: if the checkpoint is of another model, or the loss is not finite; what
        was saved before is kept.
      Preempted: on SIGTERM, after the current call, or after the next one if there are
        several processes. The state is saved, without a score if it was not validated.
      Interrupted: on Ctrl-C, likewise; a second one raises KeyboardInterrupt at once.
    """
    start = checkpoints.latest_step or 0
    state, key = runner.place(state), runner.place(key)
    if start:
        state, key = from_items(checkpoints.restore(start, to_items(state, key)))
        _LOG.info("Resuming from step %d", start)
    constants = runner.place(constants)
    with _saying_what_is_kept(checkpoints):
        first_writer = writer(start) if is_first() else NoMetrics()
    check = FiniteCheck(
        skip_bad_steps,
        users=lambda step: _users(runner, make_examples, step),
        last=lambda: _last_good(checkpoints),
    )
    throughput = Throughput(runner.batch_size)
    show = progress and is_first()
    report = Reporter(first_writer, start, steps, show, check, throughput)
    run = profile or (lambda first, count, call, *arguments: call(*arguments))

    def save(done, score):
        checkpoints.save(done, to_items(state, key), score=score, meta=meta)

    with (
        _saying_what_is_kept(checkpoints),
        Preemption() as preemption,
        Watchdog() as watchdog,
        # So that what is raised stands on a line of its own, below the bar.
        contextlib.closing(report),
    ):
        calls = _examples_ahead(runner, make_examples, start, steps, steps_per_call)
        for first, examples in throughput.waiting_for(calls):
            watchdog.beat(first)
            operations = throughput.flops(runner, state, constants, examples, key)
            arguments = (state, constants, examples, key)
            state, values = run(first, steps_per_call, runner, *arguments)
            done = first + steps_per_call
            report.later(done, values, operations)
            stops = preemption.stops()
            since = time.monotonic()
            if done % validate_every == 0:
                report.now()
                with watchdog.paused():
                    report.say("validating")
                    held_out = validate(state)
                    report.held_out(done, held_out)
                    report.say("saving")
                    save(done, held_out["score"])
            elif stops:
                report.now()
                save(done, None)
            # A launcher need not start a run again that is complete, but Ctrl-C has to
            # end the command.
            if stops and (done < steps or preemption.interrupted):
                checkpoints.wait()
                raise preemption.error(
                    f"saved at step {done} in {time.monotonic() - since:.1f} s; the "
                    "same command resumes it"
                )
        checkpoints.wait()
    return state


@contextlib.contextmanager
def _saying_what_is_kept(checkpoints: Checkpoints) -> Iterator[None]:
    """Turns errors of a disk, full or read-only, into one that says what is kept."""
    try:
        yield
    except Exception as error:
        reason = folders.refusal(error)
        if reason is None:
            raise
        with contextlib.suppress(Exception):  # Of the save that failed.
            checkpoints.wait()
        step = checkpoints.latest_step
        kept = "nothing was saved before" if step is None else f"step {step} is kept"
        raise InputError(
            f"{checkpoints.directory.parent}: cannot be written ({reason}); {kept}; "
            "make room, and the same command resumes"
        ) from error


def _examples_ahead(
    runner: Runner,
    make_examples: MakeExamples,
    start: int,
    steps: int,
    steps_per_call: int,
) -> Iterator[tuple[int, Any]]:
    """Yields each call's first step and examples, made while earlier calls run."""

    def make(first):
        return first, runner.batch(make_examples, first, steps_per_call)

    calls = grain.MapDataset.range(start, steps, steps_per_call).map(make)
    return iter(calls.to_iter_dataset(grain.ReadOptions(_AHEAD, _AHEAD)))


def _users(runner: Runner, make_examples: MakeExamples, step: int) -> str:
    """Names the users in the global batch of a step, if its examples have users."""
    examples = make_examples(step, np.arange(runner.batch_size, dtype=np.int32))
    users = getattr(examples, "user", None)
    if users is None:
        return "examples without users"
    return f"users {number_of(users).tolist()}"


def _last_good(checkpoints: Checkpoints) -> str:
    """Returns the path of the last checkpoint, or "none"."""
    checkpoints.wait()
    step = checkpoints.latest_step
    return "none" if step is None else str(checkpoints.directory / str(step))


def to_items(state: TrainState, key: jax.Array) -> dict[str, Any]:
    """Returns the items of a checkpoint."""
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
    """Returns the state and the key of a checkpoint's items; inverts `to_items`."""
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
