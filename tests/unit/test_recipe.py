from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from pydantic import BaseModel, ValidationError

from peftkit.errors import RecipeError
from peftkit.recipe import KINDS, Recipe, json_schema
from peftkit.recipe_files import kind_of

SHIPPED = [path for path in sorted((Path(__file__).parents[2] / "recipes").rglob("*.yaml")) if kind_of(path) is Recipe]

GOOD = """\
model: org/tiny
task: sequence_classification
data: {name: files, train: train.csv}
method: lora
"""
FULL = """\
name: sst2
seed: 7
model: {id: org/tiny, max_length: 64}
task:
  name: sequence_classification
  labels: {0: negative, 1: positive}
data: {name: files, train: train.csv}
method: {name: lora, rank: 4}
loss: {name: cross_entropy}
training:
  learning_rate: 1e-4
  evaluate_every: 50
"""


def test_a_short_recipe_takes_every_default() -> None:
    recipe = Recipe.from_text(GOOD)
    assert recipe.model.id == "org/tiny"
    assert recipe.method.spec() == {
        "name": "lora",
        "rank": 8,
        "alpha": 16.0,
        "dropout": 0.0,
        "target_modules": "all-linear",
        "layers": None,
        "rank_pattern": {},
        "alpha_pattern": {},
        "rank_stabilized": False,
        "init": "default",
        "learning_rate_ratio": 1.0,
        "freeze_a": False,
    }
    assert (recipe.seed, recipe.loss, recipe.metrics, recipe.training.batch_size) == (0, None, (), 32)


def test_settings_win_over_the_file() -> None:
    recipe = Recipe.from_text(FULL, settings=["method.rank=16", "model=org/other", "metrics=[]"])
    assert recipe.method.spec()["rank"] == 16
    assert recipe.model.id == "org/other"


def test_yaml_1_1_reads_exponents_without_a_dot_as_text_and_still_they_count() -> None:
    assert yaml.safe_load("1e-4") == "1e-4"
    assert Recipe.from_text(FULL).training.learning_rate == 0.0001


def test_nothing_in_a_recipe_can_be_changed() -> None:
    recipe: Any = Recipe.from_text(FULL)
    for part, key in ((recipe, "seed"), (recipe.model, "id"), (recipe.training, "epochs"), (recipe.method, "rank")):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(part, key, 1)
    assert recipe == Recipe.from_text(FULL)


@pytest.mark.parametrize(
    ("file", "name"),
    [("sst2.yaml", "sst2"), ("my first recipe.yaml", "my-first-recipe"), ("-.yaml", "recipe"), ("ä.b.yml", "ä.b")],
)
def test_the_file_names_a_run_that_has_no_name(tmp_path: Path, file: str, name: str) -> None:
    (tmp_path / file).write_text(GOOD, "utf-8")
    recipe = Recipe.from_yaml(tmp_path / file)
    assert recipe.name == name
    assert Recipe.from_text(recipe.to_yaml()) == recipe


def test_a_name_in_the_file_wins_over_the_name_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "other.yaml").write_text(FULL)
    assert Recipe.from_yaml(tmp_path / "other.yaml").name == "sst2"


def test_plain_values_read_back_or_name_their_origin() -> None:
    recipe = Recipe.from_text(FULL)
    assert Recipe.from_values(recipe.resolved(), origin="run.json") == recipe
    with pytest.raises(RecipeError, match=r"run\.json has 1 problem:\n  seed: must be a whole number, not 'x'"):
        Recipe.from_values({**recipe.resolved(), "seed": "x"}, origin="run.json")


def awkward(annotation: dict[str, Any]) -> Any:
    """A legal value of a schema node that is unlike its default where that is easy to find."""
    if "enum" in annotation:
        return annotation["enum"][-1]
    if annotation.get("type") == "boolean":
        return True
    if annotation.get("type") == "integer":
        return max(annotation.get("minimum", 0), annotation.get("exclusiveMinimum", 0) + 1) + 2
    return None


def component_specs() -> list[tuple[str, dict[str, Any]]]:
    """Every component that can be built, with its defaults and again with other values where the schema has them."""
    found = []
    for kind, registry in KINDS.items():
        for name in registry.loaded_names():
            nodes = registry.get(name).model_json_schema().get("properties", {})
            changed = {key: value for key, node in nodes.items() if (value := awkward(node)) is not None}
            for options in ({}, changed):
                try:
                    registry.build({"name": name, **options})
                except ValidationError:
                    continue
                found.append((kind, {"name": name, **options}))
    return found


SPECS = component_specs()


@pytest.mark.parametrize(("kind", "spec"), SPECS, ids=[f"{kind}-{spec['name']}-{len(spec)}" for kind, spec in SPECS])
def test_a_resolved_recipe_reads_back_equal_with_every_component(kind: str, spec: dict[str, Any]) -> None:
    values = yaml.safe_load(FULL)
    lists = {"metric": "metrics", "regularizer": "regularizers", "augmentation": "augmentations"}
    values[lists.get(kind, kind)] = [spec] if kind in lists else spec
    if kind == "loss":
        task = {"binary_cross_entropy": "multi_label", "mean_squared_error": "regression"}.get(spec["name"])
        values["task"] = {"name": "sequence_classification", "problem_type": task or "single_label"}
        values["task"] = "extractive_qa" if spec["name"] == "own" else values["task"]
        values["regularizers"] = [] if spec["name"] == "own" else values.get("regularizers", [])
    if kind == "reward":
        kind, spec = "task", {"name": "grpo", "rewards": [spec]}
        values["task"] = spec
        values["training"] = {"batch_size": 8}
        values.pop("metrics", None), values.pop("reward", None)
    if kind == "task":  # the loss and the regularizers are for labels that are classes
        values |= {"loss": None, "regularizers": []}
    recipe = Recipe.from_values(values, origin="test")
    again = Recipe.from_text(recipe.to_yaml())
    assert again == recipe
    assert again.to_yaml() == recipe.to_yaml()
    assert again.sha256 == recipe.sha256
    json.dumps(recipe.resolved())


