"""Chat messages: those that are text become text, and anything more is refused."""

import json

import pytest

from fsa.language.tokenization import Unusable, as_prompt, messages_of

TEXT = {"type": "text", "text": "What "}
# What a Parquet file makes of a part of text beside parts of images.
PADDED = {"type": "text", "text": "is it?", "image": None}


def message(content, **more):
    return [{"role": "user", "content": content, **more}]


@pytest.mark.parametrize(
    "messages",
    [
        message("What is it?"),
        message([TEXT, PADDED]),
        message("What is it?", name=None, tool_calls=None),
        message([TEXT, PADDED], tool_calls=None),
    ],
)
@pytest.mark.parametrize(
    "write", [as_prompt, json.dumps, lambda m: json.dumps(m, indent=2)]
)
def test_messages_of_texts(messages, write):
    """As a list, as JSON, and as JSON over several lines."""
    assert messages_of(as_prompt(write(messages))) == message("What is it?")


@pytest.mark.parametrize(
    "content",
    [
        None,
        3,
        True,
        {"text": "What is it?"},
        [],
        ["What is it?"],
        [{"type": "image"}],
        [TEXT, {"type": "image_url", "image_url": "x.png"}],
        [{"type": "text", "text": None}],
        [{**TEXT, "cache_control": "x"}],
    ],
)
def test_content_that_is_no_text_is_refused(content):
    for prompt in (message(content), json.dumps(message(content))):
        with pytest.raises(Unusable, match="content"):
            as_prompt(prompt)
    # Datasets of older versions may hold such prompts.
    with pytest.raises(Unusable, match="content"):
        messages_of(json.dumps(message(content)))


@pytest.mark.parametrize("write", [lambda messages: messages, json.dumps])
def test_keys_that_have_a_value_are_refused(write):
    with pytest.raises(Unusable, match="tool_calls"):
        as_prompt(write(message("x", tool_calls=[{"id": 1}])))
    with pytest.raises(Unusable, match="role"):
        as_prompt(write([{"role": 1, "content": "x"}]))


@pytest.mark.parametrize("value", [[], [{}], ["text"], [{"role": "user"}], [1.0]])
def test_a_list_that_is_not_of_messages_is_refused(value):
    with pytest.raises(Unusable, match="messages"):
        as_prompt(value)


@pytest.mark.parametrize("value", ["[1, 2]", "[{", "[{" * 9999, "text", 7, None])
def test_anything_else_is_left_as_it_is(value):
    assert as_prompt(value) == value
