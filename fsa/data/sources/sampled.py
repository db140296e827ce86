"""Choices that simulated users make between sampled answers to the same prompt.

A language model's own samples, measured by known attributes, become a choice table: a
user with weights w prefers the answer with the larger w . v, where v are the attributes
of an answer. Users belong to opposite groups (`users_of_groups`), or their weights are
uniform on a sphere (`users_on_sphere`); for the latter the Bayes-optimal predictor is
known (`bayes_optimal`).

A prompt belongs to one split. Users choose on prompts of their own split, and once on a
prompt. All draws for a user are keyed by (seed, name), so they do not depend on the
other users.

Shapes: P prompts, S answers a prompt, D attributes, U users, L choices of a user, W
weights drawn from the prior, C sizes of context.
"""

import dataclasses
import hashlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import scipy  # scipy.special is imported where it is first used

from fsa.data import columns, files
from fsa.data.splits import SPLITS
from fsa.data.tables import Choice, Report
from fsa.errors import InputError

Attribute = Callable[[str], float]

# Attributes are fractions: a difference of 0.5 may be computed as 0.49999999999999994.
_ROUNDING = 1e-9


@dataclasses.dataclass(frozen=True)
class Samples:
    """Answers to prompts.

    Attributes:
      prompts: P different texts.
      answers: P sequences of texts; their lengths may differ.
      splits: P of "train", "valid" and "test".

    Raises:
      InputError: if lengths differ, a prompt occurs twice, or a split is unknown.
    """

    prompts: Sequence[str]
    answers: Sequence[Sequence[str]]
    splits: Sequence[str]

    def __post_init__(self):
        """Checks lengths and splits, so that no prompt can be in two splits."""
        lengths = len(self.prompts), len(self.answers), len(self.splits)
        if len(set(lengths)) > 1:
            raise InputError(
                "samples: {} prompts, {} answers and {} splits; give one of each for "
                "every prompt".format(*lengths)
            )
        if len(set(self.prompts)) < len(self.prompts):
            raise InputError("samples: a prompt occurs twice; join its answers")
        if unknown := set(self.splits) - set(SPLITS):
            raise InputError(
                f"samples: unknown split {min(unknown)!r}; use {', '.join(SPLITS)}"
            )


def read(path: str) -> tuple[Samples, Report]:
    """Reads answers from a table with the columns prompt, answer and split.

    Raises:
      InputError: if the table is missing or damaged, a column is missing, a prompt is
        empty or in two splits, or a split is unknown.
    """
    report, found = Report(path), {}
    for number, row in files.read_rows(path):
        report.rows += 1
        for column in ("prompt", "answer", "split"):
            columns.require(column, row, f"{path}, row {number}")
        prompt = columns.prompt_of(row, f"{path}, row {number}")
        answer, split = row["answer"], row["split"]
        if not isinstance(prompt, str) or not prompt:
            raise InputError(f"{path}, row {number}: prompt is empty; give a text")
        if not isinstance(answer, str):
            raise InputError(f"{path}, row {number}: answer is not a text; give one")
        if split not in SPLITS:
            raise InputError(
                f"{path}, row {number}: unknown split {split!r}; use "
                f"{', '.join(SPLITS)}"
            )
        known, answers = found.setdefault(prompt, (split, []))
        if known != split:
            raise InputError(
                f"{path}, row {number}: prompt is in two splits; give it one"
            )
        answers.append(answer)
    splits, answers = zip(*found.values(), strict=True) if found else ((), ())
    return Samples(tuple(found), answers, splits), report


class Users(NamedTuple):
    """Simulated users.

    Attributes:
      names: U different names.
      splits: U of "train", "valid" and "test".
      groups: U names of groups.
      weights: `[U, D]`.
    """

    names: tuple[str, ...]
    splits: tuple[str, ...]
    groups: tuple[str, ...]
    weights: np.ndarray


def users_of_groups(
    weights: Mapping[str, Sequence[float]], num_users: Mapping[str, int]
) -> Users:
    """Makes users who all have the weights of their group.

    Args:
      weights: group -> D weights, e.g. {"formal": [1], "casual": [-1]}.
      num_users: split -> users of each group.

    Raises:
      InputError: if there is no user, a split is unknown, or groups have different
        numbers of weights.
    """
    if len({len(row) for row in weights.values()}) > 1:
        raise InputError("weights: groups differ in length; give each D weights")
    return _users(
        (f"{split}/{group}/{i}", split, group, row)
        for split, size in num_users.items()
        for group, row in weights.items()
        for i in range(size)
    )


