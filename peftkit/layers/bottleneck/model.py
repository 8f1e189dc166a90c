"""The tuner that puts bottleneck adapters into a model."""

from __future__ import annotations

from typing import Any

from peft.tuners.tuners_utils import BaseTuner
from torch import nn

from peftkit.errors import CapabilityError
from peftkit.layers.bottleneck.config import BottleneckConfig
from peftkit.layers.bottleneck.layer import CANNOT_MERGE, BottleneckLayer


class BottleneckModel(BaseTuner):  # type: ignore[misc,unused-ignore] # peft is Any to mypy
    """A model whose sub-layers end in adapters; made by peft from a `BottleneckConfig`."""

    prefix: str = "bottleneck_"
    tuner_layer_cls = BottleneckLayer
    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012 # peft's own declaration: places are found instead

    def _prepare_adapter_config(self, peft_config: BottleneckConfig, model_config: dict[str, Any]) -> BottleneckConfig:
        peft_config.find_places(self.model)
        return peft_config

    def _create_and_replace(  # noqa: PLR0913 # peft calls it so
        self,
        peft_config: BottleneckConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
    ) -> None:
        layer = target if isinstance(target, BottleneckLayer) else BottleneckLayer(target)
        layer.update_layer(adapter_name, peft_config)
        if peft_config.is_parallel:
            layer.read_input_of(self._first_layer(peft_config.input_of(current_key)))
        if layer is not target:
            if adapter_name not in self.active_adapters:
                layer.requires_grad_(False)
            self._replace_module(parent, target_name, layer, target)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        # peft 0.21's own copies weight and bias, which heads of several layers do not have: they could not be unloaded.
        setattr(parent, child_name, new_module)

    def _first_layer(self, name: str) -> nn.Module:
        try:
            found: nn.Module = self.model.get_submodule(name)
        except AttributeError as problem:
            raise CapabilityError(
                f"this parallel adapter reads the input of {name!r}, which {type(self.model).__name__} does not have; "
                "load it onto the architecture that it was trained on"
            ) from problem
        return found

    def _check_merge_allowed(self) -> None:
        raise CapabilityError(CANNOT_MERGE)

    def _unload_and_optionally_merge(self, merge: bool = True, **options: Any) -> nn.Module:
        if merge:
            self._check_merge_allowed()
        for layer in self.model.modules():
            if isinstance(layer, BottleneckLayer):
                layer.release()
        bare: nn.Module = super()._unload_and_optionally_merge(merge=merge, **options)
        return bare
