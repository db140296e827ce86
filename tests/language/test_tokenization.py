"""Tokens decode to the text that they come from; prompt and response meet exactly."""

import json

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from fsa.data.sources import corpus
from fsa.errors import InputError
from fsa.language import huggingface
from fsa.language.tokenization import Tokenization, Unusable, messages_of

START, TURN, END = "<|start|>", "<|turn|>", "<|end|>"
CHATML = (
    "{%- for message in messages -%}<|turn|>{{ message.role }}\n"
    "{{ message.content | trim }}<|end|>\n{% endfor -%}"
    "{%- if add_generation_prompt -%}<|turn|>assistant\n{% endif -%}"
)
# Begins with the date, as Llama 3's does.
DATED = (
    "<|start|>Today: {{ strftime_now('%d %b %Y') }} or {{ date_string }}{{ '\n' }}"
    + CHATML
)
# Drops what was thought once there is an answer, as some reasoning models' do.
FORGETFUL = CHATML.replace(
    "<|turn|>assistant\n{% endif", "<|turn|>assistant\n<think>{% endif"
)
TEXTS = [
    ("What is it?", "A thing."),
    ("  spaces around  ", "  kept or trimmed \n"),
    ("Zürich, 東京 and 🙂", "naïve — 42!"),
    ("ab", "cd"),
    ("line\nbreak", "- one\n- two\n"),
]


