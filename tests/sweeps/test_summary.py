"""The table and the plot of a sweep, from made-up evaluations."""

import numpy as np
import pytest
from scipy import stats

from fsa.evaluation import figure_style
from fsa.sweeps.summary import Setting, draw, shown, summary, t_interval, table


def evaluation(accuracy, nll, ceiling=1.0):
    """As `scores.evaluation` makes it, at n = 0 and 3."""
    return {
        "n_context": [0, 3],
        "users": 1234,
        "accuracy": [0.5, accuracy],
        "nll": [0.7, nll],
        "ece": [0.0, 0.01],
        "ceiling_accuracy": [0.5, ceiling],
        "ceiling_nll": [0.7, 0.1],
    }


def settings():
    return [
        Setting(
            {"model.pooling": "mean", "model.hidden": 8},
            3,
            [evaluation(a, n) for a, n in ((0.9, 0.2), (0.92, 0.3), (0.94, 0.4))],
        ),
        Setting({"model.pooling": "attention"}, 3, [evaluation(0.8, 0.5)]),
        Setting({"model.pooling": "none"}, 2, []),
    ]


def test_an_interval_is_students():
    """That of scipy; of normal values it covers the mean 95 times of 100."""
    values = np.random.default_rng(0).normal(3, 2, (3, 20_000))
    mean, half = t_interval(values)
    one = stats.t.interval(0.95, 2, mean[0], stats.sem(values[:, 0]))
    np.testing.assert_allclose((mean[0] - half[0], mean[0] + half[0]), one)
    assert (abs(mean - 3) < half).mean() == pytest.approx(0.95, abs=0.005)


def test_one_seed_has_no_interval():
    mean, half = t_interval(np.array([[0.25, 0.5]]))
    np.testing.assert_array_equal(mean, [0.25, 0.5])
    assert np.isnan(half).all()


def test_the_table_has_a_line_for_each_setting():
    lines = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in table(settings()).splitlines()
    ]
    head = ["model.pooling", "model.hidden", "seeds", "n = 0", "n = 3", "NLL, n = 3"]
    assert lines[0] == head
    assert lines[2] == ["best possible", "", "", "50.00", "100.00", "0.1000"]
    # Three values at a distance d have a standard deviation of d.
    accuracy, nll = (4.302653 * d / np.sqrt(3) for d in (2, 0.1))
    cells = [f"92.00 ± {accuracy:.2f}", f"0.3000 ± {nll:.4f}"]
    assert accuracy < 8
    assert lines[3] == ["mean", "8", "3", "50.00 ± 0.00", *cells]
    assert lines[4] == ["attention", "", "1 of 3", "50.00", "80.00", "0.5000"]
    assert lines[5] == ["none", "", "0 of 2", "", "", ""]
    assert {len(line) for line in lines} == {len(head)}


def test_tasks_with_other_ceilings_share_none():
    other = Setting({"task.slope": 1}, 1, [evaluation(0.8, 0.5, ceiling=0.9)])
    assert "best possible" not in table([*settings(), other])


def test_an_interval_of_percentages_ends_at_a_hundred():
    """98, 99 and 100 have a t-interval of 99 ± 2.48."""
    near = [evaluation(a, 0.1) for a in (0.98, 0.99, 1.0)]
    cells = table([Setting({"a": 1}, 3, near)]).splitlines()[-1].split("|")
    half = 4.302653 / np.sqrt(3)
    assert cells[4].strip() == f"99.00 [{99 - half:.2f}, 100.00]"


def test_the_table_fits_a_terminal():
    """With many sizes, and settings of many fields."""
    sizes = [0, 1, 2, 3, 5, 10, 20, 50, 100, 200, 500, 1000]
    found = evaluation(0.9, 0.2) | {"n_context": sizes}
    for name in ("accuracy", "nll", "ceiling_accuracy", "ceiling_nll"):
        found[name] = np.linspace(0.5, 0.6, 12).tolist()
    made = [
        Setting({"model.pooling": "attention" * 5, "seed": i}, 2, [found, found])
        for i in range(3)
    ]
    lines = shown(made).splitlines()
    assert max(map(len, lines)) <= 100
    assert all(f"n = {n}" in shown(made) for n in sizes)
    only_seeds = shown([Setting({}, 2, [found, found])])
    assert max(map(len, only_seeds.splitlines())) <= 100


def test_the_summary_is_json_without_nan():
    first, second, third = summary(settings())
    assert first["accuracy"] == pytest.approx([0.5, 0.92])
    assert first["nll_half_width"][1] == pytest.approx(4.302653 * 0.1 / np.sqrt(3))
    assert second["accuracy_half_width"] == [None, None]
    assert third == {"fields": {"model.pooling": "none"}, "seeds": 0}


def test_the_picture_shows_seeds_and_intervals(tmp_path):
    figure = draw(settings(), "ablation")
    accuracy, nll = figure.axes
    title = figure.get_suptitle()
    assert "ablation" in title and "1,234" in title and len(figure.legends) == 1
    labels = [text.get_text() for text in accuracy.get_yticklabels()]
    assert labels[0] == "model.pooling=mean, model.hidden=8" and len(labels) == 3
    seeds = [line.get_xydata() for line in nll.get_lines() if line.get_marker() == "o"]
    np.testing.assert_allclose(seeds[0], [[0.2, 0], [0.3, 0], [0.4, 0]])
    np.testing.assert_allclose(seeds[1], [[0.5, 1]])
    bars = nll.collections[0].get_segments()[0]
    half = 4.302653 * 0.1 / np.sqrt(3)
    np.testing.assert_allclose(bars, [[0.3 - half, 0], [0.3 + half, 0]], rtol=1e-6)
    assert nll.get_lines()[-1].get_xdata()[0] == 0.1
    figure_style.save(figure, tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
