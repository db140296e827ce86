"""Runs of an older version are evaluated, used and resumed, with the same figures.

`tests/old_runs/make.sh` made them with the first version that wrote such runs. What
that version found lies beside them.
"""

import contextlib
import json
import pathlib
import shutil
import tarfile

import chex
import jax
import numpy as np
import pytest

from fsa.data import dataset
from fsa.inference.saved_model import KINDS
from fsa.recipes import config as configs
from fsa.training.checkpoint import TRAINING, VARIABLES, Checkpoints

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
RUNS = REPOSITORY / "tests" / "old_runs" / "runs.tar.xz"
pytestmark = pytest.mark.usefixtures("quick_compile")

LAST_STEP = 8


@pytest.fixture(scope="module")
def old(tmp_path_factory):
    """A folder with the runs, their data and what was found; not to be changed."""
    folder = tmp_path_factory.mktemp("old")
    with tarfile.open(RUNS) as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture
def copy(old, tmp_path):
    """A copy of that folder, which is the current directory."""
    folder = tmp_path / "copy"
    shutil.copytree(old, folder)
    with contextlib.chdir(folder):
        yield folder


@pytest.fixture
def command(launch, copy):
    """Runs a command line in the copy; returns what it printed."""

    def run(name, *arguments):
        finished = launch(name, *arguments, folder=copy)
        assert finished.code == 0, finished.err
        return finished.out

    return run


