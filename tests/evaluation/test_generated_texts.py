"""Measures of scripted texts, and how texts are shown to people."""

import dataclasses
import itertools
import math

import numpy as np
import policies
import pytest

from fsa.data.collect import collect
from fsa.data.scored_responses import Responses
from fsa.data.sources import corpus
from fsa.data.sources.attributes import num_words, words
from fsa.data.tables import Choice
from fsa.data.tasks.pairs import PairTask
from fsa.evaluation.generated_texts import Sample, TextEvaluator, page
from fsa.evaluation.methods import Steered
from fsa.inference.steered_texts import side_by_side
from fsa.language.language_model import Written
from fsa.language.token_table import TokenTable

# text: (1 formal, 0 casual, NaN neither or both alike; valid; tokens)
TEXTS = {
    "it remains great .": (1, 1, 4),
    "it looks great .": (0, 1, 4),
    "rundown - kinda dull price": (0, 1, 5),
    "everything great": (math.nan, 0, 2),
    "summary looks": (math.nan, 0, 2),
    "moreover proves and": (1, 0, 3),
}
SIZES, PROMPTS, USERS = (0, 2), 3, 5
# Nats a token under the language model and, more of them, under the policy.
REFERENCE, POLICY = -1.5, -0.25
STOP = 3


def some_task(choices=None, test_context=2):
    """Makes a task of formal and casual users, with made-up embeddings."""
    users = {"train": 1, "valid": 1, "test": USERS + 1}
    data = collect(choices or policies.choices(users=users), [])
    count = len(data.texts)
    features = np.random.default_rng(0).normal(size=(count, 2)).astype(np.float32)
    responses = Responses(
        TokenTable.of([([1, i], 1) for i in range(count)]),
        np.zeros(count, np.float32),
        features,
        {},
        "key",
    )
    return PairTask(
        data,
        responses,
        batch_size=1,
        max_context=1,
        num_targets=1,
        test_context=test_context,
        test_targets=1,
        buckets=(4,),
    )


@dataclasses.dataclass
class Scripted:
    """Stands in for a `Steerer`: z is (group, n), and texts are drawn from a list."""

    texts: tuple[str, ...] = tuple(TEXTS)
    calls: list = dataclasses.field(default_factory=list)

    def latents(self, contexts, groups):
        return np.stack([groups, contexts.mask.sum(1)], axis=1).astype(np.float32)

    def write(self, prompts, latents, **options):
        rng = np.random.default_rng(len(self.calls))
        texts = [
            self.texts[i] for i in rng.integers(len(self.texts), size=len(prompts))
        ]
        # The second user's texts show neither side; the third's are all the same.
        texts[PROMPTS : 2 * PROMPTS] = ["everything great"] * PROMPTS
        texts[2 * PROMPTS : 3 * PROMPTS] = ["it looks great ."] * PROMPTS
        self.calls.append((list(prompts), latents, texts, options))
        # Valid texts have an end.
        ends = [STOP if TEXTS[t][1] else 7 for t in texts]
        rows = [
            [7] * (8 + TEXTS[t][2]) + [end] for t, end in zip(texts, ends, strict=True)
        ]
        table = TokenTable.of([(row, 9) for row in rows])
        return Written(texts, table)

    def log_probs(self, table, latents):
        size = table.length - table.start
        return size * (REFERENCE if latents is None else POLICY)


@dataclasses.dataclass
class Plain:
    """Stands in for the `LanguageModel` of a scripted steerer."""

    steerer: Scripted
    stop_tokens: tuple[int, ...] = (2, STOP)

    def write(self, prompts, *, what, progress, **options):
        assert what and not progress
        return self.steerer.write(prompts, None, **options)

    def score(self, table):
        return self.steerer.log_probs(table, None), None


def evaluator(steerer, task=None, **options):
    task = task or some_task()
    defaults = dict(
        num_context=SIZES,
        attribute="corpus_formality",
        validity="corpus",
        users_per_group=USERS,
        prompts_per_user=PROMPTS,
        max_new_tokens=11,
        temperature=0.8,
        num_resamples=50,
        seed=2,
        progress=False,
    )
    method = Steered(steerer, task)
    return TextEvaluator(Plain(steerer), method, task, **(defaults | options))


