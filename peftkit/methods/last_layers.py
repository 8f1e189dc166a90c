"""Partial fine-tuning: the topmost blocks train as a whole, all below stays as it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from peftkit.methods import Addition, TuningContext, TuningMethod, methods
from peftkit.methods.retrained import retrained

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@methods.register("last_layers")
class LastLayers(TuningMethod):
    """The last blocks of the base, all between them and the head (final norm, pooler) and the head train.

    What lies below is never changed, nor is the output layer that a language model brings along.
    """

    paper: ClassVar[str] = "Lee, Tang & Lin 2019, arXiv:1911.03090"
    use_when: ClassVar[str] = "full tuning is too dear and the task is close to what the base was trained on"
    mergeable: ClassVar[bool] = True
    default_learning_rate: ClassVar[float] = 1e-4

    layers: int = Field(2, ge=1)
    """Blocks that train, counted from the top of every stack (an encoder-decoder has two)."""
    embeddings: bool = False
    """Whether the input embeddings train too."""

    def problem(self, model: PreTrainedModel, context: TuningContext) -> str | None:
        """See `TuningMethod.problem`; also: more blocks asked for than there are, or embeddings that are tied."""
        from peftkit.layers.blocks import block_lists

        stacks = block_lists(model)
        if not stacks:
            return f"method {self.name!r} finds no repeated blocks in {type(model).__name__}; use lora or full"
        short = min(stacks, key=lambda name: len(stacks[name]))
        if len(stacks[short]) < self.layers:
            return (
                f"method.layers is {self.layers}, but {short!r} of {type(model).__name__} has only "
                f"{len(stacks[short])} blocks; use at most {len(stacks[short])}"
            )
        shared = _sharing_embeddings(model) if self.embeddings else []
        if len(shared) > 1:
            return (
                f"method.embeddings: the input embeddings of {type(model).__name__} are shared by "
                f"{' and '.join(shared)}, and a retrained copy of one would come apart from the others; "
                "leave them out or use method full"
            )
        return super().problem(model, context)

    def full_precision_modules(self, model: PreTrainedModel, *, head_modules: Sequence[str]) -> tuple[str, ...]:
        """The modules that train; see `TuningMethod.full_precision_modules`."""
        return self._modules(model, head_modules)

    def addition(self, model: PreTrainedModel, context: TuningContext) -> Addition:
        """See `TuningMethod.addition`."""
        return Addition(self._modules(model, context.head_modules))

    def apply(self, model: PreTrainedModel, context: TuningContext) -> PreTrainedModel:
        """The model as a `PeftModel` that holds copies of the upper modules; see `TuningMethod.apply`."""
        return retrained(model, self._modules(model, context.head_modules), context, method=self.name)

    def _modules(self, model: PreTrainedModel, head_modules: Sequence[str]) -> tuple[str, ...]:
        from peftkit.layers.blocks import block_lists
        from peftkit.layers.depth import above_stack

        chosen = []
        for name, blocks in block_lists(model).items():
            chosen += [f"{name}.{index}" for index in range(len(blocks) - self.layers, len(blocks))]
            chosen += above_stack(model, name, heads=False)
        if self.embeddings:
            embeddings = model.get_input_embeddings()
            chosen += [name for name, module in model.named_modules() if module is embeddings]
        return tuple(name for name in dict.fromkeys(chosen) if name not in head_modules)


def _sharing_embeddings(model: PreTrainedModel) -> list[str]:
    """Names of all modules that hold the weight of the input embeddings."""
    weight = model.get_input_embeddings().weight
    found = model.named_parameters(remove_duplicate=False)
    return [name.rpartition(".")[0] for name, parameter in found if parameter is weight]
