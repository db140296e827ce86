"""Datasets, vectors and sources of `fsa prepare` that are damaged or foreign."""

import pathlib
import pickle
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from benchmarks import refusal_base as base
from benchmarks.malformed.case import RESUME, Case, both, half, line, read, write_config
from benchmarks.malformed.folders import faults_of, files_of


def datasets(sound: pathlib.Path) -> Iterator[Case]:
    """Yields datasets with each of their files spoilt, and folders that are none."""
    readers = [
        line("train"),
        line("probe"),
        line("evaluate"),
        line("predict"),
    ]
    for number, name in enumerate(files_of(sound, "data/people")):
        for i, (what, fault) in enumerate(faults_of(name).items()):
            yield Case(
                f"{readers[(number + i) % 4][0]}: {name}: {what}",
                readers[(number + i) % 4],
                lambda folder, name=name, fault=fault: fault(folder / name),
            )
    others = {
        "missing": lambda path: None,
        "an empty folder": lambda path: path.mkdir(),
        "a file": lambda path: path.write_text("people"),
        "a run": lambda path: shutil.copytree(
            path.parent / "runs" / "reward_model", path
        ),
        "a model": lambda path: shutil.copytree(path.parent / "language", path),
        "a dataset without vectors": lambda path: shutil.copytree(
            path.parent / "data" / "choices", path
        ),
    }
    for what, make in others.items():
        for command, flags in {
            "train": {"config": "spoilt.py"},
            "probe": {"data": "spoilt"},
        }.items():
            yield Case(
                f"{command}: dataset is {what}",
                line(command, **flags),
                both(
                    lambda folder: write_config(
                        folder, "mine.py", '    config.task.path = "spoilt"'
                    ),
                    lambda folder, make=make: make(folder / "spoilt"),
                ),
            )
        if what != "a dataset without vectors":
            yield Case(
                f"embed: dataset is {what}",
                line("embed", data="spoilt", model="language"),
                lambda folder, make=make: make(folder / "spoilt"),
            )


def other_data(sound: pathlib.Path) -> Iterator[Case]:
    """Yields datasets that took the place of a run's own."""
    ratings, ids = read(sound, "ratings"), read(sound, "ids")
    vectors = np.load(sound / "vectors.npy")
    changed = {
        "other rows": ("ratings.jsonl", [{**r, "value": -r["value"]} for r in ratings]),
        "fewer people": (
            "ratings.jsonl",
            [r for r in ratings if r["user"] != "train-0"],
        ),
        "vectors of other items": ("ids.jsonl", ids[1:] + ids[:1]),
        "other vectors": ("vectors.npy", 2 * vectors),
        "shorter vectors": ("vectors.npy", vectors[:, :2]),
    }
    users = [line("evaluate"), line("predict"), line("train", RESUME)]
    for what, (name, content) in changed.items():

        def spoil(folder, name=name, content=content):
            if name.endswith(".npy"):
                np.save(folder / name, content)
            else:
                base.write_table(folder / name, content)

        for user in users:
            again = ("prepare", *base.PREPARE_PEOPLE, "--out=data/people")
            yield Case(
                f"{user[0]} after prepare with {what}",
                user,
                spoil,
                before=((*again, "--overwrite"),),
            )
        yield Case(
            f"evaluate --data: {what}",
            line("evaluate", data="data/none"),
            spoil,
        )


def _save(value: Any, **options: Any) -> Callable[[pathlib.Path], None]:
    return lambda path: np.save(path, value, **options)


