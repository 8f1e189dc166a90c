"""The cells of the contract matrix: a tuning method on an architecture whose weights are stored in some way."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import transformers

from peftkit.errors import CapabilityError
from peftkit.methods import TuningContext, TuningMethod, methods
from peftkit.models import load_adapter_onto, make_room, quiet_libraries, to_float32_masters
from peftkit.outputs import autocast
from peftkit.quantization import quantizers

Checkpoint = Callable[[str], Path]


@dataclass(frozen=True)
class Architecture:
    """A kind of model: tiny checkpoint, auto class, peft's task type, new head modules, outputs."""

    checkpoint: str
    auto_class: str
    task_type: str
    head: tuple[str, ...] = ()
    labels: int | None = None


ARCHITECTURES = {
    "bert_sequence": Architecture("bert", "AutoModelForSequenceClassification", "SEQ_CLS", ("classifier",), 2),
    "bert_token": Architecture("bert", "AutoModelForTokenClassification", "TOKEN_CLS", ("classifier",), 3),
    "gpt2": Architecture("gpt2", "AutoModelForCausalLM", "CAUSAL_LM"),
    "llama": Architecture("llama", "AutoModelForCausalLM", "CAUSAL_LM"),
    "t5": Architecture("t5", "AutoModelForSeq2SeqLM", "SEQ_2_SEQ_LM"),
}
BITS = {"fp32": 32, "bf16": 16, "int8": 8, "nf4": 4}
TOKENS = ("<one>", "<two>")
REQUIRED: Mapping[str, Mapping[str, Any]] = {
    "bottleneck": {"width": 8},  # of the two units that are the default here, both may be dead
    "peft": {"type": "lily"},
    "trainable_tokens": {"tokens": list(TOKENS)},
    "stack": {"methods": ["lora", "layer_norm"]},
}
"""Options of methods that have no defaults for all, or none that suit models of width 32."""
FURTHER = {
    "bottleneck houlsby": {"name": "bottleneck", "style": "houlsby", "width": 8},
    "bottleneck parallel": {"name": "bottleneck", "style": "parallel", "width": 8},
    "bottleneck scaled_parallel": {"name": "bottleneck", "style": "scaled_parallel", "width": 8},
    "prefix reparameterised": {"name": "prefix", "reparameterisation": True},
    "lora pissa": {"name": "lora", "init": "pissa"},
    "lora olora": {"name": "lora", "init": "olora"},
    "lora corda": {"name": "lora", "init": "corda"},
    "lora loftq": {"name": "lora", "init": "loftq"},
    "lora eva": {"name": "lora", "init": "eva"},
    "lora freeze_a": {"name": "lora", "freeze_a": True},
}
"""Variants of methods that are methods of their own to the contracts."""
STEPS, ROWS, LENGTH = 20, 4, 9


def variants() -> dict[str, dict[str, Any]]:
    """Every registered method with default options, and the further variants, as recipes write them."""
    found = {name: {"name": name, **REQUIRED.get(name, {})} for name in methods.loaded_names()}
    return found | FURTHER


