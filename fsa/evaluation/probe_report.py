"""Reports of a probe: text, JSON and a picture, from the dictionary of `recipes.probe`.

Accuracies are shares in [0, 1] there, and percentages in the text and the picture.
"""

import json
from collections.abc import Mapping

import matplotlib
import numpy as np
from etils import epath
from matplotlib.figure import Figure

from fsa import text_tables
from fsa.evaluation import report


def text(found: Mapping) -> str:
    """Formats the counts, the accuracies and the sentences of a probe."""
    parts = [_counts(found["counts"]), _how(found)]
    if "trained_on" in found:
        parts.append(_accuracies(found))
    else:
        parts.append(_one_accuracy("popularity", found["accuracy"]["popularity"]))
    return "\n\n".join([*parts, "\n".join(f"- {line}" for line in found["verdict"])])


def write(found: Mapping, folder: epath.PathLike) -> list[epath.Path]:
    """Writes probe.json, and probe.png if a model was trained; returns their paths."""
    folder = epath.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / "probe.json"]
    paths[0].write_text(json.dumps(found, indent=1) + "\n")
    if "trained_on" in found:
        paths.append(folder / "probe.png")
        plot(found, paths[-1])
    return paths


def plot(found: Mapping, path: epath.PathLike) -> None:
    """Plots accuracy against context choices, and against the people trained on."""
    with matplotlib.rc_context(report.STYLE):
        figure = Figure(figsize=(10.5, 4.2))
        by_choices, by_people = figure.subplots(1, 2, sharey=True)
        _plot_choices(by_choices, found)
        _plot_people(by_people, found)
        by_choices.set_ylabel("choices predicted, %")
        for axis in (by_choices, by_people):
            axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=2)
        report.save(figure, path)


def _counts(counts: Mapping) -> str:
    rows = [["", *counts]]
    for title in next(iter(counts.values())):
        cells = [split[title] for split in counts.values()]
        rows.append([title.replace("_", " "), *map(_count, cells)])
    return text_tables.aligned(rows)


def _count(value) -> str:
    """Formats a count, or quartiles as "median [first, third]"."""
    if isinstance(value, int):
        return f"{value:,}"
    first, median, third = (f"{x:g}" for x in value)
    return f"{median} [{first}, {third}]"


def _how(found: Mapping) -> str:
    return (
        f"{found['people']} people of train and valid are scored, in {found['folds']} "
        "folds, each by models of the other folds' people; test people are not looked "
        "at.\nIntervals are 95% bootstrap intervals over the people who are scored."
    )


def _one_accuracy(name: str, scored: Mapping) -> str:
    (cell,) = report.percent_interval(scored["mean"], scored["ci"])
    return f"{name} predicts {cell}% of their choices"


def _accuracies(found: Mapping) -> str:
    sizes = found["n_context"]
    rows = [["choices predicted, %, context n =", *map(str, sizes)]]
    for name, scored in found["accuracy"].items():
        cells = report.percent_interval(scored["mean"], scored["ci"])
        rows.append([name, *cells, *["same"] * (len(sizes) - len(cells))])
    return text_tables.aligned(rows)


def _plot_choices(axis, found: Mapping) -> None:
    x = np.log1p(np.asarray(found["n_context"], float))
    for name, scored in found["accuracy"].items():
        mean, (low, high) = (
            100 * np.array(scored["mean"]),
            100 * np.transpose(scored["ci"]),
        )
        if len(mean) == 1:
            _line(axis, name, mean[0])
            continue
        aside = "else" in name or "linear" in name
        (line,) = axis.plot(x, mean, "--" if aside else "o-", label=name)
        axis.fill_between(x, low, high, alpha=0.15, color=line.get_color())
    axis.set_xticks(x, map(str, found["n_context"]))
    axis.set_xlabel("context choices n")


def _line(axis, name: str, percent: float) -> None:
    style = {"popularity": ":", "linear": "-."}.get(name, "-")
    axis.axhline(percent, color="k", lw=1, ls=style, label=name)


def _plot_people(axis, found: Mapping) -> None:
    curves = [found["accuracy"][name] for name in found["curves"]]
    x = found["trained_on"]
    for index in (0, -1):
        mean = 100 * np.array([curve["mean"][index] for curve in curves])
        ends = 100 * np.transpose([curve["ci"][index] for curve in curves])
        n = found["n_context"][index]
        axis.errorbar(
            x,
            mean,
            np.abs(ends - mean),
            fmt="o-",
            capsize=3,
            label=f"reward model, n = {n}",
        )
    axis.set_xscale("log")
    axis.set_xticks(x, map(str, x))
    axis.set_xticks([], minor=True)
    for name in ("popularity", "linear"):
        _line(axis, name, 100 * found["accuracy"][name]["mean"][0])
    axis.set_xlabel("people trained on")