@pytest.fixture(scope="module")
def measured():
    """(scripted steerer after its calls, task, result, samples)."""
    steerer, task = Scripted(), some_task()
    return steerer, task, *evaluator(steerer, task)()


def column(texts, index):
    """`[U, P]`, the given entry of `TEXTS` for each text."""
    return np.array([TEXTS[t][index] for t in texts], float).reshape(-1, PROMPTS)


def mean_over_users(values):
    kept = values[~np.isnan(values).all(1)]
    return np.nanmean(kept, axis=1).mean()


def test_measures_by_hand(measured):
    steerer, task, result, _ = measured
    assert result["attribute"] == "corpus_formality"
    assert set(result["generated"]) == {"formal", "casual"} == set(task.groups)
    for c in range(len(SIZES)):
        texts = steerer.calls[1 + c][2]
        for g, group in enumerate(task.groups):
            own = texts[g * USERS * PROMPTS :][: USERS * PROMPTS]
            found = {k: v[c] for k, v in result["generated"][group].items()}
            formal = mean_over_users(column(own, 0))
            expected = formal if group == "formal" else 1 - formal
            assert found["share"] == pytest.approx(expected)
            values = np.array([corpus.formality(t) for t in own]).reshape(-1, PROMPTS)
            assert found["attribute"] == pytest.approx(mean_over_users(values))
            assert found["validity"] == pytest.approx(column(own, 1).mean())
            size = column(own, 2)
            assert found["tokens"] == pytest.approx(size.mean())
            counts = np.array([num_words(text) for text in own])
            assert found["words"] == pytest.approx(counts.mean())
            assert found["ended"] == pytest.approx(column(own, 1).mean())
            pairs = [
                [pair for text in of_user for pair in itertools.pairwise(words(text))]
                for of_user in np.reshape(own, (-1, PROMPTS))
            ]
            shares = [len({*own}) / len(own) for own in pairs]
            assert found["distinct_2"] == pytest.approx(np.mean(shares))
            assert found["perplexity"] == pytest.approx(math.exp(-REFERENCE))
            assert found["kl"] == pytest.approx((POLICY - REFERENCE) * size.mean())
    shares = [result["generated"][group]["share"] for group in task.groups]
    assert all(0 < share < 1 for of_group in shares for share in of_group)


def test_groups_that_care_about_different_attributes():
    """Each is measured by its own, beside the language model's texts for it."""
    names = "corpus_sentiment,corpus_formality"
    steerer, task = Scripted(), some_task()
    result, _ = evaluator(steerer, task, attribute=names)()
    expected, _ = evaluator(Scripted(), some_task())()
    # The same scripted texts, and no group is named after a sentiment.
    for name in ("generated", "unsteered", "alike"):
        assert result[name] == expected[name]
    plain = steerer.calls[0][2]
    for g, group in enumerate(task.groups):
        own = plain[g * USERS * PROMPTS :][: USERS * PROMPTS]
        formal = mean_over_users(column(own, 0))
        wanted = formal if group == "formal" else 1 - formal
        assert result["unsteered"][group]["share"] == [pytest.approx(wanted)]


def test_texts_are_compared_with_plain_ones_of_their_length():
    steerer, task = Scripted(), some_task()
    result, _ = evaluator(steerer, task)()
    plain, *written = [call[2] for call in steerer.calls]
    for g, group in enumerate(task.groups):
        side = 1 if group == "formal" else 0
        sizes = [TEXTS[text][2] for text in plain if TEXTS[text][0] == side]
        for c, texts in enumerate(written):
            found = {k: v[c] for k, v in result["alike"][group].items()}
            own = texts[g * USERS * PROMPTS :][: USERS * PROMPTS]
            of_partners = []
            for length in (TEXTS[text][2] for text in own):
                # The eighth nearest, and all that are as near.
                away = sorted(abs(n - length) for n in sizes)[min(8, len(sizes)) - 1]
                of_partners.append(
                    np.mean([n for n in sizes if abs(n - length) <= away])
                )
            assert found["tokens"] == pytest.approx(np.mean(of_partners))
            assert found["perplexity"] == pytest.approx(math.exp(-REFERENCE))
            assert 0 <= found["ended"] <= 1
            shares = [
                len({*pairs}) / len(pairs)
                for text in own
                if (pairs := list(itertools.pairwise(words(text))))
            ]
            assert found["own_distinct_2"] == pytest.approx(np.mean(shares))


