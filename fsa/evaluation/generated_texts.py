"""Does a policy follow people in what it writes, and is the text still whole?

Texts are sampled at the temperature that users get; greedy text hides damage. Shapes: U
users, P prompts of a user, C context sizes, D latent dimensions.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from fsa.data.sources import corpus
from fsa.data.sources.attributes import (
    ATTRIBUTES,
    Attribute,
    known_word_share,
    middle,
    words,
)
from fsa.data.sources.attributes import sides as sides_of
from fsa.data.tasks.pairs import PairTask
from fsa.evaluation.methods import Method
from fsa.evaluation.scores import interval
from fsa.language.language_model import LanguageModel, Written

# name -> what of texts is whole, given others of the language model itself.
VALIDITY: dict[str, Callable[[Sequence[str], Iterable[str]], np.ndarray]] = {
    "corpus": lambda texts, pool: np.array([corpus.parses(t) for t in texts], float),
    "words": known_word_share,
}


@dataclasses.dataclass(frozen=True)
class Sample:
    """One text for one user, for people to read.

    Attributes:
      group: the user's.
      user: the user's name.
      prompt: what was asked.
      reference: what the language model itself wrote.
      steered: what the policy wrote after each context size.
    """

    group: str
    user: str
    prompt: str
    reference: str
    steered: tuple[str, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class TextEvaluator:
    """Generates for users of each group, and measures what came out.

    Attributes:
      language: the language model itself, the reference.
      follower: what writes for users.
      task: whose users; they write on prompts of test users.
      num_context: context sizes.
      attribute: name of what the groups disagree about, see `attributes.py`. A group
        that is named after one of its sides wants that one; what others want is not
        known, so that they have no `share`.
      validity: name of a measure in `VALIDITY`.
      users_per_group: at most so many users of each group.
      prompts_per_user: P.
      max_new_tokens: of each text.
      temperature: of sampling.
      num_resamples: of bootstrap intervals over users.
      seed: of the choice of prompts and of sampling.
      progress: show a bar.
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
        """What `evaluation.json` has under "generated" and "reference", and samples.

        Returns:
          {"generated": {group: measures}, "reference": measures}, where measures are
          lists over context sizes, or of one entry for the reference: `share` of texts
          with what the group wants among those that show either side (of the reference,
          with the attribute's first side), `attribute` as it is measured, `validity`,
          `perplexity` per token under the language model, `tokens` of a text, and `kl`
          to the language model in nats a text; each but perplexity with `..._ci` over
          users. None is what is not known.
        """
        plain = self._plain
        found, written = self._follow(self.method, self.num_context)
        of_plain = self.language.score(plain.table)[0]
        nothing = np.zeros_like(of_plain)
        reference = self._summary(self._measure(plain, of_plain, nothing))
        result = {
            "attribute": self.attribute,
            "generated": found,
            "reference": _as_lists([reference]),
        }
        return result, self._samples(written)

    def between(self, method: Method, points: Sequence[float]) -> dict[str, Any]:
        """{group: measures} of another follower, on the same prompts.

        Args:
          follower: takes a position on a line in place of a number of choices.
          points: the positions; measures are lists over them.
        """
        return self._follow(method, points)[0]

    def _follow(self, method: Method, settings: Sequence[float]):
        """({group: measures}, the texts at each setting)."""
        found = {name: [] for name in self.task.groups}
        written = []
        rows = np.repeat(self._users, self.prompts_per_user)
        for setting in tqdm(
            settings, desc="Texts", unit="set", disable=not self.progress
        ):
            texts, log_probs = method(rows, self._asked, setting, **self._options)
            written.append(texts)
            reference = self.language.score(texts.table)[0]
            kl = np.full_like(reference, np.nan)
            if log_probs is not None:
                kl = log_probs - reference
            measures = self._measure(texts, reference, kl)
            start = 0
            for group, members in zip(self.task.groups, self._members, strict=True):
                part = slice(start, start + len(members))
                start += len(members)
                own = {name: values[part] for name, values in measures.items()}
                own["share"] = _wanted(own["share"], group, self._measured)
                found[group].append(self._summary(own))
        return {group: _as_lists(rows) for group, rows in found.items()}, written

    @property
    def _measured(self) -> Attribute:
        return ATTRIBUTES[self.attribute]

    @functools.cached_property
    def _members(self) -> list[np.ndarray]:
        """The users of each group that write."""
        users = self.task.users("test")
        group_of = self.task.data.users["test"].group[users]
        groups = range(len(self.task.groups))
        return [users[group_of == g][: self.users_per_group] for g in groups]

    @property
    def _users(self) -> np.ndarray:
        return np.concatenate(self._members)

    @functools.cached_property
    def _asked(self) -> list[str]:
        """The prompts of one user after those of another."""
        return [prompt for user in self._users for prompt in self._prompts(user)]

    @functools.cached_property
    def _plain(self) -> Written:
        """What the language model itself writes."""
        return self.language.write(self._asked, **self._options)

    @functools.cached_property
    def _halfway(self) -> float:
        return middle(self._measured, self._plain.texts)

    def _prompts(self, user: int) -> list[str]:
        """Test prompts that this user's context does not mention, drawn by user.

        Where it mentions all of them, as where there is but one, any.
        """
        every = self.task.prompts("test")
        others = np.setdiff1d(every, self.task.context_prompts("test", user))
        others = others if len(others) else every
        rng = np.random.default_rng((self.seed, user))
        drawn = rng.choice(
            others, self.prompts_per_user, len(others) < self.prompts_per_user
        )
        return [self.task.data.prompts[prompt] for prompt in drawn]

    @property
    def _options(self) -> dict[str, Any]:
        return {
            "max_new_tokens": self.max_new_tokens,
            "temperature": self.temperature,
            "seed": self.seed,
        }

    @functools.cached_property
    def _pool(self) -> set[str]:
        """Words of the data's texts, which say what is known as the texts would."""
        return {word for text in self.task.data.texts for word in words(text)}

    def _measure(self, written: Written, reference, kl) -> dict[str, np.ndarray]:
        """`[U, P]` each."""
        table, attribute = written.table, self._measured
        measures = {
            "share": sides_of(attribute, written.texts, self._halfway),
            "attribute": np.array([attribute.measure(t) for t in written.texts], float),
            "validity": VALIDITY[self.validity](written.texts, self._pool),
            "nll": -reference,
            "tokens": (table.length - table.start).astype(float),
            "kl": kl,
        }
        return {k: v.reshape(-1, self.prompts_per_user) for k, v in measures.items()}

    def _summary(self, measures: dict[str, np.ndarray]) -> dict[str, Any]:
        nll = measures.pop("nll")
        summary = {"perplexity": float(np.exp(nll.sum() / measures["tokens"].sum()))}
        for name, values in measures.items():
            # A user all of whose texts show neither side says nothing.
            shown = values[~np.isnan(values).all(axis=1)]
            means = np.nanmean(shown, axis=1)
            summary[name] = float(means.mean()) if len(means) else None
            bounds = interval(means[:, None], self.num_resamples)[0]
            summary[f"{name}_ci"] = bounds.tolist()
        return summary

    def _samples(self, written) -> list[Sample]:
        """The first prompt of each user."""
        table = self.task.data.users["test"]
        return [
            Sample(
                group=self.task.groups[table.group[user]],
                user=table.names[user],
                prompt=self._asked[row],
                reference=self._plain.texts[row],
                steered=tuple(w.texts[row] for w in written),
            )
            for user, row in zip(
                self._users,
                range(0, len(self._asked), self.prompts_per_user),
                strict=True,
            )
        ]


