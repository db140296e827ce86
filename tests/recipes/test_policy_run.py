"""Runs of policies from the command line: exact resumption, and what is refused."""

import json
import logging
import shutil

import jax
import numpy as np
import pytest
from policies import (
    CHOICES,
    choices,
    flags,
    language_model,
    tiny_policy_config,
    write_all,
    write_choices,
)
from safetensors.numpy import load_file, save_file

from benchmarks.survive import sound
from fsa import digests
from fsa.data.tasks.pairs import PairTask
from fsa.errors import InputError
from fsa.language import scoring
from fsa.language.huggingface import architecture
from fsa.models.policy import Policy
from fsa.parallel.sharding import make_mesh
from fsa.recipes import policy_run, responses
from fsa.training.checkpoint import TRAINING
from fsa.training.monitor.metrics import read_metrics

pytestmark = pytest.mark.usefixtures("quick_compile")

STEPS, EVERY, REWARD_STEPS = 8, 4, 2


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A folder with `choices` and `language`."""
    return write_all(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def train(launch, inputs):
    """Trains a tiny policy into a folder: `train(workdir, **fields)`."""

    def run(workdir, folder=inputs, **fields):
        return launch("train", *flags(folder, **fields), f"--workdir={workdir}")

    return run


@pytest.fixture(scope="module")
def uninterrupted(quick_compile, train, tmp_path_factory):
    """Trains a run that nothing interrupts; returns its directory."""
    workdir = tmp_path_factory.mktemp("runs") / "uninterrupted"
    finished = train(workdir)
    assert finished.code == 0, finished.err
    for group in ("casual", "formal"):
        assert f"Linear probe on embeddings, {group}: " in finished.out
    return workdir


@pytest.mark.parametrize("attention", ["splash", "cudnn"])
def test_attention_that_cannot_run_is_refused_at_once(train, tmp_path, attention):
    """On the devices here; before any weights are read, and nothing is left."""
    finished = train(tmp_path / "a", **{"language_model.attention": attention})
    assert (finished.code, finished.out) == (2, "")
    assert "Traceback" not in finished.err
    assert f"language_model.attention={attention}" in finished.err.splitlines()[-1]
    assert not (tmp_path / "a").exists()


def test_attention_that_does_not_fit_the_model_is_refused(inputs):
    """Also in a dry run, whose devices need not be there: cudnn takes no float32."""
    described = architecture.read_config(inputs / "language")
    with pytest.raises(InputError, match="`attention`=cudnn"):
        policy_run.abstract_language_model(
            described, dtype="float32", remat="", attention="cudnn", biases=()
        )


def test_only_what_is_trained_is_saved(uninterrupted):
    step, items = sound(uninterrupted)
    assert step == STEPS
    assert items[TRAINING]["params"].keys() == {"reward", "hyper"}
    found = {x.shape for x in jax.tree.leaves(items)}
    base = jax.tree.leaves(language_model()[1])
    # A vector may be of the same size as some other by chance.
    weights = {x.shape for x in base if x.ndim > 2 or max(x.shape) > 50}
    assert weights and not found & weights


def test_the_run_trains_the_reward_model_and_then_the_policy(uninterrupted):
    entries = read_metrics(uninterrupted, "train")
    margins = [entry["margin"] for entry in entries]
    first = REWARD_STEPS // 2
    assert len(margins) == STEPS // 2
    assert not any(margins[:first]) and all(margins[first:])
    assert len({entry["loss"] for entry in entries}) == len(entries)
    valid = read_metrics(uninterrupted, "valid")
    assert [entry["step"] for entry in valid] == [EVERY, STEPS]
    for n in (0, 2):
        # Until the policy is trained it is the reference, whose margins are all 0.
        assert 0 < abs(valid[-1][f"nll_at_{n}"] - np.log(2)) < 1
        assert 0 <= valid[-1][f"accuracy_at_{n}"] <= 1


@pytest.mark.slow
@pytest.mark.parametrize("killed", [1, 7])
def test_an_interrupted_run_ends_as_a_whole_one(
    uninterrupted, train, tmp_path, monkeypatch, killed
):
    """Bit by bit, before the first save and after it."""
    real = PairTask.train_batch

    def interrupted(self, step, positions):
        if step >= killed:
            raise KeyboardInterrupt
        return real(self, step, positions)

    with monkeypatch.context() as patched:
        patched.setattr(PairTask, "train_batch", interrupted)
        assert train(tmp_path / "run").code == 130
    finished = train(tmp_path / "run")
    assert finished.code == 0, finished.err
    assert ("Resuming from step 4" in finished.err) == (killed > EVERY)
    (step, items), (wanted_step, wanted) = (
        sound(tmp_path / "run"),
        sound(uninterrupted),
    )
    assert step == wanted_step == STEPS
    assert jax.tree.structure(items) == jax.tree.structure(wanted)
    jax.tree.map(np.testing.assert_array_equal, items, wanted)


def test_what_is_left_out_is_counted(inputs, tmp_path, capsys, caplog):
    """Choices between the same tokens, and texts with special tokens."""
    caplog.set_level(logging.WARNING, logger="fsa")
    rows = choices()
    chosen, user = rows[0].chosen, rows[0].user
    rows += [
        rows[0]._replace(rejected=f" {chosen}", prompt="assess the farm :"),
        rows[0]._replace(rejected=f"{chosen} <eos>", prompt="assess the farm :"),
    ]
    shutil.copytree(inputs / "language", tmp_path / "language")
    path = tmp_path / "language" / "config.json"
    described = json.loads(path.read_text()) | {"max_position_embeddings": 9}
    path.write_text(json.dumps(described))
    write_choices(tmp_path / "choices", rows)
    config = responses.pin_language_model(tiny_policy_config(tmp_path))
    language = responses.load_language_model(config, make_mesh(1, 1))
    task = policy_run.load_task(config, language)
    printed = capsys.readouterr().out
    assert "Left out 1 choices" in printed
    assert "Left out 1 responses: spells the special token <eos>" in printed
    assert "max_position_embeddings" in caplog.text
    number = task.data.users["train"].names.index(user)
    assert len(task._choices["train"][number]) == CHOICES


@pytest.mark.parametrize("arguments", ['{"enable_thinking": false}', "{", "[1]"])
def test_template_arguments_that_cannot_be_used(train, tmp_path, arguments):
    """This language model has no chat template."""
    finished = train(tmp_path / "a", **{"task.template_arguments": arguments})
    assert "config.task.template_arguments" in refusal(finished)


def test_a_run_keeps_the_digest_that_an_older_version_recorded(
    train, inputs, uninterrupted, tmp_path
):
    """That of all files in the model's folder."""
    folder = tmp_path / "inputs"
    shutil.copytree(inputs, folder)
    shutil.copytree(uninterrupted, tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    config = json.loads(path.read_text())
    config["language_model"]["digest"] = older = digests.of_folder(folder / "language")
    config["language_model"]["path"] = str(folder / "language")
    config["task"]["path"] = str(folder / "choices")
    path.write_text(json.dumps(config))
    finished = train(tmp_path / "run", folder)
    assert finished.code == 0, finished.err
    assert json.loads(path.read_text())["language_model"]["digest"] == older
    edit_weights(folder, lambda weights: weights["model.norm.weight"].__iadd__(1e-3))
    assert older in refusal(train(tmp_path / "run", folder))


def refusal(finished):
    """The one line of a command that was refused."""
    assert finished.code == 2, finished.err
    # transformers has a line of its own where it is imported first.
    lines = [x for x in finished.err.splitlines() if not x.startswith("[transformers]")]
    assert len(lines) == 1
    return lines[0]


def of_another_base(inputs, folder):
    """A copy of what runs need, where one weight of the language model differs."""
    shutil.copytree(inputs, folder)
    edit_weights(folder, lambda weights: weights["model.norm.weight"].__iadd__(1e-3))
    return folder


def edit_weights(folder, edit):
    path = folder / "language" / "model.safetensors"
    weights = load_file(path)
    edit(weights)
    save_file(weights, path, metadata={"format": "pt"})


def test_a_run_stays_with_its_language_model(uninterrupted, train, inputs, tmp_path):
    """Moved elsewhere it may be named; other weights are refused."""
    saved = json.loads((uninterrupted / "config.json").read_text())
    digest = saved["language_model"]["digest"]
    assert len(digest) == 64
    other = of_another_base(inputs, tmp_path / "other")
    moved = {"language_model.path": str(other / "language")}
    message = refusal(train(uninterrupted, **moved))
    assert f"language_model.digest: {digest} -> " in message
    moved |= {"language_model.digest": digest}
    message = refusal(train(uninterrupted, **moved))
    assert "config.language_model.digest" in message and digest in message


def no_tokenizer(folder):
    (folder / "language" / "tokenizer.json").unlink()


def no_weights(folder):
    (folder / "language" / "model.safetensors").unlink()


def no_folder(folder):
    shutil.rmtree(folder / "language")


def another_width(folder):
    def narrow(weights):
        name = "model.layers.1.mlp.up_proj.weight"
        weights[name] = np.ascontiguousarray(weights[name][:-1])

    edit_weights(folder, narrow)


def empty_responses(folder):
    shutil.rmtree(folder / "choices")
    table = [
        example._replace(
            chosen=" ", rejected="\n", chosen_id=f"a{i}", rejected_id=f"b{i}"
        )
        for i, example in enumerate(choices())
    ]
    write_choices(folder / "choices", table)


@pytest.mark.parametrize(
    ("damage", "fields", "message"),
    [
        (no_folder, {}, "language/config.json"),
        (no_tokenizer, {}, "tokenizer.json"),
        (no_weights, {}, "model.safetensors"),
        (another_width, {}, "up_proj.weight"),
        (empty_responses, {}, "empty response"),
        (None, {"task.buckets": (12,)}, "config.task.buckets"),
        (None, {"task.max_prompt": 4}, "max_prompt=4"),
        (
            None,
            {"policy.modulations": (("mlp/up", "scale"), ("mlp/up", "lora(2)"))},
            "config.policy.modulations",
        ),
    ],
)
def test_bad_input_is_refused_before_anything_is_compiled(
    train, inputs, tmp_path, monkeypatch, damage, fields, message
):
    def compiled(*args, **kwargs):
        raise AssertionError("a program of the model was asked for")

    monkeypatch.setattr(scoring, "_scorer", compiled)
    monkeypatch.setattr(Policy, "init", compiled)
    folder = tmp_path / "inputs"
    ignore = shutil.ignore_patterns("responses-*")
    shutil.copytree(inputs, folder, ignore=ignore)
    if damage:
        damage(folder)
    assert message in refusal(train(tmp_path / "run", folder, **fields))
    # A run that was never begun is not held to the weights it would have had.
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("fields", "longest", "packed"),
    [
        ({}, 128, True),
        ({}, 127, False),
        ({"task.packing": "rows"}, 5, True),
        ({"task.packing": "padded"}, 999, False),
        ({"train.accumulate": 2}, 999, False),
        ({"train.parallel": "pmap"}, 999, False),
        ({"language_model.attention": "splash"}, 999, False),
    ],
)
def test_auto_packs_long_texts_where_a_step_can_take_rows(
    inputs, fields, longest, packed
):
    """On a CPU, as tests are; one step for each case that cannot."""
    config = tiny_policy_config(inputs, **fields)
    assert policy_run.is_packed(config, longest) == packed


