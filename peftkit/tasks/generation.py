"""What tasks have in common that answer with generated text: a prompt, its completion, and the likelihood of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field

from peftkit.errors import CapabilityError, DataError
from peftkit.labels import IGNORED
from peftkit.tasks import ROW, Collator, Encoded, Head, Scored, Task, TokenScores
from peftkit.tasks.columns import check_columns
from peftkit.tasks.padding import padded

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset, DatasetDict
    from torch import Tensor
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

_LEAST_PROMPT = 4
"""A completion that fills the whole length leaves every this many tokens one to the prompt."""


@dataclass(frozen=True)
class Generated:
    """What is read of one row.

    Args:
        likelihood: summed negative log-likelihood, tokens, tokens that are the model's first choice.
        tokens: generated, without the prompt; None: not asked for.
    """

    likelihood: tuple[float, float, float]
    tokens: list[int] | None = None


class GenerationTask(Task):
    """Prompt in, text out, on decoders and on encoder-decoders; the loss is that of the completion's tokens alone."""

    generates: ClassVar[bool] = True
    reads_likelihoods: ClassVar[bool] = True

    architecture: Literal["decoder", "encoder_decoder"] | None = None
    """Kind of base model; none: what its configuration says."""
    max_new_tokens: int = Field(128, ge=1)
    """Longest answer, in tokens."""
    num_beams: int = Field(1, ge=1)
    """Width of the beam search; 1: the likeliest token each time."""
    temperature: float = Field(0.0, ge=0.0)
    """Of sampling; 0: no sampling, so that the same input always gives the same answer."""
    stop: tuple[str, ...] = ()
    """Texts at which an answer is cut off, beside the end token."""

    @property
    def _is_decoder(self) -> bool:
        return self.architecture != "encoder_decoder"

    def suited(self, config: PretrainedConfig) -> Self:
        """For this base; see `Task.suited`."""
        kind: Any = "encoder_decoder" if config.is_encoder_decoder else "decoder"
        if self.architecture not in (None, kind):
            raise CapabilityError(
                f"task.architecture is {self.architecture!r}, but the base model ({config.model_type}) is of the kind "
                f"{kind!r}; remove it"
            )
        return self.model_copy(update={"architecture": kind})

    def head(self) -> Head:
        """The language model's own."""
        if self._is_decoder:
            return Head("AutoModelForCausalLM", peft_task_type="CAUSAL_LM", is_new=False, generates=True)
        return Head("AutoModelForSeq2SeqLM", peft_task_type="SEQ_2_SEQ_LM", is_new=False, generates=True)

    def collator(self, tokenizer: PreTrainedTokenizerBase) -> Collator:
        """Pads on the right: positions count from the first token."""
        fill = {"input_ids": tokenizer.pad_token_id, "attention_mask": 0, "labels": IGNORED}
        return lambda features: padded(features, fill)

    def forward(self, model: PreTrainedModel, batch: Mapping[str, Any]) -> Any:
        """Logits of every token (decoder) or of every label (encoder-decoder)."""
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        if not self._is_decoder:
            inputs["decoder_input_ids"] = decoder_inputs(model, batch)
        return model(**inputs)

    def aligned(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """A decoder's logits predict the token after theirs."""
        return (logits[:, :-1], labels[:, 1:]) if self._is_decoder else (logits, labels)

    def items(self, batch: Mapping[str, Any]) -> Tensor:
        """How many tokens are predicted."""
        labels = batch["labels"][:, 1:] if self._is_decoder else batch["labels"]
        items: Tensor = (labels != IGNORED).sum()
        return items

    def read(
        self, model: PreTrainedModel, batch: Mapping[str, Any], output: Any, *, generate: bool = True
    ) -> list[Any]:
        """One `Generated` per row; the prompt ends where the last labelled stretch begins."""
        rows = len(batch["input_ids"])
        likelihoods = [(0.0, 0.0, 0.0)] * rows
        if "labels" in batch:
            likelihoods = likelihoods_of(self, output, batch["labels"])
        if not generate:
            return [Generated(likelihood) for likelihood in likelihoods]
        texts = self._generate(model, self._prompts(batch))
        return [Generated(likelihood, tokens) for likelihood, tokens in zip(likelihoods, texts, strict=True)]

    def _prompts(self, batch: Mapping[str, Any]) -> list[list[int]]:
        prompts = []
        for row, mask in enumerate(batch["attention_mask"].bool()):
            tokens = batch["input_ids"][row][mask].tolist()
            if self._is_decoder and "labels" in batch:
                labels = batch["labels"][row][mask].tolist()
                tokens = tokens[: last_stretch(labels)]
            prompts.append(tokens)
        return prompts

    def _generate(self, model: Any, prompts: list[list[int]]) -> list[list[int]]:
        import torch

        settings = self._settings(model)
        limit = getattr(model.config, "max_position_embeddings", None)
        if self._is_decoder and limit:
            prompts = [prompt[-max(1, limit - self.max_new_tokens) :] for prompt in prompts]
        # A prompt may be empty where the tokenizer has no start token; the end token then begins the text.
        prompts = [prompt or [settings.pad_token_id] for prompt in prompts]
        features = [{"input_ids": prompt, "attention_mask": [1] * len(prompt)} for prompt in prompts]
        fill = {"input_ids": settings.pad_token_id, "attention_mask": 0}
        batch = padded(features, fill, side="left" if self._is_decoder else "right")
        there = {name: tensor.to(model.device) for name, tensor in batch.items()}
        with torch.random.fork_rng(devices=[], enabled=self.temperature > 0):
            torch.manual_seed(0) if self.temperature > 0 else None
            generated = model.generate(**there, generation_config=settings)
        start = there["input_ids"].shape[1] if self._is_decoder else 1
        return [self._ended(row[start:].tolist(), settings) for row in generated]

    def _settings(self, model: Any) -> Any:
        from copy import deepcopy

        settings = deepcopy(model.generation_config)
        settings.update(
            max_new_tokens=self.max_new_tokens,
            max_length=None,
            num_beams=self.num_beams,
            do_sample=self.temperature > 0,
            temperature=self.temperature or None,
            top_p=None,
            top_k=None,
            use_cache=True,
        )
        return settings

    def _ended(self, tokens: list[int], settings: Any) -> list[int]:
        """Without the end token and what stands behind it, which is padding."""
        ends = settings.eos_token_id
        ends = set(ends) if isinstance(ends, (list, tuple)) else {ends}
        return tokens[: next((place for place, token in enumerate(tokens) if token in ends), len(tokens))]

    def texts(self, outputs: Sequence[Generated], tokenizer: PreTrainedTokenizerBase) -> list[str]:
        """What was generated, cut at the texts of `stop`; empty where nothing was generated."""
        texts = tokenizer.batch_decode([output.tokens or [] for output in outputs], skip_special_tokens=True)
        return [self.cut(text) for text in texts]

    def cut(self, text: str) -> str:
        """A generated text up to the first of `stop`, without spaces around it."""
        for stop in self.stop:
            text = text.partition(stop)[0]
        return text.strip()

    def decode(self, outputs: Sequence[Any], encoded: Encoded) -> Scored:
        """Generated texts beside the texts that are right."""
        import numpy as np

        likelihood = np.array([output.likelihood for output in outputs], np.float64).reshape(-1, 3)
        losses = likelihood[:, 0] / np.maximum(likelihood[:, 1], 1)
        texts = objects(self.texts(outputs, encoded.tokenizer))
        return Scored(texts, self.references(encoded), losses, likelihood=likelihood)

    def answers(self, outputs: Sequence[Any], encoded: Encoded) -> list[dict[str, Any]]:
        """text."""
        return [{"text": text} for text in self.texts(outputs, encoded.tokenizer)]

    def describe(self, value: Any) -> str:
        """The text; of several right ones all."""
        return value if isinstance(value, str) else " | ".join(value)


class PromptTask(GenerationTask):
    """One prompt column, one completion column."""

    template: str | None = None
    """How the prompt is written, with the name of the column in braces; none: the task's own."""

    cut_columns: ClassVar[tuple[str, ...]] = ("input_ids", "labels")  # beside an encoder, labels are cut apart
    target_column: ClassVar[str]
    """Name of the completion's column."""

    @property
    def source(self) -> str:
        """Name of the prompt's column."""
        return self.text_columns[0]

    @property
    def vocabulary_columns(self) -> tuple[str, ...]:
        """Both: completions may be in another language."""
        return (*self.text_columns, self.target_column)

    @property
    def default_template(self) -> str:
        """What `template` is where the recipe gives none."""
        return f"{{{self.source}}}"

    def resolved(self, splits: DatasetDict) -> Self:
        """With the template written out; see `Task.resolved`."""
        check_columns(splits, (self.source, self.target_column))
        if self.template is not None and f"{{{self.source}}}" not in self.template:
            raise DataError(
                f"task.template {self.template!r} has no place for the prompt; write {{{self.source}}} where it goes"
            )
        return self

    def label_problem(self, value: Any) -> str | None:
        """Why a cell is no completion: text, or a list of texts of which the first is trained on."""
        texts = value if isinstance(value, (list, tuple)) else [value]
        if not texts:
            return "there is no text to learn from"
        odd = [text for text in texts if not isinstance(text, str) or not text.strip()]
        return f"{odd[0]!r} is no text to learn from" if odd else None

    def prompt(self, cell: Any) -> str:
        """The prompt as the model reads it; sentences in a list are joined."""
        template = self.template if self.template is not None else self.default_template
        text = " ".join(map(str, cell)) if isinstance(cell, (list, tuple)) else str(cell)
        return template.replace(f"{{{self.source}}}", text)

    def encode(self, rows: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Dataset:
        """One feature per row; where the rows have completions, `labels` with -100 at the prompt."""

        def features(batch: Mapping[str, list[Any]], indices: list[int]) -> dict[str, Any]:
            prompts = [self.prompt(text) for text in batch[self.source]]
            completions = [_first(cell) for cell in batch[self.target_column]] if labelled else None
            encode = self._encode_decoder if self._is_decoder else self._encode_both
            return {**encode(prompts, completions, tokenizer, max_length), ROW: indices}

        labelled = self.target_column in rows.column_names
        return rows.map(features, batched=True, with_indices=True, remove_columns=rows.column_names, desc="tokenizing")

    def _encode_decoder(
        self, prompts: list[str], completions: list[str] | None, tokenizer: Any, max_length: int
    ) -> dict[str, Any]:
        before = tokenizer(prompts)["input_ids"]
        before = [without_end(ids, tokenizer) for ids in before]
        if completions is None:
            ids = [prompt[-max_length:] for prompt in before]
            return {"input_ids": ids, "attention_mask": [[1] * len(row) for row in ids]}
        after = tokenizer(completions, add_special_tokens=False)["input_ids"]
        both = [fitted(one, [*two, tokenizer.eos_token_id], max_length) for one, two in zip(before, after, strict=True)]
        return {
            "input_ids": [prompt + completion for prompt, completion in both],
            "attention_mask": [[1] * (len(prompt) + len(completion)) for prompt, completion in both],
            "labels": [[IGNORED] * len(prompt) + completion for prompt, completion in both],
        }

    def _encode_both(
        self, prompts: list[str], completions: list[str] | None, tokenizer: Any, max_length: int
    ) -> dict[str, Any]:
        encoded = dict(tokenizer(prompts, truncation=True, max_length=max_length))
        encoded = {name: encoded[name] for name in ("input_ids", "attention_mask")}
        if completions is not None:
            encoded["labels"] = tokenizer(text_target=completions, truncation=True, max_length=max_length)["input_ids"]
        return encoded

    def references(self, encoded: Encoded) -> np.ndarray:
        """Lists of the right texts."""
        cells = encoded.rows[self.target_column]
        return objects([list(cell) if isinstance(cell, (list, tuple)) else [cell] for cell in cells])

    def rows(self, inputs: Sequence[Any]) -> Dataset:
        """Strings, or mappings with the prompt's column; see `Task.rows`."""
        from datasets import Dataset

        if isinstance(inputs, (str, Mapping)):
            raise DataError(f"the inputs are {inputs!r}; give a list of inputs, even for one")
        texts = [value.get(self.source) if isinstance(value, Mapping) else value for value in inputs]
        for position, (value, text) in enumerate(zip(inputs, texts, strict=True)):
            if not isinstance(text, str):
                raise DataError(f"input {position} is {value!r}; give a string, or a mapping with {self.source!r}")
        return Dataset.from_dict({self.source: texts})


def token_likelihoods(logits: Tensor, labels: Tensor) -> list[tuple[float, float, float]]:
    """Per row: summed negative log-likelihood in nats, tokens, tokens that are the first choice.

    Args:
        logits: (rows, tokens, vocabulary), each beside the label it predicts.
        labels: (rows, tokens), -100 where there is none.
    """
    from torch.nn.functional import cross_entropy

    there = labels != IGNORED
    chosen, wanted = logits[there].float(), labels[there]
    losses = cross_entropy(chosen, wanted, reduction="none")
    return _by_row(TokenScores(labels, losses, chosen.argmax(-1) == wanted))


def likelihoods_of(task: Task, output: Any, labels: Tensor) -> list[tuple[float, float, float]]:
    """`token_likelihoods` of a model's output, or of what stands in its place."""
    if isinstance(output, TokenScores):
        return _by_row(output)
    logits, labels = task.aligned(task.logits(output), labels)
    # Row by row: all logits of a batch in float32 are the largest tensor of an evaluation.
    return [token_likelihoods(*(part[None] for part in pair))[0] for pair in zip(logits, labels, strict=True)]


def _by_row(scores: TokenScores) -> list[tuple[float, float, float]]:
    import torch

    there = scores.labels != IGNORED
    row = there.nonzero()[:, 0]
    sums = torch.zeros(len(there), 3, dtype=torch.float64, device=there.device)
    sums[:, 0].index_add_(0, row, scores.losses.double())
    sums[:, 1] = there.sum(dim=1)
    sums[:, 2].index_add_(0, row, scores.right.double())
    return [(float(loss), float(count), float(right)) for loss, count, right in sums.tolist()]


def last_stretch(labels: Sequence[int]) -> int:
    """Index at which the last run of labels begins; the length where there is none."""
    starts = [place for place in range(len(labels)) if labels[place] != IGNORED]
    if not starts:
        return len(labels)
    place = starts[-1]
    while place > 0 and labels[place - 1] != IGNORED:
        place -= 1
    return place


def fitted(prompt: list[int], completion: list[int], max_length: int) -> tuple[list[int], list[int]]:
    """Both within `max_length`: the prompt loses its beginning; the completion its end, once the prompt is short."""
    if len(prompt) + len(completion) <= max_length:
        return prompt, completion
    room = min(len(prompt), max(max_length - len(completion), max_length // _LEAST_PROMPT))
    return prompt[len(prompt) - room :], completion[: max_length - room]


def without_end(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """A prompt's tokens without the end token that some tokenizers put behind every text."""
    ends = tokenizer.eos_token_id is not None and ids[-1:] == [tokenizer.eos_token_id]
    return ids[:-1] if ends and len(ids) > 1 else ids


def objects(values: Sequence[Any]) -> np.ndarray:
    """(rows,) array that holds the values as they are."""
    import numpy as np

    array = np.empty(len(values), object)
    array[:] = values
    return array


def _first(cell: Any) -> str:
    return str(cell[0] if isinstance(cell, (list, tuple)) else cell)


def decoder_inputs(model: Any, batch: Mapping[str, Any]) -> Tensor:
    """Labels shifted to the right behind the start token; the start token alone where there are no labels."""
    base = model.get_base_model() if hasattr(model, "peft_config") else model
    if "labels" in batch:
        shifted: Tensor = base.prepare_decoder_input_ids_from_labels(batch["labels"])
        return shifted
    return batch["input_ids"].new_full((len(batch["input_ids"]), 1), base.config.decoder_start_token_id)  # type: ignore[no-any-return] # of an untyped tensor
