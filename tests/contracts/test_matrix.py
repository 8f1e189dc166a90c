"""The table of what runs where: `python tests/contracts/test_matrix.py` writes docs/method_matrix.md anew."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from contracts.cells import ARCHITECTURES, BITS, Cell, variants

PAGE = Path(__file__).parents[2] / "docs" / "method_matrix.md"
HEADLINE = (
    "full", "head_only", "bitfit", "lora", "dora", "adalora", "bottleneck", "bottleneck houlsby", "bottleneck parallel",
    "bottleneck scaled_parallel", "prefix", "prompt", "p_tuning", "ia3", "vera", "oft",
)  # fmt: skip
IMPOSSIBLE = ("trains the base weights", "trains the new head only", "no biases outside its head")
"""Reasons that lie in the mathematics: integers cannot train, a head or bias that is not there cannot either."""
Refusals = Mapping[tuple[str, str, str], str | None]

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")


def refusals(checkpoint: Callable[[str], Path]) -> dict[tuple[str, str, str], str | None]:
    """Why each cell is refused, or None where it runs."""
    return {
        (variant, architecture, storage): Cell.of(variant, architecture, storage, checkpoint=checkpoint).refusal()
        for variant in sorted(variants())
        for architecture in ARCHITECTURES
        for storage in BITS
    }


def page(found: Refusals) -> str:
    """The table in Markdown."""
    reasons: list[str] = []
    lines = [
        "# What runs where",
        "",
        "Every cell is a method on an architecture, with the ways to store the base that it runs on. Cells that run",
        "are held by `tests/contracts`: saved equals loaded bit by bit, the base stays untouched, every trainable",
        "weight moves, merged equals unmerged. A number names the reason of a refusal, below. Written by",
        "`python tests/contracts/test_matrix.py`.",
        "",
        f"{sum(reason is None for reason in found.values())} of {len(found)} cells run.",
        "",
        f"| method | {' | '.join(ARCHITECTURES)} |",
        f"|---|{'---|' * len(ARCHITECTURES)}",
    ]
    for variant in sorted(variants()):
        row = []
        for architecture in ARCHITECTURES:
            running = [storage for storage in BITS if found[variant, architecture, storage] is None]
            numbers = set()
            for storage in BITS:
                if reason := found[variant, architecture, storage]:
                    if reason not in reasons:
                        reasons.append(reason)
                    numbers.add(reasons.index(reason) + 1)
            shown = "all" if len(running) == len(BITS) else ", ".join(running) or "none"
            row.append(shown + "".join(f" ({number})" for number in sorted(numbers)))
        lines.append(f"| {variant} | {' | '.join(row)} |")
    lines += ["", "## Reasons", "", *(f"{number}. {reason}" for number, reason in enumerate(reasons, start=1))]
    return "\n".join(lines) + "\n"


def test_page_is_true_and_headline_methods_run_where_they_can(checkpoint: Callable[[str], Path]) -> None:
    found = refusals(checkpoint)
    assert page(found) == PAGE.read_text("utf-8"), "docs/method_matrix.md is stale: see the top of this file"
    cells = {key: reason for key, reason in found.items() if key[0] in HEADLINE}
    possible = [reason for reason in cells.values() if reason is None or not any(why in reason for why in IMPOSSIBLE)]
    running = [reason for reason in possible if reason is None]
    assert len(running) >= 0.95 * len(possible), f"{len(running)} of {len(possible)}"


if __name__ == "__main__":
    import warnings

    import conftest

    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        made: dict[str, Path] = {}

        def build(name: str) -> Path:
            if name not in made:
                made[name] = conftest._save(name, Path(folder) / f"tiny-{name}")
            return made[name]

        result = refusals(build)
        PAGE.write_text(page(result), "utf-8")
