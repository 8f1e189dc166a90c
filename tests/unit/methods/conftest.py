"""Any method with any options on the tiny architectures, through the cells of the contract matrix."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from contracts.cells import ARCHITECTURES, Cell

from peftkit.methods import methods

MakeCell = Callable[..., Cell]


@pytest.fixture
def cell(checkpoint: Callable[[str], Path]) -> MakeCell:
    """Function from a method's name, an architecture and the method's options to a cell."""

    def make(name: str, architecture: str = "bert_sequence", storage: str = "fp32", **options: Any) -> Cell:
        kind = ARCHITECTURES[architecture]
        return Cell(name, methods.build({"name": name, **options}), kind, storage, checkpoint(kind.checkpoint))

    return make
