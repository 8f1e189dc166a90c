"""`--plugin FILE`: loose Python files that register components. Only the command line loads them, never a recipe."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def load_plugin_files(paths: Sequence[Path] | None) -> None:
    """Run plugin files, so that recipes can name what they register.

    Raises:
        RecipeError: a file that is missing or fails; names the file and the line.
    """
    from peftkit.cli.output import warn

    for path in paths or ():
        known = _component_names()
        _load(path)
        if _component_names() == known:
            warn(f"--plugin {path} registered no component; decorate a class, e.g.  @metrics.register('my_metric')")


def _component_names() -> set[tuple[str, str]]:
    from peftkit.recipe import KINDS

    return {(kind, name) for kind, registry in KINDS.items() for name in registry.loaded_names()}


def _load(path: Path) -> None:
    import hashlib
    import sys
    from importlib.util import module_from_spec, spec_from_loader

    from peftkit.errors import RecipeError

    if not path.is_file():
        raise RecipeError(f"--plugin {path}: there is no such file")
    # The digest keeps two files of one name apart; the module has to be findable for pydantic to read its annotations.
    name = f"peftkit_plugin_{path.stem}_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return
    from importlib.machinery import SourceFileLoader

    spec = spec_from_loader(name, SourceFileLoader(name, str(path)))
    if spec is None or spec.loader is None:
        raise RecipeError(f"--plugin {path}: Python cannot load it; name a .py file")
    module = module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    # A plugin is foreign code: whatever it raises, sys.exit() included, becomes one message that says where.
    except (Exception, SystemExit) as problem:
        del sys.modules[name]
        raise RecipeError(f"--plugin {path}{_line_of(problem, path)}: {type(problem).__name__}: {problem}") from problem


def _line_of(problem: BaseException, path: Path) -> str:
    """`:12` for the last line of the file that was running."""
    import traceback

    if isinstance(problem, SyntaxError) and problem.filename == str(path):
        return f":{problem.lineno}"
    lines = [frame.lineno for frame in traceback.extract_tb(problem.__traceback__) if frame.filename == str(path)]
    return f":{lines[-1]}" if lines else ""
