"""The controllable corpus: its grammar, attributes, distributions and tokenizer."""

import collections
import json
import math

import numpy as np
import pytest
from scipy import stats

from fsa.data.sources import corpus
from fsa.errors import InputError

SIZE = 20_011
ERRORS = 5  # standard errors that a mean may be off


@pytest.fixture(scope="module")
def sequences():
    return corpus.sequences(0, SIZE)


@pytest.fixture(scope="module")
def texts():
    return corpus.texts(0, SIZE)


def test_vocabulary_has_103_words():
    assert len(corpus.WORDS) == len(set(corpus.WORDS)) == 103
    assert corpus.WORDS[:3] == ("<pad>", "<bos>", "<eos>")
    assert all(corpus.WORDS[i] == word for word, i in corpus.IDS.items())


def test_sequences_are_bos_prompt_answer_eos_padding(sequences):
    assert sequences.shape == (SIZE, corpus.MAX_LENGTH)
    assert sequences.dtype == np.int32
    assert (sequences[:, 0] == corpus.BOS).all()
    assert (sequences[:, 1:] != corpus.BOS).all()
    ends = sequences == corpus.EOS
    assert (ends.sum(axis=1) == 1).all()
    after = np.cumsum(ends, axis=1) - ends > 0
    assert np.array_equal(sequences == corpus.PAD, after)
    assert len(np.unique(sequences)) == len(corpus.WORDS)
    # What a shorter sequence in training would cut.
    assert (ends.argmax(axis=1) > 32).mean() < 0.01


def test_every_generated_answer_parses(texts):
    prompts = set(corpus.prompts())
    assert len(prompts) == 200
    for prompt, answer in texts:
        assert prompt in prompts
        assert corpus.parses(answer), answer
        assert 1 <= corpus.num_units(answer) <= corpus.MAX_UNITS


def test_draws_depend_on_the_seed_alone(sequences, texts):
    again = corpus.sequences(0, SIZE)
    assert np.array_equal(again, sequences)
    starts = [f"{prompt} {answer}" for prompt, answer in texts[:50]]
    assert starts == [corpus.decode(ids) for ids in sequences[:50]]
    assert not np.array_equal(corpus.sequences(1, SIZE), sequences)


@pytest.mark.parametrize(
    "answer",
    [
        "it looks great .",
        "well , it feels super great and poor !",
        "it looks great . this remains notably dull ! it proves weak .",
        "rundown - great price",
        "summary - notably dull mood - clever design - ugly style - kinda weak value",
    ],
)
def test_the_grammar_produces(answer):
    assert corpus.parses(answer)


@pytest.mark.parametrize(
    "answer",
    [
        "",
        " ",
        "it looks great",  # no end
        "it looks great . .",
        "it looks great . it",
        "looks great .",  # no subject
        "it great .",  # no verb
        "it looks .",  # no adjective
        "it looks great great .",
        "it looks great and .",
        "it looks great and notably dull .",
        "it looks super super great .",
        "it great looks .",
        "well it looks great .",  # no comma
        "well , honestly , it looks great .",
        ", it looks great .",
        "it  looks great .",  # two spaces
        "it looks great . ",
        "it looks great.",
        "It looks great .",
        "the garden looks great .",
        "it looks nice .",  # no such word
        "it looks great . it looks great . it looks great . it looks great . "
        "it looks great .",
        "summary",
        "summary - great",  # no aspect
        "summary - price",  # no adjective
        "summary great price",  # no bullet
        "summary - great price .",
        "- great price",  # no head
        "summary - great price rundown - great price",
        "summary - great price it looks great .",
        "it looks great . summary - great price",
        "summary - dull mood - dull mood - dull mood - dull mood - dull mood",
        "it looks great . <eos>",
        "review the garden : it looks great .",
    ],
)
def test_the_grammar_does_not_produce(answer):
    assert not corpus.parses(answer)


def test_damaged_answers_rarely_parse(texts):
    """What a policy does when it breaks: words lost, doubled, swapped, exchanged."""
    rng = np.random.default_rng(0)

    def lose(words, i):
        del words[i]

    def double(words, i):
        words.insert(i, words[i])

    def swap(words, i):
        i %= len(words) - 1
        words[i], words[i + 1] = words[i + 1], words[i]

    def exchange(words, i):
        words[i] = corpus.WORDS[rng.integers(3, len(corpus.WORDS))]

    parsed = collections.Counter()
    for _, answer in texts[:1000]:
        for damage in (lose, double, swap, exchange):
            words = answer.split()
            damage(words, rng.integers(len(words)))
            parsed[damage.__name__] += corpus.parses(" ".join(words))
    # Losing an adverb or two words that stand for each other leaves a right answer.
    assert parsed["double"] == parsed["swap"] == 0
    assert parsed["lose"] < 150 and parsed["exchange"] < 150


