"""What tells the data of a run from others."""

import dataclasses

import numpy as np
import pytest

from fsa.data import dataset
from fsa.data.collect import collect
from fsa.data.dataset import Embedding
from fsa.data.tables import Choice
from fsa.errors import InputError
from fsa.training import run_data

BERT = Embedding("bert", "{option}", "a" * 64)


def write(path, embedding=BERT, chosen="tea", shift=0.0):
    pair = (chosen, "milk" if chosen == "tea" else "tea")
    data = collect([Choice("ann", "", *pair, "train", "all")], [])
    vectors = np.arange(2 * len(data.texts), dtype=np.float32).reshape(-1, 2)
    data = dataclasses.replace(data, features=vectors + shift, embedding=embedding)
    dataset.write(path, data, overwrite=path.exists())
    return path


@pytest.fixture
def known(tmp_path):
    """The identity that a run has recorded of its data."""
    run_data.record(tmp_path, run_data.identify(write(tmp_path / "data")))
    return run_data.recorded(tmp_path)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"chosen": "milk"}, "choices"),
        ({"shift": 1.0}, "vectors"),
        ({"embedding": dataclasses.replace(BERT, template="a {option}")}, "template"),
        ({"embedding": dataclasses.replace(BERT, digest="b" * 64)}, "embedder"),
    ],
)
def test_each_part_is_told_alone(tmp_path, known, change, part):
    path = write(tmp_path / "data", **change)
    for compared in run_data.PARTS:
        assert bool(run_data.differences(known, path, (compared,))) == (
            compared == part
        )
    (line,) = run_data.differences(known, path, run_data.PARTS)
    assert part in line


@pytest.mark.parametrize("digest", [BERT.digest, ""])
def test_the_same_vectors_by_an_embedder_of_another_name(tmp_path, known, digest):
    renamed = dataclasses.replace(BERT, name="my-bert", digest=digest)
    path = write(tmp_path / "data", embedding=renamed)
    assert run_data.differences(known, path, run_data.PARTS) == []


def test_other_vectors_by_an_embedder_of_another_name(tmp_path, known):
    renamed = dataclasses.replace(BERT, name="my-bert", digest="")
    path = write(tmp_path / "data", embedding=renamed, shift=1.0)
    found = run_data.differences(known, path, run_data.PARTS)
    assert len(found) == 2 and "vectors" in found[0] and "my-bert" in found[1]
    assert len(run_data.differences(known, path, ("embedder",))) == 1


def test_data_that_are_the_same_are_not_read(tmp_path, known, monkeypatch):
    def load(*arguments, **options):
        raise AssertionError

    monkeypatch.setattr(dataset, "load", load)
    path = tmp_path / "data"
    found = run_data.check(tmp_path, path, run_data.PARTS, "use it", known=known)
    assert found == known


def test_what_is_no_record_or_no_dataset(tmp_path, known):
    with pytest.raises(InputError, match="none"):
        run_data.differences(known, tmp_path / "none", run_data.PARTS)
    for damaged in ("[1", "[]", '{"choices": "a"}'):
        (tmp_path / "data.json").write_text(damaged)
        with pytest.raises(InputError, match="data.json"):
            run_data.recorded(tmp_path)


def test_a_run_without_a_record_that_cannot_be_written(tmp_path, monkeypatch, caplog):
    """Warns each time, and goes on."""

    def record(*arguments):
        raise InputError("read-only")

    monkeypatch.setattr(run_data, "record", record)
    path = write(tmp_path / "data")
    for _ in range(2):
        caplog.clear()
        run_data.check(tmp_path, path, run_data.PARTS, "use it", known=None)
        assert str(tmp_path) in caplog.text
