"""Errors of the server: one line each, in the form that OpenAI's clients read."""

import logging
import sqlite3
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from fsa.errors import InputError
from fsa.serving.people import Refused, Unknown

_LOG = logging.getLogger(__name__)
_LONGEST = 300


class Failure(Exception):
    """An answer of an HTTP status other than success.

    Attributes:
      status: of HTTP.
      retry: seconds after which the client may try again; None if it may not.
    """

    def __init__(self, status: int, message: str, *, retry: int | None = None):
        """Takes a message of one line that says what to do."""
        super().__init__(message)
        self.status, self.retry = status, retry

    def response(self) -> JSONResponse:
        """Returns what is sent."""
        headers = {}
        if self.retry is not None:
            headers["Retry-After"] = str(self.retry)
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse(content(self.status, str(self)), self.status, headers)


def content(status: int, message: str) -> dict[str, Any]:
    """Returns the JSON of an error, whose message is one line."""
    line = " ".join(str(message).split())
    line = line if len(line) <= _LONGEST else f"{line[: _LONGEST - 3]}..."
    # Half a character cannot be sent.
    line = line.encode(errors="replace").decode()
    kinds = {
        401: "authentication_error",
        403: "permission_error",
        404: "not_found_error",
        429: "rate_limit_error",
    }
    kind = kinds.get(
        status, "invalid_request_error" if status < 500 else "server_error"
    )
    return {"error": {"message": line, "type": kind, "param": None, "code": None}}


def add_handlers(app: FastAPI) -> None:
    """Makes an application answer every error in this form."""

    def answer(kind: type[Exception], status: int):
        async def handle(request: Request, error: Exception) -> JSONResponse:
            return Failure(status, message_of(error)).response()

        app.add_exception_handler(kind, handle)

    for kind, status in (
        (InputError, 400),
        (Unknown, 404),
        (Refused, 409),
        (RequestValidationError, 400),
    ):
        answer(kind, status)

    @app.exception_handler(Failure)
    async def fail(request: Request, failure: Failure) -> JSONResponse:
        return failure.response()

    @app.exception_handler(HTTPException)
    async def refuse(request: Request, error: HTTPException) -> JSONResponse:
        failure = Failure(error.status_code, error.detail).response()
        failure.headers.update(error.headers or {})
        return failure

    @app.exception_handler(sqlite3.Error)
    async def keep(request: Request, error: sqlite3.Error) -> JSONResponse:
        _LOG.error("people cannot be read or kept: %s", error)
        message = "people cannot be read or kept at the moment; nothing was changed"
        return Failure(503, message, retry=5).response()

    @app.exception_handler(Exception)
    async def broken(request: Request, error: Exception) -> JSONResponse:
        _LOG.error("a bug", exc_info=error)
        return Failure(500, "a bug of the server, which its log shows").response()


def message_of(error: Exception) -> str:
    """Returns what is wrong in one line, without the values that were sent."""
    if isinstance(error, Unknown):
        return f"no person {str(error)[:100]!r}"
    if isinstance(error, RequestValidationError):
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"][1:])
        return f"{place or 'the body'}: {first['msg']}"
    return str(error)
