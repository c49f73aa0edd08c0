"""`earec serve` before anything is loaded: addresses, tokens, ports, what it needs."""

from __future__ import annotations

import importlib.util
import socket
from pathlib import Path

import pytest

from earec_core.cli import run
from earec_core.errors import UsageError
from earec_core.serve.guard import is_loopback, read_token
from earec_core.serve.server import bind, url

EVERYWHERE = "0.0.0.0"  # noqa: S104 - it is refused
SERVE = ["serve", "m", "--data", "nowhere"]


def test_only_this_machine_is_served_without_a_token(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("EAREC_TOKEN", raising=False)
    for host in (EVERYWHERE, "::", "192.168.1.5", "example.org"):
        assert run([*SERVE, "--host", host]) == 2
        said = capsys.readouterr().err
        assert f"{host} may be reached by others" in said
        assert len(said.splitlines()) == 1
    # With one, or on this machine, the next thing is looked at: the dataset.
    monkeypatch.setenv("EAREC_TOKEN", "abc")
    assert run([*SERVE, "--host", EVERYWHERE, "--port", "0"]) == 2
    assert "nowhere is no dataset directory" in capsys.readouterr().err
    assert [is_loopback(host) for host in ("localhost", "127.0.0.1", "127.9.9.9", "::1")] == [True] * 4


def test_a_token_is_read_from_a_file_or_the_environment_and_an_empty_one_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("s3cret\n")
    assert read_token(file, "other") == "s3cret"
    assert read_token(None, "other ") == "other"
    assert read_token(None, None) is None
    for bad in ("", " \n", "two words", "sécret", "a\tb"):
        file.write_text(bad)
        with pytest.raises(UsageError, match="token") as refused:
            read_token(file, None)
        assert not bad.strip() or bad not in str(refused.value)
    with pytest.raises(UsageError, match="is empty"):
        read_token(None, "")
    with pytest.raises(UsageError, match="cannot be read"):
        read_token(tmp_path / "gone", None)


def test_a_taken_port_is_a_sentence() -> None:
    with bind("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        assert url(first) == f"http://127.0.0.1:{port}"
        with pytest.raises(UsageError, match=f"port {port}, cannot be listened at"):
            bind("127.0.0.1", port)
    with pytest.raises(UsageError, match="Choose another"):
        bind("203.0.113.1", 0)
    if socket.has_ipv6:
        with bind("::1", 0) as six:
            assert url(six).startswith("http://[::1]:")


def test_what_is_not_installed_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    there = importlib.util.find_spec
    monkeypatch.setattr(
        "earec_core.serve.server.find_spec", lambda name: None if name == "uvicorn" else there(name)
    )
    assert run(SERVE) == 5
    assert "pip install 'earec[serve]'" in capsys.readouterr().err
