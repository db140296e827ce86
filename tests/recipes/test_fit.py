"""`fsa.fit`: from rows in memory to a model in use, without a command line."""

import itertools
import json
import pathlib
import shutil
import subprocess
import sys
from concurrent import futures

import numpy as np
import policies
import pytest

import fsa
from fsa.data import files, preparation
from fsa.data.tables import Reader
from fsa.errors import InputError
from fsa.recipes.fit import load

pytestmark = pytest.mark.usefixtures("quick_compile")

DRINKS = {
    "espresso": [3, 0, 2],
    "cocoa": [0, 3, 2],
    "tea": [1, 0, 2],
    "cola": [1, 3, 0],
    "water": [0, 0, 0],
}
SMALL = {
    "task.max_context": 2,
    "task.num_targets": 4,
    "model.hidden": 8,
    "model.latent_dim": 2,
    "objective.num_samples": 2,
    "optimizer.learning_rate": 0.02,
    "train.steps": 60,
    "train.batch_size": 8,
    "train.steps_per_call": 20,
    "train.validate_every": 60,
    "eval.num_context": (0, 2),
    "eval.num_targets": 4,
    "eval.episodes_per_user": 2,
    "eval.valid_episodes_per_user": 2,
    "eval.num_samples": 2,
    "eval.num_resamples": 20,
}


def config(**fields):
    made = fsa.presets.people()
    made.update_from_flattened_dict({**SMALL, **fields})
    return made


def choices(option=lambda name: name, sweet=1.0):
    """All choices of 40 people, who like sweet drinks, or the opposite."""
    return [
        {"user": f"{person}", "chosen": option(pair[0]), "rejected": option(pair[1])}
        for person in range(40)
        for pair in (
            sorted(
                pair,
                key=lambda d: (
                    -sweet * (-1) ** person * (DRINKS[d][1] + 0.1 * DRINKS[d][0])
                ),
            )
            for pair in itertools.combinations(DRINKS, 2)
        )
    ]


def features_of(texts):
    return [DRINKS[text] for text in texts]


def named(change):
    """An embedder of other vectors that has the name of `features_of`."""

    def other(texts):
        return [change(DRINKS[text]) for text in texts]

    other.__name__ = features_of.__name__
    return other


@pytest.fixture(scope="module")
def trained(tmp_path_factory, quick_compile):
    """The run directory of texts with an embedder, and what `fit` returned."""
    run_dir = tmp_path_factory.mktemp("fit") / "run"
    return run_dir, fsa.fit(config(), run_dir, choices=choices(), embedder=features_of)


def test_two_choices_decide_what_a_new_person_wants(trained):
    _, ranker = trained
    sweet = ranker.rank(list(DRINKS), chosen=["cola", "cocoa"], rejected=["tea"] * 2)
    other = ranker.rank(list(DRINKS), rejected=["cola", "cocoa"], chosen=["tea"] * 2)
    best = {ranking.rows()[0]["option"] for ranking in (sweet, other)}
    assert sweet.rows()[0]["option"] in ("cocoa", "cola")
    assert best - {"cocoa", "cola"}


@pytest.mark.slow
def test_ratings_alone_tell_what_a_new_person_wants(tmp_path, capsys):
    """One option at a time, in three levels; half of the people like large numbers."""
    options = [[i / 11] for i in range(12)]
    ratings = [
        {"user": f"{person}", "item": x, "value": int(2.99 * abs(person % 2 - x[0]))}
        for person in range(40)
        for x in options
    ]
    made = fsa.presets.people("bayes")
    fields = {
        "task.train_on": "ratings",
        "model.context": "ratings",
        "model.num_steps": 6,
        "model.num_sweeps": 0,
    }
    made.update_from_flattened_dict({**SMALL, **fields})
    ranker = fsa.fit(made, tmp_path / "run", ratings=ratings)
    for high in (True, False):
        told = [([1.0], 2 * high), ([0.0], 2 * (not high))]
        ranking = ranker.rank(options, rated=told)
        assert ranking.order[0] in ((11, 10) if high else (0, 1))
        again = fsa.Ranker.load(tmp_path / "run").rank(options, rated=told)
        np.testing.assert_array_equal(again.reward_interval, ranking.reward_interval)
    liked = ranker.compare([1.0], [0.0], liked=[[0.9]], disliked=[[0.1]])
    assert liked.probability > 0.6 and liked.interval[0] < liked.difference
    with pytest.raises(InputError, match="none of 0, 1, 2"):
        ranker.rank(options, rated=[([1.0], 3)])
    accuracy = fsa.evaluate(tmp_path / "run", full=True)["accuracy"]
    assert accuracy[1] > accuracy[0] + 0.2


def test_the_same_call_again_finds_the_run(trained):
    run_dir, ranker = trained
    again = fsa.fit(config(), run_dir, choices=choices(), embedder=features_of)
    found = again.rank(list(DRINKS), chosen=["cola"], rejected=["tea"])
    wanted = ranker.rank(list(DRINKS), chosen=["cola"], rejected=["tea"])
    np.testing.assert_array_equal(found.probability, wanted.probability)


