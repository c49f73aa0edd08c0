"""Who may ask, and how long a body may take to arrive: before anything of a request is read."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
from collections.abc import Collection
from pathlib import Path
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from earec_core.errors import UsageError
from earec_core.serve.explorer.pages import PAGES
from earec_core.serve.limits import Limits

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_OPEN = frozenset({"/healthz", "/readyz", *PAGES})


def is_loopback(host: str) -> bool:
    """Whether a server on this address is reached from this machine alone; of names `localhost` alone is known."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def read_token(file: Path | None, variable: str | None) -> str | None:
    """The bearer token of a file, else of the environment's `EAREC_TOKEN`; None without either.

    Raises:
        UsageError: the file cannot be read, or the token is empty or no printable ASCII.
    """
    origin, token = "EAREC_TOKEN", variable
    if file is not None:
        origin = str(file)
        try:
            token = file.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "it is no text"
            raise UsageError(f"The token file {file} cannot be read ({reason}).", "Name another.") from None
    if token is None:
        return None
    token = token.strip()
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise UsageError(
            f"The token of {origin} is empty, or has others than printable ASCII characters.",
            "Make one: openssl rand -hex 32",
        )
    return token


class Guard:
    """Lets through who has the token; without a token, who asked for this machine by a name of its own.

    A page of another site cannot ask for `localhost` under that site's name, whatever address its name gives.

    Args:
        token: None: there is none.
        hosts: names that a request may ask for where there is no token; None: any.
        limits: of bodies.
    """

    def __init__(
        self, app: ASGIApp, token: str | None, hosts: Collection[str] | None, limits: Limits
    ) -> None:
        self._app, self._hosts, self._limits = app, hosts, limits
        self._token = _digest(token) if token else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refused = None if scope["path"] in _OPEN and self._token else self._refusal(Headers(scope=scope))
        if refused is not None:
            await refused(scope, receive, send)
        else:
            await self._app(scope, _Bounded(receive, self._limits), send)

    def _refusal(self, headers: Headers) -> JSONResponse | None:
        if self._token is not None:
            kind, _, given = headers.get("authorization", "").partition(" ")
            if kind.lower() == "bearer" and hmac.compare_digest(_digest(given.strip()), self._token):
                return None
            body = {
                "problem": "The token is missing or wrong.",
                "next_step": "Send Authorization: Bearer TOKEN.",
            }
            return JSONResponse(body, 401, {"www-authenticate": "Bearer"})
        if self._hosts is not None and _host(headers.get("host", "")) not in self._hosts:
            body = {
                "problem": "The request is for another host.",
                "next_step": "Ask for 127.0.0.1 or localhost.",
            }
            return JSONResponse(body, 421)
        return None


class _Bounded:
    """What a server receives of a request's body, so many bytes at most and up to a moment.

    Raises HTTPException beyond either, which becomes the answer.
    """

    def __init__(self, receive: Receive, limits: Limits) -> None:
        self._receive, self._limits = receive, limits
        self._at: float | None = None
        self._bytes, self._whole = 0, False

    async def __call__(self) -> Message:
        if self._whole:
            return await self._receive()
        if self._at is None:
            self._at = asyncio.get_running_loop().time() + self._limits.body_s
        try:
            async with asyncio.timeout_at(self._at):
                message = await self._receive()
        except TimeoutError:
            raise HTTPException(408) from None
        self._bytes += len(message.get("body", b""))
        if self._bytes > self._limits.body_bytes:
            raise HTTPException(413)
        self._whole = not message.get("more_body", False)
        return message


def _digest(token: str) -> bytes:
    """Of one length, so that comparing takes as long for every token."""
    return hashlib.sha256(token.encode()).digest()


def _host(header: str) -> str | None:
    try:
        return urlsplit(f"//{header}").hostname
    except ValueError:
        return None
