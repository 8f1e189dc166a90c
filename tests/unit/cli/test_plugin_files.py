from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from peftkit.cli.plugin_files import load_plugin_files
from peftkit.errors import RecipeError
from peftkit.recipe import KINDS

METRIC = """\
from __future__ import annotations

from peftkit.metrics import Metric, metrics


@metrics.register("{name}")
class Mine(Metric):
    '''A metric of my own.'''

    weight: float | None = None
    '''Read through an annotation that is text, so the module has to be findable.'''
"""


@pytest.fixture(autouse=True)
def _forget_plugins() -> Iterator[None]:
    """A registry keeps what it was given for the life of the process; other tests must not see it."""
    registry = KINDS["metric"]
    before, modules = set(registry.loaded_names()), set(sys.modules)
    yield
    for name in set(registry.loaded_names()) - before:
        del registry._classes[name]
    for name in set(sys.modules) - modules:
        del sys.modules[name]


def test_what_a_file_registers_can_be_built(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.py").write_text(METRIC.format(name="mine"))
    load_plugin_files([tmp_path / "mine.py"])
    assert KINDS["metric"].build({"name": "mine", "weight": 2}).spec() == {"name": "mine", "weight": 2.0}
    assert capsys.readouterr().err == ""


def test_two_files_of_one_name_do_not_replace_each_other(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.py").write_text(METRIC.format(name=f"mine_{folder}"))
    load_plugin_files([tmp_path / "a" / "mine.py", tmp_path / "b" / "mine.py"])
    first, second = (KINDS["metric"].get(f"mine_{folder}") for folder in ("a", "b"))
    assert first is not second
    assert (first.name, second.name) == ("mine_a", "mine_b")


def test_two_files_that_want_one_name_are_refused(tmp_path: Path) -> None:
    for file in ("a.py", "b.py"):
        (tmp_path / file).write_text(METRIC.format(name="mine"))
    with pytest.raises(RecipeError, match=r"b\.py:6: ValueError: metric 'mine' is registered twice: by .*Mine and by"):
        load_plugin_files([tmp_path / "a.py", tmp_path / "b.py"])


def test_a_module_name_such_as_bottleneck_hides_no_library(tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text(METRIC.format(name="mine"))
    load_plugin_files([tmp_path / "json.py"])
    import json

    assert json.loads("[1]") == [1]


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("x = 1\n\ny = 1 / 0\n", r"--plugin .*mine\.py:3: ZeroDivisionError: division by zero"),
        ("x = (\n", r"mine\.py:1: SyntaxError: '\(' was never closed"),
        ("import nothing_like_this\n", r"mine\.py:1: ModuleNotFoundError: No module named 'nothing_like_this'"),
        ("import sys\nsys.exit('bye')\n", r"mine\.py:2: SystemExit: bye"),
        ("import json\n\n\njson.loads('{')\n", r"mine\.py:4: JSONDecodeError: "),
        ("def f():\n    raise KeyError('k')\n\n\nf()\n", r"mine\.py:2: KeyError: 'k'"),
    ],
)
def test_a_failing_file_is_one_message_with_its_line(tmp_path: Path, code: str, message: str) -> None:
    path = tmp_path / "mine.py"
    path.write_text(code)
    for _ in range(2):
        with pytest.raises(RecipeError, match=message) as caught:
            load_plugin_files([path])
        assert "\n" not in str(caught.value)


def test_a_file_that_is_missing_or_no_python_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"--plugin .*none\.py: there is no such file"):
        load_plugin_files([tmp_path / "none.py"])
    with pytest.raises(RecipeError, match="there is no such file"):
        load_plugin_files([tmp_path])
    (tmp_path / "bytes.py").write_bytes(b"\xff\x00")
    with pytest.raises(RecipeError, match=r"bytes\.py.*: \w*Error: "):
        load_plugin_files([tmp_path / "bytes.py"])


def test_a_file_that_registers_nothing_is_pointed_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.py").write_text("x = 1\n")
    load_plugin_files([tmp_path / "mine.py"])
    assert "mine.py registered no component; decorate a class" in capsys.readouterr().err
