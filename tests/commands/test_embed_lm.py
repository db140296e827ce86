"""`fsa embed_lm`: options embedded by a language model, and new ones for a ranker."""

import shutil

import numpy as np
import pytest

from fsa.data import dataset
from fsa.data.collect import collect
from fsa.data.language_model_embedder import LanguageModelEmbedder
from fsa.data.sources import corpus
from fsa.data.tables import Choice
from fsa.errors import InputError
from fsa.inference.option_lookup import OptionLookup
from fsa.language.language_model import LanguageModel

pytestmark = pytest.mark.usefixtures("quick_compile")

PROMPT, *ANSWERS = corpus.WORDS[5], *corpus.WORDS[6:9]
NEW = " ".join(corpus.WORDS[9:11])
TEMPLATE = "{prompt} {option}"


@pytest.fixture
def data_dir(tmp_path):
    choices = [
        Choice("ann", PROMPT, ANSWERS[0], ANSWERS[1], "train"),
        Choice("bob", PROMPT, ANSWERS[0], " ".join(ANSWERS[1:]), "test"),
    ]
    dataset.write(tmp_path / "data", collect(choices, []))
    return tmp_path / "data"


@pytest.fixture
def embedded(launch, data_dir, language_folder):
    arguments = f"--data={data_dir}", f"--model={language_folder}"
    finished = launch("embed_lm", *arguments, f"--template={TEMPLATE}")
    assert finished.code == 0, finished.err
    return dataset.load(data_dir)


def states_of(folder, response):
    """The mean of the final hidden states over a response's tokens, one by one."""
    language = LanguageModel.load(folder, dtype="float32", separator=" ")
    (tokens,) = [language.tokenization.pair(PROMPT, response)]
    together = np.array([[*tokens.prompt, *tokens.response]])
    model, variables = language.model, language.variables
    mask = np.ones(together.shape, bool)
    states, _ = model.apply(variables, together, mask=mask, method=model.hidden)
    return np.asarray(states)[0, len(tokens.prompt) :].mean(axis=0)


@pytest.mark.slow
def test_vectors_are_means_over_the_response(embedded, language_folder):
    for text, vector in zip(embedded.texts, embedded.features, strict=True):
        wanted = states_of(language_folder, text)
        np.testing.assert_allclose(vector, wanted, rtol=1e-4, atol=1e-5)
    assert embedded.embedding == dataset.Embedding(
        language_folder.name, TEMPLATE, LanguageModelEmbedder(language_folder).digest
    )


def test_new_texts_get_their_vectors_from_the_same_model(
    embedded, data_dir, language_folder, tmp_path
):
    width = embedded.features.shape[1]
    lookup = OptionLookup(width, data_dir, language_folder)
    (vector,) = lookup("options", [NEW]).features
    wanted = states_of(language_folder, NEW)
    np.testing.assert_allclose(vector, wanted, rtol=1e-4, atol=1e-5)

    other = shutil.copytree(language_folder, tmp_path / language_folder.name)
    (other / "README.md").write_text("changes no vector")
    OptionLookup(width, data_dir, other)("options", ANSWERS[:1])
    settings = other / "tokenizer_config.json"
    settings.write_text(settings.read_text() + " ")
    with pytest.raises(InputError, match="embedder"):
        OptionLookup(width, data_dir, other)("options", ANSWERS[:1])


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--template={prompt}"], "--template"),
        (["--template={option} {option}"], "--template"),
        (["--template={answer}"], "--template"),
        # Of a model of words, two without a space between are one word.
        (["--template={prompt}{option}"], "--template"),
        (["--model={data}"], "{data}"),
        (["--model={data}/none"], "{data}/none"),
        (["--data={data}/none"], "{data}/none"),
    ],
)
def test_bad_flags(launch, data_dir, language_folder, arguments, named):
    given = [a.replace("{data}", str(data_dir)) for a in arguments]
    finished = launch(
        "embed_lm", f"--data={data_dir}", f"--model={language_folder}", *given
    )
    assert finished.code == 2
    assert named.replace("{data}", str(data_dir)) in finished.err
    assert len(finished.err.splitlines()) == 1
    assert not dataset.load(data_dir, need_features=False).embedder


def test_embed_takes_no_language_model(launch, data_dir, language_folder):
    """It would add a pooling of its own, and call it a sentence encoder."""
    finished = launch("embed", f"--data={data_dir}", f"--model={language_folder}")
    assert finished.code == 2 and "embed_lm" in finished.err
