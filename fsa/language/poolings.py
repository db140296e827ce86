"""What the features of a response are made of.

A pooling names its parts, joined by "_and_" in this order: "mean" and "last" are final
hidden states of the language model, as a mean over the response's tokens and at the
last of them; "form" measures the text, see `fsa.language.form`.
"""

import itertools

from fsa.language import form

MEAN, LAST, FORM = _PARTS = ("mean", "last", "form")
POOLINGS = tuple(
    "_and_".join(parts)
    for number in range(1, len(_PARTS) + 1)
    for parts in itertools.combinations(_PARTS, number)
)


def states_of(pooling: str) -> tuple[str, ...]:
    """Returns the parts that are hidden states.

    Raises:
      ValueError: for a name that is none of `POOLINGS`.
    """
    if pooling not in POOLINGS:
        raise ValueError(f"`pooling`={pooling!r} must be one of {POOLINGS}")
    return tuple(part for part in pooling.split("_and_") if part != FORM)


def has_form(pooling: str) -> bool:
    """Returns whether the form of the text is a part."""
    return FORM in pooling.split("_and_")


def num_features(pooling: str, width: int) -> int:
    """Returns F, the number of features that a pooling gives a response.

    Args:
      pooling: one of `POOLINGS`.
      width: of the language model's hidden states.
    """
    return width * len(states_of(pooling)) + form.NUM_MEASURES * has_form(pooling)
