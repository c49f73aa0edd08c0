"""What can go wrong, as one sentence of what and where and one of what to do next.

The shape (`problem`, `next_step`, `exit_code`) is that of the `earec` command line's own errors, so it prints
both alike; the registry does not import them.
"""

from __future__ import annotations


class RegistryError(Exception):
    """The registry cannot do what was asked.

    Args:
        problem: what went wrong and where, one sentence ending with a full stop.
        next_step: what to do about it, one sentence ending with a full stop.
    """

    exit_code = 4

    def __init__(self, problem: str, next_step: str) -> None:
        super().__init__(f"{problem} {next_step}")
        self.problem = problem
        self.next_step = next_step

    def __reduce__(self) -> tuple[type[RegistryError], tuple[str, str]]:
        """How it comes whole out of another process."""
        return type(self), (self.problem, self.next_step)


class NotFoundError(RegistryError):
    """No model, name, tag or registry is meant by what was given, or more than one is."""

    exit_code = 2


class InvalidError(RegistryError):
    """A name, a tag, a manifest or a file path cannot be stored as given."""

    exit_code = 2


class DamagedError(RegistryError):
    """Something stored is missing or is not what was stored."""


class LayoutError(RegistryError):
    """The folder is not a registry, or one of a version that cannot be read here."""


class StorageError(RegistryError):
    """The disk is full, or the file system refuses."""

    exit_code = 1
