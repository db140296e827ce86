"""Tables and plots of evaluations.

They are made from the dictionaries of `fsa.evaluation.scores.evaluation`, which are the
content of `evaluation.json`, so that runs of other machines can be compared. No figure
is made by pyplot, so importing this chooses no backend, and a notebook keeps its own.
"""

import math
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from etils import epath
from matplotlib.figure import Figure

from fsa import text_tables
from fsa.data.tasks.simulated import TwoTypes
from fsa.evaluation.predictions import Predictions
from fsa.evaluation.scores import confidence

STYLE = {
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.dpi": 120,
    "legend.frameon": False,
}


def _known(value: float | None) -> bool:
    return value is not None and not math.isnan(value)


def _cells(values, digits: int = 2, scale: float = 1) -> list[str]:
    return [f"{scale * v:.{digits}f}" if _known(v) else "-" for v in values]


def _percent(values) -> list[str]:
    return _cells(values, 1, 100)


def _nats(values) -> list[str]:
    return _cells(values, 4)


def _bounds(ends, digits: int = 2, scale: float = 1) -> str:
    low, high = _cells(ends, digits, scale)
    return f"[{low}, {high}]" if all(map(_known, ends)) else "-"


def _interval(means, bounds, digits: int = 2, scale: float = 1) -> list[str]:
    """Formats means with their intervals; a single user has a mean alone."""
    intervals = [_bounds(ends, digits, scale) for ends in bounds]
    cells = zip(_cells(means, digits, scale), intervals, strict=True)
    return [mean if ends == "-" else f"{mean} {ends}" for mean, ends in cells]


def percent_interval(
    means: Sequence[float], bounds: Sequence[Sequence[float]]
) -> list[str]:
    """Formats shares with their intervals in percent, as "47.0 [45.7, 48.2]"."""
    return _interval(means, bounds, 1, 100)


def table(evaluation: Mapping) -> str:
    """Formats one run: accuracy, NLL, calibration and whether z is used, for each n."""
    rows = [["context choices n", *map(str, evaluation["n_context"])]]

    def add(name, cells):
        rows.append([name, *cells])

    add(
        "accuracy % [95% over users]",
        percent_interval(evaluation["accuracy"], evaluation["accuracy_ci"]),
    )
    if evaluation["ceiling_accuracy"]:
        add("  Bayes-optimal", _percent(evaluation["ceiling_accuracy"]))
    for name, group in evaluation["groups"].items():
        add(
            f"  {name} ({group['users']} users)",
            percent_interval(group["accuracy"], group["accuracy_ci"]),
        )
    add("NLL, nats", _nats(evaluation["nll"]))
    if evaluation["ceiling_nll"]:
        add("  Bayes-optimal", _nats(evaluation["ceiling_nll"]))
        if (shares := recovered(evaluation)) is not None:
            add("  share of its gain over n = 0, %", _percent(shares))
    add("ECE", _nats(evaluation["ece"]))
    add("  if perfectly calibrated", _nats(evaluation["ece_if_calibrated"]))
    diagnostics = evaluation["diagnostics"]
    if diagnostics["latent_dim"]:
        units = diagnostics["active_units"]
        add("active units", [f"{u}/{diagnostics['latent_dim']}" for u in units])
        kl = np.sum(diagnostics["kl_per_dimension"], axis=-1)
        add("KL from n = 0, nats", _cells(kl))
        kind = "flip test" if diagnostics["flips_are_types"] else "flips if reversed"
        add(f"{kind}, %", _percent(diagnostics["flip_rate"]))
    effective = diagnostics.get("bayes_effective_samples")
    if effective:
        add("sampler's ESS, median", [f"{e:.0f}" for e in effective["median"]])
    return text_tables.aligned(rows)


def generated_table(evaluation: Mapping) -> str:
    """Formats measures of the texts that a policy wrote, for each group and n."""
    sizes, reference = evaluation["n_context"], evaluation["reference"]
    rows = [[f"texts, {evaluation['attribute']}, n =", "reference", *map(str, sizes)]]
    for group, found in evaluation["generated"].items():
        shares = percent_interval(found["share"], found["share_ci"])
        rows.append([f"{group}: wanted, %", "-", *shares])
    for name, cells in (
        (
            "measured",
            lambda found: _interval(found["attribute"], found["attribute_ci"]),
        ),
        ("valid, %", lambda found: _percent(found["validity"])),
        ("perplexity", lambda found: _cells(found["perplexity"])),
        ("tokens", lambda found: _cells(found["tokens"], 1)),
        ("KL, nats", lambda found: _cells(found["kl"])),
    ):
        for group, found in evaluation["generated"].items():
            rows.append([f"{group}: {name}", *cells(reference), *cells(found)])
    return text_tables.aligned(rows)


def interpolation_table(evaluation: Mapping) -> str:
    """Formats measures of texts between users of each group and users of another."""
    line = evaluation["interpolation"]
    rows = [["texts from one group to another, t =", *map(str, line["points"])]]
    for group, found in line["groups"].items():
        shares = percent_interval(found["share"], found["share_ci"])
        rows.append([f"{group}: as it wants, %", *shares])
    for group, found in line["groups"].items():
        rows.append([f"{group}: valid, %", *_percent(found["validity"])])
    return text_tables.aligned(rows)


