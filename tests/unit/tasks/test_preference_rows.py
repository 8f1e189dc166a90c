"""Rows of preferences: the forms that are read, what becomes of them, and what is wrong with the others."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from contracts.task_cases.instruction_tuning import TEMPLATE
from datasets import Dataset, DatasetDict
from transformers import AutoTokenizer

from peftkit.errors import CapabilityError, DataError, PeftkitError, RecipeError
from peftkit.predictor import load
from peftkit.recipe import Recipe
from peftkit.tasks import Engine, tasks
from peftkit.tasks.dpo import DirectPreference
from peftkit.tasks.exchanges import exchange_of
from peftkit.training import RunOptions, check, run

PAIR = {"prompt": "how was it?", "chosen": " good", "rejected": " bad"}
USER = {"role": "user", "content": "how was it?"}
GOOD = {"role": "assistant", "content": "good"}
BAD = {"role": "assistant", "content": "bad"}
SYSTEM = {"role": "system", "content": "be brief"}
SHAREGPT = {
    "prompt": [{"from": "system", "value": "be brief"}, {"from": "human", "value": "how was it?"}],
    "chosen": {"from": "gpt", "value": "good"},
    "rejected": {"from": "gpt", "value": "bad"},
}
BOTH = ("chosen", "rejected")
QUIET = RunOptions(show_progress=False)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [SYSTEM, USER], "chosen": [GOOD], "rejected": [BAD]},
        {"prompt": [SYSTEM, USER], "chosen": GOOD, "rejected": BAD},
        {"prompt": [SYSTEM, USER], "chosen": "good", "rejected": "bad"},
        {"chosen": [SYSTEM, USER, GOOD], "rejected": [SYSTEM, USER, BAD]},
        {"prompt": "how was it?", "system": "be brief", "chosen": [GOOD], "rejected": [BAD]},
        SHAREGPT,
    ],
    ids=["turns", "single turns", "texts after turns", "no prompt", "system beside", "sharegpt"],
)
def test_forms_of_conversations_are_one(row: Mapping[str, Any]) -> None:
    found = exchange_of(row, BOTH, form="chat")
    assert found.prompt == [SYSTEM, USER]
    assert found.answers == ("good", "bad")


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt", "answers"),
    [
        ("Human: hi Assistant: hello", "Human: hi Assistant: hey", "Human: hi Assistant:", (" hello", " hey")),
        ("Q: a b", "Q: a bc", "Q: a", (" b", " bc")),
        ("one\ntwo", "one\nthree", "one", ("\ntwo", "\nthree")),
    ],
)
def test_prompt_is_what_texts_begin_with(chosen: str, rejected: str, prompt: str, answers: tuple[str, str]) -> None:
    found = exchange_of({"chosen": chosen, "rejected": rejected}, BOTH, form="text")
    assert (found.prompt, found.answers) == (prompt, answers)


def encoded(task: Mapping[str, Any], row: Mapping[str, Any], folder: Path, length: int = 60) -> tuple[Any, Any]:
    """The feature of a row, and the tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = Dataset.from_list([dict(row)])
    resolved = tasks.build(task).resolved(DatasetDict(train=rows))
    return resolved.encode(rows, tokenizer, length)[0], tokenizer


def test_texts_follow_each_other_and_end(tiny_llama: Path) -> None:
    feature, tokenizer = encoded({"name": "dpo"}, PAIR, tiny_llama)
    assert tokenizer.decode(feature["input_ids"]) == "<|begin_of_text|>how was it? good<|end_of_text|>"
    assert tokenizer.decode(feature["rejected_ids"]) == "<|begin_of_text|>how was it? bad<|end_of_text|>"
    learnt = [token for token in feature["labels"] if token != -100]
    assert tokenizer.decode(learnt) == " good<|end_of_text|>"


def test_turns_stand_in_the_template_once(tiny_llama: Path) -> None:
    feature, tokenizer = encoded({"name": "dpo", "chat_template": TEMPLATE}, SHAREGPT, tiny_llama)
    end = "<|end_of_text|>"
    assert tokenizer.decode(feature["input_ids"]) == (
        f"<system> be brief{end}\n<user> how was it?{end}\n<assistant> good{end}"
    )
    assert tokenizer.decode([token for token in feature["rejected_labels"] if token != -100]) == f"bad{end}"


def test_both_answers_follow_the_same_shortened_prompt(tiny_llama: Path) -> None:
    row = {"prompt": "a " * 30, "chosen": " b", "rejected": " c" * 9}
    feature, tokenizer = encoded({"name": "dpo"}, row, tiny_llama, length=20)
    worse = [token for token in feature["rejected_labels"] if token != -100]
    prompt = len(feature["rejected_ids"]) - len(worse)
    assert len(feature["rejected_ids"]) == 20
    assert feature["input_ids"][:prompt] == feature["rejected_ids"][:prompt]
    assert tokenizer.decode(worse) == " c" * 9 + "<|end_of_text|>"


