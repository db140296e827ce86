"""What people may disagree about in a text, in numbers: its form, and its words.

An embedding of a text tells what it is about. It hardly shows how the text is laid out
(docs/data.md has figures), and a mean over all tokens not which words are among them.

Shapes: B texts.
"""

import re
import zlib
from collections.abc import Sequence

import numpy as np

_LIST_LINE = re.compile(r"(?:[-*+•]|\(?\d{1,3}[.)])\s")
_SENTENCE = re.compile(r"[^\s.!?][^.!?]*")
_QUOTES = '"“”'
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")

# Trained models read these features: other ones need another name of a pooling.
NUM_FORM = 7
NUM_WORDS = 1024


def form(texts: Sequence[str]) -> np.ndarray:
    """Measures the form of texts.

    All measures are ratios: a text of the same lines once more has the same form, but
    for the share of the first line. So long texts and short ones can be compared.

    Returns:
      `[B, 7]` float32: the share of lines that are `list_lines`; the share of the words
      that are in the first line; the logarithms of 1 plus the words a line and of 1
      plus the words a sentence; letters a word; the share of characters that are
      digits; quotation marks a word.
    """
    found = np.array([_form(text) for text in texts], np.float32)
    return found.reshape(len(texts), NUM_FORM)


def _form(text: str) -> list[float]:
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


def words(text: str) -> list[str]:
    """Returns the words of a text in lower case; "don't" is one word."""
    return _WORD.findall(text.lower())


def word_counts(texts: Sequence[str]) -> np.ndarray:
    """Counts the words of texts, each word at the place that its hash gives it.

    Words that share a place are counted together, some with the opposite sign, so that
    on average they do not disturb each other (Weinberger et al. 2009, "Feature hashing
    for large scale multitask learning", section 2).

    Returns:
      `[B, 1024]` float32.
    """
    found = np.zeros((len(texts), NUM_WORDS), np.float32)
    for own, text in zip(found, texts, strict=True):
        for word in words(text.replace("’", "'")):
            number = zlib.crc32(word.encode())
            own[number % NUM_WORDS] += 1 - 2 * (number >> 31)
    return found
