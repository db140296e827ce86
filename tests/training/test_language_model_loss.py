"""Pretraining a language model: its loss, and the folder that a run writes."""

import json

import jax
import numpy as np
import pytest
from policies import SIZES, language_model
from scipy.special import log_softmax

from fsa.data.sources import corpus
from fsa.language import huggingface
from fsa.language.language_model import LanguageModel
from fsa.training import language_model_loss
from fsa.training.monitor.metrics import read_metrics

pytestmark = pytest.mark.usefixtures("quick_compile")

B = 6
STEPS = 12


def loss_of(tokens):
    model, variables = language_model()
    loss_fn = jax.jit(language_model_loss.make_loss(model, corpus.PAD))
    loss, metrics = loss_fn(variables, ((), tokens), jax.random.key(0))
    return float(loss), float(metrics["nll"])


def by_hand(tokens):
    """Negative log-likelihood as (mean over sequences, mean over tokens)."""
    model, variables = language_model()
    logits, _ = jax.jit(model.apply)(variables, tokens)
    log_probs = log_softmax(np.float64(logits), axis=-1)
    sums, count = [], 0
    for example, predicted in zip(tokens, log_probs, strict=True):
        length = int((example != corpus.PAD).sum())
        nll = [-predicted[t - 1, example[t]] for t in range(1, length)]
        sums.append(sum(nll))
        count += len(nll)
    return np.mean(sums), sum(sums) / count


def test_the_loss_is_that_of_sequences():
    tokens = corpus.sequences(0, B)
    np.testing.assert_allclose(loss_of(tokens), by_hand(tokens), rtol=1e-5)
    # Sequences differ in length, so the two means differ.
    assert len(set((tokens != corpus.PAD).sum(axis=1))) > 2


def test_padding_does_not_count():
    tokens = corpus.sequences(0, B)
    wider = np.pad(tokens, ((0, 0), (0, 5)), constant_values=corpus.PAD)
    np.testing.assert_allclose(loss_of(wider), loss_of(tokens), rtol=1e-6)


@pytest.fixture(scope="module")
def run(quick_compile, launch, tmp_path_factory):
    """The directory of a run of a few steps."""
    workdir = tmp_path_factory.mktemp("runs") / "language"
    fields = {
        "task.sequences": 50,
        **{f"transformer.{name}": size for name, size in SIZES.items()},
        "optimizer.learning_rate": 0.02,
        "optimizer.warmup_steps": 2,
        "train.steps": STEPS,
        "train.batch_size": 16,
        "train.steps_per_call": 3,
        "train.validate_every": STEPS // 2,
        "eval.sequences": 32,
    }
    finished = launch(
        "train",
        "--config=experiments/policy/corpus.py:language",
        *(f"--config.{name}={value}" for name, value in fields.items()),
        f"--workdir={workdir}",
    )
    assert finished.code == 0, finished.err
    assert f"Written: {workdir / 'model'}" in finished.out
    return workdir


def test_a_few_steps_lower_the_loss(run):
    train_entries = read_metrics(run, "train")
    assert train_entries[-1]["nll"] < train_entries[0]["nll"] - 0.1
    first, last = read_metrics(run, "valid")
    assert last["score"] < first["score"]
    # At the start the model is uniform over the vocabulary.
    assert last["nll"] < np.log(len(corpus.WORDS)) - 0.1


def test_the_run_ends_in_a_folder_that_loads(run):
    """Its log-likelihood of held-out sequences is that of validation."""
    loaded = LanguageModel.load(run / "model", separator=" ")
    held_out = corpus.sequences(1, 32)
    loss_fn = jax.jit(language_model_loss.make_loss(loaded.model, corpus.PAD))
    loss, _ = loss_fn(loaded.variables, ((), held_out), jax.random.key(0))
    np.testing.assert_allclose(loss, read_metrics(run, "valid")[-1]["score"], rtol=1e-5)
    # The draws of `texts` and `sequences` are the same where their sizes are.
    prompt, answer = corpus.texts(1, 32)[0]
    tokens = loaded.tokenization.pair(prompt, answer)
    assert [*tokens.prompt, *tokens.response] == held_out[0][held_out[0] > 0].tolist()
    assert loaded.stop_tokens == (corpus.EOS,)


def test_transformers_computes_the_same_logits(run):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    folder = run / "model"
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    model, variables = huggingface.load(folder)
    tokens = corpus.sequences(2, 3)
    with torch.no_grad():
        wanted = theirs(torch.tensor(tokens).long()).logits.numpy()
    found, _ = jax.jit(model.apply)(variables, tokens)
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    prompt = corpus.prompts()[0]
    assert tokenizer(prompt)["input_ids"] == [corpus.BOS, *corpus.encode(prompt)]


def test_the_folder_names_the_special_tokens(run):
    described = json.loads((run / "model" / "config.json").read_text())
    for name, token in zip(("pad", "bos", "eos"), range(3), strict=True):
        assert described[f"{name}_token_id"] == token