def test_nothing_is_alike_where_no_plain_text_is_as_wanted():
    """All texts are casual."""
    result, _ = evaluator(Scripted(texts=("it looks great .",)))()
    assert set(result["alike"]["formal"]["perplexity"]) == {None}
    assert None not in result["alike"]["casual"]["perplexity"]


def test_texts_for_users_whose_attribute_is_not_known(measured):
    """All that needs no attribute is measured as with one."""
    result, samples = evaluator(Scripted(), attribute="", validity="")()
    _, _, known, known_samples = measured
    assert samples == known_samples and result["attribute"] == ""
    names = {"perplexity"}
    measures = "tokens", "words", "ended", "distinct_2", "kl"
    names |= {f"{n}{ci}" for n in measures for ci in ("", "_ci")}
    for group, found in result["generated"].items():
        assert set(found) == names
        assert found == {name: known["generated"][group][name] for name in names}
    assert set(result["reference"]) == names


def test_measures_of_the_reference(measured):
    """One entry each, over the texts of all users, of the attribute's first side."""
    steerer, _, result, _ = measured
    texts = steerer.calls[0][2]
    assert steerer.calls[0][1] is None
    found = {name: values for name, (values,) in result["reference"].items()}
    assert found["share"] == pytest.approx(mean_over_users(column(texts, 0)))
    assert found["validity"] == pytest.approx(column(texts, 1).mean())
    assert found["tokens"] == pytest.approx(column(texts, 2).mean())
    assert found["kl"] == 0 and found["kl_ci"] == [0, 0]


def test_known_words_are_those_of_the_data():
    """Not of the texts that are measured, of which every word would be known."""
    task = some_task()
    known = dataclasses.replace(task.data, texts=["it great"] * len(task.data.texts))
    scripted = Scripted(texts=("it remains great .",))
    result, _ = evaluator(
        scripted, dataclasses.replace(task, data=known), validity="words"
    )()
    # Two of three words; of the mute user's two one; of the third user's three two.
    expected = np.mean([2 / 3, 1 / 2, *[2 / 3] * (2 * USERS - 2)])
    assert result["reference"]["validity"] == pytest.approx([expected])


def test_perplexity_is_per_token_of_all_texts():
    """Not a mean of texts' own: the scripted model is worse at long ones."""

    class Uneven(Scripted):
        def log_probs(self, table, latents):
            return -1.0 * (table.length - table.start) ** 2

    steerer = Uneven()
    result, _ = evaluator(steerer)()
    size = column(steerer.calls[0][2], 2)
    expected = math.exp((size**2).sum() / size.sum())
    assert result["reference"]["perplexity"] == pytest.approx([expected])


def test_intervals_are_over_users(measured):
    _, task, result, _ = measured
    for measures in (*result["generated"].values(), result["reference"]):
        for name in ("share", "attribute", "validity", "tokens", "kl"):
            bounds = measures[f"{name}_ci"]
            for value, (low, high) in zip(measures[name], bounds, strict=True):
                assert low <= value <= high
    assert result["generated"]["formal"]["share_ci"][0][0] != pytest.approx(
        result["generated"]["formal"]["share"][0]
    )
    # The same texts by every user leave nothing to be unsure of.
    alike, _ = evaluator(Scripted(texts=("it looks great .",)))()
    assert alike["generated"]["casual"]["share_ci"] == [[1, 1], [1, 1]]
    assert alike["generated"]["formal"]["share_ci"] == [[0, 0], [0, 0]]


def test_the_same_prompts_seed_and_options_for_all(measured):
    steerer, *_ = measured
    prompts = steerer.calls[0][0]
    assert len(prompts) == 2 * USERS * PROMPTS
    expected = dict(max_new_tokens=11, temperature=0.8, seed=2)
    for called, _, _, options in steerer.calls:
        # Beside those of the bar, which tells the sets apart.
        own = {k: v for k, v in options.items() if k not in ("what", "progress")}
        assert called == prompts and own == expected


def test_each_text_is_for_its_own_user_after_n_choices(measured):
    steerer, *_ = measured
    for n, (_, latents, *_) in zip(SIZES, steerer.calls[1:], strict=True):
        group = np.repeat([0, 1], USERS * PROMPTS)
        np.testing.assert_array_equal(latents[:, 0], group)
        np.testing.assert_array_equal(latents[:, 1], n)


