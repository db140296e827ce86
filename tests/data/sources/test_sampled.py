"""Choices that simulated users make between sampled answers."""

import collections
import math

import numpy as np
import pytest
from scipy.special import expit

from fsa.data import files, tables
from fsa.data.sources import corpus, sampled
from fsa.errors import InputError
from fsa.language.tokenization import as_prompt, messages_of

ERRORS = 5  # standard errors that a mean may be off
SPLITS = ("train", "valid", "test")


def number(text):
    """The attribute of these tests: the number that an answer is."""
    return float(text)


def make_samples(answers=("0", "0.5", "3", "nan", " "), num_prompts=12):
    """Prompts of every split, four times as many to train on, with the same answers."""
    splits = [SPLITS[max(0, i % 6 - 3)] for i in range(num_prompts)]
    prompts = [f"prompt {i}" for i in range(num_prompts)]
    return sampled.Samples(prompts, [answers] * num_prompts, splits)


GROUPS = {"more": [1.0], "less": [-1.0]}
USERS = sampled.users_of_groups(GROUPS, {"train": 13, "valid": 3, "test": 7})


def choose(samples=None, users=USERS, attributes=(number,), **kwargs):
    defaults = dict(num_choices=2, min_gap=0.5, seed=0)
    options = defaults | kwargs
    options["num_choices"] = dict.fromkeys(SPLITS, options["num_choices"])
    return sampled.choose(samples or make_samples(), users, attributes, **options)


def test_users_of_groups():
    assert len(USERS.names) == len(set(USERS.names)) == 2 * (13 + 3 + 7)
    counts = collections.Counter(zip(USERS.splits, USERS.groups, strict=True))
    assert counts["train", "more"] == counts["train", "less"] == 13
    assert counts["test", "more"] == counts["test", "less"] == 7
    expected = [[1.0 if group == "more" else -1.0] for group in USERS.groups]
    assert np.array_equal(USERS.weights, expected)


def test_groups_choose_what_they_prefer():
    choices = choose()
    assert len(choices) == 2 * len(USERS.names)
    pairs = collections.defaultdict(set)
    for choice in choices:
        gap = number(choice.chosen) - number(choice.rejected)
        assert abs(gap) >= 0.5
        assert (gap > 0) == (choice.group == "more")
        pairs[choice.group].add(frozenset((choice.chosen, choice.rejected)))
    # All pairs come up, blank and unmeasurable answers in none of them.
    every = {frozenset(p) for p in (("0", "0.5"), ("0", "3"), ("0.5", "3"))}
    assert pairs == {"more": every, "less": every}


def test_pairs_are_at_least_the_gap_apart():
    choices = choose(min_gap=2.6)
    assert {frozenset((c.chosen, c.rejected)) for c in choices} == {
        frozenset(("0", "3"))
    }
    # 1/3 - (-1/6) is a little less than a half in binary fractions.
    sixths = make_samples((repr(1 / 3), repr(-1 / 6)))
    assert 1 / 3 - -1 / 6 <= 0.5
    assert len(choose(sixths)) == 2 * len(USERS.names)


def test_splits_share_no_prompt_and_no_user_chooses_twice_on_one():
    samples = make_samples()
    choices = choose(samples)
    split_of = dict(zip(samples.prompts, samples.splits, strict=True))
    assert all(choice.split == split_of[choice.prompt] for choice in choices)
    assert {choice.split for choice in choices} == set(SPLITS)
    seen = {(choice.user, choice.prompt) for choice in choices}
    assert len(seen) == len(choices)
    assert set(collections.Counter(user for user, _ in seen).values()) == {2}


def test_users_may_choose_on_all_prompts_of_their_split():
    samples = make_samples()
    users = sampled.users_of_groups(GROUPS, {"train": 3, "test": 2})
    choices = sampled.choose(
        samples,
        users,
        [number],
        num_choices={"train": 8, "test": 2},
        min_gap=0.5,
        seed=0,
    )
    orders = collections.defaultdict(list)
    for choice in choices:
        orders[choice.user].append(choice.prompt)
    for user, split in zip(users.names, users.splits, strict=True):
        pairs = zip(samples.prompts, samples.splits, strict=True)
        assert sorted(orders[user]) == sorted(p for p, s in pairs if s == split)
    assert len({tuple(order) for order in orders.values()}) > 5


