"""`peftkit predict`: answers of a finished run for texts on the command line or rows of a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from peftkit.cli.group import PluginFiles, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager
    from typing import TextIO

    from peftkit.cli.input_rows import InputRow
    from peftkit.predictor import Predictor

_CHUNK = 1024
"""Rows held in memory at a time; far above any batch, so that sorting by length still pays."""


_Folder = typer.Argument(metavar="DIR", help="Folder of a finished run, or of a PEFT adapter.")
_Texts = typer.Argument(metavar="TEXT", help="Texts to predict.")
_File = typer.Option(
    metavar="FILE", help="Rows to predict: .jsonl, .csv or .tsv with a header, .txt; - is JSON Lines on stdin."
)
_Out = typer.Option(metavar="FILE", help="Where rows with their predictions go, as JSON Lines; - is stdout.")
_Json = typer.Option("--json", metavar="", help="Print one JSON object per text.")
_BatchSize = typer.Option(min=1, metavar="ROWS", help="Rows that are computed together.")
_Device = typer.Option(help="auto, cpu, cuda, cuda:1, mps.")
_Merge = typer.Option("--merge", metavar="", help="Fold the adapter into the base weights first: faster.")
_Base = typer.Option(metavar="ID", help="Base model of a PEFT adapter, if not the one that it names.")
_Labels = typer.Option(metavar="NAME,NAME,...", help="Names of the classes of a PEFT adapter.")


def predict(  # noqa: PLR0913 - typer makes each option from a parameter
    run_dir: Annotated[Path, _Folder],
    texts: Annotated[list[str] | None, _Texts] = None,
    file: Annotated[Path | None, _File] = None,
    out: Annotated[Path, _Out] = Path("-"),
    as_json: Annotated[bool, _Json] = False,
    batch_size: Annotated[int, _BatchSize] = 32,
    device: Annotated[str, _Device] = "auto",
    merge: Annotated[bool, _Merge] = False,
    base: Annotated[str | None, _Base] = None,
    labels: Annotated[str | None, _Labels] = None,
    plugin: PluginFiles = None,
) -> None:
    """Predict texts or the rows of a file.

    With a finished run, or with a sequence classifier that another program has saved as a PEFT adapter.
    """
    _refuse_contradictions(texts, file, out)

    from peftkit.cli.input_rows import check_readable
    from peftkit.cli.plugin_files import load_plugin_files
    from peftkit.predictor import is_foreign, load
    from peftkit.results import read_result

    if file is not None:
        check_readable(file)
    if not is_foreign(run_dir):
        read_result(run_dir)
    load_plugin_files(plugin)
    names = [name.strip() for name in labels.split(",")] if labels else None
    predictor = _announced(load(run_dir, device=device, merge=merge, base=base, labels=names))
    if file is not None:
        _predict_file(predictor, file, out, batch_size=batch_size)
        return
    answers = predictor(texts, batch_size=batch_size)
    for line in (_json_lines if as_json else _readable_lines)(texts or (), answers):
        typer.echo(line)


def _announced(predictor: Predictor) -> Predictor:
    """`predictor`, after telling what merging has changed."""
    if predictor.merge_difference is not None:
        difference = f"{predictor.merge_difference:.2g}"
        typer.echo(f"merged: logits of the run's worst examples differ by at most {difference}", err=True)
    return predictor


def _refuse_contradictions(texts: list[str] | None, file: Path | None, out: Path) -> None:
    if bool(texts) == (file is not None):
        raise UsageError("give texts, or rows with --file FILE")
    if file is None and out != Path("-"):
        raise UsageError("--out belongs to --file; for texts use --json and  > FILE")
    if file is not None and file == out != Path("-"):
        raise UsageError("--out would overwrite the input; name another file")


def _predict_file(predictor: Predictor, file: Path, out: Path, *, batch_size: int) -> None:
    from peftkit.cli.input_rows import in_chunks, read_rows

    with _writer(out) as stream:
        for rows in in_chunks(read_rows(file), _CHUNK):
            _check(predictor, rows)
            answers = predictor([row.value for row in rows], batch_size=batch_size)
            for row, answer in zip(rows, answers, strict=True):
                stream.write(_as_json(_joined(row, answer)) + "\n")


def _check(predictor: Predictor, rows: list[InputRow]) -> None:
    """Find the line of a row that the task cannot read; the predictor only knows its position."""
    from peftkit.errors import DataError

    try:
        predictor.task.rows([row.value for row in rows])
    except DataError as problem:
        for row in rows:
            try:
                predictor.task.rows([row.value])
            except DataError as cause:
                raise DataError(f"{row.place}: {cause}") from cause
        raise DataError(f"{rows[0].place} and the rows after it: {problem}") from problem


def _joined(row: InputRow, answer: Mapping[str, Any]) -> dict[str, Any]:
    """Row and answer in one object; a key that both have, such as a known label, keeps the row's value."""
    given = dict(row.value) if isinstance(row.value, dict) else {"text": row.value}
    return given | {f"predicted_{key}" if key in given else key: value for key, value in answer.items()}


def _writer(out: Path) -> AbstractContextManager[TextIO]:
    """Standard output, or a file that appears whole or not at all."""
    import sys
    from contextlib import contextmanager, nullcontext

    if out == Path("-"):
        return nullcontext(sys.stdout)

    @contextmanager
    def staged() -> Iterator[TextIO]:
        part = out.with_name(f".{out.name}.part")
        out.parent.mkdir(parents=True, exist_ok=True)
        try:
            with part.open("w", encoding="utf-8") as stream:
                yield stream
            part.replace(out)
        finally:
            part.unlink(missing_ok=True)

    return staged()


def _as_json(value: Mapping[str, Any]) -> str:
    import json

    return json.dumps(value, ensure_ascii=False)


def _json_lines(texts: Sequence[str], answers: Sequence[Mapping[str, Any]]) -> list[str]:
    return [_as_json({"text": text, **answer}) for text, answer in zip(texts, answers, strict=True)]


def _readable_lines(texts: Sequence[str], answers: Sequence[Mapping[str, Any]]) -> list[str]:
    """`positive  0.982  some text`: what was answered, how sure, for what; in columns."""
    table = [[_value_in_words(value) for value in answer.values() if not isinstance(value, dict)] for answer in answers]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        "  ".join([*(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)), text])
        for row, text in zip(table, texts, strict=True)
    ]


def _value_in_words(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "(none)"
    return str(value)
