"""Runs are tied to their data: other data in their place are refused, moved ones found.

The people like sweet or strong drinks; a run on their choices takes seconds.
"""

import contextlib
import dataclasses
import itertools
import json
import pathlib
import shutil

import numpy as np
import policies
import pytest
from slow import slow_but

from fsa import digests
from fsa.data import dataset, files
from fsa.data.collect import collect
from fsa.data.dataset import Embedding
from fsa.data.ragged import Ragged
from fsa.data.tables import Choice
from fsa.errors import InputError
from fsa.inference.person import Person
from fsa.inference.steerer import Steerer
from fsa.recipes.other_data import OtherData, folder_for
from fsa.training import run_data, run_directory

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
DRINKS = ("cocoa", "cola", "lemonade", "mate", "tea", "water")
FIELDS = {
    "task.max_context": 2,
    "task.num_targets": 3,
    "model.hidden": 8,
    "model.latent_dim": 2,
    "objective.num_samples": 2,
    "train.steps": 4,
    "train.batch_size": 4,
    "train.steps_per_call": 2,
    "train.validate_every": 2,
    "eval.num_context": (0, 2),
    "eval.num_targets": 3,
    "eval.num_samples": 2,
    "eval.num_resamples": 20,
}


def train(launch, data, run, *more, folder=None, **fields):
    fields = {**FIELDS, "task.path": data, **fields}
    line = [f"--config.{name}={value}" for name, value in fields.items()]
    experiment = f"{REPOSITORY}/experiments/choices.py:np-btl"
    where = {"folder": folder} if folder else {}
    return launch(
        "train", f"--config={experiment}", f"--workdir={run}", *line, *more, **where
    )


def people():
    """Six people of train, and two of valid and of test; every pair of drinks each."""
    splits = ["train"] * 6 + ["valid"] * 2 + ["test"] * 2
    rows = []
    for number, split in enumerate(splits):
        for a, b in itertools.combinations(DRINKS, 2):
            chosen, rejected = (a, b) if number % 2 else (b, a)
            rows.append(Choice(f"p{number}", "", chosen, rejected, split, "all"))
    data = collect(rows, [])
    vectors = np.random.default_rng(0).normal(size=(len(data.texts), 3))
    return dataclasses.replace(
        data, features=vectors.astype(np.float32), embedding=Embedding("bert")
    )


def with_other_rows(data):
    """One choice of one person of train is the opposite."""
    table = data.users["train"]
    chosen, rejected = table.chosen.flat.copy(), table.rejected.flat.copy()
    chosen[0], rejected[0] = rejected[0], chosen[0]
    changed = dataclasses.replace(
        table,
        chosen=Ragged(chosen, table.chosen.offsets),
        rejected=Ragged(rejected, table.rejected.offsets),
    )
    return dataclasses.replace(data, users={**data.users, "train": changed})


def with_other_vectors(data):
    return dataclasses.replace(data, features=data.features + np.float32(0.1))


def with_embedding(data, **changes):
    embedding = dataclasses.replace(data.embedding, **changes)
    return dataclasses.replace(data, embedding=embedding)


CHANGES = {
    "choices": with_other_rows,
    "vectors": with_other_vectors,
    "template": lambda data: with_embedding(data, template="{prompt}: {option}"),
    "embedder": lambda data: with_embedding(with_other_vectors(data), name="gpt"),
}


def with_other_ratings(data):
    """One person of test rates an item."""
    table = data.users["test"]
    count = len(table.names)
    items = [[0], *[[]] * (count - 1)]
    values = [[1.0], *[[]] * (count - 1)]
    changed = dataclasses.replace(
        table, items=Ragged.of(items, np.int32), values=Ragged.of(values, np.float32)
    )
    return dataclasses.replace(data, users={**data.users, "test": changed})


def forget_data(run):
    """Makes the checkpoints of a run like those of older versions."""
    for step in (run / "checkpoints").glob("[0-9]*"):
        path = step / "meta" / "metadata"
        meta = json.loads(path.read_text())
        del meta["data"]
        path.write_text(json.dumps(meta))
        listed = json.loads((step / "manifest.json").read_text())
        listed["meta/metadata"] = digests.of_file(path)
        (step / "manifest.json").write_text(json.dumps(listed))


def done(finished):
    assert finished.code == 0, finished.err
    return finished


