"""What the features of a response are made of.

A pooling names its parts, joined by "_and_" in this order: "mean" and "last" are final
hidden states of the language model, as a mean over the response's tokens and at the
last of them; "form" and "words" are measured in its text, see
`fsa.language.text_features`.
"""

import itertools
from collections.abc import Callable, Collection, Sequence

import numpy as np

from fsa.language import text_features

MEAN, LAST = _STATES = ("mean", "last")
# Part -> (number of features, their function).
_OF_TEXT: dict[str, tuple[int, Callable[[Sequence[str]], np.ndarray]]] = {
    "form": (text_features.NUM_FORM, text_features.form),
    "words": (text_features.NUM_WORDS, text_features.word_counts),
}
PARTS = (*_STATES, *_OF_TEXT)
POOLINGS = tuple(
    "_and_".join(parts)
    for number in range(1, len(PARTS) + 1)
    for parts in itertools.combinations(PARTS, number)
)


def states_of(pooling: str) -> tuple[str, ...]:
    """Returns the parts that are hidden states.

    Raises:
      ValueError: for a name that is none of `POOLINGS`.
    """
    if pooling not in POOLINGS:
        raise ValueError(f"`pooling`={pooling!r} must be one of {POOLINGS}")
    return _parts(pooling, _STATES)


def reads_text(pooling: str) -> bool:
    """Returns whether a part is measured in the text."""
    return bool(_parts(pooling, _OF_TEXT))


def features_of_texts(pooling: str, texts: Sequence[str]) -> np.ndarray:
    """Returns the features of texts that a pooling measures in them, `[B, F]`."""
    found = [_OF_TEXT[part][1](texts) for part in _parts(pooling, _OF_TEXT)]
    return np.concatenate(found, axis=1)


def num_features(pooling: str, width: int) -> int:
    """Returns F, the number of features that a pooling gives a response.

    Args:
      pooling: one of `POOLINGS`.
      width: of the language model's hidden states.
    """
    of_text = sum(_OF_TEXT[part][0] for part in _parts(pooling, _OF_TEXT))
    return width * len(states_of(pooling)) + of_text


def _parts(pooling: str, kinds: Collection[str]) -> tuple[str, ...]:
    """Returns the parts of a pooling that are of some kinds."""
    return tuple(part for part in pooling.split("_and_") if part in kinds)
