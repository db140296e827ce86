"""The loop: a run that was interrupted ends as one that was not."""

import errno
import os
import signal
from concurrent import futures
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fsa import bars
from fsa.errors import InputError
from fsa.parallel.preemption import EXIT_CODE, Interrupted, Preempted
from fsa.parallel.sharding import make_mesh
from fsa.training import checkpoint, reward_loss
from fsa.training.checkpoint import Checkpoints
from fsa.training.loop import from_items, to_items, train
from fsa.training.monitor.metrics import MetricsWriter, read_metrics
from fsa.training.runner import MeshRunner
from fsa.training.step import init_state

STEPS, PER_CALL, EVERY = 8, 2, 4
KEY = jax.random.key(1)


def start(folder, state, **keywords):
    """Starts or resumes a run in a folder; keywords are arguments of `train`."""
    folder.mkdir(exist_ok=True)
    checkpoints = Checkpoints(folder / "checkpoints")
    given = dict(
        constants=(),
        key=KEY,
        validate=lambda state: {"score": 0.0},
        checkpoints=checkpoints,
        writer=lambda step: MetricsWriter(folder, resume_step=step),
        meta={},
        steps=STEPS,
        steps_per_call=PER_CALL,
        validate_every=EVERY,
        progress=False,
    )
    # A copy, since the runner reuses the memory of the state.
    fresh = jax.tree.map(jnp.copy, state)
    try:
        return train(fresh, **{**given, **keywords})
    finally:
        checkpoints.close()


def saved(folder, state):
    """The last saved step of a run, and its items."""
    checkpoints = Checkpoints(folder / "checkpoints", read_only=True)
    step = checkpoints.latest_step
    restored = checkpoints.restore(step, to_items(state, KEY))
    checkpoints.close()
    return step, restored


class Real:
    """A runner of a tiny reward model, which records the loss of every step."""

    def __init__(self, config, parts):
        self.task, loss_fn, optimizer, self.state = parts(config)
        self.traced = 0

        def counted(*arguments):
            self.traced += 1
            return loss_fn(*arguments)

        self._runner = MeshRunner(
            counted,
            optimizer,
            mesh=make_mesh(devices=jax.devices()[:1]),
            batch_size=config["train"]["batch_size"],
            average_decay=config["train"]["average_decay"],
        )
        self.batch_size = self._runner.batch_size
        self.place, self.batch = self._runner.place, self._runner.batch
        self.losses = []

    def __call__(self, state, constants, examples, key):
        state, values = self._runner(state, constants, examples, key)
        self.losses += np.asarray(values["loss"]).tolist()
        return state, values

    def make_examples(self, step, positions):
        return reward_loss.make_examples(self.task, step, positions)

    def validate(self, state):
        return {"score": float(optax.tree.norm(state.params))}

    def train(self, folder, **keywords):
        given = dict(
            runner=self, make_examples=self.make_examples, validate=self.validate
        )
        self.losses = []
        return start(folder, self.state, **{**given, **keywords})


@pytest.fixture(scope="module")
def real(quick_compile, tiny, parts):
    return Real(tiny(), parts)


