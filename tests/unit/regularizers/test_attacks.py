"""FGM, PGD, FreeLB and SMART against the papers' formulas, computed with the embedded input given by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from peftkit.regularizers import AtWork, Pass, regularizers
from peftkit.regularizers.random_state import random_state, set_random_state

LABELS = torch.tensor([0, 1, 1])


class Engine:
    """What the trainer does for a regularizer, over one micro-batch; keeps the loss of every pass."""

    def __init__(self, model: Any, batch: dict[str, Tensor]) -> None:
        self.model = model
        self.batch = batch
        self.losses: list[Tensor] = []

    def loss(self) -> Tensor:
        return cross_entropy(self.model(**self.batch).logits, LABELS)

    def passed(self, share: float = 1.0) -> None:
        loss = self.loss()
        (share * loss).backward()
        self.losses.append(loss.detach())

    def compared(self) -> Pass:
        return Pass(self.loss(), self.model(**self.batch).logits)

    def step(self, part: AtWork) -> None:
        part.begin(self.loss)
        self.passed(part.loss_share)
        part.after_backward(lambda: self.passed(part.loss_share))


class ByHand:
    """The same model on an embedded input, moved."""

    def __init__(self, model: Any, batch: dict[str, Tensor]) -> None:
        self.model = model
        self.mask = batch["attention_mask"]
        self.embedded = model.get_input_embeddings().weight.detach()[batch["input_ids"]]

    def logits(self, move: Tensor) -> Tensor:
        logits: Tensor = self.model(inputs_embeds=self.embedded + move, attention_mask=self.mask).logits
        return logits

    def loss(self, move: Tensor) -> Tensor:
        return cross_entropy(self.logits(move), LABELS)

    def slope(self, move: Tensor) -> Tensor:
        """Gradient of the loss with respect to the move, each row of length 1."""
        move = move.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(self.loss(move), move)
        return gradient / gradient.flatten(1).norm(dim=1)[:, None, None]


def weight_gradients(model: Any) -> Tensor:
    return torch.cat([weight.grad.flatten() for weight in model.classifier.parameters()])


def gradients_of(model: Any, loss: Tensor) -> Tensor:
    return torch.cat([part.flatten() for part in torch.autograd.grad(loss, list(model.classifier.parameters()))])


@pytest.fixture(params=[True, False], ids=["frozen embedding", "trained embedding"])
def tuned(request: pytest.FixtureRequest, model: Any) -> Any:
    model.requires_grad_(not request.param)
    model.classifier.requires_grad_(True)
    return model


def test_fgm_adds_the_loss_at_epsilon_along_the_gradient(tuned: Any, batch: dict[str, Tensor]) -> None:
    """Miyato et al. 2017: r = epsilon g / |g|, g the gradient with respect to the row's embedded input."""
    by_hand = ByHand(tuned, batch)
    still = torch.zeros_like(by_hand.embedded)
    move = 0.5 * by_hand.slope(still)
    expected = [by_hand.loss(still), by_hand.loss(move)]
    gradients = gradients_of(tuned, expected[0] + expected[1])

    part, engine = regularizers.build({"name": "fgm", "epsilon": 0.5}).start(tuned), Engine(tuned, batch)
    engine.step(part)
    torch.testing.assert_close(torch.stack(engine.losses), torch.stack(expected).detach(), rtol=1e-5, atol=1e-6)
    assert engine.losses[1] > engine.losses[0]
    torch.testing.assert_close(weight_gradients(tuned), gradients, rtol=1e-4, atol=1e-6)
    engine.step(part)
    assert torch.equal(engine.losses[2], engine.losses[0]), "the next batch is looked at, not attacked"


