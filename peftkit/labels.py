"""How labels are written where tasks, losses and regularizers meet."""

from __future__ import annotations

from typing import Literal

IGNORED = -100
"""Class index of positions that have no label."""

Targets = Literal["classes", "flags", "numbers", "pairs", "own", "rewards"]
"""What logits are compared with: a class per position, a flag per class, a number, the place of a text's partner among
the texts of the batch, something that only the task itself knows, or rewards of answers made on the way."""
