"""Figures of made-up evaluations: what is drawn, titles, labels, legends, looks."""

import itertools

import matplotlib
import matplotlib.image
import numpy as np
import pytest
from made_up import (
    SIZES,
    evaluation,
    generated,
    many_sizes,
    of_everybody,
    predictions,
    without_latent,
)
from matplotlib import colors, pyplot

from fsa.evaluation import figure_style, figures

GROUPS = ("type 0", "type 1")


def curves_of(axis):
    """label -> (x, y) of the curves with intervals."""
    return {
        bars.get_label(): bars.lines[0].get_data()
        for bars in axis.containers
        if bars.get_label()[0] != "_"
    }


def lines_of(axis):
    """label -> y of lines without intervals."""
    return {line.get_label(): np.array(line.get_ydata()) for line in axis.get_lines()}


def has_title_and_legend_outside(figure):
    """Whether all of it can be read: a title, labels, and a legend beside the axes."""
    figure.draw_without_rendering()
    (legend,) = figure.legends
    box = legend.get_window_extent()
    shown = [axis for axis in figure.axes if axis.axison]
    sizes = [
        text.get_fontsize()
        for text in figure.findobj(matplotlib.text.Text)
        if text.get_text()
    ]
    return (
        figure.get_suptitle()
        and not any(box.overlaps(axis.get_window_extent()) for axis in shown)
        and all(axis.get_legend() is None for axis in figure.axes)
        and all(line.get_text() for line in legend.get_texts())
        and min(sizes) >= 8
    )


RUNS = {"ours": evaluation(), "baseline": without_latent(), "same": evaluation()}


def some_rewards():
    y = np.linspace(0, 1, 21)
    curves = list(np.random.default_rng(0).normal(size=(2, 4, len(SIZES), 21)))
    return figures.rewards(curves, y, SIZES, "a run")


MANY = {f"{'run-' * 9}{i:04}": evaluation() for i in range(12)}
DRAWN = {
    "accuracy": lambda: figures.accuracy(RUNS),
    "many sizes": lambda: figures.accuracy({"wide": many_sizes()}),
    "many runs": lambda: figures.accuracy(MANY),
    "steering": lambda: figures.steering(generated(), "a run"),
    "everybody": lambda: figures.steering(of_everybody(), "a run"),
    "reliability": lambda: figures.reliability(predictions(2), SIZES, "a run"),
    "latents": lambda: figures.latents(predictions(3), SIZES, GROUPS, "a run"),
    "a line": lambda: figures.latents(predictions(1), SIZES, GROUPS, "a run"),
    "rewards": some_rewards,
}


@pytest.mark.parametrize("name", DRAWN)
def test_every_figure_can_be_read(name):
    assert has_title_and_legend_outside(DRAWN[name]())


def test_accuracy():
    accuracy, nll = figures.accuracy(RUNS).axes
    curves = curves_of(accuracy)
    assert set(curves) == set(RUNS)
    np.testing.assert_allclose(curves["ours"][1], [75.1, 86.2, 95.3])
    np.testing.assert_allclose(curves_of(nll)["ours"][1], [0.5, 0.3, 0.1])
    # The ends of an interval, where the mean is.
    (bars,) = accuracy.containers[0].lines[2]
    x, low, high = curves["ours"][0][0], *evaluation()["accuracy_ci"][0]
    np.testing.assert_allclose(
        bars.get_segments()[0], [[x, 100 * low], [x, 100 * high]]
    )
    np.testing.assert_allclose(lines_of(accuracy)[figures.COIN], 50)
    np.testing.assert_allclose(lines_of(nll)[figures.COIN], np.log(2))
    for axis in (accuracy, nll):
        assert [text.get_text() for text in axis.get_xticklabels()] == ["0", "1", "3"]
        assert "not to scale" in axis.get_xlabel() and axis.get_ylabel()


def test_the_best_possible_is_drawn_where_all_runs_share_it():
    accuracy, nll = figures.accuracy({"a": evaluation(), "b": evaluation()}).axes
    np.testing.assert_allclose(lines_of(accuracy)["best possible"], [75, 87.5, 96.9])
    np.testing.assert_allclose(lines_of(nll)["best possible"], [0.45, 0.25, 0.05])
    other = evaluation(ceiling_accuracy=[0.7] * 3, ceiling_nll=[0.6] * 3)
    for runs in ({"a": evaluation(), "b": other}, {"a": without_latent()}):
        assert "best possible" not in lines_of(figures.accuracy(runs).axes[0])


def test_curves_of_the_same_numbers_are_both_seen():
    curves = curves_of(figures.accuracy(RUNS).axes[0])
    for (x, y), (other_x, other_y) in itertools.combinations(curves.values(), 2):
        np.testing.assert_allclose(y, other_y)
        assert abs(x - other_x).min() > 0.05
        # Each stays nearest to its own context size.
        assert abs(x - np.arange(3)).max() < 0.5


