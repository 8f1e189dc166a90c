"""Where A and B start: what the papers say, computed anew with numpy, on models whose outputs must not move."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from contracts.cells import ARCHITECTURES, Cell
from torch import nn

from peftkit.errors import CapabilityError
from peftkit.layers.layer_inputs import Moments, input_moments
from peftkit.methods.targets import linear_layers

MakeCell = Callable[..., Cell]
Array = np.ndarray[Any, Any]
RANK = 4
CUT_OUT = ("pissa", "olora", "corda")
STARTS = ("default", "gaussian", "orthogonal", "eva", *CUT_OUT)


def updated(model: Any) -> dict[str, Any]:
    """Layers with an update, by their names in the base model."""
    return {
        name: layer
        for name, layer in model.get_base_model().named_modules()
        if hasattr(layer, "lora_A") and "default" in layer.lora_A
    }


def update(layer: Any) -> Array:
    """s B A of the halves that train, (outputs, inputs)."""
    a, b = (layer.lora_A["default"], layer.lora_B["default"])
    a, b = (getattr(matrix, "trained", None) if hasattr(matrix, "trained") else matrix.weight for matrix in (a, b))
    return numbers(b) @ numbers(a) * layer.scaling["default"]


def numbers(tensor: torch.Tensor) -> Array:
    return np.asarray(tensor.detach().double().numpy())


def weight(layer: Any) -> Array:
    stored = numbers(layer.get_base_layer().weight)
    return stored if isinstance(layer.get_base_layer(), nn.Linear) else stored.T


def inputs(cell: Cell) -> dict[str, Array]:
    """Rows (row, width) that each linear layer gets from the real tokens of the cell's batches."""
    seen: dict[str, list[Array]] = {}
    model, batches = cell.base(), cell.context.batches
    assert batches is not None

    def note(name: str, mask: torch.Tensor) -> Any:
        def hook(module: Any, args: tuple[torch.Tensor, ...]) -> None:
            real = args[0][mask] if args[0].ndim == 3 else args[0]
            seen.setdefault(name, []).append(numbers(real))

        return hook

    for batch in batches():
        mask = batch["attention_mask"].bool()
        hooks = [model.get_submodule(name).register_forward_pre_hook(note(name, mask)) for name in linear_layers(model)]
        with torch.no_grad():
            model(**batch)
        for hook in hooks:
            hook.remove()
    return {name: np.concatenate(rows) for name, rows in seen.items()}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("start", STARTS)
