"""Adapters that other programs have saved: plain peft, TRL's trainers, LLaMA-Factory."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any

import torch

from peftkit.artifacts.notices import tell
from peftkit.errors import ArtifactError, CapabilityError, RecipeError
from peftkit.models import (
    LoadedModel,
    Storage,
    compute_dtype,
    load_adapter_onto,
    load_model,
    load_tokenizer,
    make_room,
    on_device,
    skeleton,
    usable_device,
)
from peftkit.quantization import quantizers
from peftkit.recipe import ModelSpec
from peftkit.tasks import Head, Task, tasks

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_AUTO_CLASSES = {
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "FEATURE_EXTRACTION": "AutoModel",
}
_LABELLED = ("SEQ_CLS", "TOKEN_CLS")
_VALUE_HEADS = ("value_head.safetensors", "value_head.bin", "v_head.safetensors")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
_LONGEST = 1 << 20
"""Where neither model nor tokenizer names a limit."""
_PROBE = 9_973
"""A number of labels that no other size of a model equals."""


@dataclass(frozen=True)
class ForeignAdapter:
    """A folder with `adapter_config.json` and `adapter_model.safetensors`, as peft saves them.

    Args:
        settings: the content of `adapter_config.json`.
        shapes: of the saved weights, by peft's names.
    """

    folder: Path
    settings: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]

    @classmethod
    def read(cls, folder: Path | str) -> ForeignAdapter:
        """What is in a folder; no weights are loaded.

        Raises:
            ArtifactError: it holds no adapter, or files that cannot be read.
        """
        folder = Path(folder)
        if not (folder / CONFIG).is_file():
            raise ArtifactError(f"'{folder}' holds no adapter: {_what_instead(folder)}")
        try:
            settings = json.loads((folder / CONFIG).read_text("utf-8"))
        except ValueError as problem:
            raise ArtifactError(f"'{folder / CONFIG}' is no JSON ({problem}); copy the adapter again") from problem
        return cls(folder, settings, _shapes(folder))

    @property
    def task_type(self) -> str:
        """peft's `TaskType` name.

        Raises:
            ArtifactError: the folder does not say for which kind of model it was made.
        """
        named = self.settings.get("task_type")
        if named is None:  # trainers that are given no task type let peft note the class of the base
            base_class = (self.settings.get("auto_mapping") or {}).get("base_model_class", "")
            endings = {auto.removeprefix("AutoModel"): kind for kind, auto in _AUTO_CLASSES.items()}
            endings["LMHeadModel"] = "CAUSAL_LM"
            named = next((kind for ending, kind in endings.items() if ending and base_class.endswith(ending)), None)
            named = "SEQ_2_SEQ_LM" if base_class.endswith("ForConditionalGeneration") else named
        if named not in _AUTO_CLASSES:
            raise ArtifactError(
                f"'{self.folder / CONFIG}' has task_type {named!r}; set it to one of {', '.join(_AUTO_CLASSES)}"
            )
        return str(named)

    def spec(self, base: str | None) -> ModelSpec:
        """The base model: `base`, or the one that the adapter names.

        Raises:
            ArtifactError: there is neither.
        """
        named = base or self.settings.get("base_model_name_or_path")
        if not named:
            raise ArtifactError(f"'{self.folder / CONFIG}' names no base model; name it with  base")
        return ModelSpec(id=named, revision=None if base else self.settings.get("revision"))

    def head(self, spec: ModelSpec) -> Head:
        """How the base is loaded: with as many labels as the saved head has, if the adapter has one."""
        kind = self.task_type
        auto_class = _AUTO_CLASSES[kind]
        if kind not in _LABELLED:
            return Head(auto_class, {}, kind, is_new=kind == "QUESTION_ANS")
        probe = skeleton(spec, Head(auto_class, {"num_labels": _PROBE}, kind)).model
        for name, weight in probe.named_parameters():
            rows = self.shapes.get(_PREFIX + name, ())
            if rows and weight.ndim == len(rows) and weight.shape[0] == _PROBE:
                return Head(auto_class, {"num_labels": rows[0]}, kind)
        return Head(auto_class, {}, kind, is_new=False)

    def embedding_rows(self) -> int:
        """Rows of the input embedding in the file; 0 if it has none."""
        names = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "shared.weight")
        return max((shape[0] for name, shape in self.shapes.items() if name.endswith(names)), default=0)


def load_adapter(
    folder: Path | str, *, base: str | None = None, quantization: str | None = None, device: str = "auto"
) -> LoadedModel:
    """An adapter saved by plain peft, TRL or LLaMA-Factory on its base model, in evaluation mode.

    Args:
        folder: holds `adapter_config.json` and `adapter_model.safetensors`.
        base: the base model, where it is not the one that the adapter names: hub id or local folder.
        quantization: nf4, fp4 or int8, for an adapter that was trained on such a base.
        device: auto (cuda, mps, else cpu) or a torch device.

    Raises:
        ArtifactError: the folder holds no adapter, its base cannot be had, or the two do not fit.
        CapabilityError: the installed peft does not know this kind of adapter, or the device is not there.
    """
    adapter = ForeignAdapter.read(folder)
    place = usable_device(device)
    check_config(adapter)
    spec = adapter.spec(base)
    storage = Storage(torch.float32, device=place)
    if quantization is not None:
        quantizer = quantizers.build(quantization)
        if problem := quantizer.problem(torch.device(place).type):
            raise CapabilityError(problem)
        storage = replace(storage, quantizer=quantizer, compute_dtype=compute_dtype(place))
    loaded = load_model(spec, adapter.head(spec), storage=storage)
    tokenizer = _tokenizer(adapter, loaded)
    _fit_embedding(loaded.model, adapter, tokenizer)
    model = _on_base(adapter, loaded.model, spec)
    for name in _VALUE_HEADS:
        if (adapter.folder / name).is_file():
            tell(f"'{adapter.folder / name}' is left out: the model answers as a policy, without a value head")
    return replace(loaded, model=on_device(model, place), tokenizer=tokenizer)


def classifier_of(adapter: ForeignAdapter, model: PreTrainedModel, labels: Sequence[str] | None) -> Task:
    """The task of a sequence classifier, its classes named by `labels`, else as the base's configuration does.

    Raises:
        CapabilityError: the model is for another task.
        RecipeError: `labels` are not as many as the model has.
    """
    config = model.config
    if adapter.task_type != "SEQ_CLS":
        raise CapabilityError(
            f"'{adapter.folder}' is an adapter for {adapter.task_type}, and peftkit predicts with SEQ_CLS only; "
            "peftkit.load_adapter(folder) gives the model and its tokenizer"
        )
    if config.num_labels == 1:
        if labels:
            raise RecipeError(f"the model gives one number, so labels {list(labels)} name nothing; remove them")
        return tasks.build({"name": "sequence_classification", "problem_type": "regression"})
    if labels is not None and len(labels) != config.num_labels:
        raise RecipeError(
            f"labels names {len(labels)} classes ({', '.join(labels)}), the model has {config.num_labels}; name each"
        )
    multi = getattr(config, "problem_type", None) == "multi_label_classification"
    names = list(labels or (config.id2label[index] for index in range(config.num_labels)))
    kind = "multi_label" if multi else "single_label"
    return tasks.build({"name": "sequence_classification", "problem_type": kind, "labels": names})


def longest_input(loaded: LoadedModel) -> int:
    """Tokens that both the model and its tokenizer take."""
    positions = getattr(loaded.model.config, "max_position_embeddings", None)
    return int(min(loaded.tokenizer.model_max_length, positions or loaded.tokenizer.model_max_length, _LONGEST))


def check_config(adapter: ForeignAdapter) -> None:
    """Ask whether the installed peft understands everything that the configuration says.

    Raises:
        CapabilityError: it does not; peft itself would leave out what it does not know.
    """
    import peft
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    kind = adapter.settings.get("peft_type")
    config_class = PEFT_TYPE_TO_CONFIG_MAPPING.get(kind)
    newer = f"it was saved by another version than the installed peft {peft.__version__}; update peft"
    if config_class is None:
        raise CapabilityError(f"'{adapter.folder / CONFIG}' has peft_type {kind!r}, which peft does not know; {newer}")
    known = {*config_class.__dataclass_fields__, "peft_version", "auto_mapping"}
    unknown = sorted(name for name, value in adapter.settings.items() if name not in known and value)
    if unknown:
        raise CapabilityError(
            f"'{adapter.folder / CONFIG}' sets {', '.join(unknown)}, which peft's {config_class.__name__} does not "
            f"know; {newer}"
        )


def _what_instead(folder: Path) -> str:
    """Where the adapter may be, if it is not in `folder` itself."""
    if not folder.is_dir():
        return "there is no such folder; check the path"
    inner = [path.parent for path in sorted(folder.glob(f"*/{CONFIG}"))]
    if inner:
        # The newest of a trainer's checkpoints, whose names end with their step.
        steps = {path: int(step) for path in inner if (step := path.name.rpartition("-")[2]).isdigit()}
        best = max(steps, key=lambda path: steps[path]) if steps else inner[0]
        return f"it lies deeper; try '{best}'"
    return f"{CONFIG} is missing; give the folder that save_pretrained has written"


def _shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    from safetensors import SafetensorError, safe_open

    path = folder / WEIGHTS
    if not path.is_file():
        if (folder / "adapter_model.bin").is_file():
            raise ArtifactError(
                f"'{folder}' has its weights as adapter_model.bin, a pickle that could run code; if you trust it, load "
                "it once with peft and call save_pretrained, which writes safetensors"
            )
        raise ArtifactError(f"'{path}' is missing; copy the whole folder of the adapter")
    try:
        with safe_open(path, framework="pt") as weights:
            return {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118 - no mapping
    except SafetensorError as problem:
        raise ArtifactError(f"'{path}' is damaged ({problem}); copy it again") from problem


def _tokenizer(adapter: ForeignAdapter, loaded: LoadedModel) -> PreTrainedTokenizerBase:
    """The tokenizer that was saved beside the adapter, else the base's."""
    if not all((adapter.folder / name).is_file() for name in _TOKENIZER_FILES):
        return loaded.tokenizer
    artifact = replace(loaded.artifact, path=adapter.folder)
    return load_tokenizer(artifact)


