"""The worked example of CONTRIBUTING.md, run as written."""

from __future__ import annotations

import math
import re
import runpy
from pathlib import Path

import pytest
import torch
import yaml

from peftkit.losses import Loss, losses

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "CONTRIBUTING.md").read_text("utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Loss:
    """The loss of the example, built from the example's own recipe line; unregistered afterwards."""
    losses.names()
    monkeypatch.setattr(losses, "_classes", dict(losses._classes))
    file = tmp_path / "confidence_penalty.py"
    file.write_text(blocks("python")[0], "utf-8")
    runpy.run_path(str(file))
    return losses.build(yaml.safe_load(blocks("yaml")[0])["loss"])


def test_example_is_a_loss_with_its_option(example: Loss) -> None:
    assert example.spec() == {"name": "confidence_penalty", "strength": 0.2}


def test_example_computes_its_formula(example: Loss) -> None:
    # p = (1/4, 3/4): -log p(label) is log 4 and log 4/3, the entropy of each row is H
    logits = torch.tensor([[0.0, math.log(3)], [0.0, math.log(3)]])
    entropy = math.log(4) / 4 + math.log(4 / 3) * 3 / 4
    expected = (math.log(4) + math.log(4 / 3) - 0.2 * 2 * entropy) / 2
    assert example.compute(logits, torch.tensor([0, 1]), None).item() == pytest.approx(expected)
    assert example.compute(logits, torch.tensor([0, 1]), 4).item() == pytest.approx(expected / 2)


def test_example_is_gone_afterwards() -> None:
    assert "confidence_penalty" not in losses.names()


def test_commands_name_marks_that_exist(pytestconfig: pytest.Config) -> None:
    known = {line.partition(":")[0] for line in pytestconfig.getini("markers")}
    named = {word for marks in re.findall(r'pytest -m "?([a-z ]+)', TEXT) for word in marks.split()} - {"not", "and"}
    assert named == {"training", "recipes", "gpu"}
    assert named <= known


def test_files_it_speaks_of_exist() -> None:
    named = {
        match
        for match in re.findall(r"`(?:python |bash )?([\w./]+/[\w.]+)`", TEXT)
        if not match.startswith("peftkit/losses")
    }
    assert {"tests/conftest.py", "tests/test_architecture.py", ".ci/run"} <= named
    assert [name for name in named if not (ROOT / name).exists()] == []
