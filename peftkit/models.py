"""Base models with their tokenizers: loading, saving, and reading back what a run has saved."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from peftkit.artifacts import Artifact, locate_model, locate_tokenizer
from peftkit.errors import ArtifactError, CapabilityError, PeftkitError, RunError
from peftkit.heads import drop_unused, new_modules, unstored
from peftkit.layers.extended import model_class
from peftkit.layers.kept import keep_blocks
from peftkit.layers.virtual_tokens import fit_outputs
from peftkit.quantization.quick_import import import_bitsandbytes
from peftkit.stacking import fold_adapter
from peftkit.storage import (
    Storage,
    StoredQuantization,
    base_bits,
    check_readable,
    compute_dtype,
    find_device,
    quantizing_options,
    settle,
    spare_new_modules,
    stored_quantization,
    usable_device,
)
from peftkit.tasks import Head

if TYPE_CHECKING:
    from peftkit.recipe import ModelSpec, Recipe

__all__ = [
    "ADAPTER_DIR",
    "MODEL_DIR",
    "LoadedModel",
    "Storage",
    "base_bits",
    "base_config",
    "compute_dtype",
    "find_device",
    "load_adapter_onto",
    "load_model",
    "load_tokenizer",
    "load_tuned",
    "make_room",
    "merge_adapter",
    "on_device",
    "quiet_libraries",
    "save_weights",
    "skeleton",
    "storage_of",
    "to_float32_masters",
    "usable_device",
]

import_bitsandbytes()

ADAPTER_DIR = "adapter"
"""Standard PEFT folder inside a run folder."""
MODEL_DIR = "model"
"""Whole model inside a run folder, where the method trains base weights."""


@dataclass(frozen=True)
class LoadedModel:
    """A base model ready to be tuned.

    Args:
        model: with the task's head.
        tokenizer: has a padding token.
        artifact: where the weights came from.
        head_modules: names of the modules that are new to the base model.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    artifact: Artifact
    head_modules: tuple[str, ...]


def load_model(spec: ModelSpec, head: Head, *, storage: Storage, trust_remote_code: bool = False) -> LoadedModel:
    """Base model and tokenizer for a task, weights from safetensors only.

    Raises:
        ArtifactError: the model cannot be found, or its files are damaged.
        CapabilityError: the architecture has no such head, or this machine cannot read the weights.
    """
    artifact = locate_model(spec.locator, revision=spec.revision, trust_remote_code=trust_remote_code)
    tokenizer = load_tokenizer(artifact, trust_remote_code=trust_remote_code)
    stored = stored_quantization(spec)
    if stored is not None:
        check_readable(spec, stored, device=storage.device or find_device())
    source = _Source(artifact, head, trust_remote_code)
    with quiet_libraries():
        model, missing, mismatched = source.load(**_storage_options(source, storage, stored))
    keep_blocks(model, spec.layers)
    if storage.quantizer is not None or stored is not None:
        settle(model, storage)
    for folder in spec.adapters:
        model = fold_adapter(model, Path(folder))
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    if head.generates:
        _end_texts(model, tokenizer)
    heads = new_modules(model, head, missing | mismatched)
    for name in heads:
        model.get_submodule(name).float()  # what trains is float32, whatever the base is stored in
    return LoadedModel(model, tokenizer, artifact, heads)


def skeleton(spec: ModelSpec, head: Head) -> LoadedModel:
    """The model on the meta device, from its configuration alone: modules and shapes, no weights."""
    artifact = locate_tokenizer(spec.locator, revision=spec.revision)
    tokenizer = load_tokenizer(artifact)
    config = AutoConfig.from_pretrained(artifact.path, **head.config)
    with quiet_libraries(), torch.device("meta"):
        try:
            model = model_class(head.auto_class, config, head.modules).from_config(config)
        except ValueError as problem:
            raise _lacks_head(spec.title, head, problem) from problem
        keep_blocks(model, spec.layers)
        missing = set() if head.is_new else unstored(model, config)
    drop_unused(model, head)
    return LoadedModel(model, tokenizer, artifact, new_modules(model, head, missing))


def base_config(spec: ModelSpec) -> PretrainedConfig:
    """The configuration of a base model."""
    return AutoConfig.from_pretrained(locate_tokenizer(spec.locator, revision=spec.revision).path)


