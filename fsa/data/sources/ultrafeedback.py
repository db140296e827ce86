"""UltraFeedback (Cui et al. 2023) as choices of labelled objectives.

These are the HH and HHT datasets of Kobalczyk et al. 2024 (arXiv 2412.13998), following
its public code: all pairs of a prompt's responses, without pairs that an objective
rates equally and without pairs on which all objectives agree. Each objective is a
`user`.

One thing differs: here *prompts* are split, not pairs. The public code splits pairs
80/10/10, so that most test responses occur in training pairs too.
"""

import itertools
import pathlib
from collections.abc import Iterator, Sequence

from fsa.data import files
from fsa.data.tables import BadRow, Choice, Reader, Report, text_of
from fsa.errors import InputError

HH = ("helpfulness", "honesty")
HHT = ("helpfulness", "honesty", "truthfulness")

# A response is used only if it has all four ratings, even if fewer are asked for.
RATINGS = ("helpfulness", "honesty", "truthfulness", "instruction_following")

Ratings = dict[str, int]


def read(
    path: str | pathlib.Path, objectives: Sequence[str], reader: Reader
) -> tuple[list[Choice], Report]:
    """Reads raw rows (.jsonl or .parquet) into choices without a split.

    Args:
      path: rows with `instruction` and `completions`, as published.
      objectives: two or more of `RATINGS`, e.g. `HH`.
      reader: selects rows, and limits how many may be bad.

    Returns:
      A choice of every objective for each conflicting pair, and a report.

    Raises:
      InputError: if objectives are unknown, the file cannot be used, or no pair is
        conflicting.
    """
    unknown = set(objectives) - set(RATINGS)
    if unknown or len(set(objectives)) < 2:
        raise InputError(
            f"`objectives` {','.join(objectives)}: name two or more of "
            f"{', '.join(RATINGS)}"
        )
    report = Report(str(path))
    responses: dict[str, dict[str, Ratings]] = {}
    for number, row in reader.rows(path, ("instruction", "completions"), report):
        try:
            prompt, completions = _completions(row)
        except BadRow as reason:
            report.leave_out(str(reason), number)
        else:
            # Rows may repeat a prompt: their responses are compared, too.
            _add_rated(responses.setdefault(prompt, {}), completions, report)
    report.check(reader.max_bad_share)
    choices = [
        choice
        for prompt, rated in responses.items()
        for choice in _choices(prompt, rated, objectives, report)
    ]
    if not choices:
        found = "; ".join(f"{what}: {count}" for what, count in report.notes.items())
        raise InputError(
            f"{path}: {' and '.join(objectives)} disagree on no pair of responses "
            f"({found}); give more rows"
        )
    return choices, report


def _completions(row: files.Row) -> tuple[str, list[files.Row]]:
    prompt, completions = text_of(row, "instruction"), row.get("completions")
    if not prompt.strip():
        raise BadRow("missing or empty instruction")
    if not isinstance(completions, list):
        raise BadRow("completions is not a list")
    if not all(isinstance(completion, dict) for completion in completions):
        raise BadRow("a completion is not an object")
    return prompt, completions


def _add_rated(
    rated: dict[str, Ratings], completions: Sequence[files.Row], report: Report
) -> None:
    """Adds response -> ratings; a repeated response keeps its first ratings."""
    for completion in completions:
        response = completion.get("response")
        ratings = _ratings(completion)
        if not isinstance(response, str) or not response.strip():
            report.note("completions left out: no response")
        elif ratings is None:
            report.note("completions left out: a rating is missing or no number")
        elif response in rated:
            report.note("completions left out: same response to the same prompt")
        else:
            rated[response] = ratings


def _ratings(completion: files.Row) -> Ratings | None:
    """Reads the four ratings, in the raw rows texts such as "4" or "N/A"."""
    annotations = completion.get("annotations") or {}
    try:
        return {name: int(annotations[name]["Rating"]) for name in RATINGS}
    except (KeyError, TypeError, ValueError):
        return None


def _choices(
    prompt: str,
    rated: dict[str, Ratings],
    objectives: Sequence[str],
    report: Report,
) -> Iterator[Choice]:
    for (first, ratings), (second, others) in itertools.combinations(rated.items(), 2):
        margins = {name: ratings[name] - others[name] for name in objectives}
        if 0 in margins.values():
            report.note("pairs left out: rated equally by an objective")
        elif len({margin > 0 for margin in margins.values()}) == 1:
            report.note("pairs left out: all objectives agree")
        else:
            report.note("conflicting pairs")
            for name, margin in margins.items():
                options = (first, second) if margin > 0 else (second, first)
                yield Choice(name, prompt, *options, group=name)
