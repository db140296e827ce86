"""Figures of evaluations: numbers in, a figure out, see `fsa.evaluation.figure_style`.

They are made from the dictionaries of `fsa.evaluation.scores.evaluation` and from
predictions. Shapes: U users, C context sizes, D latent dimensions, O options.
"""

import math
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from etils import epath
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fsa.data.tasks.simulated import TwoTypes
from fsa.evaluation import figure_style as style
from fsa.evaluation.predictions import Predictions
from fsa.evaluation.scores import confidence
from fsa.text_tables import shortened

COIN = "a coin"
_BEST = "best possible"
# More groups or dots than these make a figure unreadable.
_MOST_GROUPS, _MOST_DOTS = 7, 2000


def accuracy(evaluations: Mapping[str, Mapping], title: str | None = None) -> Figure:
    """Draws accuracy and NLL of runs against n, with 95% intervals over people.

    Args:
      evaluations: run name -> evaluation; all have the same context sizes.
      title: by default the runs and the number of test people.
    """
    first = next(iter(evaluations.values()))
    with matplotlib.rc_context(style.STYLE):
        figure = Figure(figsize=(9, 4.2))
        axes = figure.subplots(1, 2)
        shown = (
            (axes[0], "accuracy", 100, 50, "choices predicted right, %"),
            (axes[1], "nll", 1, math.log(2), "NLL, nats (lower is better)"),
        )
        for axis, key, scale, coin, label in shown:
            x = style.size_axis(axis, first["n_context"])
            axis.set_ylabel(label)
            style.reference_line(axis, coin, COIN)
            for index, (name, run) in enumerate(evaluations.items()):
                values = [scale * np.array(run[k], float) for k in (key, f"{key}_ci")]
                moved = style.beside(x, index, len(evaluations))
                style.curve(axis, moved, *values, index, name)
            ceilings = [run[f"ceiling_{key}"] for run in evaluations.values()]
            if ceilings[0] and all(found == ceilings[0] for found in ceilings):
                # Marks without a line: a line would hide one that is moved sideways.
                axis.plot(x, scale * np.array(ceilings[0]), "k_", ms=20, label=_BEST)
        figure.suptitle(title or _title_of(evaluations))
        hidden = " (smaller than the dots)" if style.behind_dots(axes) else ""
        bars = f"bars: 95% intervals over people{hidden}"
        style.legend_below(figure, axes, title=bars)
    return figure


def _title_of(evaluations: Mapping[str, Mapping]) -> str:
    counts = sorted({run["users"] for run in evaluations.values()})
    if len(evaluations) == 1:
        return title_of(next(iter(evaluations)), counts[0])
    scored = " or ".join(f"{count:,}" for count in counts)
    return f"{len(evaluations)} runs: {scored} test people"


def title_of(name: str, count: int) -> str:
    """Returns the beginning of a title: the run, and the number of test people."""
    noun = "person" if count == 1 else "people"
    return f"{shortened(name, 40)}: {count:,} test {noun}"


def steering(evaluation: Mapping, title: str) -> Figure:
    """Draws for each group against n: choices predicted, and measures of the texts.

    A last panel shows texts between users of two groups, if they were evaluated.

    Args:
      evaluation: with the measures of `fsa.evaluation.generated_texts.TextEvaluator`.
      title: the run and its people.
    """
    generated = _largest(evaluation["generated"], evaluation["groups"])
    panels = _text_panels(generated)
    between = evaluation.get("interpolation")
    number = 1 + len(panels) + bool(between)
    with matplotlib.rc_context(style.STYLE):
        figure = Figure(figsize=(3.4 * number, 3.9))
        axes = figure.subplots(1, number)
        x = style.size_axis(axes[0], evaluation["n_context"])
        # The one group of a dataset without groups is everybody.
        predicted = {
            name: evaluation["groups"].get(name, evaluation) for name in generated
        }
        _groups(axes[0], x, predicted, "accuracy", 100)
        _percent_axis(axes[0], "choices predicted right, %")
        style.reference_line(axes[0], 50, COIN)
        for axis, (key, scale, name) in zip(axes[1:], panels, strict=False):
            style.size_axis(axis, evaluation["n_context"])
            _groups(axis, x, generated, key, scale)
            axis.set_title(name)
            if scale == 100:
                _percent_axis(axis, name)
            if key != "share":
                of_model = scale * evaluation["reference"][key][0]
                style.reference_line(axis, of_model, "language model", "--")
        if between:
            _interpolation(axes[-1], between, generated)
        figure.suptitle(title)
        style.legend_below(figure, axes, title="bars: 95% intervals over people")
    return figure


