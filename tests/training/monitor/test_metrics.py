"""Metrics on disk, also of runs that were killed."""

import json
import logging
import os
import struct

import pytest
from etils.epath import backend, gpath
from tensorboardX.proto.event_pb2 import Event, SessionLog

from fsa.training.monitor.metrics import MetricsWriter, read_metrics


def events(folder):
    """The TensorBoard events in a folder, in the order they were written.

    A record is its length (8 bytes), a checksum (4), the event and a checksum (4).
    """
    found = []
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            found.append(Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
    return found


def scalars(folder):
    return [
        (value.tag, event.step, value.simple_value)
        for event in events(folder)
        for value in event.summary.value
    ]


def write(workdir, resume_step, steps, scale=1.0):
    writer = MetricsWriter(workdir, resume_step=resume_step)
    for step in steps:
        writer.write(step, "train", {"loss": scale / step})
        writer.write(step, "valid", {"score": scale * step})
    writer.close()


def test_what_is_written_is_read(tmp_path):
    write(tmp_path, 0, [2, 4])
    assert read_metrics(tmp_path, "train") == [
        {"step": 2, "split": "train", "loss": 0.5},
        {"step": 4, "split": "train", "loss": 0.25},
    ]
    assert [entry["score"] for entry in read_metrics(tmp_path, "valid")] == [2.0, 4.0]
    assert scalars(tmp_path / "tensorboard") == [
        ("train/loss", 2, 0.5),
        ("valid/score", 2, 2.0),
        ("train/loss", 4, 0.25),
        ("valid/score", 4, 4.0),
    ]


def test_entries_are_written_at_once(tmp_path):
    """So that a kill loses none of them."""
    writer = MetricsWriter(tmp_path)
    writer.write(1, "train", {"loss": 1.0})
    assert read_metrics(tmp_path, "train")[0]["loss"] == 1.0
    writer.close()


def test_resuming_drops_entries_of_steps_that_are_repeated(tmp_path):
    write(tmp_path, 0, [2, 4, 6])
    path = tmp_path / "metrics.jsonl"
    with path.open("a") as file:
        file.write('{"step": 8, "split": "tra')
    write(tmp_path, 4, [6, 8], scale=3.0)
    losses = [(e["step"], e["loss"]) for e in read_metrics(tmp_path, "train")]
    assert losses == [(2, 0.5), (4, 0.25), (6, 0.5), (8, 0.375)]
    assert len(path.read_text().splitlines()) == 8
    # TensorBoard ignores events from step 5 on that come before this one.
    starts = [
        event.step
        for event in events(tmp_path / "tensorboard")
        if event.session_log.status == SessionLog.START
    ]
    assert starts == [5]
    assert scalars(tmp_path / "tensorboard")[-1] == ("valid/score", 8, 24.0)


def test_a_line_that_was_cut_off_is_dropped(tmp_path):
    """Also if its step is kept, so that the file stays JSON lines."""
    write(tmp_path, 0, [2])
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text()[:-5])
    write(tmp_path, 2, [4])
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(e["step"], e["split"]) for e in entries] == [
        (2, "train"),
        (4, "train"),
        (4, "valid"),
    ]


@pytest.mark.parametrize("damage", [b"\xff\xfe\x00", b"null", b'{"step": "4"}', b"{}"])
def test_a_damaged_file_is_kept_aside(tmp_path, caplog, damage):
    """Its other entries go on, and the damaged line is named."""
    write(tmp_path, 0, [2, 4])
    path = tmp_path / "metrics.jsonl"
    lines = path.read_bytes().splitlines()
    damaged = b"\n".join([lines[0], damage, *lines[2:], b""])
    path.write_bytes(damaged)
    with caplog.at_level(logging.WARNING):
        write(tmp_path, 4, [6])
    assert (tmp_path / "metrics.jsonl.damaged").read_bytes() == damaged
    assert "metrics.jsonl, line 2" in caplog.text
    assert [e["step"] for e in read_metrics(tmp_path, "train")] == [2, 4, 6]
    assert [e["step"] for e in read_metrics(tmp_path, "valid")] == [4, 6]


def test_a_new_start_drops_everything(tmp_path):
    """A run without a sound checkpoint begins at step 0."""
    write(tmp_path, 0, [2, 4])
    write(tmp_path, 0, [2], scale=5.0)
    assert [e["loss"] for e in read_metrics(tmp_path, "train")] == [2.5]


class ObjectStorage(backend._OsPathBackend):
    """A local folder as object storage, where files cannot be appended to."""

    def __init__(self, folder):
        self.folder = folder

    def _local(self, path):
        return str(self.folder / os.fspath(path).removeprefix("gs://"))

    def open(self, path, mode):
        assert "a" not in mode and "+" not in mode
        return super().open(self._local(path), mode)

    def exists(self, path):
        return super().exists(self._local(path))

    def makedirs(self, path, **options):
        super().makedirs(self._local(path), **options)

    def mkdir(self, path, **options):
        super().makedirs(self._local(path), exist_ok=True)


@pytest.fixture
def object_storage(tmp_path, monkeypatch):
    """(path of a run in object storage, the local folder behind it)."""
    monkeypatch.setitem(gpath._PREFIX_TO_BACKEND, "gs", ObjectStorage(tmp_path))
    (tmp_path / "bucket" / "run").mkdir(parents=True)
    return "gs://bucket/run", tmp_path / "bucket" / "run"


def test_in_object_storage_complete_files_are_written(object_storage):
    """At every validation, after which the run saves, and at the end."""
    name, folder = object_storage
    writer = MetricsWriter(name)
    writer.write(2, "train", {"loss": 0.5})
    assert not (folder / "metrics.jsonl").exists()
    writer.write(2, "valid", {"score": 2.0})
    assert [e["loss"] for e in read_metrics(name, "train")] == [0.5]
    writer.write(4, "train", {"loss": 0.25})
    writer.close()
    assert [e["loss"] for e in read_metrics(name, "train")] == [0.5, 0.25]
    assert scalars(folder / "tensorboard") == [
        ("train/loss", 2, 0.5),
        ("valid/score", 2, 2.0),
        ("train/loss", 4, 0.25),
    ]
    write(name, 2, [4], scale=3.0)
    assert [e["loss"] for e in read_metrics(name, "train")] == [0.5, 0.75]
    assert len(list((folder / "tensorboard").iterdir())) == 2
