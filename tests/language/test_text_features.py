"""The form and the words of texts, against counts by hand."""

import numpy as np
import pytest

from fsa.language import text_features

LIST = 'Buy:\n\n- 2 eggs\n* "ripe" pears\n3. tea.\n(4) jam'


def test_measures_by_hand():
    words, letters = 11, sum(map(len, LIST.split()))
    wanted = [
        4 / 5,  # list lines
        1 / words,  # "Buy:" alone is the first line
        np.log1p(words / 5),
        # "... 3", " tea" and "\n(4) jam" are ended by points.
        np.log1p(words / 3),
        letters / words,
        3 / len(LIST),
        2 / words,
    ]
    np.testing.assert_allclose(text_features.form([LIST])[0], wanted, rtol=1e-6)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("- a\n* b\n+ c\n• d", (4, 4)),
        ("1. a\n2) b\n(3) c\n1234. d", (3, 4)),
        ("-a\n1.5 b\nc - d", (0, 3)),
        ("  - a\n\n\nb", (1, 2)),
        ("", (0, 0)),
    ],
)
def test_list_lines(text, found):
    assert text_features.list_lines(text) == found


def test_a_text_of_the_same_lines_again_has_the_same_form():
    """Apart from the share of the first line."""
    text = "One line here.\n- A list line, of 7 words!\n"
    once, thrice = text_features.form([text, 3 * text])
    others = np.arange(text_features.NUM_FORM) != 1
    np.testing.assert_allclose(once[others], thrice[others], rtol=1e-6)
    np.testing.assert_allclose(once[1], 3 * thrice[1], rtol=1e-6)


def test_texts_without_words_have_a_form():
    found = text_features.form(["", "\n \n", "..."])
    assert found.shape == (3, text_features.NUM_FORM) and np.isfinite(found).all()
    assert text_features.form([]).shape == (0, text_features.NUM_FORM)


def test_words_are_counted_at_their_places():
    one, both, twice, none = text_features.word_counts(
        ["Don't!", "don't run", "run Run\nrun; 12 don’t", ""]
    )
    assert np.count_nonzero(one) == 1 and abs(one).max() == 1
    run = both - one
    assert np.count_nonzero(run) == 1 and run @ one == 0
    assert twice @ run == 3 and twice @ one == 1 and not none.any()


def test_words_do_not_disturb_each_other_on_average():
    """Counts of different words are orthogonal up to chance, and have both signs."""
    names = [f"{a}{b}" for a in "bcdfghklmn" for b in "aeiou" * 2]
    names = sorted({first + second for first in names for second in names})[:2000]
    found = text_features.word_counts(names)
    assert found.shape == (2000, text_features.NUM_WORDS)
    np.testing.assert_array_equal(np.abs(found).sum(1), 1)
    assert abs(found.sum()) < 4 * np.sqrt(len(names))
    # Each of the places is as likely as another.
    assert np.abs(found).sum(0).max() < 12
    products = found @ found.T - np.eye(len(names))
    assert abs(products.mean()) < 1e-3
