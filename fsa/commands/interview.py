"""An interview of one person about options: what to ask, and what to show.

Nothing here reads or writes; `fsa.commands.ask` does. Shapes: O options.
"""

import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fsa import text_tables
from fsa.inference.option_lookup import is_prompted
from fsa.inference.questions import Questions
from fsa.inference.ranker import Ranker
from fsa.inference.ranking import Ranking

FIRST, SECOND, TIE, SKIP = "1", "2", "t", "s"

# Lines that an option takes at most, and how many options a ranking shows at each end.
_LINES, _ENDS = 12, 3


@dataclasses.dataclass(frozen=True)
class Answer:
    """An answer to a question about two options.

    Attributes:
      pair: positions of the two options, as they were shown.
      key: `FIRST`, `SECOND`, `TIE` or `SKIP`.
    """

    pair: tuple[int, int]
    key: str

    @property
    def chosen(self) -> tuple[int, int]:
        """Positions of the chosen and of the rejected option; of a tie, of both."""
        return self.pair[::-1] if self.key == SECOND else self.pair


class Interview:
    """The answers of a person so far, and what follows from them."""

    def __init__(
        self,
        ranker: Ranker,
        options: Sequence[Any],
        *,
        earlier: Mapping[str, Sequence[Any]] | None = None,
        random: bool = False,
        seed: int = 0,
    ):
        """Begins without answers.

        Args:
          ranker: infers what the person wants.
          options: O options, see `Ranker`; only those of one prompt are compared.
          earlier: what the person told before, as arguments of `Ranker.rank`.
          random: whether to ask in a random order in place of the most telling first.
          seed: seed of that order, and of samples of z.
        """
        self.options = list(options)
        self.answers: list[Answer] = []
        self._ranker, self._earlier, self._seed = ranker, dict(earlier or {}), seed
        self._random = random
        pairs = list(itertools.combinations(range(len(self.options)), 2))
        np.random.default_rng(seed).shuffle(pairs)
        self._shuffled = [tuple(pair) for pair in pairs]
        # Of the answers so far; None before it is computed.
        self._expectations: Questions | None = None

    @property
    def can_choose(self) -> bool:
        """Whether the model tells which question is worth more than another."""
        return bool(self._ranker.model.latent_dim) and not self._ranker.deterministic

    @property
    def can_ask(self) -> bool:
        """Whether any two different options answer the same prompt."""
        return bool(self._compared)

    @property
    def kept(self) -> list[Answer]:
        """The answers that tell something: all that are not skipped."""
        return [each for each in self.answers if each.key != SKIP]

    @property
    def num_answered(self) -> int:
        """Number of questions that were answered and not skipped."""
        return len(self.kept)

    @property
    def told(self) -> dict[str, Any]:
        """What the person told, as arguments of `Ranker.rank`."""
        told = {name: list(values) for name, values in self._earlier.items()}
        for each in self.kept:
            first, second = (self.options[i] for i in each.chosen)
            if each.key == TIE:
                told.setdefault("tied", []).append((first, second))
            else:
                told.setdefault("chosen", []).append(first)
                told.setdefault("rejected", []).append(second)
        return told

    def question(self) -> tuple[int, int] | None:
        """Returns the pair to ask about next; None if all pairs were asked."""
        asked = [each.pair for each in self.answers]
        if not self._random:
            best = self._expected.best(asked)
            return best and (best.first, best.second)
        unanswered = self._ranker.unanswered(
            self.options, within_prompts=True, **self.told
        )
        kept = set(unanswered) - set(asked)
        return next((pair for pair in self._shuffled if pair in kept), None)

    def answer(self, pair: tuple[int, int], key: str) -> None:
        """Notes an answer."""
        self.answers.append(Answer(pair, key))
        self._expectations = None

    def undo(self) -> None:
        """Forgets the last answer, which is asked again."""
        self.answers.pop()
        self._expectations = None

    def ranking(self) -> Ranking:
        """Ranks the options, each among those that answer the same prompt.

        Options that are alone with their prompt are left out.
        """
        return self._ranker.rank(
            self._compared, within_prompts=True, seed=self._seed, **self.told
        )

    @functools.cached_property
    def _compared(self) -> list[Any]:
        """The options that are compared with another one."""
        pairs = self._ranker.unanswered(self.options, within_prompts=True)
        return [self.options[i] for i in sorted({i for pair in pairs for i in pair})]

    def certainty(self) -> float | None:
        """Returns how often the model expects to be right; None if it cannot tell.

        That is about two options of the same prompt, of which the person chooses one.
        """
        return self._expected.expected_accuracy if self.can_choose else None

    @property
    def _expected(self) -> Questions:
        if self._expectations is None:
            self._expectations = self._ranker.questions(
                self.options, within_prompts=True, seed=self._seed, **self.told
            )
        return self._expectations


def prompt_of(option: Any) -> str:
    """Returns what an option answers; "" if it is no pair (prompt, text)."""
    return option[0] if is_prompted(option) else ""


def text_of(option: Any) -> str:
    """Returns an option as text in one line that a terminal shows and does not obey."""
    if is_prompted(option):
        option = option[1]
    if not isinstance(option, str):
        option = ", ".join(f"{number:.4g}" for number in np.ravel(option))
    return text_tables.in_one_line(option)


def shown_question(title: str, first: Any, second: Any, width: int) -> str:
    """Formats a question for a terminal.

    Args:
      title: what stands above the two options.
      first: an option.
      second: another one.
      width: columns of the terminal.
    """
    lines = ["", *_indented("", text_tables.in_one_line(title), width)]
    for key, option in ((FIRST, first), (SECOND, second)):
        lines += _indented(f"  {key}  ", text_of(option), width)
    return "\n".join(lines)


def shown_ranking(ranking: Ranking, width: int) -> str:
    """Formats the options at the two ends of a ranking.

    Their numbers are how likely they are chosen over another option, and one standard
    deviation to each side, by what is not known about the person.
    """
    rows = ranking.rows()
    kept = rows
    if len(rows) > 2 * _ENDS:
        kept = [*rows[:_ENDS], None, *rows[-_ENDS:]]
    names = max(10, width - 28)
    cells = [["", "chosen, %", "range"]]
    for row in kept:
        if row is None:
            cells.append(["...", "", ""])
            continue
        name = text_tables.shortened(text_of(row["option"]), names)
        middle, std = 100 * row["probability"], 100 * row["std"]
        low, high = max(0, middle - std), min(100, middle + std)
        cells.append(
            [f"{row['rank']}. {name}", f"{middle:.0f}", f"{low:.0f} to {high:.0f}"]
        )
    return text_tables.aligned(cells)


def _indented(head: str, text: str, width: int) -> list[str]:
    """Returns the lines of a text behind a head; a very long one loses its end."""
    room = max(10, width - len(head))
    lines = _wrapped(text, room)
    if len(lines) > _LINES:
        rest = "... (goes on)"
        lines = [*lines[: _LINES - 1], rest]
    blank = " " * len(head)
    return [f"{head if i == 0 else blank}{line}" for i, line in enumerate(lines)]


def _wrapped(text: str, width: int) -> list[str]:
    """Splits a text in one line into lines of at most `width` columns."""
    # Not textwrap, for which every character takes one column.
    lines, line = [], ""
    for word in text.split():
        longer = f"{line} {word}" if line else word
        if text_tables.width_of(longer) <= width:
            line = longer
            continue
        if line:
            lines.append(line)
        line = ""
        for character in word:
            if text_tables.width_of(line + character) > width:
                lines.append(line)
                line = ""
            line += character
    return [*lines, line] if line or not lines else lines
