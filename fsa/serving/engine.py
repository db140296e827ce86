"""`EngineWriter`: an engine writes, with each person's adapter in it.

The engine is a vLLM server of the policy's language model that may load adapters while
it runs (`--enable-lora`, VLLM_ALLOW_RUNTIME_LORA_UPDATING=1). A person's adapter has a
new name for each z, so that no text is written by an older one. The engine keeps an
older one, or that of a person who was removed, until the last text that it writes has
come to its end, and then forgets it. Nobody in particular has an adapter, too: a
request without one may get another request's.
"""

import asyncio
import contextlib
import dataclasses
import json
import logging
import pathlib
import shutil
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

import httpx2
from fastapi import Response
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool

from fsa.errors import InputError
from fsa.inference.adapter_folders import NOBODY, folder_name
from fsa.serving.chat import EVENTS, Chat
from fsa.serving.errors import Failure, content
from fsa.serving.metrics import Metrics
from fsa.serving.people import digest_of
from fsa.serving.service import Service
from fsa.serving.waiting import Streamed

_LOG = logging.getLogger(__name__)

_CONNECT, _WRITE = 10.0, 600.0
# A file in each folder that this server has made.
_MADE = "made_by_fsa_serve"
# Letters of the digest that an adapter is named by.
_LETTERS = 16
_UNLOAD = "unload_lora_adapter"

