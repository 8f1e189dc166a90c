"""What `adapter_config.json` of a bottleneck adapter holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from peft.config import PeftConfig
from peft.utils import PeftType
from torch import Tensor, nn

from peftkit.errors import CapabilityError
from peftkit.layers.registration import peft_type_of
from peftkit.layers.sublayers import find_blocks, shortest_names

STYLES = ("houlsby", "pfeiffer", "parallel", "scaled_parallel")
NON_LINEARITIES: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": nn.functional.relu,
    "gelu": nn.functional.gelu,
    "silu": nn.functional.silu,
    "swish": nn.functional.silu,
    "tanh": nn.functional.tanh,
}
INITS = ("zero", "normal")


@dataclass
class BottleneckConfig(PeftConfig):  # type: ignore[misc,unused-ignore] # peft is Any to mypy
    """Options of a bottleneck adapter, and the places in the model that were found for it.

    Args:
        style: houlsby, pfeiffer, parallel or scaled_parallel.
        reduction_factor: hidden size / bottleneck width.
        width: of the bottleneck; None: hidden size // reduction_factor.
        non_linearity: relu, gelu, silu (swish) or tanh.
        scale: s of scaled_parallel; 1 in all other styles.
        dropout: share of the bottleneck's activations that is dropped while training.
        init: zero: the up-projection is zero, so the adapter starts as nothing; normal: both projections are drawn
            from a normal distribution of standard deviation 0.01, cut off at two of them (Houlsby et al., section 3.6).
        target_modules: the layers whose outputs adapters change; None: found from the model's structure.
        input_modules: for parallel styles, by the end of a target's name: the layer whose input the adapter reads, as
            the end of a name that begins alike.
        modules_to_save: modules that are trained whole and saved.
        trainable_token_indices: rows of the input embedding that train.
    """

    style: str = "pfeiffer"
    reduction_factor: int = 16
    width: int | None = None
    non_linearity: str = "relu"
    scale: float | None = None
    dropout: float = 0.0
    init: str = "zero"
    target_modules: list[str] | None = None
    input_modules: dict[str, str] | None = None
    modules_to_save: list[str] | None = None
    trainable_token_indices: list[int] | dict[str, list[int]] | None = None

    def __post_init__(self) -> None:
        """Check the options, fill in the scale and name the type."""
        super().__post_init__()
        self.peft_type = PeftType(peft_type_of("bottleneck"))
        for option, value, known in (
            ("style", self.style, STYLES),
            ("non_linearity", self.non_linearity, tuple(NON_LINEARITIES)),
            ("init", self.init, INITS),
        ):
            if value not in known:
                raise CapabilityError(f"a bottleneck adapter's {option} is one of {', '.join(known)}, not {value!r}")
        if (self.width if self.width is not None else self.reduction_factor) < 1:
            raise CapabilityError("a bottleneck adapter's width and reduction_factor are 1 or more")
        if self.scale is None:
            self.scale = 4.0 if self.style == "scaled_parallel" else 1.0

    @property
    def is_parallel(self) -> bool:
        """Whether adapters read the input of a feed-forward part rather than the output of a sub-layer."""
        return self.style in ("parallel", "scaled_parallel")

    def width_for(self, hidden: int) -> int:
        """Bottleneck width in a model of hidden size `hidden`."""
        return self.width if self.width is not None else max(1, hidden // self.reduction_factor)

    def find_places(self, model: nn.Module) -> None:
        """Fill in `target_modules` and `input_modules` where they are missing.

        Raises:
            CapabilityError: the structure of `model` is not understood; the message lists what was found.
        """
        if self.target_modules is not None and (self.input_modules is not None or not self.is_parallel):
            return
        blocks = find_blocks(model)
        if self.target_modules is None:
            wanted = [block.full(block.feed_forward_output) for block in blocks]
            if self.style == "houlsby":
                wanted += [block.full(layer) for block in blocks for layer in block.attention_outputs]
            self.target_modules = shortest_names(model, wanted)
        if self.is_parallel:
            self.input_modules = {block.feed_forward_output: block.feed_forward_input for block in blocks}

    def input_of(self, target: str) -> str:
        """Full name of the layer whose input the adapter at `target` (a full name) reads.

        Raises:
            CapabilityError: `input_modules` names none.
        """
        for end, source in (self.input_modules or {}).items():
            if target == end or target.endswith(f".{end}"):
                return target.removesuffix(end) + source
        raise CapabilityError(
            f"input_modules of this {self.style} adapter names no layer whose input belongs to {target!r} "
            f"(it has: {', '.join(self.input_modules or {}) or 'nothing'}); leave target_modules and input_modules out"
        )

    def to_dict(self) -> dict[str, Any]:
        """For the JSON file: peft turns lists into sets, whose order differs from process to process."""
        options: dict[str, Any] = super().to_dict()
        return {key: sorted(value) if isinstance(value, set) else value for key, value in options.items()}
