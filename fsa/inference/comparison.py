"""`Comparison`: two options, and how sure a model is of which a person wants."""

import dataclasses
from typing import Any

import numpy as np

from fsa import text_tables
from fsa.inference.option_lookup import is_prompted

# Columns that an option takes at most in a sentence.
_WIDTH = 40


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Two options compared for one person; printed, it is two sentences.

    Attributes:
      first: an option.
      second: another one.
      probability: that the first is chosen over the second.
      difference: of their rewards, as log odds in nats, the expected value.
      interval: the ends of the 90% interval of that difference, by what is not known
        about the person.
    """

    first: Any
    second: Any
    probability: float
    difference: float
    interval: tuple[float, float]

    @property
    def probability_interval(self) -> tuple[float, float]:
        """The same interval as probabilities that the first option is chosen."""
        low, high = 1 / (1 + np.exp(-np.array(self.interval)))
        return float(low), float(high)

    def __str__(self) -> str:
        """Says how likely the first option is chosen, in percent."""
        first, second = (
            text_tables.shortened(text_tables.in_one_line(_text(option)), _WIDTH)
            for option in (self.first, self.second)
        )
        low, high = (100 * end for end in self.probability_interval)
        return (
            f"{first} is chosen over {second} with {100 * self.probability:.1f}%. Were "
            f"everything known\nabout the person, it would be between {low:.1f} and "
            f"{high:.1f}%, as far as can be told (90% interval)."
        )


def _text(option: Any) -> str:
    if is_prompted(option):
        option = option[1]
    return option if isinstance(option, str) else str(np.asarray(option).tolist())
