"""All commands for policies, from a language model to the texts of a policy."""

import json
import re
import shutil

import numpy as np
import policies
import pytest

import fsa
from fsa.data import dataset, files
from fsa.data.sources import corpus, sampled
from fsa.data.sources.attributes import ATTRIBUTES
from fsa.errors import InputError
from fsa.inference.steerer import Steerer
from fsa.language.language_model import LanguageModel
from fsa.training import run_directory

pytestmark = pytest.mark.usefixtures("quick_compile")

GROUPS = {"formal", "casual"}
PROMPTS = ["review the novel :", "assess the park :"]
ANSWERS = [a for _, a in corpus.texts(1, 60) if len(a.split()) < 10]
ANN = [("describe the farm :", ANSWERS[0], ANSWERS[1]), ("judge", *ANSWERS[2:4])]
BOB = [(p, rejected, chosen) for p, chosen, rejected in ANN]
OPTIONS = dict(max_new_tokens=8, seed=4)


def done(finished):
    assert finished.code == 0, finished.err
    return finished


def table(path, rows):
    files.write_jsonl(path, rows)
    return path


def choices(path, rows):
    names = ("prompt", "chosen", "rejected")
    return table(path, [dict(zip(names, row, strict=True)) for row in rows])


def prompts(path, texts=PROMPTS):
    return table(path, [{"prompt": text} for text in texts])


def test_sampled(policy_path):
    """Six answers to each prompt, in its split, that depend on the seed alone."""
    samples, report = sampled.read(str(policy_path.samples))
    asked = [row for _, row in files.read_rows(policy_path.prompts)]
    assert list(samples.prompts) == [row["prompt"] for row in asked]
    assert list(samples.splits) == [row["split"] for row in asked]
    assert report.rows == 6 * len(asked) and {*map(len, samples.answers)} == {6}
    model = LanguageModel.load(str(policy_path.folder / "language"))
    repeated = [prompt for prompt in samples.prompts for _ in range(6)]
    written = model.write(repeated, max_new_tokens=9)
    assert [a for answers in samples.answers for a in answers] == written.texts
    assert f"{6 * len(asked)} answers to {len(asked)} prompts" in (
        policy_path.shown["sample"].out
    )


def test_prepared(policy_path):
    data = dataset.load(policy_path.data, need_features=False)
    assert set(data.groups) == GROUPS
    counts = {split: len(users.names) for split, users in data.users.items()}
    assert counts == {"train": 8, "valid": 4, "test": 6}
    for users in data.users.values():
        for group, *sides in zip(
            users.group, users.chosen, users.rejected, strict=True
        ):
            chosen, rejected = (
                [corpus.formality(data.texts[i]) for i in side if i >= 0]
                for side in sides
            )
            sign = 1 if data.groups[group] == "formal" else -1
            assert (sign * np.subtract(chosen, rejected) >= 0.5 - 1e-9).all()
    assert "next: fsa train" in policy_path.shown["prepare"].out


def test_users_on_a_continuum(policy_path, tmp_path, launch):
    """Several attributes: nobody is of two opposite groups."""
    line = [
        f"--samples={policy_path.samples}",
        "--attributes=corpus_formality,corpus_sentiment",
        *(f"--{name}={value}" for name, value in policies.SAMPLED_USERS.items()),
        f"--out={tmp_path / 'data'}",
    ]
    done(launch("prepare", *line, "--slope=4"))
    data = dataset.load(tmp_path / "data", need_features=False)
    assert len(data.users["test"].names) == 3
    assert set(data.groups) <= {"less", "more"}


def test_users_who_each_care_about_one_attribute(policy_path, tmp_path, launch):
    """Two opposite groups an attribute, whose choices differ in theirs."""
    names = "corpus_formality", "corpus_sentiment"
    line = [
        f"--samples={policy_path.samples}",
        f"--attributes={','.join(names)}",
        *(f"--{name}={value}" for name, value in policies.SAMPLED_USERS.items()),
        f"--out={tmp_path / 'data'}",
    ]
    done(launch("prepare", *line, "--axes"))
    data = dataset.load(tmp_path / "data", need_features=False)
    sides = {
        side: (ATTRIBUTES[name].measure, sign)
        for name in names
        for side, sign in zip(ATTRIBUTES[name].sides, (1, -1), strict=True)
    }
    assert set(data.groups) == set(sides)
    for users in data.users.values():
        assert {data.groups[g] for g in users.group} == set(sides)
        for group, *both in zip(users.group, users.chosen, users.rejected, strict=True):
            measure, sign = sides[data.groups[group]]
            more, less = ([measure(data.texts[i]) for i in x if i >= 0] for x in both)
            assert (sign * np.subtract(more, less) >= 0.5 - 1e-9).all()


