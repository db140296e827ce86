"""Methods of writing for a user, with stand-ins for the models."""

import json

import numpy as np
import pytest
from test_generated_texts import some_task

from fsa.evaluation.methods import (
    Between,
    InContext,
    Partway,
    Reranked,
    contexts_after,
    with_examples,
)
from fsa.language.language_model import Written
from fsa.language.token_table import TokenTable
from fsa.language.tokenization import Tokenization


class Tokenizer:
    """As much of a tokenizer as `with_examples` looks at."""

    def __init__(self, chat_template=None):
        self.chat_template = chat_template


EXAMPLES = [("ask", "one"), ('[{"role": "system", "content": "be"}]', "two")]


def test_examples_are_lines_of_text():
    tokenization = Tokenization(Tokenizer(), separator=" ")
    found = with_examples(tokenization, EXAMPLES[:1] * 2, "again")
    assert found == "ask one\nask one\nagain"
    assert with_examples(tokenization, [], "again") == "again"


def test_examples_are_turns_of_a_chat():
    found = json.loads(with_examples(Tokenization(Tokenizer("x")), EXAMPLES, "again"))
    assert [(turn["role"], turn["content"]) for turn in found] == [
        ("user", "ask"),
        ("assistant", "one"),
        ("system", "be"),
        ("assistant", "two"),
        ("user", "again"),
    ]


def test_contexts_are_prefixes():
    task = some_task()
    users = task.users("test")
    none, group = contexts_after(task, users, 0)
    one, _ = contexts_after(task, users, 1)
    assert none.mask.sum() == 0
    np.testing.assert_array_equal(one.mask.sum(1), 1)
    assert one.mask[:, 0].all()
    np.testing.assert_array_equal(group, task.data.users["test"].group[users])


class Rewarding:
    """Stands in for a `Steerer` whose reward is a word's number times the latent."""

    def __init__(self):
        self.language = self

    def latents(self, contexts, groups):
        return np.where(groups, 1.0, -1.0)[:, None]

    def write(self, prompts, **options):
        numbers = np.random.default_rng(options["seed"]).permutation(len(prompts))
        table = TokenTable.of([([1, int(n) + 2], 1) for n in numbers])
        return Written([str(n) for n in numbers], table)

    def features(self, table):
        return np.array([[table[i][1]] for i in range(len(table.start))], float)

    def rewards(self, features, latents):
        return features[..., 0] * latents


def test_the_best_of_k_by_reward():
    task = some_task()
    users = task.users("test")
    steerer, k = Rewarding(), 4
    written, log_probs = Reranked(steerer, task, k)(
        users, ["ask"] * len(users), 1, seed=3
    )
    assert log_probs is None
    drawn = np.random.default_rng(3).permutation(k * len(users)).reshape(-1, k)
    group = task.data.users["test"].group[users]
    best = np.where(group, drawn.max(1), drawn.min(1))
    assert written.texts == [str(n) for n in best]
    assert [written.table[i][1] - 2 for i in range(len(users))] == best.tolist()


class Copying:
    """Stands in for a `LanguageModel`: a response is likely if the prompt shows it."""

    def __init__(self):
        self.tokenization = Tokenization(Tokenizer(), separator=" ")

    def pairs(self, texts):
        self.asked = texts
        return TokenTable.of([([1, 2], 1)] * len(texts))

    def score(self, table, progress=None):
        shown = [response in prompt for prompt, response in self.asked]
        return np.where(shown, -1.0, -3.0), None


@pytest.mark.parametrize("n", [0, 2])
def test_examples_predict_what_they_show(n, monkeypatch):
    """A target pair whose chosen response the examples contain is predicted right."""
    task, language = some_task(), Copying()
    in_context = InContext(language, task)
    monkeypatch.setattr(InContext, "_with_room", lambda self: language)
    found = in_context.predict([0, n])
    assert found.log_prob.shape == (len(task.users("test")), 1, 2, 1)
    texts = task.data.texts
    for u, user in enumerate(task.users("test")):
        context, target = task.test_items("test", user)
        shown = {texts[i] for i in context[:n, 0]}
        margin = sum(
            sign * 2.0 * any(texts[i] in text for text in shown)
            for sign, i in zip((1, -1), target[0], strict=True)
        )
        expected = -np.log1p(np.exp(-margin))
        assert found.log_prob[u, 0, 1, 0] == pytest.approx(expected, rel=1e-5)
        assert found.log_prob[u, 0, 0, 0] == pytest.approx(-np.log(2), rel=1e-5)


class Recording:
    """Stands in for a `Steerer`: z is the user's number where all choices were seen."""

    def __init__(self, task):
        self.task, self.seen = task, []

    def latents(self, contexts, groups):
        known = contexts.mask.sum(1)
        assert np.isin(known, [0, self.task.test_context]).all()
        return np.where(known, np.where(groups, 1.0, -1.0), 0.5)[:, None]

    def write(self, prompts, latents, **options):
        self.seen.append(latents[:, 0])
        return Written(list(prompts), TokenTable.of([([1, 2], 1)] * len(prompts)))

    def log_probs(self, table, latents):
        return np.zeros(len(latents))


@pytest.mark.parametrize("t", [0.0, 0.25, 1.0])
def test_between_goes_from_each_group_to_the_other(t):
    task = some_task()
    users = np.tile(task.users("test"), 2)
    steerer = Recording(task)
    method = Between(steerer, task)
    group_of = task.data.users["test"].group
    assert np.all(group_of[method.partners(users)] == 1 - group_of[users])
    method(users, ["ask"] * len(users), t)
    own = np.where(group_of[users], 1.0, -1.0)
    np.testing.assert_allclose(steerer.seen[0], (1 - 2 * t) * own, atol=1e-6)


@pytest.mark.parametrize("t", [0.0, 0.5, 1.0])
def test_partway_goes_from_nobody_to_each_user(t):
    task = some_task()
    users = np.tile(task.users("test"), 2)
    steerer = Recording(task)
    Partway(steerer, task)(users, ["ask"] * len(users), t)
    own = np.where(task.data.users["test"].group[users], 1.0, -1.0)
    wanted = (1 - t) * 0.5 + t * own
    np.testing.assert_allclose(steerer.seen[0], wanted, atol=1e-6)
