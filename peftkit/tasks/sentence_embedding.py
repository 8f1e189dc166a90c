"""Sentence embeddings: a vector for each text, near those of texts that mean the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, PositiveInt, field_validator

from peftkit.errors import CapabilityError, DataError, RecipeError
from peftkit.labels import Targets
from peftkit.results import PART_SEPARATOR
from peftkit.tasks import ROW, Collator, Encoded, Head, Scored, Task, tasks
from peftkit.tasks.columns import check_columns
from peftkit.tasks.padding import padded

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset, DatasetDict
    from torch import Tensor
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

Objective = Literal["scores", "pairs", "simcse"]
Evaluation = Literal["similarity", "retrieval"]
_TEXTS = ("text", "text_pair", "negative")
_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
_HIGHEST = 5.0
_NEEDED = {
    "scores": ("text", "text_pair", "score"),
    "pairs": ("text", "text_pair"),
    "simcse": ("text",),
    "similarity": ("text", "text_pair", "score"),
    "retrieval": ("text", "text_pair"),
}
"""Columns, by objective of the training rows and by evaluation of the others."""


@dataclass(frozen=True)
class Vectors:
    """What is read of one row.

    Args:
        vectors: (texts, dimensions), of length 1.
    """

    vectors: np.ndarray


@tasks.register("sentence_embedding")
class SentenceEmbedding(Task):
    """A vector for each text, from an encoder or a decoder.

    Rows have `text`, and for all objectives but simcse `text_pair`; `score`, or a `negative` that is no partner.
    """

    text_columns: ClassVar[tuple[str, ...]] = _TEXTS
    cut_columns: ClassVar[tuple[str, ...]] = ("input_ids", "input_ids_1", "input_ids_2")

    objective: Objective | None = None
    """scores: the cosine of a pair is its score (Reimers & Gurevych 2019, arXiv:1908.10084, section 3). pairs: each
    text picks its partner among those of the batch, InfoNCE (van den Oord et al. 2018, arXiv:1807.03748); with
    `negative` supervised SimCSE. simcse: each text picks itself under other dropout (Gao et al. 2021,
    arXiv:2104.08821). Not given: what the columns allow, in this order."""
    evaluation: Evaluation | None = None
    """similarity: cosines are compared with scores. retrieval: each text searches its partner among those of all rows.
    Not given: similarity where the rows have scores."""
    pooling: Literal["mean", "cls", "last", "max"] | None = None
    """How a text's vector comes from those of its tokens; not given: mean, of decoders the last."""
    temperature: float = Field(0.05, gt=0.0)
    """Cosines are divided by it before the softmax of pairs and simcse."""
    symmetric: bool = False
    """pairs: let each partner pick its text, too."""
    score_range: tuple[float, float] = (0.0, _HIGHEST)
    """Lowest and highest score in the data; they become cosines from 0 to 1."""
    dimensions: tuple[PositiveInt, ...] = ()
    """Matryoshka: the loss is the mean over these first dimensions of the vectors, so that they can be cut; none: all.
    (Kusupati et al. 2022, arXiv:2205.13147)"""

    @field_validator("score_range")
    @classmethod
    def _range_is_one(cls, value: tuple[float, float]) -> tuple[float, float]:
        if value[0] >= value[1]:
            raise ValueError(f"score_range {list(value)} goes down; write the lowest score first")
        return value

    def training_problem(self, *, batch_size: int, accumulation_steps: int, batching: str) -> tuple[str, str] | None:
        """Objectives that compare the rows of a batch need them in one piece; see `Task.training_problem`."""
        if self.objective in ("pairs", "simcse") and accumulation_steps > 1:
            return "accumulation_steps", (
                f"the objective {self.objective!r} compares the rows of a batch, of which micro-batches have fewer; "
                "set it to 1 and raise  training.batch_size  instead"
            )
        if self.objective in ("pairs", "simcse") and batch_size < 2:
            return "batch_size", f"the objective {self.objective!r} compares the rows of a batch; it needs at least 2"
        return None

    @property
    def targets(self) -> Targets:
        """Its own."""
        return "own"

    @property
    def default_loss(self) -> str:
        """That of the objective."""
        return "own"

    @property
    def default_metrics(self) -> tuple[str, ...]:
        """Correlation of cosines with scores; or where the search for each text's partner puts it."""
        if self.evaluation == "similarity" or (self.evaluation is None and self.objective != "pairs"):
            return ("spearman", "pearson")
        return ("mean_reciprocal_rank", "recall_at_k", "ndcg_at_k")

    def resolved(self, splits: DatasetDict) -> Self:
        """With the objective that the training rows allow; see `Task.resolved`."""
        train = splits["train" if "train" in splits else next(iter(splits))].column_names
        objective = self.objective or ("scores" if "score" in train else "pairs" if "text_pair" in train else "simcse")
        held_out = [rows.column_names for split, rows in splits.items() if split != "train"] or [train]
        scored = all("score" in columns for columns in held_out)
        evaluation = self.evaluation or ("similarity" if scored else "retrieval")
        for split, rows in splits.items():
            purpose = objective if split == "train" else evaluation
            who = f"the objective {purpose!r}" if split == "train" else repr(purpose)
            check_columns({split: rows}, _NEEDED[purpose], reason=f", which {who} needs")
        return self.model_copy(update={"objective": objective, "evaluation": evaluation})

    def suited(self, config: PretrainedConfig) -> Self:
        """With the pooling that is usual for the base; see `Task.suited`."""
        if config.is_encoder_decoder:
            raise CapabilityError(
                "sentence_embedding takes the vectors of an encoder or a decoder, and the base model is both "
                f"({config.model_type}); choose another, such as a BERT or a LLaMA"
            )
        if self.dimensions and max(self.dimensions) > config.hidden_size:
            raise RecipeError(
                f"task.dimensions: {max(self.dimensions)} is more than the {config.hidden_size} dimensions of the base "
                "model's vectors"
            )
        if self.pooling is not None:
            return self
        is_decoder = any("CausalLM" in name or "LMHead" in name for name in config.architectures or ())
        return self.model_copy(update={"pooling": "last" if is_decoder else "mean"})

    def row_problems(self, rows: Dataset) -> dict[int, str]:
        """Scores that are no numbers, or outside the range."""
        if "score" not in rows.column_names:
            return {}
        low, high = self.score_range
        problems = {}
        for place, score in enumerate(rows["score"]):
            if not isinstance(score, (int, float)) or score != score:
                problems[place] = f"the score {score!r} is no number"
            elif not low <= score <= high:
                problems[place] = f"the score {score} is not between {low} and {high}; correct it or  task.score_range"
        return problems

    def head(self) -> Head:
        """None: the vectors are those of the base model's last layer."""
        return Head("AutoModel", peft_task_type="FEATURE_EXTRACTION", is_new=False, unused=("pooler",))

    def encode(self, rows: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Dataset:
        """One feature per row: `input_ids`, of further texts `input_ids_1` and so on; `labels`: the score."""
        columns = [column for column in _TEXTS if column in rows.column_names]
        scored = "score" in rows.column_names

        def features(batch: Mapping[str, list[Any]], indices: list[int]) -> dict[str, Any]:
            found: dict[str, Any] = {ROW: indices}
            for place, column in enumerate(columns):
                encoded = tokenizer([str(text) for text in batch[column]], truncation=True, max_length=max_length)
                found |= {_name(name, place): encoded[name] for name in _INPUTS if name in encoded}
            if scored:
                found["labels"] = [self._cosine(score) for score in batch["score"]]
            return found

        return rows.map(features, batched=True, with_indices=True, remove_columns=rows.column_names, desc="tokenizing")

    def _cosine(self, score: float) -> float:
        low, high = self.score_range
        return (score - low) / (high - low)

    def collator(self, tokenizer: PreTrainedTokenizerBase) -> Collator:
        """Pads the texts of each column to their longest."""
        values = {"input_ids": tokenizer.pad_token_id, "attention_mask": 0, "token_type_ids": 0}
        fill = {_name(name, place): value for name, value in values.items() for place in range(len(_TEXTS))}
        return lambda features: padded(features, fill)

    def forward(self, model: PreTrainedModel, batch: Mapping[str, Any]) -> Any:
        """Vectors (rows, texts, dimensions); of simcse while training each text twice, under different dropout."""
        import torch

        there = [place for place in range(len(_TEXTS)) if _name("input_ids", place) in batch]
        if self.objective == "simcse" and model.training:
            there = [0, 0]
        return {"logits": torch.stack([self._vectors(model, batch, place) for place in there], dim=1)}

    def _vectors(self, model: Any, batch: Mapping[str, Any], place: int) -> Tensor:
        from peftkit.layers.pooling import pooled

        inputs = {name: batch[_name(name, place)] for name in _INPUTS if _name(name, place) in batch}
        hidden = model(**inputs)["last_hidden_state"]
        return pooled(hidden, inputs["attention_mask"], self.pooling or "mean")

    def items(self, batch: Mapping[str, Any]) -> Tensor:
        """How many rows a batch holds."""
        import torch

        return torch.tensor(len(batch["input_ids"]), device=batch["input_ids"].device)

    def loss(self, output: Any, batch: Mapping[str, Any], *, criterion: Any, items: Tensor) -> Tensor:
        """That of the objective, the mean over `dimensions`."""
        vectors = self.logits(output)
        if vectors.shape[1] == 1:  # texts without partners, in an evaluation of simcse
            return vectors.new_zeros(())
        cuts = self.dimensions or (vectors.shape[-1],)
        losses = [self._loss(vectors[..., :cut], batch) for cut in cuts]
        loss: Tensor = sum(losses[1:], losses[0]) / len(losses) / items
        return loss

    def _loss(self, vectors: Tensor, batch: Mapping[str, Any]) -> Tensor:
        """Sum over rows."""
        from torch.nn.functional import normalize

        unit = normalize(vectors, dim=-1)
        if self.objective == "scores":
            cosines = (unit[:, 0] * unit[:, 1]).sum(-1)
            distances: Tensor = (cosines - batch["labels"]).square()
            return distances.sum()
        one_way = self._choice(unit, batch)
        return (one_way + self._choice(unit[:, [1, 0]], batch)) / 2 if self.symmetric else one_way

    def _choice(self, unit: Tensor, batch: Mapping[str, Any]) -> Tensor:
        """Cross-entropy of picking the partner among all second and third texts of the batch."""
        import torch
        from torch.nn.functional import cross_entropy

        first, others = unit[:, 0], unit[:, 1:].transpose(0, 1).flatten(0, 1)
        similar = first @ others.T / self.temperature
        rows = torch.arange(len(first), device=similar.device)
        same = _same_texts(batch, 1 if unit.shape[1] > 1 and "input_ids_1" in batch else 0)
        same[rows, rows] = False
        # A text that stands twice in the batch is no negative of its twin.
        similar[:, : len(first)] = similar[:, : len(first)].masked_fill(same, float("-inf"))
        return cross_entropy(similar, rows, reduction="sum")

    def read(
        self, model: PreTrainedModel, batch: Mapping[str, Any], output: Any, *, generate: bool = True
    ) -> list[Any]:
        """`Vectors` of each row."""
        from torch.nn.functional import normalize

        return [Vectors(row) for row in normalize(self.logits(output), dim=-1).float().cpu().numpy()]

    def references(self, encoded: Encoded) -> np.ndarray:
        """Scores; or the best rank there is."""
        import numpy as np

        if self.evaluation == "similarity":
            return np.asarray(encoded.rows["score"], np.float64)
        return np.ones(len(encoded.rows), np.int64)

    def decode(self, outputs: Sequence[Any], encoded: Encoded) -> Scored:
        """Cosines beside scores; or the rank of each text's partner among the partners of all rows."""
        import numpy as np

        references = self.references(encoded)
        first = np.stack([output.vectors[0] for output in outputs])
        second = np.stack([output.vectors[min(1, len(output.vectors) - 1)] for output in outputs])
        if self.evaluation == "similarity":
            cosines = (first * second).sum(axis=1)
            wanted = np.array([self._cosine(score) for score in references])
            return Scored(cosines, references, np.square(cosines - wanted))
        similar = first @ second.T
        own = similar.diagonal()
        ranks = 1 + (similar > own[:, None]).sum(axis=1)
        return Scored(ranks, references, ranks.astype(np.float64))

    def rows(self, inputs: Sequence[Any]) -> Dataset:
        """Strings, or pairs of strings; see `Task.rows`."""
        from datasets import Dataset

        if isinstance(inputs, (str, Mapping)):
            raise DataError(f"the inputs are {inputs!r}; give a list of inputs, even for one")
        found = []
        for position, value in enumerate(inputs):
            texts = [value[name] for name in _TEXTS[:2] if name in value] if isinstance(value, Mapping) else value
            texts = [texts] if isinstance(texts, str) else texts
            if not isinstance(texts, (list, tuple)) or len(texts) not in (1, 2) or not all(_is_text(t) for t in texts):
                raise DataError(
                    f"input {position} is {value!r}; give a string, a pair of strings, or a mapping with 'text'"
                )
            found.append(list(texts))
        if len({len(texts) for texts in found}) > 1:
            raise DataError("some inputs are single texts and some are pairs; embed them in separate calls")
        width = len(found[0]) if found else 1
        return Dataset.from_dict({name: [texts[place] for texts in found] for place, name in enumerate(_TEXTS[:width])})

    def answers(self, outputs: Sequence[Any], encoded: Encoded) -> list[dict[str, Any]]:
        """embedding; of pairs their similarity, the cosine."""
        answers: list[dict[str, Any]] = []
        for output in outputs:
            if len(output.vectors) == 1:
                answers.append({"embedding": output.vectors[0].tolist()})
            else:
                answers.append({"similarity": float(output.vectors[0] @ output.vectors[1])})
        return answers

    def describe(self, value: Any) -> str:
        """The cosine or score, or the rank."""
        return f"{value:.3f}" if isinstance(value, float) else f"rank {value}"

    def shown(self, row: Mapping[str, Any]) -> str:
        """The pair."""
        return PART_SEPARATOR.join(str(row[name]) for name in _TEXTS[:2] if name in row)


def _name(name: str, place: int) -> str:
    return name if place == 0 else f"{name}_{place}"


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _same_texts(batch: Mapping[str, Any], place: int) -> Tensor:
    """(rows, rows): whether two rows have the same text at `place`."""
    ids, mask = batch[_name("input_ids", place)], batch[_name("attention_mask", place)]
    there = ids.masked_fill(mask == 0, -1)
    same: Tensor = (there[:, None] == there[None]).all(-1)
    return same
