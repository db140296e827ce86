"""Pictures of a benchmark: the NLL by choices known, and by people in training.

A dataset has a panel of its own, and a method the same look in all of them.
"""

import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fsa.evaluation import figure_style
from fsa.evaluation.scores import bootstrap_interval
from fsa.rivals.methods import OURS, VOTES
from fsa.rivals.report import Scores

_RESAMPLES = 200
_COLUMNS = 3
_BOLD = (OURS, VOTES)


def by_choices(found: Mapping[str, Mapping[str, Scores]], path: pathlib.Path) -> None:
    """Draws the NLL of each method against the number of choices known.

    Args:
      found: dataset -> method -> scores.
      path: the file to write.
    """
    looks = _looks(found.values())

    def panel(axis: Axes, methods: Mapping[str, Scores]) -> None:
        places = figure_style.size_axis(axis, next(iter(methods.values())).sizes)
        for name, own in methods.items():
            values = np.array(list(own.nll.values()))
            interval = bootstrap_interval(values, _RESAMPLES)
            _curve(axis, places, values.mean(0), interval, name, looks)

    _draw(found, panel, path)


def by_people(
    found: Mapping[str, Mapping[float, Mapping[str, Scores]]], path: pathlib.Path
) -> None:
    """Draws the NLL of each method against the share of people in training.

    Args:
      found: dataset -> share of the people -> method -> scores.
      path: the file to write.
    """
    looks = _looks(own for shares in found.values() for own in shares.values())

    def panel(axis: Axes, shares: Mapping[float, Mapping[str, Scores]]) -> None:
        known = sorted(shares)
        places = np.arange(len(known))
        axis.set_xticks(places, [f"{share:.0%}" for share in known])
        axis.set_xlabel("people in training (not to scale)")
        for name in shares[known[-1]]:
            means, bounds = [], []
            for share in known:
                own = shares[share].get(name)
                mean, interval = _at_main(own) if own else (np.nan, (np.nan, np.nan))
                means.append(mean)
                bounds.append(interval)
            _curve(axis, places, means, bounds, name, looks)

    _draw(found, panel, path)


def _at_main(own: Scores) -> tuple[float, np.ndarray]:
    """Returns the NLL at the context size that is compared, with its interval."""
    values = np.array([nll[own.main] for nll in own.nll.values()])[:, None]
    return values.mean(), bootstrap_interval(values, _RESAMPLES)[0]


def _looks(methods: Iterable[Mapping[str, Scores]]) -> dict[str, int]:
    """Numbers the looks of methods: ours is the first."""
    names = {name for own in methods for name in own}
    ordered = sorted(names, key=lambda name: (name not in _BOLD, name))
    return {name: index for index, name in enumerate(ordered)}


def _curve(axis: Axes, places, means, bounds, name: str, looks: dict[str, int]) -> None:
    index = looks[name]
    spots = figure_style.beside(places, index, len(looks))
    bold = name in _BOLD
    figure_style.curve(axis, spots, means, bounds, index, name, bold=bold)


def _draw(
    found: Mapping[str, Any], panel: Callable[[Axes, Any], None], path: pathlib.Path
) -> None:
    """Draws a panel for each dataset, with one legend for all."""
    columns = min(_COLUMNS, len(found))
    rows = -(-len(found) // columns)
    with mpl.rc_context(figure_style.STYLE):
        figure = Figure(
            figsize=(max(7, 4.2 * columns), (3.2 if rows > 1 else 4) * rows)
        )
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        for axis, (dataset, own) in zip(axes, found.items(), strict=False):
            panel(axis, own)
            axis.set(title=dataset, ylabel="NLL of a choice, nats")
        for axis in axes[len(found) :]:
            axis.remove()
        figure_style.legend_below(figure, axes[: len(found)])
        figure_style.save(figure, path)
