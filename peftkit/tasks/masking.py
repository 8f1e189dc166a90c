"""Which tokens a masked language model has to find, and what it sees in their place (BERT, arXiv:1810.04805, 3.1)."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from peftkit.errors import DataError
from peftkit.labels import IGNORED
from peftkit.tasks import DRAW

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedTokenizerBase

_MASKED, _RANDOM = 0.8, 0.1
"""Shares of the chosen tokens that become the mask token, and another token; the rest stays as it is."""


def generator_of(feature: Mapping[str, Any], *, seed: int) -> np.random.Generator:
    """What draws for a feature: by its `DRAW`, or without one by its ids, so that it is always the same."""
    import numpy as np

    if DRAW in feature:
        return np.random.default_rng(feature[DRAW])
    return np.random.default_rng([seed, zlib.crc32(np.asarray(feature["input_ids"], np.int64).tobytes())])


@dataclass(frozen=True)
class Masking:
    """How tokens are chosen and replaced.

    Args:
        probability: share of the tokens that are chosen.
        mask: id of the mask token.
        special: ids that are never chosen.
        ordinary: (tokens,) ids that may stand in place of others: all but special ones.
        seed: of draws for features that bring none.
    """

    probability: float
    mask: int
    special: Sequence[int]
    ordinary: np.ndarray
    seed: int

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, *, probability: float, seed: int) -> Masking:
        """The masking with the tokens of a tokenizer.

        Raises:
            DataError: it has no mask token.
        """
        import numpy as np

        if tokenizer.mask_token_id is None:
            raise DataError(
                f"{type(tokenizer).__name__} has no mask token, so nothing can be masked; take a base that was trained "
                "with masks, such as BERT or RoBERTa"
            )
        special = tokenizer.all_special_ids
        ordinary = np.setdiff1d(np.arange(len(tokenizer)), special)
        return cls(probability, tokenizer.mask_token_id, special, ordinary, seed)

    def apply(self, feature: Mapping[str, Any]) -> dict[str, list[int]]:
        """`input_ids` with masks, and `labels` with the ids that were there, -100 elsewhere.

        Args:
            feature: with `words`, the number of each token's word, where whole words are masked.
        """
        import numpy as np

        draw = generator_of(feature, seed=self.seed)
        ids = np.array(feature["input_ids"], np.int64)
        free = np.flatnonzero(~np.isin(ids, self.special))
        chosen = self._chosen(draw, _groups(free, feature.get("words")))
        labels = np.full_like(ids, IGNORED)
        labels[chosen] = ids[chosen]
        fate = draw.random(len(chosen))
        ids[chosen[fate < _MASKED]] = self.mask
        changed = chosen[(fate >= _MASKED) & (fate < _MASKED + _RANDOM)]
        ids[changed] = draw.choice(self.ordinary, len(changed))
        return {"input_ids": ids.tolist(), "labels": labels.tolist()}

    def _chosen(self, draw: np.random.Generator, groups: Sequence[np.ndarray]) -> np.ndarray:
        """Positions in order: as many whole groups as fit into the share of all, but one at least."""
        import numpy as np

        budget = max(1, round(self.probability * sum(map(len, groups))))
        chosen: list[np.ndarray] = []
        for place in draw.permutation(len(groups)):
            group = groups[place]
            if len(group) <= budget or not chosen:
                chosen.append(group)
                budget -= len(group)
            if budget <= 0:
                break
        return np.sort(np.concatenate(chosen)) if chosen else np.empty(0, np.int64)


def _groups(free: np.ndarray, words: Sequence[int] | None) -> Sequence[np.ndarray]:
    """Positions that are masked together: each alone, or those of a word."""
    import numpy as np

    if words is None:
        return [*free[:, None]]
    # Special tokens part words too: each text counts its words from 0.
    starts = np.flatnonzero(np.diff(np.asarray(words)[free]) | (np.diff(free) > 1)) + 1
    return [group for group in np.split(free, starts) if len(group)]
