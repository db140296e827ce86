"""Prompts and responses as tokens, with an exact boundary between the two.

A prompt is text, or chat messages `[{"role": ..., "content": ...}, ...]`, as JSON in
datasets. A chat template renders prompt and response, and the response is then what the
template puts behind the generation prompt, its end-of-turn token included. Without
a template the prompt's text is followed by `separator` and the response's text, and
`end` adds the end-of-sequence token.
"""

import dataclasses
import functools
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from fsa.errors import InputError


class Unusable(ValueError):
    """A prompt or response that cannot be used; the message is the reason alone."""


class Tokens(NamedTuple):
    """Token ids of a prompt and of a response to it.

    Attributes:
      prompt: all tokens before the first token of the response.
      response: the tokens that a model would have to generate, the end included.
    """

    prompt: list[int]
    response: list[int]


def messages_of(prompt: str) -> list[dict[str, str]] | None:
    """Returns the chat messages that a prompt holds as JSON, or None if it is text."""
    if not prompt.startswith("[{"):
        return None
    try:
        messages = json.loads(prompt)
    except ValueError:
        return None
    fields = [set(message) for message in messages if isinstance(message, dict)]
    if len(fields) == len(messages) and all(f == {"role", "content"} for f in fields):
        return messages
    return None


def as_prompt(value: Any) -> Any:
    """Returns chat messages as JSON text, and anything else unchanged."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list) else value


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
        template.
      max_prompt: prompts of more tokens are refused, since a prompt that is cut asks
        something else.
      max_response: responses are cut after this many tokens and then lose their end.
    """

    tokenizer: Any
    date: str = "26 Jul 2024"
    system: str = ""
    separator: str = ""
    end: bool = True
    max_prompt: int = 512
    max_response: int = 512

    def prompt(self, prompt: str) -> list[int]:
        """Returns the tokens of a prompt, from which a response can be generated.

        Raises:
          Unusable: for a prompt without tokens, or with too many, or with a word that
            the tokenizer has no token for.
          InputError: for messages if the tokenizer has no chat template.
        """
        tokens = self._encode(self._prompt_text(prompt), start=True)
        if not tokens:
            raise Unusable("empty prompt, and the tokenizer adds no start token")
        if len(tokens) > self.max_prompt:
            raise Unusable(f"prompt of more than max_prompt={self.max_prompt} tokens")
        return tokens

    def pair(self, prompt: str, response: str) -> Tokens:
        """Returns the tokens of a prompt and of a response to it.

        Raises:
          Unusable: as `prompt`, and for an empty response or one that no tokens behind
            the prompt's tokens decode to.
          InputError: as `prompt`, for a template that renders the prompt differently
            once it is answered, and for a tokenizer without an end token if `end`.
        """
        before = self.prompt(prompt)
        if not response.strip():
            raise Unusable("empty response")
        if self.has_template:
            after = self._continue(prompt, before, self._answer(prompt, response))
        else:
            after = self._continue(prompt, before, self.separator + response)
            after += [self._end_token] if self.end else []
        return Tokens(before, after[: self.max_response])

    def text(self, prompt: Sequence[int], response: Sequence[int]) -> str:
        """Returns the text of a generated response, without special tokens.

        With a template the white space around it is dropped. Without one, prompt,
        `separator` and this text together are what was generated, so that the text may
        begin with a space or with the rest of a word.
        """
        decode = functools.partial(self.tokenizer.decode, skip_special_tokens=True)
        if self.has_template:
            return decode(response).strip()
        # Behind its prompt, since some tokenizers drop the first space of any text.
        together = decode([*prompt, *response])
        return together[len(decode(prompt)) :].removeprefix(self.separator)

    @property
    def has_template(self) -> bool:
        """Whether the tokenizer has a chat template."""
        return bool(self.tokenizer.chat_template)

    @property
    def _end_token(self) -> int:
        if self.tokenizer.eos_token_id is None:
            raise InputError(
                "the tokenizer has no eos_token to end responses with; name one in "
                "tokenizer_config.json or set end to false"
            )
        return self.tokenizer.eos_token_id

    def _messages(self, prompt: str) -> list[dict[str, str]]:
        messages = messages_of(prompt) or [{"role": "user", "content": prompt}]
        if self.system and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": self.system}, *messages]
        return messages

    def _render(self, messages, **options) -> str:
        # `strftime_now` is a function in templates; the format method of a text without
        # braces is one that always answers with that text.
        frozen = "{%- set strftime_now = " + json.dumps(self.date) + ".format -%}"
        return self.tokenizer.apply_chat_template(
            messages,
            chat_template=frozen + self.tokenizer.chat_template,
            tokenize=False,
            date_string=self.date,
            **options,
        )

    def _prompt_text(self, prompt: str) -> str:
        if self.has_template:
            return self._render(self._messages(prompt), add_generation_prompt=True)
        if messages_of(prompt) or self.system:
            raise InputError(
                "chat messages, but the tokenizer has no chat_template; add one to "
                "tokenizer_config.json or give prompts as text"
            )
        return prompt

    def _answer(self, prompt: str, response: str) -> str:
        """Returns what the template puts behind the generation prompt, stripped.

        White space behind the end token belongs to the next turn; a model stops at that
        token and never generates it.
        """
        answered = [
            *self._messages(prompt),
            {"role": "assistant", "content": response},
        ]
        before, together = self._prompt_text(prompt), self._render(answered)
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
        together = self._encode(self._prompt_text(prompt) + text, start=True)
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
        raise Unusable("response that cannot be told from its prompt in tokens")
