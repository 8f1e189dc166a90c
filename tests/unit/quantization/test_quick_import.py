"""bitsandbytes is imported without the compiler of torch, and what it decorates is still compiled when called; nor is
anything else imported to train that takes long and may not be used."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch

from peftkit.quantization import quick_import

IMPORT = """
import sys, torch
compile = torch.compile
import peftkit.training
from peft.import_utils import is_bnb_4bit_available
assert torch.compile is compile, "torch.compile is not what it was"
unused = {"torch._inductor.compile_fx", "trl", "sklearn", "evaluate", "matplotlib", "fastapi", "aiohttp", "tensorboard"}
print(is_bnb_4bit_available(), *sorted(unused & set(sys.modules)))
"""


def test_peft_finds_bitsandbytes_and_training_imports_nothing_that_it_may_not_use() -> None:
    pytest.importorskip("bitsandbytes", reason="needs peftkit[quantization]")
    done = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["True"], done.stderr


def test_a_function_is_compiled_once_and_by_its_first_call(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def compile_now(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        asked.append(options)
        return lambda *values: ("compiled", function(*values))

    monkeypatch.setattr(torch, "compile", compile_now)
    with quick_import._compiling_later():

        @torch.compile(dynamic=False)
        def double(value: int) -> int:
            return 2 * value

        plain = torch.compile(max)
    assert torch.compile is compile_now
    assert not asked
    assert (double(3), double(4), double.__name__) == (("compiled", 6), ("compiled", 8), "double")
    assert asked == [{"dynamic": False}]
    assert plain(1, 2) == ("compiled", 2)
    assert asked == [{"dynamic": False}, {}]
