"""Samples from a language model that a serving engine holds, over the OpenAI API.

vLLM, SGLang, llama.cpp, TGI and Ollama speak it. An engine makes the samples of a real
model many times faster than `LanguageModel.write` does.
"""

import asyncio
import contextlib
import dataclasses
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import httpx2

from fsa.errors import InputError, did_you_mean
from fsa.language.tokenization import messages_of, template_arguments

_LOG = logging.getLogger(__name__)

# Seconds before a request is made again that the engine did not answer, or answered
# with an error of its own.
_WAITS = (1.0, 4.0, 15.0)

# Seconds until a connection is made. An answer may take any time: on a busy CPU a batch
# of long texts takes longer than any limit, after which it would begin anew. An engine
# that ends closes its connections.
_TIMEOUT = httpx2.Timeout(None, connect=10.0)

# Statuses that may be gone at the next attempt: too many requests, and errors of the
# engine itself.
_PASSING = (408, 429, 500, 502, 503, 504)

_START = "start the engine, or give its address, as in http://localhost:8000/v1"
_NO_ENGINE = f"not the answers of an OpenAI API; {_START}"


@dataclasses.dataclass(frozen=True)
class Engine:
    """A model of a server that speaks the OpenAI API.

    Attributes:
      url: the address, such as "http://localhost:8000/v1"; /v1 may be left out.
      model: the name under which the server has the model.
      completions: whether to continue prompts as plain text, rather than answer them
        as chats.
      system: a system message put before chats that have none, "" for none.
      separator: text between prompt and continuation.
      template_arguments: what the chat template is given besides the messages: a JSON
        object, "" for nothing.
      key: the server's key, "" for none; by default the environment variable
        OPENAI_API_KEY, as clients of this API have it.
    """

    url: str
    model: str
    completions: bool = False
    system: str = ""
    separator: str = ""
    template_arguments: str = ""
    key: str = dataclasses.field(
        default_factory=lambda: os.environ.get("OPENAI_API_KEY", ""), repr=False
    )

    def __post_init__(self):
        if not self.url.startswith(("http://", "https://")):
            raise InputError(f"`engine`={self.url}: no address; {_START}")
        if self.completions and (self.system or self.template_arguments):
            raise InputError(
                "`completions`: plain text has no `system` message and no "
                "`template_arguments`; leave them out"
            )
        template_arguments(self.template_arguments)

    def check(self) -> None:
        """Asks the engine for its models, once.

        Raises:
          InputError: if it does not answer, or does not have the model; the message
            names those that it has.
        """

        async def ask() -> Any:
            async with self._client() as client:
                return await self._attempt(client, "GET", "/models")

        try:
            names = [model["id"] for model in asyncio.run(ask())["data"]]
        except _Passing as error:
            raise self._error(error) from error
        except (KeyError, TypeError) as error:
            raise self._error(_NO_ENGINE) from error
        if self.model not in names:
            shown = ", ".join(names[:10])
            raise InputError(
                f"`model`={self.model}: the engine has no such model; "
                f"{did_you_mean(self.model, names)}it has {shown or 'none'}"
            )

    def sample(
        self,
        prompts: Sequence[str],
        num_samples: int,
        *,
        on_answers: Callable[[int, list[str]], None] = lambda i, answers: None,
        at_once: int = 8,
        **options: Any,
    ) -> list[list[str]]:
        """Samples several answers to each prompt.

        Args:
          prompts: texts, or messages as JSON.
          num_samples: the number of answers to a prompt.
          on_answers: called with the number of a prompt and its answers as soon as
            these are there.
          at_once: the number of prompts that are sent to the engine together.
          **options: of `request`.

        Returns:
          The answers to each prompt.

        Raises:
          InputError: if the engine refuses a prompt, does not answer, or answers what
            is no text; the message holds what it says.
        """
        requests = [self.request(prompt, num_samples, **options) for prompt in prompts]
        return asyncio.run(self._ask(requests, on_answers, at_once))

    def request(
        self,
        prompt: str,
        num_samples: int,
        *,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        stop: Sequence[str] = (),
    ) -> dict[str, Any]:
        """Returns the request for samples of one prompt.

        Args:
          prompt: a text, or messages as JSON.
          num_samples: the number of answers.
          max_new_tokens: the largest number of tokens of an answer.
          temperature: 0 is greedy.
          top_k: the number of tokens to draw from. Not all engines know it, so it is
            only sent if it is given.
          top_p: the least total probability of the tokens to draw from.
          stop: texts that end an answer, which are no part of it.

        Raises:
          InputError: for messages, if prompts are to be continued.
        """
        messages = messages_of(prompt)
        asked: dict[str, Any] = {
            "model": self.model,
            "n": num_samples,
            "max_tokens": max_new_tokens,
            "temperature": temperature,
            # Always sent: engines have defaults of their own for each model.
            "top_p": 1.0 if top_p is None else top_p,
        }
        if top_k is not None:
            asked["top_k"] = top_k
        if stop:
            asked["stop"] = list(stop)
        if self.completions:
            if messages:
                raise InputError(
                    "`completions`: a prompt is chat messages; leave it out"
                )
            return {**asked, "prompt": prompt + self.separator}
        messages = messages or [{"role": "user", "content": prompt}]
        if self.system and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": self.system}, *messages]
        if self.template_arguments:
            arguments = template_arguments(self.template_arguments)
            asked["chat_template_kwargs"] = arguments
        return {**asked, "messages": messages}

    async def _ask(
        self,
        requests: Sequence[dict[str, Any]],
        on_answers: Callable[[int, list[str]], None],
        at_once: int,
    ) -> list[list[str]]:
        """Makes several requests, `at_once` of them at a time; returns the answers."""
        free = asyncio.Semaphore(at_once)
        found: list[list[str]] = [[] for _ in requests]
        async with self._client() as client:

            async def answer(i: int) -> None:
                async with free:
                    # Some engines give one answer, whatever `n` is.
                    while left := requests[i]["n"] - len(found[i]):
                        texts = await self._texts(client, {**requests[i], "n": left})
                        found[i] += texts[:left]
                on_answers(i, found[i])

            tasks = [asyncio.ensure_future(answer(i)) for i in range(len(requests))]
            try:
                for task in asyncio.as_completed(tasks):
                    await task
            finally:
                for task in tasks:
                    task.cancel()
        return found

    def _client(self) -> httpx2.AsyncClient:
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        return httpx2.AsyncClient(headers=headers, timeout=_TIMEOUT)

    async def _texts(
        self, client: httpx2.AsyncClient, request: dict[str, Any]
    ) -> list[str]:
        """Makes a request, again after faults that pass; returns the answers."""
        path = "/completions" if self.completions else "/chat/completions"
        waits = iter(_WAITS)
        while True:
            try:
                found = await self._attempt(client, "POST", path, request)
                break
            except _Passing as error:
                if (wait := next(waits, None)) is None:
                    raise self._error(error) from error
                _LOG.warning("%s: %s; asked again in %.0f s", self.url, error, wait)
            await asyncio.sleep(wait)
        try:
            if self.completions:
                texts = [choice["text"] for choice in found["choices"]]
            else:
                # An engine that takes out thoughts leaves null where there is no more.
                texts = [x["message"]["content"] or "" for x in found["choices"]]
        except (KeyError, TypeError) as error:
            raise self._error(_NO_ENGINE) from error
        if not texts or not all(isinstance(text, str) for text in texts):
            raise self._error(_NO_ENGINE)
        return texts

    async def _attempt(
        self, client: httpx2.AsyncClient, method: str, path: str, body: Any = None
    ) -> Any:
        """Makes one request; returns the JSON of the answer.

        Raises:
          _Passing: for a fault that may be gone at the next attempt.
          InputError: for any other one, with what the engine says.
        """
        try:
            response = await client.request(method, self._address + path, json=body)
        except httpx2.TransportError as error:
            why = str(error) or type(error).__name__
            raise _Passing(f"no answer ({why}); {_START}") from error
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise self._error(f"{error}; {_START}") from error
        if response.is_success:
            with contextlib.suppress(ValueError):
                return response.json()
            raise self._error(_NO_ENGINE)
        fault = f"refuses a request ({response.status_code}): {_message(response)}"
        if response.status_code in _PASSING:
            raise _Passing(fault)
        raise self._error(fault)

    @property
    def _address(self) -> str:
        address = self.url.rstrip("/")
        # An address without a path is that of the server.
        return address if address.count("/") > 2 else f"{address}/v1"

    def _error(self, why: object) -> InputError:
        return InputError(f"`engine`={self.url}: {why}")


class _Passing(Exception):
    """A fault that may be gone at the next attempt."""


def _message(response: httpx2.Response) -> str:
    """Returns what a server says about an error."""
    with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
        said: Mapping[str, Any] = response.json()
        error = said.get("error", said)
        return error["message"] if isinstance(error, dict) else json.dumps(error)
    return response.text.strip()[:300] or response.reason_phrase
