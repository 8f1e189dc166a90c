"""The shipped recipes: each is valid and documented; those that need no hub train for real."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from peftkit.artifacts import Artifact
from peftkit.predictor import load
from peftkit.recipe import Recipe
from peftkit.recipe_files import read_recipe
from peftkit.results import ArtifactRecord
from peftkit.training import RunOptions, run

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
EXPECTED = {
    "bbh_multiple_choice",
    "distill_sst2_3_layers",
    "dpo_lora",
    "e2e_lora",
    "emotion_multiclass_lora",
    "grpo_lora",
    "gsm8k_instruct_lora",
    "imdb_lora",
    "local_csv",
    "multi30k_scratch",
    "multitask_lora",
    "python_docs_clm",
    "reward_model_lora",
    "rte_lora",
    "scitldr_lora",
    "scratch_bert",
    "scratch_gpt",
    "shakespeare_clm",
    "shakespeare_mlm",
    "simcse_stsb",
    "squad_lora",
    "sst2_adalora",
    "sst2_bitfit",
    "sst2_bottleneck",
    "sst2_full",
    "sst2_ia3",
    "sst2_int8",
    "sst2_lora",
    "sst2_prefix",
    "sst2_qlora_nf4",
    "stsb_lora",
    "tweets_in_stages",
    "wnut17_crf_lora",
    "wnut17_lora",
    "xquad_lora",
}


def test_all_recipes_are_here() -> None:
    assert {path.stem for path in RECIPES} == EXPECTED


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_is_valid_and_its_header_tells_command_cost_and_score(path: Path) -> None:
    assert read_recipe(path).name == path.stem
    header = path.read_text("utf-8").partition("description:")[0]
    assert f"peftkit run recipes/{path.name}" in header
    assert re.search(r"\d+(\.\d+)? (minutes?|seconds)", header), "the header must say how long it takes"
    score = r"\d+\.\d+ ± \d+\.\d+|[Nn]ot measured"
    assert re.search(score, header), "the header must say the expected score and its spread, or that there is none yet"


@pytest.mark.training
def test_squad_recipe_reads_a_copy_of_the_hub_repository(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files as the hub has them, of few rows, the answers of which are marked by up to three people."""
    folder = tmp_path / "squad"
    (folder / "plain_text").mkdir(parents=True)
    for split, articles in (("train", 40), ("validation", 4)):
        rows = [
            _question(article, asked, people=1 if split == "train" else 3)
            for article in range(articles)
            for asked in "ab"
        ]
        Dataset.from_list(rows).to_parquet(folder / "plain_text" / f"{split}-00000-of-00001.parquet")
    monkeypatch.setattr(
        "peftkit.artifacts.locate_dataset",
        lambda locator, **_: Artifact(folder, ArtifactRecord(locator=locator, origin="hub")),
    )
    settings = (f"model.id={tiny_bert}", "model.max_length=32", "task.stride=8", "training.max_steps=2")
    few = ("data.splits={train: 'train#80', test: 'validation#8'}",)
    recipe = Recipe.from_yaml(ROOT / "recipes" / "squad_lora.yaml", settings=(*settings, *few))
    result = run(recipe, tmp_path / "run", options=RunOptions(show_progress=False))
    assert result.data.rows["test"] == 8
    assert result.data.rows["train"] + result.data.rows["validation"] == 80
    assert result.model.artifact.origin == "local"
    assert 0 <= result.metrics["test"]["exact_match"] <= result.metrics["test"]["squad_f1"] <= 1


def _question(article: int, asked: str, *, people: int) -> dict[str, Any]:
    context = f"Anna Berg wrote number {article} in Oslo. The staff was kind, and we loved the long film."
    answers = {"text": ["Anna Berg", "Anna", "Berg"][:people], "answer_start": [0, 0, 5][:people]}
    row = {"id": f"{article}{asked}", "title": f"Article {article}", "context": context}
    return row | {"question": f"Who wrote number {article}{asked}?", "answers": answers}


@pytest.mark.recipes
@pytest.mark.parametrize("name", ["local_csv", "sst2_lora", "imdb_lora"])
def test_recipe_trains_for_real(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixty steps lift each recipe that runs without the hub well above chance."""
    monkeypatch.chdir(ROOT)
    recipe = Recipe.from_yaml(ROOT / "recipes" / f"{name}.yaml", settings=("training.max_steps=60",))
    result = run(recipe, tmp_path / name, options=RunOptions(show_progress=False))
    floor = 0.6 if name == "local_csv" else 0.7  # chance: a third, a half
    assert result.metrics["validation"]["accuracy"] > floor
    assert result.model.artifact.origin in ("hub", "mirror")
    assert (tmp_path / name / "report.html").stat().st_size > 10_000
    answer = load(tmp_path / name)("I was charged twice" if name == "local_csv" else "a joyous film")[0]
    assert answer["label"] in (recipe.task.labels or ("billing", "sales", "technical"))  # type: ignore[attr-defined] # of this task
