from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from peftkit.errors import RecipeError
from peftkit.yaml_source import overlay, parse_yaml, read_yaml

NESTED = """\
# a comment
model: some/id
task:
  name: classify
  labels: {1: World, 2: Sports}
metrics:
  - accuracy
  - name: f1
    average: macro
"""


def test_every_key_and_item_knows_its_line() -> None:
    source = parse_yaml(NESTED, origin="r.yaml")
    expected = {
        ("model",): 2,
        ("task",): 3,
        ("task", "name"): 4,
        ("task", "labels"): 5,
        ("task", "labels", "1"): 5,
        ("task", "labels", "2"): 5,
        ("metrics",): 6,
        ("metrics", "0"): 7,
        ("metrics", "1"): 8,
        ("metrics", "1", "name"): 8,
        ("metrics", "1", "average"): 9,
    }
    assert source.lines == expected
    assert source.repeated == ()


@pytest.mark.parametrize(
    ("path", "place"),
    [
        (("metrics", 1, "average"), 9),
        (("task", "labels", 2), 5),
        (("task", "absent"), 3),
        (("metrics", 1, "absent", "deeper"), 8),
        (("absent",), None),
        ((), None),
    ],
)
def test_place_is_the_line_of_the_key_or_of_what_holds_it(path: tuple[str | int, ...], place: int | None) -> None:
    assert parse_yaml(NESTED, origin="r.yaml").place(path) == place


def test_place_names_the_setting_that_wrote_a_value() -> None:
    source = parse_yaml(NESTED, origin="r.yaml").with_settings(["task.name=other", "metrics.1={name: f1, beta: 2}"])
    assert source.place(("task", "name")) == "--set"
    assert source.place(("metrics", 1, "beta")) == "--set"
    assert source.place(("metrics", 0)) == 7
    assert source.place(("task",)) == 3


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a: 1\nb: 2\na: 3\n", [("a", 3, 1)]),
        ("a:\n  b: 1\n  b: 1\n", [("a.b", 3, 2)]),
        ("a:\n  b: 1\nc:\n  b: 1\n", []),
        ("a: 1\na: 2\na: 3\n", [("a", 2, 1), ("a", 3, 2)]),
        ("a: {x: 1, x: 2}\n", [("a.x", 1, 1)]),
        ("l:\n- k: 1\n- k: 2\n  k: 3\n", [("l.1.k", 4, 3)]),
        ("m: {1: one, '1': text}\n", []),
    ],
)
def test_keys_that_stand_twice_are_found(text: str, found: list[tuple[str, int, int]]) -> None:
    repeated = parse_yaml(text, origin="r.yaml").repeated
    assert [(".".join(item.path), item.line, item.first_line) for item in repeated] == found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"r\.yaml: a recipe is a mapping .*, but it is empty"),
        ("# only a comment\n", "but it is empty"),
        ("- a\n- b\n", "but it holds a list"),
        ("just words\n", "but it holds a str"),
        ("a: [1, 2\nb: 3\n", r"r\.yaml:2: not valid YAML: while parsing a flow sequence expected ',' or '\]'"),
        ("a:\n\tb: 1\n", r"r\.yaml:2: .*; YAML indents with spaces, not tabs"),
        ("a: 1\n---\nb: 2\n", "expected a single document in the stream but found another document"),
        ("a: 2024-13-45\n", r"r\.yaml: not valid YAML: month must be in 1\.\.12"),
        ("a: !!python/object/apply:os.system [ls]\n", "could not determine a constructor"),
        ("a: \x00\n", "special characters are not allowed"),
        ("[" * 500, "nested too deeply"),
        ("a: &x [*x]\n", "more than 40 levels or 20000 values; write it without aliases"),
        ("a: *nowhere\n", "found undefined alias 'nowhere'"),
    ],
)
def test_text_that_is_no_recipe_is_refused_with_its_line(text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        parse_yaml(text, origin="r.yaml")


def test_aliases_that_double_line_by_line_are_refused_early() -> None:
    lines = ["a0: &a0 [x, x]"] + [f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 60)]
    with pytest.raises(RecipeError, match="20000 values"):
        parse_yaml("\n".join(lines), origin="r.yaml")


def test_an_alias_that_is_used_sensibly_works() -> None:
    source = parse_yaml("a: &x {k: 1}\nb: *x\n", origin="r.yaml")
    assert source.with_settings(["b.k=2"]).value == {"a": {"k": 1}, "b": {"k": 2}}


