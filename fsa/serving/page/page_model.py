"""`PageModel`: what the page shows of a run, and of a person.

Everything is JSON: options by their positions, places on the map as pairs of numbers.

Shapes: O options, P people, D latent dimensions.
"""

import functools
import json
from collections.abc import Iterable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from fsa import text_tables
from fsa.episodes import Options
from fsa.errors import InputError
from fsa.inference.option_lookup import is_prompted
from fsa.inference.ranking import Ranking
from fsa.models.linear_reward import CHOICES, LinearRewardModel
from fsa.serving.page import markdown, people_map
from fsa.serving.page.crowd import Crowd
from fsa.serving.page.people_map import PeopleMap
from fsa.serving.person_model import Answer, PersonModel, canonical

# Characters of an option's name in rankings.
_NAME = 80
# Rankings that are kept, so that what an answer moved is not ranked twice.
_KEPT = 64
# Of the variance among people: an axis of less means nothing.
_LEAST_SHARE = 0.01

Json = dict[str, Any]


class PageModel:
    """What the page shows."""

    def __init__(
        self,
        model: PersonModel,
        options: Sequence[Any],
        crowd: Crowd | None,
        *,
        title: str,
        attribution: str = "",
    ):
        """Draws the map of people.

        Args:
          model: of the run.
          options: O options that are asked about, see `Ranker`.
          crowd: people to compare somebody with; None for a model without z.
          title: name of the run.
          attribution: where the options are from, if that has to be said.
        """
        self.model, self.options = model, list(options)
        self.title, self.attribution = title, attribution
        self._crowd = crowd
        self._map = None if crowd is None else PeopleMap.of(crowd.z)
        self._ranked = functools.lru_cache(_KEPT)(self._rank)

    @property
    def takes(self) -> dict[str, bool]:
        """Which answers the model understands beside choices."""
        linear = self.model.ranker.model
        is_linear = isinstance(linear, LinearRewardModel)
        return {"tie": is_linear, "vote": is_linear and linear.context != CHOICES}

    @property
    def can_choose(self) -> bool:
        """Whether the model tells which question is worth more than another."""
        ranker = self.model.ranker
        return bool(ranker.model.latent_dim) and not ranker.deterministic

    def session(self) -> Json:
        """Returns what does not depend on the person."""
        return self._session

    @functools.cached_property
    def _session(self) -> Json:
        ranges = _ranges(self.options)
        return {
            "title": self.title,
            "attribution": self.attribution,
            "policy": self.model.steerer is not None,
            "takes": self.takes,
            "can_choose": self.can_choose,
            "options": [_shown(option) for option in self.options],
            "ranges": ranges,
            "map": self._map and self._people(),
        }

    def view(
        self,
        answers: Sequence[tuple[str, Answer]],
        *,
        skipped: Iterable[tuple[int, int]] = (),
        random: bool = False,
    ) -> Json:
        """Returns what is asked next and what is believed of a person.

        Args:
          answers: ids and rows of what the person told.
          skipped: pairs of options that are not asked.
          random: whether to ask in a random order.

        Raises:
          InputError: for an answer that the model cannot use.
        """
        rows = [row for _, row in answers]
        random = random or not self.can_choose
        question = self.model.question(rows, self.options, skipped, random)
        ranking = self._ranked(*map(canonical, rows))
        before = self._ranked(*map(canonical, rows[:-1])) if rows else ranking
        return {
            "answers": [own for own, _ in answers],
            "question": question and [question.first, question.second],
            "certainty": self._certainty(rows),
            "ranking": _rows(ranking),
            "moved": _moved(before, ranking) if rows else [],
            "place": self.place(rows),
        }

    def place(self, rows: Sequence[Answer]) -> Json | None:
        """Returns where a person is believed to be; None for a model without z."""
        if self._map is None:
            return None
        q = self.model.posterior(rows)
        loops = people_map.contours(self._map.components(q))
        return {
            "contours": [[_rounded(loop) for loop in share] for share in loops],
            "mean": _rounded(self._map.place(q.mean)),
        }

    def row(self, kind: str, options: Sequence[int]) -> Answer:
        """Returns an answer as a row of a table.

        Args:
          kind: "chosen", with the chosen and the rejected option; "tied" with two;
            "liked" or "disliked" with one.
          options: positions.

        Raises:
          InputError: for an unknown kind, or options that do not fit it.
        """
        names = {
            "chosen": ("chosen", "rejected"),
            "tied": ("chosen", "rejected"),
            "liked": ("liked",),
            "disliked": ("disliked",),
        }.get(kind, ())
        if not names or len(names) != len(options):
            raise InputError(
                f"kind={kind!r} with {len(options)} options: no such answer"
            )
        if not all(0 <= i < len(self.options) for i in options):
            raise InputError(f"options={list(options)}: there are {len(self.options)}")
        own = [self.options[i] for i in options]
        row: Answer = {"prompt": own[0][0]} if is_prompted(own[0]) else {}
        row |= {
            name: option[1] if is_prompted(option) else option
            for name, option in zip(names, own, strict=True)
        }
        return row | ({"tie": True} if kind == "tied" else {})

    def _rank(self, *answers: str) -> Ranking:
        return self.model.rank(map(json.loads, answers), self.options)

    def _certainty(self, rows: Sequence[Answer]) -> Json | None:
        """Returns how often the model expects to be right, now and at first."""
        if not self.can_choose:
            return None
        return {"now": self._expected(rows), "before": self._expected_at_first}

    @functools.cached_property
    def _expected_at_first(self) -> float:
        return self._expected(())

    def _expected(self, rows: Sequence[Answer]) -> float:
        return self.model.questions(rows, self.options).expected_accuracy

    def _people(self) -> Json:
        """Returns the map without the person."""
        crowd, ends = self._crowd, self._ends()
        places = self._map.place(crowd.z)
        first = self._map.components(self.model.posterior([]))
        drawn = [
            places,
            *(loop for share in people_map.contours(first) for loop in share),
        ]
        group = [None] * len(places) if crowd.group is None else crowd.group.tolist()
        people = zip(map(_rounded, places), group, strict=True)
        return {
            "bounds": _rounded(people_map.bounds(np.concatenate(drawn))),
            "people": list(people) if crowd.are_people else [],
            "groups": list(crowd.names),
            "axes": ends,
        }

    def _ends(self) -> list[Json]:
        """Returns which option gains most toward each end of the axes."""
        options = Options(*map(jnp.asarray, self._features))
        found = []
        for axis, share, std in zip(
            self._map.axes, self._map.share, self._stds(), strict=True
        ):
            ends = [self._rewards(options, sign * std * axis) for sign in (1, -1)]
            gain = ends[0] - ends[1]
            names = {"high": int(gain.argmax()), "low": int(gain.argmin())}
            none = share < _LEAST_SHARE or names["high"] == names["low"]
            found.append(
                {
                    end: "" if none else _name(self.options[i])
                    for end, i in names.items()
                }
            )
        return found

    def _stds(self) -> np.ndarray:
        return self._map.place(self._crowd.z).std(axis=0)

    def _rewards(self, options: Options, gap: np.ndarray) -> np.ndarray:
        """Computes the rewards `[O]` at a distance from the mean of people."""
        ranker = self.model.ranker
        z = jnp.asarray(self._map.origin + gap, jnp.float32)
        reward, _ = ranker.model.apply(
            ranker.variables, options, z, method=ranker.model.reward
        )
        return np.asarray(reward, float)

    @functools.cached_property
    def _features(self) -> Options:
        return self.model.features(self.options)


