"""Forward passes of modules that are computed otherwise for a while."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

Compute = Callable[..., Any]
"""A forward pass."""


class ReplacedForward:
    """The forward pass of a module, computed by another function until `remove`; what came before comes back then.

    Those that replace the same one are removed in the reverse of their order.

    Args:
        instead: called with the present forward pass, and what that would be called with.
    """

    def __init__(self, module: nn.Module, instead: Callable[..., Any]) -> None:
        self._module: Any = module
        self._before: Compute | None = vars(module).get("forward")
        self._module.forward = partial(instead, module.forward)

    def remove(self) -> None:
        """Let the module be computed as before."""
        del self._module.forward
        if self._before is not None:
            self._module.forward = self._before
