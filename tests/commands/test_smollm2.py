"""The experiment on SmolLM2: its variants, and the prompts it comes with."""

import collections
import itertools
import pathlib
import re

import pytest

from experiments.policy import smollm2
from fsa.data.sources.attributes import ATTRIBUTES
from fsa.data.sources.prompts import read_prompts
from fsa.recipes.config import resolve
from fsa.recipes.presets import POLICIES
from fsa.recipes.responses import FEATURE_FIELDS
from fsa.training.run_directory import flatten

PROMPTS = pathlib.Path(smollm2.__file__).with_name("prompts.jsonl")


@pytest.mark.parametrize("size", ["", "-tiny"])
@pytest.mark.parametrize(
    ("attribute", "policy"), list(itertools.product(smollm2.ATTRIBUTES, POLICIES))
)
def test_variants_build(attribute, policy, size):
    config = resolve(smollm2.get_config(f"{attribute}-{policy}{size}"))
    assert attribute in ATTRIBUTES and config["eval"]["attribute"] == attribute
    assert config["policy"]["latent"] == POLICIES[policy]
    assert config["task"]["path"] == f"data/smollm2/{attribute}{size}"
    # Whatever may be kept of a prompt and its answer has a place.
    task = config["task"]
    assert task["max_prompt"] + task["max_response"] <= max(task["buckets"])


@pytest.mark.parametrize("stage", [*smollm2.PEOPLE, *smollm2.CROWD])
def test_stages_build(stage):
    config = resolve(smollm2.get_config(stage))
    task = config["task"]
    assert task["max_prompt"] + task["max_response"] <= max(task["buckets"])


@pytest.mark.parametrize("names", [smollm2.PEOPLE, tuple(smollm2.CROWD)])
def test_stages_read_the_same_features(names):
    first, *others = (flatten(resolve(smollm2.get_config(name))) for name in names)
    for other in others:
        for name in (*FEATURE_FIELDS, "task.path", "language_model.path"):
            assert first[name] == other[name]


def test_short_names():
    assert smollm2.get_config("np-dpo") == smollm2.get_config()
    assert smollm2.get_config("tiny") == smollm2.get_config("words-np-dpo-tiny")


@pytest.mark.parametrize(
    "name", ["", "words", "mood-np-dpo", "words-ppo", "reward-tiny"]
)
def test_other_variants_are_refused(name):
    with pytest.raises(ValueError, match=re.escape(repr(name))):
        smollm2.get_config(name)


def test_prompts_fill_the_episodes_of_every_split():
    splits = read_prompts(str(PROMPTS), seed=0)
    counts = collections.Counter(splits.values())
    assert counts == {"train": 180, "valid": 20, "test": 40}
    largest = max(smollm2.get_config().eval.num_context)
    assert counts["valid"] > largest
    assert counts["test"] >= largest + smollm2.get_config().eval.num_targets