def test_outputs_are_the_base_models_at_the_start(cell: MakeCell, start: str, architecture: str) -> None:
    chosen = cell("lora", architecture, rank=RANK, init=start)
    assert chosen.refusal() is None
    torch.testing.assert_close(chosen.logits(chosen.tuned()), chosen.logits(chosen.base()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("architecture", ["bert_sequence", "gpt2"])  # gpt2 stores its weights transposed
@pytest.mark.parametrize("stabilized", [False, True])
def test_pissa_begins_with_the_best_approximation_of_the_weight(
    cell: MakeCell, architecture: str, stabilized: bool
) -> None:
    layers = updated(cell("lora", architecture, rank=RANK, init="pissa", rank_stabilized=stabilized).tuned())
    assert layers
    for layer in layers.values():
        left, values, right = np.linalg.svd(weight(layer), full_matrices=False)
        np.testing.assert_allclose(update(layer), left[:, :RANK] * values[:RANK] @ right[:RANK], atol=1e-5)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_olora_begins_with_orthonormal_columns(cell: MakeCell, architecture: str) -> None:
    layers = updated(cell("lora", architecture, rank=RANK, alpha=RANK, init="olora").tuned())
    assert layers
    for layer in layers.values():
        q, r = np.linalg.qr(weight(layer))
        np.testing.assert_allclose(update(layer), q[:, :RANK] @ r[:RANK], atol=1e-5)
        b = numbers(layer.lora_B["default"].trained)
        np.testing.assert_allclose(b.T @ b, np.eye(RANK), atol=1e-5)


@pytest.mark.parametrize("architecture", ["bert_sequence", "gpt2"])
def test_corda_begins_with_what_acts_most_on_the_inputs(cell: MakeCell, architecture: str) -> None:
    chosen = cell("lora", architecture, rank=RANK, init="corda")
    rows, layers = inputs(chosen), updated(chosen.tuned())
    assert layers
    for name, layer in layers.items():
        moment = rows[name].T @ rows[name] / len(rows[name])
        moment += 0.01 * moment.diagonal().mean() * np.eye(len(moment))
        left, values, right = np.linalg.svd(weight(layer) @ moment, full_matrices=False)
        expected = left[:, :RANK] * values[:RANK] @ right[:RANK]
        np.testing.assert_allclose(update(layer) @ moment, expected, atol=1e-4 * values[0])


@pytest.mark.parametrize("architecture", ["bert_sequence", "gpt2", "llama"])
def test_eva_takes_the_widest_directions_of_the_inputs(cell: MakeCell, architecture: str) -> None:
    chosen = cell("lora", architecture, rank=RANK, init="eva", target_modules="attention")
    rows = inputs(chosen)
    spread = {name: np.linalg.svd(found - found.mean(axis=0)) for name, found in rows.items()}
    layers = updated(chosen.tuned())
    for name, layer in layers.items():
        a = numbers(layer.lora_A["default"].weight)
        np.testing.assert_allclose(np.abs(a @ spread[name][2][: len(a)].T), np.eye(len(a)), atol=1e-3)
        assert not layer.lora_B["default"].weight.any()
        assert layer.scaling["default"] == 16 / RANK
    # The budget goes to the directions that explain most, wherever they are; no layer gets more than twice its share.
    targets = [name for name in rows if "att" in name]
    shares = sorted(
        ((values**2 / sum(values**2))[i], name)
        for name, (_, values, _) in spread.items()
        for i in range(2 * RANK)
        if name in targets
    )
    best = [name for _, name in shares[-RANK * len(targets) :]]
    assert {name: len(layer.lora_A["default"].weight) for name, layer in layers.items()} == {
        name: best.count(name) for name in set(best)
    }


def test_eva_looks_at_layers_that_see_one_row_per_text(cell: MakeCell) -> None:
    """BERT's pooler: few rows, so no more directions than texts; peft's own EVA fails or never ends there."""
    chosen = cell("lora", init="eva", rank=RANK)
    one = [{name: tensor[:1] for name, tensor in chosen.inputs().items()}]
    context = replace(chosen.context, batches=lambda: iter(one))
    model = chosen.method.apply(chosen.base(), context).eval()
    assert sum(layer.r["default"] for layer in updated(model).values()) == 13 * RANK
    torch.testing.assert_close(chosen.logits(model), chosen.logits(chosen.base()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("architecture", ["bert_sequence", "gpt2", "llama"])
@pytest.mark.parametrize("name", ["lora", "dora"])
def test_loftq_gives_back_most_of_what_quantization_takes(cell: MakeCell, name: str, architecture: str) -> None:
    from peft.utils.integrations import dequantize_module_weight

    chosen = cell(name, architecture, "nf4", rank=RANK, init="loftq")
    originals = cell(name, architecture).base()
    layers = updated(chosen.tuned())
    assert layers
    for where, layer in layers.items():
        base = originals.get_submodule(where)
        original = numbers(base.weight) if isinstance(base, nn.Linear) else numbers(base.weight).T
        lost = original - numbers(dequantize_module_weight(layer.get_base_layer()))
        best = np.sqrt((np.linalg.svd(lost)[1][RANK:] ** 2).sum())
        assert best < 0.95 * np.linalg.norm(lost)
        np.testing.assert_allclose(np.linalg.norm(lost - update(layer)), best, rtol=1e-4)


@pytest.mark.parametrize(("name", "storage"), [("lora", "nf4"), ("lora", "int8"), ("dora", "nf4")])
@pytest.mark.parametrize("architecture", ["bert_sequence", "gpt2"])
def test_loftq_brings_outputs_nearer_to_the_full_model(
    cell: MakeCell, name: str, architecture: str, storage: str
) -> None:
    full = cell(name, architecture)
    wanted = full.logits(full.base())
    plain, better = (cell(name, architecture, storage, rank=16, init=init) for init in ("default", "loftq"))
    before = (plain.logits(plain.tuned()) - wanted).norm()
    # int8 rounds the inputs of each layer too, which no start gives back.
    assert (better.logits(better.tuned()) - wanted).norm() < 0.9 * before


def test_orthogonal_halves_have_no_product(cell: MakeCell) -> None:
    layers = updated(cell("lora", rank=RANK, init="orthogonal").tuned())
    for layer in layers.values():
        np.testing.assert_allclose(update(layer), 0.0, atol=1e-6)
        assert layer.lora_A["default"].weight.any()
        assert layer.lora_B["default"].weight.any()


VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("lora", {}),
    ("lora", {"rank_stabilized": True, "rank": 3}),
    ("lora", {"rank_pattern": {"query": 2, "key": 5}, "alpha_pattern": {"value": 7.3}}),
    ("lora", {"freeze_a": True}),
    ("lora", {"target_modules": ["query", "layer.1.output.dense"], "layers": [1]}),
    ("dora", {}),
]


@pytest.mark.parametrize("start", CUT_OUT)
@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_finished_adapter_is_a_plain_one_for_the_untouched_base(
    cell: MakeCell, tmp_path: Path, name: str, options: dict[str, Any], start: str
) -> None:
    from peft import PeftModel

    chosen = cell(name, **{"rank": RANK, "init": start, **options})
    base = {key: value.clone() for key, value in chosen.base().state_dict().items()}
    model = chosen.tuned()
    ranks = {where: layer.r["default"] for where, layer in updated(model).items()}
    chosen.train(model, steps=3, learning_rate=1e-2)
    trained = chosen.logits(model)
    chosen.method.finish(model)
    assert torch.equal(chosen.logits(model), trained)
    assert {where: layer.r["default"] for where, layer in updated(model).items()} == {
        where: 2 * rank for where, rank in ranks.items()
    }
    for where, layer in updated(model).items():
        assert torch.equal(layer.get_base_layer().weight, base[f"{where}.weight"])
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(chosen.base(), tmp_path).eval()
    assert torch.equal(chosen.logits(again), trained)
    with again.disable_adapter():
        assert torch.equal(chosen.logits(again), chosen.logits(chosen.base()))
    merged = again.merge_and_unload()
    torch.testing.assert_close(chosen.logits(merged), trained, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("start", [*CUT_OUT, "eva"])
def test_starts_work_on_a_16_bit_base(cell: MakeCell, tmp_path: Path, start: str) -> None:
    chosen = cell("lora", "llama", "bf16", rank=RANK, init=start)
    model = chosen.tuned()
    chosen.train(model, steps=3, learning_rate=1e-2)
    trained = chosen.logits(model)
    chosen.method.finish(model)
    assert torch.equal(chosen.logits(model), trained)
    model.save_pretrained(tmp_path)
    assert torch.equal(chosen.logits(chosen.reloaded(tmp_path)), trained)


def test_finish_leaves_other_starts_alone(cell: MakeCell) -> None:
    chosen = cell("lora", rank=RANK)
    model = chosen.tuned()
    chosen.method.finish(model)
    assert {layer.r["default"] for layer in updated(model).values()} == {RANK}


def test_trainable_count_of_a_start_is_that_of_lora(cell: MakeCell) -> None:
    counts = {
        start: sum(weight.numel() for weight in cell("lora", init=start).tuned().parameters() if weight.requires_grad)
        for start in ("default", *CUT_OUT)
    }
    assert len(set(counts.values())) == 1, counts


def test_training_of_pissa_is_that_of_a_base_without_the_start(cell: MakeCell) -> None:
    """The paper's own form: the weight loses s B A, and a plain LoRA begins there."""
    chosen = cell("lora", "llama", rank=RANK, init="pissa")
    ours = chosen.tuned()
    theirs = cell("lora", "llama", rank=RANK).tuned()
    for begun, plain in zip(updated(ours).values(), updated(theirs).values(), strict=True):
        plain.get_base_layer().weight.data -= torch.tensor(update(begun), dtype=torch.float32)
        plain.lora_A["default"].weight.data = begun.lora_A["default"].trained.data.clone()
        plain.lora_B["default"].weight.data = begun.lora_B["default"].trained.data.clone()
    losses = [chosen.train(model, steps=6, learning_rate=1e-3) for model in (ours, theirs)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-3)
    assert losses[0][-1] < losses[0][0]


def refusal(cell: Cell) -> str:
    problem = cell.method.problem(cell.skeleton(), cell.context)
    assert problem is not None
    return problem


@pytest.mark.parametrize("storage", ["nf4", "int8"])
@pytest.mark.parametrize("start", CUT_OUT)
def test_parts_of_weights_need_weights(cell: MakeCell, start: str, storage: str) -> None:
    bits = {"nf4": "a 4", "int8": "an 8"}[storage]
    assert f"method.init {start} begins with a part of each weight, which {bits}-bit base" in refusal(
        cell("lora", storage=storage, init=start)
    )


def test_loftq_needs_a_quantized_base(cell: MakeCell) -> None:
    assert "but the base is not quantized; use default" in refusal(cell("lora", init="loftq"))


def test_loftq_needs_an_unquantized_checkpoint(cell: MakeCell, tmp_path: Path) -> None:
    chosen = cell("lora", storage="nf4", init="loftq")
    model = chosen.base()
    model.save_pretrained(tmp_path)
    model.name_or_path = str(tmp_path)
    with pytest.raises(CapabilityError, match="the checkpoint of BertForSequenceClassification holds quantized ones"):
        chosen.method.apply(model, chosen.context)


def test_orthogonal_needs_an_even_rank(cell: MakeCell) -> None:
    assert "which 3 does not have; use an even rank" in refusal(cell("lora", init="orthogonal", rank=3))
    pattern = cell("lora", init="orthogonal", rank=4, rank_pattern={"query": 5})
    assert "which 5 does not have" in refusal(pattern)


@pytest.mark.parametrize("start", [*CUT_OUT, "eva"])
def test_rank_beyond_the_weight_is_refused(cell: MakeCell, start: str) -> None:
    # llama's keys and values are 32 -> 16
    message = f"method.init {start} takes 17 directions out of each weight, but model.layers.0.self_attn.k_proj has"
    assert message in refusal(cell("lora", "llama", init=start, rank=17))
    assert cell("lora", "llama", init=start, rank=16).refusal() is None


@pytest.mark.parametrize("start", ["eva", "corda"])
def test_starts_from_data_need_batches(cell: MakeCell, start: str) -> None:
    chosen = cell("lora", init=start)
    with pytest.raises(CapabilityError, match=f"method.init {start} looks at training batches, and there are none"):
        chosen.method.apply(chosen.base(), replace(chosen.context, batches=None))


@pytest.mark.parametrize("name", ["pissa_niter_4", "mica", "random"])
def test_unknown_start_is_refused(cell: MakeCell, name: str) -> None:
    with pytest.raises(ValueError, match="'default', 'gaussian', 'orthogonal', 'pissa'"):
        cell("lora", init=name)


def test_moments_in_batches_are_those_of_all_rows() -> None:
    rows = torch.randn(41, 6, generator=torch.Generator().manual_seed(0)) * 0.1 + 100.0  # a mean far above the spread
    found = Moments.of(rows[:1])
    for part in (rows[1:20], rows[20:]):
        found.add(Moments.of(part))
    assert found.count == 41
    np.testing.assert_allclose(numbers(found.mean), numbers(rows).mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(numbers(found.scatter) / 41, np.cov(numbers(rows).T, bias=True), atol=2e-4)
    np.testing.assert_allclose(numbers(found.second_moment), numbers(rows).T @ numbers(rows) / 41, rtol=1e-6)


def test_padding_is_not_looked_at(cell: MakeCell) -> None:
    chosen = cell("lora", "llama")
    model, batch = chosen.base(), chosen.inputs()
    longer = {name: nn.functional.pad(tensor, (0, 7)) for name, tensor in batch.items()}
    layers = linear_layers(model)
    short, long = (input_moments(model, layers, [given]) for given in (batch, longer))
    assert set(short) == set(long) == set(layers)
    for name in layers:
        assert short[name].count == long[name].count == int(batch["attention_mask"].sum())
        torch.testing.assert_close(short[name].scatter, long[name].scatter, rtol=1e-4, atol=1e-4)