def _rows(ranking: Ranking) -> list[Json]:
    """Returns the ranked options with their intervals, the most wanted first."""
    low = np.clip(ranking.probability - ranking.std, 0, 1)
    high = np.clip(ranking.probability + ranking.std, 0, 1)
    return [
        {
            "option": int(i),
            "probability": float(ranking.probability[i]),
            "low": float(low[i]),
            "high": float(high[i]),
        }
        for i in ranking.order
    ]


def _moved(before: Ranking, after: Ranking) -> list[Json]:
    """Returns the options that an answer moved, the farthest first."""
    gap = after.probability - before.probability
    order = np.argsort(-np.abs(gap), kind="stable")
    return [
        {
            "option": int(i),
            "from": float(before.probability[i]),
            "to": float(after.probability[i]),
        }
        for i in order[:6]
        if abs(gap[i]) >= 0.005
    ]


def _shown(option: Any) -> Json:
    prompt, text = option if is_prompted(option) else ("", option)
    found = {"prompt": prompt, "short": _name(option)}
    if isinstance(text, str):
        return found | {"text": text[:_NAME], "html": markdown.render(text)}
    numbers = np.ravel(np.asarray(text, float)).tolist()
    shown = ", ".join(f"{x:.3g}" for x in numbers[:12])
    return found | {"text": shown, "numbers": numbers}


def _name(option: Any) -> str:
    """Returns an option in one short line."""
    text = option[1] if is_prompted(option) else option
    if not isinstance(text, str):
        text = ", ".join(f"{x:.3g}" for x in np.ravel(text)[:6])
    return text_tables.shortened(text_tables.in_one_line(text[:2000]), _NAME)


def _ranges(options: Sequence[Any]) -> list[list[float]]:
    """Returns the least and the greatest value of each feature of options."""
    vectors = [x for x in options if not isinstance(x, str) and not is_prompted(x)]
    if not vectors:
        return []
    values = np.stack([np.ravel(np.asarray(x, float)) for x in vectors])
    return np.stack([values.min(axis=0), values.max(axis=0)], axis=1).tolist()


def _rounded(x: np.ndarray) -> list[Any]:
    return np.round(np.asarray(x, float), 5).tolist()