def _text_panels(generated: Mapping) -> list[tuple[str, int, str]]:
    """Returns (measure, scale, title) of what is known of the texts."""
    found = list(generated.values())

    def known(key):
        values = (value for one in found for value in one.get(key, ()))
        return any(v is not None and not math.isnan(v) for v in values)

    panels = [
        ("share", 100, "texts as the group wants, %"),
        ("validity", 100, "valid texts, %"),
    ]
    if not known("share"):
        panels += [
            ("words", 1, "words of a text"),
            ("kl", 1, "log ratio to the language model,\nnats of a text"),
        ]
    return [panel for panel in panels if known(panel[0])]


def _interpolation(axis: Axes, between: Mapping, shown: Mapping) -> None:
    found = {name: between["groups"][name] for name in shown}
    _groups(axis, np.arange(len(between["points"])), found, "share", 100)
    axis.set_xticks(range(len(between["points"])), list(map(str, between["points"])))
    axis.set_xlabel("from person A (0) to B, of another group (1)")
    _percent_axis(axis, "texts as person A wants, %,\non the way from A to B")


def _percent_axis(axis: Axes, title: str) -> None:
    axis.set(ylim=(-3, 103), title=title)


def _groups(axis: Axes, x, groups: Mapping[str, Mapping], key: str, scale: float):
    for index, (name, found) in enumerate(groups.items()):
        values = [scale * np.array(found[k], float) for k in (key, f"{key}_ci")]
        moved = style.beside(x, index, len(groups))
        style.curve(axis, moved, *values, index, name)


def _largest(found: Mapping, groups: Mapping) -> dict:
    """Returns what was found of the groups with the most people, in their order."""
    count = {name: groups.get(name, {}).get("users", 0) for name in found}
    kept = sorted(found, key=lambda name: -count[name])[:_MOST_GROUPS]
    return {name: found[name] for name in found if name in kept}