def _end_texts(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Let generated texts end at the tokenizer's end token, beside those that the model has of its own."""
    config = model.generation_config
    own = config.eos_token_id
    ends = {*(own if isinstance(own, list) else [own]), tokenizer.eos_token_id} - {None}
    config.eos_token_id = sorted(ends) if len(ends) > 1 else next(iter(ends), None)
    config.pad_token_id = tokenizer.pad_token_id


def storage_of(recipe: Recipe, head: Head, *, dtype: torch.dtype, device: str | None = None) -> Storage:
    """How the base weights of a run are held on this machine.

    Args:
        dtype: of weights that are not quantized.
        device: where the model will be; None: the best device at hand.

    Raises:
        CapabilityError: the checkpoint is quantized in a way that cannot be loaded here, or would be quantized twice.
    """
    device = device or find_device()
    stored = stored_quantization(recipe.model)
    if stored is not None:
        if recipe.quantization is not None:
            raise CapabilityError(
                f"'{recipe.model.title}' is quantized already ({stored.method}); remove  quantization  from the recipe"
            )
        check_readable(recipe.model, stored, device=device)
    if recipe.quantization is None:
        return Storage(dtype, device=device)
    bare = skeleton(recipe.model, head)
    keep = recipe.method.full_precision_modules(bare.model, head_modules=bare.head_modules)
    return Storage(dtype, recipe.quantization, compute_dtype(device), keep, device)


def to_float32_masters(model: PreTrainedModel) -> PreTrainedModel:
    """`model` with every trainable parameter in float32, changed in place."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return model


def make_room(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Add rows to the embeddings where the tokenizer has more tokens than they have."""
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        with torch.random.fork_rng(devices=[]):  # the new rows train or are loaded, so their start does not matter
            torch.manual_seed(0)
            model.resize_token_embeddings(len(tokenizer), mean_resizing=False)


def merge_adapter(model: Any) -> PreTrainedModel:
    """The base model with the adapter of a `PeftModel` folded in, in evaluation mode; `model` is used up."""
    from peft.utils.other import ModulesToSaveWrapper

    # peft 0.21 cannot unload heads of several layers beside most methods, so they are put in place first.
    for name, module in list(model.named_modules()):
        if isinstance(module, ModulesToSaveWrapper):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, module.modules_to_save[module.active_adapters[0]])
    merged: PreTrainedModel = model.merge_and_unload().eval()
    return merged


def on_device(model: PreTrainedModel, device: torch.device | str) -> PreTrainedModel:
    """`model` on a device; a quantized one is there already, and may not be moved."""
    if getattr(model, "quantization_method", None) is not None and model.device.type == torch.device(device).type:
        return model
    return model.to(device)