def read_rows(path):
    """The objects in a .jsonl file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def assert_close(found, expected):
    """Asserts that two JSON values agree, numbers to what floating point allows."""
    if isinstance(expected, dict):
        assert expected.keys() <= found.keys()
        for key, value in expected.items():
            assert_close(found[key], value)
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for pair in zip(found, expected, strict=True):
            assert_close(*pair)
    elif isinstance(expected, float):
        np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-5)
    else:
        assert found == expected


@pytest.mark.parametrize("kind", KINDS)
def test_configs_are_upgraded_to_valid_ones(old, kind):
    config = configs.read(old / "runs" / kind)
    configs.check(config, num_devices=1)
    assert config["kind"] == kind


@pytest.mark.parametrize(
    "kind", ["reward_model", pytest.param("policy", marks=pytest.mark.slow)]
)
def test_evaluation(command, copy, kind):
    path = copy / "runs" / kind / "evaluation.json"
    expected = json.loads(path.read_text())
    path.unlink()
    scored = sorted(copy.glob("data/*/responses-*"))
    command("evaluate", f"--workdir=runs/{kind}")
    assert_close(json.loads(path.read_text()), expected)
    # What the language model was asked before is not asked again.
    assert sorted(copy.glob("data/*/responses-*")) == scored


@pytest.mark.slow
def test_a_run_of_a_large_mesh_is_evaluated_on_one_device(command, copy):
    path = copy / "runs" / "reward_model" / "config.json"
    config = json.loads(path.read_text())
    config["mesh"]["fsdp"] = 4
    path.write_text(json.dumps(config))
    assert "accuracy" in command("evaluate", "--workdir=runs/reward_model")


def test_prediction(command, copy):
    command(
        "predict",
        "--workdir=runs/reward_model",
        "--context=context.jsonl",
        "--options=options.jsonl",
        "--out=found.jsonl",
    )
    found, expected = (read_rows(copy / f"{n}.jsonl") for n in ("found", "predicted"))
    assert_close(found, expected)


def test_steering(command, copy):
    command(
        "steer",
        "--workdir=runs/policy",
        "--context=person.jsonl",
        "--prompts=prompts.jsonl",
        "--max_new_tokens=9",
        "--out=found.jsonl",
    )
    assert read_rows(copy / "found.jsonl") == read_rows(copy / "steered.jsonl")


def test_a_run_that_has_not_recorded_its_data_warns_once(launch, copy):
    """The data that are there are its own from then on."""
    line = "--workdir=runs/reward_model", "--options=options.jsonl"
    for warned in (True, False):
        finished = launch("predict", *line, folder=copy)
        assert finished.code == 0
        assert ("runs/reward_model" in finished.err) == warned
    data = copy / "data" / "people"
    found = dataset.load(data)
    dataset.write_features(data, found.features + 1, found.embedding)
    finished = launch("predict", *line, folder=copy)
    assert finished.code == 2 and "vectors" in finished.err


@pytest.mark.parametrize(
    ("line", "fit"),
    [
        (("predict", "--workdir=runs/policy", "--options=options.jsonl"), "fsa steer"),
        (
            ("steer", "--workdir=runs/reward_model", "--prompts=prompts.jsonl"),
            "fsa predict",
        ),
        (("evaluate", "--workdir=runs/language_model"), "fsa sample"),
    ],
)
def test_another_kind_of_run_is_told_its_command(launch, copy, line, fit):
    finished = launch(*line, folder=copy)
    assert finished.code == 2 and fit in finished.err


def test_sampling(command, copy):
    command(
        "sample",
        "--model=runs/language_model/model",
        "--prompts=corpus",
        "--separator= ",
        "--num_samples=4",
        "--max_new_tokens=9",
        "--out=found.jsonl",
    )
    assert read_rows(copy / "found.jsonl") == read_rows(copy / "samples.jsonl")


def flags_of(run_dir):
    """Returns the flags that trained a run, with the experiments of this version."""
    flags = json.loads((run_dir / "run.json").read_text())["command"][1:]
    return [flag.replace("--config=", f"--config={REPOSITORY}/") for flag in flags]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_resumption(command, copy, kind):
    """A run that lost its last checkpoint ends with the parameters that it had."""
    run_dir = copy / "runs" / kind
    steps = run_dir / "checkpoints"
    expected = restored(steps, LAST_STEP)
    shutil.rmtree(steps / str(LAST_STEP))
    command("train", *flags_of(run_dir))
    found = restored(steps, LAST_STEP)
    chex.assert_trees_all_close(found, expected, rtol=1e-4, atol=1e-5)
    # Their decay in these steps, which this version spares new runs, is 5e-5.
    chex.assert_trees_all_close(
        stacked_scales(found), stacked_scales(expected), rtol=0, atol=2e-6
    )
    losses = {}
    for row in read_rows(run_dir / "metrics.jsonl"):
        assert losses.setdefault((row["step"], row["split"]), row) is row
    assert len(losses) == 6


@pytest.mark.slow
def test_a_new_run_spares_the_scales_of_stacked_norms(command, copy):
    """And it goes on to do so when it is resumed."""
    run_dir = copy / "runs" / "language_model"
    steps, flags = run_dir / "checkpoints", flags_of(run_dir)
    decayed = stacked_scales(restored(steps, LAST_STEP))
    shutil.rmtree(steps)
    command("train", *flags)
    once = stacked_scales(restored(steps, LAST_STEP))
    assert len(once) == 2
    for name in once:
        assert (once[name] - decayed[name]).min() > 2e-5
    shutil.rmtree(steps / str(LAST_STEP))
    command("train", *flags)
    chex.assert_trees_all_equal(stacked_scales(restored(steps, LAST_STEP)), once)


@pytest.mark.slow
def test_another_config_is_refused(launch, copy):
    """The fields that older runs lack or name otherwise are not among what differs."""
    run_dir = copy / "runs" / "reward_model"
    flags = [*flags_of(run_dir), "--config.model.hidden=16"]
    finished = launch("train", *flags, folder=copy)
    assert finished.code == 2
    assert "model.hidden" in finished.err
    assert "ratings" not in finished.err and "kind" not in finished.err


def stacked_scales(items):
    """The scales of the norms of a language model's layers, by path."""
    return {
        jax.tree_util.keystr(path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(items[TRAINING]["params"])
        if "'layers'" in jax.tree_util.keystr(path) and "scale" in str(path[-1])
    }


def restored(steps, step):
    """The arrays of a checkpoint."""
    with contextlib.closing(Checkpoints(steps, read_only=True)) as checkpoints:
        assert checkpoints.latest_step == step
        like = {name: checkpoints.shapes(step, name) for name in (VARIABLES, TRAINING)}
        return jax.device_get(checkpoints.restore(step, like))
