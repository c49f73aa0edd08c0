"""A service in a browser: it on a free port, and what a script of `tests/browser` makes of it."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn

from earec_core.serve.server import bind, url


@contextmanager
def running(app: Any) -> Iterator[str]:
    """The application on a free port of this machine."""
    with bind("127.0.0.1", 0) as listening:
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False, ws="none"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield url(listening)
        finally:
            server.should_exit = True
            thread.join()


def seen(browser: Path, script: str, *argv: str) -> Any:
    """What a script prints that uses a page in Chromium."""
    done = subprocess.run(
        ["node", script, *argv], cwd=browser, capture_output=True, text=True, timeout=180, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
