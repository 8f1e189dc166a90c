from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, ValidationError

from peftkit.errors import UnknownComponentError
from peftkit.recipe import KINDS
from peftkit.registry import Component, From, Registry, closest, plain_values


class Shape(Component):
    """A component of a kind made up for these tests."""


@pytest.fixture
def shapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry[Shape]]:
    """A registry over a package with the built-in `square` and `circle`, alone in the entry-point group of its name."""
    write_package(
        tmp_path / "builtin",
        "shapelib",
        {
            "__init__": "",
            "square": "from tests_shapes import Shape, shapes\n"
            "@shapes.register('square')\nclass Square(Shape):\n    '''Four sides.'''\n    side: int = 1\n",
            "circle": "from tests_shapes import Shape, shapes\n"
            "@shapes.register('circle')\nclass Circle(Shape):\n    '''Round.'''\n    radius: float = 0.5\n",
        },
    )
    monkeypatch.syspath_prepend(str(tmp_path / "builtin"))
    registry: Registry[Shape] = Registry("shapelib", "shape")
    meeting_point = type(sys)("tests_shapes")
    meeting_point.__dict__.update(Shape=Shape, shapes=registry)
    monkeypatch.setitem(sys.modules, "tests_shapes", meeting_point)
    known = set(sys.modules)
    yield registry
    for name in set(sys.modules) - known:
        del sys.modules[name]


def write_package(folder: Path, name: str, modules: Mapping[str, str]) -> None:
    package = folder / name
    package.mkdir(parents=True)
    for module, text in modules.items():
        (package / f"{module}.py").write_text(text)


def install(
    folder: Path, distribution: str, monkeypatch: pytest.MonkeyPatch, *, points: Mapping[str, str], code: str
) -> None:
    """What `pip install` leaves of a plugin: its module and a dist-info folder with entry points."""
    folder.mkdir()
    (folder / f"{distribution}_code.py").write_text(code)
    info = folder / f"{distribution}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
    listed = "\n".join(f"{name} = {value}" for name, value in points.items())
    (info / "entry_points.txt").write_text(f"[shapelib]\n{listed}\n")
    monkeypatch.syspath_prepend(str(folder))


HEXAGON = "from tests_shapes import Shape\nclass Hexagon(Shape):\n    '''Six sides.'''\n    side: int = 6\n"


def test_built_in_modules_are_found_without_a_list(shapes: Registry[Shape]) -> None:
    assert shapes.names() == ["circle", "square"]
    assert shapes.build("square").spec() == {"name": "square", "side": 1}
    assert shapes.build({"name": "circle", "radius": "1e-4"}).spec() == {"name": "circle", "radius": 0.0001}


def test_built_components_cannot_be_changed(shapes: Registry[Shape]) -> None:
    square: Any = shapes.build("square")
    with pytest.raises(ValidationError, match="frozen"):
        square.side = 2
    assert square.side == 1


@pytest.mark.parametrize("spec", ["sqare", "Square", "SQUARE", "squares"])
def test_an_unknown_name_suggests_the_one_that_was_meant(shapes: Registry[Shape], spec: str) -> None:
    with pytest.raises(UnknownComponentError) as caught:
        shapes.build(spec)
    assert str(caught.value) == f"unknown shape {spec!r}; did you mean 'square'? (known: circle, square)"


def test_a_name_far_from_all_suggests_nothing(shapes: Registry[Shape]) -> None:
    with pytest.raises(UnknownComponentError) as caught:
        shapes.build("xyz")
    assert str(caught.value) == "unknown shape 'xyz' (known: circle, square)"


@pytest.mark.parametrize("spec", [{}, {"side": 3}, {"name": None}, {"name": ["square"]}])
def test_a_mapping_without_a_name_is_told_how_to_write_one(shapes: Registry[Shape], spec: dict[str, Any]) -> None:
    with pytest.raises(UnknownComponentError, match=r"write  \{name: \.\.\., option: \.\.\.\}  with one of: circle"):
        shapes.build(spec)


