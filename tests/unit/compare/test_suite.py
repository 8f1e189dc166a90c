"""What a suite file plans, and how everything wrong with it is told before anything runs."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from peftkit.compare.suite import Plan, Suite, content_key, read_plan
from peftkit.errors import RecipeError

BASE = """\
description: the base
model: org/tiny
task: {name: sequence_classification, labels: [a, b]}
data: {name: files, train: train.csv}
method:
  name: lora
  rank: 4
training: {learning_rate: 0.01}
"""
SUITE = """\
recipe: base/lora.yaml
set:
  training.epochs: 1
  training.learning_rate: null
seeds: [3, 1]
variants:
  lora: {}
  wide: {method.rank: 16, training.learning_rate: 0.002}
  bitfit: {method: bitfit}
"""


@pytest.fixture(autouse=True)
def _base(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "lora.yaml").write_text(BASE)


def read(tmp_path: Path, text: str = SUITE, **options: object) -> Plan:
    (tmp_path / "s.yaml").write_text(text)
    return read_plan(tmp_path / "s.yaml", **options)  # type: ignore[arg-type] # of read_plan


def problems(tmp_path: Path, text: str, **options: object) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        read(tmp_path, text, **options)
    headline, *lines = str(caught.value).replace(f"{tmp_path}/", "").split("\n")
    assert headline == f"s.yaml has {'1 problem' if len(lines) == 1 else f'{len(lines)} problems'}:"
    return [line.strip() for line in lines]


def test_settings_of_suite_and_variants_are_laid_over_the_base_recipe(tmp_path: Path) -> None:
    plan = read(tmp_path)
    assert plan.suite.name == "s"
    assert list(plan.recipes) == ["lora", "wide", "bitfit"]
    recipes = plan.recipes
    assert [recipe.training.epochs for recipe in recipes.values()] == [1, 1, 1]
    assert [recipe.training.learning_rate for recipe in recipes.values()] == [None, 0.002, None]
    assert [recipe.method.spec().get("rank") for recipe in recipes.values()] == [4, 16, None]
    runs = plan.runs(tmp_path / "out")
    assert [(run.label, run.seed) for run in runs] == [
        ("lora", 3), ("wide", 3), ("bitfit", 3), ("lora", 1), ("wide", 1), ("bitfit", 1),
    ]  # fmt: skip
    assert [run.recipe.seed for run in runs] == [3, 3, 3, 1, 1, 1]
    assert runs[1].folder == tmp_path / "out" / "wide" / f"seed3-{content_key(runs[1].recipe)[:12]}"
    assert len({run.folder for run in runs}) == 6


def test_the_command_line_wins_over_suite_and_variants(tmp_path: Path) -> None:
    plan = read(tmp_path, settings=["training.learning_rate=0.5", "data.train=other.csv"], seeds=(7,))
    assert [recipe.training.learning_rate for recipe in plan.recipes.values()] == [0.5, 0.5, 0.5]
    assert {recipe.data.spec()["train"] for recipe in plan.recipes.values()} == {"other.csv"}
    assert [run.seed for run in plan.runs(tmp_path)] == [7, 7, 7]


def test_key_depends_on_what_a_recipe_does_and_on_nothing_else(tmp_path: Path) -> None:
    first = [run.folder.name for run in read(tmp_path).runs(tmp_path)]
    (tmp_path / "base" / "lora.yaml").write_text("# comment\nname: other\n" + BASE.replace("the base", "Other words"))
    reordered = SUITE.replace("  lora: {}\n", "") + "  renamed: {method: {rank: 4, name: lora}}\n"
    again = {(run.label, run.seed): run.folder.name for run in read(tmp_path, reordered).runs(tmp_path)}
    assert again["renamed", 3] == first[0]
    assert again["wide", 1] == first[4]
    (tmp_path / "base" / "lora.yaml").write_text(BASE.replace("train.csv", "more.csv"))
    assert not {*first} & {run.folder.name for run in read(tmp_path).runs(tmp_path)}


def test_every_problem_of_suite_and_variants_is_told_at_once_with_its_line(tmp_path: Path) -> None:
    text = (
        "recipe: base/lora.yaml\n"
        "sedes: [1]\n"
        "set: {training.epochs: 0}\n"
        "seeds: [1, 1]\n"
        "variants:\n"
        "  typo:\n"
        "    method: {name: lora, rnk: 3}\n"
        "    training.lr: 1\n"
        "  none: {method.rank: 0}\n"
        "  deep: {training.epochs.x: 3}\n"
    )
    assert problems(tmp_path, text) == [
        "sedes (line 2): unknown key; did you mean 'seeds'?",
        "seeds (line 4): a seed stands twice in [1, 1]; name each once",
        "variants.typo: method.rnk (line 7): unknown key; did you mean 'rank'?",
        "variants typo, none: training.epochs (line 3): must be more than 0, not 0",
        "variants.typo: training.lr (line 8): unknown key; did you mean 'learning_rate'?",
        "variants.none: method.rank (line 9): must be at least 1, not 0",
        "variants.deep: training.epochs.x (line 10): training.epochs is the value 0 and has no key 'x'",
    ]


def test_a_problem_of_the_base_is_told_once_with_its_own_line(tmp_path: Path) -> None:
    (tmp_path / "base" / "lora.yaml").write_text(BASE.replace("rank: 4", "rank: none"))
    (found,) = problems(tmp_path, SUITE.replace("  bitfit: {method: bitfit}\n", "").replace("method.rank: 16, ", ""))
    assert found == "every variant: method.rank (line 7 of base/lora.yaml): must be a whole number, not 'none'"
    assert problems(tmp_path, SUITE)[0].startswith("variants.lora: method.rank (line 7 of base/lora.yaml)")
    read(tmp_path, SUITE.replace("  lora: {}\n", ""))  # replaced by all others, it does no harm


BAD = {
    "no base": ("recipe: no.yaml\nvariants: {a: {}}\n", "recipe (line 1): there is no recipe file 'no.yaml'"),
    "repeated key": ("recipe: base/lora.yaml\nvariants: {a: {}, a: {}}\n", "variants.a (line 2): stands twice"),
    "no variants": ("recipe: base/lora.yaml\n", "variants: is required but absent (Settings of each variant"),
    "empty variants": ("recipe: base/lora.yaml\nvariants: {}\n", "variants (line 2): "),
    "variant as text": ("recipe: base/lora.yaml\nvariants: {a: full}\n", "variants.a (line 2): must be a mapping"),
    "label as path": ("recipe: base/lora.yaml\nvariants: {../up: {}}\n", "variants.../up (line 2): must be text that"),
    "label of dots": ("recipe: base/lora.yaml\nvariants: {..: {}}\n", "variants... (line 2): must be text that"),
    "label as number": ("recipe: base/lora.yaml\nvariants: {8: {}}\n", "variants.8 (line 2): must be text, not 8"),
    "seed in a variant": (
        "recipe: base/lora.yaml\nvariants: {a: {seed: 3}}\n",
        "variants.a: seed (line 2): the suite's  seeds  decide; remove it",
    ),
    "name for all": ("recipe: base/lora.yaml\nset: {name: x}\nvariants: {a: {}}\n", "name (line 2): a run is named"),
    "twins": (
        "recipe: base/lora.yaml\nvariants:\n  a: {}\n  b: {method.rank: 4}\n",
        "variants.b (line 4): the same recipe as variant 'a'; remove one of them",
    ),
    "unknown metric": (
        "recipe: base/lora.yaml\nmetric: acuracy\nset: {metrics: [accuracy, f1]}\nvariants: {a: {}}\n",
        "metric (line 2): 'acuracy' is not among those of 'a' (accuracy, f1); did you mean 'accuracy'?",
    ),
    "parts that do not fit": (
        "recipe: base/lora.yaml\nvariants:\n  a: {}\n  b: {method: full, quantization: nf4}\n",
        "variants.b: quantization (line 4): method 'full' trains the base weights, which nf4 stores as integers",
    ),
    "key with a blank": ("recipe: base/lora.yaml\nvariants: {a: {method rank: 3}}\n", "write it as  key.subkey"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_suites_are_told_in_words(tmp_path: Path, case: str) -> None:
    text, message = BAD[case]
    (found,) = problems(tmp_path, text)
    assert message in found


def test_a_setting_of_the_command_line_is_named_as_such(tmp_path: Path) -> None:
    text = "recipe: base/lora.yaml\nvariants: {a: {}, b: {method.rank: 2}}\n"
    (found,) = problems(tmp_path, text, settings=["training.epochs=many"])
    assert found == "every variant: training.epochs (--set): must be a number, not 'many'"
    (found,) = problems(tmp_path, text, settings=["seed=3"])
    assert found == "every variant: seed (--set): the suite's  seeds  decide; remove it"
    (found,) = problems(tmp_path, text, settings=["method=bitfit"])
    assert found.startswith("variants.b")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a suite is a mapping of keys to values (recipe: ..., variants: ...), but it is empty"),
        ("a: [", "not valid"),
    ],
)
def test_a_file_that_is_no_suite_says_so(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        read(tmp_path, text)
    assert message in str(caught.value)
    with pytest.raises(RecipeError, match="there is no suite file"):
        read_plan(tmp_path / "no.yaml")


def test_the_documented_suite_is_sound_and_shows_every_key(tmp_path: Path) -> None:
    page = (Path(__file__).parents[3] / "docs" / "compare.md").read_text("utf-8")
    (tmp_path / "lora.yaml").write_text(BASE)
    plan = read(tmp_path, page.partition("```yaml\n")[2].partition("```")[0])
    assert list(plan.recipes) == ["lora", "lora_rank32", "bitfit", "full"]
    assert [recipe.training.learning_rate for recipe in plan.recipes.values()] == [None, None, None, 1e-4]
    table = "".join(line for line in page.splitlines() if line.startswith("| `"))
    assert {key for key in Suite.model_fields if f"`{key}`" not in table} == set()


def test_the_committed_suite_is_sound_with_files_from_the_command_line() -> None:
    path = Path(__file__).parents[3] / "benchmarks" / "methods" / "sst2.yaml"
    command = " ".join(line.lstrip("# ") for line in path.read_text("utf-8").split("\n#\n")[1].splitlines())
    words = shlex.split(command)
    assert words[:3] == ["peftkit", "compare", "benchmarks/methods/sst2.yaml"]
    plan = read_plan(path, settings=words[4::2])
    assert plan.suite.seeds == (0, 1, 2)
    assert {recipe.data.spec()["train"] for recipe in plan.recipes.values()} == {"sst2/train.tsv"}
