"""A policy in use: whose choices, whose text, and one person's policy as a folder."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import policies
import pytest

from fsa.conditioning import fold
from fsa.data.sources import corpus
from fsa.episodes import Choices, Options
from fsa.errors import InputError
from fsa.evaluation.generated_texts import TextEvaluator
from fsa.evaluation.methods import Steered
from fsa.inference.steerer import Steerer
from fsa.language import huggingface
from fsa.language.generation import decoder
from fsa.language.language_model import LanguageModel
from fsa.training.checkpoint import VARIABLES, Checkpoints

pytestmark = pytest.mark.usefixtures("quick_compile")

PROMPTS = ["review the novel :", "assess", "judge the park :", "assess"]
ANSWERS = [a for _, a in corpus.texts(1, 60) if len(a.split()) < 10][:8]
CHOICES = [
    (prompt, *ANSWERS[2 * i : 2 * i + 2]) for i, prompt in enumerate(PROMPTS[:3])
]
OPTIONS = dict(max_new_tokens=10, seed=5)


def latents(size):
    """z of some users, `[size, D]`."""
    shape = size, policies.REWARD["latent_dim"]
    return np.random.default_rng(0).normal(0, 1.5, shape).astype(np.float32)


Z = latents(len(PROMPTS))


@pytest.fixture(scope="module")
def steerer(language_folder):
    return policies.make_steerer(language_folder)


@pytest.fixture(scope="module")
def with_base(language_folder):
    """One that also has parameters of the language model of its own."""
    return policies.make_steerer(language_folder, train_base=True)


def folded(steerer, z):
    """The language model's variables for one person, plain arrays."""
    base = steerer.language.variables
    return fold(steerer.policy.condition(steerer.variables, base, jnp.asarray(z)))


def plain(steerer, z):
    """A language model of its own for one person."""
    return dataclasses.replace(steerer.language, variables=folded(steerer, z))


def logits(model, variables, tokens=((1, 4, 9, 30, 41, 2, 77),)):
    return np.asarray(model.apply(variables, jnp.asarray(tokens))[0])


def test_latent_does_not_depend_on_the_order_of_choices(steerer):
    z = steerer.latent(CHOICES)
    assert z.shape == Z[0].shape
    for order in ([2, 0, 1], [1, 2, 0]):
        again = steerer.latent([CHOICES[i] for i in order])
        np.testing.assert_allclose(again, z, atol=1e-5)
    fewer = steerer.latent(CHOICES[:2])
    turned = steerer.latent([(p, b, a) for p, a, b in CHOICES])
    for other in (fewer, turned, steerer.latent([])):
        assert np.abs(other - z).max() > 1e-3


def test_nobody_in_particular_is_the_prior(steerer):
    option = Options(np.full((3, 16), 7.0, np.float32), np.full(3, -1))
    nothing = Choices(option, option, np.zeros(3, bool))
    prior = steerer.policy.encode(steerer.variables, nothing).mean
    np.testing.assert_allclose(steerer.latent([]), prior, rtol=1e-6)


def test_latents_of_choices_are_those_of_their_features(steerer):
    """What evaluation takes from the store is what a person's texts would give."""
    task = policies.make_task(steerer.language)
    user = 1
    batch = task.test_batch("test", [0, user], 0)
    features = batch.episode.context.chosen.features[1]
    texts = []
    for row in (0, 1):
        items = [
            np.abs(task.responses.features - side.features[1, row]).sum(-1).argmin()
            for side in (batch.episode.context.chosen, batch.episode.context.rejected)
        ]
        prompt = task.data.prompts[task.data.item_prompt[items[0]]]
        texts.append((prompt, *(task.data.texts[item] for item in items)))
    assert features.shape == (2, 16)
    expected = steerer.latents(batch.episode.context, batch.episode.group)[1]
    np.testing.assert_allclose(steerer.latent(texts), expected, atol=1e-4)


