"""Every error a user can cause, with the exit code the command line gives it.

A message says what was wrong (with the value), where (dotted key, file, split, row) and what to do about it.
"""

from __future__ import annotations


class PeftkitError(Exception):
    """Base of all errors that peftkit raises on purpose; the command line prints its text without a traceback."""

    exit_code = 1


class RecipeError(PeftkitError):
    """A recipe that cannot be used: unknown keys, bad values, parts that do not fit together."""

    exit_code = 2


class UnknownComponentError(PeftkitError, ValueError):
    """A name that no registry knows. Also a `ValueError`, so that pydantic reports it beside other problems."""

    exit_code = 2


class DataError(PeftkitError):
    """Rows, files or data sets that cannot be used."""

    exit_code = 3


class CapabilityError(PeftkitError):
    """Something this machine or its installed libraries cannot do."""

    exit_code = 4


class RunError(PeftkitError):
    """A run that cannot start, or had to stop."""

    exit_code = 5


class ArtifactError(PeftkitError):
    """A model or data locator that leads nowhere, or to damaged files."""

    exit_code = 6


class InterruptedRunError(RunError):
    """The user stopped the run; what was computed is on disk and can be resumed."""

    exit_code = 130
