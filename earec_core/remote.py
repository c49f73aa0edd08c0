"""Registries elsewhere: any location that fsspec opens, such as `s3://bucket/prefix`, or a plain directory.

Credentials and endpoints are what the location's library finds itself, in the environment and in its configuration.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import chain, islice
from pathlib import Path
from typing import Any

from earec_core.errors import EarecError, MissingDependencyError, UsageError, one_line
from earec_registry import Registry, RegistryError, Transfer, fetch, send, target_name

_CHUNK = 1 << 20
_AT_ONCE = 32
"""Pieces; what has fewer goes to an object store in one request, which is one step."""
_OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az"}
"""Protocols without folders, whose libraries would make a bucket for one."""
_MISSING = (FileNotFoundError, IsADirectoryError, NotADirectoryError)
_USER = re.compile(r"(?<=://)[^/\s@'\"]*@")
_QUERY = re.compile(r"(://[^\s?'\"]*)\?[^\s'\"]*")
_REFUSED = re.compile("Forbidden|Access ?Denied|[Cc]redentials|SignatureDoesNotMatch|Access ?Key")


def push(
    registry: Registry,
    reference: str,
    url: str,
    *,
    called: str | None = None,
    why: str = "",
    progress: Callable[[int, int, str], None] = lambda *_: None,
) -> Transfer:
    """Copy a model with its parents to another registry, made if the location is empty, and set its tag there.

    Args:
        reference: name, `name:tag` or id.
        url: whatever fsspec opens, or a directory.
        called: `NAME` or `NAME:TAG` there; default: as here, which an id does not say.
        why: a note for the log there, before where it came from.
        progress: takes bytes done, bytes in all, and a few words.

    Raises:
        UsageError, MissingDependencyError: the location cannot be opened.
        EarecError: it cannot be reached, or refuses.
        RegistryError: see `earec_registry.send` and, for a directory, `earec_registry.fetch`.
    """
    remote, name = open_remote(url), ":".join(target_name(reference, called))
    note = _note(why, f"pushed from {socket.gethostname()}:{registry.root}")
    if remote.folder is None:
        return send(registry, remote, reference, called=name, why=note, progress=progress)
    # In a directory is a registry that keeps all its promises, so it fetches for itself.
    id_ = registry.resolve(reference)
    with registry.hold(id_):
        registry.require(id_)
        other, here = Registry.open(remote.folder), open_remote(str(registry.root))
        return fetch(other, here, id_, called=name, why=note, progress=progress)


def pull(
    registry: Registry,
    reference: str,
    url: str,
    *,
    called: str | None = None,
    why: str = "",
    progress: Callable[[int, int, str], None] = lambda *_: None,
) -> Transfer:
    """Copy a model with its parents from another registry into this one, and set its tag here.

    Args: see `push`, here and there the other way round.

    Raises:
        UsageError, MissingDependencyError: the location cannot be opened.
        EarecError: it cannot be reached, or refuses.
        RegistryError: see `earec_registry.fetch`.
    """
    remote = open_remote(url)
    note = _note(why, f"pulled from {remote.url}")
    return fetch(registry, remote, reference, called=called, why=note, progress=progress)


def _note(why: str, origin: str) -> str:
    return f"{why} ({origin})" if why else origin


def open_remote(url: str) -> FileSystemRemote:
    """The location that a URL or a path of a directory names; nothing of it is looked at.

    Raises:
        UsageError: nothing of its protocol is known.
        MissingDependencyError: the library of its protocol is not installed.
    """
    if find_spec("fsspec") is None:
        raise MissingDependencyError("Pushing and pulling need fsspec.", "pip install fsspec")
    import fsspec

    shown = without_secrets(url)
    try:
        fs, root = fsspec.url_to_fs(url)
    except ImportError as error:
        pip = "pip install 'earec[s3]'" if url.startswith(("s3:", "s3a:")) else f"{error}."
        raise MissingDependencyError(f"The library for {shown} is missing.", pip) from error
    except Exception as error:  # each protocol's library raises its own
        raise UsageError(
            f"The location {shown} cannot be opened ({without_secrets(one_line(error), url)}).",
            "Give a directory or a URL that fsspec knows, e.g. s3://bucket/models.",
        ) from error
    folder = Path(root) if "file" in _protocols(fs) else None
    return FileSystemRemote(fs, root.rstrip("/"), str(folder or shown).rstrip("/"), folder)


def _protocols(fs: Any) -> set[str]:
    return {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)


def without_secrets(text: str, url: str = "") -> str:
    """A text without what stands before the @ or behind the ? of URLs in it, nor the user part of `url`."""
    user = _USER.search(url)
    if user:
        text = text.replace(user[0].rstrip("@"), "...")
    return _QUERY.sub(r"\1", _USER.sub("", text))


@dataclass(frozen=True)
class FileSystemRemote:
    """A `Remote` (see `earec_registry.transfer`) in a file system of fsspec's.

    Attributes:
        fs: an `fsspec.AbstractFileSystem`.
        root: the location in it.
        url: the location, as it may be shown.
        folder: the same where it is a directory of this machine.
    """

    fs: Any
    root: str
    url: str
    folder: Path | None = None

    def files(self, folder: str) -> dict[str, int]:
        """Bytes of every file in a folder and those below it, by its path."""
        with self._saying("list its files"):
            try:
                self.fs.invalidate_cache()
                found = self.fs.find(self._at(folder), detail=True)
            except _MISSING:
                return {}
        above = len(self.root) + 1
        return {name[above:]: int(one["size"]) for name, one in sorted(found.items()) if name[above:]}

    def read(self, path: str) -> bytes | None:
        """What a small file holds; None if it is not there."""
        with self._saying(f"read {path}"):
            try:
                return bytes(self.fs.cat_file(self._at(path)))
            except _MISSING:
                return None

    def chunks(self, path: str) -> Iterator[bytes]:
        """A file's bytes, up to 1 MiB at a time; FileNotFoundError if it is not there."""
        with self._saying(f"read {path}"):
            try:
                self.fs.invalidate_cache()  # it knows files as they were when they were listed
                with self.fs.open(self._at(path), "rb") as stream:
                    while chunk := stream.read(_CHUNK):
                        yield chunk
            except _MISSING as error:
                raise _MissingError(path) from error

    def put(self, path: str, chunks: Iterable[bytes]) -> None:
        """Write a file; under a name of its own until it is whole, wherever the file system can do so."""
        at, pieces = self._at(path), iter(chunks)
        with self._saying(f"write {path}"):
            if not _OBJECT_STORES.isdisjoint(_protocols(self.fs)):
                first = list(islice(pieces, _AT_ONCE))
                if len(first) < _AT_ONCE:
                    self.fs.pipe_file(at, b"".join(first))
                    return
                pieces = chain(first, pieces)
            else:
                self.fs.makedirs(at.rpartition("/")[0], exist_ok=True)
            with self.fs.transaction, self.fs.open(at, "wb") as stream:
                for chunk in pieces:
                    stream.write(chunk)

    def remove(self, path: str) -> None:
        """Remove a file."""
        with self._saying(f"remove {path}"):
            self.fs.rm_file(self._at(path))

    def _at(self, path: str) -> str:
        return f"{self.root}/{path}".rstrip("/")

    @contextmanager
    def _saying(self, doing: str) -> Iterator[None]:
        """Say what a failure means for somebody who wanted to do `doing`; each library raises its own."""
        try:
            yield
        except (RegistryError, EarecError, _MissingError):
            raise
        except Exception as error:
            said = without_secrets(one_line(error), self.url)
            if isinstance(error, PermissionError) or _REFUSED.search(said):
                raise EarecError(
                    f"{self.url} does not let you {doing} ({said}).",
                    "Check the credentials in the environment or the library's configuration, and what they allow.",
                ) from error
            step = "Check the location and the network, then run the same again; what has arrived stays."
            if isinstance(error, FileNotFoundError):
                raise UsageError(f"{self.url} is not there: could not {doing} ({said}).", step) from error
            raise EarecError(f"Could not {doing} in {self.url} ({said}).", step) from error


class _MissingError(FileNotFoundError):
    """A file that is not there, where that is an answer."""