def test_rows_of_different_users_are_each_user_alone(steerer):
    together = steerer.write(PROMPTS, Z, **OPTIONS)
    for row, z in enumerate(Z):
        alone = steerer.write(PROMPTS, np.repeat(z[None], 4, axis=0), **OPTIONS)
        assert alone.texts[row] == together.texts[row]
        assert plain(steerer, z).write(PROMPTS, **OPTIONS).texts == alone.texts
    # The users differ, and from the language model itself.
    reference = steerer.write(PROMPTS, None, **OPTIONS)
    assert reference.texts == steerer.language.write(PROMPTS, **OPTIONS).texts
    assert len({reference.texts[1], together.texts[1], together.texts[3]}) == 3


def test_parts_of_a_batch_do_not_show(steerer):
    five, prompts = latents(5), [*PROMPTS, "discuss"]
    at_once = dataclasses.replace(
        steerer, language=policies.with_rows(steerer.language, 64)
    )
    written, again = (s.write(prompts, five, **OPTIONS) for s in (steerer, at_once))
    assert written.texts == again.texts
    first, second = (s.log_probs(written.table, five) for s in (steerer, at_once))
    np.testing.assert_allclose(first, second, atol=1e-4)


@pytest.mark.parametrize("kind", ["steerer", "with_base"])
def test_log_probs_are_those_of_folded_parameters(kind, request):
    steerer = request.getfixturevalue(kind)
    written = steerer.write(PROMPTS, Z, **OPTIONS)
    table = written.table
    found = steerer.log_probs(table, Z)
    assert found.shape == (4,)
    for row, z in enumerate(Z):
        tokens, start = table[row], table.start[row]
        of_model = logits(steerer.language.model, folded(steerer, z), tokens[None])[0]
        of_model = np.float64(of_model)
        of_model -= np.logaddexp.reduce(of_model, axis=-1, keepdims=True)
        steps = of_model[np.arange(start - 1, len(tokens) - 1), tokens[start:]]
        np.testing.assert_allclose(found[row], steps.sum(), atol=1e-4)
    reference = steerer.log_probs(table, None)
    again, _ = steerer.language.score(table, buckets=(64,))
    np.testing.assert_allclose(reference, again, atol=1e-4)
    assert np.abs(reference - found).min() > 1e-2


def test_texts_longer_than_what_was_trained_on(steerer):
    """Both kinds of log-probabilities get a longer bucket, and stay the same."""
    written = steerer.write(PROMPTS, Z, max_new_tokens=30)
    assert written.table.length.max() > max(steerer.buckets)
    wide = dataclasses.replace(steerer, buckets=(64,))
    for z in (Z, None):
        np.testing.assert_allclose(
            steerer.log_probs(written.table, z),
            wide.log_probs(written.table, z),
            atol=1e-4,
        )


@pytest.fixture(scope="module", params=["steerer", "with_base"])
def exported(request, tmp_path_factory):
    """(steerer, z, folder); the folder has a generation config to hand on as well."""
    steerer = request.getfixturevalue(request.param)
    source = tmp_path_factory.mktemp("source") / "model"
    shutil.copytree(steerer.language.folder, source)
    content = {"eos_token_id": [corpus.EOS, 5], "pad_token_id": corpus.PAD}
    (source / "generation_config.json").write_text(json.dumps(content))
    language = dataclasses.replace(steerer.language, folder=str(source))
    steerer = dataclasses.replace(steerer, language=language)
    folder = tmp_path_factory.mktemp("exported") / "deep" / "model"
    steerer.export(Z[0], folder)
    return steerer, Z[0], folder


