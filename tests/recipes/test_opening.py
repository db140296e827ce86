"""The first screen of a training: what is trained on what, and where it goes."""

import pytest
from etils import epath

from experiments import choices
from experiments.policy import corpus
from experiments.synthetic import two_types
from fsa.recipes.config import resolve
from fsa.recipes.opening import opening

RUN_DIR = epath.Path("runs/mine")


def with_data(config):
    config.task.path = "data/mine"
    return config


def policy():
    config = with_data(corpus.get_config("np-dpo"))
    config.language_model.path = "models/small"
    return config


@pytest.mark.parametrize(
    ("made", "names"),
    [
        (two_types.get_config, ["reward model", "two_types"]),
        (lambda: with_data(choices.get_config("np-btl")), ["reward", "data/mine"]),
        (policy, ["policy", "data/mine", "models/small"]),
        (lambda: corpus.get_config("language"), ["language model", "sequences"]),
    ],
)
def test_it_names_what_is_trained_on_what(made, names):
    config = made()
    config.train.steps = 12_000
    text = opening(resolve(config), RUN_DIR, 0)
    for name in [*names, "12,000", "runs/mine", "cpu"]:
        assert name in text
    assert len(text.splitlines()) <= 8 and max(map(len, text.splitlines())) <= 80


def test_it_tells_whether_the_run_resumes():
    config = resolve(two_types.get_config())
    first, again = opening(config, RUN_DIR, 0), opening(config, RUN_DIR, 500)
    assert first.splitlines()[0] != again.splitlines()[0]
    assert first.splitlines()[1:] == again.splitlines()[1:]
