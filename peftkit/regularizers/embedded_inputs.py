"""Changing the embedded input while a model trains."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


def change_embedded_inputs(model: PreTrainedModel, change: Callable[[Tensor], Tensor]) -> None:
    """Pass every embedded input (rows, tokens, width) through `change`, while the model is in training mode."""

    def hook(module: Any, args: tuple[Any, ...], output: Tensor) -> Tensor:
        return change(output) if module.training else output

    model.get_input_embeddings().register_forward_hook(hook)