def _fit_embedding(model: PreTrainedModel, adapter: ForeignAdapter, tokenizer: PreTrainedTokenizerBase) -> None:
    """As many rows as the adapter's own embedding, or as its tokenizer has tokens."""
    rows = adapter.embedding_rows()
    if rows and rows != model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(rows, mean_resizing=False)
    make_room(model, tokenizer)


def _on_base(adapter: ForeignAdapter, base: PreTrainedModel, spec: ModelSpec) -> PreTrainedModel:
    """The adapter on its base; every saved weight has found its place, where peft would only warn or say nothing."""
    import warnings

    from peft import get_peft_model_state_dict

    misfit = f"the adapter in '{adapter.folder}' does not fit the base '{spec.title}' ({type(base).__name__})"
    advice = "name the base that it was trained on with  base"
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "Found missing adapter keys")
            model = load_adapter_onto(base, adapter.folder)
    except (RuntimeError, ValueError, KeyError, UserWarning) as problem:
        reason = shorten(str(problem), 300, placeholder=" ...")
        raise ArtifactError(f"{misfit}: {reason}; {advice}") from problem
    places = {*get_peft_model_state_dict(model, save_embedding_layers=True), *dict(model.named_parameters())}
    left = sorted(adapter.shapes.keys() - places)
    if left:
        raise ArtifactError(f"{misfit}: {len(left)} of its weights have no place there, such as {left[0]}; {advice}")
    return model
