"""Tables of made-up evaluations."""

import re

import numpy as np
import pytest
from made_up import (
    SIZES,
    evaluation,
    generated,
    many_sizes,
    of_everybody,
    without_latent,
)

from fsa.evaluation import report


def blocks(table):
    """The cells of each block of a table, split at two spaces or more."""
    return [
        [re.split(r"  +", line.strip()) for line in block.splitlines()]
        for block in table.split("\n\n")
    ]


def cells(table):
    """Rows by name, those of all blocks joined."""
    rows = {}
    for block in blocks(table):
        for name, *others in block:
            rows.setdefault(name, []).extend(others)
    return {name: row for name, row in rows.items() if set(name) != {"-"}}


def columns(table):
    """Columns by name."""
    found = {}
    for head, _, *rows in blocks(table):
        for name, *values in zip(head, *rows, strict=True):
            found[name] = values
    return found


ACCURACY = {
    "choices known": ["0", "1", "3"],
    "right, %": ["75.1", "86.2", "95.3"],
    "95% interval": ["[74.1, 76.1]", "[85.2, 87.2]", "[94.3, 96.3]"],
}
BEST = {"best possible, %": ["75.0", "87.5", "96.9"]}


def test_table():
    assert columns(report.table(evaluation())) == ACCURACY | BEST


def test_coverage_is_told_where_the_truth_is_known():
    """Of real people a line says that it is not; other models state no intervals."""
    made = evaluation()
    told = {**made["diagnostics"], "interval_coverage": [0.9, 0.852, 0.88]}
    known = {**made, "diagnostics": told}
    column = columns(report.table(known, full=True))["covered, %"]
    assert column == ["90.0", "85.2", "88.0"]
    told = {**made["diagnostics"], "interval_coverage": None}
    unknown = {**made, "diagnostics": told, "ceiling_accuracy": None}
    unknown["ceiling_nll"] = None
    assert "covered, %" not in report.table(unknown, full=True)
    for found, named in ((known, True), (unknown, True), (made, False)):
        assert ("covered, %" in report.summary(found, full=True)) == named


def test_people_whose_posterior_was_not_found_are_counted():
    made = evaluation()
    assert "converged, %" not in report.table(made, full=True)
    made["diagnostics"]["converged"] = [1.0, 0.995, 0.9]
    column = columns(report.table(made, full=True))["converged, %"]
    assert column == ["100.0", "99.5", "90.0"]


def test_ratings_that_are_known_are_called_so():
    found = columns(report.table({**evaluation(), "context": "ratings"}))
    assert found["ratings known"] == ACCURACY["choices known"]


def test_full_table():
    assert columns(report.table(evaluation(), full=True)) == {
        **ACCURACY,
        **BEST,
        "NLL": ["0.5000", "0.3000", "0.1000"],
        "best NLL": ["0.4500", "0.2500", "0.0500"],
        "share of gain, %": ["-", "75.0", "87.5"],
        "ECE": ["0.0123", "0.0234", "0.0345"],
        "ECE, calibrated": ["0.0011", "0.0022", "0.0033"],
        "active units": ["0/2", "1/2", "2/2"],
        "KL": ["0.00", "1.50", "5.25"],
        "flip test, %": ["-", "77.0", "88.0"],
        "sampler's ESS": ["4000", "1500", "333"],
    }


def test_table_of_a_model_without_latent():
    assert columns(report.table(without_latent())) == ACCURACY
    found = columns(report.table(without_latent(), full=True))
    assert set(found) == {*ACCURACY, "NLL", "ECE", "ECE, calibrated"}


def test_groups():
    rows = cells(report.groups_table(evaluation()))
    assert rows["type 0"] == ["20", "81.0", "82.0", "83.0"]
    plain = dict.fromkeys(evaluation()["groups"], 0.5)
    with_model = evaluation() | {"language_model_accuracy": plain}
    found = cells(report.groups_table(with_model))
    assert found["type 0"] == ["20", "50.0", "81.0", "82.0", "83.0"]
    rows = cells(report.groups_table(evaluation(), full=True))
    assert rows["type 0"] == [
        "20",
        *(f"{n}.0 [{n - 1}.0, {n + 1}.0]" for n in (81, 82, 83)),
    ]


