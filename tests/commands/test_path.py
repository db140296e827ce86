"""All commands for reward models, from a tiny table of real texts to a ranking.

Two kinds of people choose between sentences about quiet and about lively places.
"""

import csv
import functools
import json
import pathlib
import random
import shutil
import subprocess
import sys

import numpy as np
import pytest

from fsa.data import dataset
from fsa.evaluation import figures
from fsa.recipes.evaluate import evaluate
from fsa.training.monitor.metrics import read_metrics

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
QUIET = (
    "A cabin by the lake where nobody calls.",
    "The forest path smells of pine after the rain.",
    "We watched the lake until the stars came out.",
    "Mornings in the meadow, with tea and a book.",
    "An empty beach and the sound of slow waves.",
    "The old garden behind the church is always still.",
    "Snow covered the valley and everything was silent.",
    "He walks along the river before anyone wakes.",
    "The monastery keeps its doors closed at noon.",
    "A night in the desert under a sky full of stars.",
)
LIVELY = (
    "The market is loud and full of music.",
    "We danced in the street until the police came.",
    "Every bar on the square was open past midnight.",
    "The stadium roared when the band walked on.",
    "Neon signs, crowded trains and food at every corner.",
    "The carnival fills the city with drums for a week.",
    "Friends squeezed around one table, all talking at once.",
    "The subway at rush hour has a rhythm of its own.",
    "A rooftop party above the traffic of the city.",
    "The comedy club was packed and the jokes were fast.",
)
# Six train, three validate, three are tested on; of both kinds in every split.
SPLITS = {"train": 6, "valid": 3, "test": 3}
NUM_CHOICES, FEATURES = 12, 4
CONTEXT = (0, 1, 3)
# Enough to learn what one choice tells here: everything.
FIELDS = {
    "task.max_context": 3,
    "task.num_targets": 8,
    "model.hidden": 8,
    "model.latent_dim": 2,
    "objective.num_samples": 2,
    "optimizer.learning_rate": 0.02,
    "optimizer.warmup_steps": 5,
    "train.steps": 120,
    "train.batch_size": 8,
    "train.steps_per_call": 20,
    "train.validate_every": 60,
    "eval.num_context": CONTEXT,
    "eval.num_targets": 8,
    "eval.episodes_per_user": 4,
    "eval.valid_episodes_per_user": 4,
    "eval.num_samples": 4,
    "eval.num_resamples": 20,
}
SUMMARY = {
    "users",
    "accuracy",
    "accuracy_ci",
    "gain",
    "gain_ci",
    "nll",
    "nll_ci",
    "ece",
    "ece_if_calibrated",
    "ceiling_accuracy",
    "ceiling_nll",
}


def flags(data, model="np-btl", **fields):
    """Returns the flags of a run of experiments/choices.py on a dataset."""
    fields = {**FIELDS, **fields, "task.path": str(data)}
    if model == "btl":
        del fields["model.latent_dim"]
    return [
        f"--config=experiments/choices.py:{model}",
        *(f"--config.{name}={value}" for name, value in fields.items()),
    ]


def rows():
    """The choices of twelve people, each pair one of each kind."""
    rng = random.Random(0)
    pairs = [(quiet, lively) for quiet in QUIET for lively in LIVELY]
    for split, count in SPLITS.items():
        for number in range(count):
            taste = ("quiet", "lively")[number % 2]
            for pair in rng.sample(pairs, NUM_CHOICES):
                chosen, rejected = pair if taste == "quiet" else reversed(pair)
                yield {
                    "user": f"{split}-{number}",
                    "prompt": "Where would you rather be?",
                    "chosen": chosen,
                    "rejected": rejected,
                    "chosen_id": chosen[:12],
                    "rejected_id": rejected[:12],
                    "split": split,
                    "group": taste,
                }


def vector(text):
    """Length, letters a word, and how full of action the words are."""
    words = text.rstrip(".").lower().split()
    lively = sum(text in LIVELY for _ in words)
    return [len(text) / 10, len(text) / len(words), len(words), lively]


def write_jsonl(path, entries):
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return path


def write_choices(folder):
    """The choices in two tables of different formats."""
    first, second = folder / "a.jsonl", folder / "b.csv"
    everything = list(rows())
    write_jsonl(first, everything[:70])
    with second.open("w", newline="") as file:
        writer = csv.DictWriter(file, everything[0].keys())
        writer.writeheader()
        writer.writerows(everything[70:])
    return f"--choices={first},{second}"


