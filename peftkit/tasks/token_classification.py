"""Token classification: a tag for each word, with spans such as names where the tags mark them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import model_validator

from peftkit.errors import DataError
from peftkit.labels import IGNORED, Targets
from peftkit.tasks import ROW, Collator, Encoded, Head, Scored, Task, tasks
from peftkit.tasks.columns import check_columns
from peftkit.tasks.generation import objects
from peftkit.tasks.padding import padded
from peftkit.tasks.tag_schemes import (
    OUTSIDE,
    Scheme,
    may_follow,
    names_of,
    parts,
    problem,
    recognized,
    spans_of,
    tags_of,
)
from peftkit.tasks.word_alignment import encode_words

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset, DatasetDict
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

WORD = "word"
"""Feature column: 1 at the first token of each word, 0 elsewhere."""
_FORBIDDEN = -1e4
"""Score of a step that the scheme forbids: far below any other, and no infinity, so that differences stay numbers."""
_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
_WORDS = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True)
class Tagged:
    """What is read of one row: of each word that was not cut off, in order.

    Args:
        labels: class index of each word.
        probabilities: (words, labels).
    """

    labels: np.ndarray
    probabilities: np.ndarray


@tasks.register("token_classification")
class TokenClassification(Task):
    """A tag for each word. Rows have `tokens`, a list of words, and `tags`, a list of as many tags.

    Schemes of spans are recognised, checked and, where asked for, converted. A word is told by its first token.
    """

    text_columns: ClassVar[tuple[str, ...]] = ("tokens",)
    label_column: ClassVar[str | None] = "tags"

    scheme: Scheme | None = None
    """How `tags` mark spans: BIO (each span begins with B-), IOB1 (B- only where spans touch), BIOES, or none, for tags
    that mark no spans, such as parts of speech; not given: recognised from the training rows."""
    learn_as: Literal["BIO", "BIOES"] | None = None
    """Scheme that is learnt; not given: that of the data, BIO in place of IOB1."""
    repair: bool = False
    """Read tags that break the scheme as they stand, a stray I- or E- opening a span; else they are errors."""
    labels: tuple[str, ...] | None = None
    """Tags of the data, those that are numbers by their index; not given: from the data."""
    label_subwords: Literal["first", "all"] = "first"
    """Which tokens of a word are learnt: the first one alone, or all, with I- behind B-."""
    crf: bool = False
    """Learn how tags follow each other, in a linear-chain CRF over the words (Lample et al. 2016, arXiv:1603.01360)."""
    constrained: bool = True
    """Whether predictions always keep to the scheme: the best path of those that do."""

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.crf and self.label_subwords == "all":
            raise ValueError("a CRF runs over words, not over their parts; remove label_subwords or crf")
        if self.scheme == "none" and self.learn_as is not None:
            raise ValueError("scheme none marks no spans, so that there is nothing to convert; remove learn_as")
        return self

    @property
    def targets(self) -> Targets:
        """Classes, or of a CRF its own."""
        return "own" if self.crf else "classes"

    @property
    def default_loss(self) -> str:
        """Cross-entropy of each word, or that of the CRF."""
        return "own" if self.crf else "cross_entropy"

    @property
    def default_metrics(self) -> tuple[str, ...]:
        """F1 of spans and accuracy of tags; without spans the accuracy alone."""
        return ("tag_accuracy",) if self.scheme == "none" else ("span_f1", "tag_accuracy")

    @property
    def label_names(self) -> tuple[str, ...]:
        """Tags in class order, of a resolved task: those of the data, or all of the scheme they are converted to."""
        names = self.labels or ()
        return names if self.learn_as in (None, self.scheme) else _names(names, self.learn_as)

    def resolved(self, splits: DatasetDict) -> Self:
        """With scheme and tags from the training rows where the recipe gives none; see `Task.resolved`."""
        check_columns(splits, ("tokens", "tags"))
        rows = splits["train" if "train" in splits else next(iter(splits))]
        inner = getattr(rows.features["tags"], "feature", None)
        names = self.labels or tuple(getattr(inner, "names", None) or ())
        # Cells that hold no tags are left to `label_problem`, which is told their rows.
        tags = [_named(row, names) for row in rows["tags"] if isinstance(row, list) and not _unnamed(row, names)]
        scheme = self.scheme or recognized(tags)
        learn_as = None if scheme == "none" else self.learn_as or ("BIO" if scheme == "IOB1" else scheme)
        if not names:
            found = sorted({tag for row in tags for tag in row})
            names = tuple(found) if learn_as is None else _names(found, "BIOES" if scheme == "BIOES" else "BIO")
        task = self.model_copy(update={"scheme": scheme, "learn_as": learn_as, "labels": names})
        if tags and len(task.label_names) < 2:
            raise DataError(f"the column 'tags' of split 'train' holds too few different tags to learn from ({names})")
        return task

    def label_problem(self, value: Any) -> str | None:
        """Why a cell holds no tags that can be learnt; see `Task.label_problem`."""
        if not isinstance(value, (list, tuple)):
            return f"{value!r} is no list of tags"
        names = self.labels or ()
        unnamed = _unnamed(value, names)
        if unnamed:
            return unnamed
        tags = _named(value, names)
        broken = None if self.repair else problem(tags, self.scheme or "none")
        if broken is not None:
            return f"{broken}; correct it, or set  task.repair: true"
        unknown = next((tag for tag in self._learnt(tags) if tag not in self.label_names), None)
        return None if unknown is None else f"the tag {unknown!r} is not among those of the training rows"

    def row_problems(self, rows: Dataset) -> dict[int, str]:
        """Rows whose words are no list of texts, or not as many as their tags."""
        problems = {}
        for place, (tokens, tags) in enumerate(zip(rows["tokens"], rows["tags"], strict=True)):
            if not isinstance(tokens, (list, tuple)):
                problems[place] = f"tokens is {tokens!r}, not a list of words; split it, or use the format conll"
            elif not all(isinstance(token, str) for token in tokens):
                problems[place] = f"tokens has {next(t for t in tokens if not isinstance(t, str))!r} among the words"
            elif len(tokens) != len(tags):
                problems[place] = f"there are {len(tokens)} words and {len(tags)} tags"
        return problems

    def _learnt(self, tags: Sequence[str]) -> list[str]:
        """Tags of the data in the scheme that is learnt."""
        if self.learn_as is None or (self.learn_as == self.scheme and not self.repair):
            return list(tags)
        return tags_of(spans_of(tags), len(tags), self.learn_as)

    def head(self) -> Head:
        """A linear layer over each token: (rows, tokens, hidden) -> (rows, tokens, labels); beside it the CRF."""
        names = self.label_names
        config = {
            "num_labels": len(names),
            "id2label": dict(enumerate(names)),
            "label2id": {name: index for index, name in enumerate(names)},
        }
        modules: dict[str, Callable[[Any], Any]] = {"crf": _crf} if self.crf else {}
        return Head("AutoModelForTokenClassification", config, peft_task_type="TOKEN_CLS", modules=modules)

    def encode(self, rows: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Dataset:
        """One feature per row, with column `WORD`; where there are tags `labels`, -100 where none is learnt."""
        labelled = "tags" in rows.column_names

        def features(batch: Mapping[str, list[Any]], indices: list[int]) -> dict[str, Any]:
            encoded, places = encode_words(batch["tokens"], tokenizer, max_length=max_length)
            found: dict[str, Any] = {name: encoded[name] for name in _INPUTS if name in encoded}
            found[WORD] = [_first_tokens(row) for row in places]
            found[ROW] = indices
            if labelled:
                found["labels"] = [self._labels(tags, row) for tags, row in zip(batch["tags"], places, strict=True)]
            return found

        return rows.map(features, batched=True, with_indices=True, remove_columns=rows.column_names, desc="tokenizing")

    def _labels(self, tags: Sequence[Any], words: Sequence[int | None]) -> list[int]:
        names = self.label_names
        learnt = self._learnt(_named(tags, self.labels or ()))
        labels = []
        for token, word in enumerate(words):
            is_first = word is not None and (token == 0 or words[token - 1] != word)
            if word is None or (not is_first and self.label_subwords == "first"):
                labels.append(IGNORED)
            else:
                labels.append(names.index(learnt[word] if is_first else self._inner(learnt[word])))
        return labels

    def _inner(self, tag: str) -> str:
        """The tag of a word's later tokens."""
        prefix, kind = parts(tag)
        inner = f"I-{kind}"
        return inner if self.learn_as and prefix in ("B", "S", "E") and inner in self.label_names else tag

    def collator(self, tokenizer: PreTrainedTokenizerBase) -> Collator:
        """Pads each batch to its own longest row."""
        fill = {"input_ids": tokenizer.pad_token_id, "attention_mask": 0, "token_type_ids": 0}
        return lambda features: padded(features, {**fill, "labels": IGNORED, WORD: 0})

    def forward(self, model: PreTrainedModel, batch: Mapping[str, Any]) -> Any:
        """Logits (rows, tokens, labels), and the CRF's transitions."""
        output = model(**{name: batch[name] for name in _INPUTS if name in batch})
        if self.crf:
            base: Any = model.get_base_model() if hasattr(model, "peft_config") else model
            output["transitions"] = base.crf()
        return output

    def loss(self, output: Any, batch: Mapping[str, Any], *, criterion: Any, items: Tensor) -> Tensor:
        """Cross-entropy of the learnt tokens; of a CRF -log p(tags) of each row, over the words of all."""
        if not self.crf:
            return super().loss(output, batch, criterion=criterion, items=items)
        from peftkit.layers.crf import log_partition, path_score

        emissions, mask = self._words(self.logits(output), batch[WORD])
        labels, _ = self._words(batch["labels"], batch[WORD])
        is_there = batch[WORD].any(1)  # a row none of whose words fits has nothing to learn
        emissions, labels, mask = emissions[is_there], labels[is_there], mask[is_there]
        losses = log_partition(emissions, mask, output["transitions"])
        loss: Tensor = (losses - path_score(emissions, labels, mask, output["transitions"])).sum() / items
        return loss

    def _words(self, values: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
        """What stands at the first token of each word, moved together: (rows, words, ...), and which of it is there."""
        import torch

        counts = first.sum(1)
        mask = torch.arange(max(1, int(counts.max())), device=values.device) < counts[:, None].clamp(min=1)
        # Words first, in their order; a row without any keeps its first token, so that no row is empty.
        order = first.argsort(dim=1, descending=True, stable=True)[:, : mask.shape[1]]
        index = order if values.ndim == 2 else order[..., None].expand(-1, -1, values.shape[-1])
        moved = values.gather(1, index)
        return (moved.float() if values.ndim == 3 else moved), mask

    def read(
        self, model: PreTrainedModel, batch: Mapping[str, Any], output: Any, *, generate: bool = True
    ) -> list[Any]:
        """One `Tagged` per row."""
        from peftkit.layers.crf import marginals, viterbi

        emissions, mask = self._words(self.logits(output), batch[WORD])
        learnt = output["transitions"] if self.crf else None
        probabilities = emissions.softmax(-1) if learnt is None else marginals(emissions, mask, learnt)
        scores = emissions.log_softmax(-1) if learnt is None else emissions
        best = viterbi(scores, mask, self._steps(learnt, emissions))
        there = batch[WORD].sum(1).tolist()
        return [
            Tagged(path[:words].cpu().numpy(), row[:words].float().cpu().numpy())
            for path, row, words in zip(best, probabilities, there, strict=True)
        ]

    def _steps(self, learnt: Any, like: Tensor) -> Any:
        """Scores of one tag after another: what was learnt, and what the scheme forbids."""
        import torch

        from peftkit.layers.crf import Transitions

        names: tuple[str | None, ...] = self.label_names
        scheme = self.learn_as if self.constrained and self.learn_as else "none"

        def forbidden(before: Sequence[str | None], after: Sequence[str | None]) -> Tensor:
            rows = [[0.0 if may_follow(one, two, scheme) else _FORBIDDEN for two in after] for one in before]
            return torch.tensor(rows, device=like.device)

        scores = Transitions(forbidden(names, names), forbidden([None], names)[0], forbidden(names, [None])[:, 0])
        return scores if learnt is None else Transitions(*(a + b for a, b in zip(learnt, scores, strict=True)))

    def references(self, encoded: Encoded) -> np.ndarray:
        """Lists of tags in the scheme that is learnt."""
        return objects([self._learnt(_named(tags, self.labels or ())) for tags in encoded.rows["tags"]])

    def decode(self, outputs: Sequence[Any], encoded: Encoded) -> Scored:
        """Lists of tags; a word that was cut off counts as outside of all spans."""
        import numpy as np

        references = self.references(encoded)
        predictions = objects([self._tags(output, len(tags)) for output, tags in zip(outputs, references, strict=True)])
        losses = [self._surprise(output, tags) for output, tags in zip(outputs, references, strict=True)]
        return Scored(predictions, references, np.array(losses, np.float64))

    def _tags(self, output: Tagged, words: int) -> list[str]:
        tags = [self.label_names[label] for label in output.labels]
        return tags + [OUTSIDE] * (words - len(tags))

    def _surprise(self, output: Tagged, tags: Sequence[str]) -> float:
        """Mean negative log-probability of the right tags."""
        import numpy as np

        right = [self.label_names.index(tag) for tag in tags[: len(output.labels)]]
        if not right:
            return 0.0
        return float(-np.log(np.maximum(output.probabilities[np.arange(len(right)), right], 1e-12)).mean())

    def rows(self, inputs: Sequence[Any]) -> Dataset:
        """Lists of words, texts (split into words and marks), or mappings with `tokens`; see `Task.rows`."""
        from datasets import Dataset

        if isinstance(inputs, (str, Mapping)):
            raise DataError(f"the inputs are {inputs!r}; give a list of inputs, even for one")
        return Dataset.from_list([self._asked(position, value) for position, value in enumerate(inputs)])

    def _asked(self, position: int, value: Any) -> dict[str, Any]:
        given = value.get("tokens", value.get("text")) if isinstance(value, Mapping) else value
        if isinstance(given, str):
            found = list(_WORDS.finditer(given))
            return {"tokens": [word.group() for word in found], "at": [list(word.span()) for word in found]}
        if isinstance(given, (list, tuple)) and all(isinstance(word, str) for word in given):
            return {"tokens": list(given), "at": None}
        raise DataError(f"input {position} is {value!r}; give a list of words, a text, or a mapping with 'tokens'")

    def answers(self, outputs: Sequence[Any], encoded: Encoded) -> list[dict[str, Any]]:
        """tokens, tags, and spans with type, words, score; with the characters of each span where a text was given."""
        return [self._answer(output, row) for output, row in zip(outputs, encoded.rows, strict=True)]

    def _answer(self, output: Tagged, row: Mapping[str, Any]) -> dict[str, Any]:
        tags = self._tags(output, len(row["tokens"]))
        answer: dict[str, Any] = {"tokens": list(row["tokens"]), "tags": tags}
        if self.learn_as is not None:
            answer["spans"] = list(self._spans(output, tags, row))
        return answer

    def _spans(self, output: Tagged, tags: Sequence[str], row: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        for kind, start, stop in spans_of(tags):
            chosen = [float(output.probabilities[word, output.labels[word]]) for word in range(start, stop)]
            span = {"type": kind, "start": start, "end": stop, "score": sum(chosen) / len(chosen)}
            if row.get("at"):
                span |= {"characters": [row["at"][start][0], row["at"][stop - 1][1]]}
            yield {**span, "words": list(row["tokens"][start:stop])}

    def describe(self, value: Any) -> str:
        """The spans, or the tags."""
        if self.learn_as is None:
            return " ".join(value)
        spans = [f"{kind} {start}-{stop - 1}" for kind, start, stop in spans_of(value)]
        return ", ".join(spans) or "(none)"

    def shown(self, row: Mapping[str, Any]) -> str:
        """The words."""
        return " ".join(row["tokens"])


def _crf(config: Any) -> Any:
    from peftkit.layers.crf import CRF

    return CRF(config.num_labels)


def _names(tags: Sequence[str], scheme: Scheme) -> tuple[str, ...]:
    return tuple(names_of(sorted({parts(tag)[1] for tag in tags} - {""}), scheme))


def _unnamed(tags: Sequence[Any], names: Sequence[str]) -> str | None:
    """Why a list holds something that is no tag, or a number that stands for none."""
    for tag in tags:
        if isinstance(tag, bool) or not isinstance(tag, (str, int)):
            return f"the tag {tag!r} is no text"
        if isinstance(tag, int) and not names:
            return f"the tag {tag} is a number; say in task.labels which tags the numbers stand for"
        if isinstance(tag, int) and not 0 <= tag < len(names):
            return f"the tag {tag} is not among the {len(names)} of task.labels"
    return None


def _named(tags: Sequence[Any], names: Sequence[str]) -> list[str]:
    return [names[tag] if isinstance(tag, int) else tag for tag in tags]


def _first_tokens(words: Sequence[int | None]) -> list[int]:
    return [int(word is not None and (token == 0 or words[token - 1] != word)) for token, word in enumerate(words)]