def test_trained(policy_path):
    shown, run = policy_path.shown["train"], policy_path.run
    for group in GROUPS:
        assert f"Linear probe on embeddings, {group}: " in shown.out
    assert f"Trained into {run}, best at step " in shown.out
    config = json.loads((run / "config.json").read_text())
    digest = config["language_model"]["digest"]
    assert len(digest) == 64 and int(digest, 16)
    # The language model's scores of the responses are kept beside the dataset.
    assert len(list(policy_path.data.glob("responses-*"))) == 1


@pytest.fixture(scope="module")
def evaluated(policy_path, tmp_path_factory, launch, quick_compile):
    """(copy of the run, what was printed, evaluation.json)."""
    run = tmp_path_factory.mktemp("evaluated") / "run"
    shutil.copytree(policy_path.run, run, copy_function=shutil.copy2)
    shown = done(launch("evaluate", f"--workdir={run}"))
    return run, shown, json.loads((run / "evaluation.json").read_text())


def test_evaluation(evaluated):
    _, _, found = evaluated
    sizes = list(policies.CONTEXT)
    assert found["n_context"] == sizes
    assert set(found["groups"]) == set(found["generated"]) == GROUPS
    for group in found["groups"].values():
        assert group["users"] == 3
        for name in ("accuracy", "nll"):
            assert len(group[name]) == len(group[f"{name}_ci"]) == len(sizes)
        assert all(0 <= value <= 1 for value in group["accuracy"])
    for measures in found["generated"].values():
        for name in ("share", "validity", "perplexity", "tokens", "kl"):
            assert len(measures[name]) == len(sizes)
        assert all(p > 1 for p in measures["perplexity"])
        assert all(0 <= value <= 1 for value in measures["share"])
        assert all(t <= policies.MAX_RESPONSE for t in measures["tokens"])
    measures = set(next(iter(found["generated"].values())))
    assert set(found["reference"]) == measures
    assert all(len(values) == 1 for values in found["reference"].values())
    assert found["attribute"] == "corpus_formality"
    line = found["partway"]
    assert line["points"] == [0.5] and set(line["groups"]) == GROUPS
    assert set(found["unsteered"]) == set(found["alike"]) == GROUPS
    line = found["interpolation"]
    assert line["points"] == [0, 0.25, 0.5, 0.75, 1] and set(line["groups"]) == GROUPS
    assert all(len(group["share"]) == 5 for group in line["groups"].values())
    assert set(found["probe"]) == GROUPS
    assert all(0 <= value <= 1 for value in found["probe"].values())
    assert found["diagnostics"]["latent_dim"] == policies.REWARD["latent_dim"]


@pytest.mark.slow
def test_texts_are_written_where_no_attribute_is_known(evaluated, launch, tmp_path):
    """As for choices of one's own; they are measured by what any text has."""
    run = tmp_path / "run"
    shutil.copytree(evaluated[0], run, copy_function=shutil.copy2)
    for name in ("samples.md", "steering.png", "evaluation.json"):
        (run / name).unlink()
    config = json.loads((run / "config.json").read_text())
    config["eval"]["attribute"] = ""
    (run / "config.json").write_text(json.dumps(config))
    done(launch("evaluate", f"--workdir={run}"))
    found = json.loads((run / "evaluation.json").read_text())
    for measures in found["generated"].values():
        assert "share" not in measures
        for name in ("kl", "tokens", "words", "validity"):
            assert len(measures[name]) == len(policies.CONTEXT)
    assert "interpolation" not in found
    page = (run / "samples.md").read_text()
    assert all(f"n = {n}" in page for n in policies.CONTEXT)
    assert (run / "steering.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_what_was_measured_is_kept_when_later_texts_fail(
    evaluated, launch, tmp_path, monkeypatch
):
    def fail(*_, **options):
        raise InputError("no more texts")

    monkeypatch.setattr("fsa.evaluation.methods.Between.__call__", fail)
    run = tmp_path / "run"
    shutil.copytree(evaluated[0], run, copy_function=shutil.copy2)
    for name in ("samples.md", "steering.png", "evaluation.json"):
        (run / name).unlink()
    assert "no more texts" in launch("evaluate", f"--workdir={run}").err
    found = json.loads((run / "evaluation.json").read_text())
    for name in ("generated", "alike", "partway"):
        assert found[name] == evaluated[2][name]
    assert "interpolation" not in found
    assert (run / "samples.md").exists() and (run / "steering.png").exists()


