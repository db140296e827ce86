"""Reports of a probe: text, JSON and a figure, from the dictionary of `recipes.probe`.

Accuracies are shares in [0, 1] there, and percentages in the text and the figure.
"""

import json
from collections.abc import Mapping

import matplotlib
import numpy as np
from etils import epath
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fsa import folders, text_tables
from fsa.evaluation import figure_style as style
from fsa.evaluation import report

# What predictions are called for people, where their names in probe.json are short.
_NAMES = {
    "linear": "linear model, the same for all",
    "linear, shifted": "linear model, shifted by the choices",
    "reward model, somebody else's choices": "control: somebody else's choices",
}


def text(found: Mapping) -> str:
    """Formats the conclusion, the counts, the accuracies and the other sentences."""
    *others, conclusion = found["verdict"]
    parts = [report.wrapped([conclusion]), _counts(found["counts"])]
    if "trained_on" in found:
        parts.append(_accuracies(found))
    else:
        parts.append(_one_accuracy("popularity", found["accuracy"]["popularity"]))
    parts.append(report.wrapped([_how(found)]))
    if others:
        parts.append(report.wrapped((f"- {line}" for line in others), "  "))
    return "\n\n".join(parts)


def write(found: Mapping, folder: epath.PathLike) -> list[epath.Path]:
    """Writes probe.json, and probe.png if a model was trained; returns their paths."""
    folder = epath.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / "probe.json"]
    folders.write_text(paths[0], json.dumps(found, indent=1) + "\n")
    if "trained_on" in found:
        paths.append(folder / "probe.png")
        style.save(draw(found), paths[-1])
    return paths


def draw(found: Mapping) -> Figure:
    """Draws accuracy against context choices, and against the people trained on."""
    with matplotlib.rc_context(style.STYLE):
        figure = Figure(figsize=(9.5, 4.8))
        by_choices, by_people = figure.subplots(1, 2, sharey=True)
        _draw_choices(by_choices, found)
        _draw_people(by_people, found)
        by_choices.set_ylabel("choices predicted right, %")
        name = text_tables.shortened(epath.Path(found["data"]).name, 40)
        figure.suptitle(f"probe of {name}: {found['people']} people, none of the test")
        style.legend_below(
            figure, [by_choices, by_people], title="bars: 95% intervals over people"
        )
    return figure


def _counts(counts: Mapping) -> str:
    rows = [["", *counts]]
    for title in next(iter(counts.values())):
        cells = [split[title] for split in counts.values()]
        of_a_user = title.endswith("_of_a_user")
        aside = ", median [quartiles]" if of_a_user else ""
        rows.append([title.replace("_", " ") + aside, *map(_count, cells)])
    return text_tables.fitted(rows)


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
        "at. Intervals are 95% bootstrap intervals over the people who are scored."
    )


def _one_accuracy(name: str, scored: Mapping) -> str:
    (cell,) = report.percent_interval(scored["mean"], scored["ci"])
    return f"{name} predicts {cell}% of their choices"


def _accuracies(found: Mapping) -> str:
    sizes = found["n_context"]
    head = ["right, %, choices known", *map(str, sizes)]
    rows = [[*head, f"95% interval, n = {sizes[-1]}"]]
    for name, scored in found["accuracy"].items():
        *cells, last = report.percent_interval(scored["mean"], scored["ci"])
        mean, _, interval = last.partition(" ")
        means = [*(cell.partition(" ")[0] for cell in cells), mean]
        # What does not depend on the choices is the same for all n.
        means *= len(sizes) // len(means)
        rows.append([_NAMES.get(name, name), *means, interval or "-"])
    return text_tables.fitted(rows)


def _draw_choices(axis: Axes, found: Mapping) -> None:
    x = style.size_axis(axis, found["n_context"])
    style.reference_line(axis, 50, "a coin")
    curves = {
        name: scored
        for name, scored in found["accuracy"].items()
        if len(scored["mean"]) == len(x)
    }
    trained = {
        name: f"reward model, trained on {people} people"
        for name, people in zip(found["curves"], found["trained_on"], strict=True)
    }
    names = _NAMES | trained
    for index, (name, scored) in enumerate(curves.items()):
        mean, ends = (100 * np.array(scored[key]) for key in ("mean", "ci"))
        moved = style.beside(x, index, len(curves))
        style.curve(axis, moved, mean, ends, index, names.get(name, name))
    _baselines(axis, found)


def _baselines(axis: Axes, found: Mapping) -> None:
    for name, dashes in (("popularity", "--"), ("linear", "-.")):
        value = 100 * found["accuracy"][name]["mean"][0]
        style.reference_line(axis, value, _NAMES.get(name, name), dashes)


def _draw_people(axis: Axes, found: Mapping) -> None:
    curves = [found["accuracy"][name] for name in found["curves"]]
    x = style.size_axis(axis, found["trained_on"])
    axis.set_xlabel("people trained on (not to scale)")
    style.reference_line(axis, 50, "a coin")
    for order, place in enumerate((0, -1)):
        mean, ends = (
            100 * np.array([curve[key][place] for curve in curves])
            for key in ("mean", "ci")
        )
        label = f"reward model at n = {found['n_context'][place]}"
        # Looks of their own, after those of the curves against n.
        look = len(curves) + 2 + order
        style.curve(axis, style.beside(x, order, 2), mean, ends, look, label)
    _baselines(axis, found)
