"""Evaluation of generated texts: do users get what they want, and is the text valid?

Texts are sampled at the temperature that users get, since greedy text hides damage.
Shapes: U users, P prompts of a user, C context sizes.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from fsa import text_tables
from fsa.data.sources import corpus
from fsa.data.sources.attributes import (
    ATTRIBUTES,
    Attribute,
    distinct_2,
    known_word_share,
    middle,
    num_words,
    words,
)
from fsa.data.sources.attributes import sides as sides_of
from fsa.data.tasks.pairs import PairTask
from fsa.evaluation.methods import Method
from fsa.evaluation.scores import bootstrap_interval
from fsa.language.language_model import LanguageModel, Written

# Measures of how valid each text is, in [0, 1], given the words of the dataset's texts.
VALIDITY: dict[str, Callable[[Sequence[str], Iterable[str]], np.ndarray]] = {
    "corpus": lambda texts, pool: np.array([corpus.parses(t) for t in texts], float),
    "words": known_word_share,
}


# Measures of texts that are as a group wants, beside those of a method.
_ALIKE = ("perplexity", "tokens", "ended", "distinct_2", "own_distinct_2")
# Of one text alone the perplexity is far from that of others of its length.
_PARTNERS = 8


@dataclasses.dataclass(frozen=True)
class Sample:
    """The texts written for one user and one prompt, for people to read.

    Attributes:
      group: the user's group.
      user: the user's name.
      prompt: the prompt.
      reference: the text of the language model itself.
      steered: the texts of the method, one for each context size.
    """

    group: str
    user: str
    prompt: str
    reference: str
    steered: tuple[str, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class TextEvaluator:
    """Generates texts for test users of each group, and measures them.

    Attributes:
      language: the language model itself, which is the reference.
      method: the method that writes for users.
      task: the task that has the users and prompts.
      num_context: context sizes.
      attribute: name of what the groups disagree about, see
        `fsa.data.sources.attributes`. A group that is named after one side of the
        attribute wants that side; other groups have no `share`. "" if it is not known.
        Of several names, joined by commas, each group has the one that it is named
        after, or the first.
      validity: name of a measure in `VALIDITY`, or "" for none.
      users_per_group: the largest number of users of each group.
      prompts_per_user: P.
      max_new_tokens: the largest number of tokens of a text.
      temperature: temperature of sampling.
      num_resamples: number of resamples of bootstrap intervals over users.
      seed: seed of the choice of prompts and of sampling.
      progress: whether to show a progress bar.
    """

    language: LanguageModel
    method: Method
    task: PairTask
    num_context: tuple[int, ...]
    attribute: str
    validity: str
    users_per_group: int
    prompts_per_user: int
    max_new_tokens: int
    temperature: float = 1.0
    num_resamples: int = 1000
    seed: int = 0
    progress: bool = True

    def __call__(self) -> tuple[dict[str, Any], list[Sample]]:
        """Generates and measures texts of the method and of the language model.

        Returns:
          {"attribute": name, "generated": {group: measures}, "reference": measures} for
          `evaluation.json`, and samples. With an attribute there are also "unsteered",
          {group: measures of the language model's own texts for it}, and "alike", those
          of the language model's texts that have what the group wants, see `_alike`.
          Measures are lists over context sizes, or with
          one entry for the reference: `share` of texts on the group's side of the
          attribute among those that show either side (for the reference, on the first
          side) and `attribute` as it is measured, if there is an attribute; `validity`;
          `perplexity` per token under the language model; `tokens` and `words` of a
          text; `ended`, the share of texts that end by themselves rather than at the
          largest number of tokens; `distinct_2` of the texts of a user; and `kl` to the
          language model in nats per text, which times beta is the implicit reward. Each
          but perplexity has an interval over users, `..._ci`. A number that is not
          known is None.
        """
        plain = self._reference
        found, written = self._evaluate(
            self.method, self.num_context, "{} choices known"
        )
        measured = self._measure(plain, *self._of_reference, self._names[0])
        result = {
            "attribute": self.attribute,
            "generated": found,
            "reference": _as_lists([self._summary(measured)]),
        }
        if self.attribute:
            unsteered = self._of_groups(plain, *self._of_reference)
            result["unsteered"] = {k: _as_lists([one]) for k, one in unsteered.items()}
            result["alike"] = self._alike(written)
        return result, self._samples(written)

    def between(self, method: Method, points: Sequence[float]) -> dict[str, Any]:
        """Measures another method on the same prompts.

        Args:
          method: takes a position between two users in place of a number of choices.
          points: the positions.

        Returns:
          {group: measures}; measures are lists over the positions.
        """
        return self._evaluate(method, points, "z at {}")[0]

    def _evaluate(self, method: Method, settings: Sequence[float], shown: str):
        """Returns {group: measures}, and the texts at each setting, `shown` as it."""
        found = {name: [] for name in self.task.groups}
        written = []
        users = np.repeat(self._users, self.prompts_per_user)
        for setting in settings:
            texts, log_probs = method(
                *(users, self._prompts, setting),
                **self._options(f"Writing, {shown.format(setting)}"),
            )
            written.append(texts)
            reference = self.language.score(texts.table)[0]
            kl = np.full_like(reference, np.nan)
            if log_probs is not None:
                kl = log_probs - reference
            for group, own in self._of_groups(texts, reference, kl).items():
                found[group].append(own)
        return {group: _as_lists(own) for group, own in found.items()}, written

    def _of_groups(self, texts: Written, reference, kl) -> dict[str, dict[str, Any]]:
        """Returns the measures of each group's texts, among texts for all users."""
        measured = {
            name: self._measure(texts, reference, kl, name) for name in self._names
        }
        found = {}
        for group, part in self._parts.items():
            name = self._name_of(group)
            own = {key: values[part] for key, values in measured[name].items()}
            if name:
                own["share"] = _share_wanted(own["share"], group, ATTRIBUTES[name])
            found[group] = self._summary(own)
        return found

    def _alike(self, written: Sequence[Written]) -> dict[str, dict[str, list]]:
        """Compares texts with those of the language model that are as the group wants.

        A steered text may be worse than a plain one because it is short, or a list.
        Each text of the method has as its partners the nearest in length of the
        language model's own texts, for whichever user, that are on the side that the
        group wants: as many as `_PARTNERS`, and those that are as near. The texts of a
        group that wants no side, or has no such partners, have none.

        Returns:
          {group: measures}, lists over context sizes: `perplexity`, `tokens`, `ended`
          and `distinct_2` of the partners, the last as a mean over texts; and
          `own_distinct_2`, that mean for the texts of the method.
        """
        plain, (log_probs, _) = self._reference, self._of_reference
        sizes = (plain.table.length - plain.table.start).astype(float)
        ended = self._ended(plain)
        repeats = np.array([distinct_2([text]) for text in plain.texts])
        found = {}
        for group, part in self._parts.items():
            name, rows = self._name_of(group), []
            side = np.full(len(sizes), np.nan)
            if name:
                attribute = ATTRIBUTES[name]
                side = sides_of(attribute, plain.texts, self._thresholds[name])
                side = _share_wanted(side, group, attribute)
            pool = np.flatnonzero(side == 1)
            for texts in written:
                own = np.arange(len(sizes)).reshape(-1, self.prompts_per_user)[part]
                own = own.ravel()
                length = (texts.table.length - texts.table.start)[own]
                if not len(pool):
                    rows.append(dict.fromkeys(_ALIKE))
                    continue
                weight = _partners(length, sizes[pool])
                length_of_partners = np.average(sizes[pool], weights=weight)
                log_prob = np.average(log_probs[pool], weights=weight)
                mine = [distinct_2([texts.texts[i]]) for i in own]
                values = (
                    np.exp(-log_prob / length_of_partners),
                    length_of_partners,
                    np.average(ended[pool], weights=weight),
                    _mean(repeats[pool], weight),
                    _mean(np.array(mine)),
                )
                rows.append(dict(zip(_ALIKE, map(_number, values), strict=True)))
            found[group] = _as_lists(rows)
        return found

    @property
    def _names(self) -> tuple[str, ...]:
        """The names of the attributes; one that is empty if there is none."""
        return tuple(self.attribute.split(","))

    def _name_of(self, group: str) -> str:
        """Returns the name of the attribute that is measured in a group's texts."""
        for name in self._names:
            if name and group in ATTRIBUTES[name].sides:
                return name
        return self._names[0]

    @functools.cached_property
    def _parts(self) -> dict[str, slice]:
        """The users of each group, among all for whom texts are written."""
        ends = np.cumsum([0, *map(len, self._members)]).tolist()
        return {
            group: slice(*ends[i : i + 2]) for i, group in enumerate(self.task.groups)
        }

    def _ended(self, written: Written) -> np.ndarray:
        """Returns 1 for each text that ended by itself, 0 for one that was cut."""
        last = [written.table[i][-1] for i in range(len(written.texts))]
        return np.isin(last, self.language.stop_tokens).astype(float)

    @functools.cached_property
    def _of_reference(self) -> tuple[np.ndarray, np.ndarray]:
        """Log-probabilities of the language model's own texts, and their KL of 0."""
        log_probs = self.language.score(self._reference.table)[0]
        return log_probs, np.zeros_like(log_probs)

    @functools.cached_property
    def _members(self) -> list[np.ndarray]:
        """The users of each group for whom texts are written."""
        users = self.task.users("test")
        group_of = self.task.data.users["test"].group[users]
        groups = range(len(self.task.groups))
        return [users[group_of == g][: self.users_per_group] for g in groups]

    @property
    def _users(self) -> np.ndarray:
        return np.concatenate(self._members)

    @functools.cached_property
    def _prompts(self) -> list[str]:
        """The P prompts of each user, one user after another."""
        return [prompt for user in self._users for prompt in self._draw_prompts(user)]

    @functools.cached_property
    def _reference(self) -> Written:
        """The texts of the language model itself."""
        options = self._options("Writing by the language model itself")
        return self.language.write(self._prompts, **options)

    @functools.cached_property
    def _thresholds(self) -> dict[str, float]:
        """The threshold between the two sides of each attribute."""
        plain = self._reference.texts
        return {name: middle(ATTRIBUTES[name], plain) for name in self._names if name}

    def _draw_prompts(self, user: int) -> list[str]:
        """Draws P test prompts that are not in the user's context.

        If all test prompts are in the context, as in a dataset with a single prompt, P
        of them are drawn.
        """
        every = self.task.prompts("test")
        others = np.setdiff1d(every, self.task.context_prompts("test", user))
        others = others if len(others) else every
        rng = np.random.default_rng((self.seed, user))
        drawn = rng.choice(
            others, self.prompts_per_user, len(others) < self.prompts_per_user
        )
        return [self.task.data.prompts[prompt] for prompt in drawn]

    def _options(self, what: str) -> dict[str, Any]:
        """Returns the options of `LanguageModel.write`; the bar says `what`."""
        return {
            "what": what,
            "progress": self.progress,
            "max_new_tokens": self.max_new_tokens,
            "temperature": self.temperature,
            "seed": self.seed,
        }

    @functools.cached_property
    def _pool(self) -> set[str]:
        """The words of the dataset's texts, of which valid texts consist."""
        return {word for text in self.task.data.texts for word in words(text)}

    def _measure(
        self, written: Written, reference, kl, name: str
    ) -> dict[str, np.ndarray]:
        """Measures texts, for an attribute if any; returns {name: values `[U, P]`}."""
        table, texts, measures = written.table, written.texts, {}
        if name:
            attribute = ATTRIBUTES[name]
            measures["share"] = sides_of(attribute, texts, self._thresholds[name])
            measures["attribute"] = np.array(list(map(attribute.measure, texts)), float)
        if self.validity:
            measures["validity"] = VALIDITY[self.validity](texts, self._pool)
        own = np.reshape(np.array(texts, object), (-1, self.prompts_per_user))
        diversity = [distinct_2(of_user) for of_user in own]
        measures |= {
            "nll": -reference,
            "tokens": (table.length - table.start).astype(float),
            "words": np.array(list(map(num_words, texts))),
            "ended": self._ended(written),
            "distinct_2": np.repeat(diversity, self.prompts_per_user),
            "kl": kl,
        }
        return {k: v.reshape(-1, self.prompts_per_user) for k, v in measures.items()}

    def _summary(self, measures: dict[str, np.ndarray]) -> dict[str, Any]:
        """Averages measures over users, and gives their intervals."""
        nll = measures.pop("nll")
        summary = {"perplexity": float(np.exp(nll.sum() / measures["tokens"].sum()))}
        for name, values in measures.items():
            # Users whose texts all show neither side do not count.
            shown = values[~np.isnan(values).all(axis=1)]
            means = np.nanmean(shown, axis=1)
            summary[name] = float(means.mean()) if len(means) else None
            bounds = bootstrap_interval(means[:, None], self.num_resamples)[0]
            summary[f"{name}_ci"] = bounds.tolist()
        return summary

    def _samples(self, written) -> list[Sample]:
        """Returns the texts for the first prompt of each user."""
        table = self.task.data.users["test"]
        return [
            Sample(
                group=self.task.groups[table.group[user]],
                user=table.names[user],
                prompt=self._prompts[first],
                reference=self._reference.texts[first],
                steered=tuple(w.texts[first] for w in written),
            )
            for user, first in zip(
                self._users,
                range(0, len(self._prompts), self.prompts_per_user),
                strict=True,
            )
        ]


def _share_wanted(first: np.ndarray, group: str, attribute: Attribute) -> np.ndarray:
    """Returns 1 for texts on the group's side, given 1 for those on the first side."""
    if group not in attribute.sides:
        return np.full_like(first, np.nan)
    return first if group == attribute.sides[0] else 1 - first


def _partners(sizes: np.ndarray, pool: np.ndarray) -> np.ndarray:
    """Returns how much each text of a pool counts as a partner, 1 in all.

    Args:
      sizes: lengths of the texts that get partners.
      pool: lengths of the texts that may be partners.
    """
    gaps = np.abs(sizes[:, None] - pool)
    most = min(_PARTNERS, len(pool)) - 1
    near = gaps <= np.partition(gaps, most, axis=1)[:, most : most + 1]
    return (near / near.sum(axis=1, keepdims=True)).mean(axis=0)


def _mean(values: np.ndarray, weight: np.ndarray | None = None) -> float:
    """Returns the mean of the values that are known; NaN without any."""
    known = ~np.isnan(values)
    weight = known if weight is None else weight * known
    if not weight.any():
        return math.nan
    return float(np.average(np.where(known, values, 0), weights=weight))


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _as_lists(summaries: list[dict[str, Any]]) -> dict[str, list]:
    return {name: [one[name] for one in summaries] for name in summaries[0]}


def page(samples: Sequence[Sample], num_context: Sequence[int], most: int = 6) -> str:
    """Returns Markdown with texts side by side, for `most` users of each group."""
    lines = ["# Samples", ""]
    head = ["prompt", "language model", *(f"n = {n}" for n in num_context)]
    for group in dict.fromkeys(sample.group for sample in samples):
        own = [sample for sample in samples if sample.group == group][:most]
        texts = [[s.prompt, s.reference, *s.steered] for s in own]
        rows = [[text_tables.escape(text) for text in row] for row in texts]
        lines += [f"## {group}", "", text_tables.markdown([head, *rows]), ""]
    return "\n".join(lines)
