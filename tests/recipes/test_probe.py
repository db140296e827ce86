"""`probe`: what it says of people who differ and of the same choices dealt out anew."""

import dataclasses
import json

import numpy as np
import pytest

from fsa.data import dataset
from fsa.data.collect import collect
from fsa.data.tables import Choice, Rating
from fsa.data.tasks.people import RATINGS
from fsa.errors import InputError
from fsa.evaluation import probe_report, verdict
from fsa.evaluation.scores import user_means
from fsa.recipes import presets
from fsa.recipes.probe import default_config, predict_in_folds, probe

pytestmark = pytest.mark.usefixtures("quick_compile")

ITEMS, F, PEOPLE, CHOICES = 30, 4, 80, 12
TINY = {
    "task.num_targets": 6,
    "task.max_context": 4,
    "model.hidden": 16,
    "model.latent_dim": 2,
    "objective.num_samples": 2,
    "optimizer.learning_rate": 1e-2,
    "train.batch_size": 32,
    "eval.num_context": (0, 1, 4),
    "eval.num_targets": 8,
    "eval.valid_episodes_per_user": 2,
    "eval.num_samples": 4,
    "eval.num_resamples": 200,
}
STEPS = 60
FEATURES = np.random.default_rng(0).normal(size=(ITEMS, F)).astype(np.float32)


