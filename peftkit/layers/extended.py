"""Architectures of transformers with further modules, which are loaded, saved and initialised like their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import transformers
from torch import nn

Modules = Mapping[str, Callable[[Any], nn.Module]]
"""Further modules by attribute name: functions from a model's configuration to a module with a method `reset`."""


def model_class(auto_class: str, config: Any, modules: Modules) -> Any:
    """What `from_pretrained` and `from_config` are asked of: the auto class, or the architecture with `modules`.

    Raises:
        ValueError: the auto class has no architecture for this configuration.
    """
    auto = getattr(transformers, auto_class)
    if not modules:
        return auto
    if type(config) not in auto._model_mapping:
        raise ValueError(f"Unrecognized configuration class {type(config)} for {auto_class}")
    return _extended(auto._model_mapping[type(config)], modules)


def _extended(architecture: Any, modules: Modules) -> Any:
    class Extended(architecture):
        def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
            super().__init__(config, *args, **kwargs)
            for name, make in modules.items():
                setattr(self, name, make(config))
            self.post_init()

        def _init_weights(self, module: Any) -> None:
            # transformers builds models without weights, and asks for those that a checkpoint lacks afterwards.
            if any(module is getattr(self, name, None) for name in modules):
                module.reset()
            else:
                super()._init_weights(module)

        @classmethod
        def from_config(cls, config: Any, **options: Any) -> Any:
            return cls._from_config(config, **options)

    # The names stay, so that a saved model is one of its architecture to those who do not know the modules.
    Extended.__name__ = Extended.__qualname__ = architecture.__name__
    Extended.__module__ = architecture.__module__
    return Extended
