"""What an evaluation says, in plain sentences whose numbers are those of its tables.

They are made from the dictionary of `fsa.evaluation.scores.evaluation`. Percentages
have one digit after the point, as in the tables.
"""

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

# Whether a person's choices help to predict others of that person, at the largest n.
HELP, HARM, NOT_SHOWN, UNUSED = "help", "harm", "not shown", "unused"
# The fewest choices that are told bring this share of the largest gain.
_MOST = 0.75


def answer(evaluation: Mapping) -> str:
    """Returns HELP, HARM, NOT_SHOWN or UNUSED.

    They help or harm if the interval of the gain over the first context size is on one
    side of 0, and are unused if all predictions are the same at every context size.
    """
    if np.ptp(evaluation["nll"]) < 1e-6:
        return UNUSED
    low, high = evaluation["gain_ci"][-1]
    return HELP if low > 0 else HARM if high < 0 else NOT_SHOWN


def fewest(accuracy: Sequence[float]) -> int:
    """Returns the index of the fewest choices that bring most of the largest gain.

    Args:
      accuracy: accuracies at each context size.
    """
    gain = np.asarray(accuracy) - accuracy[0]
    return int(np.argmax(gain >= _MOST * gain.max()))


def sentences(evaluation: Mapping) -> list[str]:
    """Says whether choices of a new person help, and how good that is.

    Args:
      evaluation: see `fsa.evaluation.scores.evaluation`.

    Returns:
      Two sentences, and a third one where several groups were scored.
    """
    lines = [_on_choices(evaluation), _on_limits(evaluation)]
    return [*lines, _on_groups(evaluation)] if evaluation["groups"] else lines


def on_texts(evaluation: Mapping) -> str:
    """Says what was measured in the texts that a policy wrote.

    Args:
      evaluation: with the measures of `fsa.evaluation.generated_texts.TextEvaluator`.
    """
    sizes, reference = evaluation["n_context"], evaluation["reference"]

    def at(name: str, index: int) -> list[float]:
        found = (group.get(name) for group in evaluation["generated"].values())
        values = [values[index] for values in found if values]
        return [value for value in values if not _missing(value)]

    if at("share", -1):
        parts = [_on_wanted(evaluation)]
    else:
        tokens = _range(f"{value:.1f}" for value in at("tokens", -1))
        parts = [
            f"texts have {tokens} tokens ({reference['tokens'][0]:.1f} by the language "
            "model itself)"
        ]
    if at("validity", -1):
        parts.append(
            f"{_range(map(_percent, at('validity', -1)))}% are valid "
            f"({_percent(reference['validity'][0])}% by the language model itself)"
        )
    return f"With {_known(sizes[-1])}, {' and '.join(parts)}."


def _on_wanted(evaluation: Mapping) -> str:
    """Says how many texts are on the side of each group that is named after one."""
    shares = {
        name: group["share"]
        for name, group in evaluation["generated"].items()
        if not _missing(group.get("share", [None])[-1])
    }
    told = [
        f"{_percent(share[-1])}% of {'those' if index else 'the texts'} for {name} "
        f"people {'' if index else 'are '}{name}"
        for index, (name, share) in enumerate(shares.items())
    ]
    first = [share[0] for share in shares.values() if not _missing(share[0])]
    before = [f"{_percent(value)}%" for value in first]
    if not before or len(evaluation["n_context"]) == 1:
        return _and(told)
    return f"{_and(told)} ({_and(before)} with {_known(evaluation['n_context'][0])})"


def _missing(value: float | None) -> bool:
    return value is None or math.isnan(value)


def people(count: int) -> str:
    """Formats a number of people."""
    return "1 person" if count == 1 else f"{count:,} people"


def _on_choices(evaluation: Mapping) -> str:
    sizes, accuracy = evaluation["n_context"], evaluation["accuracy"]
    found, last = answer(evaluation), len(sizes) - 1
    if found == UNUSED and last:
        return (
            "The model makes no use of a new person's choices: it predicts "
            f"{_percent(accuracy[last])}% of the others, whatever is known."
            f"{_advice(evaluation)}"
        )
    shown = sorted({0, fewest(accuracy), last} if found == HELP else {0, last})
    others = [f"with {_known(sizes[i])} {_percent(accuracy[i])}%" for i in shown[1:]]
    # The beginning names the model, unless it is missing.
    subject = "it" if last and found != NOT_SHOWN else "the model"
    told = [
        f"with {_known(sizes[0])} {subject} predicts {_percent(accuracy[0])}% of the "
        "person's other choices",
        *others,
    ]
    begin = {
        HELP: "The model learns a new person from a few choices: ",
        HARM: "A new person's choices mislead the model: ",
        NOT_SHOWN: "A new person's choices did not help, as far as "
        f"{people(evaluation['users'])} can tell: ",
    }
    line = f"{begin[found] if last else ''}{_and(told)}."
    advice = _advice(evaluation) if last and found != HELP else ""
    return f"{line[0].upper()}{line[1:]}{advice}"


def _advice(evaluation: Mapping) -> str:
    """Names the probe, which is for models that could use choices of real people."""
    simulated = evaluation["ceiling_accuracy"]
    if simulated or not evaluation["diagnostics"]["latent_dim"]:
        return ""
    return " fsa probe says whether more people or choices would help."


def _on_limits(evaluation: Mapping) -> str:
    n, parts = evaluation["n_context"][-1], []
    if answer(evaluation) != UNUSED:
        low, high = evaluation["gain_ci"][-1]
        interval = f" (95% interval [{100 * low:.1f}, {100 * high:.1f}])"
        parts.append(
            f"over {people(evaluation['users'])} the gain is "
            f"{100 * evaluation['gain'][-1]:.1f} points"
            f"{'' if math.isnan(low) else interval}"
        )
    if evaluation["ceiling_accuracy"]:
        best = _percent(evaluation["ceiling_accuracy"][-1])
        parts.append(f"the best possible with {_known(n)} is {best}%")
    line = _and([*parts, "a coin gets 50%"])
    return f"{line[0].upper()}{line[1:]}."


def _on_groups(evaluation: Mapping) -> str:
    groups, n = evaluation["groups"], evaluation["n_context"][-1]
    order = sorted(groups, key=lambda name: groups[name]["accuracy"][-1])
    told = [
        f"{_percent(groups[name]['accuracy'][-1])}% for {name}"
        for name in dict.fromkeys((order[0], order[-1]))
    ]
    which = (
        "" if len(groups) < 3 else f", the worst and the best of {len(groups)} groups"
    )
    return f"With {_known(n)} the model predicts {_and(told)}{which}."


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _known(n: int) -> str:
    return f"{n or 'none'} known"


def _range(values: Iterable[str]) -> str:
    ends = sorted(set(values), key=float)
    return ends[0] if len(ends) == 1 else f"{ends[0]} to {ends[-1]}"


def _and(parts: Sequence[str]) -> str:
    *others, last = parts
    return f"{', '.join(others)} and {last}" if others else last
