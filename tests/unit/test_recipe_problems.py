from __future__ import annotations

from typing import Any

import pytest

from peftkit.errors import RecipeError
from peftkit.recipe import Recipe

GOOD = """\
model: org/tiny
task: sequence_classification
data: {name: files, train: train.csv}
method: lora
"""


def problems(text: str, **options: Any) -> list[str]:
    """The lines of the error that `text` gives, without the headline."""
    with pytest.raises(RecipeError) as caught:
        Recipe.from_text(text, origin="r.yaml", **options)
    headline, *lines = str(caught.value).split("\n")
    count = "1 problem" if len(lines) == 1 else f"{len(lines)} problems"
    assert headline == f"r.yaml has {count}:"
    return [line.removeprefix("  ") for line in lines]


def test_every_problem_is_told_at_once_in_the_order_of_the_file() -> None:
    text = (
        "modle: org/tiny\n"
        "task: {name: sequence_classification, problem_type: multi}\n"
        "data: {name: files, train: t.csv, sample: 3}\n"
        "method:\n  name: loar\n"
        "training:\n  batch_size: many\n  lr: 1\n"
    )
    found = problems(text)
    starts = [line.partition(": ")[0] for line in found]
    assert starts == [
        "model",
        "modle (line 1)",
        "task.problem_type (line 2)",
        "data.sample (line 3)",
        "method (line 4)",
        "training.batch_size (line 7)",
        "training.lr (line 8)",
    ]
    assert found[0] == "model: is required but absent (The base model: its id, or a mapping.)"
    assert "did you mean 'model'?" in found[1]