def test_an_exported_policy_is_a_plain_folder(exported):
    steerer, z, folder = exported
    assert {file.name for file in folder.iterdir()} == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "generation_config.json",
    }
    model, variables = huggingface.load(folder)
    conditioned = logits(steerer.language.model, folded(steerer, z))
    np.testing.assert_allclose(logits(model, variables), conditioned, atol=1e-4)
    base = logits(steerer.language.model, steerer.language.variables)
    assert np.abs(conditioned - base).max() > 0.1
    # Its texts are the person's, greedy or drawn.
    alone = LanguageModel.load(str(folder), examples_at_once=4, **policies.TOKENS)
    assert sorted(alone.stop_tokens) == [corpus.EOS, 5]
    rows = np.repeat(z[None], len(PROMPTS), axis=0)
    for options in (dict(max_new_tokens=12, temperature=0.0), OPTIONS):
        expected = steerer.write(PROMPTS, rows, **options).texts
        assert alone.write(PROMPTS, **options).texts == expected
        assert expected != steerer.write(PROMPTS, None, **options).texts


def test_conditioned_logits_are_the_exported_ones(exported):
    """As the policy computes them, with lazy leaves, not folded."""
    steerer, z, folder = exported
    conditioned = steerer.policy.condition(
        steerer.variables, steerer.language.variables, jnp.asarray(z)
    )
    tokens = jnp.asarray([[1, 4, 9, 30, 41]])
    found = []
    for decode in (
        decoder(steerer.language.model, conditioned),
        decoder(*huggingface.load(folder)),
    ):
        cache = decode.init_cache(1, 5)
        found.append(decode.step(tokens, jnp.ones((1, 5), bool), cache)[0])
    np.testing.assert_allclose(*found, atol=1e-4)


@pytest.mark.parametrize("exported", ["steerer"], indirect=True)
def test_transformers_runs_an_exported_policy(exported, run_alone):
    """In a process of its own that has nothing of fsa."""
    pytest.importorskip("torch")
    steerer, z, folder = exported
    found = run_alone(TRANSFORMERS, folder, json.dumps(PROMPTS))
    assert found["fsa"] == []
    rows = np.repeat(z[None], len(PROMPTS), axis=0)
    written = steerer.write(PROMPTS, rows, max_new_tokens=10, temperature=0.0)
    assert found["texts"] == written.texts
    for row, theirs in enumerate(found["logits"]):
        start = written.table.start[row]
        tokens = written.table[row][None, :start]
        ours = logits(steerer.language.model, folded(steerer, z), tokens)
        np.testing.assert_allclose(ours[0], theirs, atol=1e-4)


TRANSFORMERS = """
import json, sys
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, prompts = sys.argv[1], json.loads(sys.argv[2])
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
tokenizer = AutoTokenizer.from_pretrained(folder)
found = {"texts": [], "logits": []}
for prompt in prompts:
    tokens = tokenizer(prompt, return_tensors="pt")
    size = tokens["input_ids"].shape[1]
    with torch.no_grad():
        found["logits"].append(model(**tokens).logits[0].tolist())
        text = model.generate(**tokens, do_sample=False, max_new_tokens=10)[0][size:]
    found["texts"].append(tokenizer.decode(text, skip_special_tokens=True).strip())
found["fsa"] = [name for name in sys.modules if name.split(".")[0] in ("fsa", "jax")]
print(json.dumps(found))
"""


def test_an_existing_folder_is_not_written_to(steerer, tmp_path):
    (tmp_path / "mine").mkdir()
    with pytest.raises(InputError, match="mine: exists; name a new folder"):
        steerer.export(Z[0], tmp_path / "mine")
    assert not list((tmp_path / "mine").iterdir())


def test_choices_that_cannot_be_used_are_named(steerer):
    good = CHOICES[0]
    # Two texts a choice, so that the second choice's rejected text is the fourth.
    with pytest.raises(InputError, match=r"response 3 \(''\): empty response"):
        steerer.latent([good, (PROMPTS[0], ANSWERS[0], "")])
    with pytest.raises(InputError, match="response 2 .*max_prompt=8"):
        steerer.latent([good, ("review " * 8, *ANSWERS[:2])])


def test_policies_that_infer_nothing(language_folder):
    everybody = policies.make_steerer(language_folder, latent="none")
    np.testing.assert_array_equal(everybody.latent([]), [1.0])
    with pytest.raises(InputError, match="policy.latent is 'none'"):
        everybody.latent(CHOICES)
    with pytest.raises(InputError, match="'none', which knows no groups"):
        everybody.latent_of_group("formal")


