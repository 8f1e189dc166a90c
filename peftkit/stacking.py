"""Adapters that a model starts from: folded into its base before anything is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from peftkit.errors import ArtifactError


def fold_adapter(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """`model` with the adapter in `folder` merged into its weights; a head that the adapter brings is left out.

    Raises:
        ArtifactError: the folder holds no adapter, or one for another architecture.
    """
    from peft import PeftConfig, PeftModel, load_peft_weights, set_peft_model_state_dict

    try:
        config: Any = PeftConfig.from_pretrained(str(folder))
    except ValueError as problem:
        raise ArtifactError(f"'{folder}' holds no adapter that peft can read; correct  model.adapters") from problem
    whole = set(getattr(config, "modules_to_save", None) or ())
    inside = {name for name in whole if name.startswith(f"{model.base_model_prefix}.")}
    heads = tuple(f"base_model.model.{name}." for name in whole - inside)
    config.task_type, config.modules_to_save = None, sorted(inside) or None
    weights = {name: weight for name, weight in load_peft_weights(str(folder)).items() if not name.startswith(heads)}
    try:
        tuned: Any = PeftModel(model, config)
        set_peft_model_state_dict(tuned, weights)
    except (ValueError, RuntimeError) as problem:
        raise ArtifactError(f"the adapter in '{folder}' does not fit {type(model).__name__}: {problem}") from problem
    merged: PreTrainedModel = tuned.merge_and_unload()
    return merged
