"""Use of a policy: z from choices, texts at z, and the policy at one z as a folder."""

import contextlib
import dataclasses
import json
import logging
import shutil

import chex
import jax
import numpy as np
import policies
import pytest

from fsa.data.sources import corpus
from fsa.episodes import Choices, Options
from fsa.errors import InputError
from fsa.evaluation.generated_texts import TextEvaluator
from fsa.evaluation.methods import Steered
from fsa.inference import saved_model
from fsa.inference.steerer import Steerer
from fsa.language import huggingface
from fsa.language.language_model import LanguageModel
from fsa.language.token_table import TokenTable
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
# Longer than any sequence here.
LENGTH = 40
STEERERS = ["steerer", pytest.param("with_base", marks=pytest.mark.slow)]


@pytest.fixture(scope="module")
def steerer(language_folder):
    return policies.make_steerer(language_folder)


@pytest.fixture(scope="module")
def with_base(language_folder):
    """One that also has parameters of the language model of its own."""
    return policies.make_steerer(language_folder, train_base=True)


def log_probs(model, variables, table):
    """Computes log p of each response, from logits of the full sequence."""
    found = []
    for i, start in enumerate(table.start):
        tokens = table[i]
        padded = np.pad(tokens, (0, LENGTH - len(tokens)))[None]
        ends = [start], [len(tokens)]
        found.extend(policies.log_probs(model, variables, padded, *ends))
    return np.array(found)


def folded_log_probs(steerer, table, latents):
    """log p of each response at its z, from folded parameters."""
    one = [TokenTable.of([(table[i], table.start[i])]) for i in range(len(latents))]
    model = steerer.language.model
    return np.concatenate(
        [
            log_probs(model, policies.folded(steerer, z), example)
            for example, z in zip(one, latents, strict=True)
        ]
    )


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


def test_choices_between_the_same_tokens_say_nothing(steerer, caplog):
    caplog.set_level(logging.WARNING, logger="fsa")
    prompt, first, _ = CHOICES[0]
    # The tokenizer knows only the words between spaces, and cuts after a few.
    long = " ".join(["it"] * policies.MAX_RESPONSE)
    same = [(prompt, first, f" {first}  "), (prompt, f"{long} looks", f"{long} poor")]
    assert steerer.differing([*same, *CHOICES]) == CHOICES
    assert " 2 choices" in caplog.text
    z = steerer.latent(CHOICES)
    np.testing.assert_array_equal(steerer.latent([same[0], *CHOICES, same[1]]), z)
    np.testing.assert_array_equal(steerer.latent(same), steerer.latent([]))
    assert steerer.differing([]) == []


def test_nobody_in_particular_is_the_prior(steerer):
    option = Options(np.full((3, 16), 7.0, np.float32), np.full(3, -1))
    nothing = Choices(option, option, np.zeros(3, bool))
    prior = steerer.policy.encode(steerer.variables, nothing).mean
    np.testing.assert_allclose(steerer.latent([]), prior, rtol=1e-6)


def test_latents_of_choices_are_those_of_their_features(steerer):
    """Embeddings that evaluation takes from the dataset give the z of their texts."""
    task = policies.make_task(steerer.language)
    user = 1
    batch = task.test_batch("test", [0, user], 0)
    features = batch.episode.context.chosen.features[1]
    texts = []
    for n in (0, 1):
        items = [
            np.abs(task.responses.features - side.features[1, n]).sum(-1).argmin()
            for side in (batch.episode.context.chosen, batch.episode.context.rejected)
        ]
        prompt = task.data.prompts[task.data.item_prompt[items[0]]]
        texts.append((prompt, *(task.data.texts[item] for item in items)))
    assert features.shape == (2, 16)
    expected = steerer.latents(batch.episode.context, batch.episode.group)[1]
    np.testing.assert_allclose(steerer.latent(texts), expected, atol=1e-4)


def test_texts_of_different_users_are_those_of_each_user_alone(steerer):
    """Five texts, of which four are written at once."""
    users, prompts = latents(5), [*PROMPTS, "discuss"]
    together = steerer.write(prompts, users, **OPTIONS)
    for i, z in enumerate(users):
        alone = steerer.write(prompts, np.repeat(z[None], 5, axis=0), **OPTIONS)
        assert alone.texts[i] == together.texts[i]
    # The last user's own language model writes the same.
    variables = policies.folded(steerer, z)
    own = dataclasses.replace(steerer.language, variables=variables)
    assert own.write(prompts, **OPTIONS).texts == alone.texts
    # The users differ, and from the language model itself.
    reference = steerer.write(prompts, None, **OPTIONS)
    assert reference.texts == steerer.language.write(prompts, **OPTIONS).texts
    assert len({reference.texts[1], together.texts[1], together.texts[3]}) == 3


