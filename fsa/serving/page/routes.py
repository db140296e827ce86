"""The routes of the page: its files, and what only the page shows.

Answers are kept by the `Service` that the API of `fsa serve` uses as well.
"""

import pathlib
from typing import Annotated, Literal

from fastapi import APIRouter, Body, Request, Response
from fastapi.responses import FileResponse
from pydantic import BaseModel, Field, ValidationError

from fsa.errors import InputError
from fsa.serving.api import NewPerson
from fsa.serving.errors import Failure
from fsa.serving.page import report, tables
from fsa.serving.page.page_model import Json, PageModel
from fsa.serving.security import ADMIN, Access
from fsa.serving.service import Service

_STATIC = pathlib.Path(__file__).parent / "static"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# Nothing of another origin is loaded, and nothing in a text can become code.
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}

# The bytes of a file.
Table = Annotated[bytes, Body(media_type="application/octet-stream")]


class Asked(BaseModel):
    """How the page wants to be asked."""

    skipped: list[tuple[int, int]] = Field(default=[], max_length=10_000)
    random: bool = False


class Given(Asked):
    """An answer, by the positions of the options, see `PageModel.row`."""

    kind: Literal["chosen", "tied", "liked", "disliked"]
    options: list[int] = Field(min_length=1, max_length=2)


def make_router(
    page: PageModel,
    service: Service,
    access: Access,
    *,
    person: str,
    writes: bool = False,
) -> APIRouter:
    """Returns the routes of a page.

    Args:
      page: what is shown.
      service: keeps the answers.
      access: knows whom a token belongs to.
      person: the name of somebody whose page and token do not say who it is.
      writes: whether there is also the route of `fsa.serving.page.writing`.
    """
    router = APIRouter(include_in_schema=False)
    _add_files(router)
    _add_session(router, page, access, person, writes)
    _add_questions(router, page, service)
    _add_tables(router, page, service)
    _add_reports(router, page, service)
    return router


def _add_session(router, page, access, person, writes) -> None:
    @router.get("/page/session")
    def session(request: Request) -> Json:
        caller = access.caller(request)
        name = person if caller == ADMIN else caller
        return {"person": name, "writes": writes, **page.session()}


def _add_questions(router, page, service) -> None:
    def view(name: str, asked: Asked) -> Json:
        answers = service.answers(name)
        with service.computing:
            return page.view(answers, skipped=asked.skipped, random=asked.random)

    @router.post("/page/people/{name}/view")
    def show(name: str, asked: Asked) -> Json:
        _add_person(service, name)
        return view(name, asked)

    @router.post("/page/people/{name}/answers")
    def answer(name: str, given: Given) -> Json:
        _add_person(service, name)
        service.add_answer(name, page.row(given.kind, given.options))
        return view(name, given)

    @router.post("/page/people/{name}/undo")
    def undo(name: str, asked: Asked) -> Json:
        if answers := service.answers(name):
            service.remove_answer(name, answers[-1].id)
        return view(name, asked)


def _add_tables(router, page, service) -> None:
    @router.post("/page/people/{name}/table")
    def load(name: str, file: str, table: Table) -> Json:
        _add_person(service, name)
        rows = tables.read(table, file, service)
        for row in rows:
            service.add_answer(name, row)
        return {"answers": len(rows)}

    @router.post("/page/place")
    def place(file: str, table: Table) -> Json:
        """Where a person of a table is, of whom nothing is kept."""
        rows = tables.read(table, file, service)
        with service.computing:
            z = page.model.latent(rows).mean.tolist()
            return {"place": page.place(rows), "answers": len(rows), "z": z}

    @router.get("/page/people/{name}/choices.{ending}")
    def choices(name: str, ending: Literal["csv", "jsonl"]) -> Response:
        rows = [{"user": name, **each.answer} for each in service.answers(name)]
        content = tables.write(rows, ending)
        return _download(content, f"choices.{ending}", "text/plain; charset=utf-8")


def _add_reports(router, page, service) -> None:
    @router.get("/page/people/{name}/report.md")
    def text(name: str) -> Response:
        answers = service.answers(name)
        with service.computing:
            written = report.markdown(page, answers)
        return _download(written.encode(), "report.md", "text/markdown; charset=utf-8")

    @router.get("/page/people/{name}/report.png")
    def picture(name: str) -> Response:
        answers = service.answers(name)
        with service.computing:
            drawn = report.png(page, answers)
        return _download(drawn, "report.png", "image/png")


def _add_files(router: APIRouter) -> None:
    """Serves the files of the page; a name that is none of them is not found."""
    known = {path.name: path for path in sorted(_STATIC.iterdir())}

    def send(path: pathlib.Path) -> FileResponse:
        kind = _TYPES[path.suffix]
        return FileResponse(path, media_type=kind, headers=_HEADERS)

    @router.get("/")
    def index() -> FileResponse:
        return send(known["index.html"])

    @router.get("/{name}.{ending}")
    def file(name: str, ending: str) -> FileResponse:
        path = known.get(f"{name}.{ending}")
        if path is None:
            raise Failure(404, "no such page")
        return send(path)


def _add_person(service: Service, name: str) -> None:
    """Adds a person who is not there yet.

    Raises:
      InputError: for a name that nobody can have.
    """
    if service.exists(name):
        return
    try:
        service.store.add(NewPerson(name=name).name)
    except ValidationError as error:
        raise InputError(
            "person: a name has at most 100 letters, digits, spaces and @+.-"
        ) from error


def _download(content: bytes, name: str, kind: str) -> Response:
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    return Response(content, media_type=kind, headers=_HEADERS | headers)
