"""Any other method of the installed peft, by its type and its own options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, model_validator

from peftkit.methods import TuningContext, TuningMethod, methods, wrapped
from peftkit.methods.peft_adapter import surroundings
from peftkit.methods.targets import Targets, find_targets
from peftkit.methods.virtual_tokens import dimensions
from peftkit.registry import closest

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_SET_BY_THE_RUN = {"task_type", "peft_type", "target_modules", "modules_to_save", "inference_mode", "peft_version"}

_BY_TASK = "it needs the number of a task with every row, which no task of peftkit gives"
_REFUSED = {
    "ADALORA": "its rank allocator has to be stepped while training runs; use method adalora, which does",
    "POLY": f"{_BY_TASK}; use lora",
    "MULTITASK_PROMPT_TUNING": f"{_BY_TASK}; use prompt",
    "XLORA": "it mixes adapters that are trained already; train them one by one with lora",
    "TRAINABLE_TOKENS": "it needs the numbers of tokens; use method trainable_tokens, which takes the tokens",
}
"""Methods that would be built but not trained, with the reason."""
_ON_BLOCKS = {"SHADOW", "ADAPTION_PROMPT"}
"""Methods that are put on whole blocks, which peft finds by itself."""


@methods.register("peft")
class Peft(TuningMethod):
    """Any method of the installed peft library, by its `PeftType` and the options of its configuration class.

    What peftkit knows of its own methods it cannot know of these: what does not fit is found when peft refuses it.
    """

    shorthand: ClassVar[str | None] = "type"
    paper: ClassVar[str] = "see the documentation of peft"
    use_when: ClassVar[str] = "a method of peft that has no word of its own here: peft:lily, peft:road, ..."
    default_learning_rate: ClassVar[float] = 1e-3

    type: str = Field(min_length=1)
    """Name in peft's `PeftType`, in any case: lily, road, c3a."""
    options: Mapping[str, Any] = {}
    """Options of peft's configuration class."""
    target_modules: Targets | None = None
    """Layers that get an adapter, as for lora; none: all-linear where the method has targets."""

    @model_validator(mode="after")
    def _known_to_peft(self) -> Peft:
        config_class = self._config_class()
        names = [field.name for field in fields(config_class) if field.name not in _SET_BY_THE_RUN]
        for key in self.options:
            if key in _SET_BY_THE_RUN:
                raise ValueError(f"options.{key} is set by the run; for layers use method.target_modules")
            if key not in names:
                close = closest(key, names)
                hint = f"; did you mean {close!r}?" if close else ""
                raise ValueError(
                    f"options.{key} is no option of {config_class.__name__}{hint} (it has: {', '.join(names)})"
                )
        return self

    def _config_class(self) -> Any:
        from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING as CONFIG_CLASSES

        known = {str(getattr(kind, "value", kind)): config_class for kind, config_class in CONFIG_CLASSES.items()}
        if self.type.upper() not in known:
            close = closest(self.type.upper(), known)
            hint = f"; did you mean {close.lower()!r}?" if close else ""
            listed = ", ".join(sorted(name.lower() for name in known))
            raise ValueError(f"type {self.type!r} is no method of the installed peft{hint} (it has: {listed})")
        return known[self.type.upper()]

    def problem(self, model: PreTrainedModel, context: TuningContext) -> str | None:
        """See `TuningMethod.problem`; also: methods that need more than a run gives them."""
        if reason := _REFUSED.get(self.type.upper()):
            return f"method peft:{self.type} is not possible: {reason}"
        return super().problem(model, context)

    def apply(self, model: PreTrainedModel, context: TuningContext) -> PreTrainedModel:
        """The model as a `PeftModel`; see `TuningMethod.apply`."""
        from peftkit.errors import CapabilityError
        from peftkit.layers.virtual_tokens import fit_outputs

        config_class = self._config_class()
        given = {**surroundings(config_class, model, context), **self.options}
        names = {field.name for field in fields(config_class)}
        if "num_virtual_tokens" in names:
            given = {"num_virtual_tokens": 20, **dimensions(model), **given}
        if "target_modules" in names and (self.target_modules or self.type.upper() not in _ON_BLOCKS):
            chosen = self.target_modules or "all-linear"
            given["target_modules"] = find_targets(model, chosen, head_modules=context.head_modules)
        try:
            config = config_class(**given)
        except (ValueError, TypeError, AttributeError) as problem:
            raise CapabilityError(
                f"peft's {config_class.__name__} refuses method.options {dict(self.options)}: {problem}; correct them"
            ) from problem
        return fit_outputs(wrapped(model, config, method=f"peft:{self.type}"), head_modules=context.head_modules)
