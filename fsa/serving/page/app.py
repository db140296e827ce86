"""The page and the API that it uses, for this machine alone."""

from fastapi import APIRouter
from starlette.types import ASGIApp

from fsa.serving.app import make_app
from fsa.serving.chat import OwnWriter, Writer
from fsa.serving.metrics import Metrics
from fsa.serving.page import routes, writing
from fsa.serving.page.page_model import PageModel
from fsa.serving.security import Access
from fsa.serving.service import Service


def make_page_app(
    page: PageModel, service: Service, *, person: str
) -> tuple[ASGIApp, OwnWriter | None]:
    """Puts the routes together.

    Args:
      page: what is shown.
      service: people, and the run of the page.
      person: the name of somebody whose page does not say who it is.

    Returns:
      The application, and what writes if the run is of a policy, to be closed.
    """
    access, metrics = Access(service.store, None), Metrics()
    writer = None if service.model.steerer is None else OwnWriter(service, metrics)
    app = make_app(
        service,
        access,
        loopback=True,
        writer=writer,
        metrics=metrics,
        pages=page_routes(page, service, access, writer, person=person),
    )
    return app, writer


def page_routes(
    page: PageModel,
    service: Service,
    access: Access,
    writer: Writer | None,
    *,
    person: str,
) -> list[APIRouter]:
    """Returns the routes of a page, for `make_app`.

    Args:
      page: what is shown.
      service: people, and the run of the page.
      access: who may ask what.
      writer: of the server; texts are shown if it can write at any z.
      person: see `fsa.serving.page.routes.make_router`.
    """
    writes = isinstance(writer, OwnWriter)
    found = [routes.make_router(page, service, access, person=person, writes=writes)]
    return found + ([writing.make_router(service, writer)] if writes else [])
