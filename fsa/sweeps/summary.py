"""Summarizes evaluations of many settings, with several seeds each.

Intervals are Student's t over seeds: mean +- t(0.975, k - 1) s / sqrt(k) for k seeds,
so they cover what another seed would give. All seeds are evaluated on the same users,
whose own spread is in each run's `evaluation.json`. Shapes: K seeds, C context sizes.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import scipy  # scipy.stats, half a second, is imported where it is first used
from etils import epath
from matplotlib.figure import Figure

from fsa import text_tables
from fsa.evaluation.report import STYLE, save


@dataclasses.dataclass(frozen=True)
class Setting:
    """One setting of a sweep.

    Attributes:
      fields: the config fields in which settings differ, by dotted name.
      seeds: how many seeds the sweep has for it.
      evaluations: those that exist, see `fsa.evaluation.scores.evaluation`.
    """

    fields: Mapping[str, Any]
    seeds: int
    evaluations: Sequence[Mapping]

    def values(self, metric: str) -> np.ndarray:
        """Returns "accuracy", "nll" or "ece" of all seeds, `[K, C]`."""
        return np.array([found[metric] for found in self.evaluations], float)


def t_interval(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the mean over the first axis and half the width of its 95% t-interval.

    The width is NaN for a single value.
    """
    count = len(values)
    if count < 2:
        return values.mean(0), np.full(values.shape[1:], np.nan)
    error = values.std(0, ddof=1) / math.sqrt(count)
    return values.mean(0), scipy.stats.t.ppf(0.975, count - 1) * error


def summary(settings: Sequence[Setting]) -> list[dict[str, Any]]:
    """Returns JSON: means over seeds, half-widths of intervals (None for one seed)."""
    found = []
    for setting in settings:
        entry = {"fields": dict(setting.fields), "seeds": len(setting.evaluations)}
        if setting.evaluations:
            entry["n_context"] = list(setting.evaluations[0]["n_context"])
            for metric in ("accuracy", "nll", "ece"):
                mean, half = t_interval(setting.values(metric))
                entry[metric] = mean.tolist()
                entry[f"{metric}_half_width"] = [
                    None if math.isnan(h) else h for h in half.tolist()
                ]
        found.append(entry)
    return found


def table(settings: Sequence[Setting]) -> str:
    """Formats Markdown: accuracy in % at every n, NLL in nats at the largest n.

    Args:
      settings: the settings; at least one must have an evaluation.
    """
    columns = list(dict.fromkeys(name for s in settings for name in s.fields))
    sizes = _first(settings)["n_context"]
    head = [*columns, "seeds", *(f"n = {n}" for n in sizes), f"NLL, n = {sizes[-1]}"]
    rows = [head]
    accuracy, nll = (_bayes_optimal(settings, metric) for metric in ("accuracy", "nll"))
    if accuracy and nll:
        bayes = [*(f"{100 * share:.2f}" for share in accuracy), f"{nll[-1]:.4f}"]
        rows.append(["Bayes-optimal", *[""] * len(columns), *bayes])
    for setting in settings:
        done = len(setting.evaluations)
        seeds = str(done) if done == setting.seeds else f"{done} of {setting.seeds}"
        cells = [*(str(setting.fields.get(name, "")) for name in columns), seeds]
        if done:
            mean, half = t_interval(100 * setting.values("accuracy"))
            cells += [_plus_minus(m, h, 2) for m, h in zip(mean, half, strict=True)]
            mean, half = t_interval(setting.values("nll")[:, -1])
            cells.append(_plus_minus(mean, half, 4))
        rows.append([*cells, *[""] * (len(head) - len(cells))])
    return text_tables.markdown(rows)


def plot(settings: Sequence[Setting], path: epath.PathLike):
    """Plots accuracy and NLL at the largest n: seeds as dots, intervals as bars.

    The Bayes-optimal predictor, if known, is dashed.

    Args:
      settings: the settings; at least one must have an evaluation, and the lines of the
        others stay empty.
      path: path of the PNG file.
    """
    n = _first(settings)["n_context"][-1]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10, 1 + 0.3 * len(settings)))
        axes = figure.subplots(1, 2, sharey=True)
        for axis, metric, scale, label in (
            (axes[0], "accuracy", 100, "accuracy, %"),
            (axes[1], "nll", 1, "NLL, nats"),
        ):
            for height, setting in enumerate(settings):
                if setting.evaluations:
                    _draw(axis, height, scale * setting.values(metric)[:, -1])
            if bayes := _bayes_optimal(settings, metric):
                axis.axvline(scale * bayes[-1], color="k", ls="--", lw=1)
            axis.set_xlabel(f"{label}, at n = {n}")
            # Few ticks, since their numbers are long where settings are close.
            axis.locator_params(axis="x", nbins=4)
        axes[0].set_yticks(range(len(settings)), [_label(s.fields) for s in settings])
        axes[0].invert_yaxis()
        save(figure, path)


def _draw(axis, height: int, values: np.ndarray):
    """Draws the line of one setting."""
    mean, half = t_interval(values)
    axis.plot(values, np.full(len(values), height), "o", color="C0", alpha=0.4, ms=4)
    axis.errorbar(mean, height, xerr=half, fmt="|", color="C0", capsize=3, ms=10)


def _first(settings: Sequence[Setting]) -> Mapping:
    return next(found for s in settings for found in s.evaluations)


def _bayes_optimal(settings: Sequence[Setting], metric: str) -> list[float] | None:
    """Returns the Bayes-optimal metric, if it is the same for all settings."""
    known = [found[f"ceiling_{metric}"] for s in settings for found in s.evaluations]
    return known[0] if all(other == known[0] for other in known) else None


def _label(fields: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in fields.items())


def _plus_minus(mean: float, half: float, digits: int) -> str:
    shown = f"{mean:.{digits}f}"
    return shown if math.isnan(half) else f"{shown} ± {half:.{digits}f}"