@pytest.mark.parametrize("split_by", ["user", "prompt"])
def test_the_table_is_one_that_fsa_reads(tmp_path, split_by):
    choices = choose()
    tables.write(tmp_path / "choices.jsonl", choices)
    reader = tables.Reader(split_by=split_by, max_bad_share=0)
    read, report = reader.choices(tmp_path / "choices.jsonl")
    assert read == choices and not report.bad


def test_choices_depend_on_the_seed_and_the_user_alone():
    choices = choose()
    assert choose() == choices != choose(seed=1)
    fewer = sampled.users_of_groups({"less": [-1.0]}, {"test": 3, "train": 1})
    assert set(choose(users=fewer)) <= set(choices)


def test_noisy_choices_follow_bradley_terry_luce():
    users = sampled.users_of_groups({"more": [1.0]}, {"train": 2003})
    samples = make_samples(("0", "1"), num_prompts=3)
    for slope in (0.7, 2.0):
        choices = choose(samples, users, num_choices=3, slope=slope)
        p = expit(slope)
        error = math.sqrt(p * (1 - p) / len(choices))
        share = np.mean([choice.chosen == "1" for choice in choices])
        assert abs(share - p) < ERRORS * error


def test_equal_answers_are_a_coins_toss():
    """Users who do not care about the attribute in which the answers differ."""
    users = sampled.users_of_groups({"none": [0.0, 1.0]}, {"train": 1001})
    samples = make_samples(("0", "1"), num_prompts=3)
    choices = choose(samples, users, [number, lambda text: 0.0], num_choices=3)
    share = np.mean([choice.chosen == "1" for choice in choices])
    assert abs(share - 0.5) < ERRORS * 0.5 / math.sqrt(len(choices))


def test_users_on_the_sphere():
    users = sampled.users_on_sphere(
        3, {"test": 4001, "train": 5}, groups=("casual", "formal"), seed=0
    )
    np.testing.assert_allclose(np.linalg.norm(users.weights, axis=1), 1)
    # On the sphere in R^3 every coordinate is uniform on [-1, 1] (Archimedes).
    moments = users.weights[:4001].mean(0), (users.weights[:4001] ** 2).mean(0)
    assert (np.abs(moments[0]) < ERRORS * math.sqrt(1 / 3 / 4001)).all()
    assert (np.abs(moments[1] - 1 / 3) < ERRORS * math.sqrt(4 / 45 / 4001)).all()
    expected = ["formal" if w >= 0 else "casual" for w in users.weights[:, 0]]
    assert list(users.groups) == expected
    assert users.splits == ("test",) * 4001 + ("train",) * 5
    assert len(set(users.names)) == 4006
    fewer = sampled.users_on_sphere(3, {"train": 2}, seed=0)
    assert np.array_equal(fewer.weights, users.weights[4001:4003])
    assert not np.isin(fewer.weights, users.weights[:4001]).any()


def test_differences_are_those_of_the_chosen_answer():
    table = [
        tables.Choice("ann", "", "it remains great .", "it looks poor ."),
        tables.Choice("ann", "", "rundown - poor price", "it remains poor ."),
    ]
    attributes = corpus.formality, corpus.sentiment, corpus.listness
    found = sampled.differences(table, attributes)
    np.testing.assert_array_equal(found, [[2, 2, 0], [-2, 0, 2]])


def mixture(differences, weights, prior, n, start, slope):
    """p(target | n choices) under a discrete prior of weights."""
    log_prob = -np.logaddexp(0, -slope * weights @ differences.T)
    log_posterior = np.log(prior) + log_prob[:, :n].sum(axis=1)
    posterior = np.exp(log_posterior - log_posterior.max())
    return (posterior / posterior.sum()) @ np.exp(log_prob[:, start:])