@pytest.mark.parametrize("kind", STEERERS)
def test_log_probs_are_those_of_folded_parameters(kind, request):
    """Some of the texts are longer than what was trained on."""
    steerer, users = request.getfixturevalue(kind), latents(5)
    rng = np.random.default_rng(0)
    sizes = (12, 7, 30, 9, 21)
    assert max(sizes) > max(steerer.buckets)
    table = TokenTable.of(
        [(rng.integers(3, len(corpus.WORDS), size), 5) for size in sizes]
    )
    found = steerer.log_probs(table, users)
    expected = folded_log_probs(steerer, table, users)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    language = steerer.language
    reference = steerer.log_probs(table, None)
    expected = log_probs(language.model, language.variables, table)
    np.testing.assert_allclose(reference, expected, atol=1e-4)
    assert np.abs(reference - found).min() > 1e-2


@pytest.fixture(scope="module", params=STEERERS)
def exported(request, tmp_path_factory):
    """(steerer, z, folder); the folder has a generation config to hand on as well."""
    steerer = request.getfixturevalue(request.param)
    source = tmp_path_factory.mktemp("source") / "model"
    shutil.copytree(steerer.language.folder, source)
    content = {"eos_token_id": [corpus.EOS, 5], "pad_token_id": corpus.PAD}
    (source / "generation_config.json").write_text(json.dumps(content))
    language = dataclasses.replace(steerer.language, folder=str(source))
    folder = tmp_path_factory.mktemp("exported") / "deep" / "model"
    dataclasses.replace(steerer, language=language).export(Z[0], folder)
    return dataclasses.replace(steerer, language=language), Z[0], folder


