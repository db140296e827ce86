"""`Ranking`: options in the order in which a person is expected to want them."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fsa import text_tables
from fsa.inference.feedback import told_in_words
from fsa.inference.option_lookup import is_prompted

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Columns that an option takes at most in a table, and beside a plot. Longer ones lose
# their middle.
_WIDTH, _LABEL_WIDTH = 70, 30


@dataclasses.dataclass(frozen=True, eq=False)
class Ranking:
    """A ranking of O options, and its uncertainty; printed, it is a table.

    Attributes:
      options: O options, in the order in which they were given.
      probability: `[O]`, probability that an option is chosen over another one,
        averaged over the others and over z.
      std: `[O]`, standard deviation of that probability over z. It shows what is not
        known about the person, and not the randomness of a single choice.
      num_choices: number of choices of the person that it follows from.
      counts: how much of each kind the person told, see `fsa.inference.feedback.Told`;
        by default choices alone.
      reward: `[O]`, expected reward of each option minus the mean of the others, as log
        odds in nats; None for a model that is not linear in z.
      reward_interval: `[O, 2]`, ends of the 90% interval of that, by what is not known
        about the person; or None.
    """

    options: Sequence[Any]
    probability: np.ndarray
    std: np.ndarray
    num_choices: int
    counts: Mapping[str, int] | None = None
    reward: np.ndarray | None = None
    reward_interval: np.ndarray | None = None

    @property
    def order(self) -> np.ndarray:
        """`[O]`, indices of the options from the most to the least wanted.

        Options that are wanted alike are in the order in which they were given.
        """
        return np.argsort(-self.probability, kind="stable")

    @property
    def _told(self) -> str:
        counts = {"chosen": self.num_choices} if self.counts is None else self.counts
        return told_in_words(counts)

    def rows(self) -> list[dict[str, Any]]:
        """Returns the ranked options: rank from 1, option, probability and std.

        An option that is a pair (prompt, text) is told as its prompt and its text. With
        them are reward, reward_low and reward_high where the model knows them.
        """
        return [
            {
                "rank": rank,
                **_named(self.options[i]),
                "probability": float(self.probability[i]),
                "std": float(self.std[i]),
                **self._reward_of(i),
            }
            for rank, i in enumerate(self.order, start=1)
        ]

    def _reward_of(self, i: int) -> dict[str, float]:
        if self.reward is None:
            return {}
        low, high = map(float, self.reward_interval[i])
        return {"reward": float(self.reward[i]), "reward_low": low, "reward_high": high}

    def __str__(self) -> str:
        """Returns the table of the ranked options, in percent.

        The range is one standard deviation to each side, cut at 0 and 100. Where the
        model knows them, there are rewards with their 90% intervals.
        """
        rows = self.rows()
        known = self.reward is not None
        names = _shown(rows, _WIDTH - 25 * known)
        cells = [
            [
                name,
                f"{100 * row['probability']:.1f}",
                _range(row),
                *([_with_interval(row)] if known else []),
            ]
            for name, row in zip(names, rows, strict=True)
        ]
        header = ["option", "probability %", "range", *["reward, 90%"] * known]
        about = (
            "\nThe reward is in nats against the mean of the others, with its 90% "
            "interval."
        )
        return (
            f"After {self._told}, the probability of being chosen over another of "
            "these options;\nits range is one standard deviation to each side, by what "
            "is not known about the person:\n"
            + text_tables.aligned([header, *cells])
            + about * known
        )

    def plot(self, axes: "Axes | None" = None) -> "Axes":
        """Draws the probabilities, and as lines the ranges of the printed table.

        Args:
          axes: where to draw; by default a new figure of pyplot.

        Returns:
          The axes; `ranking.plot().figure.savefig("ranking.png")` saves the figure.
        """
        if axes is None:
            # Imported here, since loading pyplot takes longer than ranking does.
            from matplotlib import pyplot as plt

            height = 1.4 + 0.35 * len(self.options)
            axes = plt.figure(figsize=(6.4, height), layout="constrained").subplots()
        rows = self.rows()[::-1]
        names = _shown(rows, _LABEL_WIDTH)
        # Positions, since two options may be shown alike.
        middle = np.array([100 * row["probability"] for row in rows])
        ends = np.array([_ends(row) for row in rows])
        axes.barh(
            range(len(rows)),
            middle,
            xerr=abs(ends - middle[:, None]).T,
            error_kw={"ecolor": "0.4", "capsize": 3},
        )
        axes.set_yticks(range(len(rows)), names)
        axes.axvline(50, color="0.4", linestyle=":")
        axes.annotate(
            "50: either is as likely",
            (50, 1),
            xycoords=("data", "axes fraction"),
            ha="center",
            va="bottom",
            fontsize="small",
            color="0.3",
        )
        axes.set(
            xlim=(0, 100),
            xlabel="probability of being chosen over another option, %\n"
            "lines: one standard deviation to each side, by what is not known",
        )
        # Above the label of the dotted line.
        axes.set_title(
            f"Of a person with {self._told.replace(' ', ' known ', 1)}", pad=18
        )
        return axes


def _range(row: dict[str, Any]) -> str:
    low, high = _ends(row)
    return f"[{low:.1f}, {high:.1f}]"


def _with_interval(row: dict[str, Any]) -> str:
    return f"{row['reward']:.2f} [{row['reward_low']:.2f}, {row['reward_high']:.2f}]"


def _ends(row: dict[str, Any]) -> tuple[float, float]:
    """Returns one standard deviation to each side of a probability, in percent."""
    middle, half = 100 * row["probability"], 100 * row["std"]
    return max(middle - half, 0), min(middle + half, 100)


def _named(option: Any) -> dict[str, Any]:
    if is_prompted(option):
        return {"prompt": option[0], "option": option[1]}
    return {"option": option}


def _shown(rows: Sequence[dict[str, Any]], width: int) -> list[str]:
    """Returns the options of rows as they are shown in tables and plots."""
    prompts = {row.get("prompt") for row in rows}
    found = []
    for row in rows:
        option = row["option"]
        text = option if isinstance(option, str) else str(np.asarray(option).tolist())
        if len(prompts) > 1 and row.get("prompt"):
            text = f"{row['prompt']}: {text}"
        found.append(text_tables.shortened(text_tables.in_one_line(text), width))
    return found
