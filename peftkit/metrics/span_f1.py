"""Scores of tagged words: F1 of the spans that tags mark, and accuracy of the tags themselves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

from peftkit.errors import DataError
from peftkit.metrics import Metric, Rows, metrics

if TYPE_CHECKING:
    import numpy as np

Span = tuple[str, int, int]


class TagMetric(Metric):
    """A score from counts that are summed over rows."""

    def counts(self, predicted: Sequence[str], actual: Sequence[str]) -> list[int]:
        """Of one row."""
        raise NotImplementedError

    def scores(self, totals: np.ndarray) -> dict[str, np.ndarray]:
        """Scores (resamples,) by name, of summed counts (resamples, counts)."""
        raise NotImplementedError

    def compute(self, predictions: Rows, references: Rows) -> dict[str, float]:
        """See `Metric.compute`; each row is a list of tags."""
        totals = self._table(predictions, references).sum(axis=0, keepdims=True)
        return {name: float(values[0]) for name, values in self.scores(totals).items()}

    def resampled(self, predictions: np.ndarray, references: np.ndarray, counts: np.ndarray) -> dict[str, np.ndarray]:
        """See `Metric.resampled`."""
        return self.scores(counts @ self._table(predictions, references))

    def _table(self, predictions: Rows, references: Rows) -> np.ndarray:
        import numpy as np

        if not len(references):
            raise DataError(f"the metric {self.name!r} got no rows; a split that is scored needs at least one")
        rows = list(zip(predictions, references, strict=True))
        for place, (predicted, actual) in enumerate(rows):
            if not (_is_tags(predicted) and _is_tags(actual)) or len(predicted) != len(actual):
                raise DataError(
                    f"the metric {self.name!r} compares lists of tags of equal length, but row {place} has "
                    f"{predicted!r} for {actual!r}; choose another metric"
                )
        return np.array([self.counts(list(predicted), list(actual)) for predicted, actual in rows])


@metrics.register("span_f1")
class SpanF1(TagMetric):
    """Micro-averaged F1 of spans, right only with the very words and type.

    Tjong Kim Sang & De Meulder 2003. The same as the seqeval library's, in both of its modes.
    """

    mode: Literal["default", "strict"] = "default"
    """default: a tag that breaks its scheme still opens or ends a span, as the CoNLL script has it; strict: only spans
    that keep to `scheme` count."""
    scheme: Literal["BIO", "BIOES"] = "BIO"
    """Of strict mode."""
    by_type: bool = False
    """Also span_f1_person, ...: the F1 of each type of span that the references have."""

    def compute(self, predictions: Rows, references: Rows) -> dict[str, float]:
        """See `TagMetric.compute`."""
        found = super().compute(predictions, references)
        for kind, one, other in self._by_type(predictions, references):
            found[f"{self.name}_{kind}"] = super().compute(one, other)[self.name]
        return found

    def resampled(self, predictions: np.ndarray, references: np.ndarray, counts: np.ndarray) -> dict[str, np.ndarray]:
        """See `Metric.resampled`."""
        found = super().resampled(predictions, references, counts)
        for kind, one, other in self._by_type(predictions, references):
            found[f"{self.name}_{kind}"] = self.scores(counts @ self._table(one, other))[self.name]
        return found

    def _by_type(self, predictions: Rows, references: Rows) -> Iterator[tuple[str, Rows, Rows]]:
        """Each type, with tags of other types left out."""
        kinds = {tag.partition("-")[2] for row in references for tag in row if "-" in tag} if self.by_type else ()
        for kind in sorted(kinds):
            yield kind, _only(kind, predictions), _only(kind, references)

    def counts(self, predicted: Sequence[str], actual: Sequence[str]) -> list[int]:
        """Spans that are right, predicted, and there."""
        found, there = self.spans(predicted), self.spans(actual)
        return [sum((found & there).values()), found.total(), there.total()]

    def spans(self, tags: Sequence[str]) -> Counter[Span]:
        """The spans of one row."""
        if self.mode == "default":
            return Counter(_lenient(tags))
        return Counter(_strict(tags, self.scheme))

    def scores(self, totals: np.ndarray) -> dict[str, np.ndarray]:
        """See `TagMetric.scores`."""
        import numpy as np

        right, predicted, there = totals[:, 0], totals[:, 1], totals[:, 2]
        return {
            "span_f1": 2 * right / np.maximum(predicted + there, 1),
            "span_precision": right / np.maximum(predicted, 1),
            "span_recall": right / np.maximum(there, 1),
        }


@metrics.register("tag_accuracy")
class TagAccuracy(TagMetric):
    """Share of words whose tag is right."""

    def counts(self, predicted: Sequence[str], actual: Sequence[str]) -> list[int]:
        """Words that are right, and all."""
        return [sum(one == two for one, two in zip(predicted, actual, strict=True)), len(actual)]

    def scores(self, totals: np.ndarray) -> dict[str, np.ndarray]:
        """See `TagMetric.scores`."""
        import numpy as np

        return {"tag_accuracy": totals[:, 0] / np.maximum(totals[:, 1], 1)}


def _only(kind: str, rows: Rows) -> list[list[str]]:
    return [[tag if tag.partition("-")[2] == kind else "O" for tag in row] for row in rows]


def _lenient(tags: Sequence[str]) -> list[Span]:
    """Spans as the CoNLL-2000 script takes them from any sequence of tags."""
    spans: list[Span] = []
    start, prefix, kind = 0, "O", ""
    for place, tag in enumerate([*tags, "O"]):
        now, _, then = tag.partition("-")
        changed = then != kind
        ends = prefix in ("E", "S") or (prefix in ("B", "I") and (now in ("B", "S", "O") or changed))
        begins = now in ("B", "S") or (now in ("I", "E") and (prefix in ("E", "S", "O") or changed))
        if prefix != "O" and ends:
            spans.append((kind, start, place))
        if begins:
            start = place
        prefix, kind = now, then
    return spans


def _strict(tags: Sequence[str], scheme: str) -> list[Span]:
    """Spans that are written as their scheme wants them, from the first word to the last."""
    spans: list[Span] = []
    place = 0
    while place < len(tags):
        prefix, _, kind = tags[place].partition("-")
        stop = place + 1
        if prefix == "B":
            while stop < len(tags) and tags[stop] == f"I-{kind}":
                stop += 1
            if scheme == "BIO":
                spans.append((kind, place, stop))
            elif stop < len(tags) and tags[stop] == f"E-{kind}":
                stop += 1
                spans.append((kind, place, stop))
        elif prefix == "S" and scheme == "BIOES":
            spans.append((kind, place, stop))
        place = stop
    return spans


def _is_tags(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(tag, str) for tag in value)
