"""Sentences of made-up evaluations: their numbers, and whether choices help."""

import re

import numpy as np
import pytest
from made_up import evaluation, generated, of_everybody, without_latent

from fsa.evaluation import headline, report


def numbers(text):
    return re.findall(r"\d+(?:\.\d+)?", text)


@pytest.mark.parametrize(
    ("changes", "answer"),
    [
        ({}, headline.HELP),
        ({"gain_ci": [[0, 0], [0, 0], [1e-6, 0.1]]}, headline.HELP),
        ({"gain_ci": [[0, 0], [0.1, 0.2], [-0.01, 0.1]]}, headline.NOT_SHOWN),
        ({"gain_ci": [[0, 0], [0, 0], [-0.2, -0.1]]}, headline.HARM),
        ({"gain_ci": [[np.nan] * 2] * 3}, headline.NOT_SHOWN),
        ({"nll": [0.48, 0.48, 0.48]}, headline.UNUSED),
    ],
)
def test_whether_choices_help(changes, answer):
    assert headline.answer(evaluation(**changes)) == answer


def test_what_is_said_differs_with_the_answer():
    """And never claims that choices help where it is not so."""
    made = [
        evaluation(),
        evaluation(gain_ci=[[0, 0], [0, 0], [-0.1, 0.1]]),
        evaluation(gain_ci=[[0, 0], [0, 0], [-0.2, -0.1]]),
        evaluation(nll=[0.48, 0.48, 0.48]),
    ]
    said = [headline.sentences(one)[0] for one in made]
    assert len({re.sub(r"[\d.]+", "", line) for line in said}) == 4


def test_numbers_are_those_of_the_table():
    first, second, third = headline.sentences(evaluation())
    # (95.3 - 75.1) * 3 / 4 is more than one choice brings, so only the ends are told.
    assert numbers(first) == ["75.1", "3", "95.3"]
    assert numbers(second) == ["37", "20.2", "95", "19.2", "21.2", "3", "96.9", "50"]
    assert numbers(third) == ["3", "83.0", "0"]
    table = report.table(evaluation())
    assert {"75.1", "95.3", "96.9"} <= set(numbers(table))


@pytest.mark.parametrize(
    ("accuracy", "index"),
    [
        ([0.5, 0.6, 0.61], 1),
        ([0.5, 0.51, 0.6], 2),
        ([0.5, 0.9, 0.6], 1),
        ([0.5, 0.58, 0.6], 1),
        ([0.6, 0.5, 0.4], 0),
    ],
)
def test_the_fewest_choices_that_bring_most(accuracy, index):
    assert headline.fewest(accuracy) == index


def test_the_fewest_choices_are_told():
    made = evaluation(accuracy=[0.491, 0.862, 0.913])
    first = headline.sentences(made)[0]
    assert numbers(first) == ["49.1", "1", "86.2", "3", "91.3"]


def test_a_model_without_latent():
    made = without_latent(accuracy=[0.75] * 3, nll=[0.48] * 3, gain=[0.0] * 3)
    lines = headline.sentences(made)
    assert numbers(" ".join(lines)) == ["75.0", "50"]


def test_one_context_size_and_one_person():
    """There is nothing to compare, and no interval."""
    one = {
        key: [evaluation()[key][-1]]
        for key in ("n_context", "accuracy", "gain", "gain_ci", "nll")
    }
    lines = headline.sentences(without_latent(**one))
    assert numbers(" ".join(lines)) == ["3", "95.3", "50"]
    alone = without_latent(users=1, gain_ci=[[np.nan] * 2] * 3)
    assert "nan" not in " ".join(headline.sentences(alone))


def test_the_worst_and_the_best_group():
    groups = {
        name: {"users": 5, "accuracy": [0.5, 0.5, last]}
        for name, last in (("b", 0.7), ("a", 0.9), ("c", 0.8))
    }
    last = headline.sentences(evaluation(groups=groups))[-1]
    assert numbers(last) == ["3", "70.0", "90.0", "3"]


def test_the_probe_is_named_where_it_could_tell_more():
    """For real people whose choices did not help; BTL has no use for choices."""
    real = {"ceiling_accuracy": None, "ceiling_nll": None}
    no_gain = {"gain_ci": [[0, 0], [0, 0], [-0.1, 0.1]]}
    equal = {"nll": [0.48] * 3}
    for made, named in (
        (evaluation(**real, **no_gain), True),
        (evaluation(**real, **equal), True),
        (evaluation(**real), False),
        (evaluation(**no_gain), False),
        (without_latent(**equal), False),
    ):
        assert ("fsa probe" in headline.sentences(made)[0]) == named


def test_texts():
    """The ranges over groups at the largest n, at the smallest, and of the model."""
    told = headline.on_texts(generated())
    said = numbers(told)
    assert said == ["3", "52.0", "62.0", "50.0", "60.0", "50.3", "60.3", "40.1"]
    # Each share is beside the name of its group.
    assert re.search(r"52\.0%[^%]* formal.*62\.0%[^%]* casual", told)
    assert numbers(headline.on_texts(of_everybody())) == ["3", "15.0", "4.0"]
