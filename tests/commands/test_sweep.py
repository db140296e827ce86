"""Sweeps: nothing is done twice, and one failure stops nothing else.

Two small programs stand in for `launch.train` and `launch.evaluate`, and note when they
start and end; the last test takes the real ones.
"""

import importlib
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import stand_ins
from stand_ins import REPOSITORY, make_jobs, notes, wait_until

from fsa.recipes.config import resolve
from fsa.recipes.presets import grid
from fsa.sweeps.jobs import side_by_side

ABLATION = "experiments.synthetic.ablation"


@pytest.fixture
def place(tmp_path):
    """A folder with the stand-ins."""
    return stand_ins.write(tmp_path)


@pytest.fixture(autouse=True)
def sigterm():
    """A sweep in this process leaves no handler behind."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def test_jobs_are_done_once_and_a_failure_stops_no_other(place, monkeypatch):
    monkeypatch.chdir(place)
    fields = grid(**{"model.hidden": (8, 7), "seed": (0, 1)})
    jobs = make_jobs(place, fields)
    assert set(side_by_side(jobs, 3)) == set(jobs)
    assert [job.is_done() for job in jobs] == [True, True, False, False]
    assert jobs[2].last_words() == "error: an unlucky number"
    assert not (place / "runs/2/evaluation.json").exists()
    done = [("train", "0"), ("trained", "0"), ("evaluate", "0")]
    assert [note for note in notes(place) if note[1] == "0"] == done
    # Done jobs are left alone, even if somebody asks for them again.
    list(side_by_side(jobs[:2], 1))
    assert [note for note in notes(place) if note[1] == "0"] == done


@pytest.mark.parametrize("at_once", [1, 3])
def test_as_many_jobs_at_a_time_as_wanted(place, monkeypatch, at_once):
    monkeypatch.chdir(place)
    list(side_by_side(make_jobs(place, [{"seed": s} for s in range(3)]), at_once))
    running, most = 0, 0
    for what, _ in notes(place):
        running += {"train": 1, "trained": -1}.get(what, 0)
        most = max(most, running)
    assert most == 1 if at_once == 1 else most <= 3
    assert len(notes(place)) == 9


def test_stopping_ends_what_runs_and_begins_nothing(place, monkeypatch):
    monkeypatch.chdir(place)
    (place / "slow").touch()
    jobs = make_jobs(place, [{"model.hidden": 7, "seed": 0}, {"seed": 1}, {"seed": 2}])
    ended = side_by_side(jobs, 1)
    assert next(ended) == jobs[0]
    wait_until(lambda: ("train", "1") in notes(place))
    begin = time.monotonic()
    ended.close()
    assert time.monotonic() - begin < 30
    assert [what for what in notes(place) if what[1] != "0"] == [("train", "1")]


EXPERIMENT = """
from fsa.recipes.presets import grid
from experiments.synthetic.two_types import get_config

def get_sweep():
    return grid(**{"model.hidden": (8, 9), "seed": (0, 1)})
