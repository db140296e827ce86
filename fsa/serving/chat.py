"""`/v1/chat/completions` and `/v1/models` as OpenAI's, where a model is a person.

A `Writer` writes; here is the one that uses the run itself, and streams what a
`Batcher` writes for several people at once. Another one is in `fsa.serving.engine`.
"""

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any, NamedTuple, Protocol

import numpy as np
from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool

from fsa.errors import InputError
from fsa.inference.adapter_folders import NOBODY
from fsa.inference.steerer import Steerer
from fsa.serving.batching import BROKEN, Batcher, Busy, Job
from fsa.serving.errors import Failure, content
from fsa.serving.metrics import Metrics
from fsa.serving.people import Unknown
from fsa.serving.security import ADMIN, Access, described
from fsa.serving.service import Service
from fsa.serving.waiting import Streamed, while_waited_for

# Fields that would change what is written, with the values that change nothing.
_UNUSED = {
    "n": (1,),
    "best_of": (1,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "tools": ([],),
    "functions": ([],),
    "response_format": ({"type": "text"},),
}
_NEW_TOKENS = 256
EVENTS = "text/event-stream"


class Message(BaseModel):
    """A turn of a conversation; `content` is text, or parts that are text."""

    role: str = Field(max_length=100)
    content: str | list[dict[str, Any]]


class StreamOptions(BaseModel):
    """What else is streamed."""

    include_usage: bool = False


class Chat(BaseModel):
    """A request of OpenAI's chat completions; `model` names a person.

    Other fields of theirs are ignored, or refused if they would change the text.
    """

    model_config = ConfigDict(extra="allow")

    model: str = Field(min_length=1, max_length=100)
    messages: list[Message] = Field(min_length=1, max_length=1000)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2, allow_inf_nan=False)
    top_p: float | None = Field(None, gt=0, le=1, allow_inf_nan=False)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    def check(self, most: int) -> None:
        """Raises InputError for what no writer does, and for too many tokens."""
        for name, harmless in _UNUSED.items():
            value = (self.model_extra or {}).get(name)
            if value is not None and value not in harmless:
                raise InputError(f"{name}: is not supported; leave it out")
        if self.new_tokens > most:
            raise InputError(f"max_tokens: give {most} at most")
        if len(self.stops) > 4 or not all(0 < len(x) <= 200 for x in self.stops):
            raise InputError("stop: give at most 4 texts of 1 to 200 characters")

    @property
    def new_tokens(self) -> int:
        """After how many tokens the text ends."""
        return self.max_completion_tokens or self.max_tokens or _NEW_TOKENS

    @property
    def stops(self) -> list[str]:
        """Texts before which the text ends."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []


class Writer(Protocol):
    """What answers a checked request for a person."""

    async def respond(self, chat: Chat) -> Response:
        """Returns the answer, streamed if that is asked for."""

    def warm_up(self) -> None:
        """Prepares for the first requests."""

    def close(self) -> None:
        """Ends, after what was begun."""


def make_router(
    service: Service, access: Access, writer: Writer | None, metrics: Metrics
) -> APIRouter:
    """Returns the routes.

    Args:
      service: people and run.
      access: who may ask what.
      writer: None for a reward model, which lists people and writes nothing.
      metrics: where to count.
    """
    router = APIRouter(prefix="/v1", tags=["OpenAI"])
    caller = [Depends(described(access.caller))]

    def known(caller: str, name: str) -> str:
        access.check(caller, name)
        if not service.exists(name):
            raise Unknown(name)
        return name

    @router.get("/models", dependencies=caller)
    def models(request: Request) -> dict[str, Any]:
        """All people, and nobody in particular; to a person only that person."""
        name = access.caller(request)
        names = [NOBODY, *service.store.names()] if name == ADMIN else [name]
        return {"object": "list", "data": list(map(_model, names))}

    @router.get("/models/{name}", dependencies=caller)
    def model(request: Request, name: str) -> dict[str, Any]:
        """One person."""
        return _model(known(access.caller(request), name))

    @router.post("/chat/completions", dependencies=caller)
    async def complete(request: Request, chat: Chat) -> Response:
        """Answers messages as the person wants it."""
        known(access.caller(request), chat.model)
        if writer is None:
            raise InputError("this run is of a reward model, which writes no texts")
        chat.check(service.limits.new_tokens)
        return await while_waited_for(request.receive, writer.respond(chat))

    return router


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "fsa"}


def prompt_of(chat: Chat, *, has_template: bool) -> str:
    """Returns the messages as a prompt of a language model.

    Raises:
      InputError: for more than one message of the user where no template joins them.
    """
    messages = [message.model_dump() for message in chat.messages]
    if has_template:
        return json.dumps(messages, ensure_ascii=False)
    (first, *more), text = messages, messages[0]["content"]
    if more or first["role"] != "user" or not isinstance(text, str):
        raise InputError(
            "messages: the language model has no chat template; give one message of "
            "the user, as text"
        )
    return text


class Piece(NamedTuple):
    """A part of a text.

    Attributes:
      text: what is new.
      num_tokens: how many tokens were written until then.
      end: "stop" or "length" at the end, before that None.
    """

    text: str
    num_tokens: int
    end: str | None


class OwnWriter:
    """Writes by the run itself."""

    def __init__(self, service: Service, metrics: Metrics, *, rows: int = 8):
        """Starts a batcher.

        Args:
          service: people, and a run of a policy.
          metrics: where to count.
          rows: how many texts are written at once.
        """
        self._service, self._metrics = service, metrics
        self._steerer: Steerer = service.model.steerer
        waiting = service.limits.waiting
        self._batcher = Batcher(self._steerer, rows=rows, waiting=waiting)

    def close(self) -> None:
        """Writes what was begun to its end."""
        self._batcher.close()

    def warm_up(self) -> None:
        """Compiles what usual texts run, alone and together."""
        shortest = Chat(model=NOBODY, messages=[Message(role="user", content="?")])
        try:
            length = len(self._tokens(shortest))
        except InputError:
            # The model has no token for it, as those of a small vocabulary.
            length = 1
        self._batcher.warm_up(length)

    async def respond(self, chat: Chat) -> Response:
        """Returns a text that is written at the person's z; see `Writer`."""
        begin = time.perf_counter()
        tokens, z = await run_in_threadpool(self._prepared, chat)
        pieces = self._pieces(chat, tokens, z, begin)
        # The first piece, so that what cannot be begun has an HTTP status of its own.
        first = await anext(pieces)
        if chat.stream:
            events = _events(chat, first, pieces, len(tokens))
            return Streamed(events, pieces, media_type=EVENTS)
        text, last = first.text, first
        async for last in pieces:
            text += last.text
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None}
        return JSONResponse(
            _head(chat, "chat.completion")
            | {"choices": [choice | {"finish_reason": last.end}]}
            | {"usage": _usage(len(tokens), last.num_tokens)}
        )

    def pieces(self, chat: Chat, z: np.ndarray) -> AsyncIterator[Piece]:
        """Returns the parts of a text at any z `[D]`, as they are written.

        Raises:
          InputError: for messages that cannot be a prompt.
        """
        return self._pieces(chat, self._tokens(chat), z, time.perf_counter())

    def _prepared(self, chat: Chat) -> tuple[list[int], np.ndarray]:
        """Returns the tokens of the prompt, and z `[D]`."""
        return self._tokens(chat), self._service.latent(chat.model).mean

    def _tokens(self, chat: Chat) -> list[int]:
        """Returns the tokens of the prompt."""
        language = self._steerer.language
        template = language.tokenization.has_template
        (tokens,) = language.prompts([prompt_of(chat, has_template=template)])
        return tokens

    async def _pieces(
        self, chat: Chat, tokens: list[int], z: np.ndarray, begin: float
    ) -> AsyncIterator[Piece]:
        """Yields the parts of a text as they are written; the row is freed at the end.

        Raises:
          Failure: 429 if too many wait, 500 if it cannot be written.
        """
        loop, new = asyncio.get_running_loop(), asyncio.Queue()

        def emit(*piece):
            try:
                loop.call_soon_threadsafe(new.put_nowait, piece)
            except RuntimeError:
                # The loop has ended, and with it whoever waited.
                job.cancelled = True

        seed = time.time_ns() if chat.seed is None else chat.seed
        job = Job(
            tokens,
            z,
            chat.new_tokens,
            1.0 if chat.temperature is None else chat.temperature,
            1.0 if chat.top_p is None else chat.top_p,
            seed % 2**31,
            emit,
        )
        try:
            self._batcher.submit(job)
        except Busy:
            message = "too many texts wait to be written; try again"
            raise Failure(429, message, retry=2) from None
        text = _Text(self._steerer, tokens, chat.stops)
        try:
            end = None
            while end is None:
                more, end = await new.get()
                if end == BROKEN:
                    raise Failure(500, "the text could not be written; see the log")
                if text.num_tokens == 0:
                    self._metrics.first_token.observe(time.perf_counter() - begin)
                self._metrics.new_tokens.inc(len(more))
                part, stopped = text.add(more, end is not None)
                end = "stop" if stopped else end
                yield Piece(part, text.num_tokens, end)
        finally:
            job.cancelled = True


