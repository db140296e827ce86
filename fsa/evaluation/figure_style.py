"""How all figures look: colours, markers, the axis of context sizes, titles, legends.

No figure is made by pyplot, so importing this chooses no backend, and a notebook keeps
its own. The colours are told apart by the colour-blind (Okabe and Ito 2008), and series
differ in marker and line style as well, so that they are told apart in grey.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from etils import epath
from matplotlib.axes import Axes
from matplotlib.container import Container
from matplotlib.figure import Figure

from fsa import folders
from fsa.text_tables import shortened

# Without the yellow of Okabe and Ito, which is faint on white.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#555555")
_MARKERS = "os^Dv<>PX*"
_DASHES = ("-", "--", "-.")

STYLE = {
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "figure.constrained_layout.use": True,
    "figure.dpi": 120,
    "figure.titlesize": 11,
    "font.size": 9,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "lines.markersize": 5,
}


def series(index: int) -> dict[str, Any]:
    """Returns colour, marker and line style of the series with this index."""
    return {
        "color": COLORS[index % len(COLORS)],
        "marker": _MARKERS[index % len(_MARKERS)],
        "linestyle": _DASHES[index % len(_DASHES)],
    }


def beside(positions: npt.ArrayLike, index: int, count: int) -> np.ndarray:
    """Moves a series sideways, so that series with the same values are all seen.

    Args:
      positions: `[C]`, at distances of 1.
      index: the index of the series.
      count: the number of series.
    """
    # Many series together stay so near that nobody takes them for a slope.
    step = min(0.08, 0.24 / count)
    return np.asarray(positions, float) + step * (index - (count - 1) / 2)


def size_axis(axis: Axes, sizes: Sequence[int]) -> np.ndarray:
    """Labels the x-axis with context sizes, equally spaced; returns their places."""
    positions = np.arange(len(sizes))
    axis.set_xticks(positions, list(map(str, sizes)))
    axis.set_xlim(-0.4, len(sizes) - 0.6)
    axis.set_xlabel("choices known, n (not to scale)")
    return positions


def curve(
    axis: Axes,
    x: npt.ArrayLike,
    means: npt.ArrayLike,
    bounds: npt.ArrayLike,
    index: int,
    label: str,
    *,
    bold: bool = False,
) -> None:
    """Draws a series with the interval of each mean.

    Args:
      axis: where to draw.
      x: `[C]`, see `beside`.
      means: `[C]`; what is NaN or None is left out.
      bounds: `[C, 2]`, low and high.
      index: the index of its look, see `series`.
      label: its name in the legend.
      bold: whether it is to stand out from the others.
    """
    means, bounds = np.array(means, float), np.array(bounds, float)
    lengths = np.abs(np.nan_to_num(bounds - means[:, None])).T
    axis.errorbar(
        x,
        means,
        lengths,
        capsize=2,
        elinewidth=1,
        label=shortened(label, 40),
        **series(index),
        **({"linewidth": 2.5, "zorder": 3} if bold else {}),
    )


def behind_dots(axes: Sequence[Axes]) -> bool:
    """Returns whether no interval that `curve` drew is longer than a dot is wide."""
    for axis in axes:
        height = axis.get_position().height * axis.figure.get_figheight() * 72
        low, high = axis.get_ylim()
        dot = abs(high - low) * STYLE["lines.markersize"] / height
        for container in axis.containers:
            for bars in container.lines[2]:
                ends = np.array(bars.get_segments())[..., 1]
                if np.ptp(ends, axis=1).max() > dot:
                    return False
    return True


def reference_line(axis: Axes, value: float, label: str, linestyle: str = ":") -> None:
    """Draws a horizontal line, such as what a coin gets."""
    axis.axhline(value, color="0.35", linestyle=linestyle, linewidth=1.2, label=label)


def legend_below(figure: Figure, axes: Sequence[Axes], **options: Any) -> None:
    """Puts one legend below all axes, with every label of theirs once.

    The figure grows by the lines of the legend, so that the axes keep their height.
    """
    entries = {}
    for axis in axes:
        handles, labels = axis.get_legend_handles_labels()
        entries |= dict(zip(labels, handles, strict=True))
    # Curves before lines of reference.
    names = sorted(entries, key=lambda name: not isinstance(entries[name], Container))
    if entries or options.get("title"):
        width, height = figure.get_size_inches()
        # An inch has room for 13 characters, and a line and a gap are as wide as 7.
        columns = max(1, int(13 * width) // (max(map(len, entries), default=0) + 7))
        figure.set_figheight(height + 0.2 * -(-len(entries) // columns))
        figure.legend(
            [entries[name] for name in names],
            names,
            loc="outside lower center",
            ncols=max(1, min(columns, len(entries))),
            **options,
        )


def save(figure: Figure, path: epath.PathLike) -> None:
    """Writes a figure as PNG."""
    with folders.whole_file(path) as file:
        figure.savefig(file, format="png", bbox_inches="tight")