"""


def start_sweep(place, experiment=EXPERIMENT, *more):
    (place / "mine.py").write_text(experiment)
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "launch.sweep", "--config=mine.py"),
            *("--workdir=out", *more),
        ],
        cwd=place,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_sweep_that_is_killed_redoes_nothing(place):
    """kill -9 while the second run trains; its process, left over, is waited for."""
    name = "model.hidden={},seed={}".format
    first = start_sweep(place)
    wait_until(lambda: (place / "notes.txt").exists())
    (place / "slow").touch()
    wait_until(lambda: sum(what == "train" for what, _ in notes(place)) >= 2)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    finished = [run for what, run in notes(place) if what == "evaluate"]
    *_, (_, cut_off) = [note for note in notes(place) if note[0] == "train"]
    assert finished and cut_off not in finished

    again = start_sweep(place)
    run = place / "out/runs" / cut_off
    wait_until(lambda: "Waiting for processes" in (run / "log.txt").read_text())
    os.kill(int((run / "pid").read_text()), signal.SIGKILL)
    (place / "slow").unlink()
    out, err = again.communicate(timeout=60)
    assert again.returncode == 0, err
    for hidden in (8, 9):
        for seed in (0, 1):
            run = name(hidden, seed)
            own = [what for what, of in notes(place) if of == run]
            once = ["train", "trained", "evaluate"]
            assert own == (["train", *once] if run == cut_off else once)
    # (0.90 + 0.91) / 2, and t(0.975, 1) * 0.01 / 2.
    assert "| 8 | 2 | 50.00 ± 0.00 | 90.50 ± 6.35 | 0.2000 ± 0.0000 |" in out
    assert (place / "out/results.md").read_text().count("± 6.35") == 2
    assert (place / "out/results.png").read_bytes().startswith(b"\x89PNG")
    found = json.loads((place / "out/results.json").read_text())
    assert [entry["fields"] for entry in found] == grid(**{"model.hidden": (8, 9)})

    changed = start_sweep(place, EXPERIMENT.replace("(0, 1)})", "(0, 2)})"))
    _, err = changed.communicate()
    assert changed.returncode == 2
    assert "has another config (runs.model.hidden=8,seed=1: wanted -> absent; " in err


def test_a_failed_run_is_named_in_a_line(place):
    experiment = EXPERIMENT.replace("(8, 9)", "(7, 9)")
    sweep = start_sweep(place, experiment, "--config.train.steps=500", "--at_once=2")
    out, err = sweep.communicate(timeout=60)
    assert sweep.returncode == 1
    lines = [line for line in (out + err).splitlines() if "failed: " in line]
    log = place.resolve() / "out/runs/model.hidden=7,seed=0/log.txt"
    assert any(
        f"failed: model.hidden=7,seed=0: error: an unlucky number ({log})" in line
        for line in lines
    )
    assert len(lines) == 2
    assert "| 7 | 0 of 2 |" in out and "| 9 | 2 | 50.00" in out


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ("[]", "get_sweep() returns no runs"),
        ("[{'seed': 0}, {'seed': 0}]", "get_sweep() has seed=0 twice"),
        ("[{'model.hiden': 8}]", "get_sweep(), model.hiden=8: "),
        ("[{'model.hidden': 'x'}]", "get_sweep(), model.hidden=x: "),
        ("[{'seed': -1}]", "get_sweep(), seed=-1: config.seed=-1: seed is in "),
        (
            "[{'eval.num_context': (0, 1)}, {'eval.num_context': (0, 2)}]",
            "get_sweep(): eval.num_context must be one, not ",
        ),
        (None, "has no get_sweep(); experiments/synthetic/ablation.py shows one"),
    ],
)
def test_what_is_refused(launch, tmp_path, returned, message):
    """In a line, before anything is begun."""
    text = "from experiments.synthetic.two_types import get_config\n"
    if returned:
        text += f"def get_sweep():\n    return {returned}\n"
    (tmp_path / "mine.py").write_text(text)
    finished = launch(
        "sweep", f"--config={tmp_path}/mine.py", f"--workdir={tmp_path}/out"
    )
    assert finished.code == 2
    assert message in finished.err and finished.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


SWEPT = [
    str(path.relative_to(REPOSITORY).with_suffix("")).replace("/", ".")
    for path in (REPOSITORY / "experiments").rglob("*.py")
    if "def get_sweep(" in path.read_text()
]


@pytest.mark.parametrize("name", SWEPT)
def test_every_run_of_every_sweep_makes_sense(name):
    module = importlib.import_module(name)
    runs = module.get_sweep()
    for fields in runs:
        config = module.get_config()
        config.update_from_flattened_dict(fields)
        resolve(config)
    assert len({str(fields) for fields in runs}) == len(runs)


def test_the_shipped_ablation_is_the_promised_one():
    runs = importlib.import_module(ABLATION).get_sweep()
    values = {name: {fields[name] for fields in runs} for name in runs[0]}
    assert {"objective.name", "model.pooling", "model.latent_dim"} < values.keys()
    assert len(values["seed"]) == 3
    assert min(len(own) for own in values.values()) >= 2


def test_a_real_run(launch, tiny_fields, tmp_path, monkeypatch):
    """One, through launch.train and launch.evaluate."""
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    text = "from experiments.synthetic.two_types import get_config\n"
    text += "def get_sweep():\n    return [{'objective.name': 'deterministic'}]\n"
    (tmp_path / "mine.py").write_text(text)
    finished = launch(
        "sweep",
        f"--config={tmp_path}/mine.py",
        f"--workdir={tmp_path}/out",
        *(f"--config.{name}={value}" for name, value in tiny_fields.items()),
    )
    assert finished.code == 0, finished.err
    (run,) = (tmp_path / "out/runs").iterdir()
    found = json.loads((run / "evaluation.json").read_text())
    config = json.loads((run / "config.json").read_text())
    assert config["objective"]["name"] == "deterministic"
    assert config["train"]["steps"] == tiny_fields["train.steps"]
    shown = f"| deterministic | 1 | {100 * found['accuracy'][0]:.2f} | "
    assert shown in finished.out
