"""Text generation: a completion for each prompt."""

from __future__ import annotations

from typing import ClassVar

from peftkit.tasks import tasks
from peftkit.tasks.generation import PromptTask


@tasks.register("text_generation")
class TextGeneration(PromptTask):
    """A completion for each prompt; the loss is that of the completion alone, the end token included."""

    text_columns: ClassVar[tuple[str, ...]] = ("prompt",)
    label_column: ClassVar[str | None] = "completion"
    target_column: ClassVar[str] = "completion"

    @property
    def default_metrics(self) -> tuple[str, ...]:
        """Perplexity of the completion, which needs no generation, and ROUGE of what is generated."""
        return ("perplexity", "token_accuracy", "rouge")