@pytest.mark.parametrize("value", [float("inf"), float("nan"), "inf"])
def test_options_must_be_finite(shapes: Registry[Shape], value: object) -> None:
    with pytest.raises(ValidationError, match="finite"):
        shapes.build({"name": "circle", "radius": value})


def test_two_classes_cannot_share_a_name(shapes: Registry[Shape]) -> None:
    class Other(Shape):
        """Not the built-in one."""

    shapes.names()
    with pytest.raises(
        ValueError, match=r"shape 'square' is registered twice: by shapelib\.square\.Square and by .*Other"
    ):
        shapes.register("square")(Other)
    assert shapes.build("square").spec() == {"name": "square", "side": 1}


def test_the_same_class_may_register_again(shapes: Registry[Shape]) -> None:
    square = shapes.get("square")
    assert shapes.register("square")(square) is square


def test_a_failed_import_stays_a_failed_import(shapes: Registry[Shape], tmp_path: Path) -> None:
    (tmp_path / "builtin" / "shapelib" / "broken.py").write_text("import no_such_library_of_shapes\n")
    for _ in range(2):
        with pytest.raises(ModuleNotFoundError, match="no_such_library_of_shapes"):
            shapes.get("triangle")
    (tmp_path / "builtin" / "shapelib" / "broken.py").unlink()
    with pytest.raises(UnknownComponentError, match="unknown shape 'triangle'"):
        shapes.get("triangle")


def test_a_plugin_is_imported_only_when_a_recipe_names_it(
    shapes: Registry[Shape], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path / "p", "hexlib", monkeypatch, points={"hexagon": "hexlib_code:Hexagon"}, code=HEXAGON)
    assert shapes.names() == ["circle", "hexagon", "square"]
    assert shapes.loaded_names() == ["circle", "square"]
    assert shapes.plugin_package("hexagon") == "hexlib"
    assert shapes.build("square").name == "square"
    assert "hexlib_code" not in sys.modules

    assert shapes.build({"name": "hexagon", "side": 2}).spec() == {"name": "hexagon", "side": 2}
    assert "hexlib_code" in sys.modules
    assert shapes.loaded_names() == ["circle", "hexagon", "square"]
    assert shapes.plugin_package("hexagon") is None


def test_a_plugin_may_register_itself_with_the_decorator(
    shapes: Registry[Shape], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = (
        "from tests_shapes import Shape, shapes\n@shapes.register('hexagon')\nclass Hexagon(Shape):\n    '''Six.'''\n"
    )
    install(tmp_path / "p", "hexlib", monkeypatch, points={"hexagon": "hexlib_code"}, code=code)
    assert shapes.build("hexagon").spec() == {"name": "hexagon"}


@pytest.mark.parametrize(
    ("value", "code", "message"),
    [
        ("hexlib_code:Hexagon", "1 / 0\n", r"cannot be imported \(ZeroDivisionError: division by zero\)"),
        ("hexlib_code:Hexagon", "import nothing_like_that\n", "No module named 'nothing_like_that'"),
        ("hexlib_code:Heptagon", HEXAGON, "has no attribute 'Heptagon'"),
        ("hexlib_code:side", "side = 6\n", "whose entry point 'hexlib_code:side' is no component class"),
    ],
)
def test_a_broken_plugin_is_named_with_its_package(
    shapes: Registry[Shape],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    value: str,
    code: str,
    message: str,
) -> None:
    install(tmp_path / "p", "hexlib", monkeypatch, points={"hexagon": value}, code=code)
    with pytest.raises(UnknownComponentError, match=message) as caught:
        shapes.build("hexagon")
    assert "the shape 'hexagon' comes from the package 'hexlib'" in str(caught.value)
    assert shapes.build("square").name == "square"


def test_two_plugins_of_one_name_are_refused_not_chosen_from(
    shapes: Registry[Shape], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for owner in ("hexone", "hextwo"):
        install(tmp_path / owner, owner, monkeypatch, points={"hexagon": f"{owner}_code:Hexagon"}, code=HEXAGON)
    assert shapes.names() == ["circle", "hexagon", "square"]
    with pytest.raises(UnknownComponentError, match=r"'hexagon' comes from more than one package \(hexone, hextwo\)"):
        shapes.build("hexagon")


def test_plain_values_hold_only_what_yaml_can_say() -> None:
    value = {1: ("a", Path("b/c")), "x": {True: None}, "y": 0.5}
    assert plain_values(value) == {1: ["a", "b/c"], "x": {True: None}, "y": 0.5}
    assert type(plain_values(value)[1]) is list


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("learning-rate", "learning_rate"),
        ("LearningRate", "learning_rate"),
        ("lr", "learning_rate"),
        ("lora_alpha", "alpha"),
        ("num_train_epochs", "epochs"),
        ("bs", "batch_size"),
        ("zzz", None),
        ("", None),
    ],
)
def test_closest_finds_what_was_meant(word: str, meant: str | None) -> None:
    assert closest(word, ["alpha", "batch_size", "epochs", "learning_rate", "rank"]) == meant


