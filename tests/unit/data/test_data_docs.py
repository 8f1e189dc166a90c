from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import pytest
import yaml

from peftkit.data import sources

PAGE = (Path(__file__).parents[3] / "docs" / "data.md").read_text("utf-8")
SNIPPETS = re.findall(r"```yaml\n(.*?)```", PAGE, flags=re.DOTALL)


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_every_snippet_is_a_valid_source(snippet: str) -> None:
    spec = yaml.safe_load(snippet)["data"]
    source = sources.build(spec)
    assert sources.build(source.spec()) == source


def test_every_source_has_a_snippet_and_every_option_a_description() -> None:
    shown = {yaml.safe_load(snippet)["data"]["name"] for snippet in SNIPPETS}
    built_in = {name for name in sources.names() if sources.get(name).__module__.startswith("peftkit.")}
    assert shown == built_in
    for name in built_in:
        options = sources.get(name).model_json_schema()["properties"]
        assert [option for option, schema in options.items() if not schema.get("description")] == []


def test_the_source_of_ones_own_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    (tmp_path / "numbers_source.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sources, "_classes", dict(sources._classes))
    import_module("numbers_source")
    loaded = sources.build({"name": "numbers", "count": 3, "columns": {"sentence": "text"}}).load()
    assert loaded.splits["train"][:] == {"sentence": ["0", "1", "2"]}
    assert loaded.source == "the first 3 numbers"