@pytest.mark.slow
def test_fit_works_in_another_thread(trained):
    run_dir, ranker = trained
    with futures.ThreadPoolExecutor(1) as pool:
        again = pool.submit(
            fsa.fit, config(), run_dir, choices=choices(), embedder=features_of
        ).result()
    assert again.num_features == ranker.num_features


def test_a_run_moves_with_its_data(trained, tmp_path):
    """They are in its directory, and the rows are those that it knows."""
    run_dir, ranker = trained
    moved = shutil.copytree(run_dir, tmp_path / "moved")
    again = fsa.fit(config(), moved, choices=choices(), embedder=features_of)
    assert pathlib.Path(again.data_path) == moved / "data"
    found = again.rank(list(DRINKS), chosen=["cola"], rejected=["tea"])
    wanted = ranker.rank(list(DRINKS), chosen=["cola"], rejected=["tea"])
    np.testing.assert_array_equal(found.probability, wanted.probability)


def test_names_can_be_imported_from_where_they_are_shown():
    from fsa.presets import people

    assert people is fsa.presets.people
    assert fsa.InputError is InputError and fsa.Reader is Reader


@pytest.mark.slow
def test_numbers_are_the_features_that_an_embedder_would_give(trained, tmp_path):
    """The same people with each drink as its numbers, so the same model."""
    _, ranker = trained
    rows = choices(lambda name: np.array(DRINKS[name], float))
    by_number = fsa.fit(config(), tmp_path / "run", choices=rows)
    options = list(DRINKS.values())
    found = by_number.rank(options, chosen=[DRINKS["cola"]], rejected=[DRINKS["tea"]])
    assert found.rows()[0]["option"] in (DRINKS["cocoa"], DRINKS["cola"])
    assert load(tmp_path / "run").num_features == ranker.num_features == 3


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda: {"choices": choices(sweet=-1)}, "workdir"),
        # Another function of the same name.
        (
            lambda: {
                "choices": choices(),
                "embedder": named(lambda d: [1 - x for x in d]),
            },
            "embedder",
        ),
        (lambda: {"ratings": [{"user": "a", "item": "b", "value": 1}]}, "workdir"),
    ],
)
def test_a_run_of_other_data_is_refused_and_kept(trained, change, named):
    run_dir, _ = trained
    before = (run_dir / "data" / "store.json").read_bytes()
    with pytest.raises(InputError, match=named):
        fsa.fit(config(), run_dir, **change())
    assert (run_dir / "data" / "store.json").read_bytes() == before


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"split_seed": 1}, "`split_seed`=1"),
        pytest.param(
            {"reader": Reader(split_by="prompt")},
            "split_by`=prompt",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_run_of_other_splits_is_refused_unless_it_records_none(
    trained, tmp_path, other, named
):
    run_dir, _ = trained
    given = dict(choices=choices(), embedder=features_of, **other)
    with pytest.raises(InputError, match=named):
        fsa.fit(config(), run_dir, **given)
    older = shutil.copytree(run_dir, tmp_path / "older")
    store = older / "data" / "store.json"
    content = json.loads(store.read_text())
    del content["split"]
    store.write_text(json.dumps(content))
    fsa.fit(config(), older, **given)


def test_what_a_fit_that_was_killed_left_is_no_hindrance(tmp_path):
    """In the folder while its dataset was written: drafts, and an empty folder."""
    for name in ("data", ".data.x1y2/new/items"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / ".log.txt.17.draft").write_text("half")
    (tmp_path / "data" / ".DS_Store").write_text("")
    with pytest.raises(InputError, match="valid"):  # Of the dataset that it wrote.
        fsa.fit(config(), tmp_path, choices=choices(by_number)[:30])
    assert (tmp_path / "data" / "store.json").exists()


@pytest.mark.slow
def test_rows_that_were_refused_can_be_corrected(tmp_path):
    """Texts without an embedder have no features; nothing was trained yet."""
    with pytest.raises(InputError, match="embedder"):
        fsa.fit(config(), tmp_path / "run", choices=choices())
    assert not (tmp_path / "run" / "config.json").exists()
    short = config(**{"train.steps": 20, "train.validate_every": 20})
    fsa.fit(short, tmp_path / "run", choices=choices(), embedder=features_of)


def test_a_dataset_of_somebody_else_in_the_folder_is_kept(tmp_path):
    files.write_jsonl(tmp_path / "rows.jsonl", choices(by_number, sweet=-1))
    source = preparation.read_tables([tmp_path / "rows.jsonl"], [], Reader())
    preparation.prepare(tmp_path / "run" / "data", [source])
    before = (tmp_path / "run" / "data" / "store.json").read_bytes()
    with pytest.raises(InputError, match="holds a dataset"):
        fsa.fit(config(), tmp_path / "run", choices=choices(by_number))
    assert (tmp_path / "run" / "data" / "store.json").read_bytes() == before


def test_rows_need_a_config_with_a_dataset(tiny, tmp_path):
    with pytest.raises(InputError, match="choices"):
        fsa.fit(tiny(), tmp_path / "run", choices=choices())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "embedder",
    [
        lambda _: [[1.0]],
        lambda texts: [[1.0] * len(text) for text in texts],
        lambda texts: texts,
    ],
)
def test_an_embedder_must_return_one_vector_for_each_text(tmp_path, embedder):
    with pytest.raises(InputError, match="embedder"):
        fsa.fit(config(), tmp_path / "run", choices=choices(), embedder=embedder)


