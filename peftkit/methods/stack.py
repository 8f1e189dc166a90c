"""Several methods at once: a main one, and others that add to what it trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from peftkit.methods import TuningContext, TuningMethod, methods
from peftkit.registry import From

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

Part = Annotated[TuningMethod, From(methods)]


@methods.register("stack")
class Stack(TuningMethod):
    """A main method and others that add to what it trains; a recipe may write a list: `method: [lora, layer_norm]`.

    What can be added: whole modules (layer_norm, last_layers, head_only) and tokens (trainable_tokens).
    """

    paper: ClassVar[str] = "see its parts"
    use_when: ClassVar[str] = "one method is not enough: lora with new tokens, or with trained norms"

    methods: tuple[Part, ...] = Field(min_length=2)
    """The main method, then those that add to it."""

    @property
    def main(self) -> TuningMethod:
        """The method that is added to."""
        return self.methods[0]

    # Facts of the stack follow from its parts.
    @property
    def default_learning_rate(self) -> float:  # type: ignore[override] # a fact of the class elsewhere
        """That of the main method."""
        return self.main.default_learning_rate

    @property
    def trains_base_weights(self) -> bool:  # type: ignore[override] # a fact of the class elsewhere
        """Whether a part does."""
        return any(part.trains_base_weights for part in self.methods)

    @property
    def mergeable(self) -> bool:  # type: ignore[override] # a fact of the class elsewhere
        """Whether all parts are."""
        return all(part.mergeable for part in self.methods)

    @property
    def base_bits(self) -> frozenset[int]:  # type: ignore[override] # a fact of the class elsewhere
        """What suits all parts."""
        return frozenset.intersection(*(part.base_bits for part in self.methods))

    @property
    def adapts_conv1d(self) -> bool:  # type: ignore[override] # a fact of the class elsewhere
        """Whether all parts do."""
        return all(part.adapts_conv1d for part in self.methods)

    @property
    def allows_gradient_checkpointing(self) -> bool:  # type: ignore[override] # a fact of the class elsewhere
        """Whether all parts do."""
        return all(part.allows_gradient_checkpointing for part in self.methods)

    @property
    def runs_to_the_end(self) -> bool:  # type: ignore[override] # a fact of the class elsewhere
        """Whether a part does."""
        return any(part.runs_to_the_end for part in self.methods)

    @property
    def per_token(self) -> bool:  # type: ignore[override] # a fact of the class elsewhere
        """Whether all parts are."""
        return all(part.per_token for part in self.methods)

    @property
    def starts_at_base(self) -> bool:  # type: ignore[override] # a fact of the class elsewhere
        """Whether all parts do."""
        return all(part.starts_at_base for part in self.methods)

    def problem(self, model: PreTrainedModel, context: TuningContext) -> str | None:
        """The first problem of a part; also: a part that cannot be added to another."""
        for part in self.methods[1:]:
            if part.addition(model, context) is None:
                return (
                    f"method {part.name!r} cannot be added to {self.main.name!r}: it is no choice of modules or "
                    "tokens; put it first, or leave it out"
                )
        problems = (part.problem(model, context) for part in self.methods)
        return next((problem for problem in problems if problem), None)

    def full_precision_modules(self, model: PreTrainedModel, *, head_modules: Sequence[str]) -> tuple[str, ...]:
        """Those of all parts."""
        found = (part.full_precision_modules(model, head_modules=head_modules) for part in self.methods)
        return tuple(name for names in found for name in names)

    def prepare_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """As every part wants it."""
        for part in self.methods:
            part.prepare_tokenizer(tokenizer)

    def apply(self, model: PreTrainedModel, context: TuningContext) -> PreTrainedModel:
        """The main method's model, with what the others add; see `TuningMethod.apply`."""
        from peftkit.errors import CapabilityError

        additions = [found for part in self.methods[1:] if (found := part.addition(model, context))]
        tokens = tuple(token for found in additions for token in found.new_token_ids)
        modules = tuple(dict.fromkeys(name for found in additions for name in found.modules))
        tuned = self.main.apply(model, replace(context, extra_modules=modules, new_token_ids=tokens))
        if tokens and getattr(tuned.active_peft_config, "trainable_token_indices", None) is None:
            raise CapabilityError(
                f"method {self.main.name!r} cannot train single tokens beside its own weights; "
                "put trainable_tokens beside lora, dora, adalora, bottleneck or bitfit"
            )
        return tuned

    def learning_rates(self, model: PreTrainedModel, *, learning_rate: float) -> Mapping[str, float]:
        """Those of the main method."""
        return self.main.learning_rates(model, learning_rate=learning_rate)

    def penalty(self, model: PreTrainedModel) -> Tensor | None:
        """That of the main method."""
        return self.main.penalty(model)

    def finish(self, model: PreTrainedModel) -> None:
        """As the main method does."""
        self.main.finish(model)

    def state(self, model: PreTrainedModel) -> Mapping[str, Tensor]:
        """That of the main method."""
        return self.main.state(model)

    def restore(self, model: PreTrainedModel, state: Mapping[str, Tensor]) -> None:
        """As the main method does."""
        self.main.restore(model, state)

    def callbacks(self) -> Sequence[TrainerCallback]:
        """Those of the main method."""
        return self.main.callbacks()
