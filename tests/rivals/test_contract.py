"""What every method owes the harness."""

import dataclasses
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import planted
import pytest
from slow import slow_but

from fsa import episodes
from fsa.data.tasks.simulated import TwoTypes
from fsa.evaluation.predictions import FewShotPredictor
from fsa.models import reward_models
from fsa.rivals import methods, results, scoring, shares, simulated_people
from fsa.rivals.learned import Learned
from fsa.rivals.method import TrainingPeople
from fsa.rivals.oracle import Oracle
from fsa.rivals.reward_model import RewardModelMethod

X = np.random.default_rng(0).normal(size=(20, 3))
CONTEXT = planted.choices(X, [1, 2, 3, 4], [5, 6, 7, 8], mask=[True] * 3 + [False])
TARGET = planted.choices(X, [9, 10, 1], [11, 12, 5])


@pytest.fixture(scope="module")
def people():
    """A dozen people with tastes."""
    rewards = np.random.default_rng(1).normal(size=(12, 3)) @ X.T
    data = planted.by_rewards(rewards, X, (6, 3, 3), num_choices=12)
    task = planted.people(data)
    # The arrays are made once, and not while something is traced.
    assert task.constants
    return TrainingPeople(task, (0, 3))


def values_of(method, people):
    """What a method learned, or would begin to learn from."""
    if isinstance(method, Learned):
        return method.finish(method.init(people, jax.random.key(0)))[0]
    return method.fit(people, jax.random.key(0)).values


# The others subtract the rewards of two options, by code that their own tests run.
QUICK = ("popularity", "neighbours", "dpl")
ALL = slow_but(QUICK, methods.NAMES)


@pytest.mark.parametrize("name", ALL)
def test_a_choice_and_its_reverse_have_probabilities_that_sum_to_one(name, people):
    """So nothing can be told from which option stands first."""
    assert_antisymmetric(methods.make(people.task, [name], hidden=8)[name], people)


@pytest.mark.slow
def test_the_example_of_the_docs_is_a_method(people):
    page = pathlib.Path(__file__).resolve().parents[2] / "docs" / "rivals.md"
    (code,) = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    names = {"__name__": __name__}
    exec(compile(code, str(page), "exec"), names)
    method = names["Nobody"](steps=4, batch_size=2, hidden=8)
    assert_antisymmetric(method, people)
    assert np.isfinite(method.fit(people, jax.random.key(0)).valid_nll)


def assert_antisymmetric(method, people):
    def predict(values):
        person = method.adapt(values, CONTEXT)
        return (
            method.predict(values, person, TARGET),
            method.predict(values, person, episodes.reverse(TARGET)),
        )

    if isinstance(method, Learned):
        # As one program, which takes half the time to compile.
        both = jax.jit(lambda: predict(values_of(method, people)))()
    else:
        both = predict(values_of(method, people))
    found, turned = (np.exp(np.float64(x)) for x in both)
    assert found.shape == (3,)
    np.testing.assert_allclose(found + turned, 1.0, atol=1e-4)


def test_methods_that_know_items_are_left_out_where_none_recur(people):
    class Strangers(type(people.task)):
        num_items = 0

    fields = dataclasses.fields(people.task)
    task = Strangers(**{f.name: getattr(people.task, f.name) for f in fields})
    found = methods.make(task)
    assert set(found) == set(methods.NAMES) - set(methods.BY_ITEMS)
    assert set(methods.make(people.task)) == set(methods.NAMES)


@pytest.mark.slow
def test_our_models_are_scored_as_they_are_elsewhere(people):
    """The episodes and the predictions are those of `FewShotPredictor` itself."""
    method = RewardModelMethod(preset="bayes", hidden=8)
    values = values_of(method, people)
    predict = scoring.predictor(method, people.task, "test", (0, 3), diagnose=True)
    own = FewShotPredictor(
        method.model,
        people.task,
        "test",
        num_context=(0, 3),
        episodes_per_user=1,
        num_samples=1,
        deterministic=False,
        key=jax.random.key(0),
    )
    found, expected = predict(values), own(values)
    for name in ("log_prob", "flipped", "mask"):
        np.testing.assert_allclose(
            getattr(found, name), getattr(expected, name), atol=1e-4
        )


@pytest.mark.slow
def test_the_oracle_predicts_as_the_task_does():
    sizes = {"batch_size": 1, "max_context": 3, "num_targets": 4}
    task = TwoTypes(
        **sizes, test_context=3, test_targets=4, num_users={"test": 1}, slope=5.0
    )
    draw = jax.jit(lambda key: task.test_episode((), "test", 0, key).episode)
    episode = draw(jax.random.key(0))
    oracle = Oracle(task)
    found = oracle.predict((), oracle.adapt((), episode.context), episode.target)
    expected, _ = task.bayes_log_prob(episode, jax.random.key(0))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.slow
def test_simulated_people_keep_their_choices_and_have_their_own_items():
    sizes = {"batch_size": 1, "max_context": 1, "num_targets": 1, "test_context": 1}
    task = TwoTypes(**sizes, test_targets=7, num_users={})
    counts = {"train": 40, "valid": 3, "test": 5}
    data = simulated_people.dataset(task, counts, 6, seed=0)
    assert {s: len(t.names) for s, t in data.users.items()} == counts
    items = np.concatenate(
        [x.flat for t in data.users.values() for x in (t.chosen, t.rejected)]
    )
    np.testing.assert_array_equal(np.sort(items), np.arange(len(data.features)))
    table = data.users["train"]
    for user in range(40):
        reward = [
            np.asarray(TwoTypes.reward(data.features[own], table.group[user]))
            for own in (table.chosen[user], table.rejected[user])
        ]
        assert (reward[0] >= reward[1]).all()


def test_smaller_shares_of_people_are_nested(people):
    half, third = (shares.take(people.task, share, 0) for share in (0.5, 1 / 3))
    names = [set(t.data.users["train"].names) for t in (half, third)]
    assert [len(own) for own in names] == [3, 2]
    assert names[1] < names[0]
    assert half.data.users["test"] is people.task.data.users["test"]
    assert shares.take(people.task, 1.0, 0) is people.task


def test_a_measurement_has_everything_that_a_table_needs(people, tmp_path):
    method = methods.make(people.task, ["neighbours"])["neighbours"]
    found = results.measure(method, people, 0, episodes_per_user=1, batches=(1, 4))
    assert found["users"] == list(people.task.data.users["test"].names)
    assert np.shape(found["nll"]) == np.shape(found["right"]) == (3, 2)
    assert found["flips"][0] == 0
    # A weight for each training person, in float32.
    assert found["bytes"] == 6 * 4
    assert set(found["milliseconds"]) == {"1", "4"}
    cell = results.Cell("planted", "neighbours", 0)
    results.write(tmp_path, cell, found)
    [(read_cell, read)] = results.read_all(tmp_path)
    assert read_cell == cell
    assert read["nll"] == found["nll"]


@pytest.mark.slow
def test_reward_models_average_as_their_own_prediction_does(people):
    """NP-BTL draws z; with the same key and number of draws it is the same."""
    method = RewardModelMethod(preset="np-btl", hidden=8, num_samples=6)
    values = values_of(method, people)
    episode = episodes.Episode(CONTEXT, TARGET, jnp.int32(0))
    expected = reward_models.predict(
        method.model, values, episode, jax.random.key(0), num_samples=6
    )
    found = method.predict(values, method.adapt(values, CONTEXT), TARGET)
    np.testing.assert_allclose(found, expected, atol=1e-5)
