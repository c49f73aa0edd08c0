"""The service behind HTTP: routes around `Service`, and errors as sentences."""

from __future__ import annotations

import json
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from typing import Annotated, Any, TypeVar

import anyio
from fastapi import APIRouter, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.convertors import Convertor, register_url_convertor
from starlette.exceptions import HTTPException

import earec_core
from earec_core.errors import EarecError, UsageError
from earec_core.serve import models
from earec_core.serve.errors import BusyError, SlowError, TakenError, UnknownIdError
from earec_core.serve.explorer import routes as explorer
from earec_core.serve.gathering import Gathered
from earec_core.serve.guard import Guard
from earec_core.serve.limits import slow
from earec_core.serve.metrics import Counting, Metrics
from earec_core.serve.service import Problem, Service
from earec_registry import RegistryError

T = TypeVar("T")
_STATUS: tuple[tuple[type[Problem], int], ...] = (
    (UnknownIdError, 404),
    (TakenError, 409),
    (BusyError, 503),
    (SlowError, 504),
    (UsageError, 422),
)
_SENTENCES = {
    400: ("The body is no JSON.", "Send JSON as /openapi.json describes it."),
    404: ("There is nothing at this address.", "/openapi.json says what there is."),
    405: ("The address does not take this method.", "/openapi.json says which it takes."),
    408: ("The body took too long to arrive.", "Send it again."),
    413: ("The body is too large.", "Send less at once."),
}
_EXPECTED: dict[int | str, dict[str, Any]] = {
    status: {"model": models.Problem} for status in (400, 401, 404, 408, 413, 421, 422, 500, 503, 504)
}
_OPEN_API = "/openapi.json"


class _AnyText(Convertor[str]):
    """The rest of an address, whatever is in it: an id may have slashes and line breaks."""

    regex = "(?s:.*)"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("anytext", _AnyText())


def create_app(
    service: Service,
    *,
    token: str | None = None,
    hosts: Collection[str] | None = None,
    loaded: Callable[[], None] = lambda: None,
    failed: Callable[[BaseException], None] = lambda _: None,
    reloaded: Callable[[], None] = lambda: None,
) -> FastAPI:
    """The ASGI application of a service; while it runs, it loads the service if it is not, and watches the tags.

    Args:
        token: that requests must bear, but for `/healthz` and `/readyz`.
        hosts: names that requests may ask for where there is no token; default: any.
        loaded: called when the service is ready.
        failed: called with what loading it came to.
        reloaded: called when moved tags were looked at; `service.failed` says with what success.
    """
    metrics, stop = Metrics(service), threading.Event()

    def tend() -> None:
        try:
            if not service.ready:
                service.load()
        except BaseException as error:  # noqa: BLE001 - whatever it is, who started the service must know
            if isinstance(error, EarecError | RegistryError):
                service.failed = error
            failed(error)
            return
        loaded()

        def told(worked: bool) -> None:
            metrics.reloads.labels("loaded" if worked else "failed").inc()
            reloaded()

        service.watch(stop, told)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        threading.Thread(target=tend, name="earec-serve", daemon=True).start()
        yield
        stop.set()

    app = FastAPI(
        title="earec serve",
        version=earec_core.__version__,
        docs_url=None,
        redoc_url=None,
        openapi_url=_OPEN_API,
        lifespan=lifespan,
        redirect_slashes=False,
    )
    app.add_middleware(Guard, token=token, hosts=hosts, limits=service.limits)
    app.add_middleware(Counting, metrics=metrics)
    app.include_router(_health(service, metrics))
    app.include_router(_items(service))
    app.include_router(_answers(service))
    app.include_router(explorer.router(service, _Runner(service), _EXPECTED))
    _handle_errors(app)
    return app


def _health(service: Service, metrics: Metrics) -> APIRouter:
    router = APIRouter(tags=["health"])

    @router.get("/healthz", summary="Whether the process answers.")
    async def healthz() -> dict[str, bool]:
        return {"alive": True}

    @router.get(
        "/readyz",
        summary="Whether requests are answered, and what failed since.",
        response_model=models.Readiness,
        responses={503: {"model": models.Readiness}},
    )
    async def readyz() -> Response:
        error = service.failed
        state = models.Readiness(
            ready=service.ready,
            problem=error.problem if error else None,
            next_step=error.next_step if error else None,
        )
        return JSONResponse(state.model_dump(), 200 if state.ready else 503)

    @router.get("/metrics", summary="Counters, in Prometheus's text format.", response_class=Response)
    async def counters() -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return router


