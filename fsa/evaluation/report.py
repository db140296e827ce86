"""Evaluations as text: plain sentences and tables of at most 100 columns.

They are made from the dictionaries of `fsa.evaluation.scores.evaluation`, which are the
content of `evaluation.json`, so that runs of other machines can be compared.
"""

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from fsa import text_tables
from fsa.evaluation import headline

WIDTH = 100
# The names of groups share the first column with those of measures.
_GROUP_WIDTH = 24

# What a name in a table means, where it is not plain.
_MEANINGS = {
    "right, %": "choices with more than half of the probability; a tie is half right.",
    "95% interval": "bootstrap over people: what as many other people would give.",
    "reward model, %": "what the reward model that gives z has right.",
    "tau": "Kendall's, over people: does it have the same people right as the policy?",
    "NLL": "negative log-likelihood of a choice in nats; a coin has 0.6931.",
    "best NLL": "that of the best possible prediction.",
    "share of gain, %": "of the best possible NLL's gain over n = 0, what is reached.",
    "ECE": "how far stated probabilities are from how often they are right (10 bins).",
    "ECE, calibrated": "what chance alone gives a true model; nearer to it is better.",
    "active units": "dimensions of z that differ between people (variance > 0.01).",
    "KL": "how far z moved from what is believed of nobody in particular, in nats.",
    "flip test, %": "predictions that turn when the other type's choices are shown.",
    "flips if reversed, %": "predictions that turn when known choices are reversed.",
    "covered, %": "true probabilities of choices that are in their 90% intervals.",
    "converged, %": "people whose z was found in model.num_steps steps of Newton.",
    "sampler's ESS": "effective sample size of the best possible prediction, median.",
}
_NO_COVERAGE = (
    "covered, %: cannot be told of real people, as nobody knows the true probabilities "
    "of their choices; ECE says how true the stated ones are."
)
_TEXT_MEANINGS = {
    "wanted, %": "texts on the group's side, among those that show a side.",
    "valid, %": "by the field eval.validity.",
    "log ratio": "of policy to language model, in nats; times beta, implicit reward.",
    "perplexity": "of a token, under the language model.",
    "ended, %": "texts that end by themselves, before the largest number of tokens.",
    "distinct-2, %": "different pairs of neighbouring words, in the texts of a person.",
    "measured": "the attribute, see fsa/data/sources/attributes.py.",
}


def summary(evaluation: Mapping, *, full: bool = False) -> str:
    """Formats one run: sentences, tables, and what their columns mean.

    Args:
      evaluation: the evaluation.
      full: whether to show all measures rather than accuracy alone.
    """
    columns = _columns(evaluation, full)
    parts = [wrapped(headline.sentences(evaluation)), _of_columns(columns)]
    if evaluation["groups"]:
        parts.append(groups_table(evaluation, full=full))
    said = _meanings(_MEANINGS, columns)
    if full and _truth_is_unknown(evaluation):
        said += f"\n{wrapped([_NO_COVERAGE], '  ')}"
    if not full:
        said += "\nMore measures, each with its meaning: --full"
    return "\n\n".join([*parts, said])


def _truth_is_unknown(evaluation: Mapping) -> bool:
    """Whether a model states intervals of the probabilities of real people."""
    diagnostics = evaluation["diagnostics"]
    stated = "interval_coverage" in diagnostics
    return stated and not evaluation["ceiling_accuracy"]


def texts_summary(evaluation: Mapping, *, full: bool = False) -> str:
    """Formats what was measured in the texts that a policy wrote, see `summary`."""
    parts = [wrapped([headline.on_texts(evaluation)])]
    parts.append(generated_table(evaluation, full=full))
    if full and "alike" in evaluation:
        parts.append(alike_table(evaluation))
    measures = _text_measures(evaluation, full)
    return "\n\n".join([*parts, _meanings(_TEXT_MEANINGS, measures)])


