"""The route that writes an answer for a person, for the opposite, and in between."""

from collections.abc import AsyncIterator

import numpy as np
from fastapi import APIRouter, Request
from pydantic import BaseModel, Field, FiniteFloat
from starlette.concurrency import run_in_threadpool

from fsa.errors import InputError
from fsa.inference.adapter_folders import NOBODY
from fsa.serving.chat import Chat, Message, OwnWriter, Piece
from fsa.serving.page.opposite import between
from fsa.serving.service import Service
from fsa.serving.waiting import Streamed, while_waited_for

# The same seed for all columns, so that texts differ by z alone.
_SEED, _TEMPERATURE, _NEW_TOKENS = 0, 0.7, 200


class Wanted(BaseModel):
    """A text to write.

    Attributes:
      prompt: what is answered.
      at: where between the person, 0, and the opposite, 1; None for nobody.
      z: `[D]` of somebody else, in place of that.
    """

    prompt: str = Field(min_length=1, max_length=20_000)
    at: float | None = Field(None, ge=0, le=1)
    z: list[FiniteFloat] | None = None


def make_router(service: Service, writer: OwnWriter) -> APIRouter:
    """Returns the route.

    Args:
      service: knows people's z.
      writer: writes by the policy.
    """
    router = APIRouter(include_in_schema=False)

    def z_of(name: str, wanted: Wanted) -> np.ndarray:
        nobody = service.latent(NOBODY).mean
        if wanted.z is not None:
            if len(wanted.z) != len(nobody):
                raise InputError(f"z: give {len(nobody)} numbers")
            return np.array(wanted.z, np.float32)
        if wanted.at is None:
            return nobody
        z = service.latent(name).mean
        with service.computing:
            prior = service.model.posterior([])
        return between(z, prior, wanted.at).astype(np.float32)

    @router.post("/page/people/{name}/write")
    async def write(name: str, wanted: Wanted, request: Request) -> Streamed:
        if not wanted.prompt.strip():
            raise InputError("prompt: is empty; ask something")
        chat = Chat(
            model=name,
            messages=[Message(role="user", content=wanted.prompt)],
            max_tokens=_NEW_TOKENS,
            seed=_SEED,
            temperature=_TEMPERATURE,
        )
        z = await run_in_threadpool(z_of, name, wanted)
        pieces = await run_in_threadpool(writer.pieces, chat, z)
        # The first piece, so that what cannot be begun has an HTTP status of its own.
        first = await while_waited_for(request.receive, anext(pieces))
        return Streamed(_texts(first, pieces), pieces, media_type="text/plain")

    return router


async def _texts(first: Piece, pieces: AsyncIterator[Piece]) -> AsyncIterator[str]:
    yield first.text
    async for piece in pieces:
        yield piece.text
