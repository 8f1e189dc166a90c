"""Adapters that peftkit has saved, loaded by plain peft in a process that never imports peftkit."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from contracts.cells import ARCHITECTURES, Cell, variants

from peftkit.models import quiet_libraries

Checkpoint = Callable[[str], Path]
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")

OWN_KINDS = ("bottleneck", "bitfit")
"""Tuners of peftkit: plain peft knows them once peftkit is imported."""
NO_PEFT_MODEL = ("full", "gradual_unfreezing")
"""They save whole models."""
MORE_TOKENS = ("trainable_tokens",)
"""The tokenizer, and with it the embedding, has to grow first."""
READER = """
import json, sys, warnings
warnings.filterwarnings("ignore")
import torch, transformers
from peft import PeftModel

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
for job in json.load(open(sys.argv[1])):
    auto = getattr(transformers, job["auto_class"])
    torch.manual_seed(0)
    base = auto.from_pretrained(job["base"], **job["labels"])
    model = PeftModel.from_pretrained(base, job["folder"]).eval()
    inputs = torch.load(job["inputs"], weights_only=True)
    with torch.no_grad():
        torch.save(model(**inputs).logits, job["logits"])
assert not [name for name in sys.modules if name.startswith("peftkit")]
"""


CONFIGS = """
import sys
from peft import PeftConfig
for folder in sys.argv[1:]:
    try:
        PeftConfig.from_pretrained(folder)
        print("read")
    except Exception as problem:
        print(" ".join(str(problem).split()))
"""


def _plain() -> list[str]:
    own = [name for name in variants() if name.split()[0] in (*OWN_KINDS, *NO_PEFT_MODEL, *MORE_TOKENS)]
    return sorted(set(variants()) - set(own))


@pytest.mark.parametrize("architecture", ["bert_sequence", "llama"])
def test_plain_peft_gives_the_same_logits(architecture: str, checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Those of the trained model, bit by bit, for every method whose adapter is one of peft's own kinds."""
    kind = ARCHITECTURES[architecture]
    jobs, expected = [], {}
    for variant in _plain():
        cell = Cell.of(variant, architecture, "fp32", checkpoint=checkpoint)
        if cell.refusal() is not None:
            continue
        folder = tmp_path / variant.replace(" ", "-")
        model = cell.tuned()
        cell.train(model, steps=3, learning_rate=1e-2)
        cell.method.finish(model)
        with quiet_libraries():
            model.save_pretrained(folder, save_embedding_layers=False)
        torch.save(cell.inputs(), folder / "inputs.pt")
        job = {
            "auto_class": kind.auto_class,
            "base": str(cell.folder),
            "labels": {} if kind.labels is None else {"num_labels": kind.labels},
        }
        places = {name: str(folder / f"{name}.pt") for name in ("inputs", "logits")}
        jobs.append(job | places | {"folder": str(folder)})
        expected[folder] = cell.logits(model)
    (tmp_path / "jobs.json").write_text(json.dumps(jobs))
    subprocess.run([sys.executable, "-c", READER, str(tmp_path / "jobs.json")], check=True, capture_output=True)
    assert len(jobs) > 20
    found = {folder: torch.load(folder / "logits.pt", weights_only=True) for folder in expected}
    for folder, logits in expected.items():
        rows = found[folder]
        # a prompt model gives outputs for its virtual tokens too, which peftkit cuts off
        rows = rows[:, -logits.shape[1] :] if rows.ndim == 3 else rows
        assert torch.equal(rows, logits), folder.name


def test_own_kinds_say_what_to_import(checkpoint: Checkpoint, tmp_path: Path) -> None:
    own = [name for name in variants() if name.split()[0] in OWN_KINDS]
    for variant in own:
        with quiet_libraries():
            cell = Cell.of(variant, "bert_sequence", "fp32", checkpoint=checkpoint)
            cell.tuned().save_pretrained(tmp_path / variant)
    folders = [str(tmp_path / variant) for variant in own]
    assert len(folders) >= len(OWN_KINDS)
    alone, beside = (
        subprocess.run([sys.executable, "-c", first + CONFIGS, *folders], capture_output=True, text=True, check=True)
        for first in ("", "import peftkit\n")
    )
    said = alone.stdout.splitlines()
    assert len(said) == len(own)
    assert all("IMPORT PEFTKIT FIRST" in line for line in said)
    assert beside.stdout.splitlines() == ["read"] * len(own)
