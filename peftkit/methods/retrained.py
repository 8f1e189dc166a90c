"""An adapter that holds whole retrained modules, for methods that add nothing to the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from peftkit.methods import TuningContext, wrapped

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def retrained(
    model: PreTrainedModel, modules: Sequence[str], context: TuningContext, *, method: str
) -> PreTrainedModel:
    """`model` as a `PeftModel` in which copies of `modules` and of the head train, the originals staying as they are.

    The saved adapter is a LoRA adapter without any low-rank update, so that plain peft loads, merges and disables it.

    Args:
        modules: names of modules of the base; one that lies inside another is trained with it.

    Raises:
        CapabilityError: peft refuses.
    """
    from peft import LoraConfig

    config = LoraConfig(
        task_type=context.peft_task_type,
        target_modules="dummy-target-modules",  # peft's word for none
        modules_to_save=_outermost([*modules, *(context.modules_to_save or ())]),
        trainable_token_indices=list(context.new_token_ids) or None,
    )
    return wrapped(model, config, method=method)


def _outermost(names: Sequence[str]) -> list[str]:
    return [name for name in dict.fromkeys(names) if not any(name.startswith(f"{other}.") for other in names)]
