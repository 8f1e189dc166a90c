"""A linear layer with bottleneck adapters on its output."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from peftkit.errors import CapabilityError
from peftkit.layers.bottleneck.config import NON_LINEARITIES, BottleneckConfig
from peftkit.layers.sublayers import below_adapters, widths

_SPREAD = 0.01
"""Standard deviation of new weights in Houlsby et al. 2019, section 3.6."""


class FeedForwardInput:
    """What a feed-forward part was given, on its way to the parallel adapter at the part's last layer.

    The part's first layer keeps it in a hook, the last one takes it, once. Both calls belong to one pass through the
    part, so nothing outlives it: a recomputed pass keeps its own, and every thread has its own place.
    """

    def __init__(self) -> None:
        self._places = threading.local()

    def __reduce__(self) -> tuple[type[FeedForwardInput], tuple[()]]:
        """A copy of the model, or one read from a file, starts with an empty place."""
        return FeedForwardInput, ()

    def keep(self, layer: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Forward pre-hook of the first layer."""
        self._places.value = args[0] if args else next(iter(kwargs.values()))

    def take(self) -> Tensor:
        """The input, which is then forgotten.

        Raises:
            RuntimeError: the first layer was not called before the last one.
        """
        value: Tensor | None = self._places.__dict__.pop("value", None)
        if value is None:
            raise RuntimeError(
                "a parallel bottleneck adapter got no input: the feed-forward part's last layer was called without "
                "its first one; call the whole block"
            )
        return value


@dataclass(frozen=True)
class _Rule:
    """How one adapter computes, beside its weights."""

    is_parallel: bool
    scale: float
    dropout: float
    non_linearity: Callable[[Tensor], Tensor]


class BottleneckLayer(nn.Module, BaseTunerLayer):  # type: ignore[misc,unused-ignore] # peft is Any to mypy
    """A linear layer and the adapters that add to its output; several active ones add up, each reading the bare layer.

    Adapter weights are float32 whatever the layer is stored in; the output has the layer's own type.
    """

    adapter_layer_names = ("bottleneck_down", "bottleneck_up")
    other_param_names = ("rules",)
    set_adapter: Any  # of BaseTunerLayer, which mypy does not see
    active_adapters: Any
    get_base_layer: Any
    _cast_input_dtype: Any

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        if widths(below_adapters(base_layer)) is None:
            raise CapabilityError(
                f"a bottleneck adapter sits on linear layers, and a target is {type(base_layer).__name__}; "
                "leave target_modules out, then the right layers are found"
            )
        self.base_layer = base_layer
        self.bottleneck_down = nn.ModuleDict()
        self.bottleneck_up = nn.ModuleDict()
        self.rules: dict[str, _Rule] = {}
        self.merged_adapters: list[str] = []
        self._input: FeedForwardInput | None = None
        self._hook: Any = None

    def update_layer(self, adapter_name: str, config: BottleneckConfig) -> None:
        """Add an adapter, with fresh weights."""
        hidden = self._hidden()
        width = config.width_for(hidden)
        down, up = nn.Linear(hidden, width), nn.Linear(width, hidden)
        initialize(down, up, init=config.init)
        self.bottleneck_down[adapter_name] = self._placed(down)
        self.bottleneck_up[adapter_name] = self._placed(up)
        self.rules[adapter_name] = _Rule(
            config.is_parallel, config.scale or 1.0, config.dropout, NON_LINEARITIES[config.non_linearity]
        )
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def read_input_of(self, first: nn.Module) -> None:
        """Let parallel adapters read what `first`, the first layer of this feed-forward part, is called with."""
        if self._input is None:
            self._input = FeedForwardInput()
            self._hook = first.register_forward_pre_hook(self._input.keep, with_kwargs=True)

    def release(self) -> None:
        """Undo `read_input_of`."""
        if self._hook is not None:
            self._hook.remove()
        self._input = self._hook = None

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The layer's output plus that of the active adapters."""
        given = self._input.take() if self._input is not None else None
        bare: Tensor = self.base_layer(x, *args, **kwargs)
        result = bare
        for name in [] if self.disable_adapters else self.active_adapters:
            if name in self.rules:
                source = given if self.rules[name].is_parallel else bare
                result = result + self._adapter(name, source)
        return result.to(bare.dtype)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Refused.

        Raises:
            CapabilityError: always.
        """
        raise CapabilityError(CANNOT_MERGE)

    def _adapter(self, name: str, x: Tensor | None) -> Tensor:
        rule, down, up = self.rules[name], self.bottleneck_down[name], self.bottleneck_up[name]
        inner = rule.non_linearity(down(self._cast_input_dtype(x, down.weight.dtype)))
        inner = nn.functional.dropout(inner, rule.dropout, self.training)
        output: Tensor = up(inner)
        return output if rule.scale == 1.0 else rule.scale * output

    def _hidden(self) -> int:
        found = widths(self.get_base_layer())
        return found[1] if found else 0

    def _placed(self, layer: nn.Linear) -> nn.Linear:
        """On the base layer's device, unless peft creates weights without storage (`low_cpu_mem_usage`)."""
        held = next(self.get_base_layer().parameters(), None)
        return layer if held is None or layer.weight.device.type == "meta" else layer.to(held.device)


CANNOT_MERGE = (
    "bottleneck adapters cannot be merged into the base weights: there is a non-linearity between their two layers; "
    "keep the adapter beside the base model, or use a mergeable method such as lora"
)


def initialize(down: nn.Linear, up: nn.Linear, *, init: str) -> None:
    """Fresh weights: `zero` makes the up-projection zero, `normal` makes both small; biases are zero."""
    with torch.no_grad():
        if init == "zero":
            nn.init.kaiming_uniform_(down.weight, a=5**0.5)
            nn.init.zeros_(up.weight)
        else:
            for layer in (down, up):
                nn.init.trunc_normal_(layer.weight, std=_SPREAD, a=-2 * _SPREAD, b=2 * _SPREAD)
        nn.init.zeros_(down.bias)
        nn.init.zeros_(up.bias)
