"""Pictures of a benchmark: the NLL by choices known, and by people in training."""

import pathlib
from collections.abc import Mapping

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from fsa.evaluation import figure_style
from fsa.evaluation.scores import bootstrap_interval
from fsa.rivals.report import Scores

_RESAMPLES = 200


def by_choices(methods: Mapping[str, Scores], title: str, path: pathlib.Path) -> None:
    """Draws the NLL of each method against the number of choices known."""
    sizes = next(iter(methods.values())).sizes
    with mpl.rc_context(figure_style.STYLE):
        figure = Figure(figsize=(7, 4))
        axis = figure.subplots()
        places = figure_style.size_axis(axis, sizes)
        for index, (name, own) in enumerate(methods.items()):
            values = np.array(list(own.nll.values()))
            figure_style.curve(
                axis,
                figure_style.beside(places, index, len(methods)),
                values.mean(0),
                bootstrap_interval(values, _RESAMPLES),
                index,
                name,
            )
        axis.set(title=title, ylabel="NLL of a choice, nats")
        figure_style.legend_below(figure, [axis])
        figure_style.save(figure, path)


def by_people(
    shares: Mapping[float, Mapping[str, Scores]], title: str, path: pathlib.Path
) -> None:
    """Draws the NLL of each method against the share of people in training."""
    known = sorted(shares)
    names = list(shares[known[-1]])
    with mpl.rc_context(figure_style.STYLE):
        figure = Figure(figsize=(7, 4))
        axis = figure.subplots()
        places = np.arange(len(known))
        axis.set_xticks(places, [f"{share:.0%}" for share in known])
        axis.set_xlabel("people in training (not to scale)")
        for index, name in enumerate(names):
            means, bounds = [], []
            for share in known:
                own = shares[share].get(name)
                if own is None:
                    means.append(np.nan)
                    bounds.append((np.nan, np.nan))
                    continue
                values = np.array([v[own.main] for v in own.nll.values()])[:, None]
                means.append(values.mean())
                bounds.append(bootstrap_interval(values, _RESAMPLES)[0])
            spot = figure_style.beside(places, index, len(names))
            figure_style.curve(axis, spot, means, bounds, index, name)
        axis.set(title=title, ylabel="NLL of a choice, nats")
        figure_style.legend_below(figure, [axis])
        figure_style.save(figure, path)