def test_a_policy_is_compared_as_any_run(evaluated, launch, tmp_path):
    run, _, found = evaluated
    out = tmp_path / "compare.png"
    shown = done(launch("evaluate", "--compare", f"--out={out}", run))
    assert f"{100 * found['accuracy'][-1]:.1f}" in shown.out and out.exists()


def test_evaluation_is_shown(evaluated):
    run, shown, found = evaluated
    for name in ("steering.png", "samples.md", "accuracy.png", "latents.png"):
        assert (run / name).stat().st_size > 100
        assert str(run / name) in shown.out
    share = 100 * found["generated"]["formal"]["share"][-1]
    line = next(x for x in shown.out.splitlines() if x.startswith("formal: wanted, %"))
    assert line.split()[-1] == f"{share:.1f}"
    written = (run / "samples.md").read_text()
    assert "| prompt | language model | n = 0 | n = 2 |" in written
    for group in GROUPS:
        assert f"## {group}" in written
        shown_texts = shown.out.partition(f"A user of group {group}:")[2]
        assert shown_texts.splitlines()[1].startswith("> ")
        assert [x.split("  ")[1] for x in shown_texts.splitlines()[2:5]] == [
            "language model",
            "none known",
            "2 known",
        ]
    assert shown.out.rstrip().endswith("docs/policies.md")


@pytest.fixture(scope="module")
def steer(policy_path, launch, tmp_path_factory, quick_compile):
    """Runs `fsa steer` on the run; returns (what ended, rows that were saved)."""
    folder = tmp_path_factory.mktemp("steer")
    asked = prompts(folder / "prompts.jsonl")

    def run(*arguments, **options):
        out = folder / "new" / f"{len(list(folder.rglob('*')))}.jsonl"
        finished = launch(
            "steer",
            f"--workdir={policy_path.run}",
            f"--prompts={asked}",
            f"--out={out}",
            *(f"--{k}={v}" for k, v in {**OPTIONS, **options}.items()),
            *arguments,
        )
        rows = [row for _, row in files.read_rows(done(finished).out and out)]
        return finished, rows

    return run


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    """Tables of two people, one the opposite of the other."""
    folder = tmp_path_factory.mktemp("people")
    return choices(folder / "ann.jsonl", ANN), choices(folder / "bob.jsonl", BOB)


@pytest.fixture(scope="module")
def steerer(policy_path):
    return Steerer.load(policy_path.run)


def column(rows, name):
    return [row["texts"][name] for row in rows]


def written(steerer, z, **options):
    latents = None if z is None else np.repeat(z[None], len(PROMPTS), axis=0)
    return steerer.write(PROMPTS, latents, **{**OPTIONS, **options}).texts


def test_steered(steer, people, steerer):
    """The choices are about prompts that the run never saw; that is no matter."""
    finished, rows = steer(f"--context={people[0]}")
    assert [row["prompt"] for row in rows] == PROMPTS
    assert all(set(row["texts"]) == {"language model", "n = 2"} for row in rows)
    assert column(rows, "language model") == written(steerer, None)
    assert column(rows, "n = 2") == written(steerer, steerer.latent(ANN))
    assert column(rows, "n = 2") != column(rows, "language model")
    for row in rows:
        assert f"> {row['prompt']}" in finished.out
        for text in row["texts"].values():
            assert text in finished.out


