"""Checkpoints are restored bit by bit, or not at all."""

import logging
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fsa.errors import InputError
from fsa.inference.ranker import Ranker
from fsa.training import checkpoint
from fsa.training.checkpoint import TRAINING, VARIABLES, Checkpoints
from fsa.training.loop import from_items, to_items
from fsa.training.step import init_state, make_optimizer

META = {"config": {"seed": 0}, "model": {"hidden": 3}, "sizes": [0, 1]}
# Lower is better: 2 is the best, 4 and 5 are the latest.
SCORES = {1: 3.0, 2: 1.0, 3: 2.0, 4: 5.0, 5: 4.0}
KEPT = [2, 4, 5]
SEEDS = range(3)


def some_items(seed, width=5, names=("w", "b")):
    """The items that training saves, with random numbers in every leaf."""
    shapes = {"w": (3, width), "b": (width,)}
    params = {name: np.zeros(shapes[name], np.float32) for name in names}
    statistics = {"mean": np.zeros(3, jnp.bfloat16)}
    optimizer = make_optimizer(learning_rate=1.0, steps=4, warmup_steps=1)
    state = init_state({"params": params, "statistics": statistics}, optimizer)
    rng = np.random.default_rng(seed)
    state = jax.tree.map(
        lambda x: (
            jnp.asarray(rng.integers(0, 100, x.shape), x.dtype) / 7
            if jnp.issubdtype(x.dtype, jnp.floating)
            else jnp.asarray(rng.integers(0, 100, x.shape), x.dtype)
        ),
        state,
    )
    return to_items(state, jax.random.key(seed))


def save(checkpoints, step, score=0.0):
    checkpoints.save(step, some_items(step), score=score, meta={**META, "step": step})


def assert_same(actual, wanted):
    chex.assert_trees_all_equal(actual, wanted)
    chex.assert_trees_all_equal_shapes_and_dtypes(actual, wanted)


def content(folder):
    """The content of every file below a folder, None for folders, by path."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def files_of(step_dir):
    """The files that are not empty, by size, since Orbax names some at random."""
    found = [p for p in step_dir.rglob("*") if p.is_file() and p.stat().st_size]
    return sorted(found, key=lambda p: (p.parent, p.stat().st_size, p))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder after five saves, which tests must not change."""
    folder = tmp_path_factory.mktemp("saved") / "checkpoints"
    checkpoints = Checkpoints(folder)
    for step, score in SCORES.items():
        save(checkpoints, step, score)
    checkpoints.close()
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """A copy of that folder, which tests may damage."""
    return shutil.copytree(saved, tmp_path / "checkpoints")


@pytest.fixture
def reopen(caplog):
    """Opens a folder; returns checkpoints and warnings, and closes it in the end."""
    opened = []

    def run(folder, **options):
        with caplog.at_level(logging.WARNING, logger="fsa"):
            opened.append(Checkpoints(folder, **options))
        own = [r.getMessage() for r in caplog.records if r.name.startswith("fsa")]
        return opened[-1], own

    yield run
    for checkpoints in opened:
        checkpoints.close()


def test_round_trip(folder, reopen):
    checkpoints, warnings = reopen(folder)
    assert not warnings
    for step in KEPT:
        like = jax.tree.map(jnp.zeros_like, some_items(0))
        restored = checkpoints.restore(step, like)
        assert_same(restored, some_items(step))
        assert checkpoints.meta(step) == {**META, "step": step}
    state, key = from_items(restored)
    assert (jax.random.key_data(key) == restored[TRAINING]["key"]).all()
    assert_same(to_items(state, key), some_items(5))


def test_one_item_by_its_own_shapes(folder, reopen):
    """As users of the model restore it, who have no optimizer."""
    checkpoints, _ = reopen(folder, read_only=True)
    shapes = checkpoints.shapes(2, VARIABLES)
    wanted = some_items(2)[VARIABLES]
    assert jax.tree.map(lambda x: (x.shape, x.dtype), shapes) == jax.tree.map(
        lambda x: (x.shape, x.dtype), wanted
    )
    restored = checkpoints.restore(2, {VARIABLES: shapes})
    assert restored.keys() == {VARIABLES}
    assert_same(restored[VARIABLES], wanted)


