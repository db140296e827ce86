"""The page and the API that it uses, for this machine alone."""

from starlette.types import ASGIApp

from fsa.serving.app import make_app
from fsa.serving.chat import OwnWriter
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
    pages, metrics = [routes.make_router(page, service, person=person)], Metrics()
    writer = None
    if service.model.steerer is not None:
        writer = OwnWriter(service, metrics)
        pages.append(writing.make_router(service, writer))
    app = make_app(
        service,
        Access(service.store, None),
        loopback=True,
        writer=writer,
        metrics=metrics,
        pages=pages,
    )
    return app, writer
