from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from peftkit import __version__
from peftkit.cli.entry import main
from peftkit.cli.machine import Finding, compare_libraries, computes_bfloat16, read_processor


def test_doctor_reports_what_this_machine_has(capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["doctor"])
    captured = capsys.readouterr()
    facts = dict(line.split(None, 1) for line in captured.out.splitlines() if len(line.split(None, 1)) == 2)
    assert facts["peftkit"] == __version__
    assert facts["torch"] == torch.__version__ == version("torch")
    assert facts["device"].startswith("cuda:0" if torch.cuda.is_available() else "cpu: ")
    assert facts["number"].startswith("types   float32")
    assert "GiB free at" in captured.out or "TiB free at" in captured.out or "MiB free at" in captured.out
    # tests/conftest.py sets HF_HUB_OFFLINE
    assert facts["hub"].startswith("not reachable: models come from local folders")
    assert (code == 0) is ("everything is in order" in captured.out)
    assert (code == 4) is ("need attention" in captured.err)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("processor : 0\nmodel name : Old CPU\nflags : fpu avx2 avx512f\n\nprocessor : 1\nflags : amx_bf16\n", False),
        ("processor : 0\nmodel name : New CPU\nflags\t\t: fpu avx512_bf16\n", True),
        ("processor : 0\nflags : fpu amx_bf16 amx_tile\n", True),
        ("processor : 0\nFeatures : fp asimd bf16 i8mm\n", True),
        ("processor : 0\nFeatures : fp asimd\n", False),
        ("processor : 0\n", None),
    ],
)
def test_bfloat16_in_hardware_is_read_from_the_processors_flags(
    tmp_path: Path, text: str, expected: bool | None
) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    assert computes_bfloat16(read_processor(tmp_path / "cpuinfo")) is expected


def test_a_system_without_a_processor_list_knows_nothing(tmp_path: Path) -> None:
    assert read_processor(tmp_path / "none") == {}
    assert computes_bfloat16({}) is None


def test_libraries_are_compared_with_the_requirements() -> None:
    needed = ["pytest>=8", "torch<1", "nothing-of-that-name>=2", 'wandby; extra == "wandby"', 'ruff; extra == "test"']
    pytest_found, torch_found, absent, optional = compare_libraries(needed)
    assert pytest_found == Finding("pytest", version("pytest"))
    assert torch_found.problem == f"torch {torch.__version__} does not fit; pip install 'torch<1'"
    assert absent.value == "missing"
    assert absent.problem is not None
    assert "pip install 'nothing-of-that-name>=2'" in absent.problem
    assert optional == Finding("wandby", "not installed; optional:  pip install 'peftkit[wandby]'")
