"""The shape of the package, read from its own imports: layers, light imports, no dead modules.

Every rule is a function over a source tree that returns its findings, and is shown to fail on a small bad tree.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

_SECTIONS = {"recipe", "recipe_fit", "recipe_problems", "recipe_section", "distillation"}
RECIPES = _SECTIONS | {"pipeline", "multi_task", "recipe_files"}
"""What a recipe file may say, and how it is read."""
LAYERS: tuple[frozenset[str], ...] = (
    frozenset({"errors", "results", "labels", "answers"}),
    frozenset({"registry", "yaml_source", "artifacts", "kernels", "layers"}),
    frozenset({"rewards"}),
    frozenset({"data", "tasks", "methods", "quantization", "losses", "metrics", "regularizers", "augmentations"}),
    frozenset(RECIPES),
    frozenset({"models", "storage", "heads", "stacking", "outputs", "padding_free", "positions", "report"}),
    frozenset({"foreign"}),
    frozenset({"training", "predictor", "planning"}),
    frozenset({"compare", "export", "serving"}),
    frozenset({"stages", "joint"}),
    frozenset({"cli", "__main__"}),
)
"""Top-level files and packages by level: a part imports only from the rows above its own."""
ONE_UNIT = (
    {"errors", "results"},
    RECIPES,
    {"models", "storage", "heads", "stacking"},
    {"cli", "__main__"},
)
"""Files of one level that may import each other: one part, split over files."""
FACADE = "__init__"
"""`peftkit/__init__.py`: outside the layers; it may name anything, and nothing may import through it but these."""
FACADE_NAMES = {"__version__"}
HEAVY = frozenset({"torch", "transformers", "peft", "accelerate", "trl", "bitsandbytes"}) | frozenset(
    {"datasets", "evaluate", "pandas", "pyarrow", "matplotlib", "sklearn", "scipy"}
)
"""What takes a second or more to import."""
HEAVY_ALLOWED = frozenset(
    {"kernels", "layers", "training", "models", "storage", "heads", "stacking", "outputs", "padding_free", "foreign"}
    | {"stages", "joint"}
)


@dataclass(frozen=True)
class Import:
    """One imported module: `module` by its dotted name, `top` if it runs when the importing file is imported."""

    module: str
    line: int
    top: bool


@dataclass(frozen=True)
class Source:
    """One file of the package: `name` is dotted, `part` its top-level file or package, `path` relative to the root."""

    name: str
    path: str
    tree: ast.Module

    @property
    def part(self) -> str:
        return self.name.split(".")[1] if "." in self.name else FACADE


def read_sources(root: Path) -> dict[str, Source]:
    """Every Python file of `root`/peftkit by dotted module name."""
    found = {}
    for path in sorted((root / "peftkit").rglob("*.py")):
        relative = path.relative_to(root)
        parts = relative.with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = Source(name, relative.as_posix(), ast.parse(path.read_text("utf-8")))
    return found


def statements(body: list[ast.stmt], *, top: bool) -> Iterator[tuple[ast.stmt, bool]]:
    """Every statement below `body`, and whether it runs at import: not in functions nor under TYPE_CHECKING."""
    for node in body:
        yield node, top
        for field in ("body", "orelse", "finalbody", "handlers", "cases"):
            inner = getattr(node, field, [])
            typing_only = field == "body" and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
            lazy = typing_only or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
            for part in inner if isinstance(inner, list) else []:
                nested = [part] if isinstance(part, ast.stmt) else part.body
                yield from statements(nested, top=top and not lazy)


def imports_of(source: Source, known: Mapping[str, Source]) -> list[Import]:
    """All imports of a file; `from package import module` counts as the module, names of a module as the module."""
    found = []
    for node, top in statements(source.tree.body, top=True):
        if isinstance(node, ast.Import):
            found += [Import(alias.name, node.lineno, top) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(source, node)
            for alias in node.names:
                full = f"{base}.{alias.name}"
                through_facade = base == "peftkit" and alias.name not in FACADE_NAMES
                found.append(Import(full if full in known or through_facade else base, node.lineno, top))
    return found


def _absolute(source: Source, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    package = source.name.split(".") if source.path.endswith("__init__.py") else source.name.split(".")[:-1]
    return ".".join([*package[: len(package) - node.level + 1], *([node.module] if node.module else [])])


def level_of(part: str) -> int | None:
    return next((level for level, parts in enumerate(LAYERS) if part in parts), None)


def find_unplaced(sources: Mapping[str, Source]) -> list[str]:
    """Files that no layer holds."""
    return [
        f"{source.path} is in no layer: add {source.part!r} to LAYERS in tests/test_architecture.py, in the "
        "first row below all the parts it imports"
        for source in sources.values()
        if source.part != FACADE and level_of(source.part) is None
    ]


def find_layer_breaks(sources: Mapping[str, Source]) -> list[str]:
    """Imports from the own level or from below, and imports through the facade."""
    found = []
    for source in sources.values():
        level = level_of(source.part)
        if level is None:
            continue
        for used in imports_of(source, sources):
            if not used.module.startswith("peftkit."):
                continue
            part = used.module.split(".")[1]
            target, where = level_of(part), f"{source.path}:{used.line}"
            together = any({part, source.part} <= unit for unit in ONE_UNIT)
            if used.module not in sources and f"peftkit.{part}" not in sources:
                found.append(
                    f"{where} imports {used.module}, which is no module: import names from where they are defined"
                )
            elif part != source.part and not together and target is not None and target >= level:
                found.append(
                    f"{where} (level {level}) imports {used.module} (level {target}); only lower levels may be used"
                )
    return found


def find_heavy_imports(sources: Mapping[str, Source]) -> list[str]:
    """Heavy libraries at the top of files that must import fast."""
    return [
        f"{source.path}:{used.line} imports {used.module} at the top; import it inside the function that needs it"
        for source in sources.values()
        if source.part not in HEAVY_ALLOWED
        for used in imports_of(source, sources)
        if used.top and used.module.split(".")[0] in HEAVY
    ]


def find_typer_outside_cli(sources: Mapping[str, Source]) -> list[str]:
    """typer anywhere but in the command line."""
    return [
        f"{source.path}:{used.line} imports typer; only peftkit/cli talks to the terminal"
        for source in sources.values()
        if source.part != "cli"
        for used in imports_of(source, sources)
        if used.module.split(".")[0] == "typer"
    ]


def find_dead_modules(sources: Mapping[str, Source]) -> list[str]:
    """Modules that neither the public names, the command line nor a registry can reach."""
    waiting = [name for name, source in sources.items() if source.part == "__main__" or _registers(source)]
    waiting += ["peftkit"] if "peftkit" in sources else []
    reached: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name in reached or name not in sources:
            continue
        reached.add(name)
        waiting += [name.rpartition(".")[0], *(used.module for used in imports_of(sources[name], sources))]
    return [
        f"{source.path} is imported by nothing that a user can reach: use it or delete it"
        for name, source in sources.items()
        if name not in reached
    ]


def _registers(source: Source) -> bool:
    """Whether a file holds `@registry.register("name")`: the registry imports it by itself."""
    decorators = [d for node in source.tree.body if isinstance(node, ast.ClassDef) for d in node.decorator_list]
    calls = [d.func for d in decorators if isinstance(d, ast.Call)]
    return any(isinstance(call, ast.Attribute) and call.attr == "register" for call in calls)


RULES = {
    "unplaced": find_unplaced,
    "layers": find_layer_breaks,
    "heavy": find_heavy_imports,
    "typer": find_typer_outside_cli,
    "dead": find_dead_modules,
}


@pytest.mark.parametrize("rule", RULES)
def test_project_keeps_its_shape(rule: str) -> None:
    sources = read_sources(ROOT)
    assert {"peftkit", "peftkit.recipe", "peftkit.tasks"} <= set(sources)
    findings = RULES[rule](sources)
    assert not findings, "\n".join(findings)


GOOD = {
    "__init__.py": "if TYPE_CHECKING:\n    from peftkit.training import run\n",
    "__main__.py": "from peftkit.cli import app\n",
    "errors.py": "",
    "registry.py": "from peftkit.errors import RecipeError\nfrom peftkit import __version__\n",
    "data/__init__.py": "from peftkit.registry import Registry\nif TYPE_CHECKING:\n    from datasets import Dataset\n",
    "data/hub.py": '@sources.register("hub")\nclass Hub:\n    def load(self):\n        import datasets\n',
    "recipe.py": "from peftkit.data import sources\nfrom peftkit.recipe_problems import describe\n",
    "recipe_problems.py": "def describe():\n    from peftkit.recipe import Recipe\n",
    "training/__init__.py": "import torch\nfrom . import trainer\nfrom ..recipe import Recipe\n",
    "training/trainer.py": "from transformers import Trainer\n",
    "cli/__init__.py": "import typer\n",
}

BAD = {
    "file in no layer": ("unplaced", {"zebra.py": ""}, "peftkit/zebra.py is in no layer: add 'zebra' to LAYERS"),
    "package in no layer": ("unplaced", {"zoo/__init__.py": ""}, "peftkit/zoo/__init__.py is in no layer: add 'zoo'"),
    "import from below": (
        "layers",
        {"registry.py": "from peftkit.recipe import Recipe\n"},
        "peftkit/registry.py:1 (level 1) imports peftkit.recipe (level 4)",
    ),
    "import inside a function": (
        "layers",
        {"data/hub.py": "def load():\n    import peftkit.training.trainer\n"},
        "peftkit/data/hub.py:2 (level 3) imports peftkit.training.trainer (level 7)",
    ),
    "import for types": (
        "layers",
        {"errors.py": "if TYPE_CHECKING:\n    from peftkit import recipe\n"},
        "peftkit/errors.py:2 (level 0) imports peftkit.recipe (level 4)",
    ),
    "same level": (
        "layers",
        {"tasks/__init__.py": "", "data/hub.py": "from peftkit.tasks import Task\n"},
        "peftkit/data/hub.py:1 (level 3) imports peftkit.tasks (level 3)",
    ),
    "relative": (
        "layers",
        {"data/deep/__init__.py": "from ...recipe import Recipe\n"},
        "peftkit/data/deep/__init__.py:1 (level 3) imports peftkit.recipe (level 4)",
    ),
    "through the facade": (
        "layers",
        {"data/hub.py": "from peftkit import run\n"},
        "peftkit/data/hub.py:1 imports peftkit.run, which is no module",
    ),
    "heavy at the top": (
        "heavy",
        {"recipe.py": "import torch.nn\n"},
        "peftkit/recipe.py:1 imports torch.nn at the top",
    ),
    "heavy in a class body": (
        "heavy",
        {"data/hub.py": "class Hub:\n    from datasets import Dataset\n"},
        "peftkit/data/hub.py:2 imports datasets at the top",
    ),
    "heavy in try": (
        "heavy",
        {"data/hub.py": "try:\n    x = 1\nexcept ImportError:\n    import pandas\n"},
        "peftkit/data/hub.py:4 imports pandas at the top",
    ),
    "heavy beside TYPE_CHECKING": (
        "heavy",
        {"data/hub.py": "if TYPE_CHECKING:\n    import peft\nelse:\n    import scipy\n"},
        "peftkit/data/hub.py:4 imports scipy at the top",
    ),
    "typer in a library file": (
        "typer",
        {"data/hub.py": "def ask():\n    import typer\n"},
        "peftkit/data/hub.py:2 imports typer",
    ),
    "file that nothing imports": (
        "dead",
        {"data/orphan.py": "", "data/hub.py": ""},
        "peftkit/data/orphan.py is imported by nothing",
    ),
    "files that import only each other": (
        "dead",
        {"data/a.py": "from peftkit.data import b\n", "data/b.py": "from peftkit.data import a\n"},
        "peftkit/data/b.py is imported by nothing",
    ),
}


def write_tree(root: Path, files: Mapping[str, str]) -> dict[str, Source]:
    for name, text in files.items():
        path = root / "peftkit" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    return read_sources(root)


@pytest.mark.parametrize("rule", RULES)
def test_rule_accepts_a_good_tree(tmp_path: Path, rule: str) -> None:
    reachable = {"recipe.py": GOOD["recipe.py"], "cli/__init__.py": "import typer\nfrom peftkit.training import run\n"}
    assert RULES[rule](write_tree(tmp_path, {**GOOD, **reachable})) == []


@pytest.mark.parametrize("case", BAD)
def test_rule_rejects_a_bad_tree(tmp_path: Path, case: str) -> None:
    rule, files, message = BAD[case]
    findings = RULES[rule](write_tree(tmp_path, {**GOOD, **files}))
    assert [finding for finding in findings if finding.startswith(message)], findings


LIGHT = {
    "package": "import peftkit",
    "command line": "import peftkit.__main__",
    "results": "from peftkit import RunResult",
    "reports": "import peftkit.report",
    "all components": "from peftkit.recipe import json_schema; json_schema()",
}


@pytest.mark.parametrize("code", LIGHT.values(), ids=LIGHT)
def test_importing_loads_no_heavy_library(code: str) -> None:
    report = f"import sys; {code}; print(*sorted({set(HEAVY)!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", report], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []
