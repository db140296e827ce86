"""`make_app`: the whole server as an ASGI application."""

from collections.abc import Sequence

from fastapi import APIRouter, Depends, FastAPI, Response
from starlette.types import ASGIApp

import fsa
from fsa.serving import api, chat, errors
from fsa.serving.metrics import Metrics
from fsa.serving.security import Access, Gate, described
from fsa.serving.service import Service

_ABOUT = (
    "People, what they told, and what a trained run makes of it. Errors are JSON with "
    "one line, error.message."
)


def make_app(
    service: Service,
    access: Access,
    *,
    loopback: bool,
    writer: chat.Writer | None = None,
    metrics: Metrics | None = None,
    pages: Sequence[APIRouter] = (),
) -> ASGIApp:
    """Puts the routes together, behind the `Gate`.

    Args:
      service: people and run.
      access: who may ask what.
      loopback: whether only this machine is served, see `Gate`.
      writer: writes texts for `/v1/chat/completions`; None for a reward model.
      metrics: where to count; by default anew.
      pages: routes beside the API; those below `/page/` need a token as the API does.
    """
    metrics = metrics or Metrics()
    # No page of documentation, which would load scripts from elsewhere.
    app = FastAPI(
        title="fsa",
        version=fsa.__version__,
        description=_ABOUT,
        docs_url=None,
        redoc_url=None,
    )
    errors.add_handlers(app)
    app.include_router(api.make_router(service, access))
    app.include_router(chat.make_router(service, access, writer, metrics))

    @app.get("/health", tags=["server"])
    async def health() -> dict[str, str]:
        """Says that the server answers."""
        return {"status": "ok"}

    admin = [Depends(described(access.require_admin))]

    @app.get("/metrics", tags=["server"], dependencies=admin)
    def show_metrics() -> Response:
        """Counts and times, in the form of Prometheus."""
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")

    for page in pages:
        app.include_router(page, dependencies=[Depends(access.require_on_page)])
    return metrics.counted(Gate(app, service.limits, loopback=loopback))
