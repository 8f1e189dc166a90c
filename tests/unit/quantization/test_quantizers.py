"""The quantizers' options, and what they say where they cannot run."""

from __future__ import annotations

import importlib.util
import logging
import subprocess
import sys
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from peftkit.quantization import quantizers

QUANTIZERS = ("fp4", "int8", "nf4")


def test_names() -> None:
    assert quantizers.names() == sorted(QUANTIZERS)


@pytest.mark.parametrize(("name", "bits"), [("nf4", 4), ("fp4", 4), ("int8", 8)])
def test_bits_and_paper(name: str, bits: int) -> None:
    cls = quantizers.get(name)
    assert cls.bits == bits
    assert "Dettmers et al." in cls.paper


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("name", ["nf4", "fp4"])
def test_four_bit_config(name: str, double: bool) -> None:
    quantizer = quantizers.build({"name": name, "double_quantization": double})
    config = quantizer.config(compute_dtype=torch.bfloat16, keep=["score", "lm_head"])
    assert (config.load_in_4bit, config.load_in_8bit) == (True, False)
    assert config.bnb_4bit_quant_type == name
    assert config.bnb_4bit_use_double_quant is double
    assert config.bnb_4bit_compute_dtype == torch.bfloat16
    assert config.llm_int8_skip_modules == ["score", "lm_head"]


def test_int8_config() -> None:
    config = quantizers.build({"name": "int8", "outlier_threshold": 4.5}).config(
        compute_dtype=torch.float32, keep=("score",)
    )
    assert (config.load_in_4bit, config.load_in_8bit) == (False, True)
    assert config.llm_int8_threshold == 4.5
    assert config.llm_int8_skip_modules == ["score"]


def test_negative_threshold_is_refused() -> None:
    with pytest.raises(ValidationError, match="greater than or equal to 0"):
        quantizers.build({"name": "int8", "outlier_threshold": -1})


@pytest.mark.parametrize("name", QUANTIZERS)
def test_runs_on_gpus_and_cpus(name: str) -> None:
    quantizer = quantizers.build(name)
    assert quantizer.problem("cpu") is None
    assert quantizer.problem("cuda") is None
    assert quantizer.problem("mps") == (
        f"quantization '{name}' runs on CUDA GPUs and CPUs, not on mps; remove it from the recipe"
    )


@pytest.mark.parametrize("name", QUANTIZERS)
def test_absent_library_is_named_with_its_extra(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda module, *more: None if module == "bitsandbytes" else find(module, *more)
    )
    assert quantizers.build(name).problem("cpu") == (
        f"quantization '{name}' needs bitsandbytes, which is not installed; "
        "install it with  pip install 'peftkit[quantization]'"
    )


def test_log_says_nothing_at_import_and_everything_else_is_heard() -> None:
    """In a process of its own, because a module is imported once."""
    code = (
        "import peftkit.models, peft, bitsandbytes, logging\n"
        "logging.getLogger('bitsandbytes.backends.cpu.ops').warning('a real problem')\n"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines() == ["a real problem"]


def test_only_the_two_known_messages_are_dropped(caplog: pytest.LogCaptureFixture) -> None:
    from peftkit.quantization.messages import hide_no_news

    hide_no_news()
    hide_no_news()
    logger: Any = logging.getLogger("bitsandbytes.autograd._functions")
    with caplog.at_level(logging.WARNING, logger=logger.name):
        logger.warning("MatMul8bitLt: inputs will be cast from %s to float16 during quantization", torch.float32)
        logger.warning("another message")
    assert caplog.messages == ["another message"]
    assert len(logger.filters) == 1
