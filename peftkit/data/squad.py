"""SQuAD files: paragraphs with their questions, unfolded into a row per question."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from peftkit.data.raw_table import RawTable
from peftkit.errors import DataError

COLUMNS = ("id", "title", "context", "question", "answers")


def read_squad(file: str, text: str) -> RawTable:
    """A row per question: id, title, context, question, answers {text, answer_start}, which are empty if there is none.

    The line of a row is that of its id.

    Raises:
        DataError: text that is no JSON, or not in the form of SQuAD 1.1 or 2.0.
    """
    try:
        content = json.loads(text)
    except ValueError as problem:
        raise DataError(f"{file} is no JSON: {problem}") from problem
    rows = []
    for row in _questions(file, content):
        rows.append(row)
    if not rows:
        raise DataError(f"{file} holds no questions; write at least one")
    columns = {name: [row[name] for row in rows] for name in COLUMNS}
    return RawTable(file, columns, _lines(text, columns["id"]))


def _questions(file: str, content: Any) -> Iterator[dict[str, Any]]:
    articles = _list(file, content, "data", at="the top")
    for number, article in enumerate(articles):
        at = f"data[{number}]"
        for place, paragraph in enumerate(_list(file, article, "paragraphs", at=at)):
            inside = f"{at}.paragraphs[{place}]"
            context = _text(file, paragraph, "context", at=inside)
            for index, asked in enumerate(_list(file, paragraph, "qas", at=inside)):
                where = f"{inside}.qas[{index}]"
                question = _text(file, asked, "question", at=where)
                answers = [] if asked.get("is_impossible") else _list(file, asked, "answers", at=where)
                yield {
                    "id": str(asked.get("id", where)),
                    "title": str(article.get("title", "")),
                    "context": context,
                    "question": question,
                    "answers": {
                        "text": [_text(file, answer, "text", at=f"{where}.answers") for answer in answers],
                        "answer_start": [answer.get("answer_start", -1) for answer in answers],
                    },
                }


def _list(file: str, value: Any, key: str, *, at: str) -> list[Any]:
    found = value.get(key) if isinstance(value, Mapping) else None
    if not isinstance(found, list):
        raise DataError(
            f"{file} is no SQuAD file: {at} has no list {key!r}; it should be  data: [{{paragraphs: [{{context, qas: "
            "[{question, answers}]}]}]"
        )
    return found


def _text(file: str, value: Any, key: str, *, at: str) -> str:
    found = value.get(key) if isinstance(value, Mapping) else None
    if not isinstance(found, str):
        raise DataError(f"{file}: {at}.{key} is {found!r}, not a text; correct it")
    return found


def _lines(text: str, ids: list[str]) -> list[int]:
    lines, position, line = [], 0, 1
    for name in ids:
        found = text.find(json.dumps(name), position)
        if found >= 0:
            line += text.count("\n", position, found)
            position = found
        lines.append(line)
    return lines