TURNS = {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}
KTO = {"prompt": "how was it?", "completion": " good", "label": True}
LENGTH = {"name": "grpo", "rewards": [{"name": "length", "words": 3}], "group_size": 2}
EXACT = {"name": "grpo", "rewards": ["exact_answer"], "group_size": 2}
CHAT = {"name": "dpo", "chat_template": TEMPLATE}

BAD_ROWS: dict[str, tuple[Any, list[dict[str, Any]], str]] = {
    "no rejected": (
        "dpo",
        [{"prompt": "a", "chosen": "b"}],
        "'train' has no column 'rejected' (it has: prompt, chosen)",
    ),
    "same answers": ("dpo", [PAIR, {**PAIR, "rejected": " good"}], ":2): chosen and rejected are the same"),
    "empty answer": ("dpo", [PAIR, {**PAIR, "chosen": "  "}], "no visible text in column 'chosen'"),
    "empty prompt": ("dpo", [PAIR, {**PAIR, "prompt": ""}], "no visible text in column 'prompt'"),
    "nothing in common": ("dpo", [{"chosen": "a b", "rejected": "c d"}], "the answers have no beginning in common"),
    "no shared turns": (CHAT, [{"chosen": [USER, GOOD], "rejected": [SYSTEM, USER, BAD]}], "have no turns in common"),
    "answer of the user": (CHAT, [TURNS, {**TURNS, "chosen": [USER]}], "one turn of the assistant, not of user"),
    "two turns": (CHAT, [{**TURNS, "chosen": [GOOD, USER, GOOD]}], "not of assistant, user, assistant"),
    "answered prompt": (CHAT, [{**TURNS, "prompt": [USER, GOOD]}], "the prompt: the last turn is of the assistant"),
    "unknown role": (CHAT, [{**TURNS, "prompt": [{"role": "bard", "content": "x"}]}], "has the role 'bard'"),
    "empty turn": (CHAT, [{**TURNS, "rejected": [{**BAD, "content": " "}]}], "rejected holds no answer"),
    "no template": ("dpo", [TURNS], "the tokenizer has no chat template"),
    "label": ("kto", [{**KTO, "label": 1}, {**KTO, "label": 2}], ":2): 2 is neither true nor false"),
    "label text": ("kto", [{**KTO, "label": "yes"}, {**KTO, "label": "false"}], "'yes' is neither true nor false"),
    "one kind": ("kto", [KTO, {**KTO, "prompt": "b"}], "every label of split 'train' is True"),
    "no label": ("kto", [{"prompt": "a", "completion": "b"}], "no column 'label'"),
    "no answer": (EXACT, [{"prompt": "a"}], "no column 'answer', which the reward 'exact_answer' compares with"),
    "empty right answer": (EXACT, [{"prompt": "a", "answer": "1"}, {"prompt": "b", "answer": " "}], "answer is empty"),
    "no prompt": (LENGTH, [{"question": "a"}], "'train' has no column 'prompt' (it has: question)"),
}


def recipe_of(task: Any, rows: list[dict[str, Any]], model: Path, folder: Path, **parts: Any) -> Recipe:
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    values = {
        "model": {"id": str(model), "max_length": 40},
        "task": task,
        "data": {"name": "files", "train": f"{folder}/train.jsonl"},
        "method": "lora",
        "training": {"batch_size": 4, "epochs": 1},
    }
    return Recipe.from_values(values | parts, origin="test")


@pytest.mark.parametrize("name", BAD_ROWS)
def test_bad_rows_are_told(tiny_llama: Path, tmp_path: Path, name: str) -> None:
    task, rows, message = BAD_ROWS[name]
    with pytest.raises(PeftkitError) as found:
        run(recipe_of(task, rows, tiny_llama, tmp_path), tmp_path / "run", options=QUIET)
    assert message in str(found.value)


BAD_TASKS: dict[str, tuple[Any, Mapping[str, Any], str]] = {
    "loss": ({"name": "dpo", "loss_type": "sigmoids"}, {}, "task.loss_type"),
    "beta": ({"name": "dpo", "beta": 0}, {}, "task.beta"),
    "smoothing": ({"name": "dpo", "label_smoothing": 0.1}, {}, "label_smoothing has no effect on loss_type 'sigmoid'"),
    "exo": ({"name": "dpo", "loss_type": "exo_pair"}, {}, "needs label_smoothing above 0"),
    "other loss": ("dpo", {"loss": "focal"}, "'focal' works with"),
    "r_drop": ("dpo", {"regularizers": ["r_drop"]}, "'r_drop' works with"),
    "fgm": (LENGTH, {"regularizers": ["fgm"]}, "'fgm' works with"),
    "one row": ("kto", {"training": {"batch_size": 1}}, "estimates a divergence from the rows of a micro-batch"),
    "broken group": ({**LENGTH, "group_size": 3}, {}, "a step has 4 answers"),
    "by length": (LENGTH, {"training": {"batch_size": 4, "batching": "group_by_length"}}, "training.batching"),
    "no rewards": ({"name": "grpo", "rewards": []}, {}, "task.rewards"),
    "unknown reward": ({"name": "grpo", "rewards": ["lenght"]}, {}, "did you mean 'length'?"),
    "pattern": ({"name": "grpo", "rewards": [{"name": "regex", "pattern": "("}]}, {}, "is no regular expression"),
    "groups": ({"name": "grpo", "rewards": [{"name": "exact_answer", "pattern": "a"}]}, {}, "has 0 groups"),
}


