"""What one person told, from the arguments of `Ranker.rank` to arrays.

Shapes: N, everything that was told, F features.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from fsa import episodes
from fsa.episodes import Feedback, Options
from fsa.errors import InputError
from fsa.inference.option_lookup import BadOption, OptionLookup
from fsa.models import linear_reward
from fsa.models.linear_reward import LinearRewardModel
from fsa.models.reward_models import AnyRewardModel

# Kind of feedback -> what one of them, and several, are called.
_NAMES = {
    "chosen": ("choice", "choices"),
    "tied": ("tie", "ties"),
    "liked": ("like", "likes"),
    "disliked": ("dislike", "dislikes"),
    "rated": ("rating", "ratings"),
}


class NotTrained(InputError):
    """A kind of feedback that a model was not trained on.

    Attributes:
      argument: name of the argument that holds it.
      reason: what the model lacks, and which model to train.
    """

    def __init__(self, argument: str, reason: str):
        """Makes the message of the argument and the reason."""
        super().__init__(f"`{argument}`: {reason}")
        self.argument, self.reason = argument, reason


@dataclasses.dataclass(frozen=True)
class Told:
    """What a person told; each option is as `Ranker` takes it.

    Attributes:
      chosen: options that were chosen.
      rejected: the options that were rejected for them, in the same order.
      tied: pairs of options that are equally good.
      liked: options.
      disliked: options.
      rated: pairs (option, rating), each rating one of those that the model was trained
        on.
      weights: how often each counts, by the names of these arguments but `rejected`;
        once by default.
    """

    chosen: list[Any]
    rejected: list[Any]
    tied: list[tuple[Any, Any]]
    liked: list[Any]
    disliked: list[Any]
    rated: list[tuple[Any, float]]
    weights: dict[str, list[float]]

    @classmethod
    def of(
        cls,
        chosen: Any = (),
        rejected: Any = (),
        tied: Any = (),
        liked: Any = (),
        disliked: Any = (),
        rated: Any = (),
        weights: Mapping[str, Sequence[float]] | None = None,
    ) -> "Told":
        """Makes lists of the arguments; `rated` may be a dict.

        Raises:
          InputError: if something is no list, no pair, or has another length.
        """
        lists = {
            "chosen": as_list("chosen", chosen),
            "rejected": as_list("rejected", rejected),
            "tied": _pairs("tied", tied, "(option, option)"),
            "liked": as_list("liked", liked),
            "disliked": as_list("disliked", disliked),
            "rated": _pairs(
                "rated",
                rated.items() if isinstance(rated, Mapping) else rated,
                "(option, rating)",
            ),
        }
        if len(lists["chosen"]) != len(lists["rejected"]):
            raise InputError(
                f"`chosen` has {len(lists['chosen'])} options and `rejected` "
                f"{len(lists['rejected'])}; give one of each for every choice"
            )
        return cls(**lists, weights=_weights(weights or {}, lists))

    @property
    def counts(self) -> dict[str, int]:
        """How many there are of each kind, by the name of the argument."""
        return {name: len(getattr(self, name)) for name in _NAMES}

    @property
    def arguments(self) -> list[str]:
        """The names of the arguments that were given, for messages."""
        given = [name for name, count in self.counts.items() if count] or ["chosen"]
        return ["chosen", "rejected", *given[1:]] if given[0] == "chosen" else given

    def __len__(self) -> int:
        """The number of all that was told, N."""
        return sum(self.counts.values())

    def check(self, model: AnyRewardModel) -> None:
        """Checks that a model was trained on what was told.

        Raises:
          NotTrained: for a kind of feedback that it was not trained on.
          InputError: for weights, if it takes none.
        """
        linear = isinstance(model, LinearRewardModel)
        context = model.context if linear else linear_reward.CHOICES
        votes, ratings = linear_reward.VOTES, linear_reward.RATINGS
        for name, known, how in (
            ("tied", linear, "model.reward=linear"),
            ("liked", context != linear_reward.CHOICES, _with_context(votes, ratings)),
            (
                "disliked",
                context != linear_reward.CHOICES,
                _with_context(votes, ratings),
            ),
            ("rated", context == ratings, _with_context(ratings)),
        ):
            if getattr(self, name) and not known:
                why = f"the model was not trained for {_NAMES[name][1]}"
                raise NotTrained(name, f"{why}; train one with {how}")
        if self.weights and not linear:
            raise InputError(
                "`weights`: all that is told counts once in this model; train one with "
                "model.reward=linear"
            )

    def as_feedback(
        self, lookup: OptionLookup, levels: Sequence[float], size: int
    ) -> Feedback:
        """Looks up the options, and pads to a size.

        Args:
          lookup: finds features `[F]`.
          levels: the ratings that there are, ascending.
          size: at least N.

        Returns:
          Feedback `[size]`.

        Raises:
          BadOption: if an option cannot be found, or a rating is none of the levels.
        """
        single = [
            lookup("liked", self.liked),
            lookup("disliked", self.disliked),
            lookup("rated", [option for option, _ in self.rated], part=0),
        ]
        first = [
            lookup("chosen", self.chosen),
            lookup("tied", [a for a, _ in self.tied], part=0),
            *single,
        ]
        second = [
            lookup("rejected", self.rejected),
            lookup("tied", [b for _, b in self.tied], part=1),
            *single,
        ]
        counts = list(self.counts.values())
        kinds = episodes.CHOICE, episodes.TIE, episodes.LIKE, episodes.DISLIKE
        kind = np.repeat(np.array(kinds, np.int32), counts[:-1])
        rating = [self._level(i, levels) for i in range(len(self.rated))]
        weight = [
            self.weights.get(name, [1.0] * count) for name, count in self.counts.items()
        ]
        told = Feedback(
            _joined(first),
            _joined(second),
            np.append(kind, np.array(rating, np.int32)),
            np.ones(len(self), bool),
            np.concatenate(weight).astype(np.float32),
        )
        return jax.tree.map(lambda x: pad(x, size), told)

    def _level(self, number: int, levels: Sequence[float]) -> int:
        _, value = self.rated[number]
        if value not in levels:
            known = ", ".join(f"{level:g}" for level in levels)
            why = f"its rating {value!r} is none of {known}"
            raise BadOption("rated", number, why, part=1)
        return episodes.RATING + list(levels).index(value)


def told_in_words(counts: Mapping[str, int]) -> str:
    """Returns `Told.counts` in words, such as "3 choices and 1 like"."""
    parts = [
        f"{count} {_NAMES[name][count != 1]}" for name, count in counts.items() if count
    ]
    if not parts:
        return "0 choices"
    *others, last = parts
    return f"{', '.join(others)} and {last}" if others else last


def pad(x: np.ndarray, size: int) -> np.ndarray:
    """Fills an array `[N, ...]` with zeros to `[size, ...]`."""
    # np.pad takes longer than the posterior of a few choices.
    padded = np.zeros((size, *x.shape[1:]), x.dtype)
    padded[: len(x)] = x
    return padded


def as_list(name: str, values: Any) -> list[Any]:
    """Returns an argument as a list.

    Raises:
      InputError: if it is a text or cannot be listed.
    """
    try:
        if isinstance(values, str | bytes):
            raise TypeError
        return list(values)
    except TypeError:
        raise InputError(
            f"`{name}`: give a list, not {type(values).__name__}"
        ) from None


def _pairs(name: str, values: Any, what: str) -> list[tuple[Any, Any]]:
    pairs = [as_list(name, pair) for pair in as_list(name, values)]
    if any(len(pair) != 2 for pair in pairs):
        raise InputError(f"`{name}`: give a list of pairs {what}")
    return [tuple(pair) for pair in pairs]


def _weights(
    weights: Mapping[str, Any], lists: Mapping[str, list[Any]]
) -> dict[str, list[float]]:
    found = {}
    for name, values in weights.items():
        if name not in _NAMES:
            raise InputError(f"`weights`: no {name!r}; there are {', '.join(_NAMES)}")
        found[name] = as_list("weights", values)
        if len(found[name]) != len(lists[name]):
            raise InputError(
                f"`weights` has {len(found[name])} numbers for {len(lists[name])} of "
                f"`{name}`; give one for each"
            )
        if not all(_is_positive(value) for value in found[name]):
            raise InputError("`weights`: give finite numbers above 0")
    return found


def _is_positive(value: Any) -> bool:
    try:
        return 0 < float(value) < 1e30
    except (TypeError, ValueError):
        return False


def _joined(parts: Sequence[Options]) -> Options:
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)


def _with_context(*contexts: str) -> str:
    return " or ".join(f"model.context={context}" for context in contexts)