def test_bayes_optimal_in_one_dimension_is_the_mixture_of_two_types():
    rng = np.random.default_rng(0)
    users = [rng.normal(size=(7, 1)) for _ in range(5)]
    found = sampled.bayes_optimal(users, (0, 1, 4), slope=1.3, num_samples=10)
    both = np.array([[1.0], [-1.0]])
    for u, differences in enumerate(users):
        for c, n in enumerate((0, 1, 4)):
            p = mixture(differences, both, [0.5, 0.5], n, 4, 1.3)
            np.testing.assert_allclose(found.nll[c, u], -np.log(p).mean())
            if n:
                assert found.accuracy[c, u] == (p > 0.5).mean()
    assert (found.accuracy[0] == 0.5).all()


def test_bayes_optimal_in_the_plane_is_an_integral_over_angles():
    rng = np.random.default_rng(1)
    users = [rng.normal(size=(9, 2)) for _ in range(5)]
    found = sampled.bayes_optimal(users, (0, 2, 6), slope=4.0, num_samples=40_000)
    angles = np.linspace(0, 2 * np.pi, 5000, endpoint=False)
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    prior = np.full(5000, 1 / 5000)
    for u, differences in enumerate(users):
        for c, n in enumerate((0, 2, 6)):
            p = mixture(differences, circle, prior, n, 6, 4.0)
            # Of three targets, each estimated with a relative error of the same order.
            error = ERRORS / math.sqrt(found.effective[c, u])
            np.testing.assert_allclose(found.nll[c, u], -np.log(p).mean(), atol=error)
    np.testing.assert_allclose(found.nll[0], math.log(2))
    np.testing.assert_allclose(found.effective[0], 40_000)
    assert (found.effective[2] < found.effective[1]).all()
    assert (found.effective[2] > 100).all()


@pytest.fixture(scope="module")
def on_sphere():
    """Weights [U, 3] and differences [U, L, 3] of users of the corpus."""
    splits = corpus.split_prompts(0)
    answers = [answer for _, answer in corpus.texts(2, 200 * 6)]
    samples = sampled.Samples(
        prompts=[prompt for prompts in splits.values() for prompt in prompts],
        answers=[answers[6 * p : 6 * p + 6] for p in range(200)],
        splits=[split for split, prompts in splits.items() for _ in prompts],
    )
    attributes = corpus.formality, corpus.sentiment, corpus.listness
    users = sampled.users_on_sphere(3, {"test": 60}, seed=0)
    choices = sampled.choose(
        samples,
        users,
        attributes,
        num_choices={"test": 35},
        min_gap=0.5,
        slope=4.0,
        seed=0,
    )
    differences = sampled.differences(choices, attributes).reshape(60, 35, 3)
    return users.weights, differences


def test_bayes_optimal_learns_from_context_up_to_what_the_weights_tell(on_sphere):
    weights, differences = on_sphere
    found = sampled.bayes_optimal(
        differences, (0, 1, 3, 10), slope=4.0, num_samples=8192
    )
    accuracy = found.accuracy.mean(axis=1)
    assert accuracy[0] == 0.5 and (np.diff(accuracy) > 0).all()
    nll = found.nll.mean(axis=1)
    gaps = np.einsum("ud,uld->ul", weights, differences)[:, 10:]
    known = np.logaddexp(0, -4.0 * gaps).mean()
    assert (np.diff(nll) < 0).all() and nll[-1] > known
    assert accuracy[-1] > 0.8


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(attributes=(number, number)), "attributes"),
        (dict(min_gap=0.0), "min_gap"),
        (dict(min_gap=math.nan), "min_gap"),
        (dict(slope=-1.0), "slope"),
        (dict(slope=math.nan), "slope"),
        (dict(num_choices=3), "num_choices.* 2 (valid|test) prompts"),
        (
            dict(min_gap=3.5),
            "num_choices.* 0 (train|valid|test) prompts",
        ),
    ],
)
def test_bad_choices_are_refused(kwargs, message):
    with pytest.raises(InputError, match=message):
        choose(**kwargs)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(prompts=["a"]), "1 prompts, 2 answers"),
        (dict(prompts=["a", "a"]), "occurs twice"),
        (dict(splits=["train", "dev"]), "unknown split 'dev'"),
    ],
)
def test_bad_samples_are_refused(kwargs, message):
    good = dict(prompts=["a", "b"], answers=[["x"], ["y"]], splits=["train", "test"])
    with pytest.raises(InputError, match=message):
        sampled.Samples(**(good | kwargs))


