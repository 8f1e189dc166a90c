"""Rows for recipes/e2e_lora.yaml from the files of the E2E NLG challenge.

    python benchmarks/tasks/e2e_nlg.py trainset.csv e2e_nlg/train.jsonl
    python benchmarks/tasks/e2e_nlg.py testset_w_refs.csv e2e_nlg/test.jsonl --group

Reads the challenge's CSV (columns mr and ref), or lines of the form  name : X | area : Y||sentence  as in the
repository of LoRA. Writes prompt and completion. The test file has many sentences for each input: with --group each
input is one row with all of them, so that it is generated once and the best-matching sentence counts.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Iterator
from pathlib import Path


def main() -> None:
    """Convert the file that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="CSV with the columns mr and ref, or text with || in every line")
    parser.add_argument("target", type=Path, help="JSON Lines file to write")
    parser.add_argument("--group", action="store_true", help="one row per input, with all its sentences")
    given = parser.parse_args()
    pairs = [(meaning.strip(), sentence.strip()) for meaning, sentence in read(given.source)]
    grouped: dict[str, list[str]] = {}
    for meaning, sentence in pairs:
        grouped.setdefault(meaning, []).append(sentence)
    rows = list(grouped.items()) if given.group else pairs
    given.target.parent.mkdir(parents=True, exist_ok=True)
    lines = [
        json.dumps({"prompt": prompt, "completion": completion}, ensure_ascii=False) for prompt, completion in rows
    ]
    given.target.write_text("\n".join(lines) + "\n", "utf-8")
    print(f"{len(rows)} rows of {len(pairs)} sentences in {given.target}")


def read(path: Path) -> Iterator[tuple[str, str]]:
    """Meaning and sentence of every line."""
    with path.open(encoding="utf-8", newline="") as file:
        if path.suffix == ".csv":
            for row in csv.DictReader(file):
                yield row["mr"], row["ref"]
            return
        for number, line in enumerate(file, start=1):
            meaning, separator, sentence = line.rstrip("\r\n").partition("||")
            if not separator:
                raise SystemExit(f"{path}:{number}: no || in {line!r}")
            yield meaning, sentence


if __name__ == "__main__":
    main()
