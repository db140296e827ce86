"""Users on disk: the same episodes, losses and figures as of users in memory."""

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds

from benchmarks.survive import sound
from fsa.data import dataset, records
from fsa.data.dataset import Dataset, Embedding
from fsa.data.identity import identity
from fsa.data.tasks.people import CHOICES, RATINGS, People
from fsa.data.tasks.task import TEST, TRAIN, VALID
from fsa.data.users import StoredUsers, UserTable
from fsa.errors import InputError
from fsa.recipes import presets
from fsa.recipes.config import resolve
from fsa.recipes.evaluate import evaluate
from fsa.recipes.train import train
from fsa.training import reward_loss
from fsa.training.runner import stack_examples

ITEMS, USERS = 60, {TRAIN: 300, VALID: 40, TEST: 60}
SIZES = {
    "batch_size": 16,
    "max_context": 3,
    "num_targets": 4,
    "test_context": 3,
    "test_targets": 4,
}
# What is trained on, and what contexts are made of.
SOURCES = [
    (CHOICES, CHOICES),
    pytest.param(RATINGS, CHOICES, marks=pytest.mark.slow),
    pytest.param(RATINGS, RATINGS, marks=pytest.mark.slow),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """People of two prompts with choices, ratings or both; one judged everything."""
    rng = np.random.default_rng(0)

    def table(split, count):
        lengths = rng.integers(8, 20, (2, count))
        lengths[:, 0] = ITEMS
        lengths[rng.integers(2, size=count // 5), 1 + np.arange(count // 5)] = 0
        chosen, rated = ([rng.permutation(ITEMS)[:n] for n in own] for own in lengths)
        return UserTable.of(
            [f"{split} {i}" for i in range(count)],
            rng.integers(0, 2, count),
            chosen=chosen,
            rejected=[(items + 1) % ITEMS for items in chosen],
            items=rated,
            values=[rng.integers(-1, 2, len(items)) for items in rated],
        )

    data = Dataset(
        features=rng.normal(size=(ITEMS, 3)).astype(np.float32),
        item_ids=tuple(map(str, range(ITEMS))),
        texts=tuple(map(str, range(ITEMS))),
        prompts=("first", "second"),
        item_prompt=(np.arange(ITEMS) % 2).astype(np.int32),
        groups=("left", "right"),
        users={split: table(split, count) for split, count in USERS.items()},
        embedding=Embedding("random"),
    )
    path = tmp_path_factory.mktemp("stored") / "data"
    dataset.write(path, data)
    return path


@pytest.fixture(scope="module")
def both(folder):
    """The dataset in memory, and with its users on disk."""
    return dataset.load(folder), dataset.load(folder, most_in_memory=0)


def same(first, second):
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_the_size_on_disk_decides(folder):
    files = (folder / "users").rglob("*.*")
    size = sum(file.stat().st_size for file in files if file.is_file())
    for most, kind in ((size, UserTable), (size - 1, StoredUsers)):
        users = dataset.load(folder, most_in_memory=most).users
        assert {type(own) for own in users.values()} == {kind}


def test_users_on_disk_are_those_in_memory(both):
    memory, disk = both
    for split, users in memory.users.items():
        stored = disk.users[split]
        assert tuple(stored.names) == users.names and len(stored) == len(users)
        same(stored.group, users.group)
        same(stored.judged(), users.judged())
        some = np.array([7, 0, 31, 7])
        for column in ("chosen", "rejected", "items", "values"):
            same(stored.lengths(column), users.lengths(column))
            (found,), wanted = stored.read(some, (column,)), users.take(some)
            same(found.flat, getattr(wanted, column).flat)
            same(found.offsets, getattr(wanted, column).offsets)
    assert dataset.counts(memory) == dataset.counts(disk)
    assert identity(memory) == identity(disk)


def test_the_digest_of_choices_is_recorded(folder, both):
    assert dataset.recorded_choices(folder) == identity(both[0])["choices"]


@pytest.mark.parametrize(("train_on", "context"), SOURCES)
def test_episodes_are_the_same_bit_for_bit(both, train_on, context):
    memory, disk = (
        People(data, **SIZES, train_on=train_on, context=context) for data in both
    )
    for split in USERS:
        same(memory.num_choices[split], disk.num_choices[split])
        same(memory.users(split), disk.users(split))
    same(memory.statistics(), disk.statistics())
    assert memory.levels == disk.levels

    def trained(task):
        draw = jax.jit(jax.vmap(task.train_episode, in_axes=(None, 0, 0)))
        widths = set()
        # With the one who judged everything, and without.
        for step in range(25):
            users = task.training_users(step)
            own = np.arange(2, len(users))
            fetched = task.fetch(TRAIN, users, own)
            if task is disk:
                widths.add(fetched.lists[0].shape[1])
            keys = jax.random.split(jax.random.key(step), len(own))
            yield draw(task.constants, fetched, keys)
        assert task is memory or len(widths) == 2

    for first, second in zip(trained(memory), trained(disk), strict=True):
        assert first.target.mask.any()
        same(first, second)
    for split in (VALID, TEST):
        users, key = memory.users(split), jax.random.key(1)
        every = np.arange(len(users))
        drawn = []
        for task in (memory, disk):
            draw = functools.partial(task.test_episode, task.constants, split)
            many = jax.jit(jax.vmap(draw, in_axes=(0, None)))
            drawn.append(many(task.fetch(split, users, every), key))
        same(*drawn)


def test_steps_of_a_call_are_equally_wide(both):
    task = People(both[1], **SIZES, train_on=CHOICES)
    own = np.arange(16, dtype=np.int32)
    steps = [reward_loss.make_examples(task, step, own) for step in range(25)]
    assert len({step.user.lists[0].shape for step in steps}) == 2
    for lists in stack_examples(steps).user.lists:
        assert lists.shape == (25, 16, ITEMS)


def config_of(folder, most_in_memory, train_on):
    config = presets.people("np-btl")
    config.task.path = str(folder)
    config.task.most_in_memory = most_in_memory
    config.task.train_on = train_on
    config.task.max_context, config.task.num_targets = 3, 4
    config.train.batch_size, config.train.steps = 16, 20
    config.train.steps_per_call, config.train.validate_every = 5, 10
    config.eval.num_context, config.eval.num_targets = (0, 3), 4
    config.eval.num_resamples = 10
    return resolve(config, 1)


def _is_score(name):
    """Whether a metric is no measure of time or memory."""
    return name in ("step", "loss") or "nll" in name or "accuracy" in name


@pytest.mark.slow
@pytest.mark.parametrize("train_on", [CHOICES, RATINGS])
def test_a_run_has_the_same_numbers(tmp_path, folder, train_on):
    found = {}
    for name, most in (("memory", 2**40), ("disk", 0)):
        run_dir = train(config_of(folder, most, train_on), tmp_path / name)
        lines = (run_dir / "metrics.jsonl").read_text().splitlines()
        rows = map(json.loads, lines)
        metrics = [{k: v for k, v in row.items() if _is_score(k)} for row in rows]
        evaluate(run_dir)
        found[name] = metrics, json.loads((run_dir / "evaluation.json").read_text())
    # Episodes are the same; XLA fuses their draw with the loss, and rounds otherwise.
    (first, structure), (second, other) = map(jax.tree.flatten, found.values())
    assert structure == other
    for a, b in zip(first, second, strict=True):
        assert a == (pytest.approx(b, rel=2e-5) if isinstance(b, float) else b)
    assert any("loss" in row for row in found["disk"][0])


@pytest.mark.slow
def test_an_interrupted_run_ends_as_a_whole_one(tmp_path, folder, monkeypatch):
    """Bit by bit, with users on disk, who are visited in the same order."""
    config = config_of(folder, 0, CHOICES)
    whole = train(config, tmp_path / "whole")
    real = reward_loss.make_examples

    def interrupted(task, step, positions):
        if step >= 13:
            raise KeyboardInterrupt
        return real(task, step, positions)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(reward_loss, "make_examples", interrupted)
        train(config, tmp_path / "run")
    assert sound(tmp_path / "run")[0] == 10
    resumed = train(config, tmp_path / "run")
    (step, found), (last, wanted) = sound(resumed), sound(whole)
    assert step == last == 20
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


def test_a_truncated_file_is_told_before_anything_runs(tmp_path, folder):
    data = dataset.load(folder)
    dataset.write(tmp_path / "data", data)
    (file,) = (tmp_path / "data" / "users").rglob("*train.array_record*")
    content = file.read_bytes()
    for damaged in (content[: len(content) // 2], None):
        file.write_bytes(damaged) if damaged else file.unlink()
        with pytest.raises(InputError, match=str(file)) as error:
            train(config_of(tmp_path / "data", 0, CHOICES), tmp_path / "run")
        assert "\n" not in str(error.value)


def test_datasets_without_an_index_are_held_in_memory(tmp_path, folder, caplog):
    """Those of older versions, whose records were the same."""
    path = tmp_path / "data"
    dataset.write(path, dataset.load(folder))
    for file in (path / "index").iterdir():
        file.unlink()
    (path / "index").rmdir()
    content = json.loads((path / "store.json").read_text())
    content["files"] = {k: v for k, v in content["files"].items() if "index" not in k}
    del content["choices"]
    (path / "store.json").write_text(json.dumps(content))
    data = dataset.load(path, most_in_memory=0)
    assert isinstance(data.users[TRAIN], UserTable)
    assert "older version" in caplog.text
    assert dataset.recorded_choices(path) is None


def test_records_are_those_of_tfds(tmp_path):
    """TFDS reads what is written here, and would write the same bytes."""
    features = tfds.features.FeaturesDict(dataset._USER)
    row = {
        "user": "An",
        "group": "älter",
        "chosen": np.array([3, 1], np.int32),
        "rejected": np.array([2, 70000], np.int32),
        "items": np.zeros(0, np.int32),
        "values": np.array([0.1, -2], np.float32),
    }
    records.write(tmp_path, "users", dataset._USER, {"train": [row], "valid": []})
    builder = tfds.builder_from_directory(tmp_path / "users" / "1.0.0")
    assert list(builder.info.splits) == ["train"]
    (theirs,) = builder.as_data_source("train")
    (ours,) = records.read(tmp_path, "users", "train")
    assert theirs["group"].decode() == ours["group"] == "älter"
    for name in ("chosen", "rejected", "items", "values"):
        same(ours[name], row[name])
        same(theirs[name], row[name])
        assert ours[name].dtype == row[name].dtype
    assert features.deserialize_example_np(records._encoded(row))["user"] == b"An"
    assert records.read(tmp_path, "users", "valid") == []


def test_vectors_are_added_without_reading_users(tmp_path, folder, monkeypatch):
    path = tmp_path / "data"
    dataset.write(path, dataclasses.replace(dataset.load(folder), embedding=None))
    monkeypatch.setattr(records.Source, "read", _only_items(records.Source.read))
    vectors = np.ones((ITEMS, 2), np.float32)
    dataset.write_features(path, vectors, Embedding("ones"))
    monkeypatch.undo()
    same(dataset.load(path).features, vectors)
    assert dataset.load(path, most_in_memory=0).users[TRAIN].names is not None


def _only_items(read):
    def checked(self, places, columns=None):
        rows = read(self, places, columns)
        assert "user" not in rows[0]
        return rows

    return checked
