"""Tokens decode to the text that they come from; prompt and response meet exactly."""

import json
import logging

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


@pytest.mark.parametrize("token", [START, TURN, END])
def test_special_tokens_are_in_no_text(bare, token):
    """They would end a turn, or begin another one, within what a user wrote."""
    spelled, chat = f"so {token} then", Tokenization(with_template(bare, CHATML))
    messages = json.dumps([{"role": "user", "content": spelled}])
    for tokenization in (chat, Tokenization(bare)):
        with pytest.raises(Unusable, match="special token"):
            tokenization.prompt(spelled)
        with pytest.raises(Unusable, match="special token"):
            tokenization.pair("ab", spelled)
    with pytest.raises(Unusable, match="special token"):
        chat.prompt(messages)
    # What is no special token, but looks like one.
    assert chat.pair("a <|b|> [{c}]", "<|d|> [{e}]").response


def test_a_special_line_break_is_in_any_text(bare):
    tokenizer = with_template(bare, CHATML)
    tokenizer.add_special_tokens({"pad_token": "\n"})
    assert Tokenization(tokenizer).pair("a\nb", "c\nd").response


ENDLESS = CHATML.replace(END, "")


def test_the_end_is_that_of_the_template(bare):
    """Of two special tokens, a response ends with the one that the template writes."""
    for template, end in ((CHATML, END), (CHATML.replace(END, TURN), TURN)):
        tokenization = Tokenization(with_template(bare, template))
        assert tokenization.tokenizer.eos_token == END
        token = tokenization.tokenizer.convert_tokens_to_ids(end)
        assert tokenization.end_token == token
        assert tokenization.pair("ab", "cd").response[-1] == token
        assert tokenization.pair("ab", "cd").response.count(token) == 1


def test_an_end_that_is_not_special_is_in_no_text(bare):
    tokenizer = with_template(bare, CHATML.replace(END, "[/end]"))
    tokenizer.add_tokens(["[/end]"])
    tokenization = Tokenization(tokenizer)
    tokens = tokenization.pair("ab", "cd")
    assert decode(tokenizer, tokens.response) == "cd[/end]"
    assert tokenization.end_token == tokens.response[-1]
    assert tokenization.text(*tokens) == "cd"
    with pytest.raises(Unusable, match="special token"):
        tokenization.pair("ab", "c [/end] d")


def test_a_template_without_an_end_gets_one(bare, caplog):
    caplog.set_level(logging.WARNING, logger="fsa")
    tokenizer = with_template(bare, ENDLESS)
    tokenization = Tokenization(tokenizer)
    assert decode(tokenizer, tokenization.pair("ab", "cd").response) == f"cd{END}"
    assert tokenization.end_token == tokenizer.eos_token_id
    without = Tokenization(tokenizer, end=False)
    assert decode(tokenizer, without.pair("ab", "cd").response) == "cd"
    assert without.end_token is None
    assert not caplog.records
    tokenizer.eos_token = None
    assert (
        Tokenization(tokenizer).pair("ab", "cd").response
        == without.pair("ab", "cd").response
    )
    assert "eos_token" in caplog.text


def test_the_end_is_known_where_an_answer_changes_the_prompt(bare):
    """Such a model can be sampled from, though not trained."""
    tokenization = Tokenization(with_template(bare, FORGETFUL))
    assert tokenization.end_token == bare.eos_token_id
    tokenization.check(400)


ONLY_USERS = (
    "{%- for message in messages if message.role == 'system' -%}"
    "{{ raise_exception('no system role here') }}{%- endfor -%}"
)


def test_what_a_template_refuses_is_left_out_with_its_words(bare):
    tokenizer = with_template(bare, ONLY_USERS + CHATML)
    system = [{"role": "system", "content": "Rhyme."}]
    user = [{"role": "user", "content": "Hi"}]
    tokenization = Tokenization(tokenizer)
    assert tokenization.pair(json.dumps(user), "Ho").response
    with pytest.raises(Unusable, match="no system role here"):
        tokenization.pair(json.dumps(system + user), "Ho")
    with pytest.raises(Unusable, match="no system role here"):
        Tokenization(tokenizer, system="Rhyme.").prompt("Hi")


