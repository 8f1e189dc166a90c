"""Prompt tuning: trained embeddings before the input."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import model_validator

from peftkit.methods import TuningContext, methods
from peftkit.methods.virtual_tokens import VirtualTokens, dimensions

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@methods.register("prompt")
class Prompt(VirtualTokens):
    """Trained embeddings stand before the embedded input, at the first layer only."""

    paper: ClassVar[str] = "Lester, Al-Rfou & Constant 2021, arXiv:2104.08691"
    use_when: ClassVar[str] = "very large bases; on small ones it is far behind lora"
    default_learning_rate: ClassVar[float] = 2e-2

    init: Literal["vocabulary", "random", "text"] = "vocabulary"
    """Where the embeddings start: at tokens drawn from the vocabulary, at random values, or at those of `init_text`."""
    init_text: str | None = None
    """Text whose tokens the prompt starts as, repeated or cut to `virtual_tokens`."""

    @model_validator(mode="after")
    def _text_where_needed(self) -> Prompt:
        if (self.init == "text") != (self.init_text is not None):
            raise ValueError(f"init_text belongs to init 'text', but init is {self.init!r} and init_text is "
                             f"{self.init_text!r}; set both or neither")  # fmt: skip
        return self

    def apply(self, model: PreTrainedModel, context: TuningContext) -> PreTrainedModel:
        """The model as a `PeftModel`; see `TuningMethod.apply`."""
        from peft import PromptTuningConfig, PromptTuningInit

        starts = {"vocabulary": "SAMPLE_VOCAB", "random": "RANDOM", "text": "TEXT"}
        text: dict[str, Any] = {}
        if self.init_text is not None:
            text = {"prompt_tuning_init_text": self.init_text, "tokenizer_name_or_path": model.name_or_path}
        config = PromptTuningConfig(
            task_type=context.peft_task_type,
            modules_to_save=context.modules_to_save,
            num_virtual_tokens=self.virtual_tokens,
            prompt_tuning_init=getattr(PromptTuningInit, starts[self.init]),
            **text,
            **dimensions(model),
        )
        return self.wrapped(model, config, context)
