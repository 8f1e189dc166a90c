"""Which files of a folder or repository make a model, and whether they are whole."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from peftkit.artifacts.digests import files_below
from peftkit.errors import ArtifactError

INDEX_FILE = "model.safetensors.index.json"
_WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors")
_SHARD = re.compile(r"model-\d+-of-(\d+)\.safetensors")
_SIDE_SUFFIXES = frozenset({".json", ".txt", ".model", ".jinja", ".tiktoken", ".bpe"})
_PICKLE_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".pkl"})
_TOKENIZERS = frozenset(
    {"tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model", "spiece.model", "spm.model", "tekken.json"}
    | {"sentencepiece.bpe.model", "tokenizer_config.json"}
)


@dataclass(frozen=True)
class ModelFiles:
    """Chooses config, tokenizer and, if wanted, weights; only safetensors, and Python files only on demand.

    Args:
        locator: what the user asked for, for messages.
        weights: whether the weights are needed.
        code: whether Python files belong to it (trust_remote_code).
    """

    locator: str
    weights: bool = True
    code: bool = False

    def first(self) -> list[str]:
        """Files to fetch before `choose`."""
        return ["config.json"]

    def listing(self, folder: Path) -> list[str]:
        """The files of a local folder that may belong to it; deeper folders only where code is wanted."""
        if self.code:
            return files_below(folder)
        top = [path.name for path in folder.iterdir() if path.is_file()]
        return top + [f"{path.parent.name}/{path.name}" for path in folder.glob("additional_chat_templates/*.jinja")]

    def choose(self, folder: Path, listing: Sequence[str]) -> list[str]:
        """The files to use of all those listed; `folder` need not hold them yet.

        Raises:
            ArtifactError: there is no model among them that can be loaded safely.
        """
        top = [name for name in listing if "/" not in name]
        if "config.json" not in top:
            raise ArtifactError(self._without_config(folder, top))
        weights = [name for name in top if _WEIGHTS.fullmatch(name)]
        if not weights:
            raise ArtifactError(self._without_weights(top))
        if "model.safetensors" in weights and INDEX_FILE not in top:
            weights = ["model.safetensors"]
        side = [name for name in top if PurePosixPath(name).suffix in _SIDE_SUFFIXES and _belongs(name)]
        templates = [name for name in listing if name.startswith("additional_chat_templates/")]
        code = [name for name in listing if name.endswith(".py")] if self.code else []
        return sorted({*side, *templates, *code, *(weights if self.weights else ())})

    def missing(self, folder: Path, chosen: Iterable[str]) -> str | None:
        """What a folder lacks to be whole, as far as its own files tell; None if nothing."""
        names = set(chosen)
        if not names & _TOKENIZERS:
            return "it has no tokenizer files"
        if not self.weights:
            return None
        absent = sorted(_shards(folder, names) - names)
        return f"the weights '{absent[0]}' are missing" if absent else None

    def damage(self, folder: Path, chosen: Iterable[str]) -> str | None:
        """What is wrong with the weights, naming the file; None if their headers fit their sizes."""
        for name in chosen:
            if name.endswith(".safetensors") and (problem := safetensors_problem(folder / name)):
                return f"'{(folder / name).resolve()}' is damaged: {problem}"
        return None

    def _without_config(self, folder: Path, top: Sequence[str]) -> str:
        if "adapter_config.json" in top:
            return (
                f"'{self.locator}' is an adapter, not a base model; give the model it was made for "
                "(base_model_name_or_path in its adapter_config.json)"
            )
        if ggufs := [name for name in top if name.endswith(".gguf")]:
            return (
                f"'{self.locator}' holds GGUF files only ({', '.join(ggufs[:3])}); "
                "download one and give its path, ending in .gguf"
            )
        present = ", ".join(sorted(top)[:8]) or "nothing"
        return f"'{self.locator}' is not a model: it has no config.json (it has: {present}); check the locator"

    def _without_weights(self, top: Sequence[str]) -> str:
        if pickles := sorted(name for name in top if PurePosixPath(name).suffix in _PICKLE_SUFFIXES):
            return (
                f"'{self.locator}' has no safetensors weights, only {', '.join(pickles[:3])}, which can run code when "
                "loaded; choose a revision with safetensors (model.revision; a conversion is often offered as "
                "refs/pr/N), or convert it once with save_pretrained() on a machine where you trust it"
            )
        return f"'{self.locator}' has no weights (model.safetensors); choose another model"


def safetensors_problem(path: Path) -> str | None:
    """What is wrong with a safetensors file, as far as header and size tell; None if they fit."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        header_size = int.from_bytes(stream.read(8), "little")
        if size < 8 or header_size > size - 8:
            return f"it is cut short ({size} bytes)"
        try:
            header = json.loads(stream.read(header_size))
            ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            return "its header cannot be read"
    expected = 8 + header_size + max(ends, default=0)
    return None if expected == size else f"it has {size} bytes instead of {expected}"


def _belongs(name: str) -> bool:
    """Whether a text file at the top may matter for loading; licences and notes do not."""
    return not name.lower().startswith(("license", "licence", "notice", "readme", "requirements", "data_config"))


def _shards(folder: Path, names: set[str]) -> set[str]:
    """The weight files that the index, or the shards' own names, call for."""
    if INDEX_FILE in names and (folder / INDEX_FILE).is_file():
        try:
            return set(json.loads((folder / INDEX_FILE).read_text("utf-8"))["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError) as problem:
            raise ArtifactError(f"'{folder / INDEX_FILE}' cannot be read ({problem}); download it again") from problem
    totals = {match[1] for name in names if (match := _SHARD.fullmatch(name))}
    return {f"model-{n:05d}-of-{total}.safetensors" for total in totals for n in range(1, int(total) + 1)}
