"""Texts translated into another language and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from peftkit.augmentations import Augmentation, Rewriting, augmentations

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@augmentations.register("back_translation")
class BackTranslation(Augmentation):
    """Translates texts with one sequence-to-sequence model and back with another, by sampling.

    Xie et al. 2020, arXiv:1904.12848, section 2.2. The models are the recipe's choice; nothing checks that they
    translate.
    """

    paper: ClassVar[str] = "Xie et al. 2020, arXiv:1904.12848"

    there: str = Field(min_length=1)
    """Model that translates from the language of the rows: hub id or folder."""
    back: str = Field(min_length=1)
    """Model that translates back; may be the same."""
    there_prefix: str = ""
    """What the model wants before each text: `translate English to German: ` for T5."""
    back_prefix: str = ""
    """As there_prefix, for the way back."""
    temperature: float = Field(0.9, gt=0.0)
    """Of sampling: low keeps to the text, high gives other words."""
    batch_size: int = Field(16, ge=1)
    """Texts per pass of a model."""

    def rewrite(self, texts: Sequence[str], rewriting: Rewriting) -> list[str]:
        """See `Augmentation.rewrite`."""
        abroad = self._translated(texts, rewriting, way="there")
        home = self._translated(abroad, rewriting, way="back")
        return [new or text for new, text in zip(home, texts, strict=True)]

    def _translated(self, texts: Sequence[str], rewriting: Rewriting, *, way: str) -> list[str]:
        import torch

        from peftkit.augmentations.models import load_model

        option = f"augmentations: {{name: back_translation, {way}: ...}}"
        model, tokenizer = load_model("AutoModelForSeq2SeqLM", getattr(self, way), revision=None, option=option)
        prefix: str = getattr(self, f"{way}_prefix")
        translated: list[str] = []
        for start in range(0, len(texts), self.batch_size):
            batch = [prefix + text for text in texts[start : start + self.batch_size]]
            inputs = tokenizer(batch, return_tensors="pt", padding=True, truncation=True).to(model.device)
            with torch.random.fork_rng():
                torch.manual_seed(rewriting.random(start).getrandbits(63))
                written = self._written(model, inputs)
            translated += [text.strip() for text in tokenizer.batch_decode(written, skip_special_tokens=True)]
        return translated

    def _written(self, model: PreTrainedModel, inputs: Any) -> Any:
        """Token ids; a translation may be twice as long as its text."""
        generate: Any = model.generate
        return generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            do_sample=True,
            temperature=self.temperature,
            num_beams=1,
            max_new_tokens=2 * inputs["input_ids"].shape[1] + 8,
        )
