"""The recipe: everything that decides what a run does, in one frozen, validated object."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    BeforeValidator,
    Field,
    PrivateAttr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from peftkit.augmentations import Augmentation, augmentations
from peftkit.data import DataSource, sources
from peftkit.distillation import Distillation
from peftkit.errors import RecipeError
from peftkit.losses import Loss, losses
from peftkit.methods import TuningMethod, methods
from peftkit.metrics import Metric, metrics
from peftkit.quantization import Quantizer, quantizers
from peftkit.recipe_fit import Misfit, misfits
from peftkit.recipe_problems import describe_problems
from peftkit.recipe_section import Section
from peftkit.registry import From, Registry, plain_values
from peftkit.regularizers import Regularizer, regularizers
from peftkit.rewards import rewards
from peftkit.tasks import Task, tasks
from peftkit.yaml_source import YamlSource, parse_yaml, read_yaml

# Aliases, because a field called `metrics` would hide the registry of that name inside the class body.
NamedTask = Annotated[Task, From(tasks)]
NamedSource = Annotated[DataSource, From(sources)]
NamedAugmentation = Annotated[Augmentation, From(augmentations)]
NamedMethod = Annotated[TuningMethod, From(methods), BeforeValidator(lambda value: _stacked(value))]
NamedQuantizer = Annotated[Quantizer, From(quantizers)]
NamedLoss = Annotated[Loss, From(losses)]
NamedRegularizer = Annotated[Regularizer, From(regularizers)]
NamedMetric = Annotated[Metric, From(metrics)]

KINDS: Mapping[str, Registry[Any]] = {
    "task": tasks,
    "data": sources,
    "method": methods,
    "quantization": quantizers,
    "loss": losses,
    "regularizer": regularizers,
    "augmentation": augmentations,
    "metric": metrics,
    "reward": rewards,
}
"""Every kind of component, by the word that the command line uses."""

Optimizer = (
    Literal["adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop"]
    | Literal["adamw_8bit", "lion_8bit", "lion_32bit", "ademamix_8bit", "ademamix"]
    | Literal["paged_adamw_32bit", "paged_adamw_8bit"]
    | Literal["paged_lion_32bit", "paged_lion_8bit", "paged_ademamix_32bit", "paged_ademamix_8bit"]
)
Scheduler = Literal[
    "linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup", "inverse_sqrt"
]


class TokenizerSpec(Section):
    """A tokenizer that is trained on the texts of the training split."""

    type: Literal["wordpiece", "bpe", "unigram"]
    """wordpiece: BERT's, with a mask token; bpe: on bytes, as GPT-2's and RoBERTa's, with a mask token; unigram: T5's,
    with sentinels."""
    vocab_size: int = Field(8000, ge=300)
    """Tokens, special ones included; fewer where the texts give fewer."""
    lowercase: bool = False
    """Of wordpiece: fold case, and strip accents."""


class ModelSpec(Section):
    """The base model: `id`, or `architecture` and `tokenizer` of one that is trained from scratch."""

    id: str | None = Field(None, min_length=1)
    """Hub id (org/name), local folder, or GGUF file."""
    architecture: dict[str, Any] | None = None
    """Configuration of a model with random weights: {type: bert, hidden_size: 256, num_hidden_layers: 4, ...}, with the
    names of transformers; what is not given is its default there, the vocabulary is the tokenizer's."""
    tokenizer: TokenizerSpec | None = None
    """Of a model from scratch: {type: wordpiece, vocab_size: 8000}."""
    revision: str | None = None
    """Commit, tag or branch on the hub."""
    max_length: int = Field(128, ge=2)
    """Longest input in tokens, special tokens included; longer rows are cut."""
    adapters: tuple[str, ...] = ()
    """Adapter folders that are folded into the base, in this order, before anything is trained."""
    layers: tuple[Annotated[int, Field(ge=0)], ...] | None = None
    """Layers of the base that are kept, counted from 0: [0, 2, 4] makes a model of three; none: all. `adapters` are
    folded into what is left."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of weights that are not quantized; those that train are float32 in any case. auto: float32."""
    _folder: str | None = PrivateAttr(None)

    @model_validator(mode="after")
    def _one_base(self) -> Self:
        if (self.id is None) == (self.architecture is None):
            raise ValueError("give either id, the base to start from, or architecture, to start from random weights")
        if self.id is not None and self.tokenizer is not None:
            raise ValueError(f"the base {self.id!r} brings its own tokenizer; remove tokenizer, or give architecture")
        if self.architecture is not None:
            if self.tokenizer is None:
                raise ValueError("architecture needs a tokenizer, e.g. {type: wordpiece, vocab_size: 8000}")
            if not isinstance(self.architecture.get("type"), str):
                raise ValueError("architecture needs a type: bert, roberta, gpt2, llama, t5 or another of transformers")
            if self.adapters:
                raise ValueError("adapters are folded into a base that was trained, not into architecture; remove them")
            if self.layers is not None:
                raise ValueError("layers are kept of a base that was trained; set architecture.num_hidden_layers")
        return self

    @field_validator("layers")
    @classmethod
    def _ascending(cls, layers: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if layers is not None and (not layers or list(layers) != sorted(set(layers))):
            raise ValueError(f"{list(layers)} has to name one layer at least, in ascending order, each once")
        return layers

    @property
    def locator(self) -> str:
        """Where configuration, tokenizer and weights are: `id`, or where those of a model from scratch were laid."""
        found = self.id or self._folder
        assert found is not None  # a run lays them before anything reads them
        return found

    @property
    def title(self) -> str:
        """The base in words; with layers left out no name to load, lest an adapter is put on the whole base."""
        kept = "" if self.layers is None else f" (layers {', '.join(map(str, self.layers))})"
        return f"{self.id}{kept}" if self.id else f"{(self.architecture or {})['type']} from scratch"

    def at(self, folder: Path) -> ModelSpec:
        """The same model from scratch, its files in `folder`."""
        spec = self.model_copy()
        spec._folder = str(folder)
        return spec

    def tuned(self, folder: Path) -> ModelSpec:
        """The whole model in `folder` that this one has become."""
        base = {"id": str(folder), "revision": None, "adapters": (), "architecture": None, "tokenizer": None}
        return self.model_copy(update=base | {"layers": None})


class TrainingOptions(Section):
    """How the weights are trained."""

    epochs: float = Field(3.0, gt=0)
    """Passes over the training rows."""
    max_steps: int | None = Field(None, ge=1)
    """Optimizer steps; wins over `epochs`."""
    batch_size: int = Field(32, ge=1)
    """Rows per device and micro-batch."""
    batch_tokens: int | None = Field(None, ge=1)
    """Tokens per device and micro-batch at most, padding not counted; wins over `batch_size`. With group_by_length
    batches of long rows have few of them, and those of short rows many."""
    accumulation_steps: int = Field(1, ge=1)
    """Micro-batches per optimizer step; the gradient equals that of one large batch."""
    micro_batch: Literal["whole", "auto"] = "whole"
    """What happens to a micro-batch that does not fit into memory. whole: the run ends. auto: it is halved until it
    fits, and the gradients of its parts add up to its own."""
    eval_batch_size: int = Field(64, ge=1)
    """Rows per device when evaluating."""
    batching: Literal["random", "group_by_length"] = "random"
    """group_by_length puts rows of like length together: less padding, about 1.8 times as fast on short texts."""
    learning_rate: float | None = Field(None, gt=0)
    """Peak learning rate; none: the tuning method's own default."""
    scheduler: Scheduler = "linear"
    """Shape of the learning rate after warm-up."""
    warmup_steps: float = Field(0.06, ge=0)
    """Steps over which the learning rate rises; below 1: share of all steps."""
    optimizer: Optimizer = "adamw_torch"
    """Update rule."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled weight decay, not applied to biases and norms."""
    max_grad_norm: float = Field(1.0, ge=0)
    """Gradients are scaled down to this global norm; 0 turns clipping off."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Arithmetic of the forward and backward pass. auto: bf16 or fp16 on a GPU that has it, else fp32."""
    padding_free: bool = True
    """Compute real tokens only and nothing for padding: faster, smaller, equal up to rounding. Where a model or method
    does not allow it, the report says so."""
    trunk_cache_gib: float = Field(10.0, ge=0)
    """Disk in GiB for what the blocks below all that trains make of the rows: computed once, then read, in this and in
    later runs on the same rows. 0: nothing is kept. Where it cannot be, the report says why."""
    frozen_dropout: bool = True
    """Whether dropout acts in blocks below all that trains too, so that they have to be computed in every epoch."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    score_before: bool = False
    """Score every split before training too, to see what it brings; a new head is random then."""
    evaluate_every: Literal["epoch"] | Annotated[int, Field(ge=1)] = "epoch"
    """Evaluate and save a checkpoint after every epoch, or after so many steps."""
    best_metric: str | None = None
    """Metric that chooses the checkpoint to keep; none: the first of `metrics`."""
    early_stopping_patience: int | None = Field(None, ge=1)
    """Stop after so many evaluations without a better `best_metric`."""
    keep_checkpoints: int = Field(1, ge=1)
    """Newest checkpoints kept for resuming, beside the best."""
    logging_steps: int = Field(10, ge=1)
    """Steps between points of the learning curve."""
    report_to: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ()
    """Experiment trackers that also get every logged value."""
    data_workers: int = Field(0, ge=0)
    """Processes that prepare batches."""


def _stacked(value: Any) -> Any:
    """A list of methods as the one method that combines them."""
    if isinstance(value, list):
        return {"name": "stack", "methods": value} if len(value) > 1 else value[0] if value else None
    return value


def _model_by_id(value: Any) -> Any:
    return {"id": value} if isinstance(value, str) else value


NamedModel = Annotated[ModelSpec, BeforeValidator(_model_by_id, json_schema_input_type=str | ModelSpec)]


def problem_at(path: tuple[str | int, ...], message: str, *, value: Any) -> ValidationError:
    """A problem between parts of a recipe, shown at the key where it is best repaired."""
    return ValidationError.from_exception_data("Recipe", [_detail(path, message, value)])


def _detail(path: tuple[str | int, ...], message: str, value: Any) -> InitErrorDetails:
    kind = PydanticCustomError("parts_do_not_fit", "{message}", {"message": message})
    return InitErrorDetails(type=kind, loc=path, input=value)


def name_of(path: Path) -> str:
    """The name that a recipe file gives its run."""
    return re.sub(r"[^\w.-]+", "-", path.stem).strip("-.") or "recipe"


class RecipeFile(Section):
    """What a recipe file says as a whole."""

    name: str | None = Field(None, pattern=r"^\w[\w.-]*$")
    """Name of the run, also of its folder: letters, digits, _ . and -; none: the file's name."""
    description: str = ""
    """One line for reports."""

    @classmethod
    def from_yaml(cls, path: str | Path, *, settings: Sequence[str] = ()) -> Self:
        """The recipe in a file, with `a.b=c` settings laid over it.

        Raises:
            RecipeError: every problem of the file at once, each with its dotted key and line.
        """
        path = Path(path)
        recipe = cls.from_source(read_yaml(path), settings=settings)
        return recipe if recipe.name else recipe.model_copy(update={"name": name_of(path)})

    @classmethod
    def from_text(cls, text: str, *, origin: str = "recipe", settings: Sequence[str] = ()) -> Self:
        """The recipe in YAML text; see `from_yaml`."""
        return cls.from_source(parse_yaml(text, origin=origin), settings=settings)

    @classmethod
    def from_values(cls, values: Mapping[str, Any], *, origin: str) -> Self:
        """The recipe in plain values, such as those that `run.json` keeps; see `from_yaml`."""
        return cls.from_source(YamlSource(origin, dict(values), lines={}))

    @classmethod
    def from_source(cls, source: YamlSource, *, settings: Sequence[str] = ()) -> Self:
        """The recipe in parsed YAML; see `from_yaml`."""
        source = source.with_settings(settings)
        try:
            recipe = cls.model_validate(source.value)
        except ValidationError as problem:
            raise RecipeError(describe_problems(problem, source, root=cls)) from problem
        if source.repeated:
            raise RecipeError(describe_problems(None, source, root=cls))
        return recipe

    def resolved(self) -> dict[str, Any]:
        """Plain values with every default written out; reads back as an equal recipe."""
        values: dict[str, Any] = plain_values(self.model_dump())
        return values

    def to_yaml(self) -> str:
        """`resolved` as YAML."""
        return yaml.safe_dump(self.resolved(), sort_keys=False, allow_unicode=True, width=120)


class Recipe(RecipeFile):
    """What to tune, on what, how."""

    seed: int = Field(0, ge=0, lt=2**32)
    """Seeds every random draw: new weights, shuffling, dropout."""
    model: NamedModel
    """The base model: its id, or a mapping."""
    task: NamedTask
    """What is learnt."""
    data: NamedSource
    """Where rows come from."""
    augmentations: tuple[NamedAugmentation, ...] = ()
    """Rewritten copies of the training rows that are added to them."""
    method: NamedMethod
    """Which weights train."""
    quantization: NamedQuantizer | None = None
    """How the frozen weights are stored; none: in `model.dtype`."""
    loss: NamedLoss | None = None
    """What is minimised; none: the task's own."""
    regularizers: tuple[NamedRegularizer, ...] = ()
    """What keeps training from fitting too closely, in the order it is applied."""
    distillation: Distillation | None = None
    """What is learnt from a teacher; none: nothing."""
    metrics: tuple[NamedMetric, ...] = ()
    """How predictions are scored; none: the task's own."""
    training: TrainingOptions = TrainingOptions()
    """How the weights are trained."""

    @model_validator(mode="after")
    def _parts_fit(self) -> Recipe:
        first: dict[tuple[str, ...], Misfit] = {}
        for misfit in misfits(self):
            first.setdefault(misfit.at, misfit)
        if first:
            raise ValidationError.from_exception_data("Recipe", [_detail(*misfit) for misfit in first.values()])
        return self

    @property
    def sha256(self) -> str:
        """Digest of the resolved recipe: equal recipes, equal digest."""
        values = self.model_dump(mode="json")  # unlike `resolved` all keys are text, so that they can be sorted
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def json_schema() -> dict[str, Any]:
    """JSON schema of a recipe file, for editors; covers the built-in components and loaded plugins."""
    schema = Recipe.model_json_schema()
    definitions = schema.setdefault("$defs", {})
    for registry in KINDS.values():
        classes = {name: registry.get(name) for name in registry.loaded_names()}
        for name, cls in classes.items():
            component = cls.model_json_schema()
            definitions.update(component.pop("$defs", {}))
            component["properties"] = {"name": {"const": name}, **component.get("properties", {})}
            component["required"] = ["name", *component.get("required", [])]
            definitions[f"{registry.package}.{name}"] = component
        mappings: list[dict[str, Any]] = [{"$ref": f"#/$defs/{registry.package}.{name}"} for name in classes]
        unloaded = [name for name in registry.names() if name not in classes]
        mappings += [{"pattern": f"^{name}:.", "type": "string"} for name, cls in classes.items() if cls.shorthand]
        if unloaded:
            # Plugins that nothing has asked for yet: known by name, their options unknown without running their code.
            mappings.append({"type": "object", "properties": {"name": {"enum": unloaded}}, "required": ["name"]})
        definitions[registry.package] = {"anyOf": [{"enum": registry.names()}, *mappings]}
    one = schema["properties"]["method"]
    schema["properties"]["method"] = {
        "anyOf": [one, {"type": "array", "items": one}],
        "description": one["description"],
    }
    linked: dict[str, Any] = _linked(schema)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **linked, "title": "peftkit recipe"}


def _linked(node: Any) -> Any:
    if isinstance(node, dict):
        node = {key: _linked(value) for key, value in node.items()}
        if "x-registry" in node:
            node["$ref"] = f"#/$defs/{node.pop('x-registry')}"
        return node
    return [_linked(item) for item in node] if isinstance(node, list) else node
