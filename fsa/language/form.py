"""The form of a text in numbers: how it is laid out.

People disagree about form, as lists against prose, and an embedding of a text tells
what it is about and hardly its form (docs/data.md has figures). All measures are
ratios: a text of the same lines once more has the same form, but for the share of the
first line. So long texts and short ones can be compared.

Shapes: B texts.
"""

import re
from collections.abc import Sequence

import numpy as np

_LIST_LINE = re.compile(r"(?:[-*+•]|\(?\d{1,3}[.)])\s")
_SENTENCE = re.compile(r"[^\s.!?][^.!?]*")
_QUOTES = '"“”'

NUM_MEASURES = 7


def measures(texts: Sequence[str]) -> np.ndarray:
    """Measures the form of texts.

    Returns:
      `[B, 7]` float32: the share of lines that are `list_lines`; the share of the words
      that are in the first line; the logarithms of 1 plus the words a line and of 1
      plus the words a sentence; letters a word; the share of characters that are
      digits; quotation marks a word.
    """
    found = np.array([_measures(text) for text in texts], np.float32)
    return found.reshape(len(texts), NUM_MEASURES)


def _measures(text: str) -> list[float]:
    # Trained models read these: other measures need another pooling than "form".
    marked, num_lines = list_lines(text)
    num_lines = max(num_lines, 1)
    first_line = next(iter(text.strip().splitlines()), "")
    words = text.split() or [""]
    return [
        marked / num_lines,
        len(first_line.split()) / len(words),
        np.log1p(len(words) / num_lines),
        np.log1p(len(words) / max(len(_SENTENCE.findall(text)), 1)),
        sum(map(len, words)) / len(words),
        sum(c.isdigit() for c in text) / max(len(text), 1),
        sum(text.count(c) for c in _QUOTES) / len(words),
    ]


def list_lines(text: str) -> tuple[int, int]:
    """Counts the list lines of a text, and all lines that are not blank.

    A list line begins with a bullet (-, *, +, •) or a number (1. or 1) or (1)).
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return sum(bool(_LIST_LINE.match(line)) for line in lines), len(lines)
