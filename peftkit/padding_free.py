"""Padding-free execution: tokens are packed before the first block of a model, and padded again after the last.

Linear layers, norms and activations of the blocks see real tokens only, attention sees each row by itself. Embeddings
and the head stay padded, so that tasks, methods and labels notice nothing. Of a model with encoder and decoder it is
the encoder that is packed: its decoder is given no mask, and keeps its padding.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import Token
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from peftkit.kernels.first_token import FirstTokens, Projections, projections_of
from peftkit.kernels.packing import ATTENTION, Packing, current, unsupported
from peftkit.layers.blocks import block_lists


class PaddingFree:
    """Padding-free execution of one model, until `remove`.

    Args:
        reads_blocks: whether something beside the model reads what its blocks give, so that the last of them is not
            computed for the first tokens only where the head reads no others.
    """

    def __init__(self, model: nn.Module, *, reads_blocks: bool = False) -> None:
        owner, blocks = only_stack(model)
        found = "something reads what the blocks give" if reads_blocks else first_tokens(model)
        self.first_problem = found if isinstance(found, str) else None
        """Why the last block is computed for all tokens; None where it is not."""
        self.owner = owner
        self.signature = inspect.signature(owner.forward)
        self.started: Token[Packing | None] | None = None
        self.packed = 0
        """Batches that were computed without padding."""
        self.padded = 0
        """Batches that were computed with it, because more than hidden states was wanted of the model."""
        self.bidirectional = any(getattr(part, "is_causal", None) is False for part in blocks.modules())
        self.configs = _sdpa_configs(model)
        for config in self.configs:
            config._attn_implementation = ATTENTION
        self.hooks = [
            owner.register_forward_pre_hook(self._begin, with_kwargs=True),
            owner.register_forward_hook(self._end, always_call=True),
            *(block.register_forward_pre_hook(_later, with_kwargs=True) for block in blocks[1:]),
            blocks[0].register_forward_pre_hook(_first, with_kwargs=True),
            blocks[-1].register_forward_hook(_last),
        ]
        self.first = None if isinstance(found, str) else FirstTokens(blocks[-1], found)
        self.biased: list[Any] = [part for part in blocks.modules() if hasattr(part, "compute_bias")]
        for part in self.biased:
            part.compute_bias = _for_padded(part.compute_bias)

    def remove(self) -> None:
        """Leave the model as it was."""
        for hook in self.hooks:
            hook.remove()
        for config in self.configs:
            config._attn_implementation = "sdpa"
        for part in self.biased:
            del part.compute_bias
        if self.first is not None:
            self.first.remove()

    def _begin(self, owner: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._stop()
        given = self.signature.bind_partial(*args, **kwargs).arguments
        given |= given.pop("kwargs", {})
        mask = given.get("attention_mask")
        if not isinstance(mask, Tensor) or mask.ndim != 2 or (mask.all() and self.first is None):
            return None  # nothing to gain
        real = mask.bool()
        # Heads of encoders read the first place of each row, whatever stands there.
        if unsupported(given) or (self.bidirectional and not real[:, 0].all()):
            self.padded += 1
            return None
        self.packed += 1
        self.started = current.set(Packing(real, first_only=self.first is not None))
        # A cache that nobody asked for would hold keys of all rows in one.
        return (args, {**kwargs, "use_cache": False}) if "use_cache" in self.signature.parameters else None

    def _end(self, owner: nn.Module, args: Any, output: Any) -> None:
        self._stop()

    def _stop(self) -> None:
        if self.started is not None:
            current.reset(self.started)
            self.started = None


@contextmanager
def without_padding(model: nn.Module) -> Iterator[None]:
    """Inside, a model is computed without padding where it can be."""
    engine = PaddingFree(model) if padding_free_problem(model) is None else None
    try:
        yield
    finally:
        if engine is not None:
            engine.remove()


def padding_free_problem(model: nn.Module) -> str | None:
    """Why a model cannot be computed without padding; None if it can."""
    stacks = _stacks(model)
    if len(stacks) != 1:
        return f"the model has {len(stacks)} stacks of blocks, and one is needed"
    owner, _ = only_stack(model)
    if owner is None:
        return "the blocks are part of no model of transformers"
    if "attention_mask" not in inspect.signature(owner.forward).parameters:
        return f"{type(owner).__name__} takes no attention_mask"
    other = {str(config._attn_implementation) for config in _configs(model)} - {"sdpa"}
    if other:
        return f"attention is computed by {', '.join(sorted(other))}, and not by sdpa"
    if model not in _tried:
        _tried[model] = _difference(model, owner)
    return _tried[model]


_tried: WeakKeyDictionary[nn.Module, str | None] = WeakKeyDictionary()
"""What came of trying a model: no structure tells whether a convolution or a recurrence mixes neighbouring tokens."""


def _difference(model: nn.Module, owner: PreTrainedModel) -> str | None:
    """What is wrong with the outputs of a few rows that are computed without padding; None if nothing is."""
    try:
        with _evaluating(model):
            wanted = _outputs(owner, first_word=0)
            engine = PaddingFree(model, reads_blocks=True)
            try:
                found, beside_others = (_outputs(owner, first_word=word) for word in (0, 1))
            finally:
                engine.remove()
    except _FAILURES as error:
        return _not_tried(type(owner).__name__, error)
    rounding = _rounding(model, wanted)
    # Other words in one row leave not a bit of the others changed; outliers of int8 are chosen over all rows.
    if (found - beside_others)[_BESIDE].abs().max() > (rounding if _is_in_bits(model) else 0):
        return f"blocks of {type(owner).__name__} mix tokens by other means than attention"
    if (found - wanted).abs().max() > rounding:
        return f"{type(owner).__name__} gives other outputs when it is computed without padding"
    return None


_FAILURES = (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)
"""What models raise that cannot be computed in another way than their own."""


def _not_tried(name: str, error: Exception) -> str:
    return f"{name} could not be tried: {type(error).__name__}: {error}".partition("\n")[0]


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Without dropout inside; each part is in its own mode again afterwards."""
    modes = {part: part.training for part in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode


_ROWS = ((1,) * 7, (1, 1, 1, 0, 0, 0, 0), (1, 1, 1, 0, 0, 0, 0), (1, 0, 0, 0, 0, 0, 0))
_BESIDE = [*range(7), *range(10, 14)]
"""Tokens of all rows but the second."""
_FIRST = [0, 7, 10, 13]
"""First tokens of rows."""


@torch.no_grad()
def _outputs(owner: PreTrainedModel, *, first_word: int) -> Tensor:
    """Last hidden states (tokens, width) of rows of several lengths, the second with words from `first_word` on."""
    mask = torch.tensor(_ROWS, device=owner.device)
    ids = torch.arange(5, 5 + mask.numel(), device=owner.device).view_as(mask)
    ids[1] += first_word
    states: Tensor = owner(input_ids=ids % owner.config.get_text_config().vocab_size, attention_mask=mask)[0]
    return states[mask.bool()]


_sought: WeakKeyDictionary[nn.Module, Projections | str] = WeakKeyDictionary()


def first_tokens(model: nn.Module) -> Projections | str:
    """What gives keys and values in the last block of a model whose head reads first tokens only; why not, else."""
    if model not in _sought:
        with _evaluating(model):
            _sought[model] = _first_tokens(model)
            if not isinstance(_sought[model], str) and (problem := _first_difference(model)) is not None:
                _sought[model] = problem
    return _sought[model]


def _first_tokens(model: nn.Module) -> Projections | str:
    owner, blocks = only_stack(model)
    try:
        if not _reads_first(model, owner, blocks[-1]):
            return "its head reads other tokens than the first"
        return projections_of(blocks[-1], _sdpa_configs(model), lambda: _outputs(owner, first_word=0))
    except _FAILURES as error:
        return _not_tried("it", error)


def _first_difference(model: nn.Module) -> str | None:
    """What is wrong with the first tokens of rows whose last block is computed for them only; None if nothing is."""
    owner, _ = only_stack(model)
    wanted = _outputs(owner, first_word=0)[_FIRST]
    engine = PaddingFree(model)
    try:
        found = _outputs(owner, first_word=0)[_FIRST]
    except _FAILURES as error:
        return _not_tried("it", error)
    finally:
        engine.remove()
    is_same = (found - wanted).abs().max() <= _rounding(model, wanted)
    return None if is_same else "first tokens alone give other outputs"


def _rounding(model: nn.Module, outputs: Tensor) -> float:
    """By how much outputs of a model may differ."""
    dtype = torch.bfloat16 if _is_in_bits(model) else outputs.dtype
    return float(torch.finfo(dtype).eps ** 0.5 * outputs.abs().max())


def _is_in_bits(model: nn.Module) -> bool:
    """Whether some weights are quantized."""
    return any(not weight.is_floating_point() for weight in model.parameters())


@torch.inference_mode(False)
@torch.enable_grad()
def _reads_first(model: nn.Module, owner: PreTrainedModel, last: nn.Module) -> bool:
    """Whether outputs of a model depend on no other token of its last block than the first of each row."""
    mask = torch.tensor(_ROWS, device=owner.device)
    ids = torch.arange(5, 5 + mask.numel(), device=owner.device).view_as(mask) % owner.config.vocab_size
    given: list[Tensor] = []

    def watch(block: nn.Module, args: Any, output: Any) -> Any:
        states = (output[0] if isinstance(output, tuple) else output).detach().requires_grad_()
        given.append(states)
        return (states, *output[1:]) if isinstance(output, tuple) else states

    hook = last.register_forward_hook(watch)
    try:
        try:
            output = model(input_ids=ids, attention_mask=mask)
        except RuntimeError:  # of several choices, each row with one
            output = model(input_ids=ids[:, None], attention_mask=mask[:, None])
    finally:
        hook.remove()
    read = [part for part in output.values() if isinstance(part, Tensor) and part.is_floating_point()]
    (gradient,) = torch.autograd.grad(torch.stack([part.float().square().sum() for part in read]).sum(), given[-1:])
    return bool((gradient[:, 1:] == 0).all()) and bool((gradient[:, 0] != 0).any())


def _configs(model: nn.Module) -> list[Any]:
    """Every configuration that attention is looked up in; copies of blocks have copies of it."""
    found = {id(config): config for part in model.modules() if (config := getattr(part, "config", None)) is not None}
    return [config for config in found.values() if hasattr(config, "_attn_implementation")]


def _sdpa_configs(model: nn.Module) -> list[Any]:
    """Those that say SDPA, which other ways of computing attention take the place of."""
    return [config for config in _configs(model) if config._attn_implementation == "sdpa"]


def has_decoder_beside(model: nn.Module) -> bool:
    """Whether a decoder, which stays padded, looks at the stack that is packed."""
    return len(block_lists(model)) > len(_stacks(model))


def _stacks(model: nn.Module) -> dict[str, nn.ModuleList]:
    """The stacks of blocks by name; of a model with encoder and decoder those of the encoder."""
    stacks = block_lists(model)
    whole = next((part for part in model.modules() if isinstance(part, PreTrainedModel)), None)
    if whole is None or not whole.config.is_encoder_decoder:
        return stacks
    inside = {id(part) for part in whole.get_encoder().modules()}
    return {name: blocks for name, blocks in stacks.items() if id(blocks) in inside}


def only_stack(model: nn.Module) -> tuple[Any, nn.ModuleList]:
    """The innermost model of transformers around the only stack of blocks, and the stack."""
    ((name, blocks),) = _stacks(model).items()
    owners = [
        module
        for prefix, module in model.named_modules()
        if isinstance(module, PreTrainedModel) and (not prefix or name.startswith(f"{prefix}."))
    ]
    return (owners[-1] if owners else None), blocks


def _for_padded(compute_bias: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Relative positions are those of the padded batch: among packed tokens, neighbours may be of two rows."""

    def compute(query_length: int, key_length: int, **kwargs: Any) -> Tensor:
        packing = current.get()
        if packing is None:
            return compute_bias(query_length, key_length, **kwargs)
        return compute_bias(packing.length, packing.length, **kwargs)

    return compute


def _first(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    packing = current.get()
    if packing is None:
        return None
    return packing.packed(args), {name: packing.packed(value) for name, value in kwargs.items()}


def _later(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Hidden states come packed from the block below."""
    packing = current.get()
    if packing is None:
        return None
    read = {name: value if name == "hidden_states" else packing.packed(value) for name, value in kwargs.items()}
    return (*args[:1], *packing.packed(args[1:])), read


def _last(block: nn.Module, args: Any, output: Any) -> Any:
    packing = current.get()
    if packing is None:
        return None
    if isinstance(output, tuple):
        return (packing.padded(output[0]), *output[1:])
    return packing.padded(output)
