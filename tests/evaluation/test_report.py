"""Tables and plots of made-up evaluations."""

import copy
import importlib

import matplotlib.image
import numpy as np
import pytest
from matplotlib import pyplot

from fsa.evaluation import report
from fsa.evaluation.predictions import Predictions

SIZES = [0, 1, 3]


def evaluation(**changes):
    """As `scores.evaluation` makes it, with numbers that can be told apart."""
    made = {
        "n_context": SIZES,
        "users": 37,
        "accuracy": [0.751, 0.862, 0.953],
        "accuracy_ci": [[0.741, 0.761], [0.852, 0.872], [0.943, 0.963]],
        "nll": [0.5, 0.3, 0.1],
        "nll_ci": [[0.49, 0.51], [0.29, 0.31], [0.09, 0.11]],
        "ece": [0.0123, 0.0234, 0.0345],
        "ece_if_calibrated": [0.0011, 0.0022, 0.0033],
        "ceiling_accuracy": [0.75, 0.875, 0.969],
        "ceiling_nll": [0.45, 0.25, 0.05],
        "groups": {
            "type 0": {
                "users": 20,
                "accuracy": [0.81, 0.82, 0.83],
                "accuracy_ci": [[0.80, 0.82], [0.81, 0.83], [0.82, 0.84]],
            }
        },
        "diagnostics": {
            "latent_dim": 2,
            "active_units": [0, 1, 2],
            "kl_per_dimension": [[0, 0], [0.5, 1.0], [2.0, 3.25]],
            "flip_rate": [None, 0.77, 0.88],
            "flips_are_types": True,
            "bayes_effective_samples": {"median": [4000.4, 1500.0, 333.3]},
        },
    }
    return {**copy.deepcopy(made), **changes}


def without_latent():
    """A model without z, on users whose Bayes-optimal predictor is not known."""
    made = evaluation(ceiling_accuracy=None, ceiling_nll=None, groups={})
    made["diagnostics"] = {
        "latent_dim": 0,
        "active_units": [0, 0, 0],
        "kl_per_dimension": [[], [], []],
        "flip_rate": [None, 0.0, 0.0],
        "flips_are_types": False,
    }
    return made


def cells(table):
    """Rows by name, the cells split at two spaces or more."""
    lines = [line for line in table.splitlines() if set(line) != {"-"}]
    rows = [[c.strip() for c in line.split("  ") if c.strip()] for line in lines]
    return {row[0]: row[1:] for row in rows}


def test_table():
    rows = cells(report.table(evaluation()))
    assert rows == {
        "context choices n": ["0", "1", "3"],
        "accuracy % [95% over users]": [
            "75.1 [74.1, 76.1]",
            "86.2 [85.2, 87.2]",
            "95.3 [94.3, 96.3]",
        ],
        "Bayes-optimal": ["0.4500", "0.2500", "0.0500"],
        "type 0 (20 users)": [
            "81.0 [80.0, 82.0]",
            "82.0 [81.0, 83.0]",
            "83.0 [82.0, 84.0]",
        ],
        "NLL, nats": ["0.5000", "0.3000", "0.1000"],
        "share of its gain over n = 0, %": ["-", "75.0", "87.5"],
        "ECE": ["0.0123", "0.0234", "0.0345"],
        "if perfectly calibrated": ["0.0011", "0.0022", "0.0033"],
        "active units": ["0/2", "1/2", "2/2"],
        "KL from n = 0, nats": ["0.00", "1.50", "5.25"],
        "flip test, %": ["-", "77.0", "88.0"],
        "sampler's ESS, median": ["4000", "1500", "333"],
    }
    # Both ceilings are shown, each under what it bounds.
    lines = report.table(evaluation()).splitlines()
    assert lines[3].split() == ["Bayes-optimal", "75.0", "87.5", "96.9"]


def test_table_of_a_model_without_latent():
    rows = cells(report.table(without_latent()))
    assert set(rows) == {
        "context choices n",
        "accuracy % [95% over users]",
        "NLL, nats",
        "ECE",
        "if perfectly calibrated",
    }


def test_a_single_user_has_no_interval():
    """As evaluated, and as read back from a file."""
    unknown = [[np.nan, np.nan]] * len(SIZES)
    alone = evaluation(users=1, accuracy_ci=unknown)
    alone["groups"]["type 0"]["accuracy_ci"] = unknown
    alone["diagnostics"]["flip_rate"] = [np.nan, np.nan, 0.88]
    rows = cells(report.table(alone))
    assert rows["accuracy % [95% over users]"] == ["75.1", "86.2", "95.3"]
    assert rows["type 0 (20 users)"] == ["81.0", "82.0", "83.0"]
    assert rows["flip test, %"] == ["-", "-", "88.0"]
    row = cells(report.compare_table({"alone": alone}))["alone"]
    assert row[:5] == ["75.1", "86.2", "95.3", "-", "0.1000"]


def test_table_says_when_flips_are_mere_reversals():
    made = evaluation()
    made["diagnostics"]["flips_are_types"] = False
    assert cells(report.table(made))["flips if reversed, %"] == ["-", "77.0", "88.0"]


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
    table = report.compare_table({"ours": evaluation(), "baseline": without_latent()})
    rows = cells(table)
    accuracies = ["75.1", "86.2", "95.3", "[94.3, 96.3]", "0.1000", "0.0345"]
    assert rows["ours"] == [*accuracies, "2/2", "88.0"]
    assert rows["baseline"] == [*accuracies, "no z", "-"]
    best = ["75.0", "87.5", "96.9", "-", "0.0500", "-", "-", "-"]
    assert rows["Bayes-optimal"] == best
    assert "Bayes-optimal" not in report.compare_table({"baseline": without_latent()})


