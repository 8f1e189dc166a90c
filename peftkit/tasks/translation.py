"""Translation: the same text in another language."""

from __future__ import annotations

from typing import ClassVar

from peftkit.tasks import tasks
from peftkit.tasks.generation import PromptTask


@tasks.register("translation")
class Translation(PromptTask):
    """A text in the target language for each in the source language."""

    text_columns: ClassVar[tuple[str, ...]] = ("source",)
    label_column: ClassVar[str | None] = "target"
    target_column: ClassVar[str] = "target"

    @property
    def default_template(self) -> str:
        """The source alone for encoder-decoders; for decoders its end is marked."""
        return "{source}\n=>" if self._is_decoder else "{source}"

    @property
    def default_metrics(self) -> tuple[str, ...]:
        """Perplexity of the translation, which needs no generation, and BLEU and chrF of what is generated."""
        return ("perplexity", "bleu", "chrf")