@pytest.mark.parametrize("name", BAD_TASKS)
def test_bad_recipes_are_told(tiny_llama: Path, tmp_path: Path, name: str) -> None:
    task, parts, message = BAD_TASKS[name]
    with pytest.raises(RecipeError) as found:
        recipe_of(task, [PAIR], tiny_llama, tmp_path, **parts)
    assert message in str(found.value)


def test_accuracy_has_nothing_to_compare(tiny_llama: Path, tmp_path: Path) -> None:
    recipe = recipe_of("dpo", [PAIR] * 4, tiny_llama, tmp_path, metrics=["accuracy"])
    with pytest.raises(DataError, match="compares answers with each other; score it by reward_accuracy, reward_margin"):
        run(recipe, tmp_path / "run", options=QUIET)


def test_win_rate_of_a_reward_model_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    recipe = recipe_of("reward_model", [PAIR] * 4, tiny_llama, tmp_path, metrics=["win_rate"])
    with pytest.raises(DataError, match="'win_rate' needs a base model that can be compared with"):
        run(recipe, tmp_path / "run", options=QUIET)


def test_mean_reward_of_pairs_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    recipe = recipe_of("dpo", [PAIR] * 4, tiny_llama, tmp_path, metrics=["mean_reward"])
    with pytest.raises(RecipeError, match="'mean_reward' needs rewards of answers"):
        run(recipe, tmp_path / "run", options=QUIET)


def test_encoder_decoder_is_refused(tiny_t5: Path, tmp_path: Path) -> None:
    with pytest.raises(CapabilityError, match="dpo is for decoders, and the base model"):
        check(recipe_of("dpo", [PAIR], tiny_t5, tmp_path))


def test_what_trl_refuses_is_told(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = Engine("DPOTrainer", "DPOConfig", {"f_divergence_type": "js_divergence", "loss_type": ["apo_zero"]})
    monkeypatch.setattr(DirectPreference, "engine", odd)
    with pytest.raises(CapabilityError, match=r"TRL's DPOTrainer refuses this recipe: `f_divergence_type="):
        run(recipe_of("dpo", [PAIR] * 4, tiny_llama, tmp_path), tmp_path / "run", options=QUIET)


def test_fewer_prompts_than_a_step_needs(tiny_llama: Path, tmp_path: Path) -> None:
    recipe = recipe_of(LENGTH, [{"prompt": "a"}], tiny_llama, tmp_path)
    with pytest.raises(RecipeError, match=r"training.batch_size: a step takes 2 prompts, .* the training split has 1"):
        run(recipe, tmp_path / "run", options=QUIET)


def test_extra_is_named_where_trl_is_absent(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "trl" else found(name))
    with pytest.raises(CapabilityError, match=r"task 'dpo' trains with TRL.*pip install 'peftkit\[preference\]'"):
        check(recipe_of("dpo", [PAIR], tiny_llama, tmp_path))


@pytest.mark.training
def test_application_asks_in_the_form_of_the_rows(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    run(recipe_of("dpo", [PAIR] * 4, checkpoint("llama"), tmp_path), tmp_path / "text", options=QUIET)
    run(recipe_of("reward_model", [PAIR] * 4, checkpoint("llama"), tmp_path), tmp_path / "reward", options=QUIET)
    text, reward = load(tmp_path / "text"), load(tmp_path / "reward")
    assert text(["how was it?"]) == text([{"prompt": "how was it?"}])
    with pytest.raises(DataError, match=r"input 1: .* is no text, which the model was tuned on; give a string"):
        text(["a", [USER]])
    pair = ("how was it?", " good")
    assert reward([pair]) == reward([{"prompt": pair[0], "completion": pair[1]}])
    assert isinstance(reward([pair])[0]["reward"], float)
    with pytest.raises(DataError, match="input 0: 'alone' is no answer with its prompt"):
        reward(["alone"])


@pytest.mark.training
@pytest.mark.parametrize("task", ["dpo", "reward_model", {**CHAT, "name": "reward_model"}], ids=str)
def test_merged_model_answers_as_before(checkpoint: Callable[[str], Path], tmp_path: Path, task: Any) -> None:
    rows = [PAIR] * 4 if isinstance(task, str) else [TURNS] * 4
    run(recipe_of(task, rows, checkpoint("llama"), tmp_path), tmp_path / "run", options=QUIET)
    merged = load(tmp_path / "run", merge=True)
    assert merged.merge_difference == pytest.approx(0, abs=1e-4)