class _Text:
    """A text that grows, and what of it can be shown.

    Attributes:
      num_tokens: how many tokens it has.
    """

    def __init__(self, steerer: Steerer, prompt: list[int], stops: list[str]):
        """Begins empty."""
        self._tokenization, self._prompt = steerer.language.tokenization, prompt
        self._tokens: list[int] = []
        self._stops, self._shown = stops, ""

    @property
    def num_tokens(self) -> int:
        return len(self._tokens)

    def add(self, tokens: list[int], ended: bool) -> tuple[str, bool]:
        """Takes tokens; returns what is new, and whether a stop text has come."""
        self._tokens += tokens
        text = self._tokenization.text(self._prompt, self._tokens)
        found = [text.find(stop) for stop in self._stops if stop in text]
        if found:
            text = text[: min(found)]
        elif not ended:
            # The rest may be half a character, or the beginning of a stop text.
            text = text.rstrip("\ufffd")
            held = max((len(stop) - 1 for stop in self._stops), default=0)
            text = text[: max(len(self._shown), len(text) - held)]
        if not text.startswith(self._shown):
            # Some tokenizers change what they have shown; it is completed at the end.
            return "", bool(found)
        new, self._shown = text[len(self._shown) :], text
        return new, bool(found)


async def _events(
    chat: Chat, first: Piece, pieces: AsyncIterator[Piece], num_prompt: int
) -> AsyncIterator[str]:
    """Yields a text as server-sent events."""
    head = _head(chat, "chat.completion.chunk")
    wants_usage = chat.stream_options and chat.stream_options.include_usage
    usage = {"usage": None} if wants_usage else {}

    def event(delta: dict[str, str], end: str | None) -> str:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": end}
        return f"data: {json.dumps(head | {'choices': [choice]} | usage)}\n\n"

    piece = first
    yield event({"role": "assistant", "content": piece.text}, None)
    try:
        async for piece in pieces:
            if piece.text:
                yield event({"content": piece.text}, None)
    except Failure as failure:
        yield f"data: {json.dumps(content(failure.status, str(failure)))}\n\n"
        return
    yield event({}, piece.end)
    if wants_usage:
        counts = {"usage": _usage(num_prompt, piece.num_tokens)}
        yield f"data: {json.dumps(head | {'choices': []} | counts)}\n\n"
    yield "data: [DONE]\n\n"


def _head(chat: Chat, kind: str) -> dict[str, Any]:
    name = f"chatcmpl-{uuid.uuid4().hex}"
    return {
        "id": name,
        "object": kind,
        "created": int(time.time()),
        "model": chat.model,
    }


def _usage(num_prompt: int, num_new: int) -> dict[str, int]:
    return {
        "prompt_tokens": num_prompt,
        "completion_tokens": num_new,
        "total_tokens": num_prompt + num_new,
    }
