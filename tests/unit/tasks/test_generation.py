"""Prompts and completions: encoding, loss and generation, against transformers and by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, DatasetDict
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer, GenerationConfig

from peftkit.errors import CapabilityError, DataError, PeftkitError, RecipeError
from peftkit.losses import losses
from peftkit.outputs import read_batch
from peftkit.predictor import load
from peftkit.recipe import Recipe
from peftkit.tasks import ROW, Encoded, Task, tasks
from peftkit.tasks.generation import PromptTask, fitted, last_stretch, objects
from peftkit.training import RunOptions, run

Checkpoint = Callable[[str], Path]
ROWS = Dataset.from_dict(
    {"prompt": ["the soup was", "we loved every minute of"], "completion": ["cold and dull", "it"]}
)


def suited(checkpoint: Checkpoint, model: str, **options: Any) -> Task:
    task = tasks.build({"name": "text_generation", "max_new_tokens": 5, **options})
    return task.suited(AutoConfig.from_pretrained(checkpoint(model)))


def encoded(task: Task, folder: Path, rows: Dataset = ROWS, max_length: int = 32) -> Encoded:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return Encoded(rows, task.encode(rows, tokenizer, max_length), tokenizer)


@pytest.mark.parametrize("model", ["gpt2", "llama", "t5"])
def test_loss_is_that_of_transformers(checkpoint: Checkpoint, model: str) -> None:
    task = suited(checkpoint, model)
    given = encoded(task, checkpoint(model))
    kind = AutoModelForSeq2SeqLM if model == "t5" else AutoModelForCausalLM
    base = kind.from_pretrained(checkpoint(model)).eval()
    batch = task.collator(given.tokenizer)(given.features.to_list())
    with torch.no_grad():
        wanted = base(**{name: batch[name] for name in ("input_ids", "attention_mask", "labels")}).loss
        output = task.forward(base, batch)
        found = task.loss(output, batch, criterion=losses.build("cross_entropy"), items=task.items(batch))
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)
    # the same from what is read for perplexity
    likelihood = torch.tensor([entry.likelihood for entry in task.read(base, batch, output, generate=False)])
    assert likelihood[:, 0].sum() / likelihood[:, 1].sum() == pytest.approx(wanted.item(), abs=1e-5)
    assert likelihood[:, 1].sum() == task.items(batch)


def test_only_completion_and_end_are_learnt(checkpoint: Checkpoint) -> None:
    task = suited(checkpoint, "gpt2")
    given = encoded(task, checkpoint("gpt2"))
    for row, feature in zip(ROWS, given.features, strict=True):
        learnt = [label for label in feature["labels"] if label != -100]
        assert learnt[-1] == given.tokenizer.eos_token_id
        assert given.tokenizer.decode(learnt[:-1]) == row["completion"]
        assert feature["input_ids"][-len(learnt) :] == learnt
        assert given.tokenizer.decode(feature["input_ids"][: -len(learnt)]).strip() == row["prompt"]
        assert task.items({"labels": torch.tensor([feature["labels"]])}) == len(learnt)


@pytest.mark.parametrize(
    ("prompt", "completion", "room", "wanted"),
    [
        ([1, 2, 3], [4, 5], 5, ([1, 2, 3], [4, 5])),
        ([1, 2, 3, 4, 5, 6], [7, 8], 5, ([4, 5, 6], [7, 8])),
        ([1, 2, 3, 4], [5, 6, 7, 8, 9, 10, 11, 12, 13], 8, ([3, 4], [5, 6, 7, 8, 9, 10])),
        ([], [5, 6, 7], 2, ([], [5, 6])),
    ],
)
def test_a_prompt_gives_way_before_its_completion(
    prompt: list[int], completion: list[int], room: int, wanted: tuple[list[int], list[int]]
) -> None:
    assert fitted(prompt, completion, room) == wanted


def test_last_stretch_of_labels() -> None:
    assert last_stretch([-100, 5, 6, -100, -100, 7, 8]) == 5
    assert last_stretch([-100, 5, 6, -100]) == 1
    assert last_stretch([3]) == 0
    assert last_stretch([-100, -100]) == 2


@pytest.mark.parametrize("model", ["gpt2", "llama", "t5"])
@pytest.mark.parametrize("beams", [1, 3])
def test_generated_text_is_that_of_transformers_alone(checkpoint: Checkpoint, model: str, beams: int) -> None:
    """Each prompt by itself and without padding, where ours are padded together."""
    task = suited(checkpoint, model, num_beams=beams)
    given = encoded(task, checkpoint(model))
    kind = AutoModelForSeq2SeqLM if model == "t5" else AutoModelForCausalLM
    base = kind.from_pretrained(checkpoint(model)).eval()
    base.generation_config.pad_token_id = given.tokenizer.pad_token_id
    base.generation_config.eos_token_id = given.tokenizer.eos_token_id
    batch = task.collator(given.tokenizer)(given.features.to_list())
    found = task.texts(read_batch(base, batch, task=task), given.tokenizer)
    for text, row in zip(found, ROWS, strict=True):
        ids = given.tokenizer(row["prompt"], return_tensors="pt")["input_ids"]
        if model == "llama" and ids[0, -1] == given.tokenizer.eos_token_id:
            ids = ids[:, :-1]
        alone = base.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, num_beams=beams, do_sample=False
        )
        new = alone[0] if model == "t5" else alone[0, ids.shape[1] :]
        assert text == given.tokenizer.decode(new, skip_special_tokens=True).strip()


@pytest.mark.training
@pytest.mark.parametrize("model", ["gpt2", "t5"])
def test_what_was_learnt_is_said_and_ends(checkpoint: Checkpoint, tmp_path: Path, model: str) -> None:
    lines = ["prompt,completion", "the soup was,cold", "the film was,long and dull", "we loved,every minute of it"]
    (tmp_path / "train.csv").write_text("\n".join([lines[0], *lines[1:] * 4]) + "\n")
    (tmp_path / "validation.csv").write_text("\n".join(lines) + "\n")
    recipe = Recipe.from_values(
        {
            "model": {"id": str(checkpoint(model)), "max_length": 32},
            "task": {"name": "text_generation", "max_new_tokens": 24},
            "data": {"name": "files"} | {split: f"{tmp_path}/{split}.csv" for split in ("train", "validation")},
            "method": "full",
            "metrics": ["perplexity", "rouge", {"name": "exact_answer", "whole": True}],
            "training": {
                "epochs": 40,
                "batch_size": 4,
                "learning_rate": 0.01,
                "evaluate_every": 60,
                "score_before": True,
            },
        },
        origin="test",
    )
    result = run(recipe, tmp_path / "run", options=RunOptions(show_progress=False))
    scored = result.splits["validation"]
    assert scored.metrics["perplexity"] < 1.1 < scored.before["perplexity"]
    assert scored.metrics["exact_answer"] == 1.0
    answers = load(tmp_path / "run")(["the film was", "we loved"])
    assert answers == [{"text": "long and dull"}, {"text": "every minute of it"}]
    # nothing is generated while it trains, as perplexity chooses the checkpoint
    assert not any("validation_rouge_l" in point.values for point in result.history)
    assert any("validation_perplexity" in point.values for point in result.history)


@pytest.mark.training
def test_other_programs_generate_the_same_and_stop(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """The lines of docs/tasks/text_generation.md, without peftkit."""
    (tmp_path / "train.jsonl").write_text('{"prompt": "the film was", "completion": "long and dull"}\n' * 4)
    recipe = Recipe.from_values(
        {
            "model": {"id": str(checkpoint("gpt2")), "max_length": 16},
            "task": {"name": "text_generation", "max_new_tokens": 12},
            "data": {"name": "files", "train": f"{tmp_path}/train.jsonl"},
            "method": {"name": "lora", "rank": 16, "alpha": 64},
            "training": {"max_steps": 60, "batch_size": 4, "learning_rate": 0.02},
        },
        origin="test",
    )
    run(recipe, tmp_path / "run", options=RunOptions(show_progress=False))
    adapter = tmp_path / "run" / "adapter"
    tokenizer = AutoTokenizer.from_pretrained(adapter)
    settings = GenerationConfig.from_pretrained(adapter, max_new_tokens=12, do_sample=False)
    assert settings.eos_token_id == tokenizer.eos_token_id
    assert settings.pad_token_id == tokenizer.pad_token_id
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(checkpoint("gpt2")), adapter).eval()
    prompt = tokenizer("the film was", return_tensors="pt")
    new = model.generate(**prompt, generation_config=settings)[0, prompt["input_ids"].shape[1] :]
    assert new[-1] == tokenizer.eos_token_id  # it stops by itself, before 12 tokens are full
    assert len(new) < 12
    text = tokenizer.decode(new, skip_special_tokens=True).strip()
    assert [{"text": text}] == load(tmp_path / "run")(["the film was"]) == [{"text": "long and dull"}]


def test_answers_are_cut_at_stop_texts(checkpoint: Checkpoint) -> None:
    from peftkit.tasks.generation import Generated

    task = suited(checkpoint, "gpt2", stop=["\n", "Q:"])
    tokenizer = AutoTokenizer.from_pretrained(checkpoint("gpt2"))
    said = [Generated((0, 0, 0), tokenizer(text)["input_ids"]) for text in ("one\ntwo", "three Q: four", "five")]
    assert task.texts(said, tokenizer) == ["one", "three", "five"]


def test_several_right_texts_count_but_the_first_is_learnt(checkpoint: Checkpoint) -> None:
    task = suited(checkpoint, "gpt2")
    rows = Dataset.from_dict({"prompt": ["a"], "completion": [["cold", "dull"]]})
    given = encoded(task, checkpoint("gpt2"), rows)
    assert task.references(given).tolist() == [["cold", "dull"]]
    learnt = [label for label in given.features[0]["labels"] if label != -100][:-1]
    assert given.tokenizer.decode(learnt) == "cold"


def test_documents_in_sentences_are_joined() -> None:
    task = tasks.build({"name": "summarization", "template": "Sum up: {document}"})
    assert isinstance(task, PromptTask)
    assert (
        task.prompt(["It rained.", "All day."]) == task.prompt("It rained. All day.") == "Sum up: It rained. All day."
    )


@pytest.mark.parametrize("cell", ["", "  ", None, 5, [], ["x", ""], [None]])
def test_cells_that_are_no_completion(cell: Any) -> None:
    task = tasks.build("text_generation")
    assert "no text to learn from" in str(task.label_problem(cell))
    assert task.label_problem("x") is None
    assert task.label_problem(["x", "y"]) is None


@pytest.mark.parametrize("value", [5, None, ["a"], {"text": "a"}, {"prompt": 3}])
def test_inputs_of_other_shapes_are_refused(value: Any) -> None:
    with pytest.raises(DataError, match=r"input 1 is .*; give a string, or a mapping with 'prompt'"):
        tasks.build("text_generation").rows(["fine", value])


@pytest.mark.parametrize(
    ("spec", "kind", "message"),
    [
        ({"template": "Q:"}, DataError, "'Q:' has no place for the prompt; write {prompt} where it goes"),
        ({"architecture": "encoder_decoder"}, CapabilityError, r"base model \(gpt2\) is of the kind 'decoder'"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    checkpoint: Checkpoint, spec: Any, kind: type[PeftkitError], message: str
) -> None:
    with pytest.raises(kind, match=message):
        suited(checkpoint, "gpt2", **spec).resolved(DatasetDict(train=ROWS))


def test_rows_without_completions_are_told_of() -> None:
    with pytest.raises(DataError, match=r"split 'train' has no column 'summary' \(it has: document, text\); map it"):
        tasks.build("summarization").resolved(DatasetDict(train=Dataset.from_dict({"document": ["a"], "text": ["b"]})))


def test_metric_of_classes_is_refused_before_training(checkpoint: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"prompt": "a", "completion": "b"}\n' * 4)
    values = {
        "model": {"id": str(checkpoint("gpt2")), "max_length": 16},
        "task": "text_generation",
        "data": {"name": "files", "train": f"{tmp_path}/train.jsonl"},
        "method": "lora",
        "metrics": ["accuracy"],
    }
    with pytest.raises(DataError, match="'accuracy' needs predictions as one number per row"):
        run(Recipe.from_values(values, origin="test"), tmp_path / "run", options=RunOptions(show_progress=False))
    with pytest.raises(RecipeError, match="'mean_squared_error' works with numbers"):
        Recipe.from_values(values | {"loss": "mean_squared_error"}, origin="test")


def test_rows_are_numbered(checkpoint: Checkpoint) -> None:
    given = encoded(suited(checkpoint, "t5"), checkpoint("t5"))
    assert given.features[ROW] == [0, 1]
    assert objects(["a", ["b"]]).tolist() == ["a", ["b"]]