def done(finished):
    assert finished.code == 0, finished.err
    return finished


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("path")


@pytest.fixture(scope="module")
def data(folder, launch):
    """A dataset with ready-made vectors."""
    texts = [*QUIET, *LIVELY]
    np.save(folder / "letters.npy", np.array([vector(t) for t in texts], np.float32))
    ids = write_jsonl(folder / "ids.jsonl", [{"id": text[:12]} for text in texts])
    finished = launch(
        "prepare",
        f"--out={folder / 'data'}",
        write_choices(folder),
        f"--vectors={folder / 'letters.npy'}",
        f"--vector_ids={ids}",
    )
    assert "with features of letters" in done(finished).out
    return folder / "data"


@pytest.fixture(scope="module")
def trained(folder, data, launch, quick_compile):
    """Trains and evaluates a model: `trained(name)` is a run, and what was printed.

    It is not to be changed.
    """

    @functools.cache
    def run(model):
        workdir = folder / model
        shown = done(launch("train", *flags(data, model), f"--workdir={workdir}"))
        return workdir, shown, done(launch("evaluate", f"--workdir={workdir}"))

    return run


@pytest.fixture(scope="module")
def run(trained):
    return trained("np-btl")[0]


def test_prepared(data):
    found = dataset.load(data)
    assert sorted(found.texts) == sorted([*QUIET, *LIVELY])
    assert {split: len(table.names) for split, table in found.users.items()} == SPLITS
    for text, features in zip(found.texts, found.features, strict=True):
        np.testing.assert_allclose(features, vector(text), rtol=1e-6)


def test_trained(trained, data):
    run, shown, _ = trained("np-btl")
    assert f"Trained into {run}, best at step " in shown.out
    assert "120/120" in shown.err
    config = json.loads((run / "config.json").read_text())
    assert config["task"]["path"] == str(data)
    assert config["eval"]["num_context"] == list(CONTEXT)
    assert json.loads((run / "run.json").read_text())["seed"] == 0
    assert [entry["step"] for entry in read_metrics(run, "valid")] == [60, 120]
    assert {"score", "nll_at_0", "accuracy_at_3"} <= read_metrics(run, "valid")[
        0
    ].keys()
    assert list((run / "tensorboard").iterdir())


def test_the_same_command_again_does_nothing(trained, data, launch):
    run = trained("np-btl")[0]
    before = (run / "metrics.jsonl").read_text()
    again = done(launch("train", *flags(data), f"--workdir={run}"))
    assert "Resuming from step 120" in again.err
    assert (run / "metrics.jsonl").read_text() == before


@pytest.mark.parametrize(
    "model", ["np-btl", pytest.param("btl", marks=pytest.mark.slow)]
)
def test_evaluated(trained, model):
    run, _, shown = trained(model)
    found = json.loads((run / "evaluation.json").read_text())
    own = {"n_context", "context", "groups", "diagnostics"}
    assert found.keys() == own | SUMMARY and found["context"] == "choices"
    assert found["n_context"] == list(CONTEXT)
    assert found["users"] == 3
    assert found["groups"].keys() == {"quiet", "lively"}
    for part in (found, *found["groups"].values()):
        assert SUMMARY <= part.keys()
        assert part["ceiling_accuracy"] is part["ceiling_nll"] is None
        for name in ("accuracy", "nll", "ece", "ece_if_calibrated"):
            assert len(part[name]) == len(CONTEXT)
        assert np.all((np.array(part["accuracy"]) >= 0) & (np.array(part["ece"]) >= 0))
    for (low, high), accuracy in zip(
        found["accuracy_ci"], found["accuracy"], strict=True
    ):
        assert 0 <= low <= accuracy <= high <= 1
    latent_dim = 2 if model == "np-btl" else 0
    assert found["diagnostics"]["latent_dim"] == latent_dim
    assert np.shape(found["diagnostics"]["kl_per_dimension"]) == (3, latent_dim)
    assert found["diagnostics"]["flips_are_types"] is False
    assert found["diagnostics"]["flip_rate"][0] is None
    # Of one user, which is no interval; JSON has no NaN.
    assert found["groups"]["lively"]["accuracy_ci"] == [[None, None]] * len(CONTEXT)
    rows = [line.split() for line in shown.out.splitlines() if line]
    accuracies = [f"{100 * value:.1f}" for value in found["accuracy"]]
    assert all(
        [str(n), a] in [row[:2] for row in rows]
        for n, a in zip(CONTEXT, accuracies, strict=True)
    )
    assert ["quiet", "2"] in [row[:2] for row in rows]
    assert max(map(len, shown.out.partition("Written:")[0].splitlines())) <= 100
    for name in ("accuracy.png", "reliability.png"):
        assert (run / name).read_bytes().startswith(b"\x89PNG")


