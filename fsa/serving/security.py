"""Who may ask a server what: hosts and origins, tokens, and limits on requests.

On the loopback address everybody on the machine is trusted, but not the pages that they
visit: a page of another origin can send requests to 127.0.0.1, and a name that somebody
else controls can resolve to it (DNS rebinding). So the headers Host and Origin have to
name this server. Elsewhere a token is needed: an administrator's, who may do all, or
that of one person, who is shown nobody else.
"""

import asyncio
import hmac
import ipaddress
import urllib.parse
from collections.abc import Callable
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fsa.serving.errors import Failure
from fsa.serving.people import PeopleStore, Unknown
from fsa.serving.service import Limits

# Who an administrator is, as no person is named.
ADMIN = "/admin"

_SECONDS_TO_SEND = 30.0
_BEARER = HTTPBearer(
    auto_error=False,
    description="The administrator's token, or a person's; none on 127.0.0.1.",
)


def is_loopback(host: str) -> bool:
    """Whether a host is this machine alone: `localhost`, 127.0.0.0/8 or ::1."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Access:
    """Who sends a request, and whom that shows."""

    def __init__(self, store: PeopleStore, admin_token: str | None):
        """Takes the administrator's token; without one, everybody is administrator.

        Args:
          store: knows the people's tokens.
          admin_token: a long random text, or None.
        """
        self._store, self._admin = store, admin_token

    def caller(self, request: Request) -> str:
        """Returns `ADMIN`, or the name of the person whose token the request has.

        Raises:
          Failure: 401, if the token is missing or wrong.
        """
        if self._admin is None:
            return ADMIN
        kind, _, token = request.headers.get("authorization", "").partition(" ")
        token = token.strip()
        if kind.lower() == "bearer" and token:
            # As bytes, since only texts of ASCII can be compared.
            if hmac.compare_digest(token.encode(), self._admin.encode()):
                return ADMIN
            if name := self._store.owner_of(token):
                return name
        raise Failure(401, "give a valid token: Authorization: Bearer TOKEN")

    def require_admin(self, request: Request) -> None:
        """Raises Failure 401 or 403 if the caller is not an administrator."""
        if self.caller(request) != ADMIN:
            raise Failure(403, "only an administrator may do this")

    def require_person(self, request: Request) -> None:
        """Raises an error if the caller may not see the person of the path.

        Raises:
          Failure: 401, see `caller`.
          Unknown: for another person, as if that person were not there.
        """
        self.check(self.caller(request), request.path_params.get("name"))

    def require_on_page(self, request: Request) -> None:
        """As `require_person` for paths below `/page/`; files may be seen by all."""
        # Not request.url, which the header Host is a part of.
        if request.scope["path"].startswith("/page/"):
            self.require_person(request)

    def check(self, caller: str, name: str | None) -> None:
        """Raises Unknown if a caller may not see a person of that name."""
        if name is not None and caller not in (ADMIN, name):
            raise Unknown(name)


def described(check: Callable[[Request], None]) -> Callable[..., None]:
    """Returns a dependency that runs a check, and says in OpenAPI that tokens exist."""

    # In the event loop, since it waits for nothing and a thread would take longer: a
    # person's token is looked up by one read of the file.
    async def dependency(
        request: Request,
        _: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)],
    ) -> None:
        check(request)

    return dependency


class Gate:
    """ASGI middleware before everything else: hosts, origins and limits.

    A body is read before the request is passed on, so that what comes slowly or is too
    large takes no place of a request that is answered.
    """

    def __init__(self, app: ASGIApp, limits: Limits, *, loopback: bool):
        """Guards an application.

        Args:
          app: the application.
          limits: of bodies and of requests at once.
          loopback: whether Host and Origin have to name this machine.
        """
        self._app, self._limits, self._loopback = app, limits, loopback
        self._running = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, or answers with an error of one line."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        entered = False
        try:
            headers = _headers(scope)
            if self._loopback:
                check_host(headers)
            body = await _read(headers, receive, self._limits.body)
            if self._running >= self._limits.requests:
                raise Failure(503, "too many requests at once; try again", retry=1)
            self._running, entered = self._running + 1, True
            await self._app(scope, _replayed(body, receive), send)
        except Failure as failure:
            if entered:
                raise
            await failure.response()(scope, receive, send)
        finally:
            self._running -= entered


def check_host(headers: dict[str, str]) -> None:
    """Raises Failure 403 if Host or Origin name something else than this machine.

    Args:
      headers: names in small letters.
    """
    host = headers.get("host", "")
    try:
        name = urllib.parse.urlsplit(f"//{host}").hostname or ""
    except ValueError:
        name = ""
    if not is_loopback(name):
        raise Failure(403, "the header Host is not that of this server")
    origin = headers.get("origin")
    if origin is not None and origin != f"http://{host}":
        raise Failure(403, "pages of another origin may not use this server")


def _headers(scope: Scope) -> dict[str, str]:
    """Returns the headers; of one that is given twice, both, which nothing matches."""
    found: dict[str, str] = {}
    for name, value in scope["headers"]:
        name, value = name.decode("latin-1").lower(), value.decode("latin-1")
        found[name] = f"{found[name]}, {value}" if name in found else value
    return found


async def _read(headers: dict[str, str], receive: Receive, most: int) -> bytes:
    """Reads the body of a request.

    Raises:
      Failure: 413 if it is too large, 408 if it does not come, 400 if it is cut off.
    """
    too_large = Failure(413, f"the body is larger than {most:,} bytes")
    announced = headers.get("content-length", "0")
    if not announced.isdecimal() or int(announced[:16]) > most:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(_SECONDS_TO_SEND):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Failure(400, "the body is cut off")
                body += message.get("body", b"")
                if len(body) > most:
                    raise too_large
                if not message.get("more_body"):
                    return bytes(body)
    except TimeoutError:
        raise Failure(408, "the body did not come in time") from None


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Returns a `receive` that gives the body in one message, and then what follows."""
    messages: list[Message] = [
        {"type": "http.request", "body": body, "more_body": False}
    ]

    async def replay() -> Message:
        return messages.pop() if messages else await receive()

    return replay