def wrapped(lines: Iterable[str], indent: str = "") -> str:
    """Breaks long lines; what continues a line begins with `indent`."""
    return "\n".join(
        textwrap.fill(line, WIDTH, subsequent_indent=indent, break_on_hyphens=False)
        for line in lines
    )


def percent_interval(
    means: Sequence[float], bounds: Sequence[Sequence[float]]
) -> list[str]:
    """Formats shares with their intervals in percent, as "47.0 [45.7, 48.2]"."""
    return _interval(means, bounds, 1, 100)


def table(evaluation: Mapping, *, full: bool = False) -> str:
    """Formats a row for each context size: accuracy, and with `full` all measures."""
    return _of_columns(_columns(evaluation, full))


def groups_table(evaluation: Mapping, *, full: bool = False) -> str:
    """Formats the accuracy of each group, with `full` with intervals.

    That of the language model itself, which has no adapter, stands first if it is
    known.
    """
    head = f"right, %, {_known_things(evaluation)}"
    plain = evaluation.get("language_model_accuracy", {})
    of_model = ["language model"] if plain else []
    rows = [[head, "people", *of_model, *map(str, evaluation["n_context"])]]
    for name, group in evaluation["groups"].items():
        of_model = _percent([plain[name]]) if plain else []
        cells = _shares(group["accuracy"], group["accuracy_ci"], full)
        rows.append([name, f"{group['users']:,}", *of_model, *cells])
    return text_tables.fitted(rows, WIDTH)


def generated_table(evaluation: Mapping, *, full: bool = False) -> str:
    """Formats measures of the texts that a policy wrote, for each group and n.

    Without `full` they are means of the few measures that are told first.
    """
    sizes, reference = evaluation["n_context"], evaluation["reference"]
    rows = [["texts, choices known", "language model", *map(str, sizes)]]
    for name, cells in _text_measures(evaluation, full).items():
        for group, found in evaluation["generated"].items():
            plain = evaluation.get("unsteered", {}).get(group)
            # On the group's own side; runs of older versions did not measure it.
            of_model = cells(plain or reference)
            if name == "wanted, %" and not plain:
                of_model = ["-"]
            rows.append([_label(group, name), *of_model, *cells(found)])
    return text_tables.fitted(rows, WIDTH)


def interpolation_table(evaluation: Mapping, *, full: bool = False) -> str:
    """Formats measures of texts between users of each group and users of another."""
    line = evaluation["interpolation"]
    rows = [["texts from one group (0) to another (1)", *map(str, line["points"])]]
    for group, found in line["groups"].items():
        cells = _shares(found["share"], found["share_ci"], full)
        rows.append([_label(group, "wanted, %"), *cells])
    for group, found in line["groups"].items():
        rows.append([_label(group, "valid, %"), *_percent(found["validity"])])
    return text_tables.fitted(rows, WIDTH)


def partway_table(evaluation: Mapping, *, full: bool = False) -> str:
    """Formats measures of texts for a part of what each user prefers."""
    line = evaluation["partway"]
    rows = [["texts between nobody (0) and the user (1)", *map(str, line["points"])]]
    for group, found in line["groups"].items():
        cells = _shares(found["share"], found["share_ci"], full)
        rows.append([_label(group, "wanted, %"), *cells])
        rows.append([_label(group, "measured"), *_cells(found["attribute"], 2)])
    return text_tables.fitted(rows, WIDTH)


def alike_table(evaluation: Mapping) -> str:
    """Formats texts beside the language model's that have what the group wants.

    Cells are of the method, then of the language model's texts of about its length.
    """
    head = ["beside texts on the wanted side", *map(str, evaluation["n_context"])]
    rows = [head]
    for group, plain in evaluation["alike"].items():
        own = evaluation["generated"][group]
        pairs = {
            "perplexity": (own["perplexity"], plain["perplexity"], 2, 1),
            "tokens": (own["tokens"], plain["tokens"], 1, 1),
            "ended, %": (own["ended"], plain["ended"], 1, 100),
            "distinct-2 of a text, %": (
                *(plain["own_distinct_2"], plain["distinct_2"]),
                *(1, 100),
            ),
        }
        for name, (first, second, digits, scale) in pairs.items():
            cells = zip(
                _cells(first, digits, scale), _cells(second, digits, scale), strict=True
            )
            rows.append([_label(group, name), *(f"{a} / {b}" for a, b in cells)])
    return text_tables.fitted(rows, WIDTH)


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


