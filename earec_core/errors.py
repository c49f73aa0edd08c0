"""Errors that a user can act on: one sentence of what and where, then the next step.

The command line prints both and exits with `exit_code`; a library user catches the class.

| code | meaning                            |
|------|------------------------------------|
| 0    | done                               |
| 1    | the run failed                     |
| 2    | usage: an option or an input file  |
| 3    | a plugin is unusable               |
| 4    | the registry's integrity           |
| 5    | an optional dependency is missing  |
| 130  | interrupted (Ctrl-C); run again to resume |
"""

from __future__ import annotations


class EarecError(Exception):
    """A run failed for a reason that the user can act on.

    Args:
        problem: what went wrong and where, one sentence ending with a full stop.
        next_step: what to do about it, one sentence ending with a full stop.
    """

    exit_code = 1

    def __init__(self, problem: str, next_step: str) -> None:
        super().__init__(f"{problem} {next_step}")
        self.problem = problem
        self.next_step = next_step

    def __reduce__(self) -> tuple[type[EarecError], tuple[str, str]]:
        """How it comes whole out of another process."""
        return type(self), (self.problem, self.next_step)


class UsageError(EarecError):
    """An option, a configuration value or an input file is not usable as given."""

    exit_code = 2


class DataError(UsageError):
    """A catalog, a dataset directory or one of its files cannot be read as asked."""


class PluginError(EarecError):
    """A requested plugin is missing, broken or of an incompatible version."""

    exit_code = 3


class IntegrityError(EarecError):
    """Something stored is damaged, or does not belong to what it is to be used with."""

    exit_code = 4


class MissingDependencyError(EarecError):
    """An optional library that the command needs is not installed."""

    exit_code = 5


class DamagedInputError(EarecError):
    """One item's input in one modality cannot be read; the item loses that modality and is counted."""


def one_line(error: BaseException) -> str:
    """Kind and text of any exception in one line, without a full stop."""
    try:
        text = " ".join(str(error).split())
    except Exception:  # noqa: BLE001 - an exception that cannot say itself
        text = ""
    return f"{type(error).__name__}: {text}".rstrip(": ").rstrip(".")