def _items(service: Service) -> APIRouter:
    router, run = APIRouter(prefix="/v1", tags=["items"], responses=_EXPECTED), _Runner(service)
    taken: dict[int | str, dict[str, Any]] = {
        200: {"description": "There already, the same."},
        409: {"model": models.Problem},
    }

    @router.get("/about", summary="What is served.")
    async def about() -> models.About:
        return await run(service.about)

    @router.get("/items", summary="Items by words of their titles.")
    async def search(
        q: Annotated[str, Query(max_length=1000)] = "",
        offset: Annotated[int, Query(ge=0, le=2**31)] = 0,
        limit: Annotated[int, Query(ge=1)] = 20,
    ) -> models.ItemPage:
        return await run(lambda: service.search(q, offset=offset, limit=limit))

    @router.get("/items/{item_id:anytext}", summary="An item.")
    async def item(item_id: str) -> models.Item:
        return await run(lambda: service.item(item_id))

    @router.post(
        "/items", status_code=201, response_model=models.Item, responses=taken, summary="Add an item."
    )
    async def add(new: models.NewItem, response: Response) -> models.Item:
        items, any_new = await run(lambda: service.add([new.model_dump()]))
        response.status_code = 201 if any_new else 200
        return items[0]

    @router.post(
        "/items/batch",
        status_code=201,
        response_model=models.AddAnswer,
        responses=taken,
        summary="Add items.",
    )
    async def add_many(request: models.NewItems, response: Response) -> models.AddAnswer:
        items, any_new = await run(lambda: service.add([one.model_dump() for one in request.items]))
        response.status_code = 201 if any_new else 200
        return models.AddAnswer(results=items)

    return router


def _answers(service: Service) -> APIRouter:
    router, run = APIRouter(prefix="/v1", tags=["answers"], responses=_EXPECTED), _Runner(service)
    together = Gathered(service.recommended)

    @router.get("/similar", summary="The items most like an item.")
    async def similar(
        id_: Annotated[models.ItemId, Query(alias="id")],
        k: Annotated[int, Query(ge=1)] = 10,
        vectors: Annotated[str | None, Query()] = None,
    ) -> models.SimilarItems:
        return (await run(lambda: service.similar([id_], k, vectors)))[0]

    @router.post("/similar", summary="The items most like each of several.")
    async def similar_to_many(request: models.SimilarRequest) -> models.SimilarAnswer:
        return models.SimilarAnswer(results=await run(lambda: service.similar(**request.model_dump())))

    @router.get(
        "/recommend",
        response_model=models.Recommendation,
        summary="What comes next for a user, or after a history of ids, the latest last.",
    )
    async def recommend(
        user: Annotated[str | None, Query()] = None,
        history: Annotated[list[models.ItemId] | None, Query()] = None,
        k: Annotated[int, Query(ge=1)] = 10,
        exclude_seen: bool = True,
    ) -> Response:
        if (user is None) == (not history):
            raise UsageError(
                "Either a user or a history is needed.", "Give user=ID, or history=ID once or more."
            )
        histories, users = ([history], []) if history else ([], [user or ""])
        (asked,) = service.asked(histories, users, k=k, exclude_seen=exclude_seen)
        answer = await run.within(together(asked))
        # Written here: FastAPI would check once more what has just been made.
        return Response(answer.model_dump_json(), media_type="application/json")

    @router.post("/recommend", summary="What comes next after each of several histories, and for users.")
    async def recommend_to_many(request: models.RecommendRequest) -> models.RecommendAnswer:
        given = request.model_dump()
        return models.RecommendAnswer(results=await run(lambda: service.recommend(**given)))

    @router.post("/explain", summary="What each modality makes the model say of items.")
    async def explain(request: models.ExplainRequest) -> models.ExplainAnswer:
        return models.ExplainAnswer(results=await run(lambda: service.explain(request.ids)))

    return router


class _Runner:
    """Waits for answers up to the time limit."""

    def __init__(self, service: Service) -> None:
        self._seconds = service.limits.timeout_s

    async def __call__(self, ask: Callable[[], T]) -> T:
        """What a question comes to in a thread; one that goes on after the limit answers nobody."""
        return await self.within(anyio.to_thread.run_sync(ask, abandon_on_cancel=True))

    async def within(self, answer: Awaitable[T]) -> T:
        """What is being answered."""
        try:
            with anyio.fail_after(self._seconds):
                return await answer
        except TimeoutError:
            raise slow(self._seconds) from None


def _handle_errors(app: FastAPI) -> None:
    def house(_: Request, error: Exception) -> Response:
        assert isinstance(error, EarecError | RegistryError)  # noqa: S101 - what it is registered for
        status = next((status for kind, status in _STATUS if isinstance(error, kind)), 500)
        wait = {"retry-after": str(error.retry_s)} if isinstance(error, BusyError) else None
        return _answer(status, error.problem, error.next_step, wait)

    def invalid(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)  # noqa: S101 - what it is registered for
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        return _answer(422, f"{place}: {first['msg']}.", f"Send what {_OPEN_API} describes.")

    def of_http(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)  # noqa: S101 - what it is registered for
        problem, step = _SENTENCES.get(
            error.status_code, (f"{error.detail}.", f"{_OPEN_API} says what there is.")
        )
        return _answer(error.status_code, problem, step, error.headers)

    def broken(_: Request, __: Exception) -> Response:
        return _answer(500, "The service failed at this request.", "Its log says where.")

    for kind in (EarecError, RegistryError):
        app.add_exception_handler(kind, house)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, of_http)
    app.add_exception_handler(Exception, broken)


def _answer(status: int, problem: str, next_step: str, headers: Mapping[str, str] | None = None) -> Response:
    """A problem as JSON; halves of characters, which a sentence may quote, as escapes."""
    body = json.dumps({"problem": problem, "next_step": next_step})
    return Response(body, status, headers, media_type="application/json")
