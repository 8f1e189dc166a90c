"""A finished run inside an application: `peftkit.load(run_dir)(inputs)`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftkit.artifacts.digests import file_sha256
from peftkit.errors import CapabilityError, RunError
from peftkit.recipe import Recipe
from peftkit.results import RUN_FILE, RunResult, read_result

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedModel

    from peftkit.models import LoadedModel
    from peftkit.tasks import Encoded, Task

_MERGE_PROBES = 20


def load(
    folder: Path | str,
    *,
    device: str = "auto",
    merge: bool = False,
    base: str | None = None,
    labels: Sequence[str] | None = None,
) -> Predictor:
    """The predictor of a finished run, or of an adapter that another program has saved.

    Args:
        folder: that `peftkit run` has left, or that holds `adapter_config.json`.
        device: auto (cuda, mps, else cpu) or a torch device.
        merge: fold the adapter into the base weights; see `Predictor.load`.
        base: of another program's adapter: the base model, where it is not the one that the adapter names.
        labels: of another program's adapter: names of the classes, which its files do not hold.

    Raises:
        PeftkitError: see `Predictor.load` and `Predictor.load_foreign`.
    """
    if is_foreign(Path(folder)):
        return Predictor.load_foreign(folder, device=device, merge=merge, base=base, labels=labels)
    if base is not None or labels is not None:
        given = "base" if base is not None else "labels"
        raise RunError(f"'{folder}' is a folder of peftkit run, whose recipe decides; remove  {given}")
    return Predictor.load(folder, device=device, merge=merge)


def is_foreign(folder: Path) -> bool:
    """Whether a folder holds an adapter without a run around it."""
    return (folder / "adapter_config.json").is_file() and not (folder / RUN_FILE).is_file()


class Predictor:
    """Answers for new inputs, with the encoding and decoding that the run was evaluated with.

    Args:
        task: resolved; encodes inputs and decodes outputs.
        loaded: the tuned model in evaluation mode.
        max_length: longest input in tokens; longer ones are cut.
    """

    def __init__(self, task: Task, loaded: LoadedModel, *, max_length: int) -> None:
        self.task = task
        self.max_length = max_length
        self.model = loaded.model
        self.tokenizer = loaded.tokenizer
        self.merge_difference: float | None = None
        """Largest difference that merging has made to a logit, over the worst examples of the run; None: not merged."""

    @classmethod
    def load(cls, run_dir: Path | str, *, device: str = "auto", merge: bool = False) -> Predictor:
        """The predictor of a finished run.

        Args:
            run_dir: folder that `peftkit run` has left; of a pipeline: the last stage answers.
            device: auto (cuda, mps, else cpu) or a torch device.
            merge: fold the adapter into the base weights: faster, and equal up to rounding; an adapter that was
                trained on a quantized base goes into the full-precision one. `merge_difference` tells how far apart
                they are.

        Raises:
            RunError: the folder holds no finished run, or files of it are damaged.
            CapabilityError: the device is not there, or the method cannot be merged.
        """
        import torch

        from peftkit.models import MODEL_DIR, load_tuned, on_device, storage_of, usable_device

        run_dir, result = read_result(Path(run_dir))
        _check_files(result, run_dir)
        recipe = Recipe.from_values(result.recipe, origin=str(run_dir / RUN_FILE))
        if recipe.model.architecture is not None:
            recipe = recipe.model_copy(update={"model": recipe.model.at(run_dir / MODEL_DIR)})
        if merge:
            _check_mergeable(recipe)
        place = usable_device(device)
        head = recipe.task.head()
        storage = storage_of(recipe, head, dtype=getattr(torch, result.model.dtype), device=place)
        loaded = load_tuned(run_dir, recipe.model, head, storage=storage)
        predictor = cls(recipe.task, loaded, max_length=recipe.model.max_length)
        predictor.model = on_device(loaded.model, place)
        if merge:
            if recipe.quantization is not None:
                # Rounding the merged weights to a few bits again would lose most of the adapter.
                loaded = load_tuned(run_dir, recipe.model, head, storage=replace(storage, quantizer=None))
            predictor._merge(on_device(loaded.model, place), inputs=_probes(result, recipe.task))
        return predictor

    @classmethod
    def load_foreign(
        cls,
        folder: Path | str,
        *,
        device: str = "auto",
        merge: bool = False,
        base: str | None = None,
        labels: Sequence[str] | None = None,
    ) -> Predictor:
        """The predictor of a sequence classifier that was saved by plain peft, TRL or LLaMA-Factory; see `load`.

        Raises:
            ArtifactError: see `load_adapter`.
            CapabilityError: it is for another task, or it cannot be merged.
            RecipeError: `labels` are not as many as the model has.
        """
        from peftkit.foreign import ForeignAdapter, classifier_of, load_adapter, longest_input
        from peftkit.models import merge_adapter

        loaded = load_adapter(folder, base=base, device=device)
        task = classifier_of(ForeignAdapter.read(folder), loaded.model, labels)
        if merge:
            if not hasattr(loaded.model.base_model, "merge_and_unload"):
                raise CapabilityError(f"the adapter in '{folder}' cannot be merged; load it with merge=False")
            loaded = replace(loaded, model=merge_adapter(loaded.model))
        return cls(task, loaded, max_length=longest_input(loaded))

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
        encoded = self._encode(inputs)
        return self.task.answers(self._read(encoded, batch_size=batch_size), encoded)

    def logits(self, inputs: Sequence[Any], *, batch_size: int = 32) -> np.ndarray:
        """What the task reads of the model's outputs, (inputs, labels) float32 for a classifier; see `__call__`."""
        import numpy as np

        return np.stack(self._read(self._encode(inputs), batch_size=batch_size))

    def _encode(self, inputs: Sequence[Any]) -> Encoded:
        from peftkit.data.progress_bars import hidden_progress_bars
        from peftkit.tasks import Encoded

        rows = self.task.rows(inputs)
        with hidden_progress_bars():
            return Encoded(rows, self.task.encode(rows, self.tokenizer, self.max_length), self.tokenizer)

    def _read(self, encoded: Encoded, *, batch_size: int) -> list[Any]:
        """What the task reads of every feature, in order."""
        from peftkit.outputs import read_batch
        from peftkit.padding_free import without_padding

        features = encoded.features.to_list()
        # Inputs of like length share a batch: less padding.
        order = sorted(range(len(features)), key=lambda index: len(features[index]["input_ids"]))
        collate = self.task.evaluation_collator(self.tokenizer)
        read: list[Any] = [None] * len(features)
        with without_padding(self.model):
            for start in range(0, len(order), batch_size):
                chosen = order[start : start + batch_size]
                outputs = read_batch(self.model, collate([features[index] for index in chosen]), task=self.task)
                for index, output in zip(chosen, outputs, strict=True):
                    read[index] = output
        return read

    def _merge(self, model: PreTrainedModel, *, inputs: Sequence[Any]) -> None:
        """Go on with `model`, its adapter folded in; note how far that moves the logits of `inputs`."""
        from peftkit.models import merge_adapter
        from peftkit.outputs import logits_of
        from peftkit.padding_free import without_padding

        collate = self.task.evaluation_collator(self.tokenizer)
        if not inputs:
            self.model = merge_adapter(model)
            return
        batch = collate(self._encode(inputs).features.to_list())
        with without_padding(self.model):
            before = logits_of(self.model, batch, task=self.task)
        self.model = merge_adapter(model)
        with without_padding(self.model):
            self.merge_difference = (logits_of(self.model, batch, task=self.task) - before).abs().max().item()


def _check_mergeable(recipe: Recipe) -> None:
    from peftkit.storage import stored_quantization

    if not recipe.method.mergeable:
        raise CapabilityError(
            f"method {recipe.method.name!r} cannot be merged into the base weights; load it with merge=False"
        )
    stored = stored_quantization(recipe.model)
    if stored is not None:
        raise CapabilityError(
            f"the base '{recipe.model.title}' is stored as {stored.method}: merging would round the adapter away with "
            "its weights, and there is no full-precision base to merge into; load it with merge=False"
        )


def _probes(result: RunResult, task: Task) -> list[Any]:
    """Inputs to try merging on: the worst examples of the run."""
    shown = [example.text for split in result.splits.values() for example in split.worst]
    return [task.input_of(text) for text in shown[:_MERGE_PROBES]]


def _check_files(result: RunResult, run_dir: Path) -> None:
    for name, digest in result.files.items():
        path = run_dir / name
        if not path.is_file():
            raise RunError(f"'{path}' is missing; restore it or run the recipe again")
        if file_sha256(path) != digest:
            raise RunError(f"'{path}' has changed since the run wrote it; restore it or run the recipe again")
