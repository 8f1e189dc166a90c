"""The first of several sources that can be had: the hub where there is a network, else a wheel, else files."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

from pydantic import Field

from peftkit.data import DataSource, LoadedData, MissingFilesError, sources
from peftkit.errors import ArtifactError, CapabilityError
from peftkit.registry import From

NamedSource = Annotated[DataSource, From(sources)]


@sources.register("first_available")
class FirstAvailable(DataSource):
    """The first source that can be had; one that is there but broken is an error, never quietly replaced."""

    sources: tuple[NamedSource, ...] = Field(min_length=1)
    """The sources, in the order in which they are tried."""

    def read(self) -> LoadedData:
        """The splits of the first source that is there; the notes say which were passed over.

        Raises:
            ArtifactError: none is there; lists each reason.
            DataError: the first one that is there cannot be read.
        """
        passed_over: list[tuple[str, Exception]] = []
        for place, source in enumerate(self.sources):
            try:
                loaded = source.load()
            except (ArtifactError, CapabilityError, MissingFilesError) as problem:
                passed_over.append((f"data source {place} ({source.name}) was passed over", problem))
                continue
            notes = [f"{what}: {_in_one_line(problem)}" for what, problem in passed_over]
            return replace(loaded, notes=(*notes, *loaded.notes))
        listed = "\n".join(f"  - {what}: {problem}" for what, problem in passed_over)
        raise ArtifactError(
            f"none of {len(self.sources)} data sources can be had; make one of them available:\n{listed}"
        )


def _in_one_line(problem: Exception) -> str:
    """What was missing and what the hub said; without advice, which is void once another source was found."""
    first, *rest = str(problem).splitlines()
    said = [line.removeprefix("  - ") for line in rest if line.startswith("  - hub: ")]
    return "; ".join([first.rstrip(":"), *said])
