"""A new method is one file: in a temporary module it is registered, held to the contracts, and run from a recipe."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from contracts.cells import Cell, variants

import peftkit.methods
from peftkit.cli.entry import main
from peftkit.cli.plugin_files import load_plugin_files
from peftkit.methods import methods
from peftkit.results import RunResult

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
LONGEST = 150
MODULE = """\
from typing import ClassVar

from peftkit.methods import TuningContext, TuningMethod, methods
from peftkit.methods.retrained import retrained


@methods.register("first_block")
class FirstBlock(TuningMethod):
    '''The first block and the head train.'''

    paper: ClassVar[str] = "none"
    use_when: ClassVar[str] = "a test needs a method"
    mergeable: ClassVar[bool] = True
    default_learning_rate: ClassVar[float] = 1e-3

    def apply(self, model, context: TuningContext):
        '''See TuningMethod.apply.'''
        return retrained(model, ["bert.encoder.layer.0"], context, method=self.name)
"""


@pytest.fixture
def plugin(tmp_path: Path) -> Iterator[Path]:
    """A file with the method; it is forgotten afterwards."""
    file = tmp_path / "first_block.py"
    file.write_text(MODULE)
    yield file
    sys.modules.pop(methods._classes.pop("first_block").__module__, None)


def test_no_file_of_a_method_is_long() -> None:
    folder = Path(peftkit.methods.__file__).parent
    lines = {path.name: len(path.read_text("utf-8").splitlines()) for path in folder.glob("*.py")}
    assert len(lines) > 30
    assert {name: length for name, length in lines.items() if length > LONGEST} == {}


def test_method_in_a_file_of_its_own_is_held_to_the_contracts(
    plugin: Path, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    assert "first_block" not in variants()
    load_plugin_files([plugin])
    assert "first_block" in variants()
    cell = Cell.of("first_block", "bert_sequence", "fp32", checkpoint=checkpoint)
    assert cell.refusal() is None
    model = cell.tuned()
    losses = cell.train(model, steps=5, learning_rate=1e-2)
    assert losses[-1] < losses[0]
    model.save_pretrained(tmp_path / "adapter")
    assert torch.equal(cell.logits(cell.reloaded(tmp_path / "adapter")), cell.logits(model))


@pytest.mark.training
def test_method_in_a_file_of_its_own_runs_from_a_recipe(
    plugin: Path,
    tiny_bert: Path,
    sentiment_files: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"name: new\nmodel: {{id: {tiny_bert}, max_length: 32}}\ntask: sequence_classification\nmethod: first_block\n"
        f"data: {{name: files, train: {sentiment_files['train']}, validation: {sentiment_files['validation']}}}\n"
        "training: {epochs: 1, batch_size: 8}\n"
    )
    folder = tmp_path / "run"
    assert main(["run", str(recipe), "--run-dir", str(folder), "--plugin", str(plugin), "--quiet"]) == 0
    assert RunResult.read(folder).recipe["method"]["name"] == "first_block"
    assert main(["predict", str(folder), "kind", "--plugin", str(plugin)]) == 0
    assert main(["list", "methods", "--plugin", str(plugin)]) == 0
    assert "first_block" in capsys.readouterr().out