def test_what_an_embedder_raises_is_not_renamed(tmp_path):
    def embedder(texts):
        raise ValueError("out of quota")

    with pytest.raises(ValueError, match="^out of quota$"):
        fsa.fit(config(), tmp_path / "run", choices=choices(), embedder=embedder)


@pytest.mark.parametrize(
    ("embedder", "named"),
    [(7, "`embedder`.* int"), ("no-such-folder", "no-such-folder: ")],
)
def test_what_is_no_embedder_is_refused_before_any_work(tmp_path, embedder, named):
    for rows in (choices(), None):
        with pytest.raises(InputError, match=named):
            fsa.fit(config(), tmp_path / "run", choices=rows, embedder=embedder)
    assert not (tmp_path / "run").exists()


def test_a_policy_has_no_embedder(tmp_path):
    """Its language model makes the features."""
    policy = policies.tiny_policy_config(tmp_path)
    with pytest.raises(InputError, match="`embedder`"):
        fsa.fit(policy, tmp_path / "run", embedder=features_of)
    assert not (tmp_path / "run").exists()


def test_an_embedder_without_rows_is_compared_with_the_dataset(trained, tmp_path):
    """That of a dataset that was prepared before; another one is refused."""
    run_dir, _ = trained
    ready = config(**{"task.path": str(run_dir / "data")})
    other = named(lambda drink: [1 - x for x in drink])
    with pytest.raises(InputError, match="`embedder`"):
        fsa.fit(ready, tmp_path / "run", embedder=other)
    assert not (tmp_path / "run").exists()


def by_number(name):
    return DRINKS[name]


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"choices": []}, "choices"),
        ({"choices": {"user": ["a"], "chosen": ["b"]}}, "choices"),
        ({"choices": "choices.csv"}, "choices"),
        ({"choices": choices(by_number), "embedder": features_of}, "embedder"),
        ({"choices": choices(by_number)[:30]}, "valid"),
        ({"ratings": choices()}, "ratings"),
    ],
)
def test_what_is_no_data_is_refused_before_training(tmp_path, given, named):
    with pytest.raises(InputError, match=named) as error:
        fsa.fit(config(), tmp_path / "run", **given)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.parametrize("given", ["np-btl", None, fsa.presets.people])
def test_what_is_no_config_is_refused(tmp_path, given):
    with pytest.raises(InputError, match="config"):
        fsa.fit(given, tmp_path / "run", choices=choices(by_number))


class Frame:
    """As pandas.DataFrame as `fit` sees it: it has no truth value."""

    def __init__(self, rows):
        self.rows = rows

    def to_dict(self, orient):
        assert orient == "records"
        return self.rows

    def __bool__(self):
        raise ValueError("ambiguous")


@pytest.mark.slow
def test_bad_rows_are_counted_and_reported(tmp_path, capsys):
    """Of a table as pandas has it; the reader says how many may be bad."""
    rows = choices(by_number)
    rows[7] = {**rows[7], "chosen": [1.0, float("nan"), 0.0]}
    short = config(**{"train.steps": 20, "train.validate_every": 20})
    with pytest.raises(InputError, match="row 8"):
        fsa.fit(short, tmp_path / "run", choices=rows, reader=Reader(max_bad_share=0))
    fsa.fit(short, tmp_path / "run", choices=Frame(rows))
    shown = capsys.readouterr().out
    assert f"{len(rows)} rows, 1 left out" in shown and "first in row 8" in shown


def test_the_package_imports_its_names_when_they_are_used():
    """In a fresh process, so that nothing is imported yet."""
    code = """
import sys, fsa
assert not {"jax", "numpy"} & sys.modules.keys(), "import fsa imports too much"
assert set(fsa.__all__) <= set(dir(fsa))
assert fsa.InputError.__module__ == "fsa.errors"
try:
    fsa.nothing
except AttributeError:
    print("done")
"""
    folder = pathlib.Path(fsa.__file__).parents[1]
    shown = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True
    )
    assert shown.stdout == "done\n", shown.stderr


def test_every_name_of_the_package_can_be_imported():
    names = {}
    exec("from fsa import *", names)
    assert set(fsa.__all__) <= names.keys()
    assert callable(names["fit"]) and names["losses"].__name__ == "fsa.losses"
