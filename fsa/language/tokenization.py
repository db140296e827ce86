"""Prompts and responses as tokens, with an exact boundary between the two.

A prompt is text, or chat messages `[{"role": ..., "content": ...}, ...]`, as JSON in
datasets. A chat template renders prompt and response, and the response is then what the
template puts behind the generation prompt, its end-of-turn token included. Without
a template the prompt's text is followed by `separator` and the response's text. Where
neither writes an end, `end` adds the end-of-sequence token.

Texts never hold special tokens: one that spells such a token would end a turn or begin
another in the middle of what a user wrote.
"""

import dataclasses
import functools
import inspect
import json
import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jinja2
import jinja2.sandbox

from fsa.errors import InputError

_LOG = logging.getLogger(__name__)

_MESSAGES = re.compile(r"\s*\[\s*\{")


class Unusable(ValueError):
    """A prompt or response that cannot be used; the message is the reason alone."""


class Inseparable(Unusable):
    """A prompt and a response that share a token, as words without a space do."""


class Tokens(NamedTuple):
    """Token ids of a prompt and of a response to it.

    Attributes:
      prompt: all tokens before the first token of the response.
      response: the tokens that a model would have to generate, the end included.
    """

    prompt: list[int]
    response: list[int]


def messages_of(prompt: str) -> list[dict[str, str]] | None:
    """Returns the chat messages that a prompt holds as JSON, or None if it is text.

    Content in several parts is joined if all are text; keys without a value are left
    out.

    Raises:
      Unusable: for messages that hold more than the texts of role and content.
    """
    if not _MESSAGES.match(prompt):
        return None
    try:
        return _messages(json.loads(prompt))
    except (json.JSONDecodeError, RecursionError):
        return None


def as_prompt(value: Any) -> Any:
    """Returns chat messages as JSON text, and anything else unchanged.

    Raises:
      Unusable: for a list that is not of messages, and for messages, in a list or
        as JSON, that hold more than the texts of role and content.
    """
    if isinstance(value, str):
        messages_of(value)
        return value
    if not isinstance(value, list):
        return value
    messages = _messages(value)
    if not messages:
        raise Unusable("a list, but not of messages with role and content")
    return json.dumps(messages, ensure_ascii=False)


def _messages(values: list[Any]) -> list[dict[str, str]] | None:
    """Returns a list as messages of texts, or None if it is not of messages."""
    if all(isinstance(v, dict) and {"role", "content"} <= v.keys() for v in values):
        return [_message(value) for value in values]
    return None


def _message(value: dict[str, Any]) -> dict[str, str]:
    found = _without_gaps(value)
    if more := found.keys() - {"role", "content"}:
        raise Unusable(f"a message has {min(more)} beside role and content")
    role, content = found.get("role"), found.get("content")
    if isinstance(content, list) and content:
        content = "".join(map(_text_of_part, content))
    if not isinstance(role, str) or not isinstance(content, str):
        raise Unusable("a message whose role or content is no text")
    return {"role": role, "content": content}


def _text_of_part(part: Any) -> str:
    found = _without_gaps(part) if isinstance(part, dict) else {}
    text = found.pop("text", None)
    if found != {"type": "text"} or not isinstance(text, str):
        raise Unusable("a message whose content has parts that are no text")
    return text


def _without_gaps(value: dict[str, Any]) -> dict[str, Any]:
    # A Parquet file gives every message all keys that any message has.
    return {name: x for name, x in value.items() if x is not None}


def template_arguments(text: str) -> dict[str, Any]:
    """Reads arguments of chat templates, a JSON object; none from "".

    Raises:
      InputError: for anything else.
    """
    try:
        found = json.loads(text or "{}")
    except (ValueError, RecursionError) as error:
        found = error
    if not isinstance(found, dict):
        raise InputError(
            f"`template_arguments`={text}: not a JSON object; give one, such as "
            '{"enable_thinking": false}'
        )
    return found


