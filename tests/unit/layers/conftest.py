"""Tiny classifiers of every architecture, their inputs, and a trained folder of each of our tuners."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

TEXTS = ["The soup was lovely.", "A dull film.", "kind"]


@pytest.fixture
def classifier(checkpoint: Callable[[str], Path]) -> Callable[..., Any]:
    """Function from architecture and seed to a classifier whose head is drawn with that seed."""

    def load(name: str, *, seed: int = 0, **options: Any) -> Any:
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        torch.manual_seed(seed)
        model = AutoModelForSequenceClassification.from_pretrained(checkpoint(name), num_labels=2, **options)
        tokenizer = AutoTokenizer.from_pretrained(checkpoint(name))
        model.config.pad_token_id = tokenizer.pad_token_id if tokenizer.pad_token else tokenizer.eos_token_id
        return model.eval()

    return load


@pytest.fixture
def batch(checkpoint: Callable[[str], Path]) -> Callable[[str], Mapping[str, torch.Tensor]]:
    """Function from architecture to three encoded texts of different lengths."""

    def encoded(name: str) -> Mapping[str, torch.Tensor]:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(checkpoint(name))
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
        return dict(tokenizer(TEXTS, padding=True, return_tensors="pt"))

    return encoded


@pytest.fixture
def randomized() -> Callable[..., Any]:
    """Function that gives every weight of an adapter a random value, so that it changes outputs; returns the model."""

    def fill(model: Any, *, adapter: str = "default", seed: int = 5) -> Any:
        random = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if f".{adapter}" in name and ("bottleneck_" in name or "bitfit_" in name):
                    weight.normal_(std=0.3, generator=random)
        return model

    return fill


@pytest.fixture
def logits() -> Callable[[Any, Mapping[str, torch.Tensor]], torch.Tensor]:
    def run(model: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        with torch.no_grad():
            return model.eval()(**inputs).logits

    return run
