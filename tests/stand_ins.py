"""Programs that stand in for training and scoring where sweeps are tested.

In a folder with a `launch` package of its own they are found before the real ones, note
when they start and end in `notes.txt`, and wait there while a file `slow` exists.
"""

import pathlib
import time

from fsa.sweeps.jobs import Job

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]

_STAND_IN = """
import json, os, pathlib, sys, time
folder = pathlib.Path(sys.argv[1].removeprefix("--workdir="))
fields = dict(f.removeprefix("--config.").split("=", 1) for f in sys.argv[2:])

def note(what):
    with open("notes.txt", "a") as file:
        file.write(f"{what} {folder.name}\\n")
"""
_TRAIN = """
note("train")
if fields.get("model.hidden") == "7":
    sys.exit("error: an unlucky number")
(folder / "pid").write_text(str(os.getpid()))
while pathlib.Path("slow").exists():
    time.sleep(0.02)
(folder / "trained").write_text(fields["seed"])
note("trained")
"""
_EVALUATE = """
note("evaluate")
seed = int((folder / "trained").read_text())
(folder / "evaluation.json").write_text(json.dumps({
    "n_context": [0, 3], "accuracy": [0.5, 0.9 + 0.01 * seed], "nll": [0.7, 0.2],
    "ece": [0, 0], "ceiling_accuracy": None, "ceiling_nll": None}))
"""


def write(folder):
    """Makes `launch` in a folder our package but for what trains and scores."""
    package = folder / "launch"
    package.mkdir()
    (package / "__init__.py").write_text(
        f"__path__.append({str(REPOSITORY)!r}'/launch')"
    )
    (package / "train.py").write_text(_STAND_IN + _TRAIN)
    (package / "evaluate.py").write_text(_STAND_IN + _EVALUATE)
    return folder


def notes(place):
    """(what, run) in order."""
    path = place / "notes.txt"
    return [tuple(line.split()) for line in path.read_text().splitlines()]


def make_jobs(place, fields):
    folder = place / "runs"
    return [
        Job(
            f"{i}",
            folder / f"{i}",
            tuple(f"--config.{name}={value}" for name, value in own.items()),
            place / "compiled",
        )
        for i, own in enumerate(fields)
    ]


def wait_until(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)
