"""What a service counts, as Prometheus reads it."""

from __future__ import annotations

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from earec_core.serve.service import Service

_BUCKETS = (0.005, 0.02, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Metrics:
    """The counters of one service."""

    def __init__(self, service: Service) -> None:
        self._registry = registry = CollectorRegistry()
        labels = ["method", "route"]
        self.requests = Counter(
            "earec_requests", "Requests answered.", [*labels, "status"], registry=registry
        )
        self.seconds = Histogram(
            "earec_request_seconds", "Seconds to the answer.", labels, registry=registry, buckets=_BUCKETS
        )
        self.reloads = Counter(
            "earec_reloads", "Looks at moved tags, by what came of them.", ["result"], registry=registry
        )
        ready = Gauge("earec_ready", "Whether requests are answered.", registry=registry)
        ready.set_function(lambda: float(service.ready))
        waiting = Gauge("earec_llm_requests", "Requests that have the LLM or wait for it.", registry=registry)
        waiting.set_function(lambda: float(service.waiting))
        items = Gauge("earec_items", "Items that are served.", ["kind"], registry=registry)
        items.labels("all").set_function(lambda: float(_count(service, added=False)))
        items.labels("added").set_function(lambda: float(_count(service, added=True)))

    def text(self) -> bytes:
        """All of them in Prometheus's text format."""
        return generate_latest(self._registry)


class Counting:
    """Counts every request by method, route and status, and the time that it took."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun, status = time.perf_counter(), 500

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noting)
        finally:
            # The route's own path, not the address: ids would be a label each.
            route = getattr(scope.get("route"), "path_format", "none")
            method = scope["method"] if route != "none" else "any"
            self._metrics.requests.labels(method, route, str(status)).inc()
            self._metrics.seconds.labels(method, route).observe(time.perf_counter() - begun)


def _count(service: Service, *, added: bool) -> int:
    if not service.ready:
        return 0
    now = service.snapshot
    return now.added if added else len(now.catalog)
