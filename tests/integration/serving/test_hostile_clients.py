"""Clients that send too much, too slowly, or anything at all."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings

from earec_core.serve import Limits
from earec_core.serve.app import create_app
from earec_core.serve.server import Server, bind

from ..conftest import Pipeline
from .conftest import JSON, call, opened


def conforming(schemathesis: Any) -> list[Any]:
    """The checks that every answer passes, whatever is asked."""
    names = ("not_a_server_error", "status_code_conformance", "content_type_conformance")
    return [getattr(schemathesis.checks, name) for name in (*names, "response_schema_conformance")]


def test_a_large_or_slow_body_and_a_slow_answer_are_refused(trained: Pipeline, tmp_path: Path) -> None:
    limits = Limits(body_bytes=100, body_s=0.05, timeout_s=0.05)
    service = opened(trained, tmp_path / "home", limits=limits)
    app = create_app(service)
    with TestClient(app) as client:
        large = client.post("/v1/items", json={"item_id": "x", "title": "y" * 200})
        assert (large.status_code, large.json()["problem"]) == (413, "The body is too large.")
        many = client.post("/v1/items", content=(b"[" for _ in range(200)), headers=JSON)
        assert many.status_code == 413
        now = service.snapshot
        with service._llm.turn(lambda: now.job):
            slow = client.post("/v1/explain", json={"ids": ["i0"]})
        assert (slow.status_code, slow.json()["problem"]) == (504, "The answer took more than 0.05 seconds.")
    assert asyncio.run(_never_ending(app))["status"] == 408
    service.close()


def test_slow_and_endless_clients_are_cut_off_and_others_are_answered(
    trained: Pipeline, tmp_path: Path
) -> None:
    """Over sockets, against a running server; the limits are short, and so are the pauses between two bytes."""
    limits = Limits(body_bytes=1000, body_s=0.5)
    service = opened(trained, tmp_path / "home", limits=limits)
    post = b"POST /v1/similar HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    get = b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n"
    with bind("127.0.0.1", 0) as listening:
        server = Server(create_app(service), 1, head_s=0.5)
        running = threading.Thread(target=server._server.run, kwargs={"sockets": [listening]}, daemon=True)
        running.start()
        clients = {
            "nothing": _Drip(listening, b"", b""),
            "head": _Drip(listening, b"GET /healthz HTTP/1.1\r\n", b"x-slow: 1\r\n"),
            "second head": _Drip(listening, get + b"GET /healthz HTTP/1.1\r\n", b"x-slow: 1\r\n"),
            "body": _Drip(listening, post + b"content-length: 900\r\n\r\n", b"["),
            "chunked body": _Drip(listening, post + b"transfer-encoding: chunked\r\n\r\n", b"1\r\n[\r\n"),
            "large": _Drip(listening, post + b"content-length: 5000\r\n\r\n" + b"[" * 2000, b"["),
            "large chunk": _Drip(
                listening, post + b"transfer-encoding: chunked\r\n\r\n7d0\r\n" + b"[" * 2000 + b"\r\n", b""
            ),
        }
        address = "http://{}:{}".format(*listening.getsockname())
        deadline = time.monotonic() + 60
        while any(client.is_alive() for client in clients.values()):
            assert call(address, "/v1/similar?id=i0&k=1")[0] == 200
            assert time.monotonic() < deadline
        for name, status in (("body", 408), ("chunked body", 408), ("large", 413), ("large chunk", 413)):
            assert clients[name].answer.startswith(f"HTTP/1.1 {status} ".encode()), name
        assert [clients[name].answer for name in ("nothing", "head")] == [b"", b""]
        assert clients["second head"].answer.count(b"HTTP/1.1 200 OK") == 1
        server.stop()
        running.join()
    service.close()


class _Drip(threading.Thread):
    """A client that sends a beginning at once, and then the same few bytes again and again until it is cut off."""

    def __init__(self, listening: socket.socket, beginning: bytes, drop: bytes) -> None:
        super().__init__(daemon=True)
        self._socket = socket.create_connection(listening.getsockname()[:2])
        self._beginning, self._drop, self.answer = beginning, drop, b""
        self.start()

    def run(self) -> None:
        with self._socket as one, suppress(ConnectionError):
            one.settimeout(0.05)
            one.sendall(self._beginning)
            while True:
                try:
                    part = one.recv(4096)
                    if not part:
                        return
                    self.answer += part
                except TimeoutError:
                    one.sendall(self._drop)


async def _never_ending(app: Any) -> Any:
    """The start of the answer to a request whose body does not end."""
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/explain",
        "query_string": b"",
        "http_version": "1.1",
    }
    scope |= {"headers": [(b"content-type", b"application/json")], "client": ("c", 1), "server": ("s", 2)}
    sent: list[Any] = []
    parts = iter([{"type": "http.request", "body": b"[", "more_body": True}])

    async def receive() -> Any:
        for part in parts:
            return part
        return await asyncio.sleep(60)

    async def send(message: Any) -> None:
        sent.append(message)

    await app(scope, receive, send)
    return sent[0]


def test_whatever_is_sent_no_answer_is_a_failure_and_each_is_as_described(
    trained: Pipeline, tmp_path: Path
) -> None:
    """Random requests by the OpenAPI description; docs/serving.md has the command for more."""
    schemathesis = pytest.importorskip("schemathesis")
    service = opened(trained, tmp_path / "home")
    schema = schemathesis.openapi.from_asgi("/openapi.json", create_app(service))
    asked = [operation.ok() for operation in schema.get_all_operations()]
    assert len(asked) == 17

    for operation in asked:

        @given(case=operation.as_strategy())
        @settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
        def holds(case: Any) -> None:
            case.call_and_validate(checks=conforming(schemathesis))

        holds()
    service.close()