def refused(finished, *names):
    """Asserts that a command ended in one line that names what is wrong."""
    assert finished.code == 2, (finished.out, finished.err)
    lines = [line for line in finished.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "Traceback" not in finished.err
    for name in names:
        assert str(name) in lines[0], (name, lines[0])


@pytest.fixture(scope="module")
def made(tmp_path_factory, launch, quick_compile):
    """A folder with a dataset and a run on it; not to be changed."""
    folder = tmp_path_factory.mktemp("tied")
    dataset.write(folder / "data", people())
    files.write_jsonl(folder / "options.jsonl", [{"option": d} for d in DRINKS])
    done(train(launch, "data", "run", folder=folder))
    return folder


@pytest.fixture
def folder(made, tmp_path):
    """A copy of it in another place, the old one being out of reach."""
    copy = shutil.copytree(made, tmp_path / "copy")
    config = copy / "run" / "config.json"
    content = json.loads(config.read_text())
    assert content["task"]["path"] == str(made / "data")
    content["task"]["path"] = str(copy / "data")
    config.write_text(json.dumps(content))
    return copy


def resume(launch, folder):
    return train(launch, folder / "data", folder / "run")


def evaluate(launch, folder, *more):
    return launch("evaluate", f"--workdir={folder / 'run'}", *more)


def predict(launch, folder, *more):
    options = folder / "options.jsonl"
    return launch(
        "predict", f"--workdir={folder / 'run'}", f"--options={options}", *more
    )


def steer(launch, folder, *more):
    options = [f"--{name}={value}" for name, value in OPTIONS.items()]
    return launch("steer", f"--workdir={folder / 'run'}", *options, *more)


OPTIONS = dict(max_new_tokens=4, seed=3)


COMMANDS = resume, evaluate, predict
QUICK = {
    *itertools.product(CHANGES, (resume,)),
    *itertools.product(["choices"], COMMANDS),
}


@pytest.mark.parametrize(
    ("part", "command"), slow_but(QUICK, itertools.product(CHANGES, COMMANDS))
)
def test_a_silent_change_is_refused(launch, folder, command, part):
    dataset.write(folder / "data", CHANGES[part](people()), overwrite=True)
    before = digests.of_files(folder)
    refused(command(launch, folder), folder / "data", part)
    assert digests.of_files(folder) == before


def test_the_same_data_written_again_are_taken(launch, folder):
    """Also by an embedder of another name, since its vectors are the same."""
    renamed = with_embedding(people(), name="my-bert")
    dataset.write(folder / "data", renamed, overwrite=True)
    done(resume(launch, folder))
    done(predict(launch, folder))


@pytest.mark.slow
def test_no_more_people_are_predicted_than_the_config_says(launch, folder):
    path = folder / "run" / "config.json"
    content = json.loads(path.read_text())
    content["eval"]["most_users"] = 1
    path.write_text(json.dumps(content))
    assert "1 of 2 test people" in done(evaluate(launch, folder)).out
    evaluation = json.loads((folder / "run" / "evaluation.json").read_text())
    assert evaluation["users"] == 1


@pytest.mark.slow
def test_other_data_are_evaluated_knowingly(launch, folder):
    other = folder / "other"
    dataset.write(other, with_other_rows(people()))
    own = folder / "run" / "evaluation.json"
    done(evaluate(launch, folder, f"--data={other}"))
    assert (folder / "run" / "other" / "evaluation.json").exists() and not own.exists()
    # Of the run's own data the files go where they always do.
    (folder / "data").rename(folder / "moved")
    refused(evaluate(launch, folder), "--data")
    done(evaluate(launch, folder, f"--data={folder / 'moved'}"))
    assert own.exists() and not (folder / "run" / "moved").exists()


@pytest.mark.slow
def test_two_other_datasets_of_one_name_are_kept_apart(launch, folder):
    run, paths = folder / "run", [folder / name / "flip" for name in "ab"]
    for path, change in zip(paths, (with_other_rows, with_other_ratings), strict=True):
        dataset.write(path, change(people()))
        done(evaluate(launch, folder, f"--data={path}"))
    others = [OtherData.at(path, run_data.PARTS) for path in paths]
    names = "flip", f"flip-{others[1].digest[:6]}"
    # Each is found again, and each evaluation is of its own data.
    for name, other in zip(names, others, strict=True):
        assert folder_for(run, other) == run / name
        found = json.loads((run / name / "evaluation.json").read_text())
        assert found["data"] == other.digest


@pytest.mark.parametrize("known", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_other_data_where_the_own_are_gone(launch, folder, known):
    """What embedded the own is in the checkpoints; if not, that is said."""
    shutil.rmtree(folder / "data")
    (folder / "run" / "data.json").unlink()
    if not known:
        forget_data(folder / "run")
    dataset.write(folder / "other", CHANGES["template"](people()))
    finished = evaluate(launch, folder, f"--data={folder / 'other'}")
    if known:
        refused(finished, "template")
    else:
        done(finished)
        assert "template" in finished.err


@pytest.mark.parametrize("part", ["template", "embedder", "features"])
def test_features_of_another_kind_are_not_evaluated(launch, folder, part):
    wider = dataclasses.replace(people(), features=np.ones((len(DRINKS), 4), "f4"))
    other = wider if part == "features" else CHANGES[part](people())
    dataset.write(folder / "other", other)
    before = digests.of_files(folder)
    refused(evaluate(launch, folder, f"--data={folder / 'other'}"), part)
    after = digests.of_files(folder)
    assert {k: v for k, v in after.items() if "compiled" not in k} == before


def test_moved_data_are_found_by_flag_and_remembered_by_training(launch, folder):
    moved = folder / "moved"
    (folder / "data").rename(moved)
    refused(predict(launch, folder), folder / "data")
    done(predict(launch, folder, f"--data={moved}"))
    done(train(launch, moved, folder / "run"))
    done(predict(launch, folder))
    dataset.write(folder / "other", with_other_rows(people()))
    refused(predict(launch, folder, f"--data={folder / 'other'}"), "choices")


@pytest.mark.parametrize("command", [resume, evaluate, predict])
def test_a_lost_record_is_in_the_checkpoints(launch, folder, command):
    (folder / "run" / "data.json").unlink()
    dataset.write(folder / "data", with_other_rows(people()), overwrite=True)
    before = digests.of_files(folder)
    refused(command(launch, folder), "choices")
    assert digests.of_files(folder) == before


@pytest.mark.slow
def test_a_lost_record_of_the_own_data_does_no_harm(launch, folder):
    (folder / "run" / "data.json").unlink()
    for command in (resume, evaluate, predict):
        done(command(launch, folder))


@pytest.mark.parametrize("place", ["nothing", "an empty folder"])
def test_a_missing_dataset(launch, folder, place):
    """Is needed where items are named, and not for numbers."""
    shutil.rmtree(folder / "data")
    if place == "an empty folder":
        (folder / "data").mkdir()
    run = folder / "run"
    refused(predict(launch, folder), folder / "data", run, "--data")
    refused(evaluate(launch, folder), folder / "data", run, "--data")
    refused(resume(launch, folder), folder / "data", run, "task.path")
    numbers = folder / "numbers.jsonl"
    files.write_jsonl(numbers, [{"option": [x, 0, 0]} for x in (1, 2)])
    done(launch("predict", f"--workdir={run}", f"--options={numbers}"))


def test_a_run_records_its_data_before_it_has_a_config(launch, made, monkeypatch):
    """A training that ends in between leaves a folder that can be trained in."""
    run = made / "interrupted"

    def claim(*arguments, **options):
        raise InputError("ended")

    with monkeypatch.context() as patch:
        patch.setattr(run_directory, "claim", claim)
        refused(train(launch, made / "data", run), "ended")
    assert (run / "data.json").exists() and not (run / "config.json").exists()
    done(train(launch, made / "data", run))
    shutil.rmtree(run)


@pytest.mark.slow
def test_a_relative_path_is_the_same_data_from_any_folder(launch, made, tmp_path):
    """And the run is the same run."""
    copy = shutil.copytree(made, tmp_path / "copy")
    (copy / "inner").mkdir()
    done(train(launch, "../data", "../run", folder=copy / "inner"))
    config = json.loads((copy / "run" / "config.json").read_text())
    assert config["task"]["path"] == str(copy / "data")
    done(train(launch, "data", "run", folder=copy))


@pytest.mark.slow
def test_a_run_moves_with_the_data_in_it(launch, made, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(made / "run", run)
    shutil.copytree(made / "data", run / "data")
    done(train(launch, run / "data", run))
    assert json.loads((run / "config.json").read_text())["task"]["path"] == "data"
    moved = tmp_path / "elsewhere" / "run"
    moved.parent.mkdir()
    run.rename(moved)
    with contextlib.chdir(moved.parent):
        options = f"--options={made / 'options.jsonl'}"
        done(launch("evaluate", "--workdir=run", folder=moved.parent))
        done(launch("predict", "--workdir=run", options, folder=moved.parent))
        done(train(launch, "run/data", "run", folder=moved.parent))


@pytest.fixture
def policy(policy_path, tmp_path):
    """A copy of a run of a policy, its data and its language model."""
    for name in ("run", "choices", "language"):
        shutil.copytree(policy_path.folder / name, tmp_path / name)
    config = tmp_path / "run" / "config.json"
    content = json.loads(config.read_text())
    content["task"]["path"] = str(tmp_path / "choices")
    content["language_model"]["path"] = str(tmp_path / "language")
    config.write_text(json.dumps(content))
    files.write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": "assess"}])
    files.write_jsonl(tmp_path / "ann.jsonl", ANN)
    return tmp_path


ANN = [
    {
        "prompt": "assess",
        "chosen": "it remains great .",
        "rejected": "it looks totally great .",
    }
]


def prompts(folder):
    return f"--prompts={folder / 'prompts.jsonl'}"


def resume_policy(launch, folder, **fields):
    line = policies.flags(folder, **{"optimizer.learning_rate": 0.1, **fields})
    return launch("train", *line, f"--workdir={folder / 'run'}")


@pytest.mark.slow
@pytest.mark.parametrize("command", ["resume", "evaluate", "steer"])
def test_a_policy_is_tied_to_its_choices(launch, policy, command, quick_compile):
    path = policy / "choices"
    changed = with_other_rows(dataset.load(path, need_features=False))
    dataset.write(path, changed, overwrite=True)
    before = digests.of_files(policy)
    run = {
        "resume": lambda: resume_policy(launch, policy),
        "evaluate": lambda: evaluate(launch, policy),
        "steer": lambda: steer(launch, policy, prompts(policy)),
    }
    refused(run[command](), path, "choices")
    assert digests.of_files(policy) == before


@pytest.mark.slow
def test_a_policy_does_not_depend_on_vectors(policy):
    """The features of its options are computed by its language model."""
    path = policy / "choices"
    data = dataset.load(path, need_features=False)
    vectors = np.ones((len(data.texts), 2), np.float32)
    dataset.write_features(path, vectors, Embedding("bert"))
    assert Steerer.load(policy / "run").origin["choices"]


@pytest.mark.slow
def test_a_language_model_that_moved(launch, policy, quick_compile):
    moved = policy / "moved"
    (policy / "language").rename(moved)
    (policy / "choices").rename(policy / "data")
    found = [f"--model={moved}", f"--data={policy / 'data'}"]
    refused(steer(launch, policy, prompts(policy)), policy / "language", "--model")
    done(steer(launch, policy, f"--save_person={policy / 'ann.json'}", *found))
    shutil.copytree(moved, policy / "other")
    (policy / "other" / "generation_config.json").write_text("{}")
    refused(
        steer(launch, policy, prompts(policy), f"--model={policy / 'other'}"), "other"
    )
    paths = {"language_model.path": moved, "task.path": policy / "data"}
    done(resume_policy(launch, policy, **paths))
    assert Steerer.load(policy / "run").language.folder == str(moved)


@pytest.mark.slow
def test_a_stored_person(launch, policy, quick_compile):
    """z is used by the training it is of, and inferred again after another one."""
    ann, again = policy / "ann.json", policy / "again.json"
    context = f"--context={policy / 'ann.jsonl'}"
    done(steer(launch, policy, context, f"--save_person={ann}"))
    person = Person.load(ann)
    assert person.choices == tuple(
        (r["prompt"], r["chosen"], r["rejected"]) for r in ANN
    )
    # Another z shows whether it is used.
    marked = dataclasses.replace(person, z=person.z + 1)
    marked.save(ann)
    done(steer(launch, policy, f"--person={ann}", f"--save_person={again}"))
    np.testing.assert_allclose(Person.load(again).z, marked.z, rtol=1e-6)
    dataclasses.replace(marked, checkpoint="f" * 64).save(ann)
    again.unlink()
    done(steer(launch, policy, f"--person={ann}", f"--save_person={again}"))
    np.testing.assert_allclose(Person.load(again).z, person.z, rtol=1e-5)
    assert Person.load(again).checkpoint == person.checkpoint


@pytest.mark.slow
@pytest.mark.parametrize("text", ["", "[]", '{"z": [1], "choices": []}'])
def test_a_file_that_is_no_person(launch, policy, text):
    (policy / "ann.json").write_text(text)
    refused(
        steer(launch, policy, prompts(policy), f"--person={policy / 'ann.json'}"),
        "ann.json",
    )


@pytest.mark.slow
def test_an_export_names_its_training(launch, policy, quick_compile):
    out = policy / "mine"
    done(steer(launch, policy, f"--export={out}"))
    found = json.loads((out / "fsa.json").read_text())
    recorded = json.loads((policy / "run" / "data.json").read_text())
    assert found["choices"] == recorded["choices"]
    assert len(found["checkpoint"]) == 64
    assert len(found["z"]) == policies.REWARD["latent_dim"]
