"""The sweep command, with stand-ins for the programs that train and score.

What a sweep does is tested in tests/sweeps.
"""

import importlib
import json
import signal
import sys

import pytest
import stand_ins
from stand_ins import REPOSITORY

from fsa.recipes.config import resolve
from fsa.sweeps import plan

ABLATION = "experiments.synthetic.ablation"
EXPERIMENT = """
from fsa.recipes.presets import grid
from experiments.synthetic.two_types import get_config

def get_sweep():
    return grid(**{"model.hidden": (7, 9), "seed": (0, 1)})
"""


@pytest.fixture(autouse=True)
def sigterm():
    """A sweep in this process leaves no handler behind."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def sweep(launch, tmp_path):
    """`sweep(text, *flags)` runs the command with an experiment file of this text."""

    def run(experiment, *flags):
        (tmp_path / "mine.py").write_text(experiment)
        return launch(
            "sweep",
            f"--config={tmp_path}/mine.py",
            f"--workdir={tmp_path}/out",
            *flags,
        )

    return run


def test_an_experiment_that_raises_or_misspells_a_field(sweep):
    for text, named in {
        "    return 1 / 0\n": "mine.py, line 6: ZeroDivisionError",
        "    return [{'model.hiden': 3}]\n": "did you mean model.hidden?",
    }.items():
        finished = sweep(EXPERIMENT.rpartition("    return")[0] + text)
        assert finished.code == 2 and finished.err.count("\n") == 1
        assert named in finished.err


def test_options_of_slurm_without_slurm(sweep):
    finished = sweep(EXPERIMENT, "--slurm=time=60")
    assert finished.code == 2 and "--slurm" in finished.err


def test_a_folder_of_something_else_is_left_alone(sweep, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "store.json").write_text("{}")
    finished = sweep(EXPERIMENT)
    assert finished.code == 2 and "--workdir" in finished.err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["store.json"]


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """Puts stand-ins in place of training and scoring; lists what they replace."""
    stand_ins.write(tmp_path)
    replaced, make_jobs = [], plan.make_jobs

    def with_stand_ins(runs, folder, **programs):
        replaced.extend(make_jobs(runs, folder, **programs))
        return make_jobs(runs, folder, **stand_ins.programs(tmp_path))

    monkeypatch.setattr(plan, "make_jobs", with_stand_ins)
    return replaced


def test_a_sweep_with_a_failed_run(sweep, commands, tmp_path):
    """It exits with 1, does the others, and the same again goes on."""
    shared = "--config.train.steps=500"
    finished = sweep(EXPERIMENT, shared, "--at_once=2")
    assert finished.code == 1
    shown = finished.out + finished.err
    assert "failed: model.hidden=7,seed=0: " in shown
    rows = [line.split() for line in finished.out.splitlines()]
    assert ["7", "0", "of", "2"] in rows and ["9", "2", "50.00"] in [
        r[:3] for r in rows
    ]
    train, evaluate = commands[0].commands
    assert train[1:5] == ("-P", "-m", "fsa", "train")
    assert evaluate[1:5] == ("-P", "-m", "fsa", "evaluate")
    assert {f"--config={tmp_path}/mine.py", shared} < {*train}
    # As an older version wrote it.
    written = json.loads((tmp_path / "out/config.json").read_text())
    del written["config"]["kind"]
    (tmp_path / "out/config.json").write_text(json.dumps(written))
    again = sweep(EXPERIMENT, shared)
    assert again.code == 1
    trained = [run for what, run in stand_ins.notes(tmp_path) if what == "trained"]
    assert sorted(trained) == ["model.hidden=9,seed=0", "model.hidden=9,seed=1"]
    # The folder is that of one sweep.
    changed = sweep(EXPERIMENT.replace("(0, 1)}", "(0, 2)}"), shared)
    assert changed.code == 2 and "seed=1" in changed.err


@pytest.mark.parametrize(
    ("returned", "named"),
    [
        ("[]", ["get_sweep"]),
        ("[{'model.hiden': 8}]", ["model.hiden=8"]),
        ("[{'model.hidden': 'x'}]", ["model.hidden=x"]),
        ("[{'seed': -1}]", ["seed=-1", "config.seed"]),
        (
            "[{'eval.num_context': (0, 1)}, {'eval.num_context': (0, 2)}]",
            ["eval.num_context"],
        ),
    ],
)
def test_what_is_refused(sweep, tmp_path, returned, named):
    """In a line, before anything is begun."""
    text = "from experiments.synthetic.two_types import get_config\n"
    finished = sweep(f"{text}def get_sweep():\n    return {returned}\n")
    assert finished.code == 2
    assert all(name in finished.err for name in named)
    assert finished.err.count("\n") == 1
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


REAL = """
from experiments.synthetic.two_types import get_config

def get_sweep():
    return [{"objective.name": "deterministic", "seed": 1}]
"""


def assert_scored(run, shown, fields):
    found = json.loads((run / "evaluation.json").read_text())
    config = json.loads((run / "config.json").read_text())
    assert config["objective"]["name"] == "deterministic" and config["seed"] == 1
    assert config["train"]["steps"] == fields["train.steps"]
    row = ["deterministic", "1", f"{100 * found['accuracy'][0]:.2f}"]
    assert row in [line.split()[:3] for line in shown.splitlines()]


@pytest.mark.slow
def test_real_programs_take_the_commands(
    sweep, commands, launch, tiny_fields, quick_compile
):
    """What the stand-ins replaced trains and scores; the sweep then has the scores."""
    given = [f"--config.{name}={value}" for name, value in tiny_fields.items()]
    assert sweep(REAL, *given).code == 0
    (job,) = commands
    for file in job.folder.iterdir():  # What the stand-ins wrote.
        file.unlink()
    for command in job.commands:
        assert command[:4] == (sys.executable, "-P", "-m", "fsa")
        finished = launch(*command[4:])
        assert finished.code == 0, finished.err
    job.finish()
    assert_scored(job.folder, sweep(REAL, *given).out, tiny_fields)


@pytest.mark.slow
def test_a_real_run(sweep, tiny_fields, tmp_path, monkeypatch):
    """One, in processes of its own."""
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    given = [f"--config.{name}={value}" for name, value in tiny_fields.items()]
    finished = sweep(REAL, *given)
    assert finished.code == 0, finished.err
    (run,) = (tmp_path / "out/runs").iterdir()
    assert_scored(run, finished.out, tiny_fields)
