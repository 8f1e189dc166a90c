"""DoRA: LoRA for the direction of each weight, and a trained magnitude."""

from __future__ import annotations

from typing import ClassVar

from peftkit.methods import methods
from peftkit.methods.lora import LowRank


@methods.register("dora")
class Dora(LowRank):
    """LoRA on the direction of each weight, its magnitude trained apart: y = m (W + s B A) x / |W + s B A|.

    The norm runs over the inputs of each output (section 4). Takes the options of lora.
    """

    paper: ClassVar[str] = "Liu et al. 2024, arXiv:2402.09353"
    use_when: ClassVar[str] = "lora at a low rank falls short of full tuning, and a slower step is affordable"
    decomposed: ClassVar[bool] = True