def test_a_file_with_a_byte_order_mark_and_windows_lines_reads_the_same(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes(b"\xef\xbb\xbfa: 1\r\nb: 2\r\n")
    source = read_yaml(path)
    assert source.value == {"a": 1, "b": 2}
    assert source.lines == {("a",): 1, ("b",): 2}


def test_a_missing_file_lists_the_recipes_beside_it(tmp_path: Path) -> None:
    (tmp_path / "real.yaml").write_text("a: 1")
    with pytest.raises(RecipeError, match=r"there is no recipe file '.*reel\.yaml' \(in that folder: .*real\.yaml\)"):
        read_yaml(tmp_path / "reel.yaml")
    with pytest.raises(RecipeError, match=r"there is no recipe file '.*x\.yaml'$"):
        read_yaml(tmp_path / "no" / "x.yaml")


def test_folders_and_bytes_are_no_recipes(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="is a folder; name the recipe file in it"):
        read_yaml(tmp_path)
    (tmp_path / "weights.yaml").write_bytes(b"model: \xff\xfe")
    with pytest.raises(RecipeError, match=r"weights\.yaml' is not UTF-8 text \(byte 7\)"):
        read_yaml(tmp_path / "weights.yaml")
    with pytest.raises(RecipeError, match=r"cannot read the recipe '.*weights\.yaml/r\.yaml': Not a directory"):
        read_yaml(tmp_path / "weights.yaml" / "r.yaml")


BASE: dict[str, Any] = {
    "model": "some/id",
    "method": {"name": "lora", "rank": 8},
    "task": {"name": "classify", "labels": {1: "World", 2: "Sports"}},
    "metrics": ["accuracy", {"name": "f1", "beta": 1}],
    "loss": None,
}


@pytest.mark.parametrize(
    ("setting", "path", "value"),
    [
        ("seed=3", ("seed",), 3),
        ("method.rank=16", ("method", "rank"), 16),
        ("method.dropout=0.5", ("method", "dropout"), 0.5),
        ("method=full", ("method",), "full"),
        ("method={name: lora, rank: 2}", ("method",), {"name": "lora", "rank": 2}),
        ("metrics=[f1, accuracy]", ("metrics",), ["f1", "accuracy"]),
        ("metrics.0=f1", ("metrics", 0), "f1"),
        ("metrics.1.beta=2", ("metrics", 1, "beta"), 2),
        ("metrics.0.top_k=2", ("metrics", 0), {"name": "accuracy", "top_k": 2}),
        ("model.max_length=64", ("model",), {"id": "some/id", "max_length": 64}),
        ("loss.weight=2", ("loss",), {"weight": 2}),
        ("training.batch_size=4", ("training",), {"batch_size": 4}),
        ("task.labels.2=Games", ("task", "labels"), {1: "World", 2: "Games"}),
        ("description=", ("description",), None),
        ("description=a=b", ("description",), "a=b"),
        ("description='yes'", ("description",), "yes"),
        ("flag=yes", ("flag",), True),
    ],
)
def test_a_setting_writes_one_value(setting: str, path: tuple[str | int, ...], value: object) -> None:
    node: Any = overlay(BASE, [setting])
    for part in path:
        node = node[part]
    assert node == value


def test_settings_apply_in_order_and_leave_the_original_alone() -> None:
    before = repr(BASE)
    result = overlay(BASE, ["method=full", "method.a=1", "method.a=2"])
    assert result["method"] == {"name": "full", "a": 2}
    assert repr(BASE) == before


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("rank", "--set rank: write it as  key.subkey=value"),
        ("=3", "--set =3: write it as"),
        ("a..b=3", r"--set a\.\.b=3: write it as"),
        (".a=3", "write it as"),
        ("a = 3", "without spaces around '='"),
        ("a=[1", r"--set a=\[1: the value '\[1' is not valid YAML; put quotes around it"),
        ("metrics.2=f1", r"'2' is no index of a list with 2 items; write 0 to 1"),
        ("metrics.-1=f1", "'-1' is no index of a list with 2 items"),
        ("metrics.first=f1", "'first' is no index of a list"),
        ("method.rank.x=1", r"method\.rank is the value 8 and has no key 'x'"),
        ("a=2024-13-45", "is not valid YAML"),
    ],
)
def test_a_setting_that_leads_nowhere_is_refused(setting: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        overlay(BASE, [setting])


def test_an_empty_list_has_no_index_to_set() -> None:
    with pytest.raises(RecipeError, match=r"no index of a list with 0 items; set the whole list:  key=\[\.\.\.\]"):
        overlay({"metrics": []}, ["metrics.0=f1"])