def test_a_single_user_has_no_interval():
    """As evaluated, and as read back from a file."""
    unknown = [[np.nan, np.nan]] * len(SIZES)
    alone = evaluation(users=1, accuracy_ci=unknown, gain_ci=unknown)
    alone["groups"]["type 0"]["accuracy_ci"] = unknown
    alone["diagnostics"]["flip_rate"] = [np.nan, np.nan, 0.88]
    found = columns(report.table(alone, full=True))
    assert found["right, %"] == ["75.1", "86.2", "95.3"]
    assert found["95% interval"] == ["-"] * 3
    assert found["flip test, %"] == ["-", "-", "88.0"]
    rows = cells(report.groups_table(alone, full=True))
    assert rows["type 0"] == ["20", "81.0", "82.0", "83.0"]
    row = cells(report.compare_table({"alone": alone}))["alone"]
    assert row == ["75.1", "86.2", "95.3", "-", "0.1000"]
    assert "nan" not in report.summary(alone, full=True)


def test_table_says_when_flips_are_mere_reversals():
    made = evaluation()
    made["diagnostics"]["flips_are_types"] = False
    found = columns(report.table(made, full=True))
    assert found["flips if reversed, %"] == ["-", "77.0", "88.0"]


def test_recovered_by_hand():
    """(0.45 - 0.3) / (0.45 - 0.25) and (0.45 - 0.1) / (0.45 - 0.05)."""
    found = report.recovered(evaluation())
    assert found[0] is None
    np.testing.assert_allclose(found[1:], [0.75, 0.875])
    # The Bayes-optimal one recovers all, and one that learns nothing, nothing or less.
    best = evaluation(nll=[0.45, 0.25, 0.05])
    np.testing.assert_allclose(report.recovered(best)[1:], 1)
    idle = evaluation(nll=[0.45, 0.45, 0.65])
    np.testing.assert_allclose(report.recovered(idle)[1:], [0, -0.5])
    assert report.recovered(evaluation(n_context=[1, 2, 3])) is None


def test_comparison():
    runs = {"ours": evaluation(), "as good": evaluation()}
    rows = cells(report.compare_table(runs))
    accuracies = ["75.1", "86.2", "95.3", "[94.3, 96.3]", "0.1000"]
    assert rows["ours"] == rows["as good"] == accuracies
    assert rows["best possible"] == ["75.0", "87.5", "96.9", "-", "0.0500"]
    rows = cells(report.compare_table(runs, full=True))
    assert rows["ours"] == [*accuracies, "0.0345", "2/2", "88.0"]
    # Runs of which not all have the same best possible prediction.
    runs["baseline"] = without_latent()
    rows = cells(report.compare_table(runs, full=True))
    assert rows["baseline"] == [*accuracies, "0.0345", "no z", "-"]
    assert "best possible" not in rows


def test_comparison_says_whom_runs_were_scored_on():
    runs = {"ours": evaluation(), "baseline": without_latent()}
    assert report.compare_summary(runs).count("37 people") == 1
    runs["fewer"] = evaluation(users=9)
    shown = report.compare_summary(runs)
    assert "fewer: scored on 9 people" in shown
    assert shown.count("37 people") == 2


