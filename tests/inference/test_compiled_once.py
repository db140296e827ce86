"""A second call with other numbers of choices, options, prompts or tokens runs at once.

Nothing is compiled for it, since arrays are padded to a few sizes.
"""

import dataclasses

import jax
import numpy as np
import policies
import pytest
from compiling import compilations

from fsa.episodes import Choices, Episode, Options
from fsa.inference.ranker import Ranker
from fsa.models.reward import RewardModel

pytestmark = pytest.mark.usefixtures("quick_compile")

F = 3


@pytest.fixture(scope="module")
def ranker():
    model = RewardModel(hidden=4, latent_dim=2)
    none = Options(np.zeros((1, F), np.float32), np.full(1, -1, np.int32))
    choices = Choices(none, none, np.ones(1, bool))
    episode = Episode(choices, choices, np.int32(0))
    variables = model.init(jax.random.key(0), episode)
    return Ranker(model, variables, deterministic=False, num_samples=3)


def vectors(count):
    return np.random.default_rng(count).normal(size=(count, F)).astype(np.float32)


def test_ranking_compiles_once(ranker):
    def rank(num_options, num_choices):
        context = dict(chosen=vectors(num_choices), rejected=-vectors(num_choices))
        ranker.posterior(**context)
        return ranker.rank(vectors(num_options), **context)

    with compilations() as first:
        rank(3, 1)
    with compilations() as others:
        for sizes in [(2, 0), (5, 4), (9, 13), (16, 16)]:
            assert len(rank(*sizes).probability) == sizes[0]
    assert first and not others


@pytest.fixture(scope="module")
def steerer(language_folder):
    # There is a program for each bucket.
    made = policies.make_steerer(language_folder)
    language = dataclasses.replace(made.language, examples_at_once=64)
    return dataclasses.replace(made, language=language, buckets=made.buckets[-1:])


CHOICES = [
    ("review the novel :", "it looks totally great .", "it remains great ."),
    ("assess", "it feels super clumsy !", "it appears clumsy ."),
    ("judge the park :", "this sounds notably strong !", "it appears strong ."),
]


@pytest.mark.slow
def test_writing_compiles_once(steerer):
    def write(prompts, choices, **options):
        z = steerer.latent(choices)
        steerer.write(prompts, None, **options)
        return steerer.write(prompts, np.stack([z] * len(prompts)), **options).texts

    with compilations() as first:
        write(["assess"], CHOICES[:1], max_new_tokens=3)
    with compilations() as others:
        prompts = ["review the novel :", "assess", "judge the park :"]
        assert len(write(prompts, CHOICES, max_new_tokens=9)) == 3
        write(prompts * 2, CHOICES[:2], max_new_tokens=5)
    assert first and not others


def test_a_text_has_no_more_tokens_than_asked_for(steerer):
    """Though the program could write more, and the first tokens are the same."""
    prompts = ["assess", "review the novel :"]
    long = steerer.write(prompts, None, max_new_tokens=12, seed=1).table
    short = steerer.write(prompts, None, max_new_tokens=5, seed=1).table
    for item in range(len(prompts)):
        start = short.start[item]
        assert len(short[item]) - start <= 5
        np.testing.assert_array_equal(short[item], long[item][: len(short[item])])
    assert max(long.length - long.start) > 5
