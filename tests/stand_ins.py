"""Programs that stand in for training and scoring where sweeps are tested.

They note when they start and end in `notes.txt` beside them. The training of a run
waits as long as the file that `hold` makes exists.
"""

import pathlib
import sys
import time

from fsa.sweeps import plan

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]

_STAND_IN = """
import json, os, pathlib, sys, time
place = pathlib.Path(__file__).parent
given = dict(a.removeprefix("--").split("=", 1) for a in sys.argv[1:])
folder = pathlib.Path(given["workdir"])

def note(what):
    with open(place / "notes.txt", "a") as file:
        file.write(f"{what} {folder.name}\\n")
"""
_TRAIN = """
note("train")
if given.get("config.model.hidden") == "7":
    sys.exit("error: an unlucky number")
(folder / "pid").write_text(str(os.getpid()))
while (place / f"hold,{folder.name}").exists():
    time.sleep(0.02)
(folder / "trained").write_text(given["config.seed"])
note("trained")
"""
_EVALUATE = """
note("evaluate")
seed = int((folder / "trained").read_text())
(folder / "evaluation.json").write_text(json.dumps({
    "users": 7, "n_context": [0, 3],
    "accuracy": [0.5, 0.9 + 0.01 * seed], "nll": [0.7, 0.2],
    "ece": [0, 0], "ceiling_accuracy": None, "ceiling_nll": None}))
"""


def write(place):
    """Writes the programs into a folder; returns it."""
    (place / "train.py").write_text(_STAND_IN + _TRAIN)
    (place / "evaluate.py").write_text(_STAND_IN + _EVALUATE)
    return place


def hold(place, run):
    """Lets the training of a run wait until the returned file is removed."""
    path = place / f"hold,{run}"
    path.touch()
    return path


def notes(place):
    """What the programs noted: (what, run) in order."""
    path = place / "notes.txt"
    lines = path.read_text().splitlines() if path.exists() else []
    return [tuple(line.split()) for line in lines]


def programs(place):
    """The arguments of `plan.make_jobs` by which jobs run the programs."""
    # Without site-packages, which take most of the time to start.
    python = sys.executable, "-S"
    names = "train", "evaluate"
    return {name: (*python, str(place / f"{name}.py")) for name in names}


def make_jobs(place, runs):
    """Jobs that run the programs, in their own folder."""
    return plan.make_jobs(runs, place, **programs(place))


def wait_until(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)
