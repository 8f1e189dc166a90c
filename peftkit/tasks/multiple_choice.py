"""Multiple choice: which of a row's own choices answers its question."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

from peftkit.errors import CapabilityError, DataError
from peftkit.tasks import ROW, Collator, Encoded, Head, Scored, Task, tasks
from peftkit.tasks.columns import check_columns
from peftkit.tasks.padding import padded

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset, DatasetDict
    from torch import Tensor
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
_COUNTS = "counts"
"""Entry of a batch: how many choices each row has; the choices of all rows stand below each other in the inputs."""
_NOWHERE = -1e4
_LETTERED = re.compile(r"^\(([A-Z])\)[ \t]*(.*?)[ \t]*$", re.MULTILINE)
_HEADING = re.compile(r"\s*(options|choices):\s*$", re.IGNORECASE)


@tasks.register("multiple_choice")
class MultipleChoice(Task):
    """The one of `choices`, a list in each row, that answers `question`; `label` is its index, letter or text.

    Rows may differ in how many choices they have. Without a column `choices`, they are the lines of the question that
    begin with (A), (B), ... Each choice is read together with the question and gets one score; the scores of a row
    are compared by softmax. (Radford et al. 2018, section 3.3; Zellers et al. 2018, arXiv:1808.05326)
    """

    text_columns: ClassVar[tuple[str, ...]] = ("question", "choices")
    label_column: ClassVar[str | None] = "label"

    @property
    def default_metrics(self) -> tuple[str, ...]:
        """Share of right choices."""
        return ("accuracy",)

    def resolved(self, splits: DatasetDict) -> Self:
        """Itself; see `Task.resolved`."""
        check_columns(splits, ("question", "label"))
        return self

    def suited(self, config: PretrainedConfig) -> Self:
        """Itself; see `Task.suited`."""
        from transformers import MODEL_FOR_MULTIPLE_CHOICE_MAPPING

        if type(config) not in MODEL_FOR_MULTIPLE_CHOICE_MAPPING:
            raise CapabilityError(
                f"the base model is a {config.model_type}, for which transformers has no head that compares choices; "
                "name an encoder such as BERT in  model.id"
            )
        return self

    def label_problem(self, value: Any) -> str | None:
        """Why a cell is the label of no row at all; see `Task.label_problem`."""
        if isinstance(value, bool) or not isinstance(value, (int, float, str)):
            return f"the label {value!r} is no index, letter or text of a choice"
        if isinstance(value, float) and not value.is_integer():
            return f"the label {value!r} is no whole number"
        return None

    def row_problems(self, rows: Dataset) -> dict[int, str]:
        """Choices that cannot be chosen from, and labels that are none of them."""
        problems = {}
        for place, row in enumerate(rows):
            problem = _choices_problem(row) or _index_problem(row["label"], _split(row)[1])
            if problem:
                problems[place] = problem
        return problems

    def head(self) -> Head:
        """A linear function of each pooled choice: (rows, choices, hidden) -> (rows, choices)."""
        return Head("AutoModelForMultipleChoice")

    def encode(self, rows: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Dataset:
        """One feature per row, whose inputs are lists of one row of tokens per choice; `labels` where there are."""
        labelled = "label" in rows.column_names

        def features(row: Mapping[str, Any], index: int) -> dict[str, Any]:
            question, choices = _split(row)
            encoded = tokenizer([question] * len(choices), choices, truncation=True, max_length=max_length)
            found = {name: encoded[name] for name in _INPUTS if name in encoded} | {ROW: index}
            return found | {"labels": _index(row["label"], choices)} if labelled else found

        return rows.map(features, with_indices=True, remove_columns=rows.column_names, desc="tokenizing")

    def collator(self, tokenizer: PreTrainedTokenizerBase) -> Collator:
        """The choices of all rows below each other, padded to the longest; `counts` tells how many each row has."""
        import torch

        fill = {"input_ids": tokenizer.pad_token_id, "attention_mask": 0, "token_type_ids": 0}

        def collate(features: list[dict[str, Any]]) -> Mapping[str, Any]:
            batch = {
                name: torch.tensor([row[name] for row in features]) for name in ("labels", ROW) if name in features[0]
            }
            names = [name for name in _INPUTS if name in features[0]]
            counts = torch.tensor([len(row["input_ids"]) for row in features])
            flat = [
                {name: row[name][place] for name in names} for row in features for place in range(len(row[names[0]]))
            ]
            return batch | {_COUNTS: counts} | padded(flat, fill)

        return collate

    def forward(self, model: PreTrainedModel, batch: Mapping[str, Any]) -> Any:
        """Logits (rows, most choices); next to none where a row has fewer, so that they do not count."""
        import torch

        # Each choice is passed as a row of a single one, so that no choice has to be made up for shorter rows.
        output = model(**{name: batch[name][:, None] for name in _INPUTS if name in batch})
        scores, counts = self.logits(output).flatten(), batch[_COUNTS]
        there = torch.arange(int(counts.max()), device=scores.device) < counts[:, None]
        return {"logits": scores.new_full(there.shape, _NOWHERE).masked_scatter(there, scores)}

    def items(self, batch: Mapping[str, Any]) -> Tensor:
        """Rows."""
        import torch

        return torch.tensor(len(batch["labels"]), device=batch["labels"].device)

    def references(self, encoded: Encoded) -> np.ndarray:
        """Indices of the right choices."""
        import numpy as np

        return np.asarray(encoded.features["labels"], np.int64)

    def decode(self, outputs: Sequence[Any], encoded: Encoded) -> Scored:
        """The likeliest choice of each row."""
        import numpy as np

        logs = self._log_probabilities(outputs, encoded)
        references = self.references(encoded)
        losses = [-row[right] for row, right in zip(logs, references, strict=True)]
        return Scored(np.array([row.argmax() for row in logs]), references, np.array(losses))

    def _log_probabilities(self, outputs: Sequence[Any], encoded: Encoded) -> list[np.ndarray]:
        """(choices,) float64 of each row."""
        import numpy as np

        rows = [
            np.asarray(row[: len(choices)], np.float64)
            for row, choices in zip(outputs, encoded.features["input_ids"], strict=True)
        ]
        return [row - np.logaddexp.reduce(row) for row in rows]

    def rows(self, inputs: Sequence[Any]) -> Dataset:
        """Pairs (question, choices), mappings with both, or questions with lettered choices; see `Task.rows`."""
        from datasets import Dataset

        if isinstance(inputs, (str, Mapping)):
            raise DataError(f"the inputs are {inputs!r}; give a list of inputs, even for one")
        found = []
        for position, value in enumerate(inputs):
            row = {"question": value} if isinstance(value, str) else value
            if isinstance(value, (list, tuple)) and len(value) == 2:
                row = dict(zip(self.text_columns, value, strict=True))
            if not isinstance(row, Mapping) or not isinstance(row.get("question"), str):
                raise DataError(
                    f"input {position} is {value!r}; give a pair (question, list of choices), or a mapping with both"
                )
            row = {"question": row["question"], "choices": row.get("choices")}
            if problem := _choices_problem(row):
                raise DataError(f"input {position}: {problem}; give two or more")
            found.append(dict(zip(self.text_columns, _split(row), strict=True)))
        return Dataset.from_list(found)

    def answers(self, outputs: Sequence[Any], encoded: Encoded) -> list[dict[str, Any]]:
        """choice, its index and probability, and the probabilities of all in their order."""
        import numpy as np

        answers = []
        for row, choices in zip(self._log_probabilities(outputs, encoded), encoded.rows["choices"], strict=True):
            best, shares = int(row.argmax()), np.exp(row).tolist()
            answers.append(
                {"choice": choices[best], "index": best, "probability": shares[best], "probabilities": shares}
            )
        return answers

    def describe(self, value: Any) -> str:
        """The letter of a choice, or from the 27th on its index."""
        return chr(ord("A") + int(value)) if value < 26 else str(value)

    def shown(self, row: Mapping[str, Any]) -> str:
        """The question, and its choices with their letters."""
        question, choices = _split(row)
        return "\n".join([question, *(f"({self.describe(place)}) {text}" for place, text in enumerate(choices))])

    def input_of(self, shown: str) -> Any:
        """What `shown` says, in which choices are found by their letters."""
        return shown


def _split(row: Mapping[str, Any]) -> tuple[str, list[str]]:
    """Question and choices of a row."""
    question = row["question"]
    if row.get("choices") is not None:
        return question, list(row["choices"])
    found = list(_LETTERED.finditer(question))
    if not found:
        return question, []
    return _HEADING.sub("", question[: found[0].start()]).strip(), [match[2] for match in found]


def _choices_problem(row: Mapping[str, Any]) -> str | None:
    given = row.get("choices")
    if given is not None and not isinstance(given, (list, tuple)):
        return f"choices is {given!r}, not a list of texts"
    choices = _split(row)[1]
    if len(choices) < 2:
        where = "in the column choices" if given is not None else "as lines (A) ..., (B) ... of the question"
        return f"there are {len(choices)} choices {where}, and two or more are needed"
    for place, text in enumerate(choices):
        if not isinstance(text, str) or not text.strip():
            return f"choice {place} is {text!r}, not a text"
        if text in choices[:place]:
            return f"the choice {text!r} stands there twice"
    return None


def _index_problem(label: Any, choices: Sequence[str]) -> str | None:
    if _index(label, choices) is not None:
        return None
    if isinstance(label, str):
        return f"the label {label!r} is neither the text nor the letter of one of the {len(choices)} choices"
    return f"the label {label!r} is no index of the {len(choices)} choices, which are counted from 0"


def _index(label: Any, choices: Sequence[str]) -> int | None:
    if not isinstance(label, str):
        return int(label) if 0 <= label < len(choices) else None
    if label in choices:
        return choices.index(label)
    letter = re.fullmatch(r"\(?([A-Za-z])\)?", label.strip())
    place = ord(letter[1].upper()) - ord("A") if letter else len(choices)
    return place if place < len(choices) else None
