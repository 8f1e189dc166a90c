"""Models that rewrite texts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load_model(
    auto_class: str, locator: str, *, revision: str | None, option: str
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model in evaluation mode, on the GPU if there is one, and its tokenizer.

    Args:
        auto_class: name of the transformers auto class.
        option: key of the recipe that names the model, for messages.

    Raises:
        ArtifactError: it cannot be had.
        CapabilityError: it has no head of this kind, or none that was trained.
    """
    import torch
    import transformers

    from peftkit.artifacts import locate_model
    from peftkit.errors import CapabilityError

    artifact = locate_model(locator, revision=revision)
    try:
        with torch.random.fork_rng():  # weights that are missing are drawn
            loaded: Any = getattr(transformers, auto_class).from_pretrained(
                artifact.path, use_safetensors=True, output_loading_info=True
            )
    except ValueError as problem:
        raise CapabilityError(f"'{locator}' cannot be an {auto_class}; name a model that can in  {option}") from problem
    model, report = loaded
    if report["missing_keys"]:
        missing = ", ".join(sorted(report["missing_keys"])[:3])
        raise CapabilityError(
            f"'{locator}' was saved without the head of {auto_class} (missing: {missing}), so that it would write at "
            f"random; name a model that has it in  {option}"
        )
    tokenizer = transformers.AutoTokenizer.from_pretrained(artifact.path)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return model.to(device).eval(), tokenizer
