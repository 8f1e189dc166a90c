"""Computing a model with other values in place of its weights, which themselves stay as they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Parameter
    from transformers import PreTrainedModel

Places = list[tuple[dict[str, Any], str, "Parameter"]]
"""Where a parameter hangs in its module: the module's own table, the name there, and the parameter."""


@contextmanager
def substituted(model: PreTrainedModel, values: Mapping[Parameter, Tensor]) -> Iterator[None]:
    """Inside, the model is computed with `values`; gradients flow to what they were made of."""
    places = substitute(model, values)
    try:
        yield
    finally:
        put_back(places)


def substitute(model: PreTrainedModel, values: Mapping[Parameter, Tensor]) -> Places:
    """Hang `values` in place of parameters, of tied ones at each of their places; `put_back` ends it."""
    places: Places = [
        (module._parameters, name, weight)
        for module in model.modules()
        for name, weight in module._parameters.items()
        if weight is not None and weight in values
    ]
    for table, name, weight in places:
        table[name] = values[weight]
    return places


def put_back(places: Places) -> None:
    """Hang the parameters where they were."""
    for table, name, weight in places:
        table[name] = weight