def compare_summary(evaluations: Mapping[str, Mapping], *, full: bool = False) -> str:
    """Formats several runs: a table, and what its columns mean."""
    shown = ["right, %", "95% interval", "NLL"]
    if full:
        shown += ["ECE", "active units", _flips(next(iter(evaluations.values())))]
    parts = [
        compare_table(evaluations, full=full),
        f"{', '.join(sorted(_people(evaluations)))}.\n{_meanings(_MEANINGS, shown)}",
    ]
    return "\n\n".join(parts)


def compare_table(evaluations: Mapping[str, Mapping], *, full: bool = False) -> str:
    """Formats several runs: accuracy for each n, and NLL at the largest n.

    With `full` it has calibration and the use of z as well.
    """
    first = next(iter(evaluations.values()))
    last = f"n = {first['n_context'][-1]}"
    names = [*first["n_context"], f"95% interval, {last}", f"NLL, {last}"]
    if full:
        names += [f"ECE, {last}", "active units", _flips(first)]
    rows = [[f"right, %, {_known_things(first)}", *map(str, names)]]
    if (best := _common_ceiling(evaluations)) is not None:
        cells = [*_percent(best[0]), "-", *_nats(best[1][-1:]), "-", "-", "-"]
        rows.append(["best possible", *cells[: len(names)]])
    for name, run in evaluations.items():
        cells = [
            *_percent(run["accuracy"]),
            _bounds(run["accuracy_ci"][-1], 1, 100),
            *_nats([run["nll"][-1], run["ece"][-1]]),
            *_use_of_latent(run["diagnostics"]),
        ]
        rows.append([name, *cells[: len(names)]])
    return text_tables.fitted(rows, WIDTH)


def _columns(evaluation: Mapping, full: bool) -> dict[str, list[str]]:
    """Returns the columns of a run's table, each with a cell for each context size."""
    bounds = [_bounds(ends, 1, 100) for ends in evaluation["accuracy_ci"]]
    columns = {
        _known_things(evaluation): list(map(str, evaluation["n_context"])),
        "right, %": _percent(evaluation["accuracy"]),
        "95% interval": bounds,
    }
    if evaluation["ceiling_accuracy"]:
        columns["best possible, %"] = _percent(evaluation["ceiling_accuracy"])
    if "reward_accuracy" in evaluation:
        columns["reward model, %"] = _percent(evaluation["reward_accuracy"])
        columns["tau"] = _cells(evaluation["kendall_tau"], 2)
    return columns | _measures(evaluation) if full else columns


def _known_things(evaluation: Mapping) -> str:
    """Says what the context sizes count, which is choices or ratings."""
    return f"{evaluation.get('context', 'choices')} known"