def test_a_figure_that_fails_loses_no_scores(trained, tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("no figure")

    run = tmp_path / "run"
    shutil.copytree(trained("np-btl")[0], run, copy_function=shutil.copy2)
    was = (run / "evaluation.json").read_text()
    (run / "evaluation.json").unlink()
    monkeypatch.setattr(figures, "write_all", fail)
    with pytest.raises(RuntimeError, match="no figure"):
        evaluate(run)
    assert (run / "evaluation.json").read_text() == was


@pytest.mark.slow
def test_the_few_shot_model_learns_what_the_other_cannot(trained):
    few_shot, plain = (
        json.loads((trained(model)[0] / "evaluation.json").read_text())["accuracy"]
        for model in ("np-btl", "btl")
    )
    assert few_shot[2] > 0.9
    assert few_shot[0] < 0.8
    # Two of three test people are of one kind.
    assert max(plain) < 0.8


@pytest.mark.slow
def test_compared(trained, folder, launch):
    runs = [str(trained(model)[0]) for model in ("np-btl", "btl")]
    out = folder / "both.png"
    finished = done(launch("evaluate", "--compare", *runs, f"--out={out}"))
    assert out.read_bytes().startswith(b"\x89PNG")
    names = [line.split()[0] for line in finished.out.splitlines() if line.strip()]
    assert {"np-btl", "btl"} <= set(names)


def options(folder):
    texts = [*LIVELY[:2], *QUIET[:3]]
    return write_jsonl(folder / "options.jsonl", [{"option": text} for text in texts])


@pytest.mark.parametrize("taste", ["quiet", "lively"])
def test_predicted(run, tmp_path, launch, taste):
    """A new person's three choices, by text and by id, decide the order."""
    pairs = [(QUIET[i], LIVELY[i]) for i in (5, 6, 7)]
    wanted, unwanted = (0, 1) if taste == "quiet" else (1, 0)
    context = tmp_path / "context.csv"
    with context.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["chosen", "rejected"])
        writer.writerows([[p[wanted], p[unwanted][:12]] for p in pairs])
    out = tmp_path / "ranking.jsonl"
    finished = launch(
        "predict",
        f"--workdir={run}",
        f"--context={context}",
        f"--options={options(tmp_path)}",
        f"--out={out}",
    )
    assert "After 3 choices" in done(finished).out
    ranking = [json.loads(line) for line in out.read_text().splitlines()]
    assert [entry["rank"] for entry in ranking] == [1, 2, 3, 4, 5]
    first = {"quiet": set(QUIET[:3]), "lively": set(LIVELY[:2])}[taste]
    assert {entry["option"] for entry in ranking[: len(first)]} == first
    probabilities = [entry["probability"] for entry in ranking]
    assert probabilities == sorted(probabilities, reverse=True)
    # Of two options one is chosen, so over all pairs the mean is a half.
    assert np.mean(probabilities) == pytest.approx(0.5, abs=1e-5)
    assert all(0 <= entry["std"] <= 0.5 for entry in ranking)
    assert all(entry["option"][:60] in finished.out for entry in ranking)


def refused(finished):
    """The one line that says why; nothing else is on the screen but what was found."""
    assert finished.code == 2
    assert "Traceback" not in finished.err
    *others, last = finished.err.splitlines()
    assert last.startswith("error: ")
    assert not [line for line in others if "the step is not used" not in line]
    return last.removeprefix("error: ")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--config.model.hiden=3"], "--config.model.hiden"),
        (["--config.model.hidden=0"], "config.model.hidden=0"),
        (["--config.eval.num_context=(0,12)"], "config.eval.num_context"),
        (["--config.task.min_choices=13"], "config.task.min_choices"),
        (["--config.task.path={folder}/none"], "{folder}/none"),
        (["--workdir={folder}/a.jsonl/run"], "--workdir={folder}/a.jsonl/run"),
        (
            ["--workdir={folder}/np-btl", "--config.seed=5", "--config.train.steps=60"],
            "seed: 0 -> 5; train.steps: 120 -> 60",
        ),
        (["--profile_steps=5,3"], "--profile_steps=5,3"),
        (["stray"], "'stray'"),
    ],
)
def test_what_train_refuses(run, data, folder, launch, changes, message):
    """Before training starts."""
    fresh = folder / "fresh"
    changes = [change.format(folder=folder) for change in changes]
    arguments = [*flags(data), f"--workdir={fresh}", *changes]
    # A list that is given twice would be joined.
    last = {argument.partition("=")[0]: argument for argument in arguments}
    finished = launch("train", *last.values())
    assert message.format(folder=folder) in refused(finished)
    assert not (fresh / "checkpoints").exists()


