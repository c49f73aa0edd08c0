"""Where a stage works: what is stored, who is told, and the run that it is part of.

A `Workspace` is made once, by a command or a script, and handed to every stage. It is the only place that looks at
the environment for folders.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

import earec_core
from earec_core import files
from earec_core.errors import UsageError
from earec_core.plugins.hooks import Observers
from earec_registry import Registry

_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([kMGT]?B|)", re.IGNORECASE)
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}


def default_home() -> Path:
    """`EAREC_HOME`, else `~/.earec`: backbones, cached features, runs, the registry.

    Raises:
        UsageError: this user has no home folder, as in some containers.
    """
    return _folder(os.environ.get("EAREC_HOME") or "~/.earec", "EAREC_HOME")


def default_registry() -> Path:
    """`EAREC_REGISTRY`, else the registry under `default_home()`.

    Raises:
        UsageError: see `default_home`.
    """
    return _folder(os.environ.get("EAREC_REGISTRY") or str(default_home() / "registry"), "EAREC_REGISTRY")


def _folder(path: str, variable: str) -> Path:
    try:
        return Path(path).expanduser().absolute()
    except RuntimeError as error:
        raise UsageError(
            f"The folder {path} cannot be told, since there is no such home folder.",
            f"Set {variable} to a folder that can be written.",
        ) from error


def default_quota() -> int | None:
    """`EAREC_REGISTRY_QUOTA` in bytes: a number, or one with kB, MB, GB or TB behind it; None where it is not set.

    Raises:
        UsageError: it is no such number.
    """
    text = os.environ.get("EAREC_REGISTRY_QUOTA", "").strip()
    size = _SIZE.fullmatch(text)
    if text and not size:
        raise UsageError(f"EAREC_REGISTRY_QUOTA is {text!r}, not a size.", "Write e.g. 500MB or 20GB.")
    return int(float(size[1]) * _UNITS[size[2].upper()]) if size else None


def clean(home: Path, older_s: float, *, dry_run: bool = False) -> dict[Path, int]:
    """Remove runs, cached features, vectors and joined catalogs that were not written to lately.

    What a run that was killed would go on from goes with it; a run that another process owns stays.

    Args:
        older_s: seconds since the last write to anything in them.
        dry_run: only say what would go.

    Returns:
        The folders, with the bytes that they held.
    """
    removed, newest = dict[Path, int](), time.time() - older_s
    for parent in (
        home / "runs",
        *(home / "cache" / kind for kind in ("features", "vectors", "indexes", "joined", "views")),
    ):
        for folder in sorted(path for path in parent.glob("*") if path.is_dir()):
            if _last_write(folder) > newest or _is_owned(folder):
                continue
            removed[folder] = files.folder_bytes(folder)
            if not dry_run:
                shutil.rmtree(folder, ignore_errors=True)
    return removed


def _is_owned(folder: Path) -> bool:
    """Whether a process is at work on a run; told by its lock, and not where the file system has none."""
    lock = folder.with_name(f".{folder.name}.lock")
    if not lock.exists():
        return False
    try:
        with FileLock(lock, blocking=False):
            return False
    except Timeout:
        return True
    except (NotImplementedError, OSError):
        return False


def _last_write(folder: Path) -> float:
    """When anything in a folder was written last, in seconds since 1970."""
    times = [folder.stat().st_mtime]
    for path in folder.rglob("*"):
        with suppress(OSError):
            times.append(path.lstat().st_mtime)
    return max(times)


@dataclass(frozen=True)
class Reporter:
    """What a stage tells the person who runs it; nothing by default.

    Attributes:
        note: takes a sentence.
        progress: takes units done, units in all (0: not known), and a few words.
    """

    note: Callable[[str], None] = lambda _: None
    progress: Callable[[int, int, str], None] = lambda *_: None

    def about(self, subject: str) -> Reporter:
        """The same reporter, its progress said of `subject`."""
        return replace(
            self, progress=lambda done, total, text: self.progress(done, total, f"{subject}: {text}")
        )


@dataclass(frozen=True)
class Workspace:
    """The folders, the registry and the listeners of a session.

    Attributes:
        home: backbones, downloads, cached features and runs.
        registry: the models.
        reporter: see `Reporter`.
        watch: gives the observers of runs and of the registry; asked at the first event.
    """

    home: Path
    registry: Registry
    reporter: Reporter = Reporter()
    watch: Callable[[], Observers] = Observers

    @classmethod
    def open(
        cls,
        home: str | Path | None = None,
        registry: str | Path | None = None,
        *,
        reporter: Reporter | None = None,
        watch: Callable[[], Observers] = Observers,
    ) -> Workspace:
        """Open the registry, making it if it is not there.

        Args:
            home: default: `default_home()`.
            registry: default: `EAREC_REGISTRY`, else `registry` under the home.
            watch: see the class; what the registry stores fires `earec_registered`.
        """
        home, registry = (None if path is None else Path(path) for path in (home, registry))
        root = registry or (home / "registry" if home else default_registry())
        observers, home = cache(watch), home or default_home()
        opened = Registry.open(
            root,
            added=lambda **event: observers().fire("earec_registered", **event),
            quota=default_quota(),
            scratch=home / "cache" / "views" / files.digest(str(root.absolute()))[:12],
        )
        return cls(home, opened, reporter or Reporter(), observers)

    @property
    def backbones(self) -> Path:
        """Folder of stored language models."""
        return self.home / "backbones"

    @property
    def encoders(self) -> Path:
        """Folder of named encoders of text."""
        return self.home / "encoders"

    @property
    def downloads(self) -> Path:
        """Folder of files that packages ship."""
        return self.home / "downloads"

    @property
    def features(self) -> Path:
        """Folder of cached encoder outputs."""
        return self.home / "cache" / "features"

    @property
    def vectors(self) -> Path:
        """Folder of the shards of item vectors."""
        return self.home / "cache" / "vectors"

    @property
    def indexes(self) -> Path:
        """Folder of indexes over items that are not exact, by what they are of."""
        return self.home / "cache" / "indexes"

    def note(self, text: str) -> None:
        """Tell the person a sentence."""
        self.reporter.note(text)

    def progress(self, done: int, total: int, text: str = "") -> None:
        """Tell the person how far the work is."""
        self.reporter.progress(done, total, text)

    def about(self, subject: str) -> Workspace:
        """The same workspace, its progress said of `subject`."""
        return replace(self, reporter=self.reporter.about(subject))

    def fire(self, hook: str, **event: Any) -> None:
        """Tell the observers what happened."""
        self.watch().fire(hook, **event)

    def run(self, stage: str, config: Mapping[str, Any], *, label: str = "") -> Run:
        """The run that this configuration is; the same configuration is the same run.

        Args:
            stage: the command's word.
            config: everything that the result depends on, as JSON has it; earec's version is added.
            label: one more word in the folder's name.
        """
        config = {**config, "earec": earec_core.__version__}
        digest = files.digest(config)
        name = "-".join(filter(None, (stage, label, digest[:12])))
        # One lock a path and process: whoever owns a run and starts it again does not wait for itself.
        lock = FileLock(self.home / "runs" / f".{name}.lock", is_singleton=True)
        return Run(self, stage, self.home / "runs" / name, digest, config, lock)


@dataclass(frozen=True)
class Run:
    """One run of a stage: a folder named by the digest of everything that its result depends on.

    In it are `config.json`, whatever the stage needs to resume, and, once it has ended, `result.json`. It has one
    owner at a time, from `own` or `start` to `finish` or `leave`, or to the end of the process or of the object.

    Attributes:
        stage: the command's word.
        folder: made by `start`.
        digest: of `config`, 64 hexadecimal digits.
        config: the resolved configuration.
    """

    workspace: Workspace = field(repr=False)
    stage: str
    folder: Path
    digest: str
    config: Mapping[str, Any]
    _lock: FileLock = field(repr=False, compare=False)

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.name

    @property
    def checkpoint(self) -> Path:
        """Where a training keeps what it resumes from."""
        return self.folder / "checkpoint.safetensors"

    def own(self) -> Run:
        """Wait, saying so, until no other process is at work on this run; gives the run itself.

        What killed owners left half-written is removed. Where the file system has no locks, nobody waits: every
        file is then written under a name of its own first, and the last one stays.
        """
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            try:
                self._lock.acquire(timeout=0)
            except Timeout:
                self.workspace.note(
                    f"Another process is at work on the run {self.name}; waiting for its end."
                )
                self._lock.acquire(poll_interval=0.5)
        except NotImplementedError:
            return self
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            return self
        for left in self.folder.glob(".*.tmp"):
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        return self

    def forget(self) -> None:
        """Remove what its owner would go on from, and the result."""
        for file in (self.checkpoint, self.folder / "result.json"):
            file.unlink(missing_ok=True)

    def leave(self) -> None:
        """Let others work on this run."""
        self._lock.release(force=True)

    def scratch(self) -> Path:
        """A new folder in this run's; the caller removes it, or the run's next owner."""
        return Path(tempfile.mkdtemp(suffix=".tmp", prefix=".", dir=self.folder))

    def start(self) -> Run:
        """Own the run, make its folder with the configuration, tell the observers; gives the run itself."""
        self.own()
        files.write_json(self.folder / "config.json", self.config)
        self._fire("earec_run_start", config=self.config)
        return self

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Tell the observers that a step of the stage ended.

        Args:
            step: steps done so far.
            metrics: figures of this step, by name.
        """
        self._fire("earec_run_step", step=step, metrics=metrics)

    def finish(
        self, result: Mapping[str, Any], *, step: int = 0, metrics: Mapping[str, float] | None = None
    ) -> None:
        """Keep the result and tell the observers that the run ended.

        Args:
            result: what `result` gives from now on.
            step: steps done.
            metrics: the final figures.
        """
        files.write_json(self.folder / "result.json", result)
        self._fire("earec_run_end", step=step, metrics=dict(metrics or {}))
        self.leave()

    def result(self) -> dict[str, Any] | None:
        """What `finish` kept; None for a run that has not ended, or whose result cannot be read."""
        try:
            kept = json.loads((self.folder / "result.json").read_text())
        except (OSError, ValueError):
            return None
        return kept if isinstance(kept, dict) else None

    def _fire(self, hook: str, **event: Any) -> None:
        self.workspace.fire(hook, stage=self.stage, run=str(self.folder), **event)