def test_policies_of_groups(language_folder):
    steerer = policies.make_steerer(language_folder, latent="group", num_groups=2)
    by_group = dataclasses.replace(steerer, groups=("casual", "formal"))
    for choices in ([], CHOICES):
        with pytest.raises(InputError, match="one of the groups casual, formal"):
            by_group.latent(choices)
    with pytest.raises(InputError, match="'Formal' is none of casual, formal"):
        by_group.latent_of_group("Formal")
    nothing = jax.tree.map(
        lambda x: x[:2],
        policies.make_task(by_group.language).test_batch("test", [0, 1], 0),
    ).episode.context
    found = by_group.latents(nothing, np.array([1, 0]))
    np.testing.assert_array_equal(found, [[0, 1], [1, 0]])
    for name, row in zip(("formal", "casual"), found, strict=True):
        np.testing.assert_array_equal(by_group.latent_of_group(name), row)


def test_a_run_is_loaded_with_its_language_model(policy_path, language_folder):
    steerer = Steerer.load(policy_path.run)
    assert steerer.language.folder == str(language_folder)
    assert steerer.buckets == policies.TINY["task.buckets"]
    assert steerer.pooling == "mean" and set(steerer.groups) == set(policies.GROUPS)
    assert steerer.language.tokenization.max_response == policies.MAX_RESPONSE
    assert steerer.language.tokenization.separator == " "
    # A few steps from where every z leaves the model as it is, they no longer do.
    first, second = (logits(steerer.language.model, folded(steerer, z)) for z in Z[:2])
    base = logits(steerer.language.model, steerer.language.variables)
    assert np.abs(first - base).max() > 1e-4
    assert np.abs(first - second).max() > 1e-5
    task = policies.make_task(steerer.language)
    options = dict(users_per_group=1, prompts_per_user=1, max_new_tokens=3)
    judge = TextEvaluator(
        steerer.language,
        Steered(steerer, task),
        task,
        (0,),
        attribute="corpus_formality",
        validity="words",
        progress=False,
        **options,
    )
    assert set(judge()[0]["generated"]) == set(policies.GROUPS)


def test_another_language_model_is_refused(policy_path, language_folder, tmp_path):
    """The run again, on a copy of its language model that then changes."""
    moved, run = tmp_path / "model", tmp_path / "run"
    shutil.copytree(language_folder, moved)
    before = Checkpoints(policy_path.run / "checkpoints", read_only=True)
    meta = before.meta(before.best_step)
    meta["language_model"]["path"] = str(moved)
    like = {VARIABLES: before.shapes(before.best_step, VARIABLES)}
    save_run(run, before.restore(before.best_step, like), meta)
    before.close()
    assert Steerer.load(run).language.folder == str(moved)
    config = json.loads((moved / "config.json").read_text())
    (moved / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-4}))
    with pytest.raises(InputError, match="another language model by now") as error:
        Steerer.load(run)
    assert str(moved) in str(error.value) and "\n" not in str(error.value)
    shutil.rmtree(moved)
    with pytest.raises(InputError, match="no such folder"):
        Steerer.load(run)


def save_run(folder, items, meta):
    checkpoints = Checkpoints(folder / "checkpoints")
    checkpoints.save(1, items, score=0.0, meta=meta)
    checkpoints.close()


def test_runs_of_other_models_are_refused(tmp_path):
    with pytest.raises(InputError, match="no sound checkpoint"):
        Steerer.load(tmp_path / "nothing")
    meta = {"config": {}, "model": {"hidden": 4}, "deterministic": True}
    save_run(tmp_path / "reward", {VARIABLES: {"params": np.zeros(2)}}, meta)
    with pytest.raises(InputError, match="reward: not a run of a policy"):
        Steerer.load(tmp_path / "reward")