def test_an_end_that_is_not_known_is_not_made_up(bare):
    """This template takes conversations alone, whose turns end in another token."""
    few = "{%- if messages | length < 3 -%}{{ raise_exception('few') }}{%- endif -%}"
    tokenizer = with_template(bare, few + CHATML.replace(END, TURN))
    tokenization = Tokenization(tokenizer)
    roles = ("user", "assistant", "user")
    messages = json.dumps([{"role": role, "content": "Hi"} for role in roles])
    found = tokenization.pair(messages, "Ho").response
    assert decode(tokenizer, found) == f"Ho{TURN}"
    assert tokenization.end_token is None
    tokenization.check(400)


@pytest.mark.parametrize(
    "expression", ["nothing.of.that", "1 / 0", "range(10 ** 9)", "messages[7].content"]
)
def test_an_error_in_a_template_leaves_the_row_out(bare, expression):
    template = "{{ " + expression + " }}" + CHATML
    tokenization = Tokenization(with_template(bare, template))
    with pytest.raises(Unusable, match="chat_template") as raised:
        tokenization.prompt("Hi")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "broken",
    [
        "{% for %}",
        "{{ messages | nosuch }}",
        "{{ messages.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
    ],
)
def test_templates_that_are_broken_or_unsafe_are_refused(bare, broken):
    tokenization = Tokenization(with_template(bare, broken + CHATML))
    for use in (lambda: tokenization.prompt("Hi"), lambda: tokenization.check(400)):
        with pytest.raises(InputError, match="chat_template") as raised:
            use()
        assert "\n" not in str(raised.value)


def test_of_several_templates_the_default_is_used(bare):
    several = {"tool_use": DATED, "default": CHATML}
    found = Tokenization(with_template(bare, several)).pair("ab", "cd")
    assert found == Tokenization(with_template(bare, CHATML)).pair("ab", "cd")
    nameless = Tokenization(with_template(bare, {"rag": DATED, "tool_use": CHATML}))
    with pytest.raises(InputError, match="rag, tool_use"):
        nameless.prompt("ab")


# As Qwen 3's: the generation prompt itself says that nothing is to be thought.
THINKING = CHATML.replace(
    "assistant\n{% endif",
    "assistant\n{% if enable_thinking is false %}(no thoughts) {% endif %}{% endif",
)


def test_arguments_of_a_template(bare):
    tokenizer = with_template(bare, THINKING)
    asked = '{"enable_thinking": false, "unused": [1]}'
    for arguments, begin in (("", ""), (asked, "(no thoughts) ")):
        tokenization = Tokenization(tokenizer, template_arguments=arguments)
        prompt = decode(tokenizer, tokenization.prompt("Hi"))
        assert prompt.endswith(f"{TURN}assistant\n{begin}")
    for wrong in ("{", "[1]", '{"messages": []}', '{"date_string": "x"}'):
        with pytest.raises(InputError, match="template_arguments"):
            Tokenization(tokenizer, template_arguments=wrong).prompt("Hi")
    with pytest.raises(InputError, match="template_arguments"):
        Tokenization(bare, template_arguments=asked).prompt("Hi")


def test_tokens_beyond_the_embedding_are_refused(bare):
    tokenizer = with_template(bare, CHATML)
    size = len(tokenizer)
    Tokenization(tokenizer).check(size)
    with pytest.raises(InputError, match=f"id {size - 1}.*{size - 1} tokens"):
        Tokenization(tokenizer).check(size - 1)
    # A token that stands for images is in no text, as Gemma 3 has one.
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    Tokenization(tokenizer).check(size)
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    with pytest.raises(InputError, match=f"'<pad>' with id {size + 1}.*{size} tokens"):
        Tokenization(tokenizer).check(size)


def test_a_token_beyond_the_embedding_that_the_template_writes(bare):
    tokenizer = with_template(bare, "<extra>" + CHATML)
    size = len(tokenizer)
    tokenizer.add_tokens(["<extra>"], special_tokens=True)
    with pytest.raises(InputError, match=f"'<extra>' with id {size}.*{size} tokens"):
        Tokenization(tokenizer).check(size)