def recovered(evaluation: Mapping) -> list[float | None] | None:
    """Computes which share of the Bayes-optimal NLL gain over n = 0 a model recovers.

    The share is (bayes(0) - model(n)) / (bayes(0) - bayes(n)). It is None at n = 0, and
    there are no shares where n = 0 was not scored.
    """
    if 0 not in evaluation["n_context"]:
        return None
    start = evaluation["ceiling_nll"][evaluation["n_context"].index(0)]
    return [
        (start - own) / (start - bayes) if n else None
        for n, own, bayes in zip(
            evaluation["n_context"],
            evaluation["nll"],
            evaluation["ceiling_nll"],
            strict=True,
        )
    ]


def compare_table(evaluations: Mapping[str, Mapping]) -> str:
    """Formats several runs: accuracy for each n; NLL and use of z at the largest n."""
    first = next(iter(evaluations.values()))
    sizes = first["n_context"]
    last = f"at n = {sizes[-1]}"
    rows = [
        [
            "accuracy %, n =",
            *map(str, sizes),
            f"95% {last}",
            f"NLL {last}",
            f"ECE {last}",
            "active units",
            "flip %",
        ]
    ]
    if first["ceiling_accuracy"]:
        nll = f"{first['ceiling_nll'][-1]:.4f}"
        accuracy = _percent(first["ceiling_accuracy"])
        rows.append(["Bayes-optimal", *accuracy, "-", nll, "-", "-", "-"])
    for name, run in evaluations.items():
        diagnostics = run["diagnostics"]
        dim = diagnostics["latent_dim"]
        rows.append(
            [
                name,
                *_percent(run["accuracy"]),
                _bounds(run["accuracy_ci"][-1], 1, 100),
                *_nats([run["nll"][-1], run["ece"][-1]]),
                f"{diagnostics['active_units'][-1]}/{dim}" if dim else "no z",
                *(_percent(diagnostics["flip_rate"][-1:]) if dim else ["-"]),
            ]
        )
    return text_tables.aligned(rows)


def save(figure: Figure, path: epath.PathLike):
    """Writes a figure as PNG."""
    with epath.Path(path).open("wb") as file:
        figure.savefig(file, format="png", bbox_inches="tight")


def _positions(sizes) -> np.ndarray:
    """Places context sizes on an axis: logarithmically, but with 0."""
    return np.log1p(np.asarray(sizes, float))


def plot_accuracy(evaluations: Mapping[str, Mapping], path: epath.PathLike):
    """Plots accuracy and NLL against n, with 95% bands over users.

    The Bayes-optimal predictor, if known, is dashed.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10, 4))
        axes = figure.subplots(1, 2)
        for name, run in evaluations.items():
            x = _positions(run["n_context"])
            for axis, key, scale in ((axes[0], "accuracy", 100), (axes[1], "nll", 1)):
                low, high = scale * np.transpose(run[f"{key}_ci"])
                (line,) = axis.plot(
                    x, scale * np.array(run[key]), marker="o", label=name
                )
                axis.fill_between(x, low, high, alpha=0.2, color=line.get_color())
        first = next(iter(evaluations.values()))
        x = _positions(first["n_context"])
        if first["ceiling_accuracy"]:
            axes[0].plot(
                x,
                100 * np.array(first["ceiling_accuracy"]),
                "k--",
                label="Bayes-optimal",
            )
            axes[1].plot(x, first["ceiling_nll"], "k--", label="Bayes-optimal")
        for axis, label in zip(axes, ("accuracy, %", "NLL, nats"), strict=True):
            axis.set_xticks(x, map(str, first["n_context"]))
            axis.set(xlabel="context choices n", ylabel=label)
        axes[0].legend()
        save(figure, path)


def plot_steering(evaluation: Mapping, path: epath.PathLike):
    """Plots for each group against n: accuracy on held-out pairs, and text measures.

    A fourth plot shows texts between users of two groups, if they were evaluated.
    """
    line_between = evaluation.get("interpolation")
    with matplotlib.rc_context(STYLE):
        number = 4 if line_between else 3
        figure = Figure(figsize=(4.6 * number, 4))
        axes = figure.subplots(1, number)
        x = _positions(evaluation["n_context"])
        accuracy, share, validity = "accuracy", "share", "validity"
        for axis, key in zip(axes[:3], (accuracy, share, validity), strict=True):
            found = evaluation["groups" if key == accuracy else "generated"]
            _plot_groups(axis, x, found, key)
            axis.set_xticks(x, map(str, evaluation["n_context"]))
            axis.set(xlabel="context choices n", ylim=(-3, 103))
        reference = evaluation["reference"]
        axes[2].axhline(100 * reference[validity][0], color="k", ls="--", lw=1)
        attribute = evaluation["attribute"]
        axes[0].set_title("implicit reward right, %")
        axes[1].set_title(f"texts as the group likes them, %\n({attribute})")
        axes[2].set_title("valid texts, %\n(dashed: language model)")
        if line_between:
            points = line_between["points"]
            _plot_groups(axes[3], points, line_between["groups"], share)
            axes[3].set(xlabel="from this group (0) to the other (1)", ylim=(-3, 103))
            axes[3].set_title("texts as the first likes them, %")
        axes[0].legend()
        save(figure, path)


def _plot_groups(axis, x, groups: Mapping[str, Mapping], key: str):
    """Plots percentages of each group with 95% bands."""
    for group, values in groups.items():
        low, high = 100 * np.transpose(values[f"{key}_ci"])
        means = 100 * np.array(values[key], float)
        (line,) = axis.plot(x, means, marker="o", label=group)
        axis.fill_between(x, low, high, alpha=0.2, color=line.get_color())


def plot_reliability(predictions: Predictions, sizes, path: epath.PathLike):
    """Plots how often predictions of a stated confidence are right, for each n."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.5, 4.5))
        axis = figure.subplots()
        axis.plot([50, 100], [50, 100], "k:", label="perfectly calibrated")
        mask = predictions.mask.astype(bool)
        for index, n in enumerate(sizes):
            stated, correct = confidence(predictions.log_prob[:, :, index], mask)
            order = np.argsort(stated)
            bins = [b for b in np.array_split(order, 10) if len(b)]
            axis.plot(
                [100 * stated[b].mean() for b in bins],
                [100 * correct[b].mean() for b in bins],
                marker="o",
                markersize=4,
                label=f"n = {n}",
            )
        axis.set(xlabel="stated confidence, %", ylabel="right, %")
        axis.legend()
        save(figure, path)


