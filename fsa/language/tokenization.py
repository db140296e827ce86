"""Prompts and responses as tokens, with an exact boundary between the two.

A prompt is text, or chat messages `[{"role": ..., "content": ...}, ...]`, in stores as
JSON. With a chat template both are rendered by it, and the response is what the
template puts behind the generation prompt, its end-of-turn token included; without one
the prompt's text is followed by `separator` and the response's, and `end` adds the
end-of-sequence token.
"""

import dataclasses
import functools
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from fsa.errors import InputError


class Unusable(ValueError):
    """A prompt or response that is left out; the message is the reason alone."""


class Tokens(NamedTuple):
    """Token ids of a prompt and of a response to it.

    Attributes:
      prompt: with all that stands before the first token of the response.
      response: what a model would have to generate, end included.
    """

    prompt: list[int]
    response: list[int]


def messages_of(prompt: str) -> list[dict[str, str]] | None:
    """The chat messages that a prompt stands for, or None if it is text."""
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
    """Chat messages as the text that stands for them; anything else as it is."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list) else value


@dataclasses.dataclass(frozen=True)
class Tokenization:
    """How texts become tokens.

    Attributes:
      tokenizer: of transformers, with or without a chat template.
      date: what a template writes where it asks for today's date, so that tokens do not
        depend on the day.
      system: a system message put before messages that have none, "" for none.
      separator: between the texts of prompt and response where there is no template.
      end: add the end-of-sequence token to a response where there is no template.
      max_prompt: prompts of more tokens are refused: cut anywhere, they ask something
        else.
      max_response: responses are cut after this many tokens, their end is then lost.
    """

    tokenizer: Any
    date: str = "26 Jul 2024"
    system: str = ""
    separator: str = ""
    end: bool = True
    max_prompt: int = 512
    max_response: int = 512

    def prompt(self, prompt: str) -> list[int]:
        """Tokens from which a response is to be generated.

        Raises:
          Unusable: for a prompt without tokens, or with too many, or with a word that
            the tokenizer has no token for.
          InputError: for messages where the tokenizer has no chat template.
        """
        tokens = self._encode(self._prompt_text(prompt), start=True)
        if not tokens:
            raise Unusable("empty prompt, and the tokenizer adds no start token")
        if len(tokens) > self.max_prompt:
            raise Unusable(f"prompt of more than max_prompt={self.max_prompt} tokens")
        return tokens

    def pair(self, prompt: str, response: str) -> Tokens:
        """Tokens of a prompt and a response.

        Raises:
          Unusable: as `prompt`, and for an empty response or one whose text no tokens
            behind the prompt stand for.
          InputError: as `prompt`, for a template that renders the prompt otherwise once
            it is answered, and for a tokenizer without the end token that is asked for.
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
        """The text of a generated response, without special tokens.

        With a template the white space around it is dropped; without one the text is
        such that prompt, `separator` and it are together what was generated, a leading
        space or the rest of a word included.
        """
        decode = functools.partial(self.tokenizer.decode, skip_special_tokens=True)
        if self.has_template:
            return decode(response).strip()
        # Behind its prompt, since some tokenizers drop the first space of any text.
        whole = decode([*prompt, *response])
        return whole[len(decode(prompt)) :].removeprefix(self.separator)

    @property
    def has_template(self) -> bool:
        """Whether there is a chat template."""
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
        """What the template puts behind the generation prompt, up to its last mark.

        White space behind the end token begins the next turn, which no model comes to:
        it stops at that token.
        """
        answered = [
            *self._messages(prompt),
            {"role": "assistant", "content": response},
        ]
        before, whole = self._prompt_text(prompt), self._render(answered)
        if not whole.startswith(before):
            raise InputError(
                "the chat_template renders a prompt otherwise once it is answered, so "
                "a response has no first token; mend the template"
            )
        return whole[len(before) :].rstrip()

    def _encode(self, text: str, start: bool) -> list[int]:
        # Templates write the start token themselves.
        special = start and not self.has_template
        try:
            tokens = self.tokenizer(text, add_special_tokens=special)["input_ids"]
        except Exception as error:
            # Word-level tokenizers without an unknown token; the class is no narrower.
            raise Unusable(f"the tokenizer cannot read it: {error}") from error
        end = self.tokenizer.eos_token_id
        # Some tokenizers put an end token behind whatever they are given.
        while special and tokens and tokens[-1] == end != self.tokenizer.bos_token_id:
            tokens = tokens[:-1]
        return list(tokens)

    def _continue(self, prompt: str, before: list[int], text: str) -> list[int]:
        """Tokens of `text` behind the prompt's, which they leave as they are."""
        whole = self._encode(self._prompt_text(prompt) + text, start=True)
        if whole[: len(before)] == before:
            return whole[len(before) :]
        # A token would span the boundary, which no generated response could have. Some
        # tokenizers put a space before any text, but not behind a line break.
        wanted = self.tokenizer.decode(whole)
        for anchor in ("", "\n"):
            skipped = self._encode(anchor, start=False)
            after = self._encode(anchor + text, start=False)[len(skipped) :]
            if self.tokenizer.decode([*before, *after]) == wanted:
                return after
        raise Unusable("response that cannot be told from its prompt in tokens")
