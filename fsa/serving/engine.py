"""`EngineWriter`: an engine writes, with each person's adapter in it.

The engine is a vLLM server of the policy's language model that may load adapters while
it runs (`--enable-lora`, VLLM_ALLOW_RUNTIME_LORA_UPDATING=1). A person's adapter has a
new name for each z, so that no text is written by an older one. Nobody in particular
has an adapter, too: a request without one may get another request's.
"""

import asyncio
import contextlib
import json
import logging
import pathlib
import shutil
from collections.abc import AsyncIterator
from typing import Any

import httpx2
from fastapi import Response
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.concurrency import run_in_threadpool

from fsa.errors import InputError
from fsa.inference.adapter_folders import folder_name
from fsa.serving.chat import EVENTS, Chat
from fsa.serving.errors import Failure, content
from fsa.serving.metrics import Metrics
from fsa.serving.people import digest_of
from fsa.serving.service import Service

_LOG = logging.getLogger(__name__)

_CONNECT, _WRITE = 10.0, 600.0
# A file in each folder that this server has made.
_MADE = "made_by_fsa_serve"
# Letters of the digest that an adapter is named by.
_LETTERS = 16


class EngineWriter:
    """Hands adapters to an engine and requests on to it."""

    def __init__(self, service: Service, metrics: Metrics, url: str, adapters: str):
        """Begins without adapters.

        Args:
          service: people, and a run of a policy.
          metrics: where to count.
          url: of the engine, without /v1.
          adapters: folder for adapters, which the engine can read at the same path;
            those that a server before made there are removed.

        Raises:
          InputError: if the folder cannot be made.
        """
        self._service, self._metrics = service, metrics
        self._url = url.rstrip("/").removesuffix("/v1")
        self._folder = pathlib.Path(adapters).absolute()
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"`adapters`={adapters}: {error.strerror}") from error
        # What is still needed is written again at the same path.
        for made in self._folder.glob(f"*/{_MADE}"):
            shutil.rmtree(made.parent, ignore_errors=True)
        timeout = httpx2.Timeout(_WRITE, connect=_CONNECT)
        # Proxies of the environment are for other hosts than an engine.
        self._client = httpx2.AsyncClient(timeout=timeout, trust_env=False)
        # Person -> name of the adapter that the engine has.
        self._loaded: dict[str, str] = {}
        self._locks: dict[str, asyncio.Lock] = {}

    def warm_up(self) -> None:
        """Does nothing; the engine has its own."""

    def close(self) -> None:
        """Does nothing: the engine keeps the adapters until it ends."""

    async def respond(self, chat: Chat) -> Response:
        """Returns what the engine answers with the person's adapter; see `Writer`."""
        response = await self._send(chat, await self._adapter(chat.model))
        if response.status_code == 404:
            # The engine has begun anew, and has no adapters.
            await response.aclose()
            self._loaded.pop(chat.model, None)
            response = await self._send(chat, await self._adapter(chat.model))
        if chat.stream and response.status_code == 200:
            return StreamingResponse(_renamed(response, chat.model), media_type=EVENTS)
        with _reaching():
            body = await response.aread()
        await response.aclose()
        found = _as_json(body)
        if response.status_code == 200:
            return JSONResponse(found | {"model": chat.model})
        if response.status_code >= 500 or response.status_code == 404:
            raise Failure(502, "the engine failed; its log says more")
        message = found.get("error", found).get("message", "the engine refuses it")
        return JSONResponse(
            content(response.status_code, message), response.status_code
        )

    async def _send(self, chat: Chat, adapter: str) -> httpx2.Response:
        # Other fields are options of the engine itself, which nobody may set.
        own = chat.model_dump(exclude_none=True, include=set(Chat.model_fields))
        sent = own | {"model": adapter}
        sent.pop("max_completion_tokens", None)
        sent["max_tokens"] = chat.new_tokens
        url = f"{self._url}/v1/chat/completions"
        with _reaching():
            request = self._client.build_request("POST", url, json=sent)
            return await self._client.send(request, stream=True)

    async def _adapter(self, person: str) -> str:
        """Returns the name of a person's adapter, which the engine has then."""
        async with self._locks.setdefault(person, asyncio.Lock()):
            name = await run_in_threadpool(self._name, person)
            known = self._loaded.get(person)
            if known != name:
                await self._load(person, name)
                self._loaded[person] = name
                if known is not None:
                    await self._unload(person, known)
            return name

    def _name(self, person: str) -> str:
        answers = [each.answer for each in self._service.answers(person)]
        of = digest_of(self._service.model.checkpoint, answers)
        return f"{folder_name(person)}-{of[:_LETTERS]}"

    async def _load(self, person: str, name: str) -> None:
        """Hands an adapter to the engine.

        Raises:
          Failure: 502 if the engine does not take it.
        """
        folder = self._folder / name
        if not (folder / "adapter_config.json").exists():
            await run_in_threadpool(self._write, person, folder)
        response = await self._post(
            "load_lora_adapter", {"lora_name": name, "lora_path": str(folder)}
        )
        taken = response.status_code == 200 or "already" in response.text
        if not taken:
            _LOG.error("the engine refuses an adapter: %s", response.text[:500])
            raise Failure(502, "the engine does not take the adapter; see the log")

    def _write(self, person: str, folder: pathlib.Path) -> None:
        # A folder that was begun by a process that ended is written anew.
        shutil.rmtree(folder, ignore_errors=True)
        self._service.save_adapter(person, folder)
        (folder / _MADE).touch()

    async def _unload(self, person: str, name: str) -> None:
        """Lets the engine forget an adapter of earlier answers."""
        with contextlib.suppress(Failure):
            await self._post("unload_lora_adapter", {"lora_name": name})
        await run_in_threadpool(shutil.rmtree, self._folder / name, True)

    async def _post(self, route: str, sent: dict[str, str]) -> httpx2.Response:
        with _reaching():
            return await self._client.post(f"{self._url}/v1/{route}", json=sent)


@contextlib.contextmanager
def _reaching():
    """Turns what goes wrong on the way to the engine into an error of one line."""
    try:
        yield
    except httpx2.TransportError as error:
        _LOG.error("the engine cannot be reached: %r", error)
        raise Failure(502, "the engine cannot be reached") from error


async def _renamed(response: httpx2.Response, model: str) -> AsyncIterator[str]:
    """Yields the events of the engine, in which the model is named as it was asked."""
    try:
        async for line in response.aiter_lines():
            data = line.removeprefix("data: ")
            if data != line and data != "[DONE]":
                event = _as_json(data.encode())
                line = f"data: {json.dumps(event | {'model': model})}"
            if line:
                yield f"{line}\n\n"
    except httpx2.TransportError as error:
        _LOG.error("the engine broke off: %r", error)
        yield f"data: {json.dumps(content(502, 'the engine broke off'))}\n\n"
    finally:
        await response.aclose()


def _as_json(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body)
    except ValueError:
        found = None
    return found if isinstance(found, dict) else {}
