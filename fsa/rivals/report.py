"""Tables of a benchmark: all methods, with paired intervals against one of them.

Shapes: U people, C context sizes, S seeds.
"""

import collections
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from fsa import text_tables
from fsa.evaluation.scores import bootstrap_interval
from fsa.rivals.methods import OURS
from fsa.rivals.results import Cell

# The method that is the Bayes-optimal prediction, where that is known.
BEST_POSSIBLE = "best possible"

_RESAMPLES = 1000


class Scores(NamedTuple):
    """A method on a dataset, over all seeds.

    Attributes:
      sizes: C context sizes.
      nll: name of a test person -> `[C]`, the mean over seeds.
      right: name of a test person -> `[C]`.
      runs: the measurements, one for each seed.
    """

    sizes: tuple[int, ...]
    nll: dict[str, np.ndarray]
    right: dict[str, np.ndarray]
    runs: list[dict[str, Any]]

    @property
    def main(self) -> int:
        """Index of the context size that is compared: 10, or the largest below."""
        return max(i for i, n in enumerate(self.sizes) if n <= 10)

    def mean(self, name: str) -> np.ndarray:
        """Returns the mean of a field over seeds."""
        return np.mean([run[name] for run in self.runs], axis=0)


def scores(
    measured: Iterable[tuple[Cell, Mapping[str, Any]]],
) -> dict[tuple[str, float], dict[str, Scores]]:
    """Joins the seeds: (dataset, share of people) -> method -> scores.

    A person whom several seeds scored counts once, with the mean.
    """
    runs = collections.defaultdict(lambda: collections.defaultdict(list))
    for cell, found in measured:
        runs[cell.dataset, cell.share][cell.method].append(found)
    return {
        key: {method: _joined(own) for method, own in methods.items()}
        for key, methods in runs.items()
    }


def _joined(runs: list[dict[str, Any]]) -> Scores:
    by_person = {}
    for name in ("nll", "right"):
        values = collections.defaultdict(list)
        for run in runs:
            for user, own in zip(run["users"], run[name], strict=True):
                values[user].append(own)
        by_person[name] = {user: np.mean(v, axis=0) for user, v in values.items()}
    return Scores(tuple(runs[0]["n_context"]), **by_person, runs=runs)


def difference(
    scores: Scores, other: Scores, size: int
) -> tuple[float, float, float] | None:
    """Compares the NLL at one context size of the same people.

    Args:
      scores: of a method.
      other: of the method that it is compared with.
      size: index of the context size.

    Returns:
      The mean of the method's NLL minus the other's, in nats, with its 95% bootstrap
      interval over people who both scored; None without such people.
    """
    users = sorted(scores.nll.keys() & other.nll.keys())
    if not users:
        return None
    gaps = np.array([scores.nll[u][size] - other.nll[u][size] for u in users])
    low, high = bootstrap_interval(gaps[:, None], _RESAMPLES)[0]
    return float(gaps.mean()), float(low), float(high)


def table(methods: Mapping[str, Scores], ours: str = OURS) -> str:
    """Formats a dataset in Markdown, the best method first."""
    first = next(iter(methods.values()))
    sizes, main = first.sizes, first.main
    head = ["method", *(f"NLL, n = {n}" for n in sizes)]
    head += [
        f"minus {ours}'s, n = {sizes[main]}",
        "right, %",
        "flips, %",
        "ECE above calibrated",
        "training, processor s",
    ]
    head += ["ms a person, 10 / 1,000 together", "bytes a person"]
    rows = []
    for name in sorted(methods, key=lambda m: _at_main(methods[m])):
        own = methods[name]
        excess = own.mean("ece") - own.mean("ece_if_calibrated")
        timed = [run["milliseconds"] for run in own.runs if run["milliseconds"]]
        times = timed[0].values() if timed else ()
        rows.append(
            [
                name,
                *(f"{x:.4f}" for x in _mean(own.nll)),
                _interval(own, methods.get(ours), main) if name != ours else "-",
                f"{100 * _mean(own.right)[main]:.1f}",
                f"{100 * own.mean('flips')[main]:.0f}",
                f"{excess[main]:+.3f}",
                # The first one also compiles what later ones find compiled.
                f"{min(run['processor_seconds'] for run in own.runs):.0f}",
                " / ".join(map(_milliseconds, times)) or "-",
                f"{own.mean('bytes'):,.0f}",
            ]
        )
    return text_tables.markdown([head, *rows])


def levels(found: Mapping[str, Mapping[str, Scores]]) -> str:
    """Formats the NLL of each method on each dataset; that of the best one is bold.

    Args:
      found: dataset -> method -> scores. What is Bayes-optimal is never bold.
    """
    best = {}
    for dataset, methods in found.items():
        rivals = {name: own for name, own in methods.items() if name != BEST_POSSIBLE}
        best[dataset] = min(rivals, key=lambda name, of=rivals: _at_main(of[name]))

    def cell(dataset: str, name: str) -> str:
        if name not in found[dataset]:
            return "-"
        text = f"{_at_main(found[dataset][name]):.4f}"
        return f"**{text}**" if name == best[dataset] else text

    return _by_method(found, _names(found), cell)


def overview(found: Mapping[str, Mapping[str, Scores]], ours: str = OURS) -> str:
    """Formats how much worse than ours each method predicts each dataset, in nats.

    Args:
      found: dataset -> method -> scores.
      ours: the method that the others are compared with.
    """

    def cell(dataset: str, name: str) -> str:
        methods = found[dataset]
        if name not in methods or ours not in methods:
            return "-"
        return _interval(methods[name], methods[ours], methods[name].main)

    return _by_method(found, [name for name in _names(found) if name != ours], cell)


def _names(found: Mapping[str, Mapping[str, Scores]]) -> list[str]:
    return sorted({name for methods in found.values() for name in methods})


def _by_method(
    found: Mapping[str, Any], names: Iterable[str], cell: Callable[[str, str], str]
) -> str:
    rows = [[name, *(cell(dataset, name) for dataset in found)] for name in names]
    return text_tables.markdown([["method", *found], *rows])


def _at_main(own: Scores) -> float:
    return _mean(own.nll)[own.main]


def _mean(by_person: Mapping[str, np.ndarray]) -> np.ndarray:
    return np.mean(list(by_person.values()), axis=0)


def _interval(own: Scores, other: Scores | None, size: int) -> str:
    found = difference(own, other, size) if other else None
    if found is None:
        return "-"
    return f"{found[0]:+.4f} [{found[1]:+.4f}, {found[2]:+.4f}]"


def _milliseconds(value: float) -> str:
    return f"{value:.2g}" if value >= 0.001 else "< 0.001"
