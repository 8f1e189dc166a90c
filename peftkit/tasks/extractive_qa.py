"""Extractive question answering: the answer is a stretch of the context."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import Field

from peftkit.errors import CapabilityError, DataError
from peftkit.labels import Targets
from peftkit.tasks import ROW, Collator, Encoded, Head, Scored, Task, tasks
from peftkit.tasks.columns import check_columns
from peftkit.tasks.generation import objects
from peftkit.tasks.padding import padded

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset, DatasetDict
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
_STARTS, _ENDS = "starts", "ends"
"""Feature columns: characters of the context that each token stands for, -1 where it is none of the context."""
_NOWHERE = -1e4


@dataclass(frozen=True)
class Candidate:
    """One possible answer.

    Args:
        start, end: characters of the context; equal where there is no answer.
        score: sum of its logits.
    """

    text: str
    start: int
    end: int
    score: float


@tasks.register("extractive_qa")
class ExtractiveQA(Task):
    """The stretch of `context` that answers `question`, or none. `answers` are as in SQuAD: {text, answer_start}.

    Long contexts are read in windows that overlap; the best stretch of all windows is the answer.
    """

    text_columns: ClassVar[tuple[str, ...]] = ("question", "context")
    cut_columns: ClassVar[tuple[str, ...]] = ()  # long contexts go on in further windows

    stride: int = Field(64, ge=0)
    """Tokens of the context that neighbouring windows share; at most a quarter of model.max_length."""
    max_answer_length: int = Field(30, ge=1)
    """Longest answer, in tokens."""
    n_best: int = Field(5, ge=1)
    """How many answers an application gets; four times as many starts and ends of each window are tried."""
    no_answer: bool | None = None
    """Whether questions may have no answer in their context; not given: whether any of the training rows has none."""
    no_answer_threshold: float = 0.0
    """There is no answer where the score for none is larger than the best by more than this. (Devlin et al. 2019,
    arXiv:1810.04805, section 4.3)"""

    @property
    def targets(self) -> Targets:
        """Its own: a first and a last token of each window."""
        return "own"

    @property
    def default_loss(self) -> str:
        """Mean cross-entropy of first and last token."""
        return "own"

    @property
    def default_metrics(self) -> tuple[str, ...]:
        """F1 and exact match of SQuAD."""
        return ("squad",)

    def resolved(self, splits: DatasetDict) -> Self:
        """With `no_answer` from the training rows; see `Task.resolved`."""
        check_columns(splits, (*self.text_columns, "answers"))
        rows = splits["train" if "train" in splits else next(iter(splits))]
        if self.no_answer is not None:
            return self
        return self.model_copy(update={"no_answer": any(not _texts(cell) for cell in rows["answers"])})

    def row_problems(self, rows: Dataset) -> dict[int, str]:
        """Answers that are not where the row says."""
        problems = {}
        for place, (context, answers) in enumerate(zip(rows["context"], rows["answers"], strict=True)):
            if problem := self._answer_problem(context, answers):
                problems[place] = problem
        return problems

    def _answer_problem(self, context: str, answers: Any) -> str | None:
        if not isinstance(answers, Mapping) or not {"text", "answer_start"} <= set(answers):
            return f"answers is {answers!r}, not a mapping with the lists text and answer_start"
        texts, starts = answers["text"], answers["answer_start"]
        if not isinstance(texts, list) or not isinstance(starts, list) or len(texts) != len(starts):
            return f"answers has {texts!r} at {starts!r}; give a list of texts and one of as many positions"
        if not texts and self.no_answer is False:
            return "there is no answer, and task.no_answer is false"
        for text, start in zip(texts, starts, strict=True):
            if not isinstance(text, str) or not text.strip():
                return f"the answer {text!r} is empty; leave the lists empty where there is none"
            if not isinstance(start, int) or context[start : start + len(text)] != text or start < 0:
                at = context.find(text)
                there = context[max(0, start) : max(0, start) + len(text)] if isinstance(start, int) else ""
                elsewhere = f"it stands at {at}" if at >= 0 else "it is nowhere in the context"
                return f"the answer {text!r} is not at character {start}, where {there!r} stands; {elsewhere}"
        return None

    def head(self) -> Head:
        """Two linear functions of each token: (rows, tokens, hidden) -> (rows, tokens) twice."""
        return Head("AutoModelForQuestionAnswering", peft_task_type="QUESTION_ANS")

    def encode(self, rows: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Dataset:
        """One feature per window; `labels` [first token, last token], at the first token of all where it has none."""
        if not tokenizer.is_fast:
            raise CapabilityError(f"{type(tokenizer).__name__} does not tell which characters its tokens stand for")
        labelled = "answers" in rows.column_names

        def features(batch: Mapping[str, list[Any]], indices: list[int]) -> dict[str, Any]:
            encoded = self._windows(batch["question"], batch["context"], tokenizer, max_length)
            source = encoded["overflow_to_sample_mapping"]
            found: dict[str, Any] = {name: encoded[name] for name in _INPUTS if name in encoded}
            spans = [_in_context(encoded, window) for window in range(len(source))]
            found[_STARTS] = [[start for start, _ in row] for row in spans]
            found[_ENDS] = [[end for _, end in row] for row in spans]
            found[ROW] = [indices[sample] for sample in source]
            if labelled:
                answers = [batch["answers"][sample] for sample in source]
                found["labels"] = [_label(row, cell) for row, cell in zip(spans, answers, strict=True)]
            return found

        return rows.map(features, batched=True, with_indices=True, remove_columns=rows.column_names, desc="tokenizing")

    def unread(self, encoded: Encoded, max_length: int) -> dict[int, str]:
        """Questions that are cut, and answers that are whole in no window; see `Task.unread`."""
        limit = _question_room(max_length)
        texts = list(encoded.rows["question"])
        questions = encoded.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        found = {
            row: f"of the question's {len(ids)} tokens {limit} are read; raise model.max_length"
            for row, ids in enumerate(questions)
            if len(ids) > limit
        }
        if "labels" in encoded.features.column_names:
            windows = zip(encoded.features[ROW], encoded.features["labels"], strict=True)
            learnt = {row for row, label in windows if label != [0, 0]}
            for row, cell in enumerate(encoded.rows["answers"]):
                if _texts(cell) and row not in learnt:
                    found[row] = f"no window holds the whole answer {_texts(cell)[0]!r}; raise task.stride"
        return found

    def _windows(self, questions: list[str], contexts: list[str], tokenizer: Any, max_length: int) -> Any:
        limit = _question_room(max_length)
        cut = tokenizer(questions, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        shortened = [
            text if len(spans) <= limit else text[: spans[limit - 1][1]]
            for text, spans in zip(questions, cut["offset_mapping"], strict=True)
        ]
        return tokenizer(
            shortened,
            contexts,
            truncation="only_second",
            max_length=max_length,
            # Not by the questions of the batch, or they would change its windows.
            stride=min(self.stride, max_length // 4),
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )

    def collator(self, tokenizer: PreTrainedTokenizerBase) -> Collator:
        """Pads each batch to its own longest window."""
        fill = {"input_ids": tokenizer.pad_token_id, "attention_mask": 0, "token_type_ids": 0, "labels": 0}

        def collate(features: list[dict[str, Any]]) -> Mapping[str, Any]:
            return padded([{k: v for k, v in row.items() if k not in (_STARTS, _ENDS)} for row in features], fill)

        return collate

    def forward(self, model: PreTrainedModel, batch: Mapping[str, Any]) -> Any:
        """Logits (rows, 2, tokens) of first and last token; next to none at padding, so that it does not count."""
        import torch

        output = model(**{name: batch[name] for name in _INPUTS if name in batch})
        logits = torch.stack([output["start_logits"], output["end_logits"]], dim=1)
        return {"logits": logits.masked_fill(batch["attention_mask"][:, None] == 0, _NOWHERE)}

    def loss(self, output: Any, batch: Mapping[str, Any], *, criterion: Any, items: Tensor) -> Tensor:
        """Cross-entropy of first and last token, the mean of both."""
        from torch.nn.functional import cross_entropy

        logits = self.logits(output).float().flatten(0, 1)
        return cross_entropy(logits, batch["labels"].flatten(), reduction="sum") / items

    def references(self, encoded: Encoded) -> np.ndarray:
        """Lists of the right answers, [""] where there is none."""
        return objects([_texts(cell) or [""] for cell in encoded.rows["answers"]])

    def decode(self, outputs: Sequence[Any], encoded: Encoded) -> Scored:
        """The best answer of each row."""
        import numpy as np

        found = [candidates[0].text for candidates in self._candidates(outputs, encoded)]
        losses = np.zeros(len(encoded.rows))
        windows = np.zeros(len(encoded.rows))
        for output, labels, row in zip(outputs, encoded.features["labels"], encoded.features[ROW], strict=True):
            windows[row] += 1
            for logits, label in zip(output.astype(np.float64), labels, strict=True):
                losses[row] += np.logaddexp.reduce(logits) - logits[label]
        return Scored(objects(found), self.references(encoded), losses / np.maximum(windows, 1))

    def _candidates(self, outputs: Sequence[Any], encoded: Encoded) -> list[list[Candidate]]:
        """Answers of each row, best first; at least one."""
        contexts = encoded.rows["context"]
        found: list[list[Candidate]] = [[] for _ in range(len(encoded.rows))]
        none = [float("inf")] * len(encoded.rows)
        for output, feature in zip(outputs, encoded.features, strict=True):
            row = feature[ROW]
            none[row] = min(none[row], float(output[0][0] + output[1][0]))
            found[row] += self._spans(output, feature, contexts[row])
        return [self._ranked(spans, score) for spans, score in zip(found, none, strict=True)]

    def _spans(self, output: np.ndarray, feature: Mapping[str, Any], context: str) -> Iterator[Candidate]:
        starts, ends = feature[_STARTS], feature[_ENDS]
        tokens = [place for place, start in enumerate(starts) if start >= 0]
        first = sorted(tokens, key=lambda place: -output[0][place])[: 4 * self.n_best]
        last = sorted(tokens, key=lambda place: -output[1][place])[: 4 * self.n_best]
        for one in first:
            for two in last:
                if one <= two < one + self.max_answer_length:
                    score = float(output[0][one] + output[1][two])
                    yield Candidate(context[starts[one] : ends[two]], starts[one], ends[two], score)

    def _ranked(self, spans: Sequence[Candidate], none: float) -> list[Candidate]:
        best: dict[tuple[int, int], Candidate] = {}
        for span in sorted(spans, key=lambda span: -span.score):
            best.setdefault((span.start, span.end), span)
        ranked = list(best.values())[: self.n_best]
        nothing = Candidate("", 0, 0, none)
        if not ranked:
            return [nothing]
        if not self.no_answer:
            return ranked
        if none - ranked[0].score > self.no_answer_threshold:
            return [nothing, *ranked][: self.n_best]
        return [ranked[0], *sorted([nothing, *ranked[1:]], key=lambda span: -span.score)][: self.n_best]

    def rows(self, inputs: Sequence[Any]) -> Dataset:
        """Pairs (question, context), or mappings with both; see `Task.rows`."""
        from datasets import Dataset

        if isinstance(inputs, (str, Mapping)):
            raise DataError(f"the inputs are {inputs!r}; give a list of inputs, even for one")
        found = []
        for position, value in enumerate(inputs):
            pair = [value.get(name) for name in self.text_columns] if isinstance(value, Mapping) else value
            if not isinstance(pair, (list, tuple)) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
                raise DataError(
                    f"input {position} is {value!r}; give a pair (question, context), or a mapping with both"
                )
            found.append(dict(zip(self.text_columns, pair, strict=True)))
        return Dataset.from_list(found)

    def answers(self, outputs: Sequence[Any], encoded: Encoded) -> list[dict[str, Any]]:
        """answer, its characters start and end in the context, score among the best, and those; answer "" for none."""
        import numpy as np

        answers = []
        for candidates in self._candidates(outputs, encoded):
            scores = np.array([candidate.score for candidate in candidates])
            shares = np.exp(scores - np.logaddexp.reduce(scores))
            listed = [
                {"answer": one.text, "start": one.start, "end": one.end, "score": float(share)}
                for one, share in zip(candidates, shares, strict=True)
            ]
            answers.append({**listed[0], "n_best": listed})
        return answers

    def describe(self, value: Any) -> str:
        """The answer; of several right ones all."""
        text = value if isinstance(value, str) else " | ".join(dict.fromkeys(value))
        return text or "(no answer)"


def _question_room(max_length: int) -> int:
    """Tokens of a question that are read: half of a window, as what is left must be more than what windows share."""
    return max(1, max_length // 2 - 4)


def _texts(cell: Any) -> list[str]:
    return list(cell["text"]) if isinstance(cell, Mapping) and cell.get("text") else []


def _in_context(encoded: Any, window: int) -> list[tuple[int, int]]:
    """Characters of each token of a window, (-1, -1) for those of the question and special ones."""
    offsets, parts = encoded["offset_mapping"][window], encoded.sequence_ids(window)
    return [
        (start, end) if part == 1 and end > start else (-1, -1)
        for (start, end), part in zip(offsets, parts, strict=True)
    ]


def _label(spans: Sequence[tuple[int, int]], answers: Mapping[str, Any]) -> list[int]:
    """First and last token of the first answer, [0, 0] if it is not whole in this window."""
    if not answers["text"]:
        return [0, 0]
    begin = answers["answer_start"][0]
    end = begin + len(answers["text"][0])
    inside = [place for place, (start, stop) in enumerate(spans) if start >= 0 and start < end and stop > begin]
    if not inside or spans[inside[0]][0] > begin or spans[inside[-1]][1] < end:
        return [0, 0]
    return [inside[0], inside[-1]]
