"""The routes of the page: its files, and what only the page shows.

Answers are kept in a `PeopleStore`, which the API of `fsa serve` shares.
"""

import pathlib
import tempfile
from collections.abc import Iterable
from typing import Annotated, Literal

from fastapi import APIRouter, Body, HTTPException, Response
from fastapi.responses import FileResponse
from pydantic import BaseModel, Field

from fsa.data import files
from fsa.errors import InputError
from fsa.serving.page import report
from fsa.serving.page.page_model import Json, PageModel
from fsa.serving.people import PeopleStore
from fsa.serving.person_model import Answer

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

# The largest table that can be loaded, in bytes, and the most answers of a person.
_LARGEST, MOST_ANSWERS = 4 * 2**20, 1000


class Asked(BaseModel):
    """How the page wants to be asked."""

    skipped: list[tuple[int, int]] = Field(default=[], max_length=10_000)
    random: bool = False


class Given(Asked):
    """An answer, by the positions of the options, see `PageModel.row`."""

    kind: Literal["chosen", "tied", "liked", "disliked"]
    options: list[int] = Field(min_length=1, max_length=2)


def make_router(page: PageModel, store: PeopleStore) -> APIRouter:
    """Returns the routes of a page.

    Args:
      page: what is shown.
      store: keeps the answers.
    """
    router = APIRouter(include_in_schema=False)
    _add_files(router)

    def view(name: str, asked: Asked) -> Json:
        return page.view(store.answers(name), skipped=asked.skipped, random=asked.random)

    @router.get("/page/session")
    def session() -> Json:
        return page.session()

    @router.post("/page/people/{name}/view")
    def show(name: str, asked: Asked) -> Json:
        _add_person(store, name)
        return _checked(view, name, asked)

    @router.post("/page/people/{name}/answers")
    def answer(name: str, given: Given) -> Json:
        _add_person(store, name)
        row = _checked(page.row, given.kind, given.options)
        _checked(page.model.check, row)
        store.add_answer(name, row, most=MOST_ANSWERS)
        return _checked(view, name, given)

    @router.post("/page/people/{name}/undo")
    def undo(name: str, asked: Asked) -> Json:
        if answers := store.answers(name):
            store.remove_answer(name, answers[-1].id)
        return _checked(view, name, asked)

    @router.post("/page/people/{name}/table")
    def load_table(name: str, file: str, table: Annotated[bytes, Body()]) -> Json:
        _add_person(store, name)
        for row in _checked(_read_table, page, file, table):
            store.add_answer(name, row, most=MOST_ANSWERS)
        return _checked(view, name, Asked())

    @router.post("/page/place")
    def place(file: str, table: Annotated[bytes, Body()]) -> Json:
        """Where a person of a table is, of whom nothing is kept."""
        rows = _checked(_read_table, page, file, table)
        return {"place": _checked(page.place, rows), "answers": len(rows)}

    @router.get("/page/people/{name}/choices.{ending}")
    def table(name: str, ending: Literal["csv", "jsonl"]) -> Response:
        rows = [{"user": name, **each.answer} for each in store.answers(name)]
        return _download(_table(rows, ending), f"choices.{ending}")

    @router.get("/page/people/{name}/report.md")
    def text_report(name: str) -> Response:
        answers = store.answers(name)
        text = _checked(report.markdown, page, answers)
        return _download(text.encode(), "report.md", "text/markdown; charset=utf-8")

    @router.get("/page/people/{name}/report.png")
    def picture(name: str) -> Response:
        answers = store.answers(name)
        return _download(_checked(report.png, page, answers), "report.png", "image/png")

    return router


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
            raise HTTPException(404, "no such page")
        return send(path)


def _add_person(store: PeopleStore, name: str) -> None:
    if name not in store:
        store.add(name)


def _checked(function, *arguments):
    """Calls a function; bad input is the client's error, in one line."""
    try:
        return function(*arguments)
    except InputError as error:
        raise HTTPException(422, str(error)) from error


def _read_table(page: PageModel, name: str, content: bytes) -> list[Answer]:
    """Returns the answers of a table that the page or `fsa ask` wrote."""
    if len(content) > _LARGEST:
        raise InputError(f"{name}: larger than {_LARGEST >> 20} MiB; give fewer answers")
    ending = pathlib.PurePath(name).suffix
    if ending not in (".csv", ".jsonl"):
        raise InputError(f"{name}: name a .csv or a .jsonl")
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / f"table{ending}"
        path.write_bytes(content)
        rows = [row for _, row in files.read_rows(path)]
    answers = [_own_columns(row) for row in rows]
    if not answers:
        raise InputError(f"{name}: has no rows")
    for number, row in enumerate(answers, 1):
        try:
            page.model.check(row)
        except InputError as error:
            raise InputError(f"{name}, row {number}: {error}") from error
    return answers


_COLUMNS = ("prompt", "chosen", "rejected", "tie", "liked", "disliked", "item", "value")


def _own_columns(row: files.Row) -> Answer:
    """Returns the columns of a row that tell something, without empty ones."""
    return {name: row[name] for name in _COLUMNS if row.get(name) not in (None, "")}


def _table(rows: list[files.Row], ending: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / f"choices.{ending}"
        if ending == "csv":
            files.write_csv(path, list(_with_all_columns(rows)))
        else:
            files.write_jsonl(path, rows)
        return path.read_bytes()


def _with_all_columns(rows: list[files.Row]) -> Iterable[files.Row]:
    columns = dict.fromkeys(name for row in rows for name in row)
    return ({name: row.get(name, "") for name in columns} for row in rows)


def _download(
    content: bytes, name: str, kind: str = "text/plain; charset=utf-8"
) -> Response:
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    return Response(content, media_type=kind, headers=_HEADERS | headers)
