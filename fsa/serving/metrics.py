"""Metrics of a server in the form of Prometheus; none names a person."""

import time

import prometheus_client
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)


class Metrics:
    """What a server counts.

    Attributes:
      new_tokens: tokens that were written.
      first_token: seconds until the first token of a text.
    """

    def __init__(self):
        """Begins at zero."""
        own = self._registry = prometheus_client.CollectorRegistry()
        prometheus_client.ProcessCollector(registry=own)
        self._requests = prometheus_client.Counter(
            "fsa_requests", "Requests.", ("route", "status"), registry=own
        )
        self._seconds = prometheus_client.Histogram(
            "fsa_request_seconds",
            "Seconds until the end of an answer.",
            ("route",),
            buckets=_SECONDS,
            registry=own,
        )
        self._running = prometheus_client.Gauge(
            "fsa_requests_running", "Requests that are being answered.", registry=own
        )
        self.new_tokens = prometheus_client.Counter(
            "fsa_new_tokens", "Tokens that were written.", registry=own
        )
        self.first_token = prometheus_client.Histogram(
            "fsa_first_token_seconds",
            "Seconds until the first token of a text.",
            buckets=_SECONDS,
            registry=own,
        )

    def text(self) -> bytes:
        """Returns all metrics as Prometheus reads them."""
        return prometheus_client.generate_latest(self._registry)

    def counted(self, app: ASGIApp) -> ASGIApp:
        """Returns an ASGI application whose requests are counted."""

        async def run(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http":
                await app(scope, receive, send)
                return
            begin, status = time.perf_counter(), 500

            async def noting(message: Message) -> None:
                nonlocal status
                if message["type"] == "http.response.start":
                    status = message["status"]
                await send(message)

            try:
                with self._running.track_inprogress():
                    await app(scope, receive, noting)
            finally:
                # The path as it is written in the code, which names nobody.
                route = getattr(scope.get("route"), "path", "none")
                self._requests.labels(route, status).inc()
                self._seconds.labels(route).observe(time.perf_counter() - begin)

        return run
