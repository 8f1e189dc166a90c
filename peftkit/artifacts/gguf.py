"""GGUF files: converted once into a folder of plain safetensors, with tokenizer and chat template."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from peftkit.artifacts.artifact import Artifact
from peftkit.artifacts.digests import file_sha256
from peftkit.artifacts.entries import Origin, entry_name, find_or_make
from peftkit.artifacts.notices import on_terminal, readable_bytes, tell
from peftkit.errors import ArtifactError

PLAIN_TYPES = frozenset({"F64", "F32", "F16", "BF16"})


def locate_gguf(path: Path, locator: str) -> Artifact:
    """The model of a GGUF file as a safetensors folder in the cache, filed under the file's own SHA-256.

    Raises:
        ArtifactError: the file is no GGUF file, or transformers does not know its architecture.
    """
    stored_as = weight_type(path)
    digest = file_sha256(path)
    loss = "" if stored_as in PLAIN_TYPES else "; its quantization has changed the weights"
    origin = Origin(
        name=entry_name("gguf", path.stem, digest[:12]),
        kind="gguf",
        locator=locator,
        origin="local",
        source=f"{path.name} (SHA-256 {digest})",
        note=f"{stored_as} GGUF file (SHA-256 {digest[:12]}...), converted to float32{loss}",
    )
    return find_or_make(origin, lambda content: convert(path, content)).artifact(locator)


def convert(path: Path, target: Path) -> None:
    """Write the model of a GGUF file into an empty folder: float32 safetensors, config, tokenizer, chat template.

    Raises:
        ArtifactError: transformers cannot read it.
    """
    weight_type(path)
    tell(f"converting '{path.name}' ({readable_bytes(path.stat().st_size)}) to safetensors, once")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    try:
        with _calm():
            # Without dequantize=True the model stays quantized and cannot be saved.
            model = AutoModelForCausalLM.from_pretrained(
                path.parent,
                gguf_file=path.name,
                quantization_config=GgufConfig(dequantize=True),
                dtype=torch.float32,
                local_files_only=True,
            )
            model.save_pretrained(target)
            tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name, local_files_only=True)
            tokenizer.save_pretrained(target)
        _forget_how_it_was_loaded(target / "tokenizer_config.json")
    except (ValueError, KeyError, AttributeError, TypeError, NotImplementedError, RuntimeError, ImportError) as problem:
        raise ArtifactError(
            f"transformers cannot convert '{path}' ({type(problem).__name__}: {problem}); "
            "use the model's safetensors version, or a causal language model of an architecture it knows"
        ) from problem


def weight_type(path: Path) -> str:
    """How most of the weight matrices in a GGUF file are stored: Q4_1, F16, ...

    Raises:
        ArtifactError: it is no GGUF file, or it is cut short.
    """
    from gguf import GGUFReader

    try:
        reader = GGUFReader(path)
        sizes: Counter[str] = Counter()
        for tensor in reader.tensors:
            sizes[tensor.tensor_type.name] += int(tensor.n_elements)
    except (ValueError, IndexError, KeyError, OSError) as problem:
        raise ArtifactError(f"'{path}' is no whole GGUF file ({problem}); download it again") from problem
    if not sizes:
        raise ArtifactError(f"'{path}' holds no weights (it may be a vocabulary or the first part of a split file)")
    return sizes.most_common(1)[0][0]


def _forget_how_it_was_loaded(tokenizer_config: Path) -> None:
    """Drop what transformers 5.23 notes about the loading: equal models must give equal bytes, on line and off line."""
    config = json.loads(tokenizer_config.read_text("utf-8"))
    kept = {key: value for key, value in config.items() if key not in ("is_local", "local_files_only")}
    tokenizer_config.write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n", "utf-8")


@contextmanager
def _calm() -> Iterator[None]:
    """No progress bars into logs, and no warnings about the conversion's inside, which nobody can act on."""
    from transformers.utils import logging

    shown, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    if not on_terminal():
        logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if shown:
            logging.enable_progress_bar()
