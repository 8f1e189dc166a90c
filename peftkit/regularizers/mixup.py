"""Mix-up of hidden states: rows that are a mixture of two, with labels mixed alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from peftkit.labels import Targets
from peftkit.regularizers import AtWork, Regularizer, regularizers

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


@regularizers.register("mixup")
class Mixup(Regularizer):
    """Before a block drawn at random, mixes the hidden states of each row with those of another; their losses alike.

    Guo, Mao & Zhang 2019, arXiv:1905.08941, at the depth of Chen, Yang & Yang 2020 (MixText), arXiv:2004.12239,
    section 3.1: the share of the other row is drawn from Beta(alpha, alpha) and at most half. The blocks above the
    mixture read the tokens of both rows. Partners come from the same micro-batch, so that small ones mix less.
    """

    paper: ClassVar[str] = "Guo, Mao & Zhang 2019, arXiv:1905.08941; Chen, Yang & Yang 2020, arXiv:2004.12239"
    targets: ClassVar[frozenset[Targets]] = frozenset({"classes"})
    does: ClassVar[str] = "mix rows"
    needs_label_per_text: ClassVar[bool] = True
    mixes_rows: ClassVar[bool] = True

    alpha: float = Field(0.4, gt=0.0)
    """Small: one row outweighs the other by far; large: equal halves."""
    from_depth: float = Field(0.5, ge=0.0, lt=1.0)
    """Share of the blocks below the first place where rows are mixed; 0: also the embedded input."""

    def problem(self, model: PreTrainedModel) -> str | None:
        """See `Regularizer.problem`."""
        from peftkit.layers.blocks import block_lists

        stacks = len(block_lists(model))
        if stacks != 1:
            return (
                f"regularizer {self.name!r} needs one stack of blocks, and {type(model).__name__} has {stacks}; "
                "remove it, or choose another base"
            )
        return None

    def start(self, model: PreTrainedModel) -> AtWork:
        """See `Regularizer.start`."""
        return _Mixture(model, self)


class _Mixture(AtWork):
    def __init__(self, model: PreTrainedModel, options: Mixup) -> None:
        import torch

        from peftkit.layers.blocks import block_lists

        self.options = options
        self.generator = torch.Generator()
        self.order: Tensor | None = None
        """Partner of each row of the micro-batch; drawn when its first pass tells how many there are."""
        self.share = 1.0
        """Of the row itself."""
        self.place = 0
        """Number of the block before which rows are mixed."""
        (blocks,) = block_lists(model).values()
        self.blocks = len(blocks)
        for place, block in enumerate(blocks):
            block.register_forward_pre_hook(self._hook(place), with_kwargs=True)

    def begin(self, look: Callable[[], Tensor]) -> None:
        """See `AtWork.begin`."""
        import torch

        share = float(torch.distributions.Beta(self.options.alpha, self.options.alpha).sample())
        self.share = max(share, 1 - share)
        self.place = int(torch.randint(int(self.options.from_depth * self.blocks), self.blocks, ()))
        self.generator.manual_seed(int(torch.randint(2**62, ())))
        self.order = None

    def labels(self, labels: Tensor) -> Sequence[tuple[float, Tensor]]:
        """See `AtWork.labels`."""
        return ((self.share, labels), (1 - self.share, labels[self.order]))

    def _hook(self, place: int) -> Callable[..., Any]:
        def hook(block: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if not block.training or place < self.place:
                return None
            hidden, *others = args
            if place == self.place:
                hidden = self._mixed(hidden)
            read = {name: self._both(value) for name, value in kwargs.items()}
            return (hidden, *map(self._both, others)), read

        return hook

    def _mixed(self, hidden: Tensor) -> Tensor:
        import torch

        if self.order is None:
            self.order = torch.randperm(len(hidden), generator=self.generator).to(hidden.device)
        return self.share * hidden + (1 - self.share) * hidden[self.order]

    def _both(self, value: Any) -> Any:
        """A mask of what is read, of true or 0 for tokens that are, with what the partner reads; others as they are."""
        import torch

        is_mask = isinstance(value, torch.Tensor) and value.ndim == 4
        return torch.maximum(value, value[self.order]) if is_mask else value