@pytest.mark.slow
def test_choices_that_say_nothing_are_left_out(steer, steerer, tmp_path):
    same = [("judge", ANSWERS[0], f"{ANSWERS[0]} "), ("judge", *[ANSWERS[1]] * 2)]
    path = choices(tmp_path / "some.jsonl", [same[0], *ANN, same[1]])
    finished, rows = steer(f"--context={path}")
    assert column(rows, "n = 2") == written(steerer, steerer.latent(ANN))
    assert "left out 2 choices" in finished.err


@pytest.mark.slow
def test_nobody_in_particular(steer, steerer):
    _, rows = steer()
    assert column(rows, "n = 0") == written(steerer, steerer.latent([]))


@pytest.mark.slow
def test_between_two_people(steer, people, steerer):
    _, rows = steer(f"--interpolate={people[0]},{people[1]}", points=3)
    assert set(rows[0]["texts"]) == {"language model", "0.00", "0.50", "1.00"}
    ann, bob = steerer.latent(ANN), steerer.latent(BOB)
    for t, z in {"0.00": ann, "0.50": (ann + bob) / 2, "1.00": bob}.items():
        assert column(rows, t) == written(steerer, z)


@pytest.mark.slow
def test_exported(steer, people, steerer, tmp_path):
    folder = tmp_path / "mine"
    options = dict(temperature=0.0)
    finished, rows = steer(f"--context={people[0]}", f"--export={folder}", **options)
    assert f"Written: {folder}" in finished.out
    alone = LanguageModel.load(str(folder), separator=" ")
    assert alone.write(PROMPTS, **OPTIONS, **options).texts == column(rows, "n = 2")


@pytest.mark.slow
def test_fit_returns_the_steerer_of_a_run_that_has_ended(
    policy_path, steerer, tmp_path
):
    run = shutil.copytree(policy_path.run, tmp_path / "run")
    found = fsa.fit(run_directory.read_config(run), run)
    for choices in (ANN, BOB):
        np.testing.assert_array_equal(found.latent(choices), steerer.latent(choices))


@pytest.mark.slow
def test_plain_dpo_is_used_alike(policy_path, tmp_path, launch, quick_compile):
    """The same for everybody, so that it takes no choices, and exports."""
    run, folder = tmp_path / "run", tmp_path / "mine"
    short = dict.fromkeys(
        ("train.steps", "train.steps_per_call", "train.validate_every"), 1
    )
    line = policies.flags(policy_path.folder, "dpo", **short)
    done(launch("train", *line, f"--workdir={run}"))
    done(launch("steer", f"--workdir={run}", f"--export={folder}"))
    assert LanguageModel.load(str(folder)).write(PROMPTS, max_new_tokens=2).texts
    context = choices(tmp_path / "ann.jsonl", ANN)
    refused = launch(
        "steer", f"--workdir={run}", f"--context={context}", f"--export={folder}2"
    )
    fails(refused, "policy.latent")


@pytest.mark.slow
def test_a_policy_of_labelled_groups(policy_path, tmp_path, launch, quick_compile):
    """Each group's texts are those of its own latent, and its policy exports."""
    run, folder, out = (tmp_path / name for name in ("run", "formal", "out.jsonl"))
    line = policies.flags(
        policy_path.folder, "dpo-by-group", **{"optimizer.learning_rate": 0.1}
    )
    done(launch("train", *line, f"--workdir={run}"))
    asked = prompts(tmp_path / "prompts.jsonl")
    options = [f"--{name}={value}" for name, value in OPTIONS.items()]
    line = [f"--workdir={run}", f"--prompts={asked}", f"--out={out}", *options]
    done(launch("steer", *line, "--group=formal", f"--export={folder}"))
    rows = [row for _, row in files.read_rows(out)]
    by_group = Steerer.load(run)
    formal, casual = map(by_group.latent_of_group, ("formal", "casual"))
    assert column(rows, "formal") == written(by_group, formal)
    assert column(rows, "formal") != written(by_group, casual)
    alone = LanguageModel.load(str(folder), separator=" ")
    assert alone.write(PROMPTS, **OPTIONS).texts == column(rows, "formal")
    line.append("--overwrite")
    fails(launch("steer", *line, "--group=sad"), "'sad'")
    fails(launch("steer", *line), "casual, formal")
    fails(launch("steer", *line, "--group=formal", "--context=a.jsonl"), "--context")


