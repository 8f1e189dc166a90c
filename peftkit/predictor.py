"""A finished run inside an application: `peftkit.load(run_dir)(inputs)`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftkit.artifacts.digests import file_sha256
from peftkit.errors import CapabilityError, RunError
from peftkit.recipe import Recipe
from peftkit.results import RUN_FILE, RunResult

if TYPE_CHECKING:
    import numpy as np

    from peftkit.models import LoadedModel


def load(run_dir: Path | str, *, device: str = "auto", merge: bool = False) -> Predictor:
    """The predictor of a finished run; see `Predictor.load`."""
    return Predictor.load(run_dir, device=device, merge=merge)


class Predictor:
    """Answers for new inputs, with the encoding and decoding that the run was evaluated with.

    Args:
        recipe: the run's resolved recipe.
        loaded: the tuned model in evaluation mode.
    """

    def __init__(self, recipe: Recipe, loaded: LoadedModel) -> None:
        self.recipe = recipe
        self.task = recipe.task
        self.model = loaded.model
        self.tokenizer = loaded.tokenizer

    @classmethod
    def load(cls, run_dir: Path | str, *, device: str = "auto", merge: bool = False) -> Predictor:
        """The predictor of a finished run.

        Args:
            run_dir: folder that `peftkit run` has left.
            device: auto (cuda, mps, else cpu) or a torch device.
            merge: fold the adapter into the base weights: faster, and equal up to rounding.

        Raises:
            RunError: the folder holds no finished run, or files of it are damaged.
            CapabilityError: the device is not there, or the method cannot be merged.
        """
        import torch

        from peftkit.models import Storage, load_tuned

        run_dir = Path(run_dir)
        result = RunResult.read(run_dir)
        _check_files(result, run_dir)
        recipe = Recipe.from_values(result.recipe, origin=str(run_dir / RUN_FILE))
        dtype: torch.dtype = getattr(torch, result.model.dtype)
        loaded = load_tuned(run_dir, recipe.model, recipe.task.head(), storage=Storage(dtype))
        predictor = cls(recipe, loaded)
        if merge:
            predictor._merge()
        predictor.model = predictor.model.to(_device(device))
        return predictor

    def __call__(self, inputs: Any, *, batch_size: int = 32) -> list[dict[str, Any]]:
        """One answer per input, in the order of the inputs.

        Args:
            inputs: a sequence of strings, of pairs of strings, or of mappings with the task's columns; one string alone
                counts as a sequence of one.
            batch_size: rows that are computed together.

        Raises:
            DataError: an input of another shape, with its position.
        """
        inputs = [inputs] if isinstance(inputs, str) else list(inputs)
        if not inputs:
            return []
        return self.task.answers(self.logits(inputs, batch_size=batch_size))

    def logits(self, inputs: Sequence[Any], *, batch_size: int = 32) -> np.ndarray:
        """Raw model outputs, (inputs, labels) float32; see `__call__`."""
        import numpy as np
        import torch

        from peftkit.data.progress_bars import hidden_progress_bars
        from peftkit.models import autocast

        with hidden_progress_bars():
            encoded = self.task.encode(self.task.rows(inputs), self.tokenizer, self.recipe.model.max_length)
        encoded = encoded.select_columns(
            [name for name in encoded.column_names if name in self.tokenizer.model_input_names]
        )
        features = encoded.to_list()
        # Inputs of like length share a batch: less padding. The answers go back to the inputs' order.
        order = sorted(range(len(features)), key=lambda index: len(features[index]["input_ids"]))
        collate = self.task.collator(self.tokenizer)
        parts = []
        with torch.inference_mode(), autocast(self.model):
            for start in range(0, len(order), batch_size):
                batch = collate([features[index] for index in order[start : start + batch_size]])
                on_device = {name: tensor.to(self.model.device) for name, tensor in batch.items()}
                parts.append(self.task.forward(self.model, on_device).float().cpu().numpy())
        logits = np.concatenate(parts)
        restored = np.empty_like(logits)
        restored[order] = logits
        return restored

    def _merge(self) -> None:
        if not self.recipe.method.mergeable:
            raise CapabilityError(
                f"method {self.recipe.method.name!r} cannot be merged into the base weights; load it with merge=False"
            )
        self.model = self.model.merge_and_unload().eval()


def _check_files(result: RunResult, run_dir: Path) -> None:
    for name, digest in result.files.items():
        path = run_dir / name
        if not path.is_file():
            raise RunError(f"'{path}' is missing; restore it or run the recipe again")
        if file_sha256(path) != digest:
            raise RunError(f"'{path}' has changed since the run wrote it; restore it or run the recipe again")


def _device(name: str) -> str:
    import torch

    from peftkit.models import find_device

    if name == "auto":
        return find_device()
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as problem:
        raise CapabilityError(f"device {name!r} cannot be used here ({problem}); use auto or cpu") from problem
    return name
