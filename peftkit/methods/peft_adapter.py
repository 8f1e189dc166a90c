"""A method that is one of peft's configuration classes and a choice of linear layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any, ClassVar

from peftkit.errors import CapabilityError
from peftkit.methods import TuningContext, TuningMethod, wrapped
from peftkit.methods.targets import Targets, find_targets, stores_weights_transposed, target_layers
from peftkit.methods.widths import widths

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Sizes = dict[str, tuple[int, int]]


class LinearAdapter(TuningMethod):
    """Puts adapters of one kind on chosen linear layers of the base."""

    config_class: ClassVar[str]
    """Name of the configuration class in peft."""

    target_modules: Targets = "all-linear"
    """Layers that get an adapter: attention, mlp, all-linear, or a list of endings of module names; never the head."""

    def options(self, sizes: Sizes) -> dict[str, Any]:
        """What peft's configuration takes besides targets and head.

        Args:
            sizes: inputs and outputs of the layers that get an adapter, by their names.

        Raises:
            CapabilityError: the options do not fit these sizes.
        """
        raise NotImplementedError

    def problem(self, model: PreTrainedModel, context: TuningContext) -> str | None:
        """See `TuningMethod.problem`; also: targets that are not there, sizes that do not fit."""
        if problem := super().problem(model, context):
            return problem
        try:
            self.config(model, context)
        except CapabilityError as problem:
            return str(problem)
        return None

    def config(self, model: PreTrainedModel, context: TuningContext) -> Any:
        """peft's configuration for this model.

        Raises:
            CapabilityError: the options do not fit the model.
        """
        import peft

        layers = target_layers(model, self.target_modules, head_modules=context.head_modules)
        config_class = getattr(peft, self.config_class)
        given = {
            **surroundings(config_class, model, context),
            **self.options(widths(model, layers)),
            "target_modules": find_targets(model, self.target_modules, head_modules=context.head_modules),
        }
        return configured(config_class, given, asked=self.model_dump(exclude_defaults=True))

    def apply(self, model: PreTrainedModel, context: TuningContext) -> PreTrainedModel:
        """The model as a `PeftModel`; see `TuningMethod.apply`."""
        return wrapped(model, self.config(model, context), method=self.name)


def surroundings(config_class: Any, model: PreTrainedModel, context: TuningContext) -> dict[str, Any]:
    """What a peft configuration needs to know of task, head and storage, as far as it has fields for it."""
    known = {
        "task_type": context.peft_task_type,
        "modules_to_save": context.modules_to_save,
        "trainable_token_indices": list(context.new_token_ids) or None,
        "fan_in_fan_out": stores_weights_transposed(model),
    }
    return {field.name: known[field.name] for field in fields(config_class) if field.name in known}


def configured(config_class: Any, given: Mapping[str, Any], *, asked: Mapping[str, Any]) -> Any:
    """An instance of one of peft's configuration classes.

    Args:
        asked: the options that the user has set, for the message.

    Raises:
        CapabilityError: the class refuses; the message carries its reason.
    """
    try:
        return config_class(**given)
    except (ValueError, TypeError, AttributeError) as problem:
        options = f" with {dict(asked)}" if asked else ""
        raise CapabilityError(
            f"peft's {config_class.__name__} cannot be made for {given.get('task_type')}{options}: "
            f"{str(problem).rstrip('.')}; change method.options, or choose another method"
        ) from problem


def check_trained(tuned: Any, heads: Sequence[str], *, method: str) -> None:
    """Hold a wrapped model against what a run takes for granted.

    Args:
        heads: modules that have to train as a whole.

    Raises:
        CapabilityError: peft trains nothing but `heads`, or leaves one of them as it was drawn at random.
    """
    model = tuned.get_base_model()
    training = {name for name, weight in model.named_parameters() if weight.requires_grad}
    others = {id(weight) for weight in tuned.parameters() if weight.requires_grad}
    in_heads = {name for name in training if any(name.startswith(f"{head}.") for head in heads)}
    frozen = [head for head in heads if not any(name.startswith(f"{head}.") for name in in_heads)]
    if frozen:
        raise CapabilityError(
            f"method {method!r} does not train {', '.join(frozen)} of {type(model).__name__}, so that a new head would "
            "stay random; choose another method, such as lora"
        )
    if len(others) == len(in_heads):
        raise CapabilityError(
            f"method {method!r} finds nothing in {type(model).__name__} that it could train; choose another method, "
            "such as lora"
        )