BAD = {
    "misspelt key": ("trianing: {}\n", "trianing (line 5): unknown key; did you mean 'training'?"),
    "key of another part": ("learning_rate: 1.0e-4\n", "unknown key; did you mean 'training.learning_rate'?"),
    "component option outside": ("rank: 4\n", "rank (line 5): unknown key; did you mean 'method.rank'?"),
    "initials": ("training: {lr: 1}\n", "training.lr (line 5): unknown key; did you mean 'learning_rate'?"),
    "key of another library": ("training: {num_train_epochs: 1}\n", "unknown key; did you mean 'epochs'?"),
    "key unlike any": ("zzz: 1\n", "zzz (line 5): unknown key (known here: name, description, seed, model, "),
    "key that is no text": ("7: 1\n", "7 (line 5): unknown key (known here: name, "),
    "text for a number": ("training: {batch_size: many}\n", "batch_size (line 5): must be a whole number, not 'many'"),
    "fraction": ("seed: 1.5\n", "seed (line 5): must be a whole number, not 1.5"),
    "too small": ("training: {batch_size: 0}\n", "training.batch_size (line 5): must be at least 1, not 0"),
    "not above": ("training: {epochs: 0}\n", "training.epochs (line 5): must be more than 0, not 0"),
    "too large": ("seed: 4294967296\n", "seed (line 5): must be less than 4294967296, not 4294967296"),
    "infinite": ("training: {learning_rate: .inf}\n", "learning_rate (line 5): must be a finite number, not inf"),
    "literal": (
        "training: {precision: bf32}\n",
        "training.precision (line 5): must be 'auto', 'fp32', 'bf16' or 'fp16', not 'bf32'; did you mean 'fp32'?",
    ),
    "literal or number": (
        "training: {evaluate_every: often}\n",
        "training.evaluate_every (line 5): must be 'epoch' or a whole number, not 'often'",
    ),
    "empty section": ("training:\n", "training (line 5): must be a mapping of keys, but it is empty"),
    "section as text": ("training: fast\n", "training (line 5): must be a mapping of keys, not 'fast'"),
    "name as number": ("name: 2024\n", 'name (line 5): must be text, not 2024; put it in quotes: "2024"'),
    "name as path": ("name: ../up\n", r"name (line 5): must be text that matches ^\w[\w.-]*$, not '../up'"),
    "name as flag": ("name: no\n", "not False; YAML reads yes, no, on and off as true and false: put the word in"),
    "list as text": ("metrics: accuracy\n", "must be a list, not 'accuracy'; write it as a list: [accuracy]"),
    "unknown loss": (
        "loss: cross_entrpy\n",
        "loss (line 5): unknown loss 'cross_entrpy'; did you mean 'cross_entropy'?",
    ),
    "loss without name": ("loss: {weight: 1}\n", "loss (line 5): a loss needs a name: write  {name: ..., option: ...}"),
    "number as component": (
        "loss: 5\n",
        "loss (line 5): must be a loss, by its name or as a mapping with 'name', not 5",
    ),
    "repeated key": ("seed: 1\nseed: 2\n", "seed (line 6): stands twice, first on line 5; keep one"),
    "best metric": (
        "training: {best_metric: acuracy}\n",
        "training.best_metric (line 5): 'acuracy' is not among the metrics (accuracy, f1_macro, "
        "matthews_correlation); did you mean 'accuracy'?",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_key_or_value_says_where_what_and_what_was_meant(case: str) -> None:
    addition, message = BAD[case]
    found = problems(GOOD + addition)
    assert len(found) == 1
    assert message in found[0]


NESTED_SOURCES = "\n  name: first_available\n  sources:\n  - hubb\n  - {name: hub, id: 5}"

BAD_PARTS = {
    "absent parts": (
        "model: m\n",
        [
            "task: is required but absent; name a task: ",
            "data: is required but absent; name a data source: ",
            "method: is required but absent; name a tuning method: ",
        ],
    ),
    "model without id": (
        GOOD.replace("org/tiny", "{max_length: 5}"),
        ["model (line 1): give either id, the base to start from, or architecture, to start from random"],
    ),
    "empty model": (GOOD.replace("org/tiny", ""), ["model (line 1): must be a mapping of keys, but it is empty"]),
    "empty model id": (
        GOOD.replace("org/tiny", "{id: ''}"),
        ["model.id (line 1): must be text of at least 1 character(s), not ''"],
    ),
    "method by capitals": (
        GOOD.replace("lora", "LoRA"),
        ["method (line 4): unknown tuning method 'LoRA'; did you mean 'lora'?"],
    ),
    "option of a component": (
        GOOD.replace("lora", "{name: lora, rank: 0, lora_alpha: 2}"),
        [
            "method.rank (line 4): must be at least 1, not 0",
            "method.lora_alpha (line 4): unknown key; did you mean 'alpha'?",
        ],
    ),
    "item of a list": (
        GOOD.replace("lora", "{name: lora, target_modules: [query, 3]}"),
        ['method.target_modules.1 (line 4): must be text, not 3; put it in quotes: "3"'],
    ),
    "choice of types": (
        GOOD.replace("lora", "{name: lora, target_modules: 5}"),
        ["method.target_modules (line 4): must be 'attention', 'mlp', 'all-linear' or a list, not 5"],
    ),
    "empty choice of types": (
        GOOD + "training:\n  evaluate_every:\n",
        ["training.evaluate_every (line 6): must be 'epoch' or a whole number, but it is empty"],
    ),
    "short form of what needs options": (
        GOOD.replace("{name: files, train: train.csv}", "wheel"),
        ["data.requirement (line 3): is required but absent ("],
    ),
    "short form in a list": (
        GOOD + "metrics:\n- accuracy\n- hub\n",
        ["metrics.1.metric (line 7): is required but absent (Its name there"],
    ),
    "shorthand of a wrong value": (
        GOOD + "metrics: ['hub:a/b']\n",
        ["metrics.0 (line 5): must be text that matches ^[A-Za-z0-9_-]+$, not 'a/b'"],
    ),
    "shorthand of what has none": (
        GOOD + "metrics: ['accuracy:x']\n",
        ["metrics.0 (line 5): the metric 'accuracy' takes nothing after a colon, but 'accuracy:x' gives 'x'; write  {"],
    ),
    "component inside a component": (
        GOOD.replace("{name: files, train: train.csv}", NESTED_SOURCES),
        [
            "data.sources.0 (line 6): unknown data source 'hubb'; did you mean 'hub'?",
            'data.sources.1.id (line 7): must be text, not 5; put it in quotes: "5"',
        ],
    ),
}


@pytest.mark.parametrize("case", BAD_PARTS)
def test_a_bad_part_names_its_key_and_line(case: str) -> None:
    text, messages = BAD_PARTS[case]
    found = problems(text)
    assert len(found) == len(messages), found
    for message in messages:
        assert any(line.startswith(message) for line in found), found


def test_one_key_gives_one_line_whatever_the_number_of_branches() -> None:
    found = problems(GOOD.replace("lora", "{name: lora, target_modules: 5, rank: x}"))
    assert len(found) == 2


@pytest.mark.parametrize(
    ("metrics", "best"),
    [("[accuracy, f1_macro]", "f1_macro"), ("[{name: f1, average: micro}]", "f1_micro"), ("['hub:rouge']", "rouge")],
)
def test_the_best_metric_is_named_by_its_score(metrics: str, best: str) -> None:
    recipe = Recipe.from_text(GOOD + f"metrics: {metrics}\ntraining: {{best_metric: {best}}}\n")
    assert recipe.training.best_metric == best
    (line,) = problems(GOOD + f"metrics: {metrics}\ntraining: {{best_metric: pearson}}\n")
    assert "training.best_metric (line 6): 'pearson' is not among the metrics (" in line
    assert best in line


def test_repeated_keys_and_other_problems_are_told_together() -> None:
    found = problems(GOOD + "seed: 1\nseed: 2\nnam: x\n")
    assert [line.partition(":")[0] for line in found] == ["seed (line 6)", "nam (line 7)"]


def test_long_values_are_cut_in_messages() -> None:
    (line,) = problems(GOOD + f"seed: {'x' * 5000}\n")
    assert len(line) < 150
    assert line.endswith("xxx...")


def test_a_problem_made_by_a_setting_says_so() -> None:
    found = problems(GOOD + "training:\n  batch_size: 4\n", settings=["training.batch_size=x", "method.rnk=2"])
    assert found[0].startswith("method.rnk (--set): unknown key; did you mean 'rank'?")
    assert found[1] == "training.batch_size (--set): must be a whole number, not 'x'"