def test_every_kind_took_part_in_the_round_trip() -> None:
    assert {kind for kind, _ in SPECS} >= {"task", "method", "loss"}


def test_awkward_texts_survive_the_round_trip() -> None:
    values = yaml.safe_load(FULL)
    values["description"] = 'yes: [no] "1e5" \n\ttab #x ä 猫 \u2028 \x85'
    values["task"]["labels"] = {"no": "null", "1": "~", "": "2024-01-01"}
    values["training"]["learning_rate"] = 5e-324
    recipe = Recipe.from_values(values, origin="test")
    assert Recipe.from_text(recipe.to_yaml()) == recipe


def test_equal_recipes_have_equal_digests_however_they_are_written() -> None:
    longhand = "seed: 0\nmethod: {rank: 8, name: lora}\n" + GOOD.replace("method: lora\n", "")
    assert Recipe.from_text(longhand) == Recipe.from_text(GOOD)
    assert Recipe.from_text(longhand).sha256 == Recipe.from_text(GOOD).sha256


@pytest.mark.parametrize("setting", ["seed=1", "method.rank=9", "data.train=other.csv", "training.epochs=2", "name=x"])
def test_different_recipes_have_different_digests(setting: str) -> None:
    assert Recipe.from_text(GOOD, settings=[setting]).sha256 != Recipe.from_text(GOOD).sha256


def test_the_digest_is_the_same_in_another_process() -> None:
    code = f"from peftkit.recipe import Recipe; print(Recipe.from_text({FULL!r}).sha256)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == Recipe.from_text(FULL).sha256


def as_json(text: str) -> Any:
    """YAML as an editor sees it: keys are text, and 1e-4 is a number as in YAML 1.2."""
    as_in_1_2 = re.sub(r": (\d+)e(-\d+)$", r": \1.0e\2", text, flags=re.MULTILINE)
    return json.loads(json.dumps(yaml.safe_load(as_in_1_2)))


@pytest.fixture(scope="module")
def validator() -> Draft202012Validator:
    schema = json_schema()
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


@pytest.mark.parametrize(
    "text", [GOOD, FULL, GOOD + "metrics: ['hub:rouge']\n", *(path.read_text("utf-8") for path in SHIPPED)]
)
def test_the_schema_accepts_good_recipes(validator: Draft202012Validator, text: str) -> None:
    Recipe.from_text(text)
    validator.validate(as_json(text))
    validator.validate(json.loads(json.dumps(Recipe.from_text(text).resolved())))


@pytest.mark.parametrize(
    "text",
    [
        GOOD + "trianing: {}\n",
        GOOD + "training: {batch_sise: 1}\n",
        GOOD + "training: {batch_size: 0}\n",
        GOOD + "loss: {name: cross_entropy, wieght: 1}\n",
        GOOD.replace("lora", "loar"),
        GOOD.replace("lora", "{name: lora, rnak: 3}"),
        GOOD.replace("lora", "{name: lora, rank: 0}"),
        GOOD.replace("lora", "{rank: 3}"),
        GOOD.replace("model: org/tiny\n", ""),
        GOOD + "metrics: [accuracyy]\n",
    ],
)
def test_the_schema_rejects_what_the_recipe_rejects(validator: Draft202012Validator, text: str) -> None:
    with pytest.raises(RecipeError):
        Recipe.from_text(text)
    assert not validator.is_valid(as_json(text))


def test_the_schema_covers_every_component_with_every_option() -> None:
    definitions = json_schema()["$defs"]
    for registry in KINDS.values():
        for name in registry.loaded_names():
            properties = definitions[f"{registry.package}.{name}"]["properties"]
            assert set(properties) == {"name", *registry.get(name).model_fields}
            assert properties["name"] == {"const": name}


def test_every_reference_in_the_schema_leads_somewhere() -> None:
    schema = json_schema()
    waiting: list[Any] = [schema]
    references = set()
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            references |= {node["$ref"]} if "$ref" in node else set()
            assert "x-registry" not in node
        waiting += node.values() if isinstance(node, dict) else node if isinstance(node, list) else []
    assert references
    assert {f"#/$defs/{name}" for name in schema["$defs"]} >= references


def test_every_key_of_the_recipe_explains_itself() -> None:
    waiting: list[type[BaseModel]] = [Recipe]
    while waiting:
        for key, field in (section := waiting.pop()).model_fields.items():
            assert field.description, f"{section.__name__}.{key} has no docstring below it"
            if isinstance(field.annotation, type) and field.annotation.__module__ == Recipe.__module__:
                waiting.append(field.annotation)
