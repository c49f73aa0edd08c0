"""The explorer behind HTTP: the page with its files, and what it asks for."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeVar

from fastapi import APIRouter, Response
from starlette.exceptions import HTTPException

from earec_core.serve.explorer import models
from earec_core.serve.explorer.answers import Explorer
from earec_core.serve.explorer.pages import PAGES
from earec_core.serve.explorer.pictures import MEDIA_TYPES
from earec_core.serve.explorer.weights import weighed
from earec_core.serve.service import Service

T = TypeVar("T")
_SAFE = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}
_POLICY = (
    "default-src 'self'; img-src 'self' blob: data:; object-src 'none'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
_PAGE = {**_SAFE, "cache-control": "no-cache", "content-security-policy": _POLICY}
_PICTURE = {**_SAFE, "cache-control": "private, no-cache", "content-security-policy": "default-src 'none'"}


class Run(Protocol):
    """Asks in a thread, up to the time limit."""

    def __call__(self, ask: Callable[[], T]) -> Awaitable[T]: ...


def router(service: Service, run: Run, expected: dict[int | str, dict[str, Any]]) -> APIRouter:
    """The routes of the explorer.

    Args:
        expected: the answers that every route may give beside its own.
    """
    routes, explorer = APIRouter(), Explorer(service)
    pictures: dict[int | str, dict[str, Any]] = {
        **expected,
        200: {"content": {kind: {"schema": {"type": "string", "format": "binary"}} for kind in MEDIA_TYPES}},
    }

    @routes.get("/", include_in_schema=False)
    @routes.get("/static/{name}", include_in_schema=False)
    async def file(name: str | None = None) -> Response:
        address = "/" if name is None else f"/static/{name}"
        if address not in PAGES:
            raise HTTPException(404)
        content, kind = PAGES[address]
        return Response(content, headers={**_PAGE, "content-type": kind})

    @routes.get(
        "/v1/pictures/{item_id:anytext}",
        tags=["items"],
        summary="The picture of an item.",
        response_class=Response,
        responses=pictures,
    )
    async def picture(item_id: str) -> Response:
        found = await run(lambda: explorer.picture(item_id))
        return Response(found.content, headers={**_PICTURE, "content-type": found.media_type})

    @routes.get("/v1/map", tags=["items"], summary="The items on a plane.", responses=expected)
    async def item_map() -> models.ItemMap:
        return await run(explorer.map)

    @routes.post("/v1/reasons", tags=["answers"], summary="Why items are recommended.", responses=expected)
    async def why(request: models.ReasonsRequest) -> models.ReasonsAnswer:
        asked = request.model_dump()
        return models.ReasonsAnswer(results=await run(lambda: explorer.reasons(**asked)))

    @routes.post(
        "/v1/weights",
        tags=["answers"],
        summary="An item and what is near it at other weights of the composite.",
        responses=expected,
    )
    async def at_weights(request: models.WeightsRequest) -> models.Weighed:
        asked = request
        return await run(lambda: weighed(service, asked.weights, asked.item_id, asked.history, asked.user))

    return routes
