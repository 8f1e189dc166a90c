"""R-Drop, NEFTune and mix-up against the papers' formulas."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from peftkit.regularizers import Pass, regularizers

ROWS = torch.tensor([[5, 6, 7, 8, 9], [10, 11, 0, 0, 0], [12, 13, 14, 0, 0]])


def test_neftune_adds_noise_of_the_papers_size_while_training(model: Any, batch: dict[str, torch.Tensor]) -> None:
    embedding = model.get_input_embeddings()
    plain = embedding(batch["input_ids"]).detach()
    regularizers.build({"name": "neftune", "alpha": 3.0}).start(model)
    size = 3.0 / (7 * 32) ** 0.5
    noise = embedding(batch["input_ids"]) - plain
    assert noise.abs().max() <= size
    assert noise.abs().max() > 0.95 * size
    assert noise.std().item() == pytest.approx(size / 3**0.5, rel=0.1)
    model.eval()
    assert torch.equal(embedding(batch["input_ids"]), plain)


def test_r_drop_is_the_mean_loss_and_the_symmetric_divergence() -> None:
    at_work = regularizers.build({"name": "r_drop", "alpha": 3.0}).start(None)  # type: ignore[arg-type] # looks at none
    logits = [torch.randn(5, 4, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)]
    first, second = (Pass(torch.tensor(loss), scores) for loss, scores in zip((0.5, 0.75), logits, strict=True))
    p, q = (scores.softmax(-1) for scores in logits)
    both = (p * (p / q).log()).sum() + (q * (q / p).log()).sum()
    expected = (0.5 + 0.75) / 2 + 3.0 / 2 * (both / 2) / 5
    torch.testing.assert_close(first.loss + at_work.addition(first, lambda: second, 5), expected)
    assert at_work.addition(first, lambda: first, 5).item() == 0.0


def begun(model: Any, **options: Any) -> Any:
    part = regularizers.build({"name": "mixup", **options}).start(model)
    part.begin(lambda: torch.zeros(()))
    return part


@pytest.mark.parametrize(
    ("name", "method"),
    [("bert", None), ("distilbert", None), ("roberta", None), ("bert", "lora"), ("bert", "prefix"), ("bert", "prompt")],
)
def test_mixup_of_the_last_block_mixes_what_it_reads(
    checkpoint: Callable[[str], Path], name: str, method: str | None
) -> None:
    """Two blocks: the one below is read off, the other is computed on the mixture, with the words of both rows."""
    from transformers import AutoModelForSequenceClassification

    from peftkit.layers.blocks import block_lists
    from peftkit.methods import TuningContext, methods

    model: Any = AutoModelForSequenceClassification.from_pretrained(checkpoint(name), num_labels=2)
    if method is not None:
        heads = tuple(head for head in ("classifier", "pre_classifier") if hasattr(model, head))
        model = methods.build(method).apply(model, TuningContext("SEQ_CLS", heads, 10))
    model.train()
    (blocks,) = block_lists(model).values()
    inputs = {"input_ids": ROWS.clamp(max=50), "attention_mask": (ROWS > 0).long()}
    read: list[Any] = []
    part = begun(model, from_depth=0.9)
    blocks[1].register_forward_pre_hook(lambda module, args, kwargs: read.append((args, kwargs)), with_kwargs=True)
    for place in (99, 1):
        part.place = place
        torch.manual_seed(0)  # for dropout
        model(**inputs)
    (plain, plain_names), (mixed, mixed_names) = read
    order = part.order
    assert sorted(order.tolist()) == [0, 1, 2]
    torch.testing.assert_close(mixed[0], part.share * plain[0] + (1 - part.share) * plain[0][order])
    before = [value for value in (*plain[1:], *plain_names.values()) if getattr(value, "ndim", 0) == 4]
    after = [value for value in (*mixed[1:], *mixed_names.values()) if getattr(value, "ndim", 0) == 4]
    assert len(before) == len(after) == 1
    mine, both = (mask[0] if mask[0].dtype == torch.bool else mask[0] == 0 for mask in (before, after))
    assert torch.equal(both, mine | mine[order])


def test_mixup_below_all_blocks_is_the_model_on_mixed_embeddings(model: Any) -> None:
    """Guo et al. 2019, word mix-up, after BERT's own sum of embeddings."""
    inputs = {"input_ids": ROWS, "attention_mask": (ROWS > 0).long()}
    part = begun(model, from_depth=0.0)
    part.place = 0
    found = model(**inputs).logits
    embedded = model.bert.embeddings(input_ids=ROWS)
    mixed = part.share * embedded + (1 - part.share) * embedded[part.order]
    real = inputs["attention_mask"].bool()
    part.place = 99  # mixes no more
    hidden = model.bert.encoder(mixed, attention_mask=(real | real[part.order])[:, None, None, :])
    expected = model.classifier(model.bert.pooler(hidden.last_hidden_state))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_mixup_mixes_labels_alike_and_alike_in_every_pass(model: Any, batch: dict[str, torch.Tensor]) -> None:
    part = begun(model, alpha=1.0)
    first = model(**batch).logits
    torch.rand(3)  # other draws in between
    assert torch.equal(model(**batch).logits, first)
    labels = torch.tensor([0, 1, 1])
    (share, own), (rest, others) = part.labels(labels)
    assert 0.5 <= share < 1.0
    assert share + rest == 1.0
    assert torch.equal(own, labels)
    assert torch.equal(others, labels[part.order])
    part.begin(lambda: torch.zeros(()))
    assert part.share != share
    model.eval()
    still = model(**batch).logits
    part.order = None
    assert torch.equal(model(**batch).logits, still), "nothing is mixed in evaluation"


def test_mixup_refuses_two_stacks(checkpoint: Callable[[str], Path]) -> None:
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(checkpoint("t5"), num_labels=2)
    found = regularizers.build("mixup").problem(model)
    assert found is not None
    assert "needs one stack of blocks, and T5ForSequenceClassification has 2" in found
