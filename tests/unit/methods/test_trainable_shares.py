"""What `peftkit list methods` and docs/methods.md say of each method, held against the methods themselves."""

from __future__ import annotations

import copy
import json
import re
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from peftkit.cli.method_facts import merging, storage
from peftkit.methods import TuningContext, TuningMethod, methods
from peftkit.methods.shares import SHARES_FILE, Share, share_of

GUIDE = Path(__file__).parents[3] / "docs" / "methods.md"
BEGIN, END = "<!-- table of methods: begin -->", "<!-- table of methods: end -->"
REGENERATE = "python tests/unit/methods/test_trainable_shares.py"
BUILT_IN = [name for name in methods.loaded_names() if methods.get(name).__module__.startswith("peftkit.")]
WITH_DEFAULTS = [
    name for name in BUILT_IN if not any(field.is_required() for field in methods.get(name).model_fields.values())
]


@cache
def default_model() -> Any:
    """BERT as all-MiniLM-L6-v2 has it, random weights, two classes."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
    with torch.random.fork_rng():
        return BertForSequenceClassification(BertConfig(vocab_size=30522, num_labels=2, **sizes))


def counted(name: str) -> Share:
    """Parameters of the default model with the method's default options on it."""
    context = TuningContext("SEQ_CLS", ("classifier",), total_steps=1000)
    method = methods.build(name)
    model = copy.deepcopy(default_model())
    assert method.problem(model, context) is None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what libraries say of the sizes of this model is no matter here
        tuned = method.apply(model, context)
    weights = list(tuned.parameters())
    return Share(sum(w.numel() for w in weights if w.requires_grad), sum(w.numel() for w in weights))


def table() -> str:
    """Markdown table of all built-in methods."""
    rows = ["| Method | Trains | Use it when | Stored base | Merges | From |", "| --- | --: | --- | --- | --- | --- |"]
    rows += [_row(methods.get(name)) for name in BUILT_IN]
    return "\n".join(rows)


def _row(cls: type[TuningMethod]) -> str:
    share = share_of(cls.name) or "*"
    merges = {"into the base, outputs unchanged": "yes", "not possible": "no"}.get(merging(cls), merging(cls))
    merges = merges.partition(":")[0]
    paper = re.sub(r"arXiv:(\d{4}\.\d{5})", r"[\1](https://arxiv.org/abs/\1)", cls.paper)
    return f"| `{cls.name}` | {share} | {cls.use_when} | {storage(cls)} | {merges} | {paper} |".replace("\n", " ")


def test_shares_are_kept_of_every_method_that_has_defaults() -> None:
    kept = json.loads(SHARES_FILE.read_text("utf-8"))
    assert sorted(kept) == WITH_DEFAULTS, f"count again with  {REGENERATE}"


@pytest.mark.parametrize("name", WITH_DEFAULTS)
def test_kept_share_is_what_the_method_trains(name: str) -> None:
    assert share_of(name) == counted(name), f"count again with  {REGENERATE}"


def test_counts_by_hand() -> None:
    """d = 384, inner width 1536, 6 blocks, 2 classes, by the formulas of the papers."""
    d, inner, blocks, head = 384, 1536, 6, 2 * 384 + 2
    pooler, embeddings = d * d + d, (30522 + 512 + 2) * d + 2 * d
    block = 4 * (d * d + d) + (d * inner + inner) + (inner * d + d) + 4 * d
    everything = embeddings + blocks * block + pooler + head
    assert share_of("full") == Share(everything, everything)
    assert share_of("head_only") == Share(head, everything + head)
    norms = (2 * blocks + 1) * 2 * d
    assert share_of("layer_norm") == Share(norms + head, everything + norms + head)
    last = 2 * block + pooler + head
    assert share_of("last_layers") == Share(last, everything + last)
    lora = blocks * 8 * (4 * (d + d) + 2 * (d + inner)) + 8 * (d + d)  # rank 8; the pooler is a linear layer too
    assert share_of("lora") == Share(lora + head, everything + lora + head)


@pytest.mark.parametrize(
    ("trainable", "total", "words"),
    [
        (1, 1, "100 %"),
        (123, 1000, "12 %"),
        (98, 10000, "0.98 %"),
        (1, 40000, "0.0025 %"),
        (99, 1000, "9.9 %"),
        (999, 10000, "10 %"),
        (5, 1000, "0.50 %"),
    ],
)
def test_share_in_words(trainable: int, total: int, words: str) -> None:
    assert str(Share(trainable, total)) == words


def test_method_of_another_package_has_no_share() -> None:
    assert share_of("moonshot") is None


def test_every_method_says_when_to_use_it_and_where_it_is_from() -> None:
    for name in BUILT_IN:
        cls = methods.get(name)
        assert 10 < len(cls.use_when) <= 170, name
        assert cls.paper, name
        assert not cls.use_when.removesuffix("...").endswith("."), name


def test_guide_holds_the_table_of_methods() -> None:
    text = GUIDE.read_text("utf-8")
    assert text.partition(BEGIN)[2].partition(END)[0].strip() == table(), f"write it anew with  {REGENERATE}"


def test_guide_names_only_methods_that_exist() -> None:
    prose = GUIDE.read_text("utf-8").partition(BEGIN)[0]
    recipes = re.findall(r"^method: (?:\{name: )?(\w+)", prose, flags=re.MULTILINE)
    assert recipes
    assert set(recipes) <= set(BUILT_IN)


def _regenerate() -> None:
    counts = {name: counted(name) for name in WITH_DEFAULTS}
    kept = {name: {"trainable": share.trainable, "total": share.total} for name, share in counts.items()}
    SHARES_FILE.write_text(json.dumps(kept, indent=2) + "\n", "utf-8")
    before, _, rest = GUIDE.read_text("utf-8").partition(BEGIN)
    GUIDE.write_text(f"{before}{BEGIN}\n{table()}\n{END}{rest.partition(END)[2]}", "utf-8")


if __name__ == "__main__":
    _regenerate()
