"""Augmentations in recipes and runs: which rows they add, what is told of them, and what they are refused for."""

from __future__ import annotations

import re
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from peftkit.augmentations import augmentations
from peftkit.data import ORIGIN, LoadedData
from peftkit.errors import RecipeError
from peftkit.recipe import Recipe
from peftkit.training import RunOptions, check, run
from peftkit.training.augmenting import augmented, most_rows

MakeRecipe = Callable[..., Recipe]
QUIET = RunOptions(show_progress=False)
SWAP = {"name": "eda", "edits": ["swap"]}


@pytest.fixture
def make_recipe(tiny_bert: Path, sentiment_files: dict[str, Path]) -> MakeRecipe:
    def make(*parts: Any, **values: Any) -> Recipe:
        return Recipe.from_values(
            {
                "name": "tiny",
                "model": {"id": str(tiny_bert), "max_length": 32},
                "task": "sequence_classification",
                "data": {"name": "files"} | {split: str(path) for split, path in sentiment_files.items()},
                "method": "lora",
                "augmentations": list(parts),
                "training": {"epochs": 1, "batch_size": 8, "learning_rate": 0.01},
                **values,
            },
            origin="test",
        )

    return make


@pytest.fixture
def loaded() -> LoadedData:
    features = Features(
        {
            "text": Value("large_string"),
            "label": ClassLabel(names=["no", "yes"]),
            "text_pair": Value("string"),
            "note": Value("int64"),
            ORIGIN: Value("string"),
        }
    )
    rows = {
        "text": ["one two three", "four", "five six"],
        "label": [0, 1, 1],
        "text_pair": ["a b", "c", "d"],
        "note": [7, 8, 9],
        ORIGIN: ["x.csv:2", "x.csv:3", "x.csv:4"],
    }
    split = Dataset.from_dict(rows, features=features)
    return LoadedData(DatasetDict({"train": split, "validation": split}), "test", notes=("before",))


def test_copies_stand_behind_the_rows_with_their_labels(make_recipe: MakeRecipe, loaded: LoadedData) -> None:
    recipe = make_recipe({**SWAP, "copies": 2}, SWAP)
    found = augmented(recipe, loaded, task=recipe.task)
    rows, before = found.splits["train"], loaded.splits["train"]
    assert rows.features == before.features
    assert rows[:3] == before[:3]
    copies = [rows[place] for place in range(3, len(rows))]
    assert [row["label"] for row in copies] == [0, 1] * 3  # of "four" beside "c" there is nothing to swap
    assert [row["note"] for row in copies] == [7, 9] * 3
    assert all(sorted(row["text"].split()) in (["one", "three", "two"], ["five", "six"]) for row in copies)
    assert all(row["text"] in ("five six", "six five") for row in copies[1::2])
    assert [row["text_pair"] for row in copies] == ["b a", "d"] * 3
    assert copies[0][ORIGIN] == "x.csv:2, eda"
    assert found.splits["validation"] is loaded.splits["validation"]
    assert found.notes == (
        "before",
        "eda added 4 rewritten rows to the 3 training rows; 2 copies came out as their row and were left out",
        "eda added 2 rewritten rows to the 3 training rows; 1 copies came out as their row and were left out",
    )
    assert most_rows(recipe, 3) == 12


def test_draws_differ_by_copy_place_and_seed(make_recipe: MakeRecipe, loaded: LoadedData) -> None:
    text = " ".join(f"w{place}" for place in range(50))
    rows = Dataset.from_dict({"text": [text], "label": [1]})
    one = LoadedData(DatasetDict({"train": rows}), "test")

    def texts(seed: int) -> list[str]:
        recipe = make_recipe({**SWAP, "copies": 2}, SWAP, seed=seed)
        return augmented(recipe, one, task=recipe.task).splits["train"]["text"][1:]

    assert len({*texts(0), *texts(1)}) == 6
    assert texts(0) == texts(0)


def test_a_recipe_without_augmentations_leaves_the_rows_alone(make_recipe: MakeRecipe, loaded: LoadedData) -> None:
    recipe = make_recipe()
    assert augmented(recipe, loaded, task=recipe.task) is loaded


@pytest.mark.training
def test_a_run_trains_on_the_copies_and_tells_of_them(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = make_recipe({"name": "eda", "copies": 2}, "masked_tokens")
    results = [run(recipe, tmp_path / name, options=QUIET) for name in ("one", "two")]
    data = results[0].data
    assert len(data.notes) == 2
    assert data.notes[0].startswith("eda added ")
    assert data.notes[1].startswith("masked_tokens added ")
    added = sum(int(note.split()[2]) for note in data.notes)
    assert data.rows == {"train": 48 + added, "validation": 16}
    assert results[0].cost.steps == -(-(48 + added) // 8)
    assert added > 120
    plain = run(make_recipe(), tmp_path / "plain", options=QUIET)
    assert data.fingerprint["validation"] == plain.data.fingerprint["validation"]
    assert data.fingerprint["train"] == results[1].data.fingerprint["train"] != plain.data.fingerprint["train"]
    assert results[0].metrics == results[1].metrics
    assert Recipe.from_yaml(tmp_path / "one" / "recipe.yaml").augmentations == recipe.augmentations


def test_a_check_makes_no_copies(make_recipe: MakeRecipe) -> None:
    report = check(make_recipe({"name": "masked_tokens", "model": "nowhere/at-all"}), options=QUIET)
    assert report.rows == {"train": 48, "validation": 16}


@pytest.mark.parametrize("task", ["token_classification", "extractive_qa", "causal_lm", "translation"])
def test_tasks_whose_labels_depend_on_the_words_are_refused(make_recipe: MakeRecipe, task: str) -> None:
    with pytest.raises(
        RecipeError,
        match=f"augmentations: 'eda' puts texts in other words, and the answers of task '{task}' depend on the words",
    ):
        make_recipe("eda", task=task)


def test_every_augmentation_names_its_paper() -> None:
    assert {"eda", "masked_tokens", "back_translation"} <= set(augmentations.names())
    assert all(augmentations.get(name).paper for name in augmentations.names())


def _blocks(language: str) -> list[str]:
    page = Path(__file__).parents[3] / "docs" / "augmentations.md"
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)


def test_the_examples_of_the_page_work(
    make_recipe: MakeRecipe, loaded: LoadedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (example,) = _blocks("yaml")
    assert [part.name for part in make_recipe(*yaml.safe_load(example)["augmentations"]).augmentations] == [
        "eda",
        "masked_tokens",
    ]
    monkeypatch.setattr(augmentations, "_classes", dict(augmentations._classes))
    (file,) = _blocks("python")
    (tmp_path / "shout.py").write_text(file, "utf-8")
    runpy.run_path(str(tmp_path / "shout.py"))
    recipe = make_recipe("shout")
    rows = augmented(recipe, loaded, task=recipe.task).splits["train"]
    assert [row["text"].lower() for row in rows.select(range(3, 6))] == loaded.splits["train"]["text"]
    assert rows[4]["text"] == "FOUR"