def test_an_exported_policy_is_a_plain_folder(exported):
    steerer, z, folder = exported
    assert {file.name for file in folder.iterdir()} == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "generation_config.json",
        "fsa.json",
    }
    # Its texts are the person's.
    alone = LanguageModel.load(str(folder), examples_at_once=4, **policies.TOKENS)
    assert sorted(alone.stop_tokens) == [corpus.EOS, 5]
    latents = np.repeat(z[None], len(PROMPTS), axis=0)
    written = steerer.write(PROMPTS, latents, **OPTIONS)
    assert alone.write(PROMPTS, **OPTIONS).texts == written.texts
    assert written.texts != steerer.write(PROMPTS, None, **OPTIONS).texts
    # As the policy computes it, with lazy leaves, not folded.
    conditioned = steerer.log_probs(written.table, latents)
    found = log_probs(alone.model, alone.variables, written.table)
    np.testing.assert_allclose(found, conditioned, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("exported", ["steerer"], indirect=True)
def test_transformers_runs_an_exported_policy(exported, run_alone):
    """In a process of its own that has nothing of fsa."""
    pytest.importorskip("torch")
    steerer, z, folder = exported
    found = run_alone(TRANSFORMERS, folder, json.dumps(PROMPTS))
    assert found["fsa"] == []
    latents = np.repeat(z[None], len(PROMPTS), axis=0)
    written = steerer.write(PROMPTS, latents, max_new_tokens=10, temperature=0.0)
    assert found["texts"] == written.texts
    variables = policies.folded(steerer, z)
    for i, theirs in enumerate(found["logits"]):
        tokens = written.table[i][None, : written.table.start[i]]
        ours = policies.logits(steerer.language.model, variables, tokens)
        np.testing.assert_allclose(ours[0], theirs, atol=1e-4)


def test_an_exported_policy_stops_where_training_ends(tmp_path):
    """At the end of the template's turns, which only the template names."""
    folder = policies.write_language_model(tmp_path / "chat")
    turns = "{% for m in messages %}{{ m.content }} <pad> {% endfor %}"
    (folder / "chat_template.jinja").write_text(turns)
    policies.make_steerer(folder).export(Z[0], tmp_path / "mine")
    found = huggingface.stop_tokens(tmp_path / "mine")
    assert sorted(found) == [corpus.PAD, corpus.EOS]
    assert (tmp_path / "mine" / "chat_template.jinja").read_text() == turns


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
    with pytest.raises(InputError, match="mine"):
        steerer.export(Z[0], tmp_path / "mine")
    assert not list((tmp_path / "mine").iterdir())


def test_choices_that_cannot_be_used_are_named(steerer):
    good = CHOICES[0]
    # Two texts a choice, so that the second choice's rejected text is the fourth.
    with pytest.raises(InputError, match="response 3"):
        steerer.latent([good, (PROMPTS[0], ANSWERS[0], "")])
    with pytest.raises(InputError, match="response 2 .*max_prompt"):
        steerer.latent([good, ("review " * 8, *ANSWERS[:2])])


def test_policies_that_infer_nothing(language_folder):
    everybody = policies.make_steerer(language_folder, latent="none")
    np.testing.assert_array_equal(everybody.latent([]), [1.0])
    with pytest.raises(InputError, match="policy.latent"):
        everybody.latent(CHOICES)
    with pytest.raises(InputError, match="policy.latent"):
        everybody.latent_of_group("formal")


def test_policies_of_groups(language_folder):
    steerer = policies.make_steerer(language_folder, latent="group", num_groups=2)
    by_group = dataclasses.replace(steerer, groups=("casual", "formal"))
    for choices in ([], CHOICES):
        with pytest.raises(InputError, match="casual, formal"):
            by_group.latent(choices)
    with pytest.raises(InputError, match="'Formal'"):
        by_group.latent_of_group("Formal")
    nothing = jax.tree.map(
        lambda x: x[:2],
        policies.make_task(by_group.language).test_batch("test", [0, 1], 0),
    ).episode.context
    found = by_group.latents(nothing, np.array([1, 0]))
    np.testing.assert_array_equal(found, [[0, 1], [1, 0]])
    for name, z in zip(("formal", "casual"), found, strict=True):
        np.testing.assert_array_equal(by_group.latent_of_group(name), z)


@pytest.mark.slow
def test_a_policy_writes_texts_that_are_evaluated(steerer):
    task = policies.make_task(steerer.language)
    evaluate = TextEvaluator(
        steerer.language,
        Steered(steerer, task),
        task,
        (0,),
        attribute="corpus_formality",
        validity="words",
        users_per_group=1,
        prompts_per_user=2,
        max_new_tokens=OPTIONS["max_new_tokens"],
        progress=False,
    )
    assert set(evaluate()[0]["generated"]) == set(policies.GROUPS)


@pytest.fixture
def run(steerer, tmp_path):
    """The folder of a run whose checkpoint is `steerer`, and of its language model."""
    model, workdir = tmp_path / "model", tmp_path / "run"
    shutil.copytree(steerer.language.folder, model)
    config = {
        "language_model": {
            "path": str(model),
            "digest": huggingface.digest(model),
            "dtype": "float32",
        },
        "task": {"pooling": steerer.pooling, "buckets": steerer.buckets},
    }
    policy = steerer.policy
    description = saved_model.describe_policy(
        config,
        model=policies.REWARD,
        policy={"modulations": policy.modulations, "trunk": policy.trunk},
        tokenization=policies.TOKENS,
        groups=tuple(policies.GROUPS),
    )
    save_run(workdir, steerer.variables, description)
    return workdir, model


def save_run(workdir, variables, description):
    variables = jax.tree.map(np.float32, variables)
    with contextlib.closing(Checkpoints(workdir / "checkpoints")) as checkpoints:
        checkpoints.save(1, {VARIABLES: variables}, score=0.0, meta=description)


def test_a_run_is_loaded_with_its_language_model(steerer, run):
    workdir, model = run
    loaded = Steerer.load(workdir)
    assert loaded.policy == steerer.policy
    chex.assert_trees_all_equal(loaded.variables, steerer.variables)
    assert loaded.language.folder == str(model)
    assert loaded.language.model == steerer.language.model
    chex.assert_trees_all_equal(loaded.language.variables, steerer.language.variables)
    assert loaded.buckets == steerer.buckets and loaded.pooling == steerer.pooling
    assert loaded.groups == tuple(policies.GROUPS)
    for name, value in policies.TOKENS.items():
        assert getattr(loaded.language.tokenization, name) == value


@pytest.mark.parametrize(
    "choice",
    [
        {"prompt": "a", "chosen": "b", "rejected": "c"},
        ("a", "b"),
        ("a", "b", "c", "d"),
        ("a", "b", None),
        "abc",
    ],
)
def test_choices_that_are_not_three_texts(steerer, choice):
    with pytest.raises(InputError, match="`choices`, choice 1"):
        steerer.latent([choice])


def test_a_z_for_each_prompt(steerer):
    z = np.zeros((1, policies.REWARD["latent_dim"]), np.float32)
    for latents in (z[0], z):
        with pytest.raises(InputError, match="`latents`"):
            steerer.write(["assess the park :"] * 2, latents)
    with pytest.raises(InputError, match="`prompts`"):
        steerer.write("assess the park :", z)


def test_another_language_model_is_refused(run):
    """Whether it has changed or is gone."""
    workdir, model = run
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-4}))
    with pytest.raises(InputError, match=f"{model}.*another") as error:
        Steerer.load(workdir)
    assert "\n" not in str(error.value)
    shutil.rmtree(model)
    with pytest.raises(InputError, match=str(model)):
        Steerer.load(workdir)


def test_runs_of_other_models_are_refused(tmp_path):
    description = saved_model.describe_reward_model({}, {}, deterministic=True)
    save_run(tmp_path / "reward", {"params": np.zeros(2)}, description)
    with pytest.raises(InputError, match="reward"):
        Steerer.load(tmp_path / "reward")