def test_many_runs_stay_near_their_context_size():
    """Moved far apart, equal runs would look like a slope."""
    curves = curves_of(figures.accuracy(MANY).axes[0])
    assert len(curves) == 12
    for x, _ in curves.values():
        assert abs(x - np.arange(3)).max() < 0.15


def test_intervals_smaller_than_the_dots_are_told():
    near = {"accuracy_ci": [[a - 1e-4, a + 1e-4] for a in evaluation()["accuracy"]]}
    near["nll_ci"] = [[value - 1e-4, value + 1e-4] for value in evaluation()["nll"]]
    hidden = figures.accuracy({"near": evaluation(**near)})
    one_seen = figures.accuracy({"near": evaluation(**near), "far": evaluation()})
    assert figure_style.behind_dots(hidden.axes)
    assert not figure_style.behind_dots(one_seen.axes)


def test_the_title_names_the_run_and_its_people():
    title = figures.accuracy({"ours": evaluation(users=20000)}).get_suptitle()
    assert "ours" in title and "20,000" in title
    title = figures.accuracy(RUNS).get_suptitle()
    assert "3" in title and "37" in title


def test_looks_differ_in_more_than_colour():
    """So that they are told apart in grey; and colours are not too light for white."""
    looks = [figure_style.series(index) for index in range(20)]
    for first, second in itertools.combinations(looks, 2):
        assert first["marker"] != second["marker"] or (
            first["linestyle"] != second["linestyle"]
        )
    for name in figure_style.COLORS:
        red, green, blue = colors.to_rgb(name)
        assert 0.2126 * red + 0.7152 * green + 0.0722 * blue < 0.75


def test_steering():
    """What is drawn is what was measured: each group's line against n, and a gap."""
    accuracy, share, validity = figures.steering(generated(), "a run").axes
    curves = curves_of(share)
    np.testing.assert_allclose(curves["formal"][1], [50, np.nan, 52])
    np.testing.assert_allclose(curves["casual"][1], [60, np.nan, 62])
    for _, y in curves_of(accuracy).values():
        np.testing.assert_allclose(y, [50, 70, 90])
    np.testing.assert_allclose(lines_of(accuracy)[figures.COIN], 50)
    np.testing.assert_allclose(curves_of(validity)["formal"][1], [50.1, 50.2, 50.3])
    np.testing.assert_allclose(lines_of(validity)["language model"], 40.1)
    assert all(axis.get_title() for axis in (accuracy, share, validity))


def test_steering_between_groups():
    found = generated()["generated"]
    between = {"points": [0, 0.5, 1], "groups": found}
    *_, last = figures.steering(generated(interpolation=between), "a run").axes
    np.testing.assert_allclose(curves_of(last)["formal"][1], [50, np.nan, 52])
    assert [text.get_text() for text in last.get_xticklabels()] == ["0", "0.5", "1"]


def test_steering_of_users_without_groups_or_attribute():
    accuracy, length, ratio = figures.steering(of_everybody(), "a run").axes
    np.testing.assert_allclose(curves_of(accuracy)["everybody"][1], [75.1, 86.2, 95.3])
    np.testing.assert_allclose(curves_of(length)["everybody"][1], [2.5, 5, 7.5])
    np.testing.assert_allclose(lines_of(length)["language model"], 2)
    np.testing.assert_allclose(curves_of(ratio)["everybody"][1], [0.5, 1, 1.5])


def test_the_largest_of_many_groups_are_shown():
    made = generated()
    measures, scored = made["generated"]["formal"], made["groups"]["formal"]
    names = [f"g{i}" for i in range(20)]
    made["generated"] = dict.fromkeys(names, measures)
    made["groups"] = {
        name: {**scored, "users": 1 if index < 10 else 2 + index}
        for index, name in enumerate(names)
    }
    shown = curves_of(figures.steering(made, "a run").axes[1])
    assert list(shown) == names[13:]


def test_reliability_bins_by_hand():
    stated = np.array([0.5, 0.52, 0.549, 0.551, 0.97, 1.0])
    correct = np.array([0, 1, 0.5, 1, 1, 0])
    person = np.array([4, 4, 7, 7, 7, 7])
    mean, share, counts, people = figures.reliability_bins(stated, correct, person)
    assert people.tolist() == [2, 1, 0, 0, 0, 0, 0, 0, 0, 1]
    assert counts.tolist() == [3, 1, 0, 0, 0, 0, 0, 0, 0, 2]
    np.testing.assert_allclose(mean[[0, 1, 9]], [0.523, 0.551, 0.985])
    np.testing.assert_allclose(share[[0, 1, 9]], [0.5, 1, 0.5])
    assert np.isnan(mean[2:9]).all() and np.isnan(share[2:9]).all()