def test_adapters(launch, policy_path, tmp_path):
    """The policy scales a map, so only the nearest adapter can be written."""
    line = "steer", f"--workdir={policy_path.run}", f"--adapter={tmp_path}/me"
    fails(launch(*line), "mlp/down/kernel has a scale")
    finished = launch(*line, "--adapter_rank=4")
    assert finished.code == 0, finished.err
    assert re.search(r"nearest of rank 4: up to \d+\.\d% left out", finished.out)
    config = json.loads((tmp_path / "me" / "adapter_config.json").read_text())
    assert config["target_modules"] == ["down_proj", "o_proj"]
    fails(launch("steer", line[1], "--export=a", "--adapter_rank=4"), "--adapter_rank")


def fails(finished, message):
    assert finished.code == 2, finished.out
    lines = [line for line in finished.err.splitlines() if "it/s" not in line]
    assert len(lines) == 1 and lines[0].startswith("error: "), finished.err
    assert message in lines[0]


SAMPLE = {
    "no model": (dict(model="nowhere"), "nowhere"),
    "no column": (dict(rows=[{"question": "a"}]), "row 1: no column 'prompt'"),
    "empty prompt": (dict(rows=[{"prompt": " "}]), "row 1: prompt"),
    "prompt twice": (dict(rows=[{"prompt": "a"}] * 2), "row 2"),
    "no such split": (
        dict(rows=[{"prompt": "a", "split": "dev"}]),
        "row 1: split 'dev'",
    ),
    "no rows": (dict(rows=[]), "prompts.jsonl"),
    "unknown word": (dict(rows=[{"prompt": "hello"}]), "prompt 0 ('hello'): "),
    "messages": (
        dict(rows=[{"prompt": [{"role": "user", "content": "assess"}]}]),
        "chat_template",
    ),
    "no place": (dict(out="texts.txt"), "--out=texts.txt"),
    "no probability": (dict(top_p=0), "--top_p=0"),
}


@pytest.mark.parametrize("what", SAMPLE)
def test_bad_input_of_sample(what, launch, language_folder, tmp_path):
    change, message = SAMPLE[what]
    rows = change.get("rows", [{"prompt": "assess"}])
    flags = {
        "model": language_folder,
        "prompts": table(tmp_path / "prompts.jsonl", rows),
        "out": tmp_path / "new" / "out.jsonl",
        **{k: v for k, v in change.items() if k != "rows"},
    }
    fails(launch("sample", *(f"--{k}={v}" for k, v in flags.items())), message)
    assert not list(tmp_path.rglob("out.jsonl"))


PREPARE = {
    "no attributes": (dict(attributes=""), "--attributes"),
    "unknown attribute": (dict(attributes="mud"), "mud"),
    "groups of one name": (dict(attributes="words,log_words", axes=True), "axes"),
    "too many choices": (
        dict(num_choices="train:5,valid:99,test:3"),
        "num_choices",
    ),
    "choices of a split missing": (
        dict(num_choices="train:5,valid:4"),
        "num_choices",
    ),
    "unknown split": (dict(users="dev:3"), "--users=dev:3"),
    "no number": (dict(users="train"), "--users=train"),
    "a negative number": (dict(users="train:-1"), "--users=train:-1"),
    "nobody": (dict(users="train:0"), "users"),
    "no file": (dict(samples="nowhere.jsonl"), "nowhere.jsonl"),
    "a model besides": (dict(gguf="a.gguf"), "--gguf"),
}


@pytest.mark.parametrize("what", PREPARE)
def test_bad_input_of_prepare(what, launch, policy_path, tmp_path):
    change, message = PREPARE[what]
    flags = {
        "samples": policy_path.samples,
        "attributes": "corpus_formality",
        **policies.SAMPLED_USERS,
        "out": tmp_path / "out",
        **change,
    }
    fails(launch("prepare", *(f"--{k}={v}" for k, v in flags.items())), message)
    assert not (tmp_path / "out").exists()


TRAIN = {
    "no model": ({"language_model.path": "nowhere"}, "nowhere/config.json"),
    "another model": ({"language_model.digest": "f00"}, "config.language_model.digest"),
    "no data": ({"task.path": "nowhere"}, "nowhere"),
    "buckets": ({"task.buckets": (8,)}, "config.task.buckets"),
    "too much context": ({"eval.num_context": (0, 50)}, "config.eval.num_context"),
}


