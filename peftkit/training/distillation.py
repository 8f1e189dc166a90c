"""What a student learns from its teacher while it trains: predictions, and what layers give."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, kl_div, logsigmoid
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from peftkit.distillation import Distillation, HiddenStates
from peftkit.errors import CapabilityError, RecipeError
from peftkit.kernels.packing import as_padded
from peftkit.outputs import autocast, labelled_logits
from peftkit.tasks import Task
from peftkit.training.setup import Setup
from peftkit.training.teacher import Teacher, blocks_of, layer_pairs, left_out_columns

STATE_FILE = "distillation.safetensors"
"""In a checkpoint: the projection of hidden states, which is no part of the student."""
_TEMPERATURE = 2.0


class Distilling(TrainerCallback):
    """A teacher beside the student, for one run.

    Args:
        teacher: in evaluation mode.
        left_out: what of a batch the teacher does not take.
        layers: None: only predictions are learnt.
    """

    tokens: Tensor
    """That are no padding, in the whole optimizer step."""

    def __init__(
        self,
        options: Distillation,
        task: Task,
        *,
        teacher: PreTrainedModel,
        left_out: frozenset[str] = frozenset(),
        layers: LayerComparison | None = None,
    ) -> None:
        self.options = options
        self.task = task
        self.teacher = teacher
        self.left_out = left_out
        self.layers = layers

    @classmethod
    def of(cls, setup: Setup) -> Self | None:
        """For a run; None where its recipe has no teacher that has to be computed."""
        recipe, data = setup.recipe, setup.data
        options = recipe.distillation
        if options is None or not options.computes_teacher:
            return None
        found = Teacher.find(recipe, recipe.task)
        left_out = left_out_columns(found, recipe, data.tokenizer, rows=data.loaded.splits["train"])
        teacher = found.load(setup.environment.device)
        layers = None
        if options.hidden_states is not None:
            with torch.random.fork_rng():
                torch.manual_seed(recipe.seed)
                layers = LayerComparison(options.hidden_states, setup.model, teacher)
        return cls(options, recipe.task, teacher=teacher, left_out=left_out, layers=layers)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Inside, what the student's layers give is kept for `loss`."""
        with ExitStack() as watched:
            if self.layers is not None:
                watched.enter_context(self.layers.student.watching())
            yield

    def loss(self, own: Tensor, output: Any, batch: Mapping[str, Tensor], *, items: Tensor) -> Tensor:
        """The loss of a micro-batch.

        Args:
            own: the task's loss.
            output: the student's, computed while `watching`.
            items: of the whole optimizer step; see `Task.loss`.
        """
        if items.ndim:
            raise RecipeError(
                f"distillation: the loss of task {self.task.name!r} has several parts, and predictions of one of them "
                "only can be learnt from a teacher; choose another task, such as masked_lm"
            )
        taught = self._taught(batch)
        loss, alpha = own, self.options.alpha
        if alpha:
            logits = labelled_logits(output, batch, task=self.task)
            width = min(logits.shape[-1], taught.shape[-1])  # vocabularies are padded to other sizes in larger models
            distance = DISTANCES[self.task.targets](logits[..., :width], taught[..., :width], self.options.temperature)
            loss = (1 - alpha) * own + alpha * distance / items
        return loss if self.layers is None else loss + self.layers.distance(batch) / self.tokens

    def _taught(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The teacher's logits (positions, classes) at positions that have a label."""
        inputs = {name: value for name, value in batch.items() if name not in self.left_out}
        with ExitStack() as computing:
            computing.enter_context(torch.no_grad())
            computing.enter_context(autocast(self.teacher))
            if self.layers is not None:
                computing.enter_context(self.layers.teacher.watching())
            return labelled_logits(self.task.forward(self.teacher, inputs), batch, task=self.task)

    def train_with(self, optimizer: torch.optim.Optimizer) -> None:
        """Let the projection of hidden states learn, at the learning rate of the run."""
        weights = self._projection()
        if weights:
            rate = max(group["lr"] for group in optimizer.param_groups)
            optimizer.add_param_group({"params": list(weights.values()), "lr": rate, "weight_decay": 0.0})

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Forget the gradients of the projection; the engine knows those of the student only."""
        for weight in self._projection().values():
            weight.grad = None

    def _projection(self) -> dict[str, nn.Parameter]:
        return dict(self.layers.projection.named_parameters()) if self.layers is not None else {}

    def save(self, checkpoint: Path) -> None:
        """Add what is learnt beside the student to a checkpoint."""
        if weights := self._projection():
            save_file({name: weight.detach() for name, weight in weights.items()}, checkpoint / STATE_FILE)

    def restore(self, checkpoint: Path) -> None:
        """Take up what `save` has written."""
        if weights := self._projection():
            saved = load_file(checkpoint / STATE_FILE)
            with torch.no_grad():
                for name, weight in weights.items():
                    weight.copy_(saved[name])


def attended_tokens(batch: Mapping[str, Tensor]) -> Tensor:
    """How many tokens of a batch are no padding."""
    return batch["attention_mask"].sum()


class LayerComparison:
    """How far layers of the student are from those of the teacher; narrower ones are projected to its width."""

    def __init__(self, options: HiddenStates, student: PreTrainedModel, teacher: PreTrainedModel) -> None:
        pairs = layer_pairs(options.layers, student, teacher)
        self.weight = options.weight
        self.distance_of = LAYER_DISTANCES[options.loss]
        self.student = WatchedLayers(student, [place for place, _ in pairs])
        self.teacher = WatchedLayers(teacher, [place for _, place in pairs])
        widths = [model.config.hidden_size for model in (student, teacher)]
        self.projection: nn.Module = nn.Identity()
        if widths[0] != widths[1]:
            if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
                raise CapabilityError(
                    f"distillation.hidden_states: widths {widths[0]} and {widths[1]} need a projection, which is "
                    "learnt on one device only; start one process, or choose a student of the teacher's width"
                )
            self.projection = nn.Linear(widths[0], widths[1], bias=False).to(student.device)

    def distance(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Weighted, summed over layers and tokens, of what was last seen of both."""
        mask = batch["attention_mask"].bool()
        distances = [
            self.distance_of(self.projection(self._tokens(ours, mask)).float(), self._tokens(theirs, mask).float())
            for ours, theirs in zip(self.student.take(), self.teacher.take(), strict=True)
        ]
        return self.weight * torch.stack(distances).sum()

    def _tokens(self, states: Tensor, mask: Tensor) -> Tensor:
        """(tokens, width) without padding, and without virtual tokens, which stand before the others."""
        return states[:, -mask.shape[-1] :][mask]


class WatchedLayers:
    """Keeps what chosen layers of a model give; 0 is what goes into the first."""

    def __init__(self, model: Any, places: Sequence[int]) -> None:
        self.blocks = blocks_of(model)
        self.places = tuple(places)
        self.seen: dict[int, Tensor] = {}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Inside, the model is computed."""
        hooks = [
            self.blocks[place - 1].register_forward_hook(partial(self._keep, place))
            if place
            else self.blocks[0].register_forward_pre_hook(self._keep_input, with_kwargs=True)
            for place in self.places
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _keep(self, place: int, block: nn.Module, args: Any, output: Any) -> None:
        self.seen[place] = as_padded(output if isinstance(output, Tensor) else output[0])

    def _keep_input(self, block: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> None:
        self.seen[0] = as_padded(args[0] if args else kwargs["hidden_states"])

    def take(self) -> list[Tensor]:
        """What was seen, (rows, tokens, width) of each place; it is not kept longer."""
        seen, self.seen = self.seen, {}
        return [seen[place] for place in self.places]


def class_distance(student: Tensor, teacher: Tensor, temperature: float | None) -> Tensor:
    """T^2 KL(teacher || student), summed over positions, of logits (positions, classes) divided by T.

    Hinton, Vinyals & Dean 2015, arXiv:1503.02531, section 2.
    """
    cooled = temperature or _TEMPERATURE
    ours, theirs = ((logits.float() / cooled).log_softmax(-1) for logits in (student, teacher))
    return cooled**2 * kl_div(ours, theirs, reduction="sum", log_target=True)


def flag_distance(student: Tensor, teacher: Tensor, temperature: float | None) -> Tensor:
    """As `class_distance` of each flag, which is there or not, summed over flags."""
    cooled = temperature or _TEMPERATURE
    ours, theirs = (
        torch.stack([logsigmoid(sign * logits.float() / cooled) for sign in (1, -1)], dim=-1)
        for logits in (student, teacher)
    )
    return cooled**2 * kl_div(ours, theirs, reduction="sum", log_target=True)


def number_distance(student: Tensor, teacher: Tensor, temperature: float | None) -> Tensor:
    """Squared difference, summed over positions."""
    return (student.float() - teacher.float()).square().sum()


DISTANCES: Mapping[str, Callable[[Tensor, Tensor, float | None], Tensor]] = {
    "classes": class_distance,
    "flags": flag_distance,
    "numbers": number_distance,
}
"""How far predictions are apart, by the kind of labels."""


def cosine_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """1 - cosine, summed over tokens (Sanh et al. 2019, arXiv:1910.01108, section 3)."""
    return (1 - cosine_similarity(student, teacher, dim=-1)).sum()


def squared_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of values, summed over tokens (Jiao et al. 2020, arXiv:1909.10351, equation 8)."""
    return (student - teacher).square().mean(dim=-1).sum()


LAYER_DISTANCES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cosine": cosine_distance,
    "mse": squared_distance,
}
"""How far layers are apart, by `hidden_states.loss`."""
