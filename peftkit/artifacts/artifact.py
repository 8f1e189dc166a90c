"""What every way of locating returns."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from peftkit.results import ArtifactRecord


@dataclass(frozen=True)
class Artifact:
    """A model, a data set or a wheel on this machine.

    Args:
        path: local folder; of a model: config, tokenizer and *.safetensors; of a data set: its data files.
        record: where it came from, with a digest of the files that are used.
    """

    path: Path
    record: ArtifactRecord


class NotAvailableError(Exception):
    """One of several places does not have what is wanted; the text says why. Never leaves this package."""
