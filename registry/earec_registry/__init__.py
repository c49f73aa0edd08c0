"""The model registry: content-addressed, immutable, verifiable. Needs nothing but the standard library."""

from __future__ import annotations

from .check import GcReport, Report
from .errors import DamagedError, InvalidError, LayoutError, NotFoundError, RegistryError, StorageError
from .manifest import FileEntry, Manifest, Parent, check_paths
from .refs import LogEntry, Problem
from .registry import Entry, Listing, Registry
from .transfer import Remote, Transfer, fetch, send, target_name

__all__ = [
    "DamagedError",
    "Entry",
    "FileEntry",
    "GcReport",
    "InvalidError",
    "LayoutError",
    "Listing",
    "LogEntry",
    "Manifest",
    "NotFoundError",
    "Parent",
    "Problem",
    "Registry",
    "RegistryError",
    "Remote",
    "Report",
    "StorageError",
    "Transfer",
    "check_paths",
    "fetch",
    "send",
    "target_name",
]
