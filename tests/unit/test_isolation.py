"""What tests/conftest.py promises: empty caches, no hub, and GPU tests that are counted where they cannot run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).parents[1] / "conftest.py"


@pytest.mark.parametrize("attempt", [1, 2])
def test_every_test_starts_with_an_empty_cache(attempt: int) -> None:
    cache = Path(os.environ["PEFTKIT_CACHE"])
    assert not list(cache.iterdir())
    (cache / "left-behind").touch()


def test_libraries_are_offline_and_keep_out_of_the_home_folder() -> None:
    from huggingface_hub import constants

    assert constants.HF_HUB_OFFLINE
    assert Path.home() not in Path(constants.HF_HOME).parents


def test_gpu_tests_are_skipped_with_a_reason_and_counted(tmp_path: Path) -> None:
    import torch

    for file in (CONFTEST, CONFTEST.with_name("application.py")):
        shutil.copy(file, tmp_path)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = gpu: x\n  recipes: x\n", "utf-8")
    lines = ["import os", "import pytest", "@pytest.mark.gpu", "def test_a(): pass", "def test_b(): pass"]
    lines += ["@pytest.mark.recipes", "def test_c(): assert os.environ['PEFTKIT_CACHE'] == 'mine'"]
    (tmp_path / "test_x.py").write_text("\n".join(lines), "utf-8")
    command = [sys.executable, "-m", "pytest", "-rs", "-p", "no:cacheprovider"]
    environment = {**os.environ, "PEFTKIT_CACHE": "mine"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    if torch.cuda.is_available():
        assert "3 passed" in done.stdout
    else:
        assert "2 passed, 1 skipped" in done.stdout
        assert "no CUDA device; run  pytest -m gpu" in done.stdout
