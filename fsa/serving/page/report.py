"""What was inferred of a person, to keep: a text in Markdown and a picture."""

import io
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Polygon

from fsa import text_tables
from fsa.inference.feedback import told_in_words
from fsa.serving.page import people_map
from fsa.serving.page.page_model import PageModel
from fsa.serving.people import KeptAnswer

# Options of the picture at most, from the two ends of the ranking.
_ENDS = 8
_COLOURS = ("#d55e00", "#009e73", "#b35bb8", "#7a8b2d")
_YOU, _OTHERS = "#3d4fd8", "#b4b6c0"


def markdown(page: PageModel, answers: Sequence[KeptAnswer]) -> str:
    """Returns a report as Markdown, without links and pictures.

    Raises:
      InputError: for an answer that the model cannot use.
    """
    view = page.view(answers)
    cells = [["", "option", "chosen over another one, %", "range"]]
    for rank, row in enumerate(view["ranking"], 1):
        name = text_tables.escape(page.session()["options"][row["option"]]["short"])
        cells.append([str(rank), name, _percent(row["probability"]), _range(row)])
    lines = [
        f"# What {text_tables.escape(page.title)} infers of you",
        "",
        f"After {_told(page, answers)}. {_certainty(view['certainty'])}".rstrip(),
        "",
        "The range is one standard deviation to each side, by what is not known about "
        "you.",
        "",
        text_tables.markdown(cells),
        "",
        "## What you told",
        "",
        *[f"- {_sentence(each.answer)}" for each in answers],
    ]
    if page.attribution:
        lines += ["", text_tables.escape(page.attribution)]
    return "\n".join(lines) + "\n"


def png(page: PageModel, answers: Sequence[KeptAnswer]) -> bytes:
    """Returns a picture of the map and of the ranking.

    Raises:
      InputError: for an answer that the model cannot use.
    """
    view = page.view(answers)
    figure = Figure(figsize=(11, 5.5), layout="constrained", dpi=144)
    on_map = view["place"] is not None
    parts = figure.subplots(1, 1 + on_map, width_ratios=[1, 1.1][: 1 + on_map])
    axes = np.atleast_1d(parts)
    if on_map:
        _draw_map(axes[0], page, view["place"])
    _draw_ranking(axes[-1], page, view["ranking"])
    figure.suptitle(f"{page.title}: after {_told(page, answers)}", parse_math=False)
    out = io.BytesIO()
    figure.savefig(out, format="png")
    return out.getvalue()


def _draw_map(axes, page: PageModel, place) -> None:
    people = page.session()["map"]
    for group in sorted({g for _, g in people["people"]}, key=str):
        dots = np.array([point for point, g in people["people"] if g == group])
        colour = _OTHERS if group is None else _COLOURS[group % len(_COLOURS)]
        label = "other people" if group is None else people["groups"][group]
        axes.scatter(*dots.T, s=9, color=colour, alpha=0.5, label=label, linewidths=0)
    for share, loops in zip(people_map.SHARES, place["contours"], strict=True):
        for loop in loops:
            alpha = 0.35 if share == min(people_map.SHARES) else 0.15
            axes.add_patch(Polygon(loop, color=_YOU, alpha=alpha, linewidth=0))
    axes.plot(*place["mean"], "o", color=_YOU, label="you")
    (left, bottom), (width, height) = people["bounds"]
    axes.set(xlim=(left, left + width), ylim=(bottom, bottom + height))
    axes.set(xticks=[], yticks=[], title="you with 50 and 90 %, among people")
    axes.legend(frameon=False, fontsize="small")


def _draw_ranking(axes, page: PageModel, ranking) -> None:
    kept = ranking if len(ranking) <= 2 * _ENDS else ranking[:_ENDS] + ranking[-_ENDS:]
    shown = page.session()["options"]
    names = [text_tables.shortened(shown[row["option"]]["short"], 36) for row in kept]
    middle = np.array([100 * row["probability"] for row in kept])
    ends = np.array([[100 * row["low"], 100 * row["high"]] for row in kept]).T
    place = np.arange(len(kept))[::-1]
    axes.hlines(place, *ends, color=_YOU, alpha=0.4, linewidth=4)
    axes.plot(middle, place, "o", color=_YOU)
    axes.set_yticks(place, names, parse_math=False)
    axes.set(xlim=(0, 100), xlabel="chosen over another option, %")
    axes.set_title("first and last" if len(kept) < len(ranking) else "ranking")


def _told(page: PageModel, answers: Sequence[KeptAnswer]) -> str:
    told = page.model.told([each.answer for each in answers])
    counts = {name: len(values) for name, values in told.items() if name != "rejected"}
    return told_in_words(counts or {"chosen": 0})


def _sentence(row) -> str:
    """Returns an answer in words."""
    text = {name: _quoted(value) for name, value in row.items() if name != "prompt"}
    if "chosen" in row:
        how = "as good as" if row.get("tie") else "over"
        return f"{text['chosen']} {how} {text['rejected']}"
    if "item" in row:
        return f"{text['item']}: {row['value']:g}"
    kind = "liked" if "liked" in row else "disliked"
    return f"{kind} {text[kind]}"


def _quoted(value) -> str:
    text = value if isinstance(value, str) else str(np.asarray(value).tolist())
    return text_tables.escape(text_tables.shortened(text_tables.in_one_line(text), 160))


def _certainty(certainty) -> str:
    if certainty is None:
        return ""
    now, before = _percent(certainty["now"]), _percent(certainty["before"])
    return (
        "Which of two options you choose is expected to be predicted "
        f"{now}% of the time; {before}% before."
    )


def _percent(x: float) -> str:
    return f"{100 * x:.0f}"


def _range(row) -> str:
    return f"{_percent(row['low'])} to {_percent(row['high'])}"