def test_the_two_latest_and_the_best_are_kept(folder, reopen):
    assert sorted(int(path.name) for path in folder.iterdir()) == KEPT
    checkpoints, _ = reopen(folder)
    assert (checkpoints.latest_step, checkpoints.best_step) == (5, 2)
    # Also after a restart, and with a new best step.
    save(checkpoints, 6, score=0.5)
    save(checkpoints, 7, score=9.0)
    save(checkpoints, 8, score=8.0)
    checkpoints.wait()
    assert (checkpoints.latest_step, checkpoints.best_step) == (8, 6)
    assert sorted(int(path.name) for path in folder.iterdir()) == [6, 7, 8]


@pytest.mark.parametrize(
    "keep_last",
    [
        pytest.param(2, marks=pytest.mark.slow),
        3,
        pytest.param(4, marks=pytest.mark.slow),
    ],
)
def test_the_latest_are_kept_besides_the_best(tmp_path, reopen, keep_last):
    """A step without a score is not the best if another has one."""
    checkpoints, _ = reopen(tmp_path / "checkpoints", keep_last=keep_last)
    scores = {1: None, 2: 1.0, 3: None, 4: 2.0, 5: None, 6: 3.0}
    save(checkpoints, 1, None)
    checkpoints.wait()
    assert checkpoints.best_step == 1
    for step in (2, 3, 4, 5, 6):
        save(checkpoints, step, scores[step])
    checkpoints.wait()
    kept = sorted({2, *range(7 - keep_last, 7)})
    assert sorted(int(p.name) for p in checkpoints.directory.iterdir()) == kept
    assert (checkpoints.latest_step, checkpoints.best_step) == (6, 2)
    checkpoints.close()
    checkpoints, warnings = reopen(tmp_path / "checkpoints", keep_last=keep_last)
    assert not warnings
    assert (checkpoints.latest_step, checkpoints.best_step) == (6, 2)


def test_an_empty_folder(tmp_path, reopen):
    checkpoints, warnings = reopen(tmp_path / "new")
    assert (checkpoints.latest_step, checkpoints.best_step) == (None, None)
    assert not warnings


def flip(step_dir, rng):
    """Flips one bit of one file; returns its name, as the functions below do."""
    path = rng.choice(files_of(step_dir))
    data = bytearray(path.read_bytes())
    data[rng.integers(len(data))] ^= 1 << rng.integers(8)
    path.write_bytes(data)
    return str(path.relative_to(step_dir))


def truncate(step_dir, rng):
    path = rng.choice(files_of(step_dir))
    data = path.read_bytes()
    path.write_bytes(data[: rng.integers(len(data))])
    return str(path.relative_to(step_dir))


def lose(step_dir, rng):
    path = rng.choice([p for p in files_of(step_dir) if p.name != "manifest.json"])
    path.unlink()
    return str(path.relative_to(step_dir))


def add(step_dir, rng):
    (step_dir / "variables" / "stranger").write_bytes(rng.bytes(3))
    return "variables/stranger"


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("damage", [flip, truncate, lose, add])
def test_a_damaged_step_is_set_aside(folder, reopen, damage, seed):
    """The step before is used, a line is logged, and the damaged files are kept."""
    name = damage(folder / "5", np.random.default_rng(seed))
    damaged = content(folder / "5")
    checkpoints, (warning,) = reopen(folder)
    assert checkpoints.latest_step == 4
    assert not (folder / "5").exists()
    assert content(folder / "damaged" / "5") == damaged
    assert str(folder / "5") in warning and "damaged" in warning
    # A damaged manifest contradicts some other file, unless it cannot be read at all.
    assert name in warning or name == "manifest.json"


def test_training_resumes_from_the_step_before(folder, reopen):
    """The damaged step is saved again; damaged once more, it is set aside again."""
    for attempt in range(2):
        flip(folder / "5", np.random.default_rng(attempt))
        damaged = content(folder / "5")
        checkpoints, _ = reopen(folder)
        assert_same(checkpoints.restore(4, some_items(0)), some_items(4))
        assert content(folder / "damaged" / "5") == damaged
        save(checkpoints, 5, SCORES[5])
        checkpoints.close()
    checkpoints, _ = reopen(folder)
    assert_same(checkpoints.restore(5, some_items(0)), some_items(5))


def test_several_damaged_steps(folder, reopen):
    """If the best is among them, the best of the sound ones takes its place."""
    for step in (2, 5):
        flip(folder / str(step), np.random.default_rng(step))
    checkpoints, warnings = reopen(folder)
    assert len(warnings) == 2
    assert (checkpoints.latest_step, checkpoints.best_step) == (4, 4)
    assert sorted(p.name for p in (folder / "damaged").iterdir()) == ["2", "5"]