def reliability(predictions: Predictions, sizes: Sequence[int], title: str) -> Figure:
    """Draws how often predictions of a stated confidence are right, a panel for each n.

    Below each panel are the numbers of predictions. Dots of fewer than 20 people are
    hollow, however many predictions of theirs there are.
    """
    mask = predictions.mask.astype(bool)
    person = np.nonzero(mask)[0]
    columns = min(len(sizes), 5)
    rows = -(-len(sizes) // columns)
    with matplotlib.rc_context(style.STYLE):
        figure = Figure(figsize=(2 * columns + 0.8, 3.2 * rows + 0.9))
        axes = figure.subplots(
            2 * rows,
            columns,
            height_ratios=[3, 1] * rows,
            sharex=True,
            sharey="row",
            squeeze=False,
        )
        for axis in axes.flat:
            axis.set_axis_off()
        for index, n in enumerate(sizes):
            place = 2 * (index // columns), index % columns
            panels = axes[place], axes[place[0] + 1, place[1]]
            stated, correct = confidence(predictions.log_prob[:, :, index], mask)
            _reliability_panel(panels, *reliability_bins(stated, correct, person))
            panels[0].set_title(f"n = {n}")
            if index % columns == 0:
                panels[0].set_ylabel("right, %")
                panels[1].set_ylabel("predictions\n(log)")
        figure.suptitle(title)
        stated_is = (
            "stated: the probability of the option that is predicted\n"
            "above the line: too cautious; below it: too sure"
        )
        style.legend_below(figure, [axes[0, 0]], title=stated_is)
    return figure


def reliability_bins(
    stated: np.ndarray, correct: np.ndarray, person: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Sorts predictions into ten bins of stated confidence from 1/2 to 1.

    Args:
      stated: `[P]`, the confidence of P predictions.
      correct: `[P]`, whether they are right.
      person: `[P]`, the indices of the people whom they are of.

    Returns:
      For each bin the mean confidence, the share that is right (both NaN without
      predictions), the number of predictions and that of different people, `[10]` each.
    """
    place = np.clip(((stated - 0.5) * 20).astype(int), 0, 9)
    counts = np.bincount(place, minlength=10)
    sums = [np.bincount(place, values, 10) for values in (stated, correct)]
    stated, correct = (
        np.divide(x, counts, out=np.full(10, np.nan), where=counts > 0) for x in sums
    )
    # Each person once in a bin.
    people = np.unique(np.stack([place, person]), axis=1)[0]
    return stated, correct, counts, np.bincount(people, minlength=10)


def _reliability_panel(panels: Sequence[Axes], stated, correct, counts, people) -> None:
    above, below = panels
    above.set_axis_on()
    below.set_axis_on()
    above.plot([50, 100], [50, 100], color="0.35", ls=":", label="perfectly calibrated")
    above.plot(100 * stated, 100 * correct, color=style.COLORS[0], linewidth=1)
    look = {"color": style.COLORS[0], "marker": "o", "linestyle": ""}
    for few, fill, label in (
        (False, style.COLORS[0], "20 people or more"),
        (True, "white", "fewer than 20 people"),
    ):
        of_kind = (people < 20) == few
        above.plot(
            100 * stated[of_kind],
            100 * correct[of_kind],
            markerfacecolor=fill,
            label=label,
            **look,
        )
    below.bar(np.arange(52.5, 100, 5), counts, width=4.5, color="0.55")
    # Bins with few predictions are seen beside those with most of them.
    below.set_yscale("symlog", linthresh=10)
    below.yaxis.get_major_locator().set_params(numticks=4)
    below.yaxis.set_major_formatter("{x:,.0f}")
    below.set_xlabel("stated, %")
    above.set_xlim(48, 102)


def latents(
    predictions: Predictions, sizes: Sequence[int], groups: Sequence[str], title: str
) -> Figure:
    """Draws the posterior means of people in the plane where they differ most.

    Two groups differ along the x-axis; otherwise the axes are principal components.
    All panels show the same plane, that of the largest n; they are of the smallest n
    above 0 and of the three largest.
    """
    known = [index for index, n in enumerate(sizes) if n > 0]
    shown = sorted({known[0], *known[-3:]})
    z = predictions.latent_mean[:_MOST_DOTS, 0]
    group = predictions.group[:_MOST_DOTS]
    directions, labels = plane(z[:, -1], group, groups)
    dots = (z - z[:, -1].mean(0)) @ directions.T
    flat = dots.shape[-1] == 1
    with matplotlib.rc_context(style.STYLE):
        figure = Figure(figsize=(3 * len(shown) + 0.6, 4.3))
        axes = figure.subplots(1, len(shown), squeeze=False, sharey=True)[0]
        for axis, index in zip(axes, shown, strict=True):
            if flat:
                ends = dots[:, shown].min(), dots[:, shown].max()
                _draw_line(axis, dots[:, index, 0], ends, group, groups)
            else:
                _draw_dots(axis, dots[:, index], group, groups)
                _square(axis, dots[:, shown])
            axis.set(title=f"n = {sizes[index]}", xlabel=labels[0])
        axes[0].set_ylabel("people" if flat else labels[1])
        figure.suptitle(title)
        drawn = f"{len(z):,} {'person' if len(z) == 1 else 'people'}"
        what = "lines: numbers of people" if flat else "a dot is a person"
        means = f"{what}; {drawn} drawn; units have no meaning"
        style.legend_below(figure, axes, title=means, markerscale=2)
    return figure


def plane(
    means: np.ndarray, group: np.ndarray, groups: Sequence[str]
) -> tuple[np.ndarray, list[str]]:
    """Returns the directions in which people differ most, and what to call them.

    The first leads from the mean of one group to that of the other, if there are two;
    otherwise directions are principal components.

    Args:
      means: `[U, D]`.
      group: `[U]`, indices of groups.
      groups: their names.

    Returns:
      Orthogonal unit vectors `[2, D]`, or `[1, D]` where D is 1, and a label for each;
      the second is 0 where people differ in one direction alone.
    """
    centered = means - means.mean(0)
    first, label = _main(centered), "main direction of z"
    present = np.unique(group)
    if len(present) == 2:
        ends = [means[group == index].mean(0) for index in present]
        if (distance := np.linalg.norm(ends[1] - ends[0])) > 1e-6:
            first = (ends[1] - ends[0]) / distance
            label = "z, from {} to {}".format(
                *(shortened(groups[index], 18) for index in present)
            )
    rest = centered - np.outer(centered @ first, first)
    second = _main(rest)
    # Where nothing is left, any vector may have been found.
    second = second - (second @ first) * first
    directions = np.stack([first, second])[: means.shape[1]]
    shares = (centered @ directions.T).var(0) / max(centered.var(0).sum(), 1e-12)
    names = [label, "z, across that"][: len(directions)]
    return directions, [
        f"{n}\n({s:.0%} of the spread)" for n, s in zip(names, shares, strict=True)
    ]


def _main(centered: np.ndarray) -> np.ndarray:
    """Returns the direction `[D]` of the largest variance."""
    return np.linalg.svd(centered, full_matrices=False)[2][0]


def _members(group: np.ndarray, groups: Sequence[str]):
    """Yields (who `[U]`, label, style) of each group; those past the first together.

    The one group of a dataset without groups has no label.
    """
    for index, name in enumerate(groups[:_MOST_GROUPS]):
        look = style.series(index)
        del look["linestyle"]
        label = shortened(name, 40) if len(groups) > 1 else None
        yield group == index, label, look
    if len(groups) > _MOST_GROUPS:
        label = f"{len(groups) - _MOST_GROUPS} other groups"
        yield group >= _MOST_GROUPS, label, {"color": "0.7", "marker": "."}


def _draw_dots(axis: Axes, dots: np.ndarray, group, groups: Sequence[str]) -> None:
    for who, label, look in _members(group, groups):
        axis.scatter(*dots[who].T, s=9, alpha=0.5, linewidths=0, label=label, **look)


def _square(axis: Axes, dots: np.ndarray) -> None:
    """Gives both axes the same unit, with room for all dots `[U, C, 2]`."""
    low, high = dots.min((0, 1)), dots.max((0, 1))
    middle, half = (low + high) / 2, 0.55 * max(high - low) + 1e-6
    ends = np.array([-half, half])
    axis.set(xlim=middle[0] + ends, ylim=middle[1] + ends, aspect="equal")


def _draw_line(axis: Axes, places, ends, group, groups: Sequence[str]) -> None:
    """Draws how many people are where between two ends, for a z of one dimension."""
    bins = np.linspace(ends[0] - 1e-3, ends[1] + 1e-3, 41)
    for index, (who, label, look) in enumerate(_members(group, groups)):
        dashes = style.series(index)["linestyle"]
        axis.hist(
            places[who],
            bins,
            histtype="step",
            color=look["color"],
            ls=dashes,
            label=label,
        )


def rewards(
    curves: list[np.ndarray], y: np.ndarray, sizes: Sequence[int], title: str
) -> Figure:
    """Draws inferred and true reward functions of simulated users of two types.

    A reward is only determined up to a constant, and up to a scale where choices are
    deterministic, so every curve is standardised.

    Args:
      curves: inferred rewards of each type's users, `[U, C, O]` each.
      y: `[O]`, options.
      sizes: the C context sizes.
      title: the run and its people.
    """
    with matplotlib.rc_context(style.STYLE):
        figure = Figure(figsize=(2.3 * len(sizes) + 0.6, 3.4))
        axes = figure.subplots(1, len(sizes), sharey=True, squeeze=False)[0]
        for index, axis in enumerate(axes):
            for kind, dashes in enumerate(("--", ":")):
                color = style.COLORS[kind]
                axis.plot(
                    y,
                    _standardized(curves[kind][:, index]).T,
                    color=color,
                    alpha=0.25,
                    linewidth=1,
                )
                # A line alone would be fainter in the legend than many are together.
                inferred = f"inferred of users of type {kind}"
                axis.plot([], [], color=color, linewidth=1, label=inferred)
                truth = _standardized(np.asarray(TwoTypes.reward(y, kind)))
                label = f"true of type {kind}"
                axis.plot(y, truth, color=color, ls=dashes, linewidth=2.5, label=label)
            # Nothing is known of anybody, so nothing can differ.
            alike = "" if sizes[index] else ": both alike"
            axis.set(title=f"n = {sizes[index]}{alike}", xlabel="option (y in 0..1)")
        axes[0].set_ylabel("reward, standardised")
        figure.suptitle(title)
        style.legend_below(figure, axes[:1])
    return figure


def _standardized(values: np.ndarray) -> np.ndarray:
    centered = values - values.mean(-1, keepdims=True)
    return centered / (values.std(-1, keepdims=True) + 1e-6)


def write_all(
    predictions: Predictions,
    evaluation: Mapping,
    groups: Sequence[str],
    folder: epath.PathLike,
    name: str,
) -> list[epath.Path]:
    """Writes the figures that every run has; returns their paths.

    Args:
      predictions: what was evaluated.
      evaluation: see `fsa.evaluation.scores.evaluation`.
      groups: names of the groups.
      folder: where to write.
      name: the run's name, for titles.
    """
    folder, sizes = epath.Path(folder), evaluation["n_context"]
    begin = title_of(name, evaluation["users"])
    made = {
        "accuracy.png": accuracy({name: evaluation}),
        "reliability.png": reliability(
            predictions, sizes, f"{begin}, stated and true probabilities"
        ),
    }
    if evaluation["diagnostics"]["latent_dim"] and max(sizes):
        some = min(evaluation["users"], _MOST_DOTS)
        of_whom = "each" if some == evaluation["users"] else f"{some:,} of them"
        people_of = f"{begin}, z inferred for {of_whom}"
        made["latents.png"] = latents(predictions, sizes, groups, people_of)
    for file, figure in made.items():
        style.save(figure, folder / file)
    return [folder / file for file in made]