@pytest.fixture(scope="module")
def uninterrupted(real, tmp_path_factory):
    """(folder, final state, losses) of a run that nothing interrupts."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    return folder, real.train(folder), real.losses


@pytest.mark.parametrize("killed", [pytest.param(1, marks=pytest.mark.slow), 5])
def test_an_interrupted_run_ends_as_any_other(real, uninterrupted, tmp_path, killed):
    """Bit by bit in parameters, optimizer, key, losses; before and after a save."""

    def make_examples(step, positions):
        if step > killed:
            raise KeyboardInterrupt
        return real.make_examples(step, positions)

    with pytest.raises(KeyboardInterrupt):
        real.train(tmp_path, make_examples=make_examples)
    folder, wanted, losses = uninterrupted
    state = real.train(tmp_path)
    chex.assert_trees_all_equal(state, wanted)
    assert real.losses == losses[killed // EVERY * EVERY :]
    (step, items), (wanted_step, wanted_items) = (
        saved(tmp_path, state),
        saved(folder, state),
    )
    assert step == wanted_step == STEPS
    chex.assert_trees_all_equal(items, wanted_items)
    assert len(set(losses)) == STEPS


def test_a_longer_run_resumes_a_shorter_one(real, uninterrupted, tmp_path):
    real.train(tmp_path, steps=EVERY)
    assert real.losses == uninterrupted[2][:EVERY]
    # The saved key is used, not the argument.
    state = real.train(tmp_path, key=jax.random.key(99))
    chex.assert_trees_all_equal(state, uninterrupted[1])


def test_one_program_serves_all_calls(real, uninterrupted, tmp_path):
    """Of a new run and of one that resumes."""
    real.train(tmp_path, steps=EVERY)
    traced = real.traced
    real.train(tmp_path)
    assert real.traced == traced == 1


@pytest.mark.slow
def test_steps_per_call_change_nothing(real, uninterrupted, tmp_path):
    state = real.train(tmp_path, steps_per_call=2 * PER_CALL)
    assert real.losses == uninterrupted[2]
    chex.assert_trees_all_equal(state, uninterrupted[1])


def test_training_is_not_idle(real, uninterrupted):
    """Otherwise equal final states would show nothing."""
    _, state, _ = uninterrupted
    assert state.step == STEPS
    for now, then in [(state.params, real.state.params), (state.average, state.params)]:
        differs = jax.tree.map(lambda a, b: bool((a != b).any()), now, then)
        # The loss depends on differences of rewards: their last bias has no gradient.
        assert not differs["head"]["Dense_1"].pop("bias")
        assert all(jax.tree.leaves(differs))
    chex.assert_trees_all_equal(state.frozen, real.state.frozen)


def test_a_finished_run_is_returned(real, uninterrupted):
    folder, wanted, _ = uninterrupted
    before = read_metrics(folder, "train")
    state = real.train(folder)
    assert real.losses == []
    chex.assert_trees_all_equal(state, wanted)
    assert read_metrics(folder, "train") == before


class Fake:
    """A runner without a model, whose parameter is the sum of its examples."""

    batch_size = 3

    def __init__(self, nan_at=None):
        self.state = init_state({"params": {"seen": jnp.zeros(())}}, optax.sgd(0.0))
        self.nan_at = nan_at

    def place(self, tree):
        return tree

    def batch(self, make_examples, first, count):
        return np.stack([make_examples(first + i, None) for i in range(count)])

    def __call__(self, state, constants, examples, key):
        loss = np.where(examples == self.nan_at, np.nan, examples.astype(np.float32))
        seen = {"seen": state.params["seen"] + examples.sum()}
        state = state._replace(step=state.step + len(examples), params=seen)
        return state, {"loss": loss, "twice": 2 * loss, "choices": 0 * examples + 5}

    def train(self, folder, **keywords):
        given = dict(runner=self, make_examples=lambda step, positions: np.int32(step))
        return start(folder, self.state, **{**given, **keywords})


class Users(NamedTuple):
    """Examples that only name users."""

    user: np.ndarray


def test_every_step_once(tmp_path):
    state = Fake().train(tmp_path)
    assert state.params["seen"] == sum(range(STEPS))
    train_entries = read_metrics(tmp_path, "train")
    assert [entry["step"] for entry in train_entries] == [2, 4, 6, 8]
    # Means over the steps of a call.
    assert [entry["loss"] for entry in train_entries] == [0.5, 2.5, 4.5, 6.5]
    assert [entry["twice"] for entry in train_entries] == [1.0, 5.0, 9.0, 13.0]
    for entry in train_entries:
        assert entry["steps_per_second"] > 0
        # Each example has five.
        per_step = entry["choices_per_second"] / entry["steps_per_second"]
        assert per_step == pytest.approx(5 * Fake.batch_size)
        assert "choices" not in entry
    assert [entry["step"] for entry in read_metrics(tmp_path, "valid")] == [4, 8]


@pytest.mark.parametrize("killed", [5, 6])
def test_every_step_is_reported_once_after_a_kill(tmp_path, killed):
    """Steps after the last save are made again, and reported once."""

    def make_examples(step, positions):
        if step == killed:
            raise KeyboardInterrupt
        return np.int32(step)

    with pytest.raises(KeyboardInterrupt):
        Fake().train(tmp_path, make_examples=make_examples)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "spl')
    state = Fake().train(tmp_path)
    assert state.params["seen"] == sum(range(STEPS))
    losses = [(e["step"], e["loss"]) for e in read_metrics(tmp_path, "train")]
    assert losses == [(2, 0.5), (4, 2.5), (6, 4.5), (8, 6.5)]
    assert [entry["step"] for entry in read_metrics(tmp_path, "valid")] == [4, 8]


@pytest.mark.parametrize(("nan_at", "kept"), [(1, None), (4, 4), (7, 4)])
def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, nan_at, kept):
    """The message names the step; what was saved before stays, nothing else is."""
    fake = Fake(nan_at)
    with pytest.raises(InputError) as stopped:
        fake.train(
            tmp_path,
            make_examples=lambda step, positions: (
                np.int32(step) if positions is None else Users(positions + 10 * step)
            ),
        )
    last = tmp_path / "checkpoints" / str(kept) if kept else "none"
    users = [10 * nan_at + i for i in range(fake.batch_size)]
    for part in (f"step {nan_at} ", str(users), str(last)):
        assert part in str(stopped.value)
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    assert checkpoints.latest_step == kept
    checkpoints.close()
    if kept:
        state, _ = from_items(saved(tmp_path, fake.state)[1])
        assert state.params["seen"] == sum(range(kept))
    assert all(entry["step"] <= nan_at for entry in read_metrics(tmp_path, "train"))


class Terminated(Fake):
    """Receives a signal in the call that runs a given step."""

    def __init__(self, at, number=signal.SIGTERM):
        super().__init__()
        self.at, self.number = at, number

    def __call__(self, state, constants, examples, key):
        if self.at in examples:
            os.kill(os.getpid(), self.number)
        return super().__call__(state, constants, examples, key)


@pytest.mark.parametrize(
    ("at", "saved_at", "best"),
    [
        pytest.param(0, 2, 2, marks=pytest.mark.slow),
        (2, 4, 4),
        pytest.param(8, 10, 8, marks=pytest.mark.slow),
    ],
)
def test_sigterm_saves_and_the_run_can_be_resumed(tmp_path, at, saved_at, best):
    """After the call; without validation the step is the best only if alone."""
    scores = iter([3.0, 2.0, 1.0])
    given = dict(
        steps=12, validate_every=4, validate=lambda state: {"score": next(scores)}
    )
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Preempted, match=rf"saved at step {saved_at} in") as stop:
        Terminated(at).train(tmp_path, **given)
    assert stop.value.code == EXIT_CODE == 75
    assert signal.getsignal(signal.SIGTERM) == before
    fake = Fake()
    step, items = saved(tmp_path, fake.state)
    assert step == saved_at
    assert from_items(items)[0].params["seen"] == sum(range(saved_at))
    checkpoints = Checkpoints(tmp_path / "checkpoints", read_only=True)
    assert checkpoints.best_step == best
    checkpoints.close()
    assert read_metrics(tmp_path, "train")[-1]["step"] == saved_at
    state = fake.train(tmp_path, **given)
    assert state.params["seen"] == sum(range(12))
    assert [e["step"] for e in read_metrics(tmp_path, "train")] == [2, 4, 6, 8, 10, 12]
    assert [e["score"] for e in read_metrics(tmp_path, "valid")] == [3.0, 2.0, 1.0]


def test_sigterm_in_the_last_call_changes_nothing(tmp_path):
    state = Terminated(6).train(tmp_path)
    assert state.params["seen"] == sum(range(STEPS))


def test_ctrl_c_saves_and_the_run_can_be_resumed(tmp_path):
    """It is a KeyboardInterrupt, which has the exit code of one."""
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match="saved at step 4 in") as stop:
        Terminated(2, signal.SIGINT).train(tmp_path)
    assert isinstance(stop.value, Interrupted) and stop.value.code == 130
    assert signal.getsignal(signal.SIGINT) == before
    fake = Fake()
    assert saved(tmp_path, fake.state)[0] == 4
    assert fake.train(tmp_path).params["seen"] == sum(range(STEPS))


def test_ctrl_c_in_the_last_call_ends_the_command_too(tmp_path):
    with pytest.raises(Interrupted, match=f"saved at step {STEPS} "):
        Terminated(6, signal.SIGINT).train(tmp_path)
    assert Fake().train(tmp_path).params["seen"] == sum(range(STEPS))


def test_ctrl_c_in_the_first_call_waits_for_no_compilation(tmp_path):
    fake = Terminated(0, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt) as stop:
        fake.train(tmp_path)
    assert not isinstance(stop.value, Interrupted)
    assert read_metrics(tmp_path, "train") == []


def test_a_second_ctrl_c_saves_nothing(tmp_path):
    class Twice(Terminated):
        def __call__(self, *arguments):
            if self.at in arguments[2]:
                os.kill(os.getpid(), self.number)
            return super().__call__(*arguments)

    with pytest.raises(KeyboardInterrupt) as stop:
        Twice(2, signal.SIGINT).train(tmp_path)
    assert not isinstance(stop.value, Interrupted)


def test_a_run_in_a_thread_handles_no_signals(tmp_path):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with futures.ThreadPoolExecutor(1) as pool:
        training = pool.submit(Fake().train, tmp_path)
        assert training.result().params["seen"] == sum(range(STEPS))
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


@pytest.mark.parametrize("terminated", [pytest.param(2, marks=pytest.mark.slow), 5])
def test_a_preempted_run_ends_as_any_other(real, uninterrupted, tmp_path, terminated):
    """Bit by bit, also from a save between validations."""

    class Once(Real):
        def __init__(self):
            vars(self).update(vars(real))

        def __call__(self, state, constants, examples, key):
            if (np.asarray(examples.step) == terminated).any():
                os.kill(os.getpid(), signal.SIGTERM)
            return super().__call__(state, constants, examples, key)

    with pytest.raises(Preempted):
        Once().train(tmp_path)
    state = real.train(tmp_path)
    folder, wanted, _ = uninterrupted
    chex.assert_trees_all_equal(state, wanted)
    chex.assert_trees_all_equal(saved(tmp_path, state), saved(folder, state))


def test_a_full_disk_says_what_is_kept(tmp_path, monkeypatch):
    """The step before the save that failed is sound, and the run resumes from there."""
    files = checkpoint._files

    def full(path):
        if path.name == "8":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return files(path)

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "_files", full)
        with pytest.raises(InputError, match=f"{tmp_path}.*No space.*step 4 is kept"):
            Fake().train(tmp_path)
    fake = Fake()
    assert saved(tmp_path, fake.state)[0] == 4
    assert fake.train(tmp_path).params["seen"] == sum(range(STEPS))


def test_metrics_that_cannot_be_written_say_what_is_kept(tmp_path):
    class Full(MetricsWriter):
        def write(self, step, split, values):
            if step == 6:
                raise OSError(errno.EROFS, os.strerror(errno.EROFS), "metrics.jsonl")
            super().write(step, split, values)

    with pytest.raises(InputError, match="metrics.jsonl: Read-only.*step 4 is kept"):
        Fake().train(tmp_path, writer=lambda step: Full(tmp_path, resume_step=step))


def test_some_bad_steps_may_be_skipped(tmp_path):
    """The means leave them out."""

    class Skipping(Fake):
        def __call__(self, state, constants, examples, key):
            state, values = super().__call__(state, constants, examples, key)
            skipped = np.cumsum(~np.isfinite(values["loss"]))
            return state, {**values, "skipped": skipped}

    Skipping(nan_at=5).train(tmp_path, skip_bad_steps=1)
    entries = read_metrics(tmp_path, "train")
    assert [entry["loss"] for entry in entries] == [0.5, 2.5, 4.0, 6.5]
    assert [entry["skipped"] for entry in entries] == [0, 0, 1, 0]


@pytest.mark.parametrize(
    ("scores", "best"),
    [
        ([3, 1, 2, 5], 4),
        pytest.param([4, 3, 2, 1], 8, marks=pytest.mark.slow),
        pytest.param([1, 2, 3, 4], 2, marks=pytest.mark.slow),
    ],
)
def test_validation_picks_the_best(tmp_path, scores, best):
    """The lowest score is kept, however many saves follow."""
    fake = Fake()
    found = iter(scores)
    fake.train(
        tmp_path, validate=lambda state: {"score": next(found)}, validate_every=2
    )
    checkpoints = Checkpoints(tmp_path / "checkpoints", read_only=True)
    assert checkpoints.best_step == best
    state, _ = from_items(checkpoints.restore(best, to_items(fake.state, KEY)))
    assert state.params["seen"] == sum(range(best))
    checkpoints.close()
    assert [e["score"] for e in read_metrics(tmp_path, "valid")] == scores


def test_validation_sees_the_state_of_its_step(tmp_path):
    seen = []

    def validate(state):
        seen.append((int(state.step), float(state.params["seen"])))
        return {"score": 0.0}

    Fake().train(tmp_path, validate=validate)
    assert seen == [(4, 6.0), (8, 28.0)]


def test_the_bar_counts_steps(tmp_path, capsys, monkeypatch):
    """And shows loss, rates and memory."""
    monkeypatch.setattr(bars, "_is_drawn", lambda: True)
    Fake().train(tmp_path, progress=True)
    shown = capsys.readouterr().err
    assert "8/8 [" in shown and "step" in shown and "loss=6.5" in shown
    assert all(name in shown for name in ("choices=", "memory="))


def test_a_profile_of_some_steps(tmp_path):
    """The profile runs the calls, and the run is the same."""
    calls = []

    def profile(first, count, call, *arguments):
        calls.append((first, count))
        return call(*arguments)

    state = Fake().train(tmp_path, profile=profile)
    assert calls == [(0, 2), (2, 2), (4, 2), (6, 2)]
    assert state.params["seen"] == sum(range(STEPS))
