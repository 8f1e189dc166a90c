"""What is wrong with the rows, before anything is trained: errors that forbid training, and warnings."""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any, Literal

from peftkit.data import ORIGIN
from peftkit.tasks.columns import no_column

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset, DatasetDict

_LISTED = 5
_IMBALANCE = 2.0
"""From this ratio of the largest to the smallest class on, accuracy is worth a warning."""
_INVISIBLE = frozenset({"Cc", "Cf", "Zs", "Zl", "Zp"})
"""Unicode categories of characters that show nothing: controls, zero-width and direction marks, spaces."""


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with the rows.

    Args:
        severity: errors forbid training, warnings do not.
        message: full sentence with split, rows, value, and what to do.
    """

    severity: Literal["error", "warning"]
    message: str


@dataclass(frozen=True)
class LabelRule:
    """What makes a legal label.

    Args:
        column: that holds the labels.
        problem: why a value is no legal label, or None.
        class_of: name of the class a legal label belongs to; None, as function or result, where there are no classes.
        one_per_input: whether an input has one right label; texts that answer a prompt may well differ.
    """

    column: str
    problem: Callable[[Any], str | None]
    class_of: Callable[[Any], str | None] | None = None
    one_per_input: bool = True


@dataclass(frozen=True)
class RowRules:
    """What makes a legal row.

    Args:
        text_columns: what the model reads; rows are compared by these, exactly.
        label: None if the task has no label column.
        context_columns: what the model reads beside them, and may be empty or absent; rows are compared by these too.
        row_problems: what is wrong between the cells of rows, by row; asked where every cell alone is legal.
    """

    text_columns: Sequence[str]
    label: LabelRule | None = None
    context_columns: Sequence[str] = ()
    row_problems: Callable[[Dataset], Mapping[int, str]] | None = None


@dataclass(frozen=True)
class _Split:
    """The columns that matter of one split, read once.

    Args:
        inputs: per row a comparable form of its texts; None where one is missing or empty.
        labels: per row, as stored; None if there is no label column.
        classes: per row; None where the label is illegal or has no class.
    """

    name: str
    origins: Sequence[str] | None
    inputs: Sequence[Any | None]
    labels: Sequence[Any] | None
    classes: Sequence[str | None]

    def places(self, rows: Sequence[int], notes: Mapping[int, str] | None = None) -> str:
        """`rows 3 (a.csv:5), 17 (a.csv:19) and 12 more`."""
        shown = [self.place(row) + (f": {notes[row]}" if notes else "") for row in rows[:_LISTED]]
        more = f" and {len(rows) - _LISTED} more" if len(rows) > _LISTED else ""
        return ("row " if len(rows) == 1 else "rows ") + ("; " if notes else ", ").join(shown) + more

    def place(self, row: int) -> str:
        """`3 (a.csv:5)`."""
        return f"{row} ({self.origins[row]})" if self.origins and self.origins[row] else str(row)


def check_data(
    splits: DatasetDict,
    rules: RowRules,
    *,
    token_lengths: Callable[[Dataset], np.ndarray | None] | None,
    max_length: int,
) -> list[Finding]:
    """All findings: errors first, then warnings, each kind once per split.

    Rows are counted from 0; file and line are given where the source knows them.

    Args:
        splits: rows with the task's column names.
        token_lengths: untruncated tokens of each row, special tokens included, or None where nothing is cut; asked only
            of splits without errors.
        max_length: tokens that truncation leaves.
    """
    findings: list[Finding] = []
    sound: list[_Split] = []
    for name, rows in splits.items():
        errors = _column_errors(name, rows, rules)
        if not errors:
            split, errors = _read(name, rows, rules)
            sound.append(split)
        if not errors and token_lengths is not None and (lengths := token_lengths(rows)) is not None:
            findings += _over_length(split, lengths, max_length)
        findings += [Finding("error", message) for message in errors]
    for split in sound:
        findings += _repeated(split, one_label=rules.label is None or rules.label.one_per_input)
    sound.sort(key=lambda split: split.name != "train")
    for earlier, later in combinations(sound, 2):
        findings += _leaked(earlier, later)
    findings += _class_findings(sound)
    return sorted(findings, key=lambda finding: finding.severity)


def unread_rows(name: str, rows: Dataset, found: Mapping[int, str]) -> str:
    """A warning about rows of the split `name` that the model reads in part only, `found` by row."""
    places = _Split(name, _origins(rows), (), None, ()).places(sorted(found), found)
    return f"split {name!r} has {_rows(len(found))} of {len(rows)} that are not read as a whole: {places}"


def _column_errors(name: str, rows: Dataset, rules: RowRules) -> list[str]:
    present = [column for column in rows.column_names if column != ORIGIN]
    wanted = [*rules.text_columns, *([rules.label.column] if rules.label else [])]
    errors = [no_column(name, rows, column) for column in wanted if column not in present]
    if not len(rows):
        errors.append(f"split {name!r} has no rows; give it some, or leave the split out")
    return errors


def _read(name: str, rows: Dataset, rules: RowRules) -> tuple[_Split, list[str]]:
    text_columns, label = rules.text_columns, rules.label
    compared = [*text_columns, *(column for column in rules.context_columns if column in rows.column_names)]
    table = rows.select_columns([*dict.fromkeys([*compared, *([label.column] if label else [])])])[:]
    origins = _origins(rows)
    blank = {column: [is_blank(value) for value in table[column]] for column in text_columns}
    inputs = [
        None if any(missing) else tuple(_comparable(value) for value in values)
        for missing, values in zip(
            zip(*blank.values(), strict=True),
            zip(*(table[column] for column in compared), strict=True),
            strict=True,
        )
    ]
    labels = table[label.column] if label else None
    problems = _label_problems(labels, label) if labels and label else {}
    classes = [
        label.class_of(value) if label and label.class_of and row not in problems else None
        for row, value in enumerate(labels or [None] * len(inputs))
    ]
    split = _Split(name, origins, inputs, labels, classes)
    errors = []
    for column, missing in blank.items():
        bad = [row for row, flag in enumerate(missing) if flag]
        if bad:
            errors.append(
                f"split {name!r} has {_rows(len(bad))} with no visible text in column {column!r}: {split.places(bad)}; "
                "fill or remove them"
            )
    if label and problems:
        errors.append(
            f"split {name!r} has {_rows(len(problems))} without a legal label in column {label.column!r}: "
            f"{split.places(list(problems), problems)}; correct or remove them, or leave the split out"
        )
    if not errors and rules.row_problems is not None and (found := rules.row_problems(rows)):
        where = split.places(sorted(found), found)
        errors.append(f"split {name!r} has {_rows(len(found))} unfit to learn from: {where}; correct or remove them")
    return split, errors


def _origins(rows: Dataset) -> list[str] | None:
    """File and line of each row, where the source knows them."""
    return rows.select_columns([ORIGIN])[:][ORIGIN] if ORIGIN in rows.column_names else None


def is_blank(value: Any) -> bool:
    """Whether a cell shows nothing: None, NaN, spaces and invisible characters alone, or a list of nothing else."""
    if value is None or (isinstance(value, float) and value != value):
        return True
    if isinstance(value, str):
        return all(unicodedata.category(character) in _INVISIBLE for character in value)
    if isinstance(value, (list, tuple)):
        return all(is_blank(part) for part in value)
    return False


def _comparable(value: Any) -> Any:
    """`value`, or for lists and objects a text that is equal exactly where they are."""
    return json.dumps(value, sort_keys=True, default=repr) if isinstance(value, (list, dict)) else value


def _label_problems(labels: Sequence[Any], rule: LabelRule) -> dict[int, str]:
    known: dict[Any, str | None] = {}
    problems: dict[int, str] = {}
    for row, value in enumerate(labels):
        key = (type(value), _comparable(value))
        if key not in known:
            known[key] = "no label" if _is_missing(value) else rule.problem(value)
        problem = known[key]
        if problem is not None:
            problems[row] = problem
    return problems


def _is_missing(value: Any) -> bool:
    # An empty list is a label where several may apply, and none does.
    return not isinstance(value, (list, tuple, dict)) and is_blank(value)


def _over_length(split: _Split, lengths: np.ndarray, max_length: int) -> list[Finding]:
    longer = (lengths > max_length).nonzero()[0]
    if not len(longer):
        return []
    dropped, tokens = int((lengths[longer] - max_length).sum()), int(lengths.sum())
    longest = int(lengths.argmax())
    message = (
        f"split {split.name!r} has {_rows(len(longer))} of {len(lengths)} ({_percent(len(longer), len(lengths))}) "
        f"over {max_length} tokens: truncation drops {dropped} of {tokens} tokens "
        f"({_percent(dropped, tokens)}); the longest is row {split.place(longest)} with {lengths[longest]}; "
        "raise  model.max_length  or shorten them"
    )
    return [Finding("warning", message)]


def _repeated(split: _Split, *, one_label: bool) -> list[Finding]:
    first: dict[Any, int] = {}
    equal: list[tuple[int, int]] = []
    contradictory: list[tuple[int, int]] = []
    for row, key in enumerate(split.inputs):
        if key is None:
            continue
        earlier = first.setdefault(key, row)
        if earlier != row:
            same = split.labels is None or _comparable(split.labels[row]) == _comparable(split.labels[earlier])
            (equal if same else contradictory).append((earlier, row))
    findings = []
    if equal:
        findings.append(
            f"split {split.name!r} repeats {_rows(len(equal))} of {len(split.inputs)} "
            f"({_percent(len(equal), len(split.inputs))}) exactly: {_pairs(split, split, equal)}; remove them, unless "
            "they should count more than once"
        )
    if contradictory and one_label:
        findings.append(
            f"split {split.name!r} labels {_rows(len(contradictory))} otherwise than an earlier row with the same "
            f"input: {_pairs(split, split, contradictory)}; decide for one label"
        )
    return [Finding("warning", message) for message in findings]


def _leaked(earlier: _Split, later: _Split) -> list[Finding]:
    first: dict[Any, int] = {}
    for row, key in enumerate(earlier.inputs):
        if key is not None:
            first.setdefault(key, row)
    pairs = [(first[key], row) for row, key in enumerate(later.inputs) if key in first]
    if not pairs:
        return []
    message = (
        f"leakage: {_rows(len(pairs))} of {len(later.inputs)} ({_percent(len(pairs), len(later.inputs))}) in split "
        f"{later.name!r} also occur in split {earlier.name!r}: {_pairs(earlier, later, pairs)}; remove them from "
        f"{earlier.name!r}, or the scores on {later.name!r} are too good"
    )
    return [Finding("warning", message)]


def _class_findings(splits: Sequence[_Split]) -> Iterator[Finding]:
    train = next((split for split in splits if split.name == "train"), None)
    if train is None:
        return
    counts = Counter(name for name in train.classes if name is not None)
    if len(counts) == 1:
        only, rows = next(iter(counts.items()))
        yield Finding(
            "error",
            f"split 'train' holds only the class {only!r} ({_rows(rows)}); a classifier needs two or more",
        )
    for split in splits:
        unseen = Counter(name for name in split.classes if name is not None and name not in counts)
        if counts and unseen:
            listed = ", ".join(f"{name!r} ({_rows(rows)})" for name, rows in unseen.most_common(_LISTED))
            more = f" and {len(unseen) - _LISTED} more" if len(unseen) > _LISTED else ""
            yield Finding(
                "warning",
                f"split {split.name!r} has classes that 'train' lacks: {listed}{more}; they cannot be learnt, so add "
                "rows of them to 'train'",
            )
    if len(counts) > 1:
        yield from _imbalance(counts)


def _imbalance(counts: Counter[str]) -> Iterator[Finding]:
    ranked = counts.most_common()
    (largest, many), (smallest, few) = ranked[0], ranked[-1]
    if many < _IMBALANCE * few:
        return
    share = _percent(many, counts.total())
    yield Finding(
        "warning",
        f"the classes of split 'train' are unbalanced: {largest!r} has {share} of the rows, {smallest!r} "
        f"{_percent(few, counts.total())}; accuracy misleads here (always answering {largest!r} gives about {share}), "
        "so judge by macro-F1 or Matthews correlation",
    )


def _pairs(earlier: _Split, later: _Split, pairs: Sequence[tuple[int, int]]) -> str:
    shown = [f"row {later.place(second)} = row {earlier.place(first)}" for first, second in pairs[:_LISTED]]
    return ", ".join(shown) + (f" and {len(pairs) - _LISTED} more" if len(pairs) > _LISTED else "")


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count} rows"


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %"
