"""Bottleneck adapters as a tuner of peft; importing this module registers it.

Sequential (Houlsby et al. 2019, arXiv:1902.00751; Pfeiffer et al. 2021, arXiv:2005.00247): a sub-layer that gives h
then gives h + W_up f(W_down h + b_down) + b_up. Parallel (He et al. 2022, arXiv:2110.04366): a feed-forward sub-layer
that turns x into h then gives h + s (W_up f(W_down x + b_down) + b_up).
"""

from __future__ import annotations

from peftkit.layers.bottleneck.config import BottleneckConfig
from peftkit.layers.bottleneck.layer import BottleneckLayer
from peftkit.layers.bottleneck.model import BottleneckModel
from peftkit.layers.registration import register_tuner

__all__ = ["BottleneckConfig", "BottleneckLayer", "BottleneckModel"]

register_tuner(name="bottleneck", config=BottleneckConfig, model=BottleneckModel)