def users_on_sphere(
    num_attributes: int,
    num_users: Mapping[str, int],
    *,
    groups: tuple[str, str] = ("less", "more"),
    seed: int,
) -> Users:
    """Draws users whose weights are uniform on the unit sphere in R^D.

    Args:
      num_attributes: D.
      num_users: split -> number of users.
      groups: names for users whose first weight is negative and for the others.
      seed: seed of the weights; the first users do not change if there are more.

    Raises:
      InputError: if there is no user, or a split is unknown.
    """
    return _users(
        (f"{split}/{i}", split, groups[int(row[0] >= 0)], row)
        for split, size in num_users.items()
        for i, row in enumerate(_on_sphere(_rng(seed, split), size, num_attributes))
    )


def choose(
    samples: Samples,
    users: Users,
    attributes: Sequence[Attribute],
    *,
    num_choices: Mapping[str, int],
    min_gap: float,
    slope: float | None = None,
    seed: int,
) -> list[Choice]:
    """Makes the choice table of users who choose between answers that differ.

    Each user decides on prompts of their split, drawn without replacement. On each
    prompt the user decides on one pair, drawn from all pairs of its answers whose
    attributes are at least `min_gap` apart (Euclidean distance). Blank answers, and
    those with an attribute that is NaN, are in no pair.

    Args:
      samples: answers to prompts.
      users: the users who choose.
      attributes: D functions from an answer to a number, NaN if it shows neither side.
      num_choices: split -> L, for every split of the users.
      min_gap: above 0, so that the two answers are never the same.
      slope: of Bradley-Terry-Luce choices, p(a > b) = sigmoid(slope w . (v_a - v_b));
        None for choices that follow w . v exactly, equal ones by a coin's toss.
      seed: of all draws.

    Returns:
      L choices of each user, user by user, in random order of prompts.

    Raises:
      InputError: if weights do not fit the attributes, `min_gap` or `slope` is not
        above 0, or a split has no L or fewer than L prompts with such a pair.
    """
    if users.weights.shape[1] != len(attributes):
        raise InputError(
            f"users have {users.weights.shape[1]} weights for {len(attributes)} "
            "attributes; give one weight an attribute"
        )
    if not min_gap > 0:
        raise InputError(f"`min_gap` is {min_gap}; give a number above 0")
    if slope is not None and not slope > 0:
        raise InputError(
            f"`slope` is {slope}; give a number above 0, or none for exact choices"
        )
    if missing := set(users.splits) - set(num_choices):
        raise InputError(f"`num_choices`: lacks {min(missing)}; give it a number")
    values = [_measure(answers, attributes) for answers in samples.answers]
    pairs = [_pairs(of_prompt, min_gap) for of_prompt in values]
    usable = {split: _usable(samples, pairs, split) for split in set(users.splits)}
    for split, found in usable.items():
        if len(found) < num_choices[split]:
            raise InputError(
                f"`num_choices` is {num_choices[split]}, but {len(found)} {split} "
                f"prompts have answers at least {min_gap:g} apart; lower it or "
                "`min_gap`, or sample more"
            )
    choices = []
    for name, split, group, weights in zip(*users, strict=True):
        rng = _rng(seed, name)
        for p in rng.permutation(usable[split])[: num_choices[split]]:
            a, b = pairs[p][rng.integers(len(pairs[p]))]
            gap = weights @ (values[p][a] - values[p][b])
            if rng.random() >= _probability(gap, slope):
                a, b = b, a
            chosen, rejected = samples.answers[p][a], samples.answers[p][b]
            row = Choice(name, samples.prompts[p], chosen, rejected, split, group)
            choices.append(row)
    return choices


def differences(
    choices: Sequence[Choice], attributes: Sequence[Attribute]
) -> np.ndarray:
    """Computes attributes of the chosen minus of the rejected answer, `[L, D]`."""
    chosen, rejected = (
        _measure([getattr(choice, column) for choice in choices], attributes)
        for column in ("chosen", "rejected")
    )
    return chosen - rejected


class BayesOptimal(NamedTuple):
    """Scores of the Bayes-optimal predictor of users on the sphere.

    Attributes:
      accuracy: `[C, U]`, share of a user's targets predicted right; ties count half.
      nll: `[C, U]`, mean negative log-likelihood in nats.
      effective: `[C, U]`, effective sample size of the estimates.
    """

    accuracy: np.ndarray
    nll: np.ndarray
    effective: np.ndarray