@pytest.mark.parametrize("what", TRAIN)
def test_bad_input_of_train(what, launch, policy_path, tmp_path):
    change, message = TRAIN[what]
    # Its own data, so that nothing is scored yet.
    data = shutil.copytree(policy_path.data, tmp_path / "data")
    for scored in data.glob("responses-*"):
        shutil.rmtree(scored)
    line = policies.flags(policy_path.folder, **{"task.path": data, **change})
    fails(launch("train", *line, f"--workdir={tmp_path / 'run'}"), message)


@pytest.mark.parametrize(
    ("modulations", "warned"),
    [
        ((("mlp/down", "scale + shift"),), True),
        # Queries of Qwen 2 have biases, and a scale takes none.
        ((("attention/query", "shift"), ("mlp/down", "scale")), False),
    ],
)
def test_what_will_not_export_is_said_before_training(
    launch, tmp_path, modulations, warned
):
    described = {
        **policies.DESCRIBED,
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
    }
    policies.write_language_model(tmp_path / "language", described=described)
    line = policies.flags(tmp_path, **{"policy.modulations": modulations})
    finished = launch("train", *line, f"--workdir={tmp_path / 'run'}")
    # Nothing is left to do but to read the choices, which are not there.
    fails(finished, "choices")
    assert ("mlp/down" in finished.out) == warned
    assert finished.out.count("Warning: ") == warned


LONG = " ".join(["review"] * policies.MAX_PROMPT)
FIRST = dict(prompt="assess", chosen=ANSWERS[0], rejected=ANSWERS[1])
STEER = {
    "no run": (dict(workdir="nowhere"), "nowhere"),
    "nothing to do": (dict(prompts=""), "--prompts"),
    "no column": (
        dict(context=[{"prompt": "a", "chosen": "b"}]),
        "row 1: no column 'rejected'",
    ),
    "empty text": (
        dict(context=[FIRST, {**FIRST, "chosen": " "}]),
        "row 2: chosen",
    ),
    "messages as an answer": (
        dict(context=[{**FIRST, "chosen": [{"role": "assistant", "content": "a"}]}]),
        "row 1: chosen",
    ),
    "empty context": (dict(context=[]), "context.jsonl"),
    "long prompt of a choice": (
        dict(context=[FIRST, {**FIRST, "prompt": LONG}]),
        "max_prompt",
    ),
    "unknown word in a choice": (
        dict(context=[{**FIRST, "chosen": "hello"}]),
        "response 0 ('hello')",
    ),
    "no prompts": (dict(prompts=[]), "prompts.jsonl"),
    "no prompt": (dict(prompts=[{"p": "a"}]), "row 1: no column 'prompt'"),
    "empty prompt": (dict(prompts=[{"prompt": ""}]), "row 1: prompt"),
    "long prompt": (
        dict(prompts=[{"prompt": "assess"}, {"prompt": LONG}]),
        "prompt 1 ('review",
    ),
    "one person": (dict(interpolate="a.jsonl"), "--interpolate"),
    "three people": (
        dict(interpolate="a.jsonl,b.jsonl", context=[FIRST]),
        "--context",
    ),
    "no groups": (dict(group="formal"), "policy.latent"),
    "occupied": (dict(export="tests"), "--export=tests"),
    "no place": (dict(out="texts.txt"), "--out=texts.txt"),
}


@pytest.mark.parametrize("what", STEER)
def test_bad_input_of_steer(what, launch, policy_path, tmp_path):
    change, message = STEER[what]
    change = {"prompts": [{"prompt": "assess"}], **change}
    flags = {"workdir": policy_path.run}
    for name, value in change.items():
        if isinstance(value, list):
            value = table(tmp_path / f"{name}.jsonl", value)
        flags[name] = value
    finished = launch("steer", *(f"--{k}={v}" for k, v in flags.items()))
    fails(finished, message)
    assert not finished.out


def test_a_missing_run_cannot_be_evaluated(launch, tmp_path):
    fails(launch("evaluate", f"--workdir={tmp_path}"), str(tmp_path))
