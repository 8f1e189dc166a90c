"""Trained rows of the input embedding, for tokens that the base does not know."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from peftkit.methods import Addition, TuningContext, TuningMethod, methods, wrapped

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@methods.register("trainable_tokens")
class TrainableTokens(TuningMethod):
    """Only the embeddings of the named tokens train; tokens that the tokenizer lacks are added to it.

    The adapter holds just these rows. Beside another method: `method: [lora, {name: trainable_tokens, tokens: [...]}]`.
    """

    paper: ClassVar[str] = "as in peft, TrainableTokensConfig"
    use_when: ClassVar[str] = "new words or control tokens, mostly beside lora"
    mergeable: ClassVar[bool] = True
    default_learning_rate: ClassVar[float] = 5e-3

    tokens: tuple[str, ...] = Field(min_length=1)
    """The tokens, as text."""

    def prepare_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Add the tokens that are not there yet; see `TuningMethod.prepare_tokenizer`."""
        known = tokenizer.get_vocab()
        tokenizer.add_tokens([token for token in self.tokens if token not in known])

    def addition(self, model: PreTrainedModel, context: TuningContext) -> Addition:
        """See `TuningMethod.addition`."""
        assert context.tokenizer is not None  # a run always has one
        return Addition(new_token_ids=tuple(context.tokenizer.convert_tokens_to_ids(list(self.tokens))))

    def apply(self, model: PreTrainedModel, context: TuningContext) -> PreTrainedModel:
        """The model as a `PeftModel`; see `TuningMethod.apply`."""
        from peft import LoraConfig

        # peft's own TrainableTokensConfig has no place for a head, a LoRA adapter without targets has.
        config = LoraConfig(
            task_type=context.peft_task_type,
            target_modules="dummy-target-modules",
            modules_to_save=context.modules_to_save,
            trainable_token_indices=list(self.addition(model, context).new_token_ids),
        )
        return wrapped(model, config, method=self.name)