def vectors(sound: pathlib.Path) -> Iterator[Case]:
    """Yields files of vectors that are damaged or do not fit."""
    good = np.load(sound / "vectors.npy")
    content = (sound / "vectors.npy").read_bytes()
    bad = {
        "missing.npy": lambda path: None,
        "empty.npy": lambda path: path.write_bytes(b""),
        "cut.npy": lambda path: path.write_bytes(half(content)),
        "headless.npy": lambda path: path.write_bytes(content[8:]),
        "text.npy": lambda path: path.write_text("1 2 3\n"),
        "text.txt": lambda path: path.write_text("1 2 3\n"),
        "directory.npy": lambda path: path.mkdir(),
        "flat.npy": _save(good.ravel()),
        "cube.npy": _save(good[None]),
        "scalar.npy": _save(np.float32(1)),
        "integers.npy": _save(good.astype(int)),
        "complex.npy": _save(good.astype(complex)),
        "texts.npy": _save(good.astype(str)),
        "flags.npy": _save(good > 0),
        "objects.npy": _save(good.astype(object), allow_pickle=True),
        "no_columns.npy": _save(good[:, :0]),
        "no_rows.npy": _save(good[:0]),
        "fewer.npy": _save(good[1:]),
        "more.npy": _save(np.concatenate([good, good])),
        "nan.npy": _save(np.where(good > 0.9, np.nan, good)),
        "inf.npy": _save(np.where(good > 0.9, np.inf, good)),
        "huge.npy": _save(good.astype(np.float64) * 1e300),
        "two.npz": lambda path: np.savez(path, a=good, b=good),
        "none.npz": lambda path: np.savez(path),
        "flat.npz": lambda path: np.savez(path, a=good.ravel()),
        "cut.npz": lambda path: (
            np.savez(path, a=good),
            path.write_bytes(half(path.read_bytes())),
        ),
        "text.npz": lambda path: path.write_text("nothing"),
        "pickle.npy": lambda path: path.write_bytes(pickle.dumps(good)),
    }
    for name, write in bad.items():
        yield Case(
            f"prepare --vectors={name}",
            line("prepare", vectors=name),
            lambda folder, name=name, write=write: write(folder / name),
        )


def sources(sound: pathlib.Path) -> Iterator[Case]:
    """Yields Polis exports and GGUF files that are none."""
    none = {"ratings": None, "vectors": None, "vector_ids": None}
    polis = {
        "missing": lambda path: None,
        "an empty folder": lambda path: path.mkdir(),
        "a file": lambda path: path.write_text("votes"),
        "empty tables": lambda path: _folder(
            path, **{"comments.csv": "", "participants-votes.csv": ""}
        ),
        "other tables": lambda path: _folder(
            path,
            **{"comments.csv": "a,b\n1,2\n", "participants-votes.csv": "a,b\n1,2\n"},
        ),
        "a dataset": lambda path: shutil.copytree(path.parent / "data/people", path),
    }
    for what, make in polis.items():
        yield Case(
            f"prepare --polis: {what}",
            line("prepare", **none, polis="spoilt"),
            lambda folder, make=make: make(folder / "spoilt"),
        )
    arrays = {
        "missing": lambda path: None,
        "empty": lambda path: path.write_bytes(b""),
        "text": lambda path: path.write_text("votes"),
        "other arrays": lambda path: np.savez(path, a=np.ones(3)),
        "no arrays": lambda path: np.savez(path),
        "pickled arrays": lambda path: np.savez(
            path, votes=np.array([{"a": 1}], object)
        ),
    }
    for what, make in arrays.items():
        yield Case(
            f"prepare --polis .npz: {what}",
            line("prepare", **none, polis="spoilt.npz"),
            lambda folder, make=make: make(folder / "spoilt.npz"),
        )
    ggufs = {
        "missing": lambda path: None,
        "empty": lambda path: path.write_bytes(b""),
        "text": lambda path: path.write_text("model"),
        "magic alone": lambda path: path.write_bytes(b"GGUF"),
        "later version": lambda path: path.write_bytes(b"GGUF\x63\0\0\0" + bytes(16)),
        "no tensors": lambda path: path.write_bytes(b"GGUF\3\0\0\0" + bytes(16)),
        "too many tensors": lambda path: path.write_bytes(
            b"GGUF\3\0\0\0" + b"\xff" * 16
        ),
        "a directory": lambda path: path.mkdir(),
    }
    for what, make in ggufs.items():
        yield Case(
            f"prepare --gguf: {what}",
            line("prepare", **none, gguf="spoilt.gguf"),
            lambda folder, make=make: make(folder / "spoilt.gguf"),
        )


def _folder(path: pathlib.Path, **files: str) -> None:
    path.mkdir()
    for name, text in files.items():
        (path / name).write_text(text)