@pytest.fixture
def broken(run, tmp_path):
    """A copy of a run whose every checkpoint has one bit flipped."""
    copy = shutil.copytree(run, tmp_path / "broken")
    for step in (copy / "checkpoints").iterdir():
        path = max(step.rglob("d/*"), key=lambda path: path.stat().st_size)
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 4
        path.write_bytes(content)
    return copy


def test_damaged_checkpoints(broken, tmp_path, launch):
    """Every step is named with what is wrong; nothing is scored with it."""
    (broken / "evaluation.json").unlink()
    for name, more in [
        ("evaluate", []),
        ("predict", [f"--options={options(tmp_path)}"]),
    ]:
        finished = launch(name, f"--workdir={broken}", *more)
        why = refused(finished)
        assert finished.err.count("\n") == 1
        steps = list((broken / "checkpoints").iterdir())
        assert len(steps) == why.count("damaged (") == 2
        assert all(str(step) in why for step in steps)
    assert not (broken / "evaluation.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workdir={folder}/none"], "{folder}/none"),
        ([], "--workdir"),
        (["--compare"], "--compare"),
        (
            ["--compare", "{folder}/np-btl", "{folder}/none"],
            "{folder}/none/evaluation.json",
        ),
        (["--workdir={folder}/np-btl", "--model={folder}/data"], "--model"),
        (["--workdir={folder}/np-btl", "--data={folder}/none"], "{folder}/none"),
        (["--workdir={folder}/np-btl", "--method=rerank"], "--method"),
    ],
)
def test_what_evaluate_refuses(run, folder, launch, arguments, message):
    finished = launch("evaluate", *(a.format(folder=folder) for a in arguments))
    assert message.format(folder=folder) in refused(finished)
    assert not (folder / "none").exists()


@pytest.mark.parametrize(
    ("context", "message"),
    [
        (
            [
                {"chosen": QUIET[0], "rejected": QUIET[0]},
                {"chosen": QUIET[0], "rejected": "A place that no one has heard of."},
            ],
            "{path}, row 2: rejected: 'A place that no one has heard of.'",
        ),
        ([{"chosen": QUIET[0]}], "{path}, row 1: no column 'rejected'"),
        (
            [{"chosen": QUIET[0], "rejected": [1.0, 2.0]}],
            "{path}, row 1: rejected",
        ),
        (
            [{"chosen": {"text": QUIET[0]}, "rejected": QUIET[1]}],
            "{path}, row 1: chosen",
        ),
        (
            [{"chosen": QUIET[0], "rejected": QUIET[1], "prompt": "Another?"}],
            "{path}, row 1: chosen",
        ),
        (None, "{path}"),
    ],
)
def test_what_predict_refuses(run, tmp_path, launch, context, message):
    path = tmp_path / "context.jsonl"
    if context:
        write_jsonl(path, context)
    finished = launch(
        "predict",
        f"--workdir={run}",
        f"--context={path}",
        f"--options={options(tmp_path)}",
    )
    assert refused(finished).startswith(message.format(path=path))


@pytest.mark.parametrize(
    "option",
    [{"a": 1}, [[1], [2, 3]], [1.0] * 5000, [1e39, 0, 0, 0], [0, 0, 0, None], True],
)
def test_options_that_predict_refuses(run, tmp_path, launch, option):
    """By the file and the row, in a line that fits a screen."""
    rows = [{"option": QUIET[0]}, {"option": QUIET[1]}, {"option": option}]
    path = write_jsonl(tmp_path / "options.jsonl", rows)
    out = tmp_path / "ranking.jsonl"
    finished = launch(
        "predict", f"--workdir={run}", f"--options={path}", f"--out={out}"
    )
    line = refused(finished)
    assert line.startswith(f"{path}, row 3: option: ")
    assert len(line) < len(str(path)) + 200
    assert not out.exists()