def test_table_of_what_was_generated():
    rows = cells(report.generated_table(generated(), full=True))
    assert rows == {
        "texts, choices known": ["language model", "0", "1", "3"],
        "formal: wanted, %": ["-", "50.0 [49.0, 51.0]", "-", "52.0 [50.0, 99.0]"],
        "casual: wanted, %": ["-", "60.0 [59.0, 61.0]", "-", "62.0 [60.0, 99.0]"],
        "formal: measured": [
            "-0.60 [-1.10, 0.40]",
            "-0.50 [-1.00, 0.50]",
            "-",
            "0.50 [0.00, 2.00]",
        ],
        "casual: measured": [
            "-0.60 [-1.10, 0.40]",
            "-0.40 [-0.90, 0.60]",
            "-",
            "0.40 [0.00, 2.00]",
        ],
        "formal: valid, %": [
            "40.1 [40.0, 41.0]",
            *(f"50.{i} [50.0, 51.0]" for i in (1, 2, 3)),
        ],
        "casual: valid, %": [
            "40.1 [40.0, 41.0]",
            *(f"60.{i} [60.0, 61.0]" for i in (1, 2, 3)),
        ],
        "formal: words": ["2.0", "2.5", "5.0", "7.5"],
        "casual: words": ["2.0", "3.0", "6.0", "9.0"],
        "formal: tokens": ["4.0", "5.0", "10.0", "15.0"],
        "casual: tokens": ["4.0", "6.0", "12.0", "18.0"],
        "formal: log ratio": ["0.40", "0.50", "1.00", "1.50"],
        "casual: log ratio": ["0.40", "0.60", "1.20", "1.80"],
        "formal: perplexity": ["3.40", "3.50", "4.50", "5.50"],
        "casual: perplexity": ["3.40", "3.60", "4.60", "5.60"],
    }


def test_table_of_what_was_generated_in_short():
    rows = cells(report.generated_table(generated()))
    assert rows["formal: wanted, %"] == ["-", "50.0", "-", "52.0"]
    assert rows["casual: valid, %"] == ["40.1", "60.1", "60.2", "60.3"]
    assert len(rows) == 1 + 2 * 2


def test_texts_for_users_without_a_known_attribute():
    rows = cells(report.generated_table(of_everybody()))
    assert rows == {
        "texts, choices known": ["language model", "0", "1", "3"],
        "everybody: words": ["2.0", "2.5", "5.0", "7.5"],
        "everybody: tokens": ["4.0", "5.0", "10.0", "15.0"],
        "everybody: log ratio": ["0.40", "0.50", "1.00", "1.50"],
    }


def in_hundred_columns(text):
    lines = text.splitlines()
    too_wide = [line for line in lines if len(line) > 100]
    return lines and not too_wide


@pytest.mark.parametrize("full", [False, True])
def test_everything_fits_a_terminal(full):
    wide = many_sizes()
    assert in_hundred_columns(report.summary(wide, full=full))
    runs = {f"{'run-' * 9}{i:04}": many_sizes() for i in range(3)}
    assert {len(name) for name in runs} == {40}
    shown = report.compare_summary(runs, full=full)
    assert in_hundred_columns(shown)
    assert all(name in shown for name in runs)
    measures = dict.fromkeys(("tokens", "words", "kl", "perplexity"), [1e6] * 12)
    for name in ("share", "validity", "attribute"):
        measures |= {name: [1.0] * 12, f"{name}_ci": [[0.999, 1.0]] * 12}
    line = {
        "points": np.linspace(0, 1, 12).round(4).tolist(),
        "groups": dict.fromkeys(wide["groups"], measures),
    }
    texts = many_sizes(
        attribute="corpus_formality",
        generated=dict.fromkeys(wide["groups"], measures),
        reference={name: values[:1] for name, values in measures.items()},
        **dict.fromkeys(("partway", "interpolation"), line),
    )
    assert in_hundred_columns(report.texts_summary(texts, full=full))
    for table in (report.partway_table, report.interpolation_table):
        assert in_hundred_columns(table(texts, full=full))


def test_every_name_of_a_full_table_has_a_meaning():
    """But those that are plain."""
    shown = report.summary(evaluation(), full=True)
    for name in columns(report.table(evaluation(), full=True)):
        plain = name in ("choices known", "best possible, %")
        assert plain or f"\n{name}: " in shown