def test_a_field_takes_a_name_a_mapping_or_a_component(shapes: Registry[Shape]) -> None:
    class Box(BaseModel):
        shape: Annotated[Shape, From(shapes)]

    by_name = Box.model_validate({"shape": "square"})
    assert Box.model_validate({"shape": {"name": "square"}}) == by_name
    assert Box(shape=shapes.build("square")) == by_name
    assert by_name.model_dump() == {"shape": {"name": "square", "side": 1}}
    assert by_name.model_dump(mode="json") == {"shape": {"name": "square", "side": 1}}
    with pytest.raises(ValidationError, match="must be a shape, by its name or as a mapping with 'name', not 5"):
        Box.model_validate({"shape": 5})


COMPONENTS = [(kind, name) for kind, registry in KINDS.items() for name in registry.loaded_names()]


@pytest.mark.parametrize(("kind", "name"), COMPONENTS)
def test_every_component_explains_itself(kind: str, name: str) -> None:
    cls = KINDS[kind].get(name)
    assert cls.__doc__ != Component.__doc__
    first_line = (cls.__doc__ or "").strip().partition("\n")[0]
    assert first_line.endswith((".", ":")), f"{cls.__qualname__}: the docstring's first line is shown by peftkit list"
    silent = [key for key, field in cls.model_fields.items() if not field.description]
    assert silent == [], f"{cls.__qualname__}: fields without a docstring below them"


@pytest.mark.parametrize(("kind", "name"), COMPONENTS)
def test_every_component_is_named_frozen_and_strict_about_keys(kind: str, name: str) -> None:
    cls = KINDS[kind].get(name)
    assert cls.name == name
    assert name == name.lower()
    assert cls.model_config.get("frozen") is True
    assert cls.model_config.get("extra") == "forbid"


@pytest.mark.parametrize(("kind", "name"), COMPONENTS)
def test_a_component_builds_from_its_name_or_says_what_it_needs(kind: str, name: str) -> None:
    registry = KINDS[kind]
    required = [key for key, field in registry.get(name).model_fields.items() if field.is_required()]
    try:
        built = registry.build(name)
    except ValidationError as problem:
        missing = [error["loc"][0] for error in problem.errors() if error["type"] == "missing"]
        rules = [error for error in problem.errors() if error["type"] == "value_error"]
        assert missing == required
        assert required or rules, "neither a required option nor a rule of its own stands in the way"
    else:
        assert required == []
        assert registry.build(built.spec()) == built


def test_describing_all_components_imports_no_heavy_library() -> None:
    code = (
        "import sys; from peftkit.recipe import KINDS, json_schema; json_schema()\n"
        "heavy = {'torch', 'transformers', 'peft', 'datasets', 'evaluate', 'pandas', 'sklearn', 'scipy'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