def test_equal_choices_are_left_out_and_prompts_are_used(run, tmp_path, launch):
    """What is left out of a context changes nothing but what is said."""
    prompt = "Where would you rather be?"
    good = {"prompt": prompt, "chosen": QUIET[5], "rejected": LIVELY[6]}
    equal = {**good, "rejected": QUIET[5]}
    rankings = []
    for name, context in [("good", [good]), ("more", [equal, good, equal])]:
        path = write_jsonl(tmp_path / f"{name}.jsonl", context)
        finished = launch(
            "predict",
            f"--workdir={run}",
            f"--context={path}",
            f"--options={options(tmp_path)}",
        )
        rankings.append(done(finished).out.partition("After 1 choice"))
    assert rankings[0][2] == rankings[1][2] and rankings[0][1]
    assert not rankings[0][0]
    assert str(path) in rankings[1][0] and "2 of 3" in rankings[1][0]


def test_predict_without_a_run(tmp_path, launch):
    missing = tmp_path / "none"
    finished = launch(
        "predict", f"--workdir={missing}", f"--options={options(tmp_path)}"
    )
    assert str(missing) in refused(finished)
    assert not missing.exists()


@pytest.fixture
def embedder(write_embedder):
    words = {w for text in (*QUIET, *LIVELY) for w in text.lower().rstrip(".").split()}
    # As many features as the ready-made vectors have, so that programs are shared.
    sizes = dict(hidden_size=FEATURES, intermediate_size=8, max_position_embeddings=32)
    return write_embedder([".", *sorted(words)], **sizes)


@pytest.mark.slow
def test_the_path_through_an_embedder(embedder, tmp_path, launch, quick_compile):
    """Without vectors at hand, and with a text at the end that nobody has seen."""
    data, run = tmp_path / "data", tmp_path / "run"
    done(launch("prepare", f"--out={data}", write_choices(tmp_path)))
    train = ["train", *flags(data), f"--workdir={run}"]
    assert str(data) in refused(launch(*train))
    shown = done(launch("embed", f"--data={data}", f"--model={embedder}"))
    assert "Embedded 20 items" in shown.out
    done(launch(*train))
    done(launch("evaluate", f"--workdir={run}"))
    found = json.loads((run / "evaluation.json").read_text())
    assert found["n_context"] == list(CONTEXT)
    unseen = "A cabin in the desert where the drums roared."
    path = write_jsonl(
        tmp_path / "new.jsonl", [{"option": unseen}, {"option": QUIET[0]}]
    )
    out = tmp_path / "ranking.jsonl"
    shown = launch(
        "predict",
        f"--workdir={run}",
        f"--options={path}",
        f"--embedder={embedder}",
        f"--out={out}",
    )
    assert unseen in done(shown).out
    ranking = [json.loads(line) for line in out.read_text().splitlines()]
    assert {entry["option"] for entry in ranking} == {unseen, QUIET[0]}

    # Each option is compared with those that answer the same prompt alone.
    rows = [
        {"prompt": prompt, "option": option}
        for prompt in ("Where to?", "And then?")
        for option in (QUIET[0], LIVELY[0])
    ]
    write_jsonl(path, rows)
    predict = [f"--workdir={run}", f"--options={path}", f"--embedder={embedder}"]
    out.unlink()
    done(launch("predict", *predict, f"--out={out}"))
    ranking = [json.loads(line) for line in out.read_text().splitlines()]
    for prompt in ("Where to?", "And then?"):
        wins = [r["probability"] for r in ranking if r["prompt"] == prompt]
        assert len(wins) == 2 and sum(wins) == pytest.approx(1, abs=1e-5)
    write_jsonl(path, rows[:3])
    line = refused(launch("predict", *predict))
    assert line.startswith(f"{path}, row 3: option: ")


@pytest.mark.slow
def test_in_a_process_of_its_own(folder):
    """What the other tests leave out: the exit code, and stderr with all libraries."""
    arguments = ["-m", "fsa", "evaluate", f"--workdir={folder / 'none'}"]
    finished = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, cwd=REPOSITORY
    )
    assert finished.returncode == 2
    assert finished.stderr.startswith(f"error: {folder / 'none'}: ")
    assert finished.stderr.count("\n") == 1
