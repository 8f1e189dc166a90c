"""The page and its picture."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from html.parser import HTMLParser

import pytest

from peftkit.compare.page import render_page
from peftkit.compare.picture import Box, Mark, Name, Point, label_places, picture, points_of
from peftkit.compare.summary import Comparison

MakeComparison = Callable[..., Comparison]
_VOID = {"meta", "link", "br"}


class Page(HTMLParser):
    """Text, tables as lists of rows, and every address of a page; fails on tags that do not match.

    Dashes are read as the plain ones.
    """

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.addresses: list[str] = []
        self.feed(source)
        self.close()
        assert self.open == []

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attrs if name in ("href", "src", "xlink:href", "action")]
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attrs if name in ("href", "src", "xlink:href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        self.words.append(" ")

    def handle_data(self, data: str) -> None:
        data = data.replace("\N{EN DASH}", "-")
        if "style" not in self.open:
            self.words.append(data)
            if "td" in self.open or "th" in self.open:
                cell = self.tables[-1][-1]
                cell[-1] = " ".join(f"{cell[-1]} {data}".split())


@pytest.fixture
def comparison(make_comparison: MakeComparison) -> Comparison:
    return make_comparison(
        {"lora": [0.80, 0.82, 0.84], "full": [0.83, 0.83, 0.83], "head <b>": [0.60, 0.61, 0.62]},
        facts={"full": {"method": "full", "trainable": 1_000_000}, "head <b>": {"trainable": 2_000}},
        labels=("lora", "full", "head <b>", "oft"),
        failures={"oft": {0: "no <memory>"}},
        missing={"oft": (1, 2)},
    )


def test_page_says_who_leads_by_how_much_and_what_speaks_against_it(comparison: Comparison) -> None:
    page = Page(render_page(comparison))
    assert "accuracy on test, best mean 0.830 95 % interval 0.830 - 0.830" in page.text
    assert "* not distinguishable from the best mean, because the intervals overlap or there is none: full, lora." in (
        page.text
    )
    assert "9 of 12 finished, 1 failed" in page.text
    assert "oft, seed 0 failed: no <memory>" in page.text
    scores = page.tables[0]
    assert scores[0] == ["Variant", "Mean", "95 % interval", "seed 0", "seed 1", "seed 2", "Runs"]
    assert scores[1:] == [
        ["full *", "0.8300", "0.8300 - 0.8300", "0.8300", "0.8300", "0.8300", "3/3"],
        ["lora *", "0.8200", "0.7703 - 0.8697", "0.8000", "0.8200", "0.8400", "3/3"],
        ["head <b>", "0.6100", "0.5852 - 0.6348", "0.6000", "0.6100", "0.6200", "3/3"],
        ["oft", "-", "-", "-", "-", "-", "0/3, 1 failed"],
    ]
    sizes = page.tables[1]
    assert sizes[0] == ["Variant", "trainable", "share", "without head", "head", "saved"]
    assert sizes[2][:5] == ["lora *", "40,000", "4.0 %", "38,000", "2,000"]
    assert page.tables[2][2] == ["lora *", "800.0 MiB", "20.0 ms", "2.50 ms", "75 (2 epochs)"]
    assert page.tables[3][2][:4] == ["lora *", "0.001", "16", "lora"]
    assert "data of train (SHA-256) 1f1f1f1f1f1f" in page.text


def test_page_stands_alone_and_repeats_itself(comparison: Comparison) -> None:
    text = render_page(comparison)
    assert render_page(comparison) == text
    assert [address for address in Page(text).addresses if not address.startswith(("#", "data:"))] == []
    assert "<script" not in text
    assert not re.search(r"#[0-9a-f]{6}", picture(comparison) or "#000000")  # colours follow the themes of the page


def test_a_comparison_without_intervals_has_a_page_too(make_comparison: MakeComparison) -> None:
    page = Page(render_page(make_comparison({"a": [0.7], "b": [0.6]})))
    assert "one run: no interval" in page.text
    assert page.tables[0][1][2] == "none"


def test_what_has_no_place_on_a_logarithmic_axis_is_left_out_and_said(make_comparison: MakeComparison) -> None:
    scores = {"a": [0.8, 0.9], "none": [0.7, 0.8], "nan": [float("nan"), 0.5]}
    comparison = make_comparison(scores, facts={"none": {"trainable": 0, "head": 0}})
    assert [point.label for point in points_of(comparison)] == ["a"]
    assert "2 without trainable parameters or a finite score are left out" in Page(render_page(comparison)).text
    alone = make_comparison({"none": [0.7, 0.8]}, facts={"none": {"trainable": 0, "head": 0}})
    assert picture(alone) is None
    assert "<svg" not in render_page(alone)


def test_picture_names_every_variant_and_its_score(comparison: Comparison) -> None:
    drawn = picture(comparison)
    assert drawn is not None
    for label in ("lora", "full", "head &lt;b&gt;"):
        assert f">{label}</text>" in drawn
    assert 'aria-label="accuracy on test over trainable parameters: full 0.8300 at 1.0 M; lora' in drawn


FRAME = Box(0, 0, 520, 280)


def mark(label: str, x: float, y: float, *, half: float = 14) -> Mark:
    return Mark(Point(label, 1, 0.5, 0.5, 0.5, False), x, y, y - half, y + half, 0)


def collisions(marks: list[Mark], names: list[Name]) -> list[str]:
    """What covers what."""
    boxes = [(f"name {name.mark.point.label}", name.box) for name in names]
    drawn = boxes + [(f"mark {mark.point.label}", box) for mark in marks for box in mark.boxes()]
    return [f"{one} x {other}" for one, box in boxes for other, taken in drawn if one != other and box.overlaps(taken)]


def test_a_label_with_room_stands_right_of_its_mark_and_left_at_the_edge() -> None:
    near, edge = label_places([mark("lora", 100, 100), mark("full", 505, 200)], FRAME)
    assert (near.side, near.adjacent, near.anchor[1]) == ("left", True, 100)
    assert near.box.left > 104
    assert (edge.side, edge.adjacent) == ("right", True)


@pytest.mark.parametrize("seed", range(8))
def test_labels_of_a_crowd_cover_neither_each_other_nor_marks_nor_intervals(seed: int) -> None:
    draw = random.Random(seed)
    words = ("full", "lora", "bottleneck_houlsby", "ia3", "qlora_nf4", "adalora")
    marks = [
        mark(f"{draw.choice(words)}{number}", draw.uniform(120, 260), draw.uniform(150, 220)) for number in range(14)
    ]
    names = label_places(marks, FRAME)
    assert collisions(marks, names) == []
    assert all(name.box.left >= 0 and name.box.right <= 520 and name.box.top <= 280 for name in names)


def test_of_equal_marks_in_a_row_every_label_that_gave_way_has_a_line() -> None:
    marks = [mark(f"variant{number}", 200 + 10.4 * number, 150) for number in range(5)]
    names = label_places(marks, FRAME)
    assert collisions(marks, names) == []
    assert [name.adjacent for name in names].count(True) <= 2
    for name in names:
        others = [box for other in marks if other is not name.mark for box in other.boxes()]
        assert not any(part.overlaps(box) for part in name.line() for box in others)