@pytest.mark.slow
def test_reliability_has_a_panel_for_each_size():
    made = predictions(2)
    figure = figures.reliability(made, SIZES, "a run")
    above, below = figure.axes[: len(SIZES)], figure.axes[len(SIZES) :]
    assert [axis.get_title() for axis in above] == ["n = 0", "n = 1", "n = 3"]
    for axis in below:
        assert sum(bar.get_height() for bar in axis.patches) == made.mask.sum()
    # Many sizes are several rows, and what is left of them is empty.
    many = list(range(7))
    wide = made._replace(log_prob=np.repeat(made.log_prob[:, :, :1], 7, axis=2))
    figure = figures.reliability(wide, many, "a run")
    assert sum(axis.axison for axis in figure.axes) == 14


def test_two_groups_differ_along_the_first_axis():
    rng = np.random.default_rng(0)
    group = np.arange(40) % 2
    means = rng.normal(size=(40, 3)) * [5, 1, 0.1]
    means[:, 1] += 3 * group
    # Only the second dimension tells the groups apart.
    means[:, [0, 2]] -= [
        [means[group == g][:, d].mean() for d in (0, 2)] for g in group
    ]
    directions, labels = figures.plane(means, group, ("casual", "formal"))
    np.testing.assert_allclose(abs(directions), [[0, 1, 0], [1, 0, 0]], atol=0.05)
    assert directions[0, 1] > 0
    np.testing.assert_allclose(directions @ directions.T, np.eye(2), atol=1e-6)
    assert "casual" in labels[0] and "formal" in labels[0]
    # Without groups they are principal components.
    directions, labels = figures.plane(means, np.zeros(40, int), ("everybody",))
    assert abs(directions[0, 0]) > 0.99 and "everybody" not in labels[0]


@pytest.mark.parametrize("shape", [(1, 1), (1, 3), (7, 1), (7, 2)])
def test_a_plane_of_people_who_are_all_alike(shape):
    directions, labels = figures.plane(np.ones(shape), np.arange(shape[0]) % 2, "ab")
    assert directions.shape == (min(2, shape[1]), shape[1]) and len(labels) == len(
        directions
    )
    assert np.isfinite(directions).all()


def test_latents():
    figure = figures.latents(predictions(3), SIZES, GROUPS, "a run")
    assert [axis.get_title() for axis in figure.axes] == ["n = 1", "n = 3"]
    for axis in figure.axes:
        assert axis.get_aspect() == 1
        assert [len(dots.get_offsets()) for dots in axis.collections] == [6, 5]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(GROUPS)
    first, second = (axis.get_xlim() for axis in figure.axes)
    assert first == second


def test_latents_of_one_group_need_no_names():
    made = predictions(3, num_groups=1)
    figure = figures.latents(made, SIZES, ("everybody",), "a run")
    assert figure.legends[0].get_texts() == []
    assert str(len(made.group)) in figure.legends[0].get_title().get_text()


def test_latents_show_the_smallest_context_too():
    sizes = [0, 1, 2, 3, 5, 10]
    made = predictions(3)
    made = made._replace(latent_mean=np.repeat(made.latent_mean, 2, axis=2))
    figure = figures.latents(made, sizes, GROUPS, "a run")
    shown = [axis.get_title() for axis in figure.axes]
    assert shown == ["n = 1", "n = 3", "n = 5", "n = 10"]


def test_latents_of_many_groups():
    names = [f"g{i}" for i in range(11)]
    made = predictions(3, num_groups=11)
    (first, _) = figures.latents(made, SIZES, names, "a run").axes
    assert sum(len(dots.get_offsets()) for dots in first.collections) == 11
    assert len(first.collections) == 8


@pytest.mark.parametrize(
    "dim",
    [
        pytest.param(0, marks=pytest.mark.slow),
        pytest.param(1, marks=pytest.mark.slow),
        3,
    ],
)
def test_figures_of_a_run(tmp_path, dim):
    made = evaluation() if dim else without_latent()
    made["diagnostics"]["latent_dim"] = dim
    paths = figures.write_all(predictions(dim), made, GROUPS, tmp_path, "a run")
    names = {"accuracy.png", "reliability.png"} | ({"latents.png"} if dim else set())
    assert {path.name for path in paths} == names
    assert names == {path.name for path in tmp_path.iterdir()}


def test_figures_leave_matplotlib_as_it_is(tmp_path, monkeypatch):
    """A notebook keeps its backend, its style and its open figures."""
    monkeypatch.setitem(matplotlib.rcParams, "backend", "svg")
    before, is_open = dict(matplotlib.rcParams), pyplot.get_fignums()
    figures.write_all(predictions(3), evaluation(), GROUPS, tmp_path, "a run")
    assert dict(matplotlib.rcParams) == before
    assert pyplot.get_fignums() == is_open
