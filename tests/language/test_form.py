"""The form of texts, against counts by hand."""

import numpy as np
import pytest

from fsa.language import form

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
    np.testing.assert_allclose(form.measures([LIST])[0], wanted, rtol=1e-6)


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
    assert form.list_lines(text) == found


def test_a_text_of_the_same_lines_again_has_the_same_form():
    """Apart from the share of the first line."""
    text = "One line here.\n- A list line, of 7 words!\n"
    once, thrice = form.measures([text, 3 * text])
    others = np.arange(form.NUM_MEASURES) != 1
    np.testing.assert_allclose(once[others], thrice[others], rtol=1e-6)
    np.testing.assert_allclose(once[1], 3 * thrice[1], rtol=1e-6)


def test_texts_without_words_have_a_form():
    found = form.measures(["", "\n \n", "..."])
    assert found.shape == (3, form.NUM_MEASURES) and np.isfinite(found).all()
    assert form.measures([]).shape == (0, form.NUM_MEASURES)
