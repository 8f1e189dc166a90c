"""Summarization: a short text for each long one."""

from __future__ import annotations

from typing import ClassVar

from peftkit.tasks import tasks
from peftkit.tasks.generation import PromptTask


@tasks.register("summarization")
class Summarization(PromptTask):
    """A summary for each document."""

    text_columns: ClassVar[tuple[str, ...]] = ("document",)
    label_column: ClassVar[str | None] = "summary"
    target_column: ClassVar[str] = "summary"

    @property
    def default_template(self) -> str:
        """The document alone for encoder-decoders; decoders are told what is to come (Radford et al. 2019, GPT-2)."""
        return "{document}\n\nTL;DR:" if self._is_decoder else "{document}"

    @property
    def default_metrics(self) -> tuple[str, ...]:
        """Perplexity of the summary, which needs no generation, and ROUGE of what is generated."""
        return ("perplexity", "rouge")