@pytest.mark.parametrize("packing", ["auto", "rows"])
def test_on_a_tpu_rows_have_to_be_wanted(inputs, packing, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    fields = {"language_model.attention": "splash", "task.packing": packing}
    config = tiny_policy_config(inputs, **fields)
    assert policy_run.is_packed(config, 999) == (packing == "rows")


def test_rows_that_are_compiled_in_advance_are_shaped_as_those_of_a_batch(inputs):
    fields = {"language_model.attention": "splash", "task.packing": "rows"}
    config = tiny_policy_config(inputs, **fields)
    shapes = policy_run.abstract(config).examples
    # The kernel does not run here, and batches do not depend on it.
    config["language_model"]["attention"] = "xla"
    language = policy_run.load_language_model(config, make_mesh(1, 1))
    found = policy_run.load_task(config, language).train_batch(0)
    # Here rows may have several lengths, with splash they have one.
    found = found._replace(rows=found.rows[:1])
    assert jax.tree.structure(shapes) == jax.tree.structure(found)
    pairs = zip(*map(jax.tree.leaves, (shapes, found)), strict=True)
    assert all(a.dtype == b.dtype and a.ndim == b.ndim for a, b in pairs)


def test_rows_without_splash_are_not_compiled_in_advance(inputs):
    config = tiny_policy_config(inputs, **{"task.packing": "rows"})
    with pytest.raises(InputError, match="task.packing"):
        policy_run.abstract(config)