def split_of(person):
    return ("train", "valid", "test")[max(person - PEOPLE + 30, 0) // 10]


def two_groups():
    """Choices of people of two opposite groups, as (person, chosen, rejected)."""
    rng = np.random.default_rng(1)
    rows = []
    for person in range(PEOPLE):
        reward = FEATURES[:, 0] * (1 if person % 2 else -1)
        pairs = set()
        while len(pairs) < CHOICES:
            a, b = rng.choice(ITEMS, 2, replace=False)
            pairs.add((a, b) if reward[a] > reward[b] else (b, a))
        rows += [(person, *pair) for pair in sorted(pairs)]
    return rows


def dealt_out(rows):
    """The same choices, each split's dealt out to its people at random."""
    rng = np.random.default_rng(2)
    people = np.array([person for person, _, _ in rows])
    splits = np.array([split_of(person) for person in people])
    for split in set(splits):
        people[splits == split] = rng.permutation(people[splits == split])
    return [(p, a, b) for p, (_, a, b) in zip(people, rows, strict=True)]


def write(path, rows):
    # Dealt out, a pair may come to a person twice, and then only the first counts.
    first = {(p, min(a, b), max(a, b)): (p, a, b) for p, a, b in reversed(rows)}
    choices = [
        Choice(f"p{p}", "which", str(a), str(b), split_of(p))
        for p, a, b in first.values()
    ]
    data = collect(choices, [])
    features = FEATURES[[int(text) for text in data.texts]]
    dataset.write(
        path,
        dataclasses.replace(
            data, features=features, embedding=dataset.Embedding("some")
        ),
    )
    return path


def config_of(path, **fields):
    config = default_config(path)
    config.update_from_flattened_dict({**TINY, **fields})
    return config


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("probe")
    rows = two_groups()
    return {
        "groups": write(folder / "groups", rows),
        "dealt": write(folder / "dealt", dealt_out(rows)),
    }


@pytest.fixture(scope="module")
def found(folders):
    """What is found of people of two groups."""
    return probe(config_of(folders["groups"]), steps=STEPS)


def answers(found):
    return {
        found["answers"][f"{m} learns the person"] for m in ("model", "linear model")
    }


def test_two_groups_differ(found):
    assert answers(found) == {verdict.YES}
    accuracy = found["accuracy"]
    model = accuracy[found["curves"][-1]]["mean"]
    # Nobody in particular is of either group.
    assert abs(model[0] - 0.5) < 0.1 and model[-1] > 0.7
    assert abs(accuracy["popularity"]["mean"][0] - 0.5) < 0.1
    assert accuracy["linear, shifted"]["mean"][-1] > 0.7


@pytest.mark.slow
def test_people_who_were_dealt_choices_do_not_differ(folders):
    found = probe(config_of(folders["dealt"]), steps=STEPS)
    assert verdict.YES not in answers(found)


def test_what_is_found(found, folders):
    """All can be told in JSON, and sizes are those of the people who were scored."""
    of_groups = json.loads(json.dumps(found))
    assert of_groups["people"] == PEOPLE - 10
    assert of_groups["trained_on"] == [13, 26, 52]
    assert of_groups["n_context"] == [0, 1, 4]
    assert of_groups["counts"]["test"]["users"] == 10
    first, _, last = of_groups["nll"]["mean"]
    assert of_groups["nll_fallen"]["difference"] == pytest.approx(last - first)
    # Nobody in particular: a coin, or a little worse.
    assert 0.6 < first < 0.8 and last < first
    assert of_groups["counts"]["train"]["choices_of_a_user"] == [CHOICES] * 3
    assert all(
        len(scored["mean"]) == len(scored["ci"]) in (1, 3)
        for scored in of_groups["accuracy"].values()
    )
    text = probe_report.text(of_groups)
    shown = " ".join(text.split())
    assert all(name in shown for name in of_groups["curves"])
    assert all(" ".join(line.split()) in shown for line in of_groups["verdict"])
    for scored in of_groups["accuracy"].values():
        assert f"{100 * scored['mean'][-1]:.1f}" in shown
    # The conclusion comes first.
    assert shown.startswith(of_groups["verdict"][-1])
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.slow
def test_bayes_rule_in_folds(folders):
    """Each training predicts everybody, on the same episodes."""
    config = default_config(folders["groups"], "bayes")
    config.update_from_flattened_dict({**TINY, "model.num_sweeps": 0})
    sizes, (one, other) = predict_in_folds(config, steps=STEPS, trainings=2)
    assert sizes == (0, 1, 4) and len(one.log_prob) == PEOPLE - 10
    for found in (one, other):
        nll = user_means(-found.log_prob, found.mask).mean(0)
        assert abs(nll[0] - np.log(2)) < 0.1 and nll[2] < 0.6
    np.testing.assert_array_equal(one.mask, other.mask)
    # Their random numbers are of their own.
    assert not np.array_equal(one.log_prob, other.log_prob)


def test_picture(found, tmp_path):
    by_choices, by_people = probe_report.draw(found).axes
    last = found["accuracy"][found["curves"][-1]]["mean"]
    drawn = [bars.lines[0].get_ydata() for bars in by_choices.containers]
    assert any(np.allclose(y, 100 * np.array(last)) for y in drawn)
    shown = [text.get_text() for text in by_people.get_xticklabels()]
    assert shown == ["13", "26", "52"]
    paths = probe_report.write(found, tmp_path / "out")
    assert [path.name for path in paths] == ["probe.json", "probe.png"]
    assert json.loads(paths[0].read_text()) == found
    assert paths[1].read_bytes()[:4] == b"\x89PNG"


@pytest.fixture
def without_features(tmp_path):
    """A dataset without features in which everybody but test people agree."""
    choices = []
    for person, a, b in two_groups():
        low, high = sorted((a, b), reverse=split_of(person) == "test")
        options = str(high), str(low)
        choices.append(Choice(f"p{person}", "which", *options, split_of(person)))
    dataset.write(tmp_path / "data", collect(choices, []))
    return tmp_path / "data"


def test_popularity_without_features_or_test_people(without_features):
    found = probe(config_of(without_features), steps=STEPS)
    assert list(found["accuracy"]) == ["popularity"]
    assert found["accuracy"]["popularity"]["mean"][0] > 0.9
    assert "fsa embed" in found["verdict"][-1]
    assert "fsa embed" in probe_report.text(found)


@pytest.mark.slow
def test_contexts_are_as_large_as_most_people_allow(tmp_path):
    """12 choices leave 8 to know at most, and somebody with one choice is no reason."""
    rows = [row for row in two_groups() if row[0] or row[1] == 0][: PEOPLE * CHOICES]
    path = write(tmp_path / "data", rows)
    data = dataset.load(path)
    without = dataclasses.replace(data, features=data.features[:, :0], embedding=None)
    dataset.write(path, without, overwrite=True)
    sizes = {"eval.num_context": (0, 2, 8, 9, 20)}
    assert probe(config_of(path, **sizes))["n_context"] == [0, 2, 8]


@pytest.mark.slow
def test_ratings_alone(tmp_path):
    ratings = [
        Rating(f"p{p}", "which", str(i), float(i % 7), split_of(p))
        for p in range(PEOPLE)
        for i in range(p % 3, ITEMS, 3)
    ]
    dataset.write(tmp_path / "data", collect([], ratings))
    config = config_of(tmp_path / "data", **{"eval.num_context": (0, 1)})
    assert config.task.train_on == RATINGS
    found = probe(config, steps=STEPS)
    assert found["accuracy"]["popularity"]["mean"][0] > 0.9
    assert found["counts"]["train"]["ratings_of_a_user"] == [10, 10, 10]


def refuses(named):
    return pytest.raises(InputError, match=named)


@pytest.mark.parametrize(
    ("rows", "named"),
    [
        (lambda rows: [r for r in rows if r[0] < 19 or r[0] >= 70], "20"),
        (lambda rows: [r for i, r in enumerate(rows) if i % CHOICES == 0], "at most 1"),
    ],
)
def test_too_few_people_or_choices(tmp_path, rows, named, monkeypatch):
    path = write(tmp_path / "data", rows(two_groups()))
    monkeypatch.setattr("fsa.recipes.probe._train", None)
    with refuses(named):
        probe(config_of(path), steps=STEPS)


@pytest.mark.slow
def test_bad_input(tmp_path, folders):
    with refuses("store.json|not a dataset"):
        default_config(tmp_path / "nothing")
    with refuses("`config`"):
        probe(presets.reward_model("btl", "two_types"))
    with refuses("config.eval.num_context"):
        probe(config_of(folders["groups"], **{"eval.num_context": (0,)}))
    with refuses("config.optimizer.learning_rate"):
        probe(
            config_of(folders["groups"], **{"optimizer.learning_rate": 1e30}), steps=2
        )


def test_command(launch, without_features, tmp_path):
    """Prints what it finds and writes it; flags are named in errors."""
    out = tmp_path / "a" / "out"
    finished = launch("probe", f"--data={without_features}", f"--out={out}")
    assert finished.code == 0, finished.err
    written = json.loads((out / "probe.json").read_text())
    assert probe_report.text(written) in finished.out
    config = tmp_path / "mine.py"
    config.write_text(
        "from fsa.recipes.presets import people\n"
        "def get_config():\n    config = people()\n"
        "    config.eval.num_context = (0, 2)\n    return config\n"
    )
    arguments = (f"--config={config}", f"--data={without_features}", "--seed=3")
    assert launch("probe", *arguments, f"--out={out}").code == 2  # It holds a probe.
    assert launch("probe", *arguments, f"--out={out}", "--overwrite").code == 0
    written = json.loads((out / "probe.json").read_text())
    assert (written["n_context"], written["seed"]) == ([0, 2], 3)
    finished = launch("probe", *arguments, "--model=bayes")
    assert finished.code == 2 and "--model" in finished.err
    finished = launch("probe")
    assert finished.code == 2 and "--data" in finished.err
    finished = launch("probe", f"--data={tmp_path / 'nothing'}")
    assert finished.code == 2 and finished.err.count("\n") == 1
