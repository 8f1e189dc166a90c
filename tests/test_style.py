"""The rules of the style guide that ruff and mypy do not know.

Every rule is a function over one file that returns its findings, and is shown to fail on a small bad file.
"""

from __future__ import annotations

import ast
import io
import os
import re
import tokenize
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILE_LINES = 400
FUNCTION_LINES = 40
VAGUE = frozenset({"utils", "util", "helpers", "helper", "common", "manager", "managers", "misc"})
VAGUE_VERB = re.compile(r"_*(do|process)_[a-z]")  # http.server asks for do_GET
TEXT_FILES = frozenset({".py", ".md", ".yaml", ".yml", ".toml", ".json", ".sh", ".cfg", ".jinja", ".css", ".csv", ""})
GENERATED = frozenset({"build", "dist", "runs", "node_modules"})
MACHINE_PATH = re.compile(
    r"(?<![\w./])(/(home|root|Users|work|mnt|media|scratch|var/folders)/\w|[A-Z]:\\(Users|Windows)\b)"
)
"""An absolute path that exists on one machine only; addresses of web pages do not match."""


@dataclass(frozen=True)
class Comment:
    """A comment with its line; `alone` if no code stands before it."""

    line: int
    text: str
    alone: bool


class File:
    """One file: `path` for messages, `text`, and for Python its syntax tree and comments."""

    def __init__(self, path: str, text: str) -> None:
        self.path = path
        self.text = text

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @cached_property
    def comments(self) -> dict[int, Comment]:
        """By line; text inside strings is no comment."""
        tokens = tokenize.generate_tokens(io.StringIO(self.text).readline)
        found = [token for token in tokens if token.type == tokenize.COMMENT]
        return {
            token.start[0]: Comment(token.start[0], token.string.lstrip("# "), not token.line[: token.start[1]].strip())
            for token in found
        }

    def definitions(self) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]:
        for node in ast.walk(self.tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                yield node


def find_long_file(file: File) -> list[str]:
    lines = len(file.text.splitlines())
    return [f"{file.path} has {lines} lines, at most {FILE_LINES}: split it by what its parts do"] * (
        lines > FILE_LINES
    )


def find_long_functions(file: File) -> list[str]:
    """Lines of a function without those of its docstring."""
    found = []
    for node in file.definitions():
        if isinstance(node, ast.ClassDef):
            continue
        lines = (node.end_lineno or node.lineno) - node.lineno + 1
        if ast.get_docstring(node) is not None:
            lines -= (node.body[0].end_lineno or 0) - node.body[0].lineno + 1
        if lines > FUNCTION_LINES:
            found.append(
                f"{file.path}:{node.lineno} {node.name} has {lines} lines, at most {FUNCTION_LINES}: divide it"
            )
    return found


def find_vague_names(file: File) -> list[str]:
    found = [
        f"{file.path} is called {word!r}: name it after what it holds"
        for word in _words(file.path.removesuffix(".py"))
        if word in VAGUE
    ]
    for node in file.definitions():
        vague = VAGUE & set(_words(node.name))
        if vague or VAGUE_VERB.match(node.name):
            found.append(f"{file.path}:{node.lineno} {node.name}: name it after what it does")
    return found


def _words(name: str) -> list[str]:
    return re.findall(r"[a-z]+", re.sub(r"([A-Z])", r"_\1", name).lower())


def find_unexplained_catches(file: File) -> list[str]:
    """`except Exception` and wider without a comment on the line or on the one above."""
    found = []
    for node in ast.walk(file.tree):
        if not isinstance(node, ast.ExceptHandler):
            continue
        caught = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
        wide = any(kind is None or ast.unparse(kind) in {"Exception", "BaseException"} for kind in caught)
        above = file.comments.get(node.lineno - 1)
        if wide and node.lineno not in file.comments and not (above and above.alone):
            found.append(f"{file.path}:{node.lineno} catches everything: name the errors, or say why in a comment")
    return found


def find_unexplained_ignores(file: File) -> list[str]:
    """`type: ignore`, `noqa` and `pragma: no cover` need a code where one exists, and a reason behind it."""
    good = re.compile(r"type: ignore\[[\w, -]+\]\s*#\s*\w.{6}|noqa: [A-Z]+\d+(, ?[A-Z]+\d+)*\s+([#-]\s*)?\w.{6}")
    bad = re.compile(r"type: ?ignore|noqa|pragma: no ?cover", re.IGNORECASE)
    return [
        f"{file.path}:{comment.line} '# {comment.text}': name the code and give the reason:  # noqa: B023  # why"
        for comment in file.comments.values()
        if bad.search(comment.text) and not good.search(comment.text)
    ]


def find_open_ends(file: File) -> list[str]:
    """TODO and its like without an issue number."""
    return [
        f"{file.path}:{comment.line} '# {comment.text}': do it, or open an issue and write  TODO(#12)"
        for comment in file.comments.values()
        if re.search(r"\b(TODO|FIXME|XXX|HACK)\b(?!\s?\(?#\d+)", comment.text)
    ]


def find_machine_paths(file: File) -> list[str]:
    return [
        f"{file.path}:{number} holds a path of one machine: {match[0]}..."
        for number, line in enumerate(file.text.splitlines(), start=1)
        if (match := MACHINE_PATH.search(line))
    ]


def find_tests_without_checks(file: File) -> list[str]:
    """Tests that cannot fail: no assert, no pytest.raises, .warns or .fail, no call of assert_... or validate."""
    if not Path(file.path).name.startswith("test_"):
        return []
    return [
        f"{file.path}:{node.lineno} {node.name} checks nothing"
        for node in file.definitions()
        if node.name.startswith("test_") and not any(map(_checks, ast.walk(node)))
    ]


def _checks(node: ast.AST) -> bool:
    if isinstance(node, ast.Assert):
        return True
    called = ast.unparse(node.func).rpartition(".")[2] if isinstance(node, ast.Call) else ""
    return called in {"raises", "warns", "fail", "validate"} or called.startswith("assert_")


Rule = Callable[[File], list[str]]
PYTHON_RULES: tuple[Rule, ...] = (
    find_long_file,
    find_long_functions,
    find_vague_names,
    find_unexplained_catches,
    find_unexplained_ignores,
    find_open_ends,
    find_tests_without_checks,
)


def project_files() -> list[Path]:
    """Every text file of the project, not what tools, environments and runs leave behind."""
    found: list[Path] = []
    for folder, inner, names in os.walk(ROOT):
        inner[:] = sorted(name for name in inner if _is_ours(Path(folder, name)))
        found += [path for name in sorted(names) if (path := Path(folder, name)).suffix in TEXT_FILES]
    return found


def _is_ours(folder: Path) -> bool:
    if folder.name.startswith("."):
        return folder.name in {".ci", ".github"}
    if folder.name in GENERATED or folder.name.endswith((".egg-info", "__pycache__")):
        return False
    return not (folder / "pyvenv.cfg").exists()


@pytest.mark.parametrize("rule", PYTHON_RULES, ids=lambda rule: rule.__name__)
def test_python_files_keep_the_style(rule: Rule) -> None:
    files = [path for path in project_files() if path.suffix == ".py"]
    assert Path(__file__) in files
    assert ROOT / "peftkit" / "recipe.py" in files
    found = [finding for path in files for finding in rule(File(_relative(path), path.read_text("utf-8")))]
    assert not found, "\n".join(found)


def test_no_file_names_a_path_of_one_machine() -> None:
    files = project_files()
    assert ROOT / ".ci" / "run" in files
    found = [
        finding for path in files for finding in find_machine_paths(File(_relative(path), path.read_text("utf-8")))
    ]
    assert not found, "\n".join(found)


def _relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


LONG = "def long():\n" + "    a = 1\n" * FUNCTION_LINES
DOCUMENTED = 'def documented():\n    """One.\n\n    Two.\n    """\n' + "    a = 1\n" * (FUNCTION_LINES - 1)
BAD: dict[str, tuple[Rule, str, str, str]] = {
    "long file": (find_long_file, "a.py", "x = 1\n" * 401, "a.py has 401 lines"),
    "long function": (find_long_functions, "a.py", LONG, "a.py:1 long has 41 lines"),
    "long method": (
        find_long_functions,
        "a.py",
        f"class A:\n    {LONG.replace(chr(10), chr(10) + '    ')}",
        "a.py:2 long",
    ),
    "vague file": (find_vague_names, "peftkit/utils.py", "", "peftkit/utils.py is called 'utils'"),
    "vague folder": (find_vague_names, "peftkit/common/a.py", "", "peftkit/common/a.py is called 'common'"),
    "vague class": (find_vague_names, "a.py", "class CacheManager: ...", "a.py:1 CacheManager"),
    "vague function": (find_vague_names, "a.py", "def _load_helper(): ...", "a.py:1 _load_helper"),
    "vague verb": (find_vague_names, "a.py", "def process_rows(): ...", "a.py:1 process_rows"),
    "wide catch": (find_unexplained_catches, "a.py", "try:\n    f()\nexcept Exception:\n    g()\n", "a.py:3 catches"),
    "bare catch": (find_unexplained_catches, "a.py", "try:\n    f()\nexcept:\n    g()\n", "a.py:3 catches"),
    "catch in a tuple": (
        find_unexplained_catches,
        "a.py",
        "x = 1  # a comment of another line\ntry: f()\nexcept (OSError, BaseException): g()\n",
        "a.py:3 catches",
    ),
    "ignore without code": (find_unexplained_ignores, "a.py", "x = 1  # type: ignore  # upstream types", "a.py:1"),
    "ignore without reason": (find_unexplained_ignores, "a.py", "x = 1  # type: ignore[misc]", "a.py:1"),
    "noqa without reason": (find_unexplained_ignores, "a.py", "x = 1  # noqa: E501", "a.py:1"),
    "bare noqa": (find_unexplained_ignores, "a.py", "x = 1  # noqa", "a.py:1"),
    "open end": (find_open_ends, "a.py", "x = 1  # TODO: better", "a.py:1"),
    "home folder": (
        find_machine_paths,
        "a.md",
        "see\n`/home/" + "ann/x`",
        "a.md:2 holds a path of one machine",
    ),
    "drive": (find_machine_paths, "a.md", "D:" + "\\Users", "a.md:1 holds a path"),
    "test that cannot fail": (
        find_tests_without_checks,
        "tests/test_a.py",
        "def test_a():\n    run()\n",
        "tests/test_a.py:1 test_a checks nothing",
    ),
}
GOOD: dict[str, tuple[Rule, str, str]] = {
    "file at the limit": (find_long_file, "a.py", "x = 1\n" * 400),
    "docstring is free": (find_long_functions, "a.py", DOCUMENTED),
    "vague words inside others": (
        find_vague_names,
        "commons/utilities.py",
        "def most(): ...\ndef do_GET(): ...\nclass Processor: ...",
    ),
    "explained above": (find_unexplained_catches, "a.py", "try: f()\n# plugins\nexcept Exception: g()\n"),
    "explained beside": (find_unexplained_catches, "a.py", "try: f()\nexcept Exception:  # plugins\n    g()\n"),
    "narrow catch": (find_unexplained_catches, "a.py", "try: f()\nexcept (OSError, ValueError): g()\n"),
    "ignore with reason": (find_unexplained_ignores, "a.py", "x = 1  # type: ignore[misc]  # untyped upstream"),
    "noqa with reason": (find_unexplained_ignores, "a.py", "x = 1  # noqa: B023  # called at once"),
    "ignore in a string": (find_unexplained_ignores, "a.py", "x = '# type: ignore'"),
    "numbered": (find_open_ends, "a.py", "x = 1  # TODO(#12): better\n# TODO #3 too"),
    "address": (find_machine_paths, "a.md", "https://example.org/home/" + "ann and docs/home/" + "ann"),
    "test with assert_close": (
        find_tests_without_checks,
        "tests/test_a.py",
        "def test_a():\n    t.assert_close(1, 1)\n",
    ),
    "test with raises": (find_tests_without_checks, "tests/test_a.py", "def test_a():\n    with raises(X): f()\n"),
    "no test file": (find_tests_without_checks, "tests/conftest.py", "def test_a():\n    run()\n"),
}


@pytest.mark.parametrize("case", BAD)
def test_rule_rejects_a_bad_file(case: str) -> None:
    rule, path, text, message = BAD[case]
    findings = rule(File(path, text))
    assert len(findings) == 1
    assert findings[0].startswith(message)


@pytest.mark.parametrize("case", GOOD)
def test_rule_accepts_a_good_file(case: str) -> None:
    rule, path, text = GOOD[case]
    assert rule(File(path, text)) == []
