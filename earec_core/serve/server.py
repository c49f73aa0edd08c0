"""An application on an address, until a signal ends it."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec

from earec_core.errors import MissingDependencyError, UsageError
from earec_core.serve.guard import is_loopback

_NEEDED = ("fastapi", "uvicorn", "prometheus_client")
_CONNECTIONS = 256
HEAD_S = 10.0
"""Seconds that the head of a request may take to arrive."""


def check_installed() -> None:
    """Raises MissingDependencyError where a library of the extra `serve` is missing."""
    if missing := [name for name in _NEEDED if find_spec(name) is None]:
        raise MissingDependencyError(f"Serving needs {missing[0]}.", "pip install 'earec[serve]'")


def check_address(host: str, token: str | None) -> None:
    """Raises UsageError for an address that others reach, without a token."""
    if token is None and not is_loopback(host):
        raise UsageError(
            f"Without a token nothing but this machine is served, and {host} may be reached by others.",
            "Give --token-file FILE or set EAREC_TOKEN, or leave --host out.",
        )


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Args:
        port: 0: any that is free.

    Raises:
        UsageError: the address is taken, or none of this machine.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=_CONNECTIONS)
    except OSError as error:
        raise UsageError(
            f"The address {host}, port {port}, cannot be listened at ({error.strerror or error}).",
            "Choose another --port or --host.",
        ) from error


def url(listening: socket.socket) -> str:
    """The address of a socket as a browser takes it."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if listening.family == socket.AF_INET6 else f"http://{host}:{port}"


class Server:
    """uvicorn with an application, quiet: requests are counted, not written down.

    Args:
        app: the ASGI application.
        grace_s: seconds that requests get to end in.
        head_s: seconds that the head of a request may take to arrive.
    """

    def __init__(self, app: object, grace_s: float, *, head_s: float = HEAD_S) -> None:
        import uvicorn

        from earec_core.serve.protocol import BoundedProtocol

        config = uvicorn.Config(
            app,  # type: ignore[arg-type]
            http=partial(BoundedProtocol, head_s=head_s),  # type: ignore[arg-type]
            access_log=False,
            log_config=None,  # one would close the handlers that are there
            log_level="warning",
            server_header=False,
            proxy_headers=False,
            limit_concurrency=_CONNECTIONS,
            timeout_graceful_shutdown=int(grace_s) + 1,
            ws="none",
        )
        self._server = uvicorn.Server(config)

    @property
    def stop(self) -> Callable[[], None]:
        """What ends it as a signal does."""
        return lambda: setattr(self._server, "should_exit", True)

    def run(self, listening: socket.socket) -> None:
        """Serve until SIGINT or SIGTERM; requests that have begun are answered, and the process goes on."""
        # When it has ended, uvicorn raises the signal again for whoever handled it before.
        kept = {one: signal.signal(one, lambda *_: None) for one in (signal.SIGINT, signal.SIGTERM)}
        try:
            self._server.run(sockets=[listening])
        finally:
            for one, handler in kept.items():
                signal.signal(one, handler)
