from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from peftkit.cli.entry import main
from peftkit.recipe import KINDS

COMPONENTS = [(kind, name) for kind, registry in KINDS.items() for name in registry.loaded_names()]


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(list(arguments)) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


def test_list_names_every_component_with_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(capsys, "list").splitlines()
    for kind, name in COMPONENTS:
        (sentence,) = [line.split(None, 1)[1] for line in block(lines, kind) if line.split()[0] == name]
        assert len(sentence) > 10


def block(lines: list[str], kind: str) -> list[str]:
    """The lines of one kind, between its heading and the empty line."""
    start = next(number for number, line in enumerate(lines) if line.startswith(f"{kind}:"))
    return lines[start + 1 : lines.index("", start)]


@pytest.mark.parametrize("word", ["method", "methods"])
def test_list_of_one_kind_takes_singular_and_plural(capsys: pytest.CaptureFixture[str], word: str) -> None:
    text = shown(capsys, "list", word)
    assert text.startswith("method:  (tuning method)\n  ")
    assert "sequence_classification" not in text
    assert "Options of one:  peftkit show method " in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["list", "methd"],
            "error: unknown kind 'methd'; did you mean 'method'? (known: task, data, method, loss, metric",
        ),
        (["show", "method", "loraa"], "error: unknown tuning method 'loraa'; did you mean 'lora'? (known: "),
        (["show", "method"], "error: which tuning method? one of: "),
        (["show", "training", "lora"], "error: training is a part of the recipe and takes no name; see  peftkit show"),
        (["show", "trainning"], "error: unknown kind 'trainning'; did you mean 'training'?"),
    ],
)
def test_unknown_names_are_met_with_suggestions(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(arguments) == 2
    assert capsys.readouterr().err.startswith(message)


def test_show_gives_type_default_and_meaning(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, "show", "method", "lora")
    assert "\n  rank: whole number, at least 1; default 8\n      Rows of A and columns of B.\n" in text
    assert "\n  target_modules: attention | mlp | all-linear | list of text; default all-linear\n" in text
    assert "\n  dropout: number, at least 0, less than 1; default 0.0\n" in text


@pytest.mark.parametrize(("kind", "name"), COMPONENTS)
def test_show_explains_every_option_and_ends_in_a_line_for_the_recipe(
    capsys: pytest.CaptureFixture[str], kind: str, name: str
) -> None:
    text = shown(capsys, "show", kind, name)
    cls = KINDS[kind].get(name)
    for key, field in cls.model_fields.items():
        assert f"\n  {key}: " in text
        assert " ".join((field.description or "").split()) in text
    example = text.rstrip().splitlines()[-1].strip()
    ((key, value),) = yaml.safe_load(example).items()
    if kind == "metric":
        (value,) = value
    assert key == {"metric": "metrics"}.get(kind, kind)
    assert (value if isinstance(value, str) else value["name"]) == name
    # "..." stands for what only the user can know; everything else in the line has to be right.
    assert "..." in example or problem_kinds(kind, value) <= {"value_error"}


def problem_kinds(kind: str, value: Any) -> set[str]:
    try:
        KINDS[kind].build(value)
    except ValidationError as problem:
        return {error["type"] for error in problem.errors()}
    return set()


def test_show_explains_the_parts_of_a_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert "\n  task: task (name or mapping); required\n      What is learnt.\n" in shown(capsys, "show", "recipe")
    assert "\n  batch_size: whole number, at least 1; default 32\n" in shown(capsys, "show", "training")
    assert "\n  id: text, length at least 1; required\n" in shown(capsys, "show", "model")


def test_schema_prints_json_that_names_every_component(capsys: pytest.CaptureFixture[str]) -> None:
    schema = json.loads(shown(capsys, "schema"))
    assert {f"{KINDS[kind].package}.{name}" for kind, name in COMPONENTS} <= schema["$defs"].keys()


PLUGIN = """\
from peftkit.metrics import Metric, metrics
from pydantic import Field


@metrics.register("shouting")
class Shouting(Metric):
    '''Share of upper-case letters in the predictions.'''

    weight: float = Field(1.0, gt=0)
    '''How loud.'''

    def compute(self, predictions, references):
        return {"shouting": 0.0}
"""


def in_a_process(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """A registered component stays for the life of a process, so these run in one of their own."""
    command = [sys.executable, "-m", "peftkit", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def test_a_plugin_file_appears_in_list_show_and_schema(tmp_path: Path) -> None:
    (tmp_path / "loud.py").write_text(PLUGIN)
    options = {"cwd": tmp_path}
    listed = in_a_process("list", "metric", "--plugin", "loud.py", **options)
    assert "\n  shouting  " in f"\n{listed.stdout}"
    assert "Share of upper-case letters in the predictions." in listed.stdout
    assert listed.stderr == ""
    explained = in_a_process("show", "metric", "shouting", "--plugin", "loud.py", **options).stdout
    assert "  weight: number, more than 0; default 1.0\n      How loud.\n" in explained
    schema = json.loads(in_a_process("schema", "--plugin", "loud.py", **options).stdout)
    assert "weight" in schema["$defs"]["peftkit.metrics.shouting"]["properties"]
    assert "unknown metric 'shouting'" in in_a_process("show", "metric", "shouting", **options).stderr


def test_an_installed_plugin_is_listed_with_its_package_but_not_imported(tmp_path: Path) -> None:
    info = tmp_path / "shoutlib-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: shoutlib\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[peftkit.metrics]\nshouting = shoutlib:Shouting\n")
    (tmp_path / "shoutlib.py").write_text("raise SystemExit('imported')\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    listed = in_a_process("list", "metric", env=environment)
    assert listed.returncode == 0
    assert "shouting" in listed.stdout
    assert "(plugin of the package shoutlib, loaded when a recipe names it)" in listed.stdout
    schema = json.loads(in_a_process("schema", env=environment).stdout)
    assert {"properties": {"name": {"enum": ["shouting"]}}, "required": ["name"], "type": "object"} in schema["$defs"][
        "peftkit.metrics"
    ]["anyOf"]


def test_lines_wrap_on_a_terminal_and_only_there() -> None:
    leader, follower = pty.openpty()
    environment = {**os.environ, "COLUMNS": "60"}
    command = [sys.executable, "-m", "peftkit", "show", "method", "lora"]
    subprocess.run(command, stdout=follower, env=environment, check=True)
    os.close(follower)
    on_terminal = os.read(leader, 20_000).decode().replace("\r\n", "\n")
    os.close(leader)
    in_pipe = in_a_process("show", "method", "lora", env=environment).stdout
    assert max(map(len, on_terminal.splitlines())) <= 60
    assert max(map(len, in_pipe.splitlines())) > 60
    assert on_terminal.split() == in_pipe.split()
