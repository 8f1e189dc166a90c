"""How many tokens models read: what they compute without an error, and one more that they do not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, MPNetConfig, MPNetModel, OPTConfig, OPTModel, PreTrainedModel

from peftkit.errors import RecipeError
from peftkit.positions import positions_of
from peftkit.recipe import Recipe
from peftkit.training import check

Checkpoint = Callable[[str], Path]


def computes(model: PreTrainedModel, tokens: int) -> bool:
    """Whether it reads so many of them."""
    try:
        model(input_ids=torch.full((1, tokens), 7), attention_mask=torch.ones(1, tokens, dtype=torch.long))
    except (IndexError, RuntimeError):
        return False
    return True


@pytest.mark.parametrize("base", ["bert", "distilbert", "roberta", "gpt2"])
def test_tables_of_positions_end_where_it_is_said(checkpoint: Checkpoint, base: str) -> None:
    model = AutoModel.from_pretrained(checkpoint(base)).eval()
    limit = positions_of(model)
    assert limit is not None
    assert computes(model, limit)
    assert not computes(model, limit + 1)


@pytest.mark.parametrize(
    "model",
    [
        OPTModel(OPTConfig(vocab_size=64, hidden_size=16, num_hidden_layers=1, ffn_dim=16, num_attention_heads=2,
                           word_embed_proj_dim=16, max_position_embeddings=20)),
        MPNetModel(MPNetConfig(vocab_size=64, hidden_size=16, num_hidden_layers=1, intermediate_size=16,
                               num_attention_heads=2, max_position_embeddings=22)),
    ],
    ids=["opt", "mpnet"],
)  # fmt: skip
def test_rows_of_a_table_that_no_token_uses_do_not_count(model: PreTrainedModel) -> None:
    assert positions_of(model) == 20
    assert computes(model.eval(), 20)
    assert not computes(model, 21)


@pytest.mark.parametrize("base", ["llama", "t5"])
def test_computed_positions_have_no_end(checkpoint: Checkpoint, base: str) -> None:
    assert positions_of(AutoModel.from_pretrained(checkpoint(base))) is None


@pytest.mark.parametrize(
    ("max_length", "method", "message"),
    [
        (65, "lora", "model.max_length is 65, and .* has positions for 64 tokens; lower it to 64"),
        (60, "prompt", "has positions for 64 tokens, of which method.virtual_tokens takes 20; lower it to 44"),
    ],
)
def test_more_tokens_than_positions_are_refused(
    tiny_bert: Path, sentiment_files: dict[str, Path], max_length: int, method: str, message: str
) -> None:
    values = {
        "name": "long",
        "model": {"id": str(tiny_bert), "max_length": max_length},
        "task": "sequence_classification",
        "data": {"name": "files", **{split: str(path) for split, path in sentiment_files.items()}},
        "method": method,
    }
    with pytest.raises(RecipeError, match=message):
        check(Recipe.from_values(values, origin="test"))
