"""Checkpoints: back bit by bit, or not at all."""

import logging
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fsa.errors import InputError
from fsa.inference.predictor import Predictor
from fsa.training import checkpoint
from fsa.training.checkpoint import TRAINING, VARIABLES, Checkpoints
from fsa.training.loop import from_items, to_items
from fsa.training.step import init_state, make_optimizer

META = {"config": {"seed": 0}, "model": {"hidden": 3}, "sizes": [0, 1]}
# Lower is better: 2 is the best, 4 and 5 are the latest.
SCORES = {1: 3.0, 2: 1.0, 3: 2.0, 4: 5.0, 5: 4.0}
KEPT = [2, 4, 5]
SEEDS = range(8)


def some_items(seed, width=5, names=("w", "b")):
    """What training saves, with random numbers in every leaf."""
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
    assert jax.tree.structure(actual) == jax.tree.structure(wanted)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(wanted), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def content(folder):
    """Every file and empty folder below, and what it holds."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def files_of(step_dir):
    """The files that hold anything; by size, for Orbax names some at random."""
    found = [p for p in step_dir.rglob("*") if p.is_file() and p.stat().st_size]
    return sorted(found, key=lambda p: (p.parent, p.stat().st_size, p))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder of five saves; not to be changed."""
    folder = tmp_path_factory.mktemp("saved") / "checkpoints"
    checkpoints = Checkpoints(folder)
    for step, score in SCORES.items():
        save(checkpoints, step, score)
    checkpoints.close()
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """A copy of it to damage."""
    return shutil.copytree(saved, tmp_path / "checkpoints")


@pytest.fixture
def reopen(caplog):
    """Opens a folder; gives the checkpoints and the warnings, and closes them."""
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
    """As a user of the model restores it, who has no optimizer."""
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
    # Also for saves after a restart, and a new best.
    save(checkpoints, 6, score=0.5)
    save(checkpoints, 7, score=9.0)
    save(checkpoints, 8, score=8.0)
    checkpoints.wait()
    assert (checkpoints.latest_step, checkpoints.best_step) == (8, 6)
    assert sorted(int(path.name) for path in folder.iterdir()) == [6, 7, 8]


@pytest.mark.parametrize("keep_last", [2, 3, 4])
def test_so_many_of_the_latest_are_kept(tmp_path, reopen, keep_last):
    """Besides the best; one without a score is never that while another has one."""
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
    """Flips one bit of one file; gives its name, as do the others."""
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
    """The step before is used; a line says so; the damaged files are kept."""
    name = damage(folder / "5", np.random.default_rng(seed))
    damaged = content(folder / "5")
    checkpoints, (warning,) = reopen(folder)
    assert checkpoints.latest_step == 4
    assert not (folder / "5").exists()
    assert content(folder / "damaged" / "5") == damaged
    assert warning.startswith(f"{folder / '5'}: damaged (")
    # A damaged manifest contradicts some other file, unless it cannot be read at all.
    assert f"({name} is not" in warning or name == "manifest.json"


def test_training_goes_on_from_the_step_before(folder, reopen):
    """The damaged step is made again, and once more damaged it is set aside again."""
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
    """The best one too: the best of the sound ones takes its place."""
    for step in (2, 5):
        flip(folder / str(step), np.random.default_rng(step))
    checkpoints, warnings = reopen(folder)
    assert len(warnings) == 2
    assert (checkpoints.latest_step, checkpoints.best_step) == (4, 4)
    assert sorted(p.name for p in (folder / "damaged").iterdir()) == ["2", "5"]


@pytest.mark.parametrize("draft", [False, True])
def test_a_save_that_was_cut_off(folder, reopen, draft):
    """Committed but without a manifest: nothing vouches for it."""
    manifest = folder / "5" / "manifest.json"
    if draft:
        manifest.rename(manifest.with_name("manifest.json.draft"))
    else:
        manifest.unlink()
    checkpoints, (warning,) = reopen(folder)
    assert warning.startswith(f"{folder / '5'}: saving was cut off")
    assert checkpoints.latest_step == 4
    assert not (folder / "5").exists()
    save(checkpoints, 5, SCORES[5])
    checkpoints.wait()
    assert_same(checkpoints.restore(5, some_items(0)), some_items(5))


def test_a_save_that_was_cut_off_earlier(folder, reopen):
    """Before the commit: Orbax's temporary folder is cleared away, with a line."""
    left = folder / "6.orbax-checkpoint-tmp" / "variables"
    left.mkdir(parents=True)
    (left / "d").write_bytes(b"half")
    checkpoints, (warning,) = reopen(folder)
    assert warning.startswith(f"{left.parent}: saving was cut off")
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


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"width": 7}, "variables/params/b is (5,) there and (7,) here"),
        ({"names": ("b",)}, "variables/params/w is (3, 5) there and absent here"),
    ],
)
def test_another_model(folder, reopen, changes, difference):
    checkpoints, _ = reopen(folder)
    with pytest.raises(InputError) as refused:
        checkpoints.restore(5, some_items(0, **changes))
    message = f"{folder / '5'}: a checkpoint of another model: {difference}; use the"
    assert str(refused.value).startswith(message)


def test_another_optimizer(folder, reopen):
    checkpoints, _ = reopen(folder)
    other = some_items(0)
    other[TRAINING]["opt_state"] = ()
    with pytest.raises(InputError, match=r"training/opt_state/1/0/count is \(\) there"):
        checkpoints.restore(5, other)


@pytest.mark.parametrize("lost", ["run", "checkpoints", "damaged"])
def test_no_sound_checkpoint(folder, lost):
    """For the users of a model, who get one line."""
    run = folder.parent
    if lost == "damaged":
        for step in KEPT:
            truncate(folder / str(step), np.random.default_rng(step))
    else:
        shutil.rmtree(folder)
    run = run / "none" if lost == "run" else run
    with pytest.raises(InputError, match=f"^{run}: no sound checkpoint there"):
        Predictor.load(run)
    assert lost != "run" or not run.exists()


def test_a_save_that_fails_is_not_passed_over(folder, reopen, monkeypatch):
    """It happens in the background; whoever waits for it is told."""
    checkpoints, _ = reopen(folder)

    def full(path):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "_files", full)
        save(checkpoints, 6)
        with pytest.raises(OSError, match="No space left"):
            checkpoints.wait()
    assert checkpoints.latest_step == 5
    # The failure is told once; the next save is a new one.
    save(checkpoints, 7)
    checkpoints.wait()
    assert checkpoints.latest_step == 7
