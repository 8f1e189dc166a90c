"""What peft's models with virtual tokens need to behave like models without."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from peftkit.errors import CapabilityError


def fit_outputs(model: Any, *, head_modules: Sequence[str] = ()) -> Any:
    """Make a `PeftModel` with virtual tokens behave like others: outputs as long as inputs, a head that switches off.

    peft puts prompts before the embedded input, so that a model with one output per token gives more outputs than
    there are labels; and its `disable_adapter` leaves the trained head on. Models that are no prompt models are left
    as they are. Changed in place.

    Args:
        head_modules: modules that have to be trained.

    Raises:
        CapabilityError: peft would leave a module of the head as it was drawn at random.
    """
    if not model.active_peft_config.is_prompt_learning:
        return model
    frozen = [
        head
        for head in head_modules
        if not any(weight.requires_grad for weight in model.get_base_model().get_submodule(head).parameters())
    ]
    if frozen:
        raise CapabilityError(
            f"peft does not train {', '.join(frozen)} of {type(model.get_base_model()).__name__} beside virtual "
            "tokens, so that a part of the head would stay random; choose another method, such as lora"
        )
    if not hasattr(model, "prepare_inputs_for_generation"):
        # peft 0.21 reads it in `disable_adapter`, also of models that cannot generate.
        model.get_base_model().prepare_inputs_for_generation = None
    model.register_forward_pre_hook(_switch_heads)
    model.register_forward_hook(_drop_virtual_outputs, with_kwargs=True)
    return model


def _switch_heads(model: Any, args: tuple[Any, ...]) -> None:
    """Use the head of the base while the adapter is disabled."""
    from peft.utils.other import ModulesToSaveWrapper

    for module in model.get_base_model().modules():
        if isinstance(module, ModulesToSaveWrapper):
            module._disable_adapters = model._adapters_disabled  # its `enable_adapters` would let the head train


def _drop_virtual_outputs(model: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Any:
    logits = output.get("logits") if isinstance(output, Mapping) else None
    if logits is None or logits.ndim != 3:
        return output
    names = ("decoder_input_ids", "labels") if model.config.is_encoder_decoder else ("input_ids", "inputs_embeds")
    given = next((kwargs[name] for name in names if kwargs.get(name) is not None), args[0] if args else None)
    if given is not None and logits.shape[1] == given.shape[1] + model.active_peft_config.num_virtual_tokens:
        output["logits"] = logits[:, -given.shape[1] :]
    return output


def settle_prompt(model: Any) -> None:
    """Replace the network that a prompt was trained through by the prompt itself, which is all that peft saves."""
    name = model.active_adapter
    prompt = model.get_prompt_embedding_to_save(name)
    encoder = model.prompt_encoder[name]
    prompt = prompt.to(encoder.embedding.weight.device)
    embedding = nn.Embedding(len(prompt), prompt.shape[1], _weight=prompt)
    model.prompt_encoder[name] = _Settled(embedding)
    model.peft_config[name].inference_mode = True


class _Settled(nn.Module):
    """A finished prompt: gives itself whatever it is asked for."""

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        self.embedding = embedding

    def forward(self, positions: torch.Tensor) -> torch.Tensor:
        """(batch, virtual tokens) -> (batch, virtual tokens, width)."""
        return self.embedding.weight.expand(len(positions), -1, -1)
