from __future__ import annotations

import json
import os
import pty
import re
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


def test_list_of_methods_tells_share_use_and_paper_in_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    lines = block(shown(capsys, "list", "methods").splitlines(), "method")
    assert lines[0].split() == ["trains", "use", "it", "when"]
    rows = {line.split()[0]: line for line in lines[1:]}
    assert sorted(rows) == KINDS["method"].names()
    assert re.fullmatch(r"  full +100 %  memory and storage .*; Devlin et al\. 2018, arXiv:1810\.04805", rows["full"])
    assert re.fullmatch(r"  trainable_tokens +new words .*", rows["trainable_tokens"])  # nothing is trained by default
    uses = {line.index(KINDS["method"].get(name).use_when) for name, line in rows.items()}
    assert len(uses) == 1, "the columns are not aligned"
    assert max(len(line.split("%")[0]) for line in rows.values() if "%" in line) < min(uses)


@pytest.mark.parametrize("columns", [80, 120])
def test_list_of_methods_fits_the_terminal(columns: int) -> None:
    lines = on_terminal("list", "methods", columns=columns).splitlines()
    assert max(map(len, lines)) <= columns
    (lora,) = [number for number, line in enumerate(lines) if line.startswith("  lora ")]
    paper = next(line for line in lines[lora:] if "arXiv" in line)
    assert paper.strip() == "Hu et al. 2021, arXiv:2106.09685"
    assert paper.index("Hu") == lines[lora].index("the first thing")


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        (
            "lora",
            (
                "use when                the first thing to try, on any model and any precision",
                "paper                   Hu et al. 2021, arXiv:2106.09685",
                "trains                  1.5 % of all-MiniLM-L6-v2 with a head for two classes: 338,",
                "learning rate           0.001 unless the recipe sets one",
                "base weights            4, 8, 16 or 32 bits",
                "saves                   an adapter",
                "merging                 into the base, outputs unchanged",
                "GPT-2                   works",
                "gradient checkpointing  works",
            ),
        ),
        (
            "full",
            (
                "base weights            32 bits",
                "saves                   a whole model",
                "merging                 not needed",
            ),
        ),
        ("loha", ("GPT-2                   refused: its layers store weights transposed",)),
        (
            "prefix",
            (
                "merging                 not possible",
                "gradient checkpointing  refused: it would change the gradients",
            ),
        ),
        ("adalora", ("result                  the weights of the last step",)),
        ("stack", ("merging                 depends on its options", "saves                   depends on its options")),
    ],
)
def test_show_method_tells_facts_in_words(
    capsys: pytest.CaptureFixture[str], name: str, facts: tuple[str, ...]
) -> None:
    text = shown(capsys, "show", "method", name)
    for fact in facts:
        assert f"\n  {fact}" in text
    assert ("\n  trains  " in text) == (name != "stack")
    assert ("\n  result  " in text) == (name == "adalora")


def test_facts_stay_with_methods(capsys: pytest.CaptureFixture[str]) -> None:
    assert "base weights  " not in shown(capsys, "show", "metric", "accuracy")


def test_methods_are_listed_without_torch() -> None:
    code = "import sys; from peftkit.cli.entry import main; main(['list', 'methods']); main(['show', 'method', 'lora'])"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; sys.exit('torch' in sys.modules)"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
    assert "arXiv:2106.09685" in done.stdout


METHOD = """\
from peftkit.methods import TuningMethod, methods


@methods.register("moonshot")
class Moonshot(TuningMethod):
    '''Tunes what nobody dared to.'''

    use_when = "nothing else flies"
    default_learning_rate = 0.5
    base_bits = frozenset({16, 32})
    task_types = frozenset({"SEQ_CLS"})
"""


def test_method_of_a_plugin_has_no_share(tmp_path: Path) -> None:
    (tmp_path / "moon.py").write_text(METHOD)
    listed = in_a_process("list", "methods", "--plugin", "moon.py", cwd=tmp_path)
    (line,) = [line for line in listed.stdout.splitlines() if "moonshot" in line]
    assert line.split(None, 1) == ["moonshot", "nothing else flies"]
    explained = in_a_process("show", "method", "moonshot", "--plugin", "moon.py", cwd=tmp_path).stdout
    assert "\n  base weights            16 or 32 bits\n" in explained
    assert "\n  tasks                   SEQ_CLS\n" in explained
    assert "  trains  " not in explained
    assert "  paper  " not in explained


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["list", "methd"],
            "error: unknown kind 'methd'; did you mean 'method'? (known: task, data, method, quantization, loss,",
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
    lists = {"metric": "metrics", "regularizer": "regularizers", "augmentation": "augmentations"}
    if kind == "reward":
        key, value = kind, value["rewards"]
    if kind in (*lists, "reward"):
        (value,) = value
    assert key == lists.get(kind, kind)
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
    assert "\n  id: text, length at least 1; default none\n" in shown(capsys, "show", "model")


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


def on_terminal(*arguments: str, columns: int) -> str:
    """What a command prints on a terminal of that width."""
    leader, follower = pty.openpty()
    environment = {**os.environ, "COLUMNS": str(columns)}
    running = subprocess.Popen([sys.executable, "-m", "peftkit", *arguments], stdout=follower, env=environment)
    os.close(follower)
    parts = []
    while part := _read(leader):
        parts.append(part)
    os.close(leader)
    assert running.wait() == 0
    return b"".join(parts).decode().replace("\r\n", "\n")


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # Linux says that the other end is closed with EIO, macOS with an empty read
        return b""


def test_lines_wrap_on_a_terminal_and_only_there() -> None:
    wrapped = on_terminal("show", "method", "lora", columns=60)
    in_pipe = in_a_process("show", "method", "lora").stdout
    assert max(map(len, wrapped.splitlines())) <= 60
    assert max(map(len, in_pipe.splitlines())) > 60
    assert wrapped.split() == in_pipe.split()
