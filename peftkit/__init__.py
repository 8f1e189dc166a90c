"""peftkit: parameter-efficient fine-tuning from one recipe file to an adapter an application can load."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from peftkit.layers.registration import register_with_peft

__version__ = "0.1.0"

if TYPE_CHECKING:
    from peftkit.foreign import load_adapter
    from peftkit.predictor import Predictor, load
    from peftkit.recipe import Recipe
    from peftkit.results import RunResult
    from peftkit.training import run

__all__ = ["Predictor", "Recipe", "RunResult", "__version__", "load", "load_adapter", "run"]

_HOMES = {
    "Predictor": "peftkit.predictor",
    "Recipe": "peftkit.recipe",
    "RunResult": "peftkit.results",
    "load": "peftkit.predictor",
    "load_adapter": "peftkit.foreign",
    "run": "peftkit.training",
}

# So that plain peft code loads adapters of peftkit's own kinds once peftkit is imported.
register_with_peft()


def __getattr__(name: str) -> Any:
    # PEP 562: `import peftkit` must cost nothing, torch least of all.
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'peftkit' has no attribute {name!r}")