def plot_latents(
    predictions: Predictions, sizes, groups: tuple[str, ...], path: epath.PathLike
):
    """Plots posterior means of users in two principal components, coloured by group."""
    with matplotlib.rc_context(STYLE):
        shown = [i for i, n in enumerate(sizes) if n > 0][-3:]
        figure = Figure(figsize=(4 * len(shown), 3.8))
        axes = figure.subplots(1, len(shown))
        means = predictions.latent_mean[:, 0]
        center = means[:, -1].mean(0)
        # Axes from the largest context, so that the panels can be compared.
        directions = np.linalg.svd(means[:, -1] - center, full_matrices=False)[2][:2]
        if len(directions) < 2:
            directions = np.pad(directions, ((0, 2 - len(directions)), (0, 0)))
        for axis, index in zip(np.atleast_1d(axes), shown, strict=True):
            projected = (means[:2000, index] - center) @ directions.T
            for group, name in enumerate(groups):
                members = predictions.group[:2000] == group
                axis.scatter(*projected[members].T, s=6, alpha=0.5, label=name)
            axis.set(title=f"n = {sizes[index]}", xlabel="first component")
        np.atleast_1d(axes)[0].set_ylabel("second component")
        if len(groups) <= 10:
            np.atleast_1d(axes)[0].legend(markerscale=2)
        save(figure, path)


def plot_rewards(
    curves: list[np.ndarray],
    y: np.ndarray,
    sizes: Sequence[int],
    path: epath.PathLike,
):
    """Plots inferred and true reward functions of simulated users of two types.

    A reward is only determined up to a constant, and up to a scale where choices are
    deterministic, so every curve is standardised. Shapes: U users of a type, C context
    sizes, O options.

    Args:
      curves: inferred rewards of each type's users, `[U, C, O]` each.
      y: `[O]`, options.
      sizes: the C context sizes.
      path: path of the PNG file.
    """

    def standardize(values):
        return (values - values.mean(-1, keepdims=True)) / (
            values.std(-1, keepdims=True) + 1e-6
        )

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3 * len(sizes), 3))
        axes = figure.subplots(1, len(sizes), sharey=True)
        for axis, index in zip(np.atleast_1d(axes), range(len(sizes)), strict=True):
            for user_type, color in enumerate(("C0", "C1")):
                axis.plot(
                    y,
                    standardize(curves[user_type][:, index]).T,
                    color=color,
                    alpha=0.25,
                    linewidth=1,
                )
                truth = standardize(np.asarray(TwoTypes.reward(y, user_type)))
                axis.plot(
                    y, truth, color=color, linestyle="--", label=f"type {user_type}"
                )
            axis.set(title=f"n = {sizes[index]}", xlabel="option y")
        np.atleast_1d(axes)[0].set_ylabel("reward, standardised")
        np.atleast_1d(axes)[0].legend(title="truth (dashed)")
        save(figure, path)


def plot_all(
    predictions: Predictions, evaluation: Mapping, groups: tuple[str, ...], folder
) -> list[epath.Path]:
    """Writes the plots that every run has; returns their paths."""
    folder = epath.Path(folder)
    sizes = evaluation["n_context"]
    paths = [folder / "accuracy.png", folder / "reliability.png"]
    plot_accuracy({"model": evaluation}, paths[0])
    plot_reliability(predictions, sizes, paths[1])
    if evaluation["diagnostics"]["latent_dim"] and max(sizes):
        paths.append(folder / "latents.png")
        plot_latents(predictions, sizes, groups, paths[-1])
    return paths
