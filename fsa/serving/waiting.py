"""Ends what is computed for a client as soon as the client is gone."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from typing import Any, Protocol, TypeVar

from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from fsa.serving.errors import Failure

T = TypeVar("T")


class Left(Failure):
    """The client has left before the answer."""

    def __init__(self):
        """Has the status that servers note for it."""
        super().__init__(499, "nobody waits for this any more")


class Source(Protocol):
    """Where a streamed answer comes from, such as an asynchronous generator."""

    async def aclose(self) -> Any:
        """Ends it, wherever it is."""


async def while_waited_for(receive: Receive, work: Awaitable[T]) -> T:
    """Returns the result of `work`, which is cancelled when the client leaves.

    Args:
      receive: of the request, whose body was read before.
      work: what the client waits for.

    Raises:
      Left: if the client has left; what `work` raises.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_left(receive))
    both = working, leaving
    try:
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise Left
    finally:
        for task in both:
            task.cancel()
        # So that nothing runs on when this returns.
        await asyncio.gather(*both, return_exceptions=True)


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class Streamed(StreamingResponse):
    """An answer in parts, whose source ends with it, also when the client leaves.

    Without that a generator runs on until it is collected, and what it holds with it.
    """

    def __init__(self, content: AsyncIterator[str], source: Source, **options: Any):
        """Takes the parts, and the source that they are made of.

        Args:
          content: the parts.
          source: is closed at the end.
          **options: see `StreamingResponse`.
        """
        super().__init__(content, **options)
        self._source = source

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the parts as long as the client takes them."""
        try:
            await while_waited_for(receive, self.stream_response(send))
        except Left:
            # There is nobody to tell.
            pass
        finally:
            await self._source.aclose()
