"""What every way of computing steps faster has in common."""

from __future__ import annotations

from typing import ClassVar


class Part:
    """One way of computing the steps of a run faster. It acts on the run's model from its making to `remove`."""

    name: ClassVar[str]
    """What the report calls it."""
    problem: str | None = None
    """Why it is not done; None where it is."""

    def described(self) -> str:
        """What was done, or why it was not, for the report."""
        return "on" if self.problem is None else f"off: {self.problem}"

    def flush(self) -> None:
        """Write what is kept for a resumed run."""

    def remove(self) -> None:
        """Leave the model as plain libraries know it."""
