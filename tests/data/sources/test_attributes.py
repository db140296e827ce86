"""Attributes of texts, by hand; shares, thresholds and known words."""

import math

import numpy as np
import pytest

from fsa.data.sources import attributes, corpus
from fsa.data.sources.attributes import ATTRIBUTES, Attribute

NAN = math.nan


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", 0),
        ("Tim ran", 0),
        ("Tim ran. He fell! Why? He", 3),
        ("Well... he said?! Yes.", 3),
        ('"Come here!" she said. "Why?"', 3),
        ("It costs 3.14 dollars.", 1),
    ],
)
def test_sentences(text, expected):
    assert attributes.sentences(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("12 + 3 = !", []),
        ("I don't know, do I?", ["i", "don't", "know", "do", "i"]),
        ("It’s Zoë's well-known x2", ["it’s", "zoë's", "well", "known", "x"]),
    ],
)
def test_words(text, expected):
    assert attributes.words(text) == expected
    assert attributes.num_words(text) == len(expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Tim was happy. He smiled and laughed.", 3),
        ("Tim was sad, so SAD. His mom smiled.", -1),
        ("Tim was happy and sad.", 0),
        ("Tim had a ball.", 0),
        ("Unhappy", -1),
    ],
)
def test_mood(text, expected):
    assert attributes.mood(text) == expected


def test_no_word_is_on_two_lists():
    assert not attributes.HAPPY & attributes.SAD
    assert not attributes.FORMAL & (attributes.SLANG | attributes.PERSONS)
    for marks in ("HAPPY", "SAD", "SLANG", "FORMAL", "PERSONS"):
        for word in getattr(attributes, marks):
            assert attributes.words(word) == [word], (marks, word)


@pytest.mark.parametrize(
    ("text", "expected"),
    [('"Hi," said Tim.', 1), ("“Hi", 1), ("Tim's ball.", -1), (" \n", NAN)],
)
def test_dialogue(text, expected):
    np.testing.assert_equal(attributes.dialogue(text), expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("- a\n* b\n\n  + c\n• d", 1),
        ("1. a\n2) b\n(3) c", 1),
        ("Three things:\n\n- a\n- b\n- c", 0.5),
        ("Just prose - with a dash.\n**Bold** is no bullet.\n3.14 is no number.", -1),
        ("-1 degrees\n2024 was dry", -1),
        ("", NAN),
    ],
)
def test_lists(text, expected):
    np.testing.assert_equal(attributes.lists(text), expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Furthermore, the environmental consequences remain.", 1),  # 3 formal
        ("Hey, it's gonna be cool!", -1),
        ("You're right", -1),  # one mark
        ("They DON’T require you.", -1 / 3),  # 1 formal, 2 casual
        ("The dog's owner and the children's ball", NAN),  # possessives
        ("That's Anna's requirement; I'd provide various ones.", 0.2),
        ("The dog sleeps.", NAN),
        ("", NAN),
    ],
)
def test_formality(text, expected):
    np.testing.assert_allclose(attributes.formality(text), expected)


def test_the_table_names_measures_of_texts():
    answers = [answer for _, answer in corpus.texts(0, 50)]
    english = ["Hi!", "", "It's sad.\n- Moreover, he cried.", '"Good," I said. Fun?']
    for name, attribute in ATTRIBUTES.items():
        first, second = attribute.sides
        assert first != second and attribute.description, name
        texts = answers if name.startswith("corpus_") else english
        values = np.array([attribute.measure(text) for text in texts])
        assert len(np.unique(values[~np.isnan(values)])) > 1, name
        if "/" in attribute.description:  # A balance.
            assert np.nanmin(values) >= -1 and np.nanmax(values) <= 1


def test_sides_count_texts_that_show_either():
    mood = ATTRIBUTES["mood"]
    texts = ["happy", "sad", "a ball", "glad and happy", "happy and sad"]
    assert attributes.middle(mood, texts) == 0
    found = attributes.sides(mood, texts, 0.0)
    np.testing.assert_equal(found, [1, 0, NAN, 1, NAN])
    lists = attributes.sides(ATTRIBUTES["lists"], ["- a", "", "a"], 0.0)
    np.testing.assert_equal(lists, [1, NAN, 0])


def test_the_middle_of_a_count_is_the_median_of_a_reference():
    words = ATTRIBUTES["words"]
    reference = ["a", "a b", "a b c", "a b c d", "a b c d e f g h"]
    middle = attributes.middle(words, reference)
    assert middle == 3
    found = attributes.sides(words, ["a b c d", "a b c", ""], middle)
    np.testing.assert_equal(found, [1, NAN, 0])


def test_texts_without_a_side_do_not_move_the_middle():
    attribute = Attribute(
        lambda text: float(text or "nan"), "the number", ("large", "small"), middle=None
    )
    assert attributes.middle(attribute, ["1", "", "2", "", ""]) == 1.5
    assert math.isnan(attributes.middle(attribute, ["", ""]))
    # No text is on a side of an unknown threshold.
    assert np.isnan(attributes.sides(attribute, ["1", ""], NAN)).all()


def test_distinct_2():
    """Pairs are within a text: of "b a" there is none in the first example."""
    assert attributes.distinct_2(["A b!", "a b"]) == 1 / 2
    assert attributes.distinct_2(["a b a b a"]) == 2 / 4
    assert attributes.distinct_2(["a b c", "c b a", "a"]) == 1
    assert np.isnan(attributes.distinct_2(["a", ""]))


def test_known_word_share():
    pool = ["Tim had a ball.", "A BIG dog"]
    texts = ["a big ball", "Tim skimes a dog", "zzz", "", "12"]
    found = attributes.known_word_share(texts, pool)
    np.testing.assert_equal(found, [1, 0.75, 0, NAN, NAN])
    assert np.isnan(attributes.known_word_share([], pool)).sum() == 0


def test_twice_as_many_words_are_equally_far():
    measure = ATTRIBUTES["log_words"].measure
    assert measure("") == 0
    texts = ["a " * count for count in (1, 3, 7, 15)]
    steps = np.diff([measure(text) for text in texts])
    np.testing.assert_allclose(steps, math.log(2))
