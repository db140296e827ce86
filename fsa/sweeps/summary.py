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
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fsa import text_tables
from fsa.evaluation import figure_style as style
from fsa.evaluation import report

_BEST = "best possible"


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
    columns = _columns(settings)
    values = [
        [str(setting.fields.get(name, "")) for name in columns] for setting in settings
    ]
    return text_tables.markdown(_rows(settings, columns, values))


def shown(settings: Sequence[Setting]) -> str:
    """Formats the table for a terminal, of at most 100 columns, and what it means.

    Args:
      settings: the settings; at least one must have an evaluation.
    """
    columns = _columns(settings)
    labels = [
        [", ".join(str(setting.fields.get(name, "-")) for name in columns)]
        for setting in settings
    ]
    lines = [
        f"setting: {', '.join(columns) or 'only seeds differ'}.",
        "n = 0, ...: choices predicted right, %, with n of a person's choices known.",
        "NLL: negative log-likelihood of a choice in nats; a coin has 0.6931.",
        "±: half of a 95% t-interval over seeds; its ends where it is cut at 0 or 100.",
    ]
    rows = _rows(settings, ["setting"], labels)
    return f"{text_tables.fitted(rows, names=60)}\n\n{report.wrapped(lines, '  ')}"


def _columns(settings: Sequence[Setting]) -> list[str]:
    return list(dict.fromkeys(name for s in settings for name in s.fields))


def _rows(
    settings: Sequence[Setting], columns: Sequence[str], values: Sequence[Sequence[str]]
) -> list[list[str]]:
    """Returns the rows of a table, given the first cells of each setting."""
    sizes = _first(settings)["n_context"]
    head = [*columns, "seeds", *(f"n = {n}" for n in sizes), f"NLL, n = {sizes[-1]}"]
    rows = [head]
    accuracy, nll = (_bayes_optimal(settings, metric) for metric in ("accuracy", "nll"))
    if accuracy and nll:
        best = [*(f"{100 * share:.2f}" for share in accuracy), f"{nll[-1]:.4f}"]
        rows.append([_BEST, *[""] * len(columns), *best])
    for setting, first in zip(settings, values, strict=True):
        done = len(setting.evaluations)
        seeds = str(done) if done == setting.seeds else f"{done} of {setting.seeds}"
        cells = [*first, seeds]
        if done:
            mean, half = t_interval(100 * setting.values("accuracy"))
            cells += [_percent(m, h) for m, h in zip(mean, half, strict=True)]
            mean, half = t_interval(setting.values("nll")[:, -1])
            cells.append(_plus_minus(mean, half, 4))
        rows.append([*cells, *[""] * (len(head) - len(cells))])
    return rows


def draw(settings: Sequence[Setting], title: str) -> Figure:
    """Draws accuracy and NLL at the largest n: seeds as dots, intervals as bars.

    Args:
      settings: the settings; at least one must have an evaluation, and the lines of the
        others stay empty.
      title: the sweep.
    """
    n = _first(settings)["n_context"][-1]
    with matplotlib.rc_context(style.STYLE):
        figure = Figure(figsize=(10, 1.6 + 0.3 * len(settings)))
        axes = figure.subplots(1, 2, sharey=True)
        for axis, metric, scale, label in (
            (axes[0], "accuracy", 100, "choices predicted right, %"),
            (axes[1], "nll", 1, "NLL, nats (lower is better)"),
        ):
            for height, setting in enumerate(settings):
                if setting.evaluations:
                    _draw(axis, height, scale * setting.values(metric)[:, -1])
            if best := _bayes_optimal(settings, metric):
                axis.axvline(scale * best[-1], color="k", ls="--", lw=1, label=_BEST)
            axis.set_xlabel(f"{label}, n = {n}")
            # Few ticks, since their numbers are long where settings are close.
            axis.locator_params(axis="x", nbins=4)
        axes[0].set_yticks(range(len(settings)), [_label(s.fields) for s in settings])
        axes[0].invert_yaxis()
        users = _first(settings)["users"]
        figure.suptitle(f"{title}: {len(settings)} settings, {users:,} test people")
        style.legend_below(figure, axes)
    return figure


def _draw(axis: Axes, height: int, values: np.ndarray):
    """Draws the line of one setting."""
    mean, half = t_interval(values)
    seed = {"color": style.COLORS[1], "alpha": 0.6, "ms": 4, "label": "a seed"}
    axis.plot(values, np.full(len(values), height), "o", **seed)
    axis.errorbar(
        mean,
        height,
        xerr=half,
        fmt="|",
        color=style.COLORS[0],
        capsize=3,
        ms=10,
        label="mean, 95% interval over seeds",
    )


def _first(settings: Sequence[Setting]) -> Mapping:
    return next(found for s in settings for found in s.evaluations)


def _bayes_optimal(settings: Sequence[Setting], metric: str) -> list[float] | None:
    """Returns the Bayes-optimal metric, if it is the same for all settings."""
    known = [found[f"ceiling_{metric}"] for s in settings for found in s.evaluations]
    return known[0] if all(other == known[0] for other in known) else None


def _label(fields: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in fields.items())


def _percent(mean: float, half: float) -> str:
    """Formats a percentage; its interval is cut where it would leave 0 to 100."""
    low, high = max(mean - half, 0), min(mean + half, 100)
    if math.isnan(half) or (low == mean - half and high == mean + half):
        return _plus_minus(mean, half, 2)
    return f"{mean:.2f} [{low:.2f}, {high:.2f}]"


def _plus_minus(mean: float, half: float, digits: int) -> str:
    shown = f"{mean:.{digits}f}"
    return shown if math.isnan(half) else f"{shown} ± {half:.{digits}f}"
