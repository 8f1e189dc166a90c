"""Models from scratch: own tokenizers, the same in every process, and runs that reload, resume and serve as a base."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from application import Application
from transformers import AutoConfig, AutoModelForMaskedLM, AutoTokenizer

from peftkit.errors import CapabilityError, PeftkitError, RecipeError
from peftkit.predictor import load
from peftkit.recipe import Recipe, TokenizerSpec
from peftkit.training import RunOptions, check, resume, run
from peftkit.training.vocabulary import train_tokenizer

RunCut = Callable[[Recipe, Path, int], str]
QUIET = RunOptions(show_progress=False)
LINES = [
    "We loved the soup, and the staff was kind to everybody in the house.",
    "A dull mess of a film that nobody in the whole town had asked for.",
    "The music is lovely, and the plot of the film is not.",
    "The town lies by the sea, where nothing has happened for years.",
    "Funny, wise and kind: a film for every long evening of the year.",
    "Nothing in this town is as lovely as the evening light over the sea.",
]
TRAIN = [f"{line} {other}" for line in LINES for other in LINES]
BERT = {"type": "bert", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
GPT2 = {"type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}
T5 = {"type": "t5", "d_model": 32, "d_ff": 64, "d_kv": 16, "num_layers": 2, "num_heads": 2}
CASES = {
    "bert": (BERT, "wordpiece", "masked_lm", "The town [MASK] by the sea"),
    "gpt2": (GPT2, "bpe", "causal_lm", "The town lies by the sea"),
    "t5": (T5, "unigram", "span_corruption", "The town <extra_id_0> by the sea"),
    "roberta": (BERT | {"type": "roberta"}, "bpe", "masked_lm", "The town<mask> by the sea"),
}
TOKENIZE = """
import json, sys
from peftkit.recipe import TokenizerSpec
from peftkit.training.vocabulary import train_tokenizer
texts, made = json.loads(sys.argv[1]), {}
for kind in ("wordpiece", "bpe", "unigram"):
    trained = train_tokenizer(TokenizerSpec(type=kind, vocab_size=400), texts, writes_on=False, max_length=64)
    made[kind] = trained.backend_tokenizer.to_str()
