"""`fsa predict` for a person who tells more than choices."""

import contextlib
import json

import jax
import numpy as np
import pytest

from fsa.data.files import write_jsonl
from fsa.episodes import Choices, Episode, Options
from fsa.inference import saved_model
from fsa.inference.ranker import Ranker
from fsa.models import reward_models
from fsa.training.checkpoint import VARIABLES, Checkpoints

pytestmark = pytest.mark.usefixtures("quick_compile")

A = np.random.default_rng(1).normal(size=(9, 3)).round(3).tolist()
ROWS = [
    {"chosen": A[0], "rejected": A[1]},
    {"chosen": A[0], "rejected": A[0]},
    {"liked": A[2]},
    {"item": A[3], "value": 3},
    {"chosen": A[4], "rejected": A[5], "tie": True},
    {"disliked": A[6]},
]
TOLD = dict(
    chosen=[A[0]],
    rejected=[A[1]],
    liked=[A[2]],
    rated=[(A[3], 3)],
    tied=[(A[4], A[5])],
    disliked=[A[6]],
)


@pytest.fixture(scope="module")
def run(tmp_path_factory, quick_compile):
    """The run directory of a model that was, as it were, trained on ratings."""
    path = tmp_path_factory.mktemp("run")
    arguments = dict(hidden=8, latent_dim=2, context="ratings", levels=(1, 2, 3))
    arguments["conditioning"] = "linear"
    model = reward_models.make(arguments)
    options = Options(np.zeros((1, 3), np.float32), np.full(1, -1, np.int32))
    choices = Choices(options, options, np.ones(1, bool))
    episode = Episode(choices, choices, np.int32(0))
    variables = jax.jit(model.init)(jax.random.key(0), episode)
    description = saved_model.describe_reward_model({}, arguments, deterministic=False)
    with contextlib.closing(Checkpoints(path / "checkpoints")) as checkpoints:
        checkpoints.save(1, {VARIABLES: variables}, score=0.0, meta=description)
    return path


def predict(launch, run, folder, rows):
    context, options = folder / "context.jsonl", folder / "options.jsonl"
    write_jsonl(context, rows)
    write_jsonl(options, [{"option": A[7]}, {"option": A[8]}])
    return launch(
        "predict",
        f"--workdir={run}",
        f"--context={context}",
        f"--options={options}",
        f"--out={folder / 'ranking.jsonl'}",
    )


def test_all_kinds_are_read_from_one_table(run, tmp_path, launch):
    finished = predict(launch, run, tmp_path, ROWS)
    assert finished.code == 0, finished.err
    assert "1 like" in finished.out and "1 of 6" in finished.out
    found = [json.loads(line) for line in (tmp_path / "ranking.jsonl").open()]
    wanted = Ranker.load(run).rank([A[7], A[8]], **TOLD).rows()
    for row, other in zip(found, wanted, strict=True):
        assert row.pop("option") == other.pop("option")
        assert row == pytest.approx(other)
        assert row["reward_low"] < row["reward"] < row["reward_high"]


@pytest.mark.parametrize(
    ("row", "named"),
    [
        ({"item": A[0], "value": 4}, "row 7: value: its rating 4.0 is none of 1, 2, 3"),
        ({"item": A[0][:2], "value": 3}, "row 7: item: has shape"),
        ({"liked": A[0][:2]}, "row 7: liked: has shape"),
        ({"chosen": A[0], "rejected": "tea", "tie": True}, "row 7: rejected: 'tea'"),
        ({"chosen": "tea", "rejected": A[0], "tie": True}, "row 7: chosen: 'tea'"),
        ({"liked": A[0], "disliked": A[1]}, "row 7: liked and disliked are both"),
    ],
)
def test_bad_rows_are_named(run, tmp_path, launch, row, named):
    finished = predict(launch, run, tmp_path, [*ROWS, row])
    assert finished.code == 2 and "Traceback" not in finished.err
    assert f"{tmp_path / 'context.jsonl'}, {named}" in finished.err