@functools.cache
def _warn_of_no_end(reason: str) -> None:
    # Not when it is found: if a template refuses every prompt, that is the error.
    _LOG.warning("the end of responses is not known: %s", reason)


def _line(error: Exception) -> str:
    """Returns the first line of an error, or its name."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


@dataclasses.dataclass(frozen=True)
class Tokenization:
    """A tokenizer with the settings by which texts become tokens.

    Attributes:
      tokenizer: a tokenizer of transformers, with or without a chat template.
      date: what a template writes where it asks for today's date, so that tokens do not
        depend on the day.
      system: a system message put before messages that have none, "" for none.
      separator: text between prompt and response if there is no template.
      end: whether to add the end-of-sequence token to a response if there is no
        template, or one that writes no end.
      template_arguments: what a template is given besides the messages, such as
        `{"enable_thinking": false}`: a JSON object, "" for nothing.
      max_prompt: prompts of more tokens are refused, since a prompt that is cut asks
        something else.
      max_response: responses are cut after this many tokens and then lose their end.
    """

    tokenizer: Any
    date: str = "26 Jul 2024"
    system: str = ""
    separator: str = ""
    end: bool = True
    template_arguments: str = ""
    max_prompt: int = 512
    max_response: int = 512

    def check(self, vocab_size: int) -> None:
        """Checks tokenizer and template against a model that embeds `vocab_size` ids.

        Raises:
          InputError: for a token beyond the embedding that texts or templates can have,
            and for a template that is broken or unsafe.
        """
        # Other special tokens occur nowhere, such as those that stand for images, and
        # those that classes of transformers add for unknown text.
        used = {*self._named, *sum(self._written or (), [])}
        for token, i in self.tokenizer.get_vocab().items():
            if i >= vocab_size and (i in used or i not in self._special):
                raise InputError(
                    f"the tokenizer has a token {token!r} with id {i}, but the model "
                    f"embeds {vocab_size} tokens; take both from one folder"
                )

    def prompt(self, prompt: str) -> list[int]:
        """Returns the tokens of a prompt, from which a response can be generated.

        Raises:
          Unusable: for a prompt without tokens, or with too many, or with a word that
            the tokenizer has no token for, or that spells a special token, or that the
            chat template refuses.
          InputError: for messages if the tokenizer has no chat template.
        """
        for message in messages_of(prompt) or [{"content": prompt}]:
            for text in message.values():
                self._refuse_special(text)
        tokens = self._encode(self._prompt_text(prompt), start=True)
        if not tokens:
            raise Unusable("empty prompt, and the tokenizer adds no start token")
        if len(tokens) > self.max_prompt:
            raise Unusable(f"prompt of more than max_prompt={self.max_prompt} tokens")
        if isinstance(self._probed, Unusable):
            _warn_of_no_end(str(self._probed))
        return tokens

    def pair(self, prompt: str, response: str) -> Tokens:
        """Returns the tokens of a prompt and of a response to it.

        Raises:
          Unusable: as `prompt`, and for an empty response, one that spells a special
            token, or one that no tokens behind the prompt's tokens decode to.
          InputError: as `prompt`, for a template that renders the prompt differently
            once it is answered, and for a tokenizer without an end token if `end`.
        """
        before = self.prompt(prompt)
        if not response.strip():
            raise Unusable("empty response")
        self._refuse_special(response)
        after = self._after(prompt, before, response)
        if not self.has_template and self.end and self.end_token is None:
            raise InputError(
                "the tokenizer has no eos_token to end responses with; name one in "
                "tokenizer_config.json or set end to false"
            )
        if self.end_token is not None and after[-1:] != [self.end_token]:
            after = [*after, self.end_token]
        return Tokens(before, after[: self.max_response])

    def _after(self, prompt: str, before: list[int], response: str) -> list[int]:
        """Returns the tokens behind a prompt's, with the end that a template writes."""
        if self.has_template:
            return self._continue(prompt, before, self._answer(prompt, response))
        return self._continue(prompt, before, self.separator + response)

    @functools.cached_property
    def end_token(self) -> int | None:
        """The token that ends a response; None if there is none."""
        if self._written is None:
            return None
        *_, last = [None, *self._written.response]
        if last in self.tokenizer.added_tokens_decoder:
            return last
        if not self.end:
            return None
        if self.has_template and self.tokenizer.eos_token_id is None:
            _LOG.warning(
                "the chat_template writes no end, and the tokenizer has no eos_token: "
                "what is written will not end"
            )
        return self.tokenizer.eos_token_id

    @property
    def _written(self) -> Tokens | None:
        """What a template writes around a prompt, and behind a response to it.

        None if the template refuses any two such texts.
        """
        return None if isinstance(self._probed, Unusable) else self._probed

    @functools.cached_property
    def _probed(self) -> Tokens | Unusable:
        """What `_written` returns, or why it is not known."""
        prompt, response = "(prompt)", "(response)"
        if not self.has_template:
            return Tokens([], [])
        try:
            before = self._prompt_text(prompt).replace(prompt, "")
            together = self._render(self._answered(prompt, response))
            _, found, end = together.rpartition(response)
            # White space behind the end belongs to the next turn.
            end = end.rstrip() if found else ""
            return Tokens(*(self._encode(text, start=True) for text in (before, end)))
        except Unusable as error:
            return error

    def text(self, prompt: Sequence[int], response: Sequence[int]) -> str:
        """Returns the text of a generated response, without special tokens.

        With a template the white space around it is dropped. Without one, prompt,
        `separator` and this text together are what was generated, so that the text may
        begin with a space or with the rest of a word.
        """
        decode = functools.partial(self.tokenizer.decode, skip_special_tokens=True)
        if len(response) and response[-1] == self.end_token:
            response = response[:-1]  # Not all that end a turn are special.
        if self.has_template:
            return decode(response).strip()
        # Behind its prompt, since some tokenizers drop the first space of any text.
        together = decode([*prompt, *response])
        return together[len(decode(prompt)) :].removeprefix(self.separator)

    @property
    def has_template(self) -> bool:
        """Whether the tokenizer has a chat template."""
        return bool(self._template)

    @functools.cached_property
    def _template(self) -> str:
        """The chat template, of several the one named default; "" if there is none."""
        found = self.tokenizer.chat_template or ""
        if isinstance(found, Mapping) and "default" not in found:
            raise InputError(
                f"the chat templates are {', '.join(found)}, and none is 'default'; "
                "name one so"
            )
        found = found["default"] if isinstance(found, Mapping) else found
        if not isinstance(found, str):
            raise InputError("the chat_template is no text; correct it")
        return found

    @functools.cached_property
    def _arguments(self) -> dict[str, Any]:
        """The arguments of the template besides messages and date."""
        found = template_arguments(self.template_arguments)
        taken = inspect.signature(self.tokenizer.apply_chat_template).parameters
        for name in found.keys() & {"messages", "date_string", *taken}:
            raise InputError(
                f"`template_arguments`: {name} is not for templates; leave it out"
            )
        return found

    @functools.cached_property
    def _named(self) -> set[int]:
        """Ids of the tokens that begin, end and pad."""
        of = self.tokenizer
        return {of.bos_token_id, of.eos_token_id, of.pad_token_id} - {None}

    @functools.cached_property
    def _special(self) -> dict[int, str]:
        """Id -> text of the tokens that no text may spell."""
        added = self.tokenizer.added_tokens_decoder.items()
        own = {*self._named, self.end_token}
        found = {i: t.content for i, t in added if t.special or i in own}
        # A line break can be special, but every text has some.
        return {i: text for i, text in found.items() if text.strip()}

    def _refuse_special(self, text: str) -> None:
        if self._special and (found := self._spelling.search(text)):
            raise Unusable(f"spells the special token {found[0]}")

    @functools.cached_property
    def _spelling(self) -> re.Pattern:
        return re.compile("|".join(map(re.escape, self._special.values())))

    def _messages(self, prompt: str) -> list[dict[str, str]]:
        messages = messages_of(prompt) or [{"role": "user", "content": prompt}]
        if self.system and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": self.system}, *messages]
        return messages

    def _answered(self, prompt: str, response: str) -> list[dict[str, str]]:
        answer = {"role": "assistant", "content": response}
        return [*self._messages(prompt), answer]

    def _render(self, messages, **options) -> str:
        # `strftime_now` is a function in templates; the format method of a text without
        # braces is one that always answers with that text.
        frozen = "{%- set strftime_now = " + json.dumps(self.date) + ".format -%}"
        template, arguments = frozen + self._template, self._arguments
        try:
            return self.tokenizer.apply_chat_template(
                messages,
                chat_template=template,
                tokenize=False,
                date_string=self.date,
                **arguments,
                **options,
            )
        except (jinja2.TemplateSyntaxError, jinja2.sandbox.SecurityError) as error:
            raise InputError(
                f"the chat_template is broken or unsafe ({_line(error)}); correct it"
            ) from error
        except Exception as error:
            # What a template says itself, or any error of an expression in it.
            raise Unusable(f"the chat_template refuses it: {_line(error)}") from error

    def _prompt_text(self, prompt: str) -> str:
        if self.has_template:
            return self._render(self._messages(prompt), add_generation_prompt=True)
        if messages_of(prompt) or self.system or self.template_arguments:
            raise InputError(
                "chat messages (or a `system` message, or `template_arguments`), but "
                "the tokenizer has no chat_template; add one to tokenizer_config.json "
                "or give prompts as text"
            )
        return prompt

    def _answer(self, prompt: str, response: str) -> str:
        """Returns what the template puts behind the generation prompt, stripped.

        White space behind the end token belongs to the next turn; a model stops at that
        token and never generates it.
        """
        together = self._render(self._answered(prompt, response))
        before = self._prompt_text(prompt)
        if not together.startswith(before):
            raise InputError(
                "the chat_template renders a prompt differently once it is answered, "
                "so a response has no first token; change the template"
            )
        return together[len(before) :].rstrip()

    def _encode(self, text: str, start: bool) -> list[int]:
        # Templates write the start token themselves.
        special = start and not self.has_template
        try:
            tokens = self.tokenizer(text, add_special_tokens=special)["input_ids"]
        except Exception as error:
            # Word-level tokenizers without an unknown token raise no narrower class.
            raise Unusable(f"the tokenizer cannot read it: {error}") from error
        end = self.tokenizer.eos_token_id
        # Some tokenizers add an end token to any text.
        while special and tokens and tokens[-1] == end != self.tokenizer.bos_token_id:
            tokens = tokens[:-1]
        return list(tokens)

    def _continue(self, prompt: str, before: list[int], text: str) -> list[int]:
        """Returns the tokens of `text` that follow the prompt's unchanged tokens."""
        try:
            together = self._encode(self._prompt_text(prompt) + text, start=True)
        except Unusable as error:
            self._encode(text, start=False)  # Raises if the text alone is the reason.
            raise Inseparable(
                "the tokenizer cannot read it right behind its prompt, as one word"
            ) from error
        if together[: len(before)] == before:
            return together[len(before) :]
        # Here a token spans the boundary, which no generated response could have, so
        # `text` is encoded alone. Some tokenizers put a space before any text, but not
        # behind a line break.
        wanted = self.tokenizer.decode(together)
        for anchor in ("", "\n"):
            skipped = self._encode(anchor, start=False)
            after = self._encode(anchor + text, start=False)[len(skipped) :]
            if self.tokenizer.decode([*before, *after]) == wanted:
                return after
        raise Inseparable("response that cannot be told from its prompt in tokens")
