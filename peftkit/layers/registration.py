"""Making peft know peftkit's tuners, without importing peft before the user does.

peft looks a saved adapter's `peft_type` up in a table, and an unknown one ends in a bare `KeyError` with its text. So
the text says what to do, and `import peftkit` fills the table: at once where peft is loaded, else when it gets loaded.
"""

from __future__ import annotations

import sys
import threading
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

TUNERS = ("peftkit.layers.bottleneck", "peftkit.layers.bias")
"""Modules that call `register_tuner` when they are imported."""
_REGISTERING = threading.RLock()


def peft_type_of(name: str) -> str:
    """The `peft_type` of a tuner. peft's error without `import peftkit` is  KeyError: 'BITFIT: IMPORT PEFTKIT FIRST'.

    peft registers no lower case, and looks the text up as name and as value of its enum, which have to be the same.
    """
    return f"{name.upper()}: IMPORT PEFTKIT FIRST"


def register_with_peft() -> None:
    """Register the tuners with peft: now if it is loaded, else right after it has been; in any thread, many times."""
    watcher = _PeftWatcher()
    if not any(type(finder).__name__ == _PeftWatcher.__name__ for finder in sys.meta_path):
        sys.meta_path.insert(0, watcher)
    if sys.modules.get("peft") is not None:  # asked after the watcher is in place: no import slips through between
        watcher.leave()
        import_module("peft")  # waits for a thread that is still importing it
        _load_tuners()


def register_tuner(*, name: str, config: type[Any], model: type[Any]) -> None:
    """File a tuner in peft's tables; a module that is loaded again takes the place of its former self."""
    from peft import mapping
    from peft.utils import register_peft_method

    tables = (
        mapping.PEFT_TYPE_TO_CONFIG_MAPPING,
        mapping.PEFT_TYPE_TO_TUNER_MAPPING,
        mapping.PEFT_TYPE_TO_MIXED_MODEL_MAPPING,
    )
    with _REGISTERING:
        peft_type = _member(peft_type_of(name))
        for table in tables:
            table.pop(peft_type, None)
        mapping.PEFT_TYPE_TO_PREFIX_MAPPING.pop(peft_type, None)
        register_peft_method(name=peft_type.lower(), config_cls=config, model_cls=model, prefix=model.prefix)


def _member(text: str) -> Any:
    """The member of peft's enum of types with this text, added if need be: enums have no public way to grow."""
    from peft.utils import PeftType

    if text not in PeftType._value2member_map_:
        member = str.__new__(PeftType, text)
        member._name_ = member._value_ = text
        type.__setattr__(PeftType, text, member)  # how Python 3.12 finds members by name
        PeftType._member_map_[text] = PeftType._value2member_map_[text] = member
        PeftType._member_names_.append(text)
    return PeftType(text)


def _load_tuners() -> None:
    try:
        for module in TUNERS:
            import_module(module)
    except (ImportError, AttributeError, TypeError, KeyError, ValueError) as problem:
        import warnings

        # A peft that has changed inside must stay usable for those who only happen to have peftkit imported as well.
        version = getattr(sys.modules.get("peft"), "__version__", "unknown")
        warnings.warn(
            f"peftkit cannot register its adapters with peft {version} ({type(problem).__name__}: {problem}); folders "
            "of its methods bottleneck and bitfit will not load; install the peft version that peftkit asks for",
            RuntimeWarning,
            stacklevel=2,
        )


class _PeftWatcher:
    """Finder in `sys.meta_path` that waits for peft: the finders behind it find, it only sees the import through."""

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> Any:
        """peft's spec with a loader that registers the tuners; None for all else.

        Looking (`importlib.util.find_spec`) is no import: the watcher stays until peft has been executed.
        """
        if name != "peft":
            return None
        finders = list(sys.meta_path)
        behind = finders[finders.index(self) + 1 :] if self in finders else finders
        for finder in behind:
            spec: ModuleSpec | None = finder.find_spec(name, path, target) if hasattr(finder, "find_spec") else None
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _RegisteringLoader(spec.loader, self)  # type: ignore[assignment] # acts as one
                return spec
        return None

    def leave(self) -> None:
        """Take all watchers out of `sys.meta_path`."""
        for finder in list(sys.meta_path):
            if type(finder).__name__ == type(self).__name__ and finder in sys.meta_path:
                sys.meta_path.remove(finder)


class _RegisteringLoader:
    """peft's own loader, and the tuners' registration after it has run."""

    def __init__(self, loader: Any, watcher: _PeftWatcher) -> None:
        self._loader = loader
        self._watcher = watcher

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> Any:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Execute peft, put its own loader back, register; a failed import leaves the watcher for the next try."""
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        self._watcher.leave()
        _load_tuners()
