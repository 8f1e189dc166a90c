"""Trained biases as a tuner of peft; importing this module registers it.

A layer y = g(x) + b gives y = g(x) + (b + d), and only d trains (BitFit: Ben-Zaken et al. 2022, arXiv:2106.10199).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from peft.config import PeftConfig
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, check_adapters_to_merge
from peft.utils import PeftType
from torch import Tensor, nn

from peftkit.errors import CapabilityError
from peftkit.layers.registration import peft_type_of, register_tuner
from peftkit.layers.sublayers import below_adapters, find_blocks, named_layers, shortest_names, widths

TARGETS = ("all", "query_and_intermediate")


def find_biases(model: nn.Module, *, targets: str = "all", skip: Sequence[str] = ()) -> list[str]:
    """Full names of the linear and layer-norm layers whose bias trains, in order.

    Args:
        model: on any device, also the meta device.
        targets: all, or query_and_intermediate (section 4.3 of the paper): those of the query layers and of the first
            feed-forward layers.
        skip: names of modules to leave out with all that is in them; the output embeddings are always left out.

    Raises:
        CapabilityError: there is no such bias; the message says what the model has.
    """
    output = getattr(model, "get_output_embeddings", lambda: None)()
    biased = [
        name
        for name, layer in named_layers(model)
        if layer is not output and _has_bias(layer) and not any(_inside(name, module) for module in skip)
    ]
    if not biased:
        raise CapabilityError(
            f"{type(model).__name__} has no biases outside its head, and there is nothing else that bitfit trains; "
            "choose method lora, or bottleneck"
        )
    if targets == "all":
        return biased
    blocks = find_blocks(model)
    wanted = {block.full(layer) for block in blocks for layer in (*block.queries, block.feed_forward_input)}
    found = [name for name in biased if name in wanted]
    if not all(block.queries for block in blocks) or len(found) < len(wanted):
        raise CapabilityError(
            f"{type(model).__name__} does not have a bias of its own in every query layer and every first "
            f"feed-forward layer, which targets {targets!r} trains; use targets: all"
        )
    return found


def _has_bias(layer: nn.Module) -> bool:
    known = isinstance(layer, nn.LayerNorm) or widths(layer) is not None
    return known and isinstance(getattr(layer, "bias", None), Tensor)


def _inside(name: str, module: str) -> bool:
    """Whether a layer is `module` or in it; peft's modules to save may be given by the end of their names."""
    return f".{module}." in f".{name}."


@dataclass
class BitFitConfig(PeftConfig):  # type: ignore[misc,unused-ignore] # peft is Any to mypy
    """Options of trained biases, and the layers that were found for them.

    Args:
        targets: all or query_and_intermediate; what is looked for where target_modules is None.
        target_modules: layers whose bias trains; None: found from the model's structure.
        modules_to_save: modules that are trained whole and saved; none of their layers is a target.
        trainable_token_indices: rows of the input embedding that train.
    """

    targets: str = "all"
    target_modules: list[str] | None = None
    modules_to_save: list[str] | None = None
    trainable_token_indices: list[int] | dict[str, list[int]] | None = None

    def __post_init__(self) -> None:
        """Check the options and name the type."""
        super().__post_init__()
        self.peft_type = PeftType(peft_type_of("bitfit"))
        if self.targets not in TARGETS:
            raise CapabilityError(f"targets of bitfit are one of {', '.join(TARGETS)}, not {self.targets!r}")

    def to_dict(self) -> dict[str, Any]:
        """For the JSON file: peft turns lists into sets, whose order differs from process to process."""
        options: dict[str, Any] = super().to_dict()
        return {key: sorted(value) if isinstance(value, set) else value for key, value in options.items()}


class BitFitLayer(nn.Module, BaseTunerLayer):  # type: ignore[misc,unused-ignore] # peft is Any to mypy
    """A layer with a bias, and the float32 vectors that are added to it; those of several active adapters add up."""

    adapter_layer_names = ("bitfit_bias",)
    set_adapter: Any  # of BaseTunerLayer, which mypy does not see
    active_adapters: Any

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        if not _has_bias(below_adapters(base_layer)):
            raise CapabilityError(
                f"bitfit trains biases of linear and layer-norm layers, and a target is {type(base_layer).__name__} "
                "without one; leave target_modules out, then the right layers are found"
            )
        self.base_layer = base_layer
        self.bitfit_bias = nn.ParameterDict()
        self.merged_adapters: list[str] = []
        self._bare_bias: Tensor | None = None

    def update_layer(self, adapter_name: str, config: BitFitConfig) -> None:
        """Add an adapter that changes nothing yet."""
        bias = self._bias()
        change = nn.Parameter(torch.zeros(bias.shape[0], dtype=torch.float32))
        # peft makes a parameter without storage for `low_cpu_mem_usage` when the dict takes it up
        self.bitfit_bias[adapter_name] = change if bias.device.type == "meta" else nn.Parameter(change.to(bias.device))
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The layer's output with the active adapters' biases."""
        if self.disable_adapters and self.merged:
            self.unmerge()
        result: Tensor = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters or self.merged:
            return result
        changes = [self.bitfit_bias[name] for name in self.active_adapters if name in self.bitfit_bias]
        return (result + sum(changes)).to(result.dtype) if changes else result

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add the adapters' vectors to the base layer's bias.

        Raises:
            ValueError: `safe_merge`, and the sum is not finite.
        """
        names = [name for name in check_adapters_to_merge(self, adapter_names) if name in self.bitfit_bias]
        if not names:
            return
        bias = self._bias()
        merged = bias.data.float() + sum(self.bitfit_bias[name].data.to(bias.device) for name in names)
        if safe_merge and not torch.isfinite(merged).all():
            raise ValueError(f"the biases of adapters {', '.join(names)} are not finite; they cannot be merged")
        if self._bare_bias is None:
            self._bare_bias = bias.data
        bias.data = merged.to(bias.dtype)
        self.merged_adapters += names

    def unmerge(self) -> None:
        """Put back the bias from before the first merge, bit by bit."""
        if self._bare_bias is not None:
            bias = self._bias()
            bias.data = self._bare_bias.to(bias.device)
        self._bare_bias, self.merged_adapters = None, []

    def _bias(self) -> Tensor:
        return cast("Tensor", below_adapters(self).bias)


class BitFitModel(BaseTuner):  # type: ignore[misc,unused-ignore] # peft is Any to mypy
    """A model whose biases train; made by peft from a `BitFitConfig`."""

    prefix: str = "bitfit_"
    tuner_layer_cls = BitFitLayer
    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012 # peft's own declaration: layers are found instead

    def _prepare_adapter_config(self, peft_config: BitFitConfig, model_config: dict[str, Any]) -> BitFitConfig:
        if peft_config.target_modules is None:
            skip = peft_config.modules_to_save or ()
            found = find_biases(self.model, targets=peft_config.targets, skip=skip)
            peft_config.target_modules = shortest_names(self.model, found)
        return peft_config

    def _create_and_replace(  # noqa: PLR0913 # peft calls it so
        self,
        peft_config: BitFitConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
    ) -> None:
        layer = target if isinstance(target, BitFitLayer) else BitFitLayer(target)
        layer.update_layer(adapter_name, peft_config)
        if layer is not target:
            if adapter_name not in self.active_adapters:
                layer.requires_grad_(False)
            self._replace_module(parent, target_name, layer, target)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        # peft 0.21's own copies weight and bias, which heads of several layers do not have: they could not be unloaded.
        setattr(parent, child_name, new_module)


register_tuner(name="bitfit", config=BitFitConfig, model=BitFitModel)