print(json.dumps(made))
"""


def recipe(folder: Path, case: str = "bert", *, model: Any = None, **sections: Any) -> Recipe:
    architecture, tokenizer, task, _ = CASES[case]
    for split, texts in (("train", TRAIN), ("validation", [*LINES[:3], "café é"])):
        (folder / f"{split}.txt").write_text("\n".join(texts), "utf-8")
    values = {
        "name": "scratch",
        "model": {
            "architecture": architecture,
            "tokenizer": {"type": tokenizer, "vocab_size": 400},
            "max_length": 32,
            **(model or {}),
        },
        "task": task,
        "data": {"name": "files", "train": f"{folder}/train.txt", "validation": f"{folder}/validation.txt"},
        "method": "full",
        "training": {"max_steps": 12, "batch_size": 8, "learning_rate": 0.01, "evaluate_every": 6},
    }
    return Recipe.from_values(values | sections, origin="test")


@pytest.mark.training
@pytest.mark.parametrize("case", CASES)
def test_a_run_from_scratch_reloads_in_a_new_process(case: str, tmp_path: Path, application: Application) -> None:
    result = run(recipe(tmp_path, case), tmp_path / "run", options=QUIET)
    asked = CASES[case][3]
    assert application(tmp_path / "run", [asked]) == json.loads(json.dumps(load(tmp_path / "run")([asked])))
    assert result.model.artifact.locator == f"{case} from scratch"
    assert result.recipe["model"]["architecture"] == CASES[case][0]
    assert not (tmp_path / "run" / "base").exists()
    assert str(tmp_path / "run") not in (tmp_path / "run" / "model" / "config.json").read_text()
    config = AutoConfig.from_pretrained(tmp_path / "run" / "model")
    words = AutoTokenizer.from_pretrained(tmp_path / "run" / "model")
    assert config.vocab_size == len(words)
    assert config.pad_token_id == words.pad_token_id


@pytest.mark.training
def test_a_model_from_scratch_learns_and_is_the_base_of_another_recipe(tmp_path: Path) -> None:
    made = recipe(tmp_path, training={"max_steps": 60, "batch_size": 16, "learning_rate": 0.01, "score_before": True})
    split = run(made, tmp_path / "run", options=QUIET).splits["validation"]
    assert split.metrics["perplexity"] < 0.5 * split.before["perplexity"]
    rows = [{"text": line, "label": str("sea" in line)} for line in TRAIN]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    values = {
        "name": "next",
        "model": {"id": str(tmp_path / "run" / "model"), "max_length": 32},
        "task": "sequence_classification",
        "data": {"name": "files", "train": str(tmp_path / "rows.jsonl")},
        "method": "lora",
        "training": {"max_steps": 2},
    }
    later = run(Recipe.from_values(values, origin="test"), tmp_path / "later", options=QUIET)
    assert later.model.architecture == "BertForSequenceClassification"


@pytest.mark.training
def test_the_same_recipe_gives_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    def weights(name: str, **sections: Any) -> dict[str, str]:
        run(recipe(tmp_path, **sections), tmp_path / name, options=QUIET)
        files = sorted((tmp_path / name / "model").iterdir())
        return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}

    first, second, other = weights("first"), weights("second"), weights("other", seed=1)
    assert first == second
    assert {name for name in first if first[name] != other[name]} == {"model.safetensors"}


@pytest.mark.training
@pytest.mark.parametrize("step", [4, 7])
def test_an_interrupted_run_resumes_to_the_same_bytes(tmp_path: Path, run_cut: RunCut, step: int) -> None:
    made = recipe(tmp_path)
    whole = run(made, tmp_path / "whole", options=QUIET)
    run_cut(made, tmp_path / "cut", step)
    resumed = resume(tmp_path / "cut", options=QUIET)
    assert resumed.metrics == whole.metrics
    one, two = ((tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("whole", "cut"))
    assert one == two


def test_tokenizers_are_the_same_in_every_process() -> None:
    command = [sys.executable, "-c", TOKENIZE, json.dumps(TRAIN)]
    first, second = (subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(2))
    assert first == second
    made = json.loads(first)
    assert set(made) == {"wordpiece", "bpe", "unigram"}
    assert all(json.loads(words)["model"]["vocab"] for words in made.values())


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "unigram"])
def test_tokenizers_learn_the_words_of_their_texts(kind: str) -> None:
    words = train_tokenizer(TokenizerSpec(type=kind, vocab_size=600), TRAIN, writes_on=False, max_length=64)  # type: ignore[arg-type] # one of the three
    ids = words(LINES[0], add_special_tokens=False)["input_ids"]
    assert words.decode(ids).replace(" ", "") == LINES[0].replace(" ", "")
    assert len(words) <= 600
    assert len(ids) < 0.7 * len(LINES[0])
    assert words.model_max_length == 64
    assert words.pad_token is not None


def test_texts_of_models_that_write_on_are_left_open() -> None:
    spec = TokenizerSpec(type="bpe", vocab_size=400)
    for writes_on, ends in ((True, "a"), (False, "</s>")):
        words = train_tokenizer(spec, TRAIN, writes_on=writes_on, max_length=64)
        assert words.convert_ids_to_tokens(words("a")["input_ids"]) == ["<s>", "a", *([] if writes_on else [ends])]


def test_wordpiece_folds_case_only_where_asked() -> None:
    for lowercase in (True, False):
        spec = TokenizerSpec(type="wordpiece", vocab_size=600, lowercase=lowercase)
        words = train_tokenizer(spec, TRAIN, writes_on=False, max_length=64)
        assert (words("The")["input_ids"] == words("the")["input_ids"]) is lowercase


def test_the_tokenizer_learns_from_the_training_split_alone(tmp_path: Path) -> None:
    report = check(recipe(tmp_path))
    assert report.rows == {"train": 36, "validation": 4}
    words = train_tokenizer(TokenizerSpec(type="wordpiece", vocab_size=600), TRAIN, writes_on=False, max_length=64)
    run(recipe(tmp_path, training={"max_steps": 1}), tmp_path / "run", options=QUIET)
    own = AutoTokenizer.from_pretrained(tmp_path / "run" / "model")
    assert "é" not in own.get_vocab()
    assert set(own.get_vocab()) <= set(words.get_vocab())


def test_the_tokenizer_learns_the_language_that_is_translated_into(tmp_path: Path) -> None:
    pairs = [{"source": line, "target": [f"Ünß {line}", "Żó"]} for line in TRAIN]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    data = {"name": "files", "train": str(tmp_path / "pairs.jsonl")}
    run(
        recipe(tmp_path, "t5", task="translation", data=data, training={"max_steps": 1}),
        tmp_path / "run",
        options=QUIET,
    )
    own = AutoTokenizer.from_pretrained(tmp_path / "run" / "model")
    ids = own("Ünß Żó town")["input_ids"]
    assert own.unk_token_id not in ids
    assert own.decode(ids, skip_special_tokens=True) == "Ünß Żó town"
    assert not {"[", "'"} & set(own.get_vocab())  # of a list that was written out


def test_weights_are_random_from_the_seed_alone(tmp_path: Path) -> None:
    made = recipe(tmp_path, training={"max_steps": 1, "learning_rate": 1e-12, "weight_decay": 0})
    run(made, tmp_path / "run", options=QUIET)
    weights = AutoModelForMaskedLM.from_pretrained(tmp_path / "run" / "model").bert.encoder.layer[0].output.dense.weight
    assert weights.std().item() == pytest.approx(0.02, rel=0.1)  # BERT's initializer_range


BAD_MODELS: dict[str, tuple[dict[str, Any], type[PeftkitError], str]] = {
    "neither": ({"architecture": None, "tokenizer": None}, RecipeError, "give either id.* or architecture"),
    "both": ({"id": "a/b"}, RecipeError, "give either id.* or architecture"),
    "a tokenizer for a base": ({"id": "a/b", "architecture": None}, RecipeError, "brings its own tokenizer; remove"),
    "no tokenizer": ({"tokenizer": None}, RecipeError, "architecture needs a tokenizer, e.g."),
    "no type": ({"architecture": {"hidden_size": 8}}, RecipeError, "architecture needs a type: bert, roberta"),
    "adapters": ({"adapters": ["x"]}, RecipeError, "adapters are folded into a base that was trained"),
    "unknown type": ({"architecture": {"type": "brt"}}, RecipeError, r"architecture\.type: .*'brt'; did you mean"),
    "unknown key": (
        {"architecture": BERT | {"hiden_size": 8}},
        RecipeError,
        r"architecture\.hiden_size: bert has no such key; did you mean 'hidden_size'",
    ),
    "own vocabulary": ({"architecture": BERT | {"vocab_size": 8}}, RecipeError, r"set  model\.tokenizer\.vocab_size"),
    "a word for a number": ({"architecture": BERT | {"hidden_size": "big"}}, RecipeError, "hidden_size.*correct"),
    "heads that do not part it": ({"architecture": BERT | {"num_attention_heads": 3}}, RecipeError, "cannot be built"),
    "too long": (
        {"max_length": 513},
        RecipeError,
        "max_length is 513, and .* has positions for 512 .* or raise",
    ),
    "too few tokens": ({"tokenizer": {"type": "bpe", "vocab_size": 3}}, RecipeError, "vocab_size.*at least 300|300"),
    "unknown tokenizer": ({"tokenizer": {"type": "words"}}, RecipeError, "tokenizer"),
    "no such head": ({"architecture": GPT2}, CapabilityError, "'gpt2' has no head for task 'masked_lm'"),
    "no mask token": (
        {"tokenizer": {"type": "unigram", "vocab_size": 400}},
        PeftkitError,
        "has no mask token",
    ),
}


@pytest.mark.parametrize("case", BAD_MODELS)
def test_bad_models_are_refused(case: str, tmp_path: Path) -> None:
    model, error, message = BAD_MODELS[case]
    with pytest.raises(error, match=message):  # noqa: PT012 # most are refused when read
        made = recipe(tmp_path, model=model)
        run(made, tmp_path / "run", options=QUIET)


@pytest.mark.parametrize("method", ["lora", "head_only", "bitfit"])
def test_methods_that_keep_the_base_are_refused(method: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=f"method '{method}' adds to weights .* are random; use  method: full"):
        recipe(tmp_path, method=method)
