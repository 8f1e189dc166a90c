"""Augmentations that rewrite with a model, on tiny ones."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from peftkit.augmentations import Rewriting, augmentations
from peftkit.errors import ArtifactError, CapabilityError

Checkpoint = Callable[[str], Path]
TEXTS = ["The film is (very) slow, and the music is loud!", "good", "...", "I liked this film a lot; go and see it."]


def rewritten(base: Path | str, *texts: str, seed: str = "0", **options: Any) -> list[str]:
    augmentation = augmentations.build({"name": "masked_tokens", **options})
    return augmentation.rewrite(texts or TEXTS, Rewriting(seed, str(base)))


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text)


@pytest.mark.parametrize("name", ["bert", "distilbert", "roberta"])
def test_masked_tokens_replaces_single_words_and_leaves_the_rest(checkpoint: Checkpoint, name: str) -> None:
    found = rewritten(checkpoint(name), share=0.3)
    for before, after in zip(TEXTS, found, strict=True):
        assert re.sub(r"\w+", "_", before) == re.sub(r"\w+", "_", after), "what stands between words stays"
        changed = [new for old, new in zip(words(before), words(after), strict=True) if old != new]
        assert len(changed) <= max(1, int(0.3 * len(words(before))))
        assert all(new.isalnum() for new in changed)
    assert found[2] == "..."
    assert found != TEXTS


def test_masked_tokens_samples_from_the_models_own_predictions(checkpoint: Checkpoint) -> None:
    """A text of one word at many places: how often each word comes equals its probability under transformers."""
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    folder = checkpoint("bert")
    model, tokenizer = AutoModelForMaskedLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        logits = model.eval()(**tokenizer(tokenizer.mask_token, return_tensors="pt")).logits[0, 1]
    vocabulary = {token: word for word, token in tokenizer.get_vocab().items()}
    allowed = [token for token, word in sorted(vocabulary.items()) if word.isalnum()]
    shares = logits[allowed].softmax(0)
    best = shares.argmax().item()
    found = rewritten(folder, *["good"] * 600)
    often = sum(text == vocabulary[allowed[best]] for text in found) / 600
    p = shares[best].item()
    assert often == pytest.approx(p, abs=4 * (p * (1 - p) / 600) ** 0.5)
    assert len(set(found)) > 5


def test_masked_tokens_depend_on_the_seed_alone(checkpoint: Checkpoint) -> None:
    folder = checkpoint("distilbert")
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = rewritten(folder, share=0.5)
    assert torch.equal(torch.get_rng_state(), state), "the run's own draws are left alone"
    assert rewritten(folder, share=0.5) == first
    assert rewritten(folder, share=0.5, batch_size=1) == first
    assert rewritten(folder, share=0.5, seed="1") != first


def test_masked_tokens_beyond_the_longest_input_stay(checkpoint: Checkpoint) -> None:
    text = " ".join(f"film{place}" for place in range(80))
    (found,) = rewritten(checkpoint("roberta"), text, share=1.0)
    assert words(found)[-1] == "film79"
    assert words(found)[0] != "film0"
    assert len(words(found)) == 80


def test_masked_tokens_may_name_another_model(checkpoint: Checkpoint) -> None:
    other = rewritten("nowhere/at-all", model=str(checkpoint("bert")))
    assert other == rewritten(checkpoint("bert"))


def test_a_base_without_its_head_is_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    from transformers import AutoModel, AutoTokenizer

    AutoModel.from_pretrained(checkpoint("bert")).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(checkpoint("bert")).save_pretrained(tmp_path)
    with pytest.raises(CapabilityError, match=r"saved without the head of AutoModelForMaskedLM \(missing: cls.pred.*"):
        rewritten(tmp_path)


def test_a_base_that_masks_nothing_is_refused(checkpoint: Checkpoint) -> None:
    with pytest.raises(CapabilityError, match="cannot be an AutoModelForMaskedLM; name a model that can in  augmenta"):
        rewritten(checkpoint("gpt2"))


def test_a_model_that_is_nowhere_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="absent"):
        rewritten("bert", model=str(tmp_path / "absent"))


def translated(folder: Path, seed: str = "0", **options: Any) -> list[str]:
    spec = {"name": "back_translation", "there": str(folder), "back": str(folder), **options}
    return augmentations.build(spec).rewrite(TEXTS[:2], Rewriting(seed, "unused"))


def test_back_translation_samples_there_and_back(tiny_t5: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second model reads, behind its prefix, what the first has written."""
    from transformers import T5ForConditionalGeneration, T5TokenizerFast

    read: list[list[str]] = []
    wrote: list[list[str]] = []
    generate = T5ForConditionalGeneration.generate
    tokenizer = T5TokenizerFast.from_pretrained(tiny_t5)

    def noting(self: Any, input_ids: torch.Tensor, **kwargs: Any) -> Any:
        read.append(tokenizer.batch_decode(input_ids, skip_special_tokens=True))
        found = generate(self, input_ids=input_ids, **kwargs)
        wrote.append([text.strip() for text in tokenizer.batch_decode(found, skip_special_tokens=True)])
        return found

    monkeypatch.setattr(T5ForConditionalGeneration, "generate", noting)
    found = translated(tiny_t5, there_prefix="this film: ", back_prefix="film ")
    assert [line.startswith("this film") for line in read[0]] == [True, True]
    prefixed = tokenizer([f"film {text}" for text in wrote[0]], truncation=True)["input_ids"]
    assert read[1] == tokenizer.batch_decode(prefixed, skip_special_tokens=True)
    assert found == [new or old for new, old in zip(wrote[1], TEXTS, strict=False)]


def test_back_translation_depends_on_the_seed_alone(tiny_t5: Path) -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = translated(tiny_t5)
    assert torch.equal(torch.get_rng_state(), state)
    assert translated(tiny_t5) == first
    assert translated(tiny_t5, seed="1") != first


def test_back_translation_refuses_other_models(checkpoint: Checkpoint) -> None:
    with pytest.raises(CapabilityError, match="cannot be an AutoModelForSeq2SeqLM; name a model that can in"):
        translated(checkpoint("bert"))
