"""What the engine trains on: features as they are, with seeds for what is drawn for them, or made from a stream."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from peftkit.data import RowStream
from peftkit.data.progress_bars import hidden_progress_bars
from peftkit.recipe import Recipe
from peftkit.tasks import DRAW, ROW
from peftkit.training.batching import Batched, FreshDraws, TokenBatches, token_lengths

if TYPE_CHECKING:
    from peftkit.training.prepare import PreparedData

_CHUNK_CHARACTERS = 1_000_000
"""Texts that are encoded at a time; blocks are packed within."""


def training_features(data: PreparedData, recipe: Recipe) -> Any:
    """Training features as the engine takes them; None without training rows."""
    if data.loaded.stream is not None:
        return StreamedFeatures(data, data.loaded.stream, seed=recipe.seed, max_length=recipe.model.max_length)
    rows = data.features.get("train")
    if rows is None:
        return None
    features = FreshDraws(rows, seed=recipe.seed) if data.task.draws else rows
    if recipe.training.batch_tokens is None:
        return features
    return Batched(features, TokenBatches.of(recipe, token_lengths(rows, data.task)))


class StreamedFeatures(IterableDataset[dict[str, Any]]):
    """Features of a stream of texts, without end: behind the last text comes the first again.

    Order and draws depend on the seed alone, so that a resumed run, which passes over what it has seen, goes on as if
    it had not stopped. No more than a chunk of texts and the buffer are in memory.
    """

    def __init__(self, data: PreparedData, stream: RowStream, *, seed: int, max_length: int) -> None:
        self.data = data
        self.stream = stream
        self.seed = seed
        self.max_length = max_length

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Features in a random order; of several loading processes each gives its share."""
        worker = get_worker_info()
        share, shares = (worker.id, worker.num_workers) if worker else (0, 1)
        for place, feature in enumerate(self._shuffled()):
            if place % shares == share:
                yield {**feature, DRAW: [self.seed, place]} if self.data.task.draws else feature

    def _shuffled(self) -> Iterator[dict[str, Any]]:
        """Each next one drawn from the buffer, in which the next of the stream takes its place."""
        draw = np.random.default_rng(self.seed)
        buffer: list[dict[str, Any]] = []
        for feature in self._features():
            if len(buffer) < self.stream.buffer:
                buffer.append(feature)
                continue
            chosen = int(draw.integers(len(buffer)))
            yield buffer[chosen]
            buffer[chosen] = feature

    def _features(self) -> Iterator[dict[str, Any]]:
        while True:
            for texts in self._chunks():
                rows = datasets.Dataset.from_dict({"text": texts})
                with hidden_progress_bars():
                    features = self.data.task.encode(rows, self.data.tokenizer, self.max_length)
                # The number of a row in its chunk would name another row of the split.
                yield from features.remove_columns(ROW)

    def _chunks(self) -> Iterator[list[str]]:
        texts: list[str] = []
        characters = 0
        for text, _ in self.stream.texts():
            texts.append(text)
            characters += len(text)
            if characters >= _CHUNK_CHARACTERS:
                yield texts
                texts, characters = [], 0
        if texts:
            yield texts
