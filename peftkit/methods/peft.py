"""Any other method of the installed peft, by its type and its own options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, model_validator

from peftkit.errors import CapabilityError
from peftkit.methods import TuningContext, TuningMethod, methods, wrapped
from peftkit.methods.layer_norm import norms
from peftkit.methods.peft_adapter import check_trained, configured, surroundings
from peftkit.methods.peft_types import (
    FIND_THEIR_LAYERS,
    KEYS_AND_VALUES,
    REFUSED,
    REQUIRED,
    check_options,
    config_class_of,
)
from peftkit.methods.targets import Targets, find_targets
from peftkit.methods.virtual_tokens import dimensions

if TYPE_CHECKING:
    from transformers import PreTrainedModel


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
    """Layers that get an adapter, as for lora; none: all-linear where the method is put on linear layers."""

    per_token: ClassVar[bool] = False  # of some types it is not known, and some mix tokens

    @model_validator(mode="after")
    def _known_to_peft(self) -> Peft:
        check_options(self._config_class(), self.options)
        if self.target_modules is not None and not self._has("target_modules"):
            raise ValueError(f"type {self.type!r} is put on no layers of choice; remove target_modules")
        return self

    @property
    def starts_at_base(self) -> bool:  # type: ignore[override] # a fact of the class elsewhere
        """All but those that put trained positions before the input do."""
        from peft import PromptLearningConfig

        return not issubclass(self._config_class(), PromptLearningConfig)

    @property
    def _kind(self) -> str:
        return self.type.upper()

    def _has(self, field_name: str) -> bool:
        return any(field.name == field_name for field in fields(self._config_class()))

    def _config_class(self) -> Any:
        return config_class_of(self.type)

    def problem(self, model: PreTrainedModel, context: TuningContext) -> str | None:
        """See `TuningMethod.problem`; also: methods that need more than a run gives them, options that peft refuses."""
        if reason := REFUSED.get(self._kind):
            return f"method peft:{self.type} is not possible: {reason}"
        if missing := [option for option in REQUIRED.get(self._kind, ()) if option not in self.options]:
            return f"method peft:{self.type} needs {' and '.join(missing)} in method.options; add them"
        if self._kind in KEYS_AND_VALUES and context.gradient_checkpointing:
            return (
                f"method peft:{self.type} does not allow training.gradient_checkpointing: "
                "the recomputed pass would give other gradients; turn it off"
            )
        try:
            self._config(model, context)
        except CapabilityError as problem:
            return str(problem)
        return super().problem(model, context)

    def _config(self, model: PreTrainedModel, context: TuningContext) -> Any:
        """peft's configuration for this model.

        Raises:
            CapabilityError: peft refuses the options, or the targets are not there.
        """
        config_class = self._config_class()
        given = {**surroundings(config_class, model, context), **self.options}
        if self._has("num_virtual_tokens"):
            given = {"num_virtual_tokens": 20, **dimensions(model), **given}
        if self._has("target_modules") and (self.target_modules or self._kind not in FIND_THEIR_LAYERS):
            given["target_modules"] = self._targets(model, context)
        return configured(config_class, given, asked=self.options)

    def _targets(self, model: PreTrainedModel, context: TuningContext) -> list[str]:
        if self.target_modules is None and self._kind == "LN_TUNING":
            return norms(model, context.head_modules)
        return find_targets(model, self.target_modules or "all-linear", head_modules=context.head_modules)

    def apply(self, model: PreTrainedModel, context: TuningContext) -> PreTrainedModel:
        """The model as a `PeftModel`; see `TuningMethod.apply`."""
        from peftkit.layers.virtual_tokens import fit_outputs

        config = self._config(model, context)
        try:
            tuned: Any = wrapped(model, config, method=f"peft:{self.type}")
        except (ArithmeticError, AssertionError, ImportError, LookupError) as problem:
            # not every method of peft checks its options: a rank of 0 is divided by
            raise CapabilityError(
                f"method peft:{self.type} cannot be built with method.options {dict(self.options)} "
                f"({type(problem).__name__}: {problem}); correct them"
            ) from problem
        check_trained(tuned, context.modules_to_save or (), method=f"peft:{self.type}")
        return fit_outputs(tuned, head_modules=context.head_modules)
