"""Tables of made-up measurements, whose differences are known."""

import re

import numpy as np

from fsa.rivals import pictures, report
from fsa.rivals.results import Cell

RNG = np.random.default_rng(0)
HARD = RNG.normal(0.6, 0.2, size=40)


def run(seed, shift, users):
    """Predictions of people who are hard or easy for every method alike."""
    nll = np.stack([HARD, HARD + shift], axis=1) + RNG.normal(0, 0.01, size=(40, 2))
    return {
        "n_context": [0, 10],
        "users": [f"person {u}" for u in users],
        "nll": nll[users].tolist(),
        "right": (nll[users] < 0.6).astype(float).tolist(),
        "flips": [0.0, 0.3],
        "ece": [0.02, 0.03],
        "ece_if_calibrated": [0.01, 0.01],
        "processor_seconds": 3.0 + seed,
        "milliseconds": {} if seed else {"10": 0.5, "1000": 0.1},
        "bytes": 64,
    }


def measured():
    everybody = list(range(40))
    for seed in range(2):
        yield Cell("made up", "bayes", seed), run(seed, -0.2, everybody)
        yield Cell("made up", "worse", seed), run(seed, -0.15, everybody[::-1])
    yield Cell("made up", "bayes", 0, 0.5), run(0, -0.1, everybody)


def test_people_are_paired_by_name_so_that_intervals_are_narrow():
    own = report.scores(measured())["made up", 1.0]
    mean, low, high = report.difference(own["worse"], own["bayes"], 1)
    assert low < 0.05 < high
    assert abs(mean - 0.05) < 0.01
    # Between people the spread is 0.2, and an unpaired interval 0.12 wide.
    assert high - low < 0.02


def test_seeds_that_score_other_people_are_joined():
    runs = [
        (Cell("a", "m", seed), run(seed, 0.0, range(20 * seed, 20 * seed + 20)))
        for seed in range(2)
    ]
    assert len(report.scores(runs)["a", 1.0]["m"].nll) == 40


def test_nobody_in_common_is_no_difference():
    first, second = (
        report.scores([(Cell("a", "m", 0), run(0, 0.0, users))])["a", 1.0]["m"]
        for users in (range(10), range(10, 20))
    )
    assert report.difference(first, second, 1) is None


def test_the_table_lists_the_best_first_and_seeds_as_means():
    text = report.table(report.scores(measured())["made up", 1.0])
    rows = text.splitlines()[2:]
    assert [row.split("|")[1].strip() for row in rows] == ["bayes", "worse"]
    assert re.search(r"\+0\.0\d+ \[\+0\.0\d+, \+0\.0\d+\]", rows[1])
    # The lesser of 3 and 4 seconds, and 0.02 above what a calibrated method has.
    assert "| +0.020 | 3 | 0.5 / 0.1 | 64 |" in rows[0]


def test_the_overview_has_a_column_for_each_dataset():
    own = report.scores(measured())["made up", 1.0]
    alone = {"worse": own["worse"]}
    head, _, row = report.overview({"made up": own, "alone": alone}).splitlines()
    assert head == "| method | made up | alone |"
    assert row.startswith("| worse | +0.0") and row.endswith("| - |")


def test_the_best_is_bold_unless_nothing_can_be_better():
    own = report.scores(measured())["made up", 1.0]
    found = {"made up": {**own, report.BEST_POSSIBLE: own["bayes"]}}
    means = {name: np.mean([v[1] for v in x.nll.values()]) for name, x in own.items()}
    assert report.levels(found).splitlines()[2:] == [
        f"| bayes | **{means['bayes']:.4f}** |",
        f"| best possible | {means['bayes']:.4f} |",
        f"| worse | {means['worse']:.4f} |",
    ]


def test_pictures_are_drawn(tmp_path):
    found = report.scores(measured())
    panels = {f"number {i}": found["made up", 1.0] for i in range(4)}
    pictures.by_choices(panels, tmp_path / "a.png")
    by_share = {share: own for (_, share), own in found.items()}
    pictures.by_people({"made up": by_share}, tmp_path / "b.png")
    assert all(path.stat().st_size > 10_000 for path in tmp_path.glob("*.png"))
    assert len(list(tmp_path.glob("*.png"))) == 2
