"""Folders that TRL's trainers leave, loaded by peftkit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

import peftkit

pytestmark = [
    pytest.mark.training,
    pytest.mark.filterwarnings("ignore"),  # what the libraries tell one another
]
QUESTIONS = ["How was the soup?", "How was the film?"] * 4
GOOD = [" Lovely.", " Kind and funny."] * 4
BAD = [" Cold.", " Dull."] * 4


def _options(folder: Path) -> dict[str, Any]:
    return {
        "output_dir": str(folder),
        "max_steps": 2,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-2,
        "save_steps": 2,
        "report_to": [],
        "use_cpu": True,
        "bf16": False,
        "logging_steps": 1,
        "disable_tqdm": True,
    }


def _tokenizer(base: Path) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _lora(**options: Any) -> Any:
    from peft import LoraConfig

    return LoraConfig(r=4, target_modules="all-linear", **options)


def _supervised(base: Path, folder: Path) -> Any:
    from trl import SFTConfig, SFTTrainer

    rows = Dataset.from_dict({"prompt": QUESTIONS, "completion": GOOD})
    return SFTTrainer(
        AutoModelForCausalLM.from_pretrained(base),
        args=SFTConfig(**_options(folder), max_length=32),
        train_dataset=rows,
        processing_class=_tokenizer(base),
        peft_config=_lora(),  # as most users write it: without task type
    )


def _preference(base: Path, folder: Path) -> Any:
    from trl import DPOConfig, DPOTrainer

    rows = Dataset.from_dict({"prompt": QUESTIONS, "chosen": GOOD, "rejected": BAD})
    return DPOTrainer(
        AutoModelForCausalLM.from_pretrained(base),
        args=DPOConfig(**_options(folder), max_length=32),
        train_dataset=rows,
        processing_class=_tokenizer(base),
        peft_config=_lora(task_type="CAUSAL_LM"),
    )


def _reward(base: Path, folder: Path) -> Any:
    from trl import RewardConfig, RewardTrainer

    both = [[question + answer for question, answer in zip(QUESTIONS, ends, strict=True)] for ends in (GOOD, BAD)]
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    model.config.pad_token_id = _tokenizer(base).pad_token_id
    return RewardTrainer(
        model,
        args=RewardConfig(**_options(folder), max_length=32),
        train_dataset=Dataset.from_dict({"chosen": both[0], "rejected": both[1]}),
        processing_class=_tokenizer(base),
        peft_config=_lora(task_type="SEQ_CLS", modules_to_save=["score"]),
    )


@pytest.mark.parametrize("make", [_supervised, _preference, _reward])
def test_what_a_trainer_saves_is_loaded(make: Any, tiny_llama: Path, tmp_path: Path) -> None:
    """Logits are those of the model in the trainer; the newest checkpoint is a folder like it."""
    trainer = make(tiny_llama, tmp_path / "out")
    trainer.train()
    trainer.save_model()
    trained = trainer.model.eval()
    for folder in (tmp_path / "out", tmp_path / "out" / "checkpoint-2"):
        loaded = peftkit.load_adapter(folder)
        inputs = loaded.tokenizer("How was the film? Dull.", return_tensors="pt")
        with torch.no_grad():
            expected, found = trained(**inputs).logits, loaded.model(**inputs).logits
        assert torch.allclose(found, expected, atol=1e-6)
        with loaded.model.disable_adapter(), torch.no_grad():
            assert not torch.allclose(loaded.model(**inputs).logits, expected, atol=1e-3)