T = TypeVar("T")


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
        self._left_over = [made.parent.name for made in self._folder.glob(f"*/{_MADE}")]
        for name in self._left_over:
            shutil.rmtree(self._folder / name, ignore_errors=True)
        timeout = httpx2.Timeout(_WRITE, connect=_CONNECT)
        # Proxies of the environment are for other hosts than an engine.
        self._client = httpx2.AsyncClient(timeout=timeout, trust_env=False)
        # All that the engine has, by their names; and that of each person's z now.
        self._adapters: dict[str, _Adapter] = {}
        self._newest: dict[str, _Adapter] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        # What goes on when the request that began it has ended.
        self._tasks: set[asyncio.Task] = set()

    def warm_up(self) -> None:
        """Lets the engine forget what a server before has handed to it."""
        with (
            # An engine that is not there has nothing to forget.
            contextlib.suppress(httpx2.TransportError),
            httpx2.Client(timeout=_CONNECT, trust_env=False) as client,
        ):
            for name in self._left_over:
                client.post(f"{self._url}/v1/{_UNLOAD}", json={"lora_name": name})

    def close(self) -> None:
        """Does nothing: the next server lets the engine forget what it has."""

    async def respond(self, chat: Chat) -> Response:
        """Returns what the engine answers with the person's adapter; see `Writer`."""
        answer = await self._ask(chat)
        try:
            if answer.response.status_code == 404:
                # The engine has begun anew, and has no adapters.
                answer.adapter.loaded = False
                await answer.aclose()
                answer = await self._ask(chat)
            if chat.stream and answer.response.status_code == 200:
                events = _renamed(answer.response, chat.model)
                return Streamed(events, answer, media_type=EVENTS)
            with _reaching():
                body = await answer.response.aread()
        except BaseException:
            await answer.aclose()
            raise
        await answer.aclose()
        return _whole(answer.response.status_code, _as_json(body), chat.model)

    async def _ask(self, chat: Chat) -> "_Answer":
        """Sends a request on; the adapter is in use until the answer is closed."""
        adapter = await self._acquire(chat.model)
        try:
            response = await self._send(chat, adapter.name)
        except BaseException:
            self._release(adapter)
            raise
        return _Answer(response, adapter, self._release)

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

    async def _acquire(self, person: str) -> "_Adapter":
        """Returns a person's adapter, which the engine has until it is released."""
        # To its end, also if the client leaves: the engine must not have adapters that
        # are not known here.
        task = self._begin(self._take(person))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(self._release_result)
            raise

    async def _take(self, person: str) -> "_Adapter":
        async with self._lock(person):
            name = await run_in_threadpool(self._name, person)
            adapter = self._adapters.setdefault(name, _Adapter(person, name))
            before = self._newest.get(person)
            self._newest[person] = adapter
            if before is not None:
                self._forget_unused(before)
            # Counted before it is waited for, so that it is not forgotten meanwhile.
            adapter.users += 1
            try:
                if not adapter.loaded:
                    await self._load(adapter)
            except BaseException:
                self._release(adapter)
                raise
            return adapter

    def _release(self, adapter: "_Adapter") -> None:
        adapter.users -= 1
        self._forget_unused(adapter)

    def _release_result(self, task: asyncio.Task) -> None:
        if not task.cancelled() and task.exception() is None:
            self._release(task.result())

    def _forget_unused(self, adapter: "_Adapter") -> None:
        """Lets the engine forget an adapter that is neither in use nor the newest."""
        if self._is_unused(adapter):
            self._begin(self._forget(adapter))

    def _is_unused(self, adapter: "_Adapter") -> bool:
        known = self._adapters.get(adapter.name) is adapter
        newest = self._newest.get(adapter.person) is adapter
        return known and not newest and not adapter.users

    async def _forget(self, adapter: "_Adapter") -> None:
        async with self._lock(adapter.person):
            # Meanwhile the person may have gone back to the same answers.
            if self._is_unused(adapter):
                await self._unload(adapter.name)
                del self._adapters[adapter.name]

    async def _forget_removed(self) -> None:
        """Lets the engine forget the adapters of people who were removed."""
        people = set(await run_in_threadpool(self._service.store.names))
        for person in self._newest.keys() - people - {NOBODY}:
            # One of that name may have come back, and the next request loads again.
            self._forget_unused(self._newest.pop(person))

    def _begin(self, work: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _lock(self, person: str) -> asyncio.Lock:
        return self._locks.setdefault(person, asyncio.Lock())

    def _name(self, person: str) -> str:
        answers = [each.answer for each in self._service.answers(person)]
        of = digest_of(self._service.model.checkpoint, answers)
        return f"{folder_name(person)}-{of[:_LETTERS]}"

    async def _load(self, adapter: "_Adapter") -> None:
        """Hands an adapter to the engine.

        Raises:
          Failure: 502 if the engine does not take it.
        """
        await self._forget_removed()
        name = adapter.name
        folder = self._folder / name
        if not (folder / _MADE).exists():
            await run_in_threadpool(self._write, adapter.person, folder)
        response = await self._post(
            "load_lora_adapter", {"lora_name": name, "lora_path": str(folder)}
        )
        if response.status_code != 200 and "already" not in response.text:
            _LOG.error("the engine refuses an adapter: %s", response.text[:500])
            raise Failure(502, "the engine does not take the adapter; see the log")
        adapter.loaded = True

    def _write(self, person: str, folder: pathlib.Path) -> None:
        # A folder that was begun by a process that ended is written anew.
        shutil.rmtree(folder, ignore_errors=True)
        self._service.save_adapter(person, folder)
        (folder / _MADE).touch()

    async def _unload(self, name: str) -> None:
        # An engine that is not there has forgotten it.
        with contextlib.suppress(Failure):
            await self._post(_UNLOAD, {"lora_name": name})
        await run_in_threadpool(shutil.rmtree, self._folder / name, True)

    async def _post(self, route: str, sent: dict[str, str]) -> httpx2.Response:
        with _reaching():
            return await self._client.post(f"{self._url}/v1/{route}", json=sent)


@dataclasses.dataclass(eq=False)
class _Adapter:
    """An adapter that the engine has, or is about to have.

    Attributes:
      person: whose it is.
      name: by which the engine knows it; that of its folder.
      users: how many requests it is needed for.
      loaded: whether the engine has it.
    """

    person: str
    name: str
    users: int = 0
    loaded: bool = False


class _Answer:
    """An answer of the engine, while which an adapter is in use."""

    def __init__(
        self,
        response: httpx2.Response,
        adapter: _Adapter,
        release: Callable[[_Adapter], None],
    ):
        """Takes over the use of the adapter, which `release` ends."""
        self.response, self.adapter = response, adapter
        self._release: Callable[[_Adapter], None] | None = release

    async def aclose(self) -> None:
        """Ends the answer; nothing if it has ended."""
        release, self._release = self._release, None
        if release is not None:
            try:
                await self.response.aclose()
            finally:
                release(self.adapter)


def _whole(status: int, found: dict[str, Any], model: str) -> Response:
    """Returns an answer of the engine that is not streamed, in which it is renamed.

    Raises:
      Failure: 502 if the engine failed.
    """
    if status == 200:
        return JSONResponse(found | {"model": model})
    if status >= 500 or status == 404:
        raise Failure(502, "the engine failed; its log says more")
    message = found.get("error", found).get("message", "the engine refuses it")
    return JSONResponse(content(status, message), status)


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


def _as_json(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body)
    except ValueError:
        found = None
    return found if isinstance(found, dict) else {}
