"""A method that is one of peft's configuration classes and a choice of linear layers."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any, ClassVar

from peftkit.methods import TuningContext, TuningMethod, wrapped
from peftkit.methods.targets import Targets, find_targets, stores_weights_transposed

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class LinearAdapter(TuningMethod):
    """Puts adapters of one kind on chosen linear layers of the base."""

    config_class: ClassVar[str]
    """Name of the configuration class in peft."""

    target_modules: Targets = "all-linear"
    """Layers that get an adapter: attention, mlp, all-linear, or a list of endings of module names; never the head."""

    def options(self, model: PreTrainedModel, context: TuningContext) -> dict[str, Any]:
        """What peft's configuration takes besides targets and head."""
        raise NotImplementedError

    def apply(self, model: PreTrainedModel, context: TuningContext) -> PreTrainedModel:
        """The model as a `PeftModel`; see `TuningMethod.apply`."""
        import peft

        targets = find_targets(model, self.target_modules, head_modules=context.head_modules)
        config_class = getattr(peft, self.config_class)
        given = surroundings(config_class, model, context) | self.options(model, context)
        config = config_class(target_modules=targets, **given)
        return wrapped(model, config, method=self.name)


def surroundings(config_class: Any, model: PreTrainedModel, context: TuningContext) -> dict[str, Any]:
    """What a peft configuration needs to know of task, head and storage, as far as it has fields for it."""
    known = {
        "task_type": context.peft_task_type,
        "modules_to_save": context.modules_to_save,
        "trainable_token_indices": list(context.new_token_ids) or None,
        "fan_in_fan_out": stores_weights_transposed(model),
    }
    return {field.name: known[field.name] for field in fields(config_class) if field.name in known}