def bayes_optimal(
    differences: Sequence[np.ndarray],
    num_context: Sequence[int],
    *,
    slope: float,
    num_samples: int = 20_000,
    seed: int = 0,
) -> BayesOptimal:
    """Predicts choices of users on the sphere, knowing how users are drawn.

    The posterior of the weights, given a user's first n choices, is estimated by
    importance sampling: W draws from the prior, weighted by their likelihood. The
    targets, the choices after the largest context, are the same for every n.

    Args:
      differences: for every user `[L, D]`, chosen minus rejected; see `differences`.
      num_context: C numbers n.
      slope: of the choices.
      num_samples: W, in pairs of opposite weights, so that the prediction at n = 0 is
        exactly 1/2.
      seed: of the draws.

    Raises:
      InputError: a user with no choice beyond the largest context.
    """
    start = max(num_context)
    if min(map(len, differences)) <= start:
        raise InputError(
            f"`num_context` goes up to {start}, but a user has "
            f"{min(map(len, differences))} choices; lower it or make more choices"
        )
    rng = np.random.default_rng(seed)
    half = _on_sphere(rng, num_samples // 2, differences[0].shape[1])
    weights = np.concatenate([half, -half])
    found = np.empty((3, len(num_context), len(differences)))
    for u, of_user in enumerate(differences):
        utilities = slope * weights @ of_user.T  # [W, L]
        log_likelihood = scipy.special.log_expit(utilities[:, :start])
        probability = scipy.special.expit(utilities[:, start:])
        for c, n in enumerate(num_context):
            posterior = scipy.special.softmax(log_likelihood[:, :n].sum(axis=1))
            predicted = posterior @ probability
            tie = np.isclose(predicted, 0.5, rtol=0, atol=_ROUNDING)
            right = np.where(tie, 0.5, predicted > 0.5)
            effective = 1 / np.sum(posterior**2)
            found[:, c, u] = right.mean(), -np.log(predicted).mean(), effective
    return BayesOptimal(*found)


def _users(rows: Iterator[tuple[str, str, str, Sequence[float]]]) -> Users:
    rows = list(rows)
    if not rows:
        raise InputError("there are no simulated users; ask for some")
    names, splits, groups, weights = zip(*rows, strict=True)
    if unknown := set(splits) - set(SPLITS):
        raise InputError(
            f"simulated users: unknown split {min(unknown)!r}; use {', '.join(SPLITS)}"
        )
    return Users(names, splits, groups, np.array(weights, np.float64))


def _rng(seed: int, name: str) -> np.random.Generator:
    digest = hashlib.sha256(name.encode()).digest()
    return np.random.default_rng([seed, int.from_bytes(digest[:8])])


def _on_sphere(rng: np.random.Generator, size: int, dimension: int) -> np.ndarray:
    """Draws uniformly from the unit sphere, `[size, dimension]`."""
    directions = rng.normal(size=(size, dimension))
    return directions / np.linalg.norm(directions, axis=1, keepdims=True)


def _measure(texts: Sequence[str], attributes: Sequence[Attribute]) -> np.ndarray:
    """Measures texts, `[S, D]`; a blank one, which no choice may have, is NaN."""
    rows = [
        [attribute(text) if text.strip() else np.nan for attribute in attributes]
        for text in texts
    ]
    return np.array(rows, np.float64).reshape(len(texts), len(attributes))


def _pairs(values: np.ndarray, min_gap: float) -> list[tuple[int, int]]:
    """Returns pairs of one prompt's answers that are far apart; NaN never is."""
    return [
        (a, b)
        for a, b in itertools.combinations(range(len(values)), 2)
        if np.linalg.norm(values[a] - values[b]) >= min_gap - _ROUNDING
    ]


def _usable(samples: Samples, pairs: Sequence[Sequence], split: str) -> list[int]:
    """Returns the prompts of `split` that have a pair."""
    rows = enumerate(zip(samples.splits, pairs, strict=True))
    return [p for p, (of_prompt, found) in rows if of_prompt == split and found]


def _probability(gap: float, slope: float | None) -> float:
    if slope is None:
        return (1 + np.sign(gap)) / 2
    return scipy.special.expit(slope * gap)