def test_prompts_are_not_those_of_the_users_context(measured):
    steerer, task, _, samples = measured
    names = {name: user for user, name in enumerate(task.data.users["test"].names)}
    test_prompts = {task.data.prompts[p] for p in task.prompts("test")}
    prompts_of = np.array(steerer.calls[0][0], object).reshape(-1, PROMPTS)
    assert len(prompts_of) == len(samples)
    for sample, prompts in zip(samples, prompts_of, strict=True):
        context = task.context_prompts("test", names[sample.user])
        assert not {task.data.prompts[p] for p in context} & set(prompts)
        assert set(prompts) <= test_prompts and len(set(prompts)) == PROMPTS
    assert len({tuple(prompts) for prompts in prompts_of}) > USERS
    other = Scripted()
    evaluator(other, task, seed=3)()
    assert other.calls[0][0] != steerer.calls[0][0]


def test_where_there_is_but_one_prompt():
    """All choices are about it, so that the texts are as well."""
    rows = [
        Choice(f"{split}{u}", "ask", f"good {i}", f"bad {i}", split, "ab"[u % 2])
        for split in ("train", "valid", "test")
        for u in range(2)
        for i in range(4)
    ]
    steerer = Scripted()
    evaluator(steerer, some_task(rows), users_per_group=1)()
    assert steerer.calls[0][0] == ["ask"] * 2 * PROMPTS


def test_samples_are_each_users_first_text(measured):
    steerer, task, _, samples = measured
    assert len({sample.user for sample in samples}) == len(samples) == 2 * USERS
    for number, sample in enumerate(samples):
        first = number * PROMPTS
        assert sample.group == task.groups[number // USERS]
        # Users are named after their split and group.
        assert sample.user.startswith(f"test/{sample.group}/")
        assert sample.prompt == steerer.calls[0][0][first]
        assert sample.reference == steerer.calls[0][2][first]
        assert sample.steered == tuple(call[2][first] for call in steerer.calls[1:])


def test_no_text_shows_either_side():
    class Mute(Scripted):
        def write(self, prompts, latents, **options):
            found = super().write(prompts, latents, **options)
            return found._replace(texts=["everything great"] * len(prompts))

    result, _ = evaluator(Mute())()
    for measures, count in (
        (result["generated"]["formal"], 2),
        (result["reference"], 1),
    ):
        assert measures["share"] == [None] * count
        assert np.isnan(measures["share_ci"]).all()
        assert all(value is not None for value in measures["validity"])


def test_what_groups_want_that_are_named_otherwise_is_not_known():
    names = {"formal": "formal", "casual": "slangy"}
    rows = [choice._replace(group=names[choice.group]) for choice in policies.choices()]
    task = some_task(rows)
    result, _ = evaluator(Scripted(texts=("it remains great .",)), task)()
    # The script: of the first three users one is mute, and one casual.
    assert result["generated"]["formal"]["share"] == [0.5, 0.5]
    found = result["generated"]["slangy"]
    assert found["share"] == [None, None] and np.isnan(found["share_ci"]).all()
    assert found["attribute"] == [1.0, 1.0]


SAMPLES = [
    Sample(
        "b", f"u{i}", f"ask {i}", "one | two", ("first\r\nsecond", "a_b *c* <bos> \\|")
    )
    for i in range(3)
] + [Sample("a", "v", "say `x`", "[link](y)", ("", "plain"))]


def test_page():
    lines = page(SAMPLES, (0, 3), most=2).splitlines()
    assert [line for line in lines if line.startswith("## ")] == ["## b", "## a"]
    tables = [line for line in lines if line.startswith("|")]
    assert tables[0] == "| prompt | language model | n = 0 | n = 3 |"
    assert tables[1] == "| --- | --- | --- | --- |"
    # Two of three users of the first group, and one of the other.
    assert len(tables) == 2 + 2 + 2 + 1
    first = r"| ask 0 | one \| two | first<br>second | a\_b \*c\* \<bos> \\\| |"
    assert tables[2] == first
    assert tables[-1] == r"| say \`x\` | \[link\](y) |  | plain |"


def test_side_by_side():
    found = side_by_side("ask", {"language model": "one\ntwo", "n = 3": ""})
    assert found.splitlines() == [
        "> ask",
        "  language model  one",
        "                  two",
        "  n = 3           ",
    ]
