"""Prompts to sample answers to, and these answers."""

import dataclasses

import policies
import pytest

from fsa.data import files, splits
from fsa.data.sources.prompts import (
    read_prompts,
    sample_answers,
    sample_openings,
    splits_of,
)
from fsa.errors import InputError
from fsa.language.language_model import LanguageModel

pytestmark = pytest.mark.usefixtures("quick_compile")


@pytest.fixture(scope="module")
def language(language_folder):
    return LanguageModel.load(str(language_folder), **policies.TOKENS)


@pytest.mark.slow
def test_openings_are_beginnings_of_the_models_own_texts(language):
    found = sample_openings(language, 7, 4, seed=1)
    assert len(set(found)) == len(found) == 7
    # Of at most four words the last is dropped.
    assert all(1 <= len(text.split()) <= 3 for text in found)
    texts = language.write([""] * 7, max_new_tokens=4, seed=1).texts
    assert texts[0].startswith(found[0])
    assert sample_openings(language, 7, 4, seed=1) == found
    assert sample_openings(language, 7, 4, seed=2) != found


def test_a_model_with_too_little_to_say(language):
    """A single word, which may be cut off, is no opening."""
    with pytest.raises(InputError, match="`openings`=3"):
        sample_openings(language, 3, 1, seed=0)


def test_a_model_of_chats_does_not_begin_unasked(language):
    class Chat:
        chat_template = "{{ messages }}"

    chat = dataclasses.replace(
        language,
        tokenization=dataclasses.replace(language.tokenization, tokenizer=Chat()),
    )
    with pytest.raises(InputError, match="`openings`"):
        sample_openings(chat, 3, 4, seed=0)


def test_a_prompt_has_its_split_whatever_the_others(tmp_path):
    prompts = [f"p{i}" for i in range(50)]
    found = splits_of(prompts, seed=0)
    assert list(found) == prompts and {*found.values()} == {*splits.SPLITS}
    assert splits_of(prompts[7:9], seed=0) == {p: found[p] for p in prompts[7:9]}
    assert splits_of(prompts, seed=1) != found
    rows = [{"prompt": prompt} for prompt in prompts]
    rows[0]["split"] = given = "test" if found["p0"] == "train" else "train"
    files.write_jsonl(tmp_path / "a.jsonl", rows)
    assert read_prompts(str(tmp_path / "a.jsonl"), seed=0) == found | {"p0": given}


def test_answers_are_in_the_split_of_their_prompt(language):
    prompts = {"assess": "train", "review the novel :": "test"}
    options = dict(max_new_tokens=6, seed=4)
    rows = sample_answers(language, prompts, 3, **options)
    repeated = [prompt for prompt in prompts for _ in range(3)]
    assert [row["prompt"] for row in rows] == repeated
    assert [row["split"] for row in rows] == ["train"] * 3 + ["test"] * 3
    answers = [row["answer"] for row in rows]
    assert answers == language.write(repeated, **options).texts
    assert len(set(answers[:3])) > 1
