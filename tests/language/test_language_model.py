"""A language model from texts to texts, whatever the parts of a batch."""

import dataclasses
import json
import logging

import numpy as np
import policies
import pytest

from fsa.data.sources import corpus
from fsa.errors import InputError
from fsa.language import huggingface, language_model, text_features
from fsa.language.language_model import LanguageModel
from fsa.language.token_table import TokenTable

pytestmark = pytest.mark.usefixtures("quick_compile")

PROMPTS = [
    "review the novel :",
    "assess",
    "judge the park :",
    "",
    "discuss the opera :",
]
OPTIONS = dict(max_new_tokens=9, seed=3)


@pytest.fixture(scope="module")
def language(language_folder):
    return LanguageModel.load(
        str(language_folder), examples_at_once=2, **policies.TOKENS
    )


@pytest.fixture(scope="module")
def written(language):
    return language.write(PROMPTS, **OPTIONS)


def same(first, second):
    assert first.texts == second.texts
    for name in ("flat", "offset", "start"):
        np.testing.assert_array_equal(
            getattr(first.table, name), getattr(second.table, name)
        )


@pytest.mark.parametrize(
    "examples_at_once",
    [
        pytest.param(1, marks=pytest.mark.slow),
        pytest.param(5, marks=pytest.mark.slow),
        64,
    ],
)
def test_parts_of_a_batch_do_not_show(language, written, examples_at_once):
    """Five prompts in parts of two, the last filled up, of one, and at once."""
    same(
        policies.with_examples_at_once(language, examples_at_once).write(
            PROMPTS, **OPTIONS
        ),
        written,
    )


def test_a_text_depends_on_its_prompt_position_and_seed_alone(language, written):
    others = ["describe the farm :", *PROMPTS[1:3], "", "describe the farm :"]
    again = language.write(others, **OPTIONS)
    for i in (1, 2, 3):
        assert again.texts[i] == written.texts[i]
    assert again.texts[0] != written.texts[0]
    fewer = language.write(PROMPTS[:3], **OPTIONS)
    assert fewer.texts == written.texts[:3]
    # The same prompt at another position draws again.
    assert len(set(language.write(["assess"] * 4, **OPTIONS).texts)) > 2


def test_seeds(language, written):
    same(language.write(PROMPTS, **OPTIONS), written)
    other = language.write(PROMPTS, **{**OPTIONS, "seed": 4})
    assert all(a != b for a, b in zip(other.texts, written.texts, strict=True))
    greedy = dict(max_new_tokens=9, temperature=0.0)
    same(
        language.write(PROMPTS, **greedy, seed=1),
        language.write(PROMPTS, **greedy, seed=2),
    )


def test_the_table_is_prompts_and_what_was_written(language, written):
    for i, prompt in enumerate(PROMPTS):
        tokens = written.table[i].tolist()
        start = written.table.start[i]
        assert tokens[:start] == [corpus.BOS, *corpus.encode(prompt)]
        assert 1 <= len(tokens[start:]) <= 9
        assert corpus.decode(tokens[start:]) == written.texts[i]


@pytest.mark.slow
def test_specials_are_no_text(language):
    """A random model generates <pad> and <bos> as often as any word."""
    written = language.write(["assess"] * 24, max_new_tokens=24)
    found = [written.table[i][written.table.start[i] :] for i in range(24)]
    specials = np.concatenate(found) <= corpus.EOS
    assert specials.any() and not specials.all()
    for text, tokens in zip(written.texts, found, strict=True):
        assert not set(text.split()) & set(corpus.SPECIALS)
        assert text == text.strip()
        assert len(text.split()) == (tokens > corpus.EOS).sum()
        # A text ends with its end, which is counted, or when the room is used up.
        assert (tokens[:-1] != corpus.EOS).all()
        assert tokens[-1] == corpus.EOS or len(tokens) == 24


@pytest.mark.slow
def test_texts_are_the_same_however_rows_are_used(language, monkeypatch):
    """In one batch, batch after batch, and in rows that are refilled."""
    prompts = [*PROMPTS, "assess"] * 6
    options = dict(max_new_tokens=24, seed=3)
    many_rows = dataclasses.replace(language, examples_at_once=64)
    together = many_rows.write(prompts, **options)
    few_rows = dataclasses.replace(language, examples_at_once=5)
    batches = few_rows.write(prompts, **options)
    monkeypatch.setattr(language_model, "_REFILLED", 1)
    refilled = few_rows.write(prompts, **options)
    assert len(set(together.texts)) > len(prompts) // 2
    assert together.texts == batches.texts == refilled.texts