def test_bad_users_are_refused():
    with pytest.raises(InputError, match="no simulated users"):
        sampled.users_of_groups(GROUPS, {"train": 0})
    with pytest.raises(InputError, match="unknown split 'dev'"):
        sampled.users_on_sphere(2, {"dev": 3}, seed=0)
    with pytest.raises(InputError, match="groups"):
        sampled.users_of_groups({"a": [1], "b": [1, 2]}, {"train": 1})


def test_bayes_optimal_needs_a_target():
    with pytest.raises(InputError, match="num_context"):
        sampled.bayes_optimal([np.ones((4, 2))], (0, 4), slope=1.0)


ROWS = [
    {"prompt": "b", "answer": "one", "split": "test"},
    {"prompt": "a", "answer": "two", "split": "train"},
    {"prompt": "b", "answer": "", "split": "test"},
    {"prompt": "b", "answer": "one", "split": "test"},
]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_read(tmp_path, name):
    """Answers of a prompt together, in order, empty and repeated ones included."""
    files.write_jsonl(tmp_path / name, ROWS)
    samples, report = sampled.read(str(tmp_path / name))
    assert list(samples.prompts) == ["b", "a"]
    assert [list(a) for a in samples.answers] == [["one", "", "one"], ["two"]]
    assert list(samples.splits) == ["test", "train"]
    assert (report.path, report.rows, report.bad) == (str(tmp_path / name), 4, {})


def test_read_chat_messages(tmp_path):
    """A list of them is the prompt that its JSON is."""
    messages = [{"role": "user", "content": "“b”?"}]
    rows = [{**ROWS[0], "prompt": prompt} for prompt in (messages, as_prompt(messages))]
    files.write_jsonl(tmp_path / "a.jsonl", rows)
    samples, _ = sampled.read(str(tmp_path / "a.jsonl"))
    assert [messages_of(prompt) for prompt in samples.prompts] == [messages]
    assert len(samples.answers[0]) == 2


def test_read_nothing(tmp_path):
    """An empty table has no prompts, which `choose` refuses."""
    files.write_jsonl(tmp_path / "a.jsonl", [])
    samples, _ = sampled.read(str(tmp_path / "a.jsonl"))
    with pytest.raises(InputError, match="num_choices"):
        choose(samples)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a", "split": "test"}, "row 5: no column 'answer'"),
        ({"answer": "a", "split": "test"}, "row 5: no column 'prompt'"),
        ({"prompt": "a", "answer": "x"}, "row 5: no column 'split'"),
        ({**ROWS[0], "prompt": ""}, "row 5: prompt"),
        ({**ROWS[0], "prompt": None}, "row 5: prompt"),
        ({**ROWS[0], "answer": 3}, "row 5: answer"),
        ({**ROWS[0], "split": "train"}, "row 5: prompt"),
        ({"prompt": "c", "answer": "x", "split": "dev"}, "unknown split 'dev'"),
    ],
)
def test_bad_rows_are_named(tmp_path, row, message):
    files.write_jsonl(tmp_path / "a.jsonl", [*ROWS, row])
    with pytest.raises(InputError, match=message) as error:
        sampled.read(str(tmp_path / "a.jsonl"))
    assert "\n" not in str(error.value)


def test_every_split_of_users_needs_a_number_of_choices():
    with pytest.raises(InputError, match="num_choices.*test"):
        sampled.choose(
            make_samples(),
            USERS,
            [number],
            num_choices={"train": 1, "valid": 1},
            min_gap=0.5,
            seed=0,
        )
