from __future__ import annotations

import math

import pytest

from peftkit.report import wording


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.91236, "0.9124"),
        (0.0, "0.0000"),
        (-0.25, "-0.2500"),
        (999.96, "999.9600"),
        (12345.67, "12,345.7"),
        (0.00003, "3.0e-05"),
        (2.5e12, "2.5e+12"),
        (math.nan, "nan"),
        (-math.inf, "-inf"),
    ],
)
def test_numbers(value: float, text: str) -> None:
    assert wording.number(value) == text


@pytest.mark.parametrize(
    ("part", "whole", "text"),
    [
        (1, 3, "33.3 %"),
        (297_988, 109_781_768, "0.27 %"),
        (3_076, 109_781_768, "0.003 %"),
        (1, 10**9, "< 0.001 %"),
        (10**9 - 1, 10**9, "> 99.9 %"),
        (5, 5, "100 %"),
        (0, 5, "0 %"),
        (0, 0, "\N{EN DASH}"),
    ],
)
def test_shares(part: int, whole: int, text: str) -> None:
    assert wording.share(part, whole) == text.replace(" %", "\N{NO-BREAK SPACE}%")


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (9_999, "9,999"), (12_345, "12.3 k"), (109_781_768, "109.8 M"), (7_100_000_000, "7.1 B")],
)
def test_counts(value: int, text: str) -> None:
    assert wording.count(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.6, "1 min"),
        (754.2, "12 min 34 s"),
        (3599.7, "1 h"),
        (4320, "1 h 12 min"),
        (97_200, "1 d 3 h"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert wording.duration(seconds) == text


@pytest.mark.parametrize(
    ("amount", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (3 * 2**30, "3.0 GiB"), (2**41, "2.0 TiB")]
)
def test_sizes(amount: int, text: str) -> None:
    assert wording.size(amount) == text


def test_names() -> None:
    assert wording.plain_name("sequence_classification") == "sequence classification"
    assert wording.plain_name("f1_macro") == "F1 macro"
    assert wording.origin("wheel") == "Python package"
    assert wording.origin("something_new") == "something_new"