@pytest.fixture(scope="module")
def bare():
    """A byte-level tokenizer, with merges that span words' ends."""
    core = tokenizers.Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(
        add_prefix_space=False, use_regex=False
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=[START, TURN, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(["abcd ab cd it? A thing. it?A"] * 20, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=START, eos_token=END, pad_token=END
    )


STORY = "Once upon a time, a girl  had a\nred ball. She lost it."


def spaced(*first):
    """A tokenizer that puts a space before any text, as Llama's, after `first`."""
    core = tokenizers.Tokenizer(models.BPE())
    core.normalizer = normalizers.Sequence(
        [*first, normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=60,
        special_tokens=[START, END],
        initial_alphabet=["\n"],
        show_progress=False,
    )
    core.train_from_iterator(STORY.split() * 9, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token=START)


def with_template(tokenizer, template):
    own = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, bos_token=START, eos_token=END
    )
    own.chat_template = template
    return own


def decode(tokenizer, ids):
    return tokenizer.decode(ids, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize("system", ["", "Be brief."])
@pytest.mark.parametrize("template", [CHATML, DATED])
@pytest.mark.parametrize(("prompt", "response"), TEXTS)
def test_a_template_is_walked_back(bare, template, system, prompt, response):
    tokenizer = with_template(bare, template)
    tokens = Tokenization(tokenizer, date="1 May 1999", system=system).pair(
        prompt, response
    )
    head = f"{START}Today: 1 May 1999 or 1 May 1999\n" if template == DATED else ""
    head += f"{TURN}system\n{system}{END}\n" if system else ""
    head += f"{TURN}user\n{prompt.strip()}{END}\n{TURN}assistant\n"
    assert decode(tokenizer, tokens.prompt) == head
    # Generation stops at the end token: the line break behind it is in no response.
    assert decode(tokenizer, tokens.response) == f"{response.strip()}{END}"
    assert tokens.response[-1] == tokenizer.eos_token_id


@pytest.mark.parametrize(("prompt", "response"), TEXTS)
def test_plain_text_is_walked_back(bare, prompt, response):
    tokens = Tokenization(bare).pair(prompt, response)
    assert decode(bare, tokens.prompt) == prompt
    assert decode(bare, tokens.response) == response + END


def test_no_token_spans_prompt_and_response(bare):
    together = bare("abcd")["input_ids"]
    tokens = Tokenization(bare, end=False).pair("ab", "cd")
    assert len(together) == 1
    assert tokens == (bare("ab")["input_ids"], bare("cd")["input_ids"])


@pytest.mark.parametrize("cut", range(1, len(STORY)))
def test_a_text_is_told_from_its_prompt_wherever_that_ends(cut):
    """In a word, before or behind a space or a line break."""
    tokenizer, prompt, response = spaced(), STORY[:cut], STORY[cut:]
    tokenization = Tokenization(tokenizer, end=False)
    tokens = tokenization.pair(prompt, response)
    assert tokenization.text(*tokens) == response
    assert decode(tokenizer, [*tokens.prompt, *tokens.response]) == STORY
    assert tokens.prompt == tokenization.prompt(prompt)


def test_a_text_that_no_tokens_stand_for_is_left_out():
    tokenization = Tokenization(spaced(normalizers.Replace("\n", "")), end=False)
    assert tokenization.pair("Once", " upon a").response
    with pytest.raises(Unusable, match="prompt"):
        tokenization.pair("Once u", "pon")


@pytest.mark.parametrize(("prompt", "response"), TEXTS)
def test_texts_of_tokens(bare, prompt, response):
    """Of plain text all that follows prompt and separator, of a template's the turn."""
    plain = Tokenization(bare, separator=" -> ")
    assert plain.text(*plain.pair(prompt, response)) == response
    chat = Tokenization(with_template(bare, CHATML))
    assert chat.text(*chat.pair(prompt, response)) == response.strip()


def test_a_prompt_does_not_depend_on_the_response(bare):
    for prompt, _ in TEXTS:
        for _, response in TEXTS:
            tokenization = Tokenization(bare)
            pair = tokenization.pair(prompt, response)
            assert pair.prompt == tokenization.prompt(prompt)


def test_messages_are_prompts(bare):
    messages = [
        {"role": "system", "content": "Rhyme."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Pie"},
        {"role": "user", "content": "Sky"},
    ]
    tokenizer = with_template(bare, CHATML)
    tokenization = Tokenization(tokenizer, system="Ignored: there is one.")
    tokens = tokenization.pair(json.dumps(messages), "My")
    turns = "".join(f"{TURN}{m['role']}\n{m['content']}{END}\n" for m in messages)
    assert decode(tokenizer, tokens.prompt) == f"{turns}{TURN}assistant\n"
    with pytest.raises(InputError, match="chat_template"):
        Tokenization(bare).prompt(json.dumps(messages))


@pytest.mark.parametrize(
    "text", ["[{", "[{}]", '[{"role": "user"}]', "[[1]]", '{"role": 1}', "[{1: 2}]"]
)
def test_what_only_looks_like_messages_is_text(text):
    assert messages_of(text) is None


def test_long_responses_are_cut_and_lose_their_end(bare):
    full = Tokenization(bare).pair("ab", "A thing. " * 9).response
    cut = Tokenization(bare, max_response=5).pair("ab", "A thing. " * 9).response
    assert cut == full[:5]
    assert bare.eos_token_id in full and bare.eos_token_id not in cut


@pytest.mark.parametrize(
    ("prompt", "response", "reason"),
    [
        ("ab" * 50, "cd", "max_prompt"),
        ("ab", " \n", "empty response"),
        ("", "cd", "empty prompt"),
    ],
)
def test_what_is_left_out(bare, prompt, response, reason):
    with pytest.raises(Unusable, match=reason):
        Tokenization(bare, max_prompt=20).pair(prompt, response)


def test_a_template_that_changes_the_prompt_is_refused(bare):
    tokenizer = with_template(bare, FORGETFUL)
    with pytest.raises(InputError, match="chat_template"):
        Tokenization(tokenizer).pair("Hi", "Ho")


def test_an_end_without_an_end_token_is_refused(bare):
    endless = PreTrainedTokenizerFast(tokenizer_object=bare.backend_tokenizer)
    with pytest.raises(InputError, match="eos_token"):
        Tokenization(endless).pair("Hi", "Ho")
    assert Tokenization(endless, end=False).pair("Hi", "Ho").response


def test_a_word_without_a_token_is_unusable(tmp_path):
    """Word-level tokenizers may know no unknown word; the reason names no text."""
    corpus.write_tokenizer(tmp_path)
    tokenization = Tokenization(huggingface.load_tokenizer(tmp_path), separator=" ")
    assert tokenization.pair("assess", "it looks poor .")
    for pair in (("hello", "it looks poor ."), ("assess", "hello")):
        with pytest.raises(Unusable, match="tokenizer"):
            tokenization.pair(*pair)