def _measures(evaluation: Mapping) -> dict[str, list[str]]:
    """Returns the columns that only `full` has."""
    columns = {"NLL": _nats(evaluation["nll"])}
    if evaluation["ceiling_nll"]:
        columns["best NLL"] = _nats(evaluation["ceiling_nll"])
        if (shares := recovered(evaluation)) is not None:
            columns["share of gain, %"] = _percent(shares)
    columns["ECE"] = _nats(evaluation["ece"])
    columns["ECE, calibrated"] = _nats(evaluation["ece_if_calibrated"])
    diagnostics = evaluation["diagnostics"]
    if dim := diagnostics["latent_dim"]:
        columns["active units"] = [f"{u}/{dim}" for u in diagnostics["active_units"]]
        kl = np.sum(diagnostics["kl_per_dimension"], axis=-1)
        columns["KL"] = [f"{x:,.0f}" if x >= 1000 else f"{x:.2f}" for x in kl]
        columns[_flips(evaluation)] = _percent(diagnostics["flip_rate"])
    if covered := diagnostics.get("interval_coverage"):
        columns["covered, %"] = _percent(covered)
    if converged := diagnostics.get("converged"):
        columns["converged, %"] = _percent(converged)
    if effective := diagnostics.get("bayes_effective_samples"):
        columns["sampler's ESS"] = [f"{e:.0f}" for e in effective["median"]]
    return columns


def _flips(evaluation: Mapping) -> str:
    types = evaluation["diagnostics"]["flips_are_types"]
    return "flip test, %" if types else "flips if reversed, %"


def _text_measures(evaluation: Mapping, full: bool) -> dict:
    """Returns name -> function from a group's measures to cells, if any is known."""

    def shares(name):
        return lambda found: _shares(found[name], found[f"{name}_ci"], full)

    def numbers(name, digits):
        return lambda found: _cells(found[name], digits)

    measures = {}
    generated = evaluation["generated"].values()
    if any(map(_known, (x for found in generated for x in found.get("share", ())))):
        measures["wanted, %"] = shares("share")
    if full and evaluation["attribute"]:
        measures["measured"] = lambda found: _interval(
            found["attribute"], found["attribute_ci"]
        )
    if all("validity" in found for found in generated):
        measures["valid, %"] = shares("validity")
    if full or "wanted, %" not in measures:
        if all("words" in found for found in generated):
            measures["words"] = numbers("words", 1)
        measures["tokens"] = numbers("tokens", 1)
        measures["log ratio"] = numbers("kl", 2)
    if full:
        measures["perplexity"] = numbers("perplexity", 2)
    # Runs of older versions did not measure them.
    if full and all("distinct_2" in found for found in generated):
        measures["ended, %"] = shares("ended")
        measures["distinct-2, %"] = shares("distinct_2")
    return measures


def _use_of_latent(diagnostics: Mapping) -> list[str]:
    dim = diagnostics["latent_dim"]
    if not dim:
        return ["no z", "-"]
    units = f"{diagnostics['active_units'][-1]}/{dim}"
    return [units, *_percent(diagnostics["flip_rate"][-1:])]


def _common_ceiling(evaluations: Mapping[str, Mapping]):
    """Returns the best possible accuracies and NLLs, if they are those of all runs."""
    found = [
        (run["ceiling_accuracy"], run["ceiling_nll"]) for run in evaluations.values()
    ]
    known = found[0][0] and all(other == found[0] for other in found)
    return found[0] if known else None


def _people(evaluations: Mapping[str, Mapping]) -> set[str]:
    """Says how many people each run was scored on; once if they are as many."""
    counts = {name: headline.people(run["users"]) for name, run in evaluations.items()}
    if len(set(counts.values())) == 1:
        return {f"Scored on {next(iter(counts.values()))}"}
    return {f"{name}: scored on {count}" for name, count in counts.items()}


def _of_columns(columns: Mapping[str, Sequence[str]]) -> str:
    rows = zip(*([name, *cells] for name, cells in columns.items()), strict=True)
    return text_tables.fitted(list(rows), WIDTH)


def _meanings(meanings: Mapping[str, str], shown: Iterable[str]) -> str:
    """Returns a line for each name that is shown and has a meaning."""
    return wrapped([f"{n}: {meanings[n]}" for n in shown if n in meanings], "  ")


def _label(group: str, measure: str) -> str:
    return f"{text_tables.shortened(group, _GROUP_WIDTH)}: {measure}"


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


def _shares(means, bounds, with_intervals: bool) -> list[str]:
    return percent_interval(means, bounds) if with_intervals else _percent(means)