@dataclass(frozen=True)
class Cell:
    """One cell of the matrix."""

    variant: str
    method: TuningMethod
    architecture: Architecture
    storage: str
    folder: Path

    @classmethod
    def of(cls, variant: str, architecture: str, storage: str, *, checkpoint: Checkpoint) -> Cell:
        kind = ARCHITECTURES[architecture]
        method = methods.build(variants()[variant])
        return cls(variant, method, kind, storage, checkpoint(kind.checkpoint))

    @property
    def context(self) -> TuningContext:
        """What the method may know of the run."""
        return TuningContext(
            self.architecture.task_type,
            self.architecture.head,
            STEPS,
            base_bits=BITS[self.storage],
            batches=lambda: iter([self.inputs(rows=32)] * 2),
            tokenizer=self.tokenizer,
        )

    @property
    def tokenizer(self) -> Any:
        """The checkpoint's, with what the method adds to it."""
        tokenizer = transformers.AutoTokenizer.from_pretrained(self.folder)
        self.method.prepare_tokenizer(tokenizer)
        return tokenizer

    @property
    def is_adapter(self) -> bool:
        """Whether the base itself stays as it is."""
        return not self.method.trains_base_weights

    def skeleton(self) -> Any:
        """The model without weights."""
        config = transformers.AutoConfig.from_pretrained(self.folder, **self._labels())
        with torch.device("meta"):
            return self._auto().from_config(config)

    def base(self, storage: str | None = None) -> Any:
        """A fresh base model in evaluation mode; its new head is always drawn alike."""
        storage = storage or self.storage
        options: dict[str, Any] = {"dtype": torch.bfloat16 if storage == "bf16" else torch.float32}
        if storage in ("int8", "nf4"):
            quantizer = quantizers.build(storage)
            bare = self.skeleton()
            keep = [*self.architecture.head, "lm_head"]
            keep += self.method.full_precision_modules(bare, head_modules=self.architecture.head)
            options |= {"quantization_config": quantizer.config(compute_dtype=torch.float32, keep=keep)}
        torch.manual_seed(0)
        with quiet_libraries():
            model = self._auto().from_pretrained(self.folder, **self._labels(), **options)
        make_room(model, self.tokenizer)
        if storage in ("int8", "nf4"):
            quantizer.settle(model)
        for name in self.architecture.head:
            model.get_submodule(name).float()
        return model.eval()

    def tuned(self) -> Any:
        """The method applied to a fresh base, trainable weights in float32."""
        torch.manual_seed(1)
        with quiet_libraries():
            return to_float32_masters(self.method.apply(self.base(), self.context)).eval()

    def refusal(self) -> str | None:
        """Why this cell is refused, or None."""
        if problem := self.method.problem(self.skeleton(), self.context):
            return problem
        try:
            self.tuned()
        except CapabilityError as problem:
            return str(problem)
        return None

    def reloaded(self, folder: Path, *, storage: str | None = None) -> Any:
        """What was saved in `folder`, on a fresh base, as `load_tuned` does it."""
        if not self.is_adapter:
            with quiet_libraries():
                return self._auto().from_pretrained(folder, **self._labels()).eval()
        return load_adapter_onto(self.base(storage), folder)

    def inputs(self, rows: int = ROWS) -> dict[str, torch.Tensor]:
        """A batch with padding, without labels."""
        generator = torch.Generator().manual_seed(5)
        ids = torch.randint(5, 60, (rows, LENGTH), generator=generator)
        ids[:, 0], ids[:, 1] = self.tokenizer.convert_tokens_to_ids(list(TOKENS)) if self._trains_tokens else (5, 6)
        mask = torch.ones_like(ids)
        mask[0, LENGTH - 4 :] = 0
        batch = {"input_ids": ids, "attention_mask": mask}
        return batch | ({"decoder_input_ids": ids[:, :6]} if self.architecture.task_type == "SEQ_2_SEQ_LM" else {})

    def loss(self, model: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Cross-entropy to labels that are drawn at random: there is nothing to generalise, only to fit."""
        with autocast(model):
            logits = model(**batch).logits.float()
        labels = torch.randint(0, logits.shape[-1], logits.shape[:-1], generator=torch.Generator().manual_seed(7))
        return torch.nn.functional.cross_entropy(logits.flatten(0, -2), labels.flatten())

    def logits(self, model: Any) -> torch.Tensor:
        """Outputs for the batch."""
        with torch.no_grad(), autocast(model):
            return model(**self.inputs()).logits.float()

    def train(self, model: Any, *, steps: int, learning_rate: float, rows: int = ROWS) -> list[float]:
        """A few optimizer steps on one batch, in evaluation mode so that nothing is random; the losses."""
        trainable = [weight for weight in model.parameters() if weight.requires_grad]
        optimizer = torch.optim.AdamW(trainable, lr=learning_rate, weight_decay=0.0)
        batch, losses = self.inputs(rows), []
        for _ in islice(_forever(), steps):
            loss = self.loss(model, batch)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        return losses

    @property
    def _trains_tokens(self) -> bool:
        return self.method.name == "trainable_tokens"

    def _auto(self) -> Any:
        return getattr(transformers, self.architecture.auto_class)

    def _labels(self) -> dict[str, int]:
        return {} if self.architecture.labels is None else {"num_labels": self.architecture.labels}


def _forever() -> Iterator[None]:
    while True:
        yield None