def _wanted(first: np.ndarray, group: str, attribute: Attribute) -> np.ndarray:
    """1 for texts as a group wants them, given 1 for those on the first side."""
    if group not in attribute.sides:
        return np.full_like(first, np.nan)
    return first if group == attribute.sides[0] else 1 - first


def _as_lists(rows: list[dict[str, Any]]) -> dict[str, list]:
    return {name: [row[name] for row in rows] for name in rows[0]}


def page(samples: Sequence[Sample], num_context: Sequence[int], most: int = 6) -> str:
    """Markdown with texts side by side, `most` users of each group."""
    lines = ["# Samples", ""]
    head = ["prompt", "language model", *(f"n = {n}" for n in num_context)]
    for group in dict.fromkeys(sample.group for sample in samples):
        lines += [f"## {group}", "", _row(head), _row(["---"] * len(head))]
        own = [sample for sample in samples if sample.group == group][:most]
        lines += [_row([s.prompt, s.reference, *s.steered]) for s in own]
        lines.append("")
    return "\n".join(lines)


def side_by_side(prompt: str, texts: Mapping[str, str]) -> str:
    """A prompt and several answers to it, for a terminal."""
    width = max(map(len, texts))
    lines = [f"> {prompt}"]
    for name, text in texts.items():
        first, *others = text.splitlines() or [""]
        lines.append(f"  {name.ljust(width)}  {first}")
        lines += [f"  {'':{width}}  {line}" for line in others]
    return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    # What Markdown or HTML would swallow; a cell holds one line.
    escaped = (re.sub(r"([\\`*_|<\[\]])", r"\\\1", cell) for cell in cells)
    return f"| {' | '.join('<br>'.join(cell.splitlines()) for cell in escaped)} |"