@pytest.mark.parametrize(
    ("text", "formality", "sentiment", "listness", "units"),
    [
        ("it looks great .", -1, 1, -1, 1),
        ("moreover , it looks kinda great and poor .", -1 / 3, 0, -1, 1),
        ("it remains notably dull ! it proves clever and weak .", 1, -1 / 3, -1, 2),
        ("it remains notably dull . it proves ugly . it feels weak .", 0.5, -1, -1, 3),
        ("summary - super great price - poor mood", 0, 0, 1, 2),
        ("summary - exceedingly great price", 1, 1, 1, 1),
        ("summary - great price it looks poor .", 0, 0, 0, 2),  # broken, yet measured
        ("it this price", math.nan, math.nan, math.nan, 0),
        ("", math.nan, math.nan, math.nan, 0),
    ],
)
def test_attributes_of_texts(text, formality, sentiment, listness, units):
    found = corpus.formality(text), corpus.sentiment(text), corpus.listness(text)
    np.testing.assert_allclose(found, (formality, sentiment, listness))
    assert corpus.num_units(text) == units


def marks(texts, *tables):
    """How many words of the (first, second) side each answer has, `[B, 2]`."""
    sides = [{word for table in tables for word in table[i]} for i in range(2)]
    return np.array(
        [
            [sum(w in side for w in answer.split()) for side in sides]
            for _, answer in texts
        ]
    )


@pytest.mark.parametrize(
    "tables",
    [
        (corpus.HEADS, corpus.OPENERS, corpus.VERBS, corpus.ADVERBS),
        (corpus.ADJECTIVES,),
    ],
)
def test_rates_are_beta(texts, tables):
    """Of k marks, a Beta(1/2, 1/2) rate makes a beta-binomial number formal."""
    counts = marks(texts, *tables)
    for k in (1, 2, 3, 4):
        second = counts[counts.sum(axis=1) == k, 1]
        observed = np.bincount(second, minlength=k + 1)
        expected = stats.betabinom.pmf(np.arange(k + 1), k, 0.5, 0.5) * len(second)
        assert len(second) > 1000
        assert stats.chisquare(observed, expected).pvalue > 1e-4


def test_attributes_are_independent(texts):
    values = np.array(
        [
            [measure(answer) for _, answer in texts]
            for measure in (corpus.formality, corpus.sentiment, corpus.listness)
        ]
    )
    off_diagonal = np.corrcoef(values)[np.triu_indices(3, 1)]
    np.testing.assert_array_less(np.abs(off_diagonal), ERRORS / math.sqrt(SIZE))


def test_lists_and_lengths_are_as_frequent_as_stated(texts):
    is_list = np.array([corpus.listness(answer) == 1 for _, answer in texts])
    error = math.sqrt(0.35 * 0.65 / SIZE)
    assert abs(is_list.mean() - 0.35) < ERRORS * error
    units = np.array([corpus.num_units(answer) for _, answer in texts])
    for kind in (is_list, ~is_list):
        assert stats.chisquare(np.bincount(units[kind])[1:]).pvalue > 1e-4


def test_words_and_ids_round_trip(texts):
    for prompt, answer in texts[:200]:
        for text in (prompt, answer):
            assert corpus.decode(corpus.encode(text)) == text
    assert corpus.decode([corpus.BOS, *corpus.encode("it looks"), corpus.EOS, 0]) == (
        "it looks"
    )
    with pytest.raises(InputError, match="no word 'nice'"):
        corpus.encode("it looks nice .")


def test_a_topic_is_in_one_split():
    split = corpus.split_prompts(3)
    topics = {
        name: {prompt.split()[2] for prompt in prompts}
        for name, prompts in split.items()
    }
    assert {name: len(found) for name, found in topics.items()} == {
        "train": 28,
        "valid": 4,
        "test": 8,
    }
    assert set().union(*topics.values()) == set(corpus.TOPICS)
    everything = [prompt for prompts in split.values() for prompt in prompts]
    assert sorted(everything) == sorted(corpus.prompts())
    assert corpus.split_prompts(3) == split != corpus.split_prompts(4)


@pytest.mark.parametrize("config", [None, {"model_type": "llama"}])
def test_transformers_reads_the_tokenizer(tmp_path, texts, config):
    transformers = pytest.importorskip("transformers")
    folder = tmp_path / "model"
    corpus.write_tokenizer(folder)
    if config:  # As it stands beside a model's weights.
        (folder / "config.json").write_text(json.dumps(config))
    tokenizer = transformers.AutoTokenizer.from_pretrained(
        folder, local_files_only=True
    )
    assert len(tokenizer) == 103
    ids = tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id
    assert ids == (corpus.PAD, corpus.BOS, corpus.EOS)
    for prompt, answer in texts[:300]:
        text = f"{prompt} {answer}"
        ids = tokenizer(text)["input_ids"]
        assert ids == [corpus.BOS, *corpus.encode(text)]
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
        assert tokenizer.decode(ids) == f"<bos> {text}"
        # A response is the same tokens by itself.
        alone = tokenizer(answer, add_special_tokens=False)["input_ids"]
        assert alone == corpus.encode(answer) == ids[-len(alone) :]
    with pytest.raises(Exception, match="UNK"):
        tokenizer("it looks nice .")


def test_writing_the_tokenizer_again_gives_the_same_bytes(tmp_path):
    for folder in ("a", "b", "b"):
        corpus.write_tokenizer(tmp_path / folder)
    for path in sorted((tmp_path / "a").iterdir()):
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
