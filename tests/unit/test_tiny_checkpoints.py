"""The tiny checkpoints that other tests stand on: loadable by every auto class, with tokenizers that know the words."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

NAMES = ("bert", "distilbert", "roberta", "gpt2", "llama", "t5")


@pytest.mark.parametrize("name", NAMES)
def test_checkpoint_loads_with_its_weights(checkpoint: Callable[[str], Path], name: str) -> None:
    from transformers import AutoModel

    model, report = AutoModel.from_pretrained(checkpoint(name), output_loading_info=True)
    assert {key.partition(".")[0] for key in report["missing_keys"]} == ({"pooler"} if name == "roberta" else set())
    assert sum(weight.numel() for weight in model.parameters()) < 200_000


@pytest.mark.parametrize("name", NAMES)
def test_tokenizer_reads_the_sentences_without_unknown_tokens(
    checkpoint: Callable[[str], Path], sentiment_rows: Mapping[str, list[dict[str, str]]], name: str
) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint(name))
    unknown = tokenizer.unk_token_id
    for row in sentiment_rows["train"]:
        ids = tokenizer(row["text"])["input_ids"]
        assert 5 < len(ids) < 40
        assert unknown is None or unknown not in ids
        plain = tokenizer.decode(ids, skip_special_tokens=True).replace(" ", "").lower()
        assert plain == row["text"].replace(" ", "").lower()


@pytest.mark.parametrize("name", NAMES)
def test_tokenizer_has_the_special_tokens_of_its_family(checkpoint: Callable[[str], Path], name: str) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint(name))
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("kind", "rude")["input_ids"])
    outer = {"bert": ("[CLS]", "[SEP]"), "distilbert": ("[CLS]", "[SEP]"), "roberta": ("<s>", "</s>")}
    if name in outer:
        assert (tokens[0], tokens[-1]) == outer[name]
    assert (tokenizer.pad_token is None) == (name in {"gpt2", "llama"})


@pytest.mark.parametrize("name", NAMES)
def test_checkpoint_is_the_same_in_every_session(
    checkpoint: Callable[[str], Path], tmp_path: Path, request: pytest.FixtureRequest, name: str
) -> None:
    conftest = request.config.pluginmanager.get_plugin(str(Path(__file__).parents[1] / "conftest.py"))
    again = conftest._save(name, tmp_path / "again")
    for file in ("tokenizer.json", "config.json", "model.safetensors"):
        assert (again / file).read_bytes() == (checkpoint(name) / file).read_bytes(), file


def test_sentiment_rows_are_balanced_and_do_not_repeat(sentiment_rows: Mapping[str, list[dict[str, str]]]) -> None:
    texts = [row["text"] for rows in sentiment_rows.values() for row in rows]
    assert len(set(texts)) == len(texts) == 64
    for rows in sentiment_rows.values():
        labels = [row["label"] for row in rows]
        assert labels.count("positive") == labels.count("negative") == len(labels) // 2