def test_pgd_trains_at_the_end_of_its_steps_only(tuned: Any, batch: dict[str, Tensor]) -> None:
    """Madry et al. 2018, section 2: x <- project(x + alpha g / |g|) from a random start; then one step of descent."""
    options = {"epsilon": 0.5, "step_size": 0.3, "steps": 3}
    torch.manual_seed(5)
    by_hand = ByHand(tuned, batch)
    move = torch.empty_like(by_hand.embedded).uniform_(-0.5 / (7 * 32) ** 0.5, 0.5 / (7 * 32) ** 0.5)
    started = move
    for _ in range(3):
        move = move + 0.3 * by_hand.slope(move)
        lengths = move.flatten(1).norm(dim=1)[:, None, None]
        move = torch.where(lengths > 0.5, 0.5 * move / lengths, move)
    assert move.flatten(1).norm(dim=1) == pytest.approx([0.5] * 3), "the projection took part"
    expected = by_hand.loss(move)
    assert expected > by_hand.loss(started)
    gradients = gradients_of(tuned, expected)

    part, engine = regularizers.build({"name": "pgd", **options}).start(tuned), Engine(tuned, batch)
    torch.manual_seed(5)
    engine.step(part)
    (found,) = engine.losses
    torch.testing.assert_close(found, expected.detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(weight_gradients(tuned), gradients, rtol=1e-4, atol=1e-6)


def test_freelb_averages_the_gradients_of_its_steps(tuned: Any, batch: dict[str, Tensor]) -> None:
    """Zhu et al. 2020, algorithm 1: g = mean over t of the gradient at X + delta_(t-1)."""
    part = regularizers.build({"name": "freelb", "epsilon": 0.5, "step_size": 0.4, "steps": 3}).start(tuned)
    engine = Engine(tuned, batch)
    torch.manual_seed(5)
    engine.step(part)
    assert len(engine.losses) == 3

    by_hand = ByHand(tuned, batch)
    torch.manual_seed(5)
    generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
    size = 0.5 / (7 * 32) ** 0.5
    # The hooks would move the embedded input given by hand, too, but it is not read from the embedding.
    move = torch.empty_like(by_hand.embedded).uniform_(-size, size, generator=generator)
    losses = []
    for _ in range(3):
        losses.append(by_hand.loss(move))
        move = move + 0.4 * by_hand.slope(move)
        lengths = move.flatten(1).norm(dim=1)[:, None, None]
        move = torch.where(lengths > 0.5, 0.5 * move / lengths, move)
    torch.testing.assert_close(torch.stack(engine.losses), torch.stack(losses).detach(), rtol=1e-5, atol=1e-6)
    found = weight_gradients(tuned)
    torch.testing.assert_close(found, gradients_of(tuned, torch.stack(losses).mean()), rtol=1e-4, atol=1e-6)


def test_freelb_keeps_dropout_from_pass_to_pass(model: Any, batch: dict[str, Tensor]) -> None:
    """Section 3.3. With steps of almost no length, only dropout could make the losses differ."""
    model.dropout.p = 0.5
    options = {"name": "freelb", "epsilon": 1e-6, "step_size": 1e-6, "steps": 3}
    part, engine = regularizers.build(options).start(model), Engine(model, batch)
    engine.step(part)
    torch.testing.assert_close(engine.losses[1], engine.losses[0], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(engine.losses[2], engine.losses[0], rtol=1e-4, atol=1e-6)
    engine.step(part)
    assert abs(engine.losses[3] - engine.losses[0]) > 1e-3, "the next batch has another"


def test_a_random_state_can_be_returned_to() -> None:
    state = random_state()
    drawn = torch.rand(3)
    set_random_state(state)
    assert torch.equal(torch.rand(3), drawn)


def symmetric(first: Tensor, second: Tensor) -> Tensor:
    p, q = first.softmax(-1), second.softmax(-1)
    return (p * (p / q).log()).sum() + (q * (q / p).log()).sum()


@pytest.mark.parametrize("proximity", [0.0, 2.0])
def test_smart_is_smoothness_and_proximity(tuned: Any, batch: dict[str, Tensor], proximity: float) -> None:
    """Jiang et al. 2020, equations 1 to 5: 3 * symmetric KL at the worst move of max-norm 0.05, 2 * at the teacher."""
    options = {"smoothness": 3.0, "proximity": proximity, "epsilon": 0.05, "step_size": 0.2, "noise": 0.01, "steps": 2}
    part = regularizers.build({"name": "smart", "momentum": 0.9, **options}).start(tuned)
    start = {name: weight.detach().clone() for name, weight in tuned.classifier.named_parameters()}
    with torch.no_grad():
        tuned.classifier.weight += 0.3
    part.after_step(1, 10)
    teacher_weight = 0.9 * start["weight"] + 0.1 * (start["weight"] + 0.3)

    by_hand = ByHand(tuned, batch)
    clean = by_hand.logits(torch.zeros_like(by_hand.embedded))
    torch.manual_seed(5)
    move = 0.01 * torch.randn_like(by_hand.embedded)
    for _ in range(2):
        move.requires_grad_()
        (gradient,) = torch.autograd.grad(symmetric(clean.detach(), by_hand.logits(move)), move)
        gradient = gradient / gradient.abs().flatten(1).amax(dim=1)[:, None, None]
        move = (move + 0.2 * gradient).clamp(-0.05, 0.05).detach()
    expected = 3.0 * symmetric(clean, by_hand.logits(move))
    if proximity:
        with torch.no_grad():
            kept = tuned.classifier.weight.clone()
            tuned.classifier.weight.copy_(teacher_weight)
            taught = by_hand.logits(torch.zeros_like(move))
            tuned.classifier.weight.copy_(kept)
        expected = expected + proximity * symmetric(clean, taught)

    def again() -> Pass:
        logits = tuned(**batch).logits
        return Pass(cross_entropy(logits, LABELS), logits)

    part.begin(lambda: again().loss)
    torch.manual_seed(5)
    first = again()
    torch.testing.assert_close(first.logits, clean, msg="the first pass is not moved")
    found = part.addition(first, again, 4)
    torch.testing.assert_close(found, expected / 4, rtol=1e-3, atol=1e-6)
    found.backward()
    assert tuned.classifier.weight.grad.abs().max() > 0


def test_smart_squares_the_distance_of_numbers(batch: dict[str, Tensor], tiny_bert: Any) -> None:
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(tiny_bert, num_labels=1).eval()
    part = regularizers.build({"name": "smart", "proximity": 0}).start(model)
    model.get_input_embeddings().train()

    def again() -> Pass:
        logits = model(**batch).logits
        return Pass(logits.sum(), logits)

    first = again()
    passes: list[Pass] = []

    def kept() -> Pass:
        passes.append(again())
        return passes[-1]

    found = part.addition(first, kept, 1)
    expected = (first.logits - passes[-1].logits).square().sum()
    torch.testing.assert_close(found, expected)
    assert found > 0


@pytest.mark.parametrize("name", ["fgm", "pgd", "freelb", "smart"])
def test_embeddings_stay_bit_exact(model: Any, batch: dict[str, Tensor], name: str) -> None:
    embedding = model.get_input_embeddings()
    before = embedding.weight.detach().clone()
    place = embedding.weight.data_ptr()
    part, engine = regularizers.build(name).start(model), Engine(model, batch)
    engine.step(part)
    if part.compares:
        part.addition(engine.compared(), engine.compared, 3)
    assert torch.equal(embedding.weight, before)
    assert embedding.weight.data_ptr() == place
    assert embedding.weight is model.get_input_embeddings().weight
    model.eval()
    assert torch.equal(embedding(batch["input_ids"]), before[batch["input_ids"]])


@pytest.mark.parametrize("tokens", [(), (5, 6)], ids=["lora", "lora with trained tokens"])
@pytest.mark.parametrize(("name", "inputs"), [("bert", 1), ("gpt2", 1), ("llama", 1), ("t5", 2)])
def test_every_input_of_every_architecture_is_found(
    checkpoint: Callable[[str], Path], batch: dict[str, Tensor], name: str, inputs: int, tokens: tuple[int, ...]
) -> None:
    """T5 embeds tokens with its encoder's and its decoder's module, not with the one that it names."""
    from transformers import AutoModelForSeq2SeqLM, AutoModelForSequenceClassification

    from peftkit.methods import TuningContext, methods

    kind: Any = AutoModelForSeq2SeqLM if name == "t5" else AutoModelForSequenceClassification
    model = kind.from_pretrained(checkpoint(name))
    model.config.pad_token_id = 0
    task_type = "SEQ_2_SEQ_LM" if name == "t5" else "SEQ_CLS"
    tuned: Any = methods.build("lora").apply(model, TuningContext(task_type, (), 10, new_token_ids=tokens)).train()
    part: Any = regularizers.build({"name": "fgm", "epsilon": 0.01}).start(tuned)
    given = {"decoder_input_ids": batch["input_ids"]} if name == "t5" else {}

    def height() -> Tensor:
        torch.manual_seed(0)  # for dropout
        squares: Tensor = (tuned(**batch, **given).logits ** 2).sum()
        return squares

    part.begin(height)
    before = height()
    before.backward()
    assert [seen.shape for seen in part.inputs.seen] == [(3, 7, 32)] * inputs
    assert all(seen.grad.abs().max() > 0 for seen in part.inputs.seen)
    after: list[Tensor] = []
    part.after_backward(lambda: after.append(height()))
    assert after[0] > before


def test_an_attack_that_breaks_off_does_not_reach_the_next_batch(model: Any, batch: dict[str, Tensor]) -> None:
    part, engine = regularizers.build("fgm").start(model), Engine(model, batch)

    def broken() -> None:
        raise RuntimeError("no more memory")

    part.begin(engine.loss)
    engine.passed()
    with pytest.raises(RuntimeError, match="no more memory"):
        part.after_backward(broken)
    engine.step(part)
    assert torch.equal(engine.losses[1], engine.losses[0])