@pytest.mark.parametrize("draft", [False, True])
def test_a_save_that_was_cut_off(folder, reopen, draft):
    """It is committed, but has no manifest, so that it cannot be verified."""
    manifest = folder / "5" / "manifest.json"
    if draft:
        manifest.rename(manifest.with_name("manifest.json.draft"))
    else:
        manifest.unlink()
    checkpoints, (warning,) = reopen(folder)
    assert str(folder / "5") in warning and "cut off" in warning
    assert checkpoints.latest_step == 4
    assert not (folder / "5").exists()
    save(checkpoints, 5, SCORES[5])
    checkpoints.wait()
    assert_same(checkpoints.restore(5, some_items(0)), some_items(5))


def test_a_save_that_was_cut_off_earlier(folder, reopen):
    """It is not committed: Orbax's folder is removed, and a line is logged."""
    left = folder / "6.orbax-checkpoint-tmp" / "variables"
    left.mkdir(parents=True)
    (left / "d").write_bytes(b"half")
    checkpoints, (warning,) = reopen(folder)
    assert str(left.parent) in warning and "cut off" in warning
    assert checkpoints.latest_step == 5
    save(checkpoints, 6)
    checkpoints.wait()
    assert not left.exists()
    assert_same(checkpoints.restore(6, some_items(0)), some_items(6))


def test_reading_changes_nothing(folder, reopen):
    flip(folder / "5", np.random.default_rng(0))
    (folder / "4" / "manifest.json").unlink()
    (folder / "6.orbax-checkpoint-tmp").mkdir()
    before = content(folder)
    checkpoints, warnings = reopen(folder, read_only=True)
    assert len(warnings) == 2
    assert (checkpoints.latest_step, checkpoints.best_step) == (2, 2)
    like = {VARIABLES: checkpoints.shapes(2, VARIABLES)}
    assert_same(checkpoints.restore(2, like)[VARIABLES], some_items(2)[VARIABLES])
    checkpoints.close()
    assert content(folder) == before


def test_a_step_that_a_training_deletes_meanwhile(folder, reopen, monkeypatch):
    """Is not there for a reader, though it was when the reader began."""
    damage = checkpoint._damage

    def slow(step_dir):
        if step_dir.name == "4":
            shutil.rmtree(step_dir)
        return damage(step_dir)

    monkeypatch.setattr(checkpoint, "_damage", slow)
    checkpoints, warnings = reopen(folder, read_only=True)
    assert checkpoints.latest_step == 5 and checkpoints.best_step == 2
    assert warnings == []


def test_a_step_that_is_being_saved_is_not_called_cut_off(folder, reopen):
    (folder / "5" / "manifest.json").unlink()
    checkpoints, _ = reopen(folder, read_only=True)
    (unused,) = checkpoints.unused
    assert "5" in unused and "cut off" not in unused
    assert checkpoints.latest_step == 4


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"width": 7}, r"variables/params/b .*\(5,\) .*\(7,\)"),
        ({"names": ("b",)}, r"variables/params/w .*\(3, 5\) .*absent"),
    ],
)
def test_another_model(folder, reopen, changes, difference):
    checkpoints, _ = reopen(folder)
    with pytest.raises(InputError, match=f"{folder / '5'}: .*{difference}"):
        checkpoints.restore(5, some_items(0, **changes))


def test_another_optimizer(folder, reopen):
    checkpoints, _ = reopen(folder)
    other = some_items(0)
    other[TRAINING]["opt_state"] = ()
    with pytest.raises(InputError, match="training/opt_state/1/0/count"):
        checkpoints.restore(5, other)


@pytest.mark.parametrize("lost", ["run", "checkpoints", "damaged"])
def test_no_sound_checkpoint(folder, lost):
    """Users of a model get an error that names the run."""
    run = folder.parent
    if lost == "damaged":
        for step in KEPT:
            truncate(folder / str(step), np.random.default_rng(step))
    else:
        shutil.rmtree(folder)
    run = run / "none" if lost == "run" else run
    with pytest.raises(InputError, match=f"{run}: no sound checkpoint"):
        Ranker.load(run)
    assert lost != "run" or not run.exists()


def test_a_save_that_fails_raises(folder, reopen, monkeypatch):
    """The save runs in the background, and `wait` raises its error."""
    checkpoints, _ = reopen(folder)

    def full(path):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "_files", full)
        save(checkpoints, 6)
        with pytest.raises(OSError, match="No space left"):
            checkpoints.wait()
    assert checkpoints.latest_step == 5
    # The error is raised once; the next save succeeds.
    save(checkpoints, 7)
    checkpoints.wait()
    assert checkpoints.latest_step == 7