def test_stop_tokens_of_the_generation_config(language, language_folder, tmp_path):
    assert language.stop_tokens == (corpus.EOS,)
    free = language.write(PROMPTS, **OPTIONS)
    starts = enumerate(free.table.start)
    responses = [free.table[i][start:].tolist() for i, start in starts]
    stop = next(token for token in responses[0][1:] if token > corpus.EOS)
    folder = policies.write_language_model(tmp_path / "model")
    content = {"eos_token_id": [stop, 4]}
    (folder / "generation_config.json").write_text(json.dumps(content))
    stopping = LanguageModel.load(str(folder), examples_at_once=2, **policies.TOKENS)
    # The tokenizer's own end still ends a text.
    assert sorted(stopping.stop_tokens) == [corpus.EOS, 4, stop]
    found = stopping.write(PROMPTS, **OPTIONS)
    for i, tokens in enumerate(responses):
        ends = [at for at, t in enumerate(tokens) if t in (stop, 4, corpus.EOS)]
        kept = tokens[: ends[0] + 1] if ends else tokens
        assert found.table[i][found.table.start[i] :].tolist() == kept
    assert len(found.texts[0]) < len(free.texts[0])


# Ends a turn with a token that is neither the tokenizer's nor the generation config's.
TEMPLATE = "{% for m in messages %}{{ m.content }} <pad> {% endfor %}"


def edited(folder, file, **fields):
    """Sets fields of a JSON file of a model's folder."""
    content = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps({**content, **fields}))
    return folder


def test_texts_end_as_training_ends_them(tmp_path):
    folder = policies.write_language_model(tmp_path / "model")
    edited(folder, "tokenizer_config.json", chat_template=TEMPLATE)
    language = LanguageModel.load(str(folder))
    assert sorted(language.stop_tokens) == [corpus.PAD, corpus.EOS]
    table = language.pairs([("assess", "it looks poor .")])
    assert table[0][-1] == corpus.PAD
    written = language.write(["assess"] * 40, max_new_tokens=30).table
    assert {corpus.PAD, corpus.EOS} <= {written[i][-1] for i in range(40)}
    for i, start in enumerate(written.start):
        assert not {corpus.PAD, corpus.EOS} & set(written[i][start:-1].tolist())


def test_a_tokenizer_of_another_model_is_refused(tmp_path, monkeypatch):
    folder = policies.write_language_model(tmp_path / "model")
    content = json.loads((folder / "tokenizer.json").read_text())
    size = len(corpus.WORDS)
    content["model"]["vocab"]["beyond"] = size
    (folder / "tokenizer.json").write_text(json.dumps(content))
    # Before any weights are read.
    monkeypatch.setattr(huggingface, "load", None)
    with pytest.raises(InputError, match=f"'beyond'.* {size}.*{size} tokens") as found:
        LanguageModel.load(str(folder))
    assert str(found.value).startswith(f"{folder}: ")
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("template", ["{% for %}", "{{ messages.append(1) }}"])
def test_a_template_that_cannot_be_used_is_refused(tmp_path, template):
    folder = policies.write_language_model(tmp_path / "model")
    edited(folder, "tokenizer_config.json", chat_template=template)
    with pytest.raises(InputError, match="chat_template") as error:
        LanguageModel.load(str(folder))
    assert str(error.value).startswith(f"{folder}: ") and "\n" not in str(error.value)


def test_texts_longer_than_the_model_knows_are_said_once(tmp_path, caplog):
    caplog.set_level(logging.WARNING, logger="fsa")
    folder = policies.write_language_model(tmp_path / "model")
    edited(folder, "config.json", max_position_embeddings=12)
    language = LanguageModel.load(str(folder), **policies.TOKENS)
    pairs = language.pairs([("review the novel :", "it looks poor .")])
    assert pairs.length[0] <= 12
    language.score(pairs)
    language.write(["review the novel :"], max_new_tokens=7)
    assert not caplog.records
    for _ in range(2):
        language.write(["review the novel :"], max_new_tokens=8)
    assert caplog.text.count("max_position_embeddings") == 1


