"""Tiny checkpoints with a new classification head, their weights stored by a quantizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from peftkit.methods import TuningContext, methods
from peftkit.models import LoadedModel, Storage, load_model, quiet_libraries, to_float32_masters
from peftkit.quantization import quantizers
from peftkit.recipe import ModelSpec
from peftkit.tasks import Head, tasks

Load = Callable[..., LoadedModel]
TEXTS = ["The soup was lovely.", "A dull film.", "kind"]


@pytest.fixture(scope="session")
def head() -> Head:
    return tasks.build({"name": "sequence_classification", "labels": ["negative", "positive"]}).head()


@pytest.fixture(scope="session")
def load(checkpoint: Callable[[str], Path], head: Head) -> Load:
    """Function from a checkpoint (name or folder) and a quantizer's options to a fresh model, its head drawn alike."""

    def loaded(
        model: str | Path,
        quantization: str | Mapping[str, Any] | None = None,
        *,
        dtype: torch.dtype = torch.float32,
        keep: tuple[str, ...] = (),
    ) -> LoadedModel:
        folder = checkpoint(model) if isinstance(model, str) else model
        quantizer = None if quantization is None else quantizers.build(quantization)
        torch.manual_seed(0)
        return load_model(ModelSpec(id=str(folder)), head, storage=Storage(dtype, quantizer, torch.float32, keep))

    return loaded


@pytest.fixture(scope="session")
def tuned() -> Callable[..., Any]:
    """Function from a loaded model to it with LoRA, or another method, applied."""

    def apply(base: LoadedModel, method: str | Mapping[str, Any] = "lora", *, bits: int = 4) -> Any:
        torch.manual_seed(1)
        context = TuningContext("SEQ_CLS", base.head_modules, 10, base_bits=bits, tokenizer=base.tokenizer)
        with quiet_libraries():
            return to_float32_masters(methods.build(method).apply(base.model, context))

    return apply


@pytest.fixture(scope="session")
def batch() -> Callable[[LoadedModel], dict[str, Any]]:
    """Function from a loaded model to three encoded sentences."""

    def encoded(base: LoadedModel) -> dict[str, Any]:
        return dict(base.tokenizer(TEXTS, padding=True, return_tensors="pt", return_token_type_ids=False))

    return encoded