def load_tokenizer(artifact: Artifact, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer in a model folder; one without a padding token pads with its end token.

    Raises:
        ArtifactError: the folder holds no tokenizer that transformers can read.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(artifact.path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as problem:
        raise ArtifactError(f"'{artifact.record.locator}' has no usable tokenizer: {problem}") from problem
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            raise ArtifactError(
                f"the tokenizer of '{artifact.record.locator}' has neither a padding nor an end token; "
                "batches cannot be padded: use a model whose tokenizer_config.json names one"
            )
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keeps libraries from writing what is no news: loading bars, the new head in a load report, a deprecation."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            # peft 0.21 asks for an attribute that transformers 5.23 has renamed.
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
            # peft 0.21 reads the ranks of AdaLoRA, which it applies, as LoRA's patterns, which have other names.
            warnings.filterwarnings("ignore", "The following rank_pattern keys did not match", RuntimeWarning)
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


@dataclass(frozen=True)
class _Source:
    """Files of a base model, and the head that it is loaded with."""

    artifact: Artifact
    head: Head
    trust_remote_code: bool

    def config(self) -> Any:
        """The configuration in the files, changed as the head wants it."""
        return AutoConfig.from_pretrained(
            self.artifact.path, trust_remote_code=self.trust_remote_code, **self.head.config
        )

    def load(self, **options: Any) -> tuple[PreTrainedModel, set[str], set[str]]:
        """The model, and the names of its parameters that are not in the files, and that have another shape there."""
        locator = self.artifact.record.locator
        # A configuration takes no keys that it has no place for; the model's own loader would stumble over them.
        options = {"config": self.config(), **options}
        try:
            model, report = model_class(self.head.auto_class, self.config(), self.head.modules).from_pretrained(
                self.artifact.path,
                use_safetensors=True,
                ignore_mismatched_sizes=True,  # a base that was tuned before may have a head of another size
                output_loading_info=True,
                trust_remote_code=self.trust_remote_code,
                **options,
            )
        except ValueError as problem:
            raise _lacks_head(locator, self.head, problem) from problem
        except ImportError as problem:
            raise CapabilityError(f"'{locator}' needs a library that is not here: {problem}") from problem
        except OSError as problem:
            raise ArtifactError(f"cannot load '{locator}': {problem}") from problem
        mismatched = {key[0] if isinstance(key, tuple) else key for key in report["mismatched_keys"]}
        drop_unused(model, self.head)
        return model, set(report["missing_keys"]), mismatched

    def bare(self) -> tuple[PreTrainedModel, tuple[str, ...]]:
        """The model on the meta device, unquantized, and the modules that the files hold no weights for."""
        config = self.config()
        is_quantized = hasattr(config, "quantization_config")
        if is_quantized:
            del config.quantization_config
        model, missing, mismatched = self.load(config=config, device_map={"": "meta"})
        # Quantized weights have other shapes than the model without quantization.
        return model, new_modules(model, self.head, missing if is_quantized else missing | mismatched)


def _lacks_head(locator: str, head: Head, problem: ValueError) -> PeftkitError:
    """What a refusal of transformers to build a model means."""
    if "Unrecognized configuration class" in str(problem):
        return CapabilityError(f"'{locator}' has no architecture for {head.auto_class}; choose a base model that has")
    return ArtifactError(f"cannot load '{locator}': {problem}")


def _storage_options(source: _Source, storage: Storage, stored: StoredQuantization | None) -> dict[str, Any]:
    """What `from_pretrained` has to be told of how the weights are held."""
    options: dict[str, Any] = {"dtype": storage.dtype}
    if storage.quantizer is not None:
        model, new = source.bare()
        find_output: Any = getattr(model, "get_output_embeddings", lambda: None)
        output = next((name for name, module in model.named_modules() if module is find_output()), None)
        return options | quantizing_options(storage, new_modules=new, output=output)
    if stored is None:
        return options
    if stored.method == "bitsandbytes":
        options["config"] = source.config()
        spare_new_modules(options["config"], source.bare()[1])
    return options | {"device_map": {"": storage.device or find_device()}}


def save_weights(model: Any, tokenizer: PreTrainedTokenizerBase, run_dir: Path, *, spec: ModelSpec) -> Path:
    """Save an adapter, or the whole model if it is none, with its tokenizer; equal weights give equal bytes.

    The files name the base model as the recipe does, never by its place in this machine's cache.

    Returns:
        The folder inside `run_dir`.
    """
    is_adapter = hasattr(model, "peft_config")
    folder = run_dir / (ADAPTER_DIR if is_adapter else MODEL_DIR)
    with quiet_libraries():
        # Rows that train are part of the adapter; peft would add the whole embedding once tokens have been added.
        model.save_pretrained(folder, **({"save_embedding_layers": False} if is_adapter else {}))
        tokenizer.save_pretrained(folder)
        if is_adapter and model.can_generate():
            model.generation_config.save_pretrained(folder)  # so that others stop at the token that was trained
    config = folder / ("adapter_config.json" if is_adapter else "config.json")
    content = json.loads(config.read_text("utf-8"))
    named = {"base_model_name_or_path": spec.title, "revision": spec.revision}
    named = named if is_adapter else {"_name_or_path": spec.title}
    # peft keeps target modules in a set, whose order differs from process to process, and lists head modules twice.
    config.write_text(json.dumps(_sorted_lists(content | named), indent=2, sort_keys=True) + "\n", "utf-8")
    (folder / "README.md").unlink(missing_ok=True)  # peft's template, which names the cache folder as the base model
    return folder


def _sorted_lists(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: sorted(set(value)) if isinstance(value, list) and all(isinstance(item, str) for item in value) else value
        for key, value in config.items()
    }


def load_adapter_onto(base: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """A saved adapter on a base model, in evaluation mode, its weights in float32 as they were trained."""
    from peft import PeftModel, load_peft_weights

    with quiet_libraries():
        model = PeftModel.from_pretrained(base, folder)
        if base.dtype in (torch.bfloat16, torch.float16):
            _load_in_float32(model, load_peft_weights(str(folder), device=str(model.device)))
    return fit_outputs(model).eval()


def _load_in_float32(model: Any, weights: Mapping[str, torch.Tensor]) -> None:
    """Load the weights of the active adapter once more: peft rounds some of them to the type of the base."""
    from peft import set_peft_model_state_dict

    config = model.active_peft_config
    for name, weight in model.named_parameters():
        if f".{model.active_adapter}" in name:
            weight.data = weight.data.float()
    # Where AdaLoRA's ranks are given, peft makes its matrices anew; they have their ranks already.
    ranks = {"rank_pattern": config.rank_pattern} if config.peft_type == "ADALORA" else {}
    vars(config).update(dict.fromkeys(ranks))
    set_peft_model_state_dict(model, dict(weights))
    vars(config).update(ranks)


def load_tuned(run_dir: Path, spec: ModelSpec, head: Head, *, storage: Storage) -> LoadedModel:
    """What a run has saved, in evaluation mode, adapters unmerged.

    Raises:
        RunError: the folder holds neither an adapter nor a model.
    """
    if (run_dir / ADAPTER_DIR / "adapter_config.json").is_file():
        loaded = load_model(spec, head, storage=storage)
        tokenizer = AutoTokenizer.from_pretrained(run_dir / ADAPTER_DIR)
        make_room(loaded.model, tokenizer)
        model = load_adapter_onto(loaded.model, run_dir / ADAPTER_DIR)
    elif (run_dir / MODEL_DIR / "config.json").is_file():
        loaded = load_model(spec.tuned(run_dir / MODEL_DIR), head, storage=storage)
        model, tokenizer = loaded.model, loaded.tokenizer
    else:
        raise RunError(f"'{run_dir}' holds neither {ADAPTER_DIR}/ nor {MODEL_DIR}/; run the recipe again")
    return LoadedModel(model.eval(), tokenizer, loaded.artifact, loaded.head_modules)
