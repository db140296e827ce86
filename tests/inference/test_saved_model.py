"""Descriptions of trained models, saved with checkpoints and read again."""

import contextlib
import itertools
import json
import shutil

import chex
import numpy as np
import policies
import pytest

from fsa.errors import InputError
from fsa.inference import saved_model
from fsa.inference.saved_model import KINDS, LANGUAGE_MODEL, POLICY, REWARD_MODEL
from fsa.models.policy import Policy
from fsa.models.reward import RewardModel
from fsa.training.checkpoint import TRAINING, VARIABLES, Checkpoints

CONFIG = {
    "language_model": {"path": "gs://bucket/model", "digest": "x", "dtype": "float32"},
    "task": {"pooling": "mean", "buckets": (12, 20)},
}
MODEL = {"hidden": 4, "latent_dim": 2}
ARGUMENTS = {"modulations": (("mlp/down", "scale"),), "trunk": (8,), "latent": "none"}
DESCRIPTIONS = {
    REWARD_MODEL: saved_model.describe_reward_model(CONFIG, MODEL, deterministic=True),
    POLICY: saved_model.describe_policy(
        CONFIG,
        model=MODEL,
        policy=ARGUMENTS,
        tokenization={"separator": " "},
        groups=("a", "b"),
    ),
    LANGUAGE_MODEL: saved_model.describe_language_model(CONFIG),
}
# The fields of descriptions that were written before the field `kind`.
OLDER = {
    REWARD_MODEL: {"config", "model", "deterministic"},
    POLICY: {
        *("config", "model", "policy", "language_model", "tokenization"),
        *("pooling", "buckets", "groups"),
    },
    LANGUAGE_MODEL: {"config"},
}


def variables(step):
    return {"params": {"w": np.full((2, 3), step, np.float32)}}


def save(workdir, description):
    """Three steps, of which the second is the best."""
    with contextlib.closing(Checkpoints(workdir / "checkpoints")) as checkpoints:
        for step, score in ((1, 0.5), (2, 0.25), (3, 0.75)):
            items = {VARIABLES: variables(step), TRAINING: {"step": np.int32(step)}}
            meta = {**description, "step": step}
            checkpoints.save(step, items, score=score, meta=meta)


@pytest.fixture(scope="module")
def workdirs(tmp_path_factory):
    """Run directories by kind, and of older runs by (kind, "older")."""
    found = {}
    for kind, description in DESCRIPTIONS.items():
        described = {**description, "language_model": CONFIG["language_model"]}
        older = {name: described[name] for name in OLDER[kind]}
        for key, content in ((kind, description), ((kind, "older"), older)):
            found[key] = tmp_path_factory.mktemp("run")
            save(found[key], content)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_the_best_checkpoint_is_read_with_its_description(workdirs, kind):
    with saved_model.open_best(workdirs[kind], kind) as (description, restore):
        expected = {**DESCRIPTIONS[kind], "step": 2}
        origin = description.pop("origin")
        assert description == json.loads(json.dumps(expected))
        assert origin["step"] == 2
        assert origin["language_model"] == "x"
        chex.assert_trees_all_equal(restore(), variables(2))
        like = {"params": {"w": np.zeros((2, 3), np.float32)}}
        chex.assert_trees_all_equal(restore(like), variables(2))


@pytest.mark.parametrize("kind", KINDS)
def test_older_descriptions_are_recognised_by_their_fields(workdirs, kind):
    with saved_model.open_best(workdirs[kind, "older"], kind) as (description, _):
        assert description.keys() == OLDER[kind] | {"step", "origin", "kind"}
        assert description["kind"] == kind


def test_checkpoints_have_names_of_their_own(workdirs):
    found = set()
    for kind in KINDS:
        with saved_model.open_best(workdirs[kind], kind) as (description, _):
            found.add(description["origin"]["checkpoint"])
    assert len(found) == len(KINDS)


@pytest.mark.parametrize(("kind", "wanted"), [*itertools.permutations(KINDS, 2)])
def test_another_kind_is_refused(workdirs, kind, wanted):
    for key in (kind, (kind, "older")):
        workdir = workdirs[key]
        with (
            pytest.raises(InputError, match=str(workdir)),
            saved_model.open_best(workdir, wanted),
        ):
            pass


def test_a_folder_without_checkpoints_is_refused(tmp_path):
    with (
        pytest.raises(InputError, match=str(tmp_path)),
        saved_model.open_best(tmp_path, POLICY),
    ):
        pass


def test_a_step_that_a_training_deletes_while_it_is_read(tmp_path):
    """The best step there is now is read instead."""
    save(tmp_path, DESCRIPTIONS[REWARD_MODEL])

    @saved_model.look_again
    def load():
        with saved_model.open_best(tmp_path, REWARD_MODEL) as (description, restore):
            shutil.rmtree(tmp_path / "checkpoints" / "2", ignore_errors=True)
            return description["origin"]["step"], restore()

    step, found = load()
    assert step == 3
    chex.assert_trees_all_equal(found, variables(3))


def test_a_policy_is_built_from_its_description():
    """As from JSON, which has no tuples."""
    description = json.loads(json.dumps(DESCRIPTIONS[POLICY]))
    language_model, _ = policies.language_model()
    expected = Policy(language_model, RewardModel(**MODEL), **ARGUMENTS)
    assert saved_model.make_policy(description, language_model) == expected