def test_pairs_come_back_as_text(language):
    pairs = corpus.texts(5, 30)
    short = [(p, a) for p, a in pairs if len(a.split()) < policies.MAX_RESPONSE]
    table = language.pairs(short)
    for i, (prompt, answer) in enumerate(short):
        tokens, start = table[i].tolist(), table.start[i]
        decode = language.tokenization.tokenizer.decode
        assert decode(tokens[:start], skip_special_tokens=True) == prompt
        assert decode(tokens[start:], skip_special_tokens=True) == answer
        assert tokens[-1] == corpus.EOS


def test_the_form_is_that_of_the_text_which_is_left(language):
    pairs = [(p, a) for p, a in corpus.texts(5, 30) if " " in a]
    table = language.pairs(pairs)
    lengths = table.length - table.start
    assert lengths.max() == policies.MAX_RESPONSE > lengths.min()
    # An item without tokens has no form.
    items = [(table[i], table.start[i]) for i in range(len(pairs))]
    table = TokenTable.of([*items, ([], 0)])
    log_prob, features = language.score(table, pooling="mean_and_form")
    states = language.score(table, pooling="mean")
    np.testing.assert_array_equal(log_prob, states[0])
    width = language.model.width
    np.testing.assert_array_equal(features[:, :width], states[1])
    texts = []
    for (_, answer), length in zip(pairs, lengths, strict=True):
        # A word is a token, and the end is one more.
        texts.append(" ".join(answer.split()[:length]))
    found = features[:, width:]
    np.testing.assert_allclose(found[:-1], text_features.form(texts), rtol=1e-6)
    assert not found[-1].any() and np.ptp(found[:-1], axis=0).any()
    words = text_features.word_counts([*texts, ""])
    for pooling, wanted in (
        ("mean_and_form", features),
        ("form", found),
        ("form_and_words", np.concatenate([found, words], axis=1)),
    ):
        np.testing.assert_allclose(
            language.embed(table, pooling=pooling), wanted, rtol=1e-5, atol=1e-6
        )


def test_the_form_alone_takes_no_language_model(language, monkeypatch):
    monkeypatch.setattr(type(language.model), "apply", None)
    found = language.embed(
        language.pairs([("assess", "it remains great .")]), pooling="form"
    )
    assert found.shape == (1, text_features.NUM_FORM)


@pytest.mark.slow
def test_options_reach_the_sampler(language):
    greedy = language.write(PROMPTS, max_new_tokens=9, temperature=0.0)
    for option in (dict(top_k=1), dict(top_p=1e-6)):
        assert language.write(PROMPTS, max_new_tokens=9, **option).texts == greedy.texts


LONG = " ".join(["review"] * policies.MAX_PROMPT)


@pytest.mark.parametrize(
    ("prompt", "message"), [(LONG, "max_prompt"), ("hello there", "tokenizer")]
)
def test_a_prompt_that_cannot_be_used_is_named(language, prompt, message):
    for use in (
        lambda: language.write(["assess", prompt], max_new_tokens=2),
        lambda: language.prompts(["assess", prompt]),
    ):
        with pytest.raises(InputError, match=message) as error:
            use()
        assert str(error.value).startswith(f"prompt 1 ('{prompt[:30]}")
        assert "\n" not in str(error.value)


def test_a_response_that_cannot_be_used_is_named(language):
    good = ("assess", "it looks poor .")
    with pytest.raises(InputError, match="response 1"):
        language.pairs([good, ("assess", " ")])
    with pytest.raises(InputError, match="response 2 .* max_prompt"):
        language.pairs([good, good, (LONG, "it looks poor .")])


def test_a_folder_without_tokenizer(language_folder, tmp_path):
    (tmp_path / "bare").mkdir()
    for file in language_folder.iterdir():
        if not file.name.startswith("tokenizer"):
            (tmp_path / "bare" / file.name).write_bytes(file.read_bytes())
    with pytest.raises(InputError, match="tokenizer.json"):
        LanguageModel.load(str(tmp_path / "bare"))
    with pytest.raises(InputError, match="config.json"):
        huggingface.load(tmp_path / "nowhere")
