"""Evaluations of many settings, several seeds each: one table and one picture.

Intervals are Student's t over seeds: mean +- t(0.975, k - 1) s / sqrt(k) for k seeds,
so they tell what another seed would give. All seeds are judged on the same users, whose
own spread is in each run's `evaluation.json`. Shapes: K seeds, C context sizes.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from matplotlib import pyplot as plt
from scipy import stats

from fsa.evaluation.report import STYLE, save


@dataclasses.dataclass(frozen=True)
class Setting:
    """One setting of a sweep.

    Attributes:
      fields: what sets it apart, by dotted name of a config's field.
      seeds: how many were wanted.
      evaluations: those that there are, as `few_shot.evaluation` gives them.
    """

    fields: Mapping[str, Any]
    seeds: int
    evaluations: Sequence[Mapping]

    def values(self, metric: str) -> np.ndarray:
        """`[K, C]` of "accuracy", "nll" or "ece"."""
        return np.array([found[metric] for found in self.evaluations], float)


def interval(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean over the first axis, and half the width of its 95% t-interval.

    NaN with a single value, which says nothing about another.
    """
    count = len(values)
    if count < 2:
        return values.mean(0), np.full(values.shape[1:], np.nan)
    error = values.std(0, ddof=1) / math.sqrt(count)
    return values.mean(0), stats.t.ppf(0.975, count - 1) * error


def summary(settings: Sequence[Setting]) -> list[dict[str, Any]]:
    """As JSON: means over seeds, and half-widths of their intervals (None for one)."""
    found = []
    for setting in settings:
        entry = {"fields": dict(setting.fields), "seeds": len(setting.evaluations)}
        if setting.evaluations:
            entry["n_context"] = list(setting.evaluations[0]["n_context"])
            for metric in ("accuracy", "nll", "ece"):
                mean, half = interval(setting.values(metric))
                entry[metric] = mean.tolist()
                entry[f"{metric}_half_width"] = [
                    None if math.isnan(h) else h for h in half.tolist()
                ]
        found.append(entry)
    return found


def table(settings: Sequence[Setting]) -> str:
    """Markdown: accuracy in % at every n, NLL in nats at the largest.

    At least one setting has an evaluation.
    """
    columns = list(dict.fromkeys(name for s in settings for name in s.fields))
    sizes = _first(settings)["n_context"]
    head = [*columns, "seeds", *(f"n = {n}" for n in sizes), f"NLL, n = {sizes[-1]}"]
    lines = [_row(head), "|" + "---|" * len(head)]
    accuracy, nll = (_ceiling(settings, metric) for metric in ("accuracy", "nll"))
    if accuracy and nll:
        best = [*(f"{100 * share:.2f}" for share in accuracy), f"{nll[-1]:.4f}"]
        lines.append(_row(["best possible", *[""] * len(columns), *best]))
    for setting in settings:
        done = len(setting.evaluations)
        seeds = str(done) if done == setting.seeds else f"{done} of {setting.seeds}"
        cells = [*(str(setting.fields.get(name, "")) for name in columns), seeds]
        if done:
            mean, half = interval(100 * setting.values("accuracy"))
            cells += [_plus_minus(m, h, 2) for m, h in zip(mean, half, strict=True)]
            mean, half = interval(setting.values("nll")[:, -1])
            cells.append(_plus_minus(mean, half, 4))
        lines.append(_row([*cells, *[""] * (len(head) - len(cells))]))
    return "\n".join(lines)


def plot(settings: Sequence[Setting], path: epath.PathLike):
    """Accuracy and NLL at the largest n: seeds as dots, means and intervals as bars.

    At least one setting has an evaluation; others have an empty line.
    """
    n = _first(settings)["n_context"][-1]
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            1, 2, figsize=(10, 1 + 0.3 * len(settings)), sharey=True
        )
        for axis, metric, scale, label in (
            (axes[0], "accuracy", 100, "accuracy, %"),
            (axes[1], "nll", 1, "NLL, nats"),
        ):
            for height, setting in enumerate(settings):
                if setting.evaluations:
                    _draw(axis, height, scale * setting.values(metric)[:, -1])
            if ceiling := _ceiling(settings, metric):
                axis.axvline(scale * ceiling[-1], color="k", ls="--", lw=1)
            axis.set_xlabel(f"{label}, at n = {n}")
            # The numbers are long where settings are close.
            axis.locator_params(axis="x", nbins=4)
        axes[0].set_yticks(range(len(settings)), [_label(s.fields) for s in settings])
        axes[0].invert_yaxis()
        save(figure, path)


def _draw(axis, height: int, values: np.ndarray):
    """One setting's line of the picture."""
    mean, half = interval(values)
    axis.plot(values, np.full(len(values), height), "o", color="C0", alpha=0.4, ms=4)
    axis.errorbar(mean, height, xerr=half, fmt="|", color="C0", capsize=3, ms=10)


def _first(settings: Sequence[Setting]) -> Mapping:
    return next(found for s in settings for found in s.evaluations)


def _ceiling(settings: Sequence[Setting], metric: str) -> list[float] | None:
    """That of the best predictor, if known and the same for all settings."""
    known = [found[f"ceiling_{metric}"] for s in settings for found in s.evaluations]
    return known[0] if all(other == known[0] for other in known) else None


def _label(fields: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in fields.items())


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _plus_minus(mean: float, half: float, digits: int) -> str:
    shown = f"{mean:.{digits}f}"
    return shown if math.isnan(half) else f"{shown} ± {half:.{digits}f}"