def predictions(dim):
    rng = np.random.default_rng(0)
    users, episodes, targets = 11, 2, 5
    shape = (users, episodes, len(SIZES))
    return Predictions(
        log_prob=np.log(rng.uniform(0.2, 1, (*shape, targets))),
        flipped=None,
        bayes=None,
        effective_samples=None,
        mask=rng.random((users, episodes, targets)) < 0.8,
        informative=np.ones(shape, bool),
        target_differs=np.ones((users, episodes, targets), bool),
        latent_mean=rng.normal(size=(*shape, dim)),
        latent_kl=np.ones((*shape, dim)),
        group=np.arange(users) % 2,
    )


def assert_picture(path):
    pixels = matplotlib.image.imread(path)
    assert min(pixels.shape[:2]) > 100
    assert pixels[..., :3].std() > 0.01


@pytest.mark.parametrize("dim", [0, 1, 3])
def test_pictures_of_a_run(tmp_path, dim):
    made = evaluation() if dim else without_latent()
    made["diagnostics"]["latent_dim"] = dim
    paths = report.plot_all(predictions(dim), made, ("type 0", "type 1"), tmp_path)
    names = {"accuracy.png", "reliability.png"} | ({"latents.png"} if dim else set())
    assert (
        {path.name for path in paths} == names == {p.name for p in tmp_path.iterdir()}
    )
    for path in paths:
        assert_picture(path)


def test_picture_of_several_runs_and_of_rewards(tmp_path):
    runs = {"ours": evaluation(), "baseline": without_latent()}
    report.plot_accuracy(runs, tmp_path / "both.png")
    curves = list(np.random.default_rng(0).normal(size=(2, 4, len(SIZES), 21)))
    y = np.linspace(0, 1, 21)
    report.plot_rewards(curves, y, SIZES, tmp_path / "rewards.png")
    for name in ("both.png", "rewards.png"):
        assert_picture(tmp_path / name)


def test_pictures_leave_matplotlib_as_it_is(tmp_path, monkeypatch):
    """A notebook keeps its backend, its style and its open figures."""
    monkeypatch.setitem(matplotlib.rcParams, "backend", "svg")
    before = dict(matplotlib.rcParams)
    importlib.reload(report)
    report.plot_all(predictions(3), evaluation(), ("type 0", "type 1"), tmp_path)
    assert dict(matplotlib.rcParams) == before
    assert pyplot.get_fignums() == []


def generated(**changes):
    """As `TextEvaluator` makes it, for two groups, with different numbers."""

    def measures(first):
        return {
            "share": [first, None, first + 0.02],
            "share_ci": [[first - 0.01, first + 0.01], [np.nan] * 2, [first, 0.99]],
            "attribute": [first - 1, None, 1 - first],
            "attribute_ci": [[first - 1.5, first], [np.nan] * 2, [0, 2]],
            "validity": [first + 0.001, first + 0.002, first + 0.003],
            "validity_ci": [[first, first + 0.01]] * 3,
            "perplexity": [first + 3, first + 4, first + 5],
            "tokens": [10 * first, 20 * first, 30 * first],
            "kl": [first, 2 * first, 3 * first],
        }

    reference = {name: values[:1] for name, values in measures(0.4).items()}
    groups = {"formal": measures(0.5), "casual": measures(0.6)}
    of_group = {"accuracy": [0.5, 0.7, 0.9], "accuracy_ci": [[0.4, 0.95]] * 3}
    return evaluation(
        attribute="corpus_formality",
        generated=groups,
        reference=reference,
        groups={"formal": {"users": 3, **of_group}, "casual": {"users": 3, **of_group}},
        **changes,
    )


def test_table_of_what_was_generated():
    rows = cells(report.generated_table(generated()))
    assert rows == {
        "texts, corpus_formality, n =": ["reference", "0", "1", "3"],
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
        "formal: valid, %": ["40.1", "50.1", "50.2", "50.3"],
        "casual: valid, %": ["40.1", "60.1", "60.2", "60.3"],
        "formal: perplexity": ["3.40", "3.50", "4.50", "5.50"],
        "casual: perplexity": ["3.40", "3.60", "4.60", "5.60"],
        "formal: tokens": ["4.0", "5.0", "10.0", "15.0"],
        "casual: tokens": ["4.0", "6.0", "12.0", "18.0"],
        "formal: KL, nats": ["0.40", "0.50", "1.00", "1.50"],
        "casual: KL, nats": ["0.40", "0.60", "1.20", "1.80"],
    }


def test_picture_of_steering(tmp_path):
    """What is drawn is what was measured: each group's line against n, and a gap."""
    drawn = {}

    def keep(figure, path):
        drawn[path] = figure

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "save", keep)
        report.plot_steering(generated(), "kept")
    accuracy, share, validity = drawn["kept"].axes
    lines = {line.get_label(): line.get_ydata() for line in share.get_lines()}
    np.testing.assert_allclose(lines["formal"], [50, np.nan, 52])
    np.testing.assert_allclose(lines["casual"], [60, np.nan, 62])
    for line in accuracy.get_lines():
        np.testing.assert_allclose(line.get_ydata(), [50, 70, 90])
    heights = [line.get_ydata() for line in validity.get_lines()]
    np.testing.assert_allclose(heights[0], [50.1, 50.2, 50.3])
    np.testing.assert_allclose(heights[-1], 40.1)
    assert "corpus_formality" in share.get_title()
    report.plot_steering(generated(), tmp_path / "steering.png")
    assert_picture(tmp_path / "steering.png")
