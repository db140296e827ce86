"""A sample of the malformed inputs, and how the benchmark compares folders."""

import shutil

import pytest

from benchmarks import malformed, refusal_base, refusals
from benchmarks.refusal_folder import Copy, changes
from benchmarks.refusal_fork import Finished

# Kinds that need a dataset alone, and one of how many of their cases is tried.
EVERY = {
    "tables": 17,
    "cells": 15,
    "vectors": 9,
    "datasets": 23,
    "configs": 19,
    "field values": 43,
    "outputs": 17,
}
# What a sample of the cases leaves out, as it takes a trained model.
OTHERS = ("sample", "steer", "policy", "language", "runs/reward_model")


@pytest.fixture(scope="module")
def sound(tmp_path_factory, launch):
    """The tables and a dataset; not to be changed."""
    folder = tmp_path_factory.mktemp("refusals") / "sound"
    refusal_base.write_inputs(folder)
    refusal_base.write_table(folder / "samples.jsonl", [{"prompt": "a", "answer": "b"}])
    prepare, *_ = refusal_base.REWARD_MODEL_STEPS
    finished = launch(*prepare, folder=folder)
    assert finished.code == 0, finished.err
    return folder


def sample(sound, kind):
    """Some cases of a kind."""
    found = [
        case
        for case in malformed.KINDS[kind](sound)
        if not case.as_nobody and not any(x in " ".join(case.line) for x in OTHERS)
    ]
    return found[:: EVERY[kind]]


@pytest.mark.parametrize("kind", EVERY)
def test_malformed_input_ends_in_one_line(kind, sound, tmp_path, launch):
    """And everything in the folder is as it was."""
    copy = Copy(sound, tmp_path / "copy")
    cases = sample(sound, kind)
    assert len(cases) > 2
    for case in cases:
        finished, wrong = refusals.try_case(
            case, copy, lambda folder, line: launch(*line, folder=folder)
        )
        assert not wrong, (case, finished.err)


@pytest.mark.parametrize(
    ("code", "err", "changed"),
    [
        (0, "error: a\n", []),
        (1, "error: a\n", []),
        (2, "", []),
        (2, "error: a\nerror: b\n", []),
        (2, "a\n", []),
        (2, "error: a\n", ["lost b"]),
    ],
)
def test_what_counts_as_refused(code, err, changed):
    assert refusals.faults(Finished(code, "", err, 0.0), changed)
    assert not refusals.faults(Finished(2, "", "error: a\n", 0.0), [])


@pytest.fixture
def copy(tmp_path):
    folder = tmp_path / "sound"
    (folder / "a" / "b").mkdir(parents=True)
    for name in ("one", "a/two", "a/b/three"):
        (folder / name).write_text(name)
    return Copy(folder, tmp_path / "copy")


CHANGES = {
    "lost one": lambda folder: (folder / "one").unlink(),
    "changed a/two": lambda folder: (folder / "a" / "two").write_text("owt/a"),
    "changed one": lambda folder: (folder / "one").chmod(0o600),
    "new a/c": lambda folder: (folder / "a" / "c").mkdir(),
    "new d": lambda folder: (folder / "d").symlink_to("one"),
    "lost a/b": lambda folder: shutil.rmtree(folder / "a" / "b"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_every_change_of_a_folder_is_found_and_undone(copy, what):
    before = copy.contents()
    CHANGES[what](copy.folder)
    found = changes(before, copy.contents())
    assert what in found
    copy.restore()
    assert copy.contents() == before
    assert (copy.folder / "a" / "two").read_text() == "a/two"
