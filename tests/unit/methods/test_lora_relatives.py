"""The methods around LoRA: how many weights train, what the update is, and which sizes they refuse.

That they save, load, disable and merge exactly is held by the contract matrix, for every registered method.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from math import ceil
from typing import Any

import pytest
import torch
from contracts.cells import Cell

from peftkit.errors import CapabilityError
from peftkit.methods import methods
from peftkit.methods.widths import fitting_block, widths

pytestmark = pytest.mark.filterwarnings(
    # peft's word on machines without a CUDA toolkit, whenever an adapter of boft is loaded
    "ignore:Failed to load the CUDA extension:UserWarning",
    "ignore:Setting boft_n_butterfly_factor to 1:UserWarning",
)
MakeCell = Callable[..., Cell]
Widths = tuple[int, int]
# Inputs and outputs of every layer but the head, written down from the tiny checkpoints: width 32, inner width 64.
SQUARE, UP, DOWN = (32, 32), (32, 64), (64, 32)
LAYERS: dict[str, list[Widths]] = {
    "bert_sequence": 2 * [SQUARE, SQUARE, SQUARE, SQUARE, UP, DOWN] + [SQUARE],  # and the pooler
    "llama": 2 * [SQUARE, (32, 16), (32, 16), SQUARE, UP, UP, DOWN],
    "gpt2": 2 * [(32, 96), SQUARE, UP, DOWN],
}
HEAD = {"bert_sequence": 2 * 32 + 2, "llama": 0, "gpt2": 0}


def sides(size: int) -> Widths:
    """The divisors of `size` nearest to its root: lokr's two factors of a side."""
    small = max(divisor for divisor in range(1, int(size**0.5) + 1) if size % divisor == 0)
    return small, size // small


def kronecker(i: int, o: int, rank: int) -> int:
    """A small matrix, and a larger one that is low-rank only where that saves something."""
    (small_i, large_i), (small_o, large_o) = sides(i), sides(o)
    low = rank * (large_i + large_o)
    return small_i * small_o + (low if rank < max(large_i, large_o) / 2 else large_i * large_o)


# Trained weights of one layer (i -> o) with default options, as the papers have them.
FORMULAS: dict[str, Callable[[int, int], int]] = {
    "vera": lambda i, o: 256 + o,  # the vectors d and b
    "loha": lambda i, o: 2 * 8 * (i + o),
    "lokr": lambda i, o: kronecker(i, o, 8),
    "oft": lambda i, o: (i // 32) * (32 * 31 // 2),  # one skew-symmetric matrix per block of 32 inputs
    "boft": lambda i, o: (i // 8) * 8 * 8 + o,  # a matrix per block of 8 inputs, and a scale per output
    "randlora": lambda i, o: ceil(min(i, o) / 32) * (32 + min(i, o)),  # two diagonals per random matrix
    "hira": lambda i, o: 32 * (i + o),
    "miss": lambda i, o: 16 * o,
    "fourierft": lambda i, o: 512,  # or 1000, where the smallest layer has so many weights
    "shira": lambda i, o: 8 * (i + o),
}
CASES = [
    (name, architecture)
    for name in FORMULAS
    for architecture in LAYERS
    if architecture != "gpt2" or methods.get(name).adapts_conv1d
]


def delta(model: Any, suffix: str) -> tuple[Any, torch.Tensor]:
    """A layer and the change of its weights that peft would merge."""
    layer = next(module for name, module in model.named_modules() if name.endswith(suffix))
    change = layer.get_delta_weight("default").detach()
    return layer, change.to_dense() if change.is_sparse else change


@pytest.mark.parametrize(("name", "architecture"), CASES)
def test_trainable_parameters_follow_the_closed_formula(cell: MakeCell, name: str, architecture: str) -> None:
    options: dict[str, Any] = {}
    layers = LAYERS[architecture]
    if name == "shira":
        options = {"rank": 5}  # 8 would be more weights than llama's keys have
    model = cell(name, architecture, **options).tuned()
    trainable = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    if name == "fourierft":
        expected = len(layers) * min(1000, *(i * o for i, o in layers))
    elif name == "shira":
        expected = sum(5 * (i + o) for i, o in layers)
    else:
        expected = sum(FORMULAS[name](i, o) for i, o in layers)
    assert trainable == expected + HEAD[architecture]


@pytest.mark.parametrize("name", FORMULAS)
def test_targets_may_be_chosen(cell: MakeCell, name: str) -> None:
    model = cell(name, "llama", target_modules=["q_proj", "mlp.down_proj"]).tuned()
    trained = {key.split(".layers.")[1] for key, weight in model.named_parameters() if weight.requires_grad}
    assert {".".join(key.split(".")[1:3]) for key in trained} == {"self_attn.q_proj", "mlp.down_proj"}


@pytest.mark.parametrize("name", FORMULAS)
def test_target_that_is_not_there_is_refused_before_weights_are_loaded(cell: MakeCell, name: str) -> None:
    assert "'quary' is the end of no linear layer" in refusal(cell(name, target_modules=["quary"]))


@pytest.mark.parametrize("name", FORMULAS)
def test_applying_warns_of_nothing(cell: MakeCell, name: str) -> None:
    chosen = cell(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        logits = chosen.method.apply(chosen.base(), chosen.context)(**chosen.inputs()).logits
    assert logits.isfinite().all()


@pytest.mark.parametrize("name", sorted(set(FORMULAS) - {"fourierft"}))
def test_outputs_are_the_base_models_at_the_start(cell: MakeCell, name: str) -> None:
    chosen = cell(name)
    torch.testing.assert_close(chosen.logits(chosen.tuned()), chosen.logits(chosen.base()), rtol=1e-5, atol=1e-5)


def drawn(model: Any) -> Any:
    """`model` with normal noise in all that trains, so that no update is zero."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.normal_(generator=generator)
    return model


def test_loha_is_a_product_of_two_low_rank_matrices(cell: MakeCell) -> None:
    layer, change = delta(drawn(cell("loha", rank=3, alpha=6).tuned()), "layer.0.intermediate.dense")
    parts = {name.partition(".")[0]: weight for name, weight in layer.named_parameters() if "hada" in name}
    first, second = (parts[f"hada_w{n}_a"] @ parts[f"hada_w{n}_b"] for n in (1, 2))
    torch.testing.assert_close(change, 6 / 3 * first * second)
    assert torch.linalg.matrix_rank(change) == 9


def test_lokr_is_a_kronecker_product(cell: MakeCell) -> None:
    layer, change = delta(drawn(cell("lokr", rank=1, alpha=5).tuned()), "layer.0.intermediate.dense")
    parts = {name.partition(".")[0]: weight for name, weight in layer.named_parameters() if "lokr" in name}
    torch.testing.assert_close(
        change, 5 / 1 * torch.kron(parts["lokr_w1"], parts["lokr_w2_a"] @ parts["lokr_w2_b"]), rtol=1e-4, atol=1e-4
    )


def test_hira_multiplies_the_weight(cell: MakeCell) -> None:
    model = drawn(cell("hira", rank=3).tuned())
    layer = model.get_submodule("base_model.model.bert.encoder.layer.0.intermediate.dense")
    parts = {name.partition(".")[0]: weight.detach() for name, weight in layer.named_parameters() if "hira" in name}
    before = layer.base_layer.weight.detach().clone()
    after = model.merge_and_unload().get_submodule("bert.encoder.layer.0.intermediate.dense").weight
    torch.testing.assert_close(after, before + before * (parts["hira_B"] @ parts["hira_A"]), rtol=1e-4, atol=1e-5)


def test_vera_scales_shared_matrices(cell: MakeCell) -> None:
    model = drawn(cell("vera", "llama", rank=4, seed=5).tuned())
    layer, change = delta(model, "layers.1.self_attn.k_proj")
    a, b = layer.vera_A["default"][:, :32], layer.vera_B["default"][:16]
    d, scale = layer.vera_lambda_d["default"], layer.vera_lambda_b["default"]
    torch.testing.assert_close(change, (scale[:, None] * b) @ (d[:, None] * a))


def test_miss_repeats_one_matrix(cell: MakeCell) -> None:
    model = drawn(cell("miss", rank=8).tuned())
    layer = next(module for name, module in model.named_modules() if name.endswith("layer.0.intermediate.dense"))
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(4))
    repeated = layer.miss_block["default"].repeat(32 // 8, 1)  # (inputs, outputs)
    torch.testing.assert_close(layer(x), layer.base_layer(x) + x @ repeated, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["oft", "boft"])
def test_rotations_keep_lengths(cell: MakeCell, name: str) -> None:
    """An orthogonal matrix on the inputs keeps the length of each output's weights (boft: but for its scale)."""
    model = cell(name).tuned()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for key, weight in model.named_parameters():
            if f"{name}_R" in key:
                weight.copy_(0.02 * torch.randn(weight.shape, generator=generator))
    before = model.get_submodule("base_model.model.bert.encoder.layer.0.intermediate.dense").base_layer.weight.clone()
    after = model.merge_and_unload().get_submodule("bert.encoder.layer.0.intermediate.dense").weight
    assert (after - before).abs().max() > 1e-2
    torch.testing.assert_close(after.norm(dim=1), before.norm(dim=1), rtol=2e-3, atol=1e-5)


def test_shira_trains_own_weights_at_drawn_places(cell: MakeCell) -> None:
    _, change = delta(drawn(cell("shira", rank=4, seed=1).tuned()), "layer.0.intermediate.dense")
    _, other = delta(drawn(cell("shira", rank=4, seed=2).tuned()), "layer.0.intermediate.dense")
    assert int((change != 0).sum()) == int((other != 0).sum()) == 4 * (32 + 64)
    assert not torch.equal(change != 0, other != 0)
    assert torch.linalg.matrix_rank(change) > 4


def test_randlora_reaches_full_rank(cell: MakeCell) -> None:
    _, change = delta(drawn(cell("randlora", rank=8).tuned()), "layer.0.intermediate.dense")
    assert torch.linalg.matrix_rank(change) == 32


def test_fourierft_has_so_many_frequencies(cell: MakeCell) -> None:
    layer, change = delta(drawn(cell("fourierft", frequencies=20).tuned()), "layer.0.intermediate.dense")
    assert layer.fourierft_spectrum["default"].shape == (20,)
    spectrum = torch.fft.fft2(change / 150.0)
    # The real part of a spectrum of 20 places has those and their mirror images.
    assert int((spectrum.abs() > 1e-4).sum()) <= 40


@pytest.mark.parametrize("name", ["oft", "boft"])
@pytest.mark.parametrize(("widths_of", "expected"), [((384, 1536), 8), ((768, 3072), 8), ((36, 60), 6), ((35, 49), 7)])
def test_block_divides_the_inputs_of_every_layer(name: str, widths_of: Widths, expected: int) -> None:
    sizes = {f"layer.{i}": (inputs, 10) for i, inputs in enumerate(widths_of)}
    assert fitting_block(None, sizes, at_most=8) == expected
    assert methods.build(name).options(sizes)  # type: ignore[attr-defined] # these have it
    for inputs, _ in sizes.values():
        assert inputs % fitting_block(None, sizes, at_most=32) == 0


def test_default_blocks_are_as_large_as_the_papers(cell: MakeCell) -> None:
    assert methods.build("oft").options({"a": (384, 384), "b": (1536, 1)})["oft_block_size"] == 32  # type: ignore[attr-defined] # it has them
    assert methods.build("boft").options({"a": (384, 384)})["boft_block_size"] == 8  # type: ignore[attr-defined] # it has them


def test_widths_of_transposed_layers(cell: MakeCell) -> None:
    model = cell("lora", "gpt2").base()
    assert widths(model, ["transformer.h.0.attn.c_attn", "transformer.h.1.mlp.c_proj"]) == {
        "transformer.h.0.attn.c_attn": (32, 96),
        "transformer.h.1.mlp.c_proj": (64, 32),
    }


def refusal(cell: Cell) -> str:
    problem = cell.method.problem(cell.skeleton(), cell.context)
    assert problem is not None
    return problem


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("oft", {"block_size": 5}, "method.block_size 5 does not divide the 32 inputs of model.layers.0.self_attn.q_"),
        ("boft", {"block_size": 64}, "method.block_size 64 does not divide the 32 inputs of model.layers.0"),
        ("miss", {"rank": 33}, "method.rank 33 is more than the 32 inputs of the narrowest layer"),
        ("fourierft", {"frequencies": 513}, "method.frequencies 513 is more than the 512 weights of model.layers.0"),
        (
            "shira",
            {"rank": 11},
            "method.rank 11 asks for more weights than model.layers.0.self_attn.k_proj has (32 x 16)",
        ),
    ],
)
def test_sizes_that_do_not_fit_are_refused_before_weights_are_loaded(
    cell: MakeCell, name: str, options: dict[str, Any], message: str
) -> None:
    assert message in refusal(cell(name, "llama", **options))


def test_largest_rank_of_shira_is_named(cell: MakeCell) -> None:
    assert refusal(cell("shira", "llama", rank=11)).endswith("; use at most 10")
    assert cell("shira", "llama", rank=10).refusal() is None


def test_layers_that_share_no_divisor_are_refused() -> None:
    sizes = {"a": (35, 1), "b": (36, 1)}
    with pytest.raises(CapabilityError, match=r"no block size from 2 to 8 divides the inputs of all layers \(35, 36\)"):
        fitting_block(None, sizes, at_most=8)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device may compute several factors")
def test_butterfly_factors_need_a_cuda_toolkit(cell: MakeCell) -> None:
    assert "method.factors 2 needs a CUDA extension" in refusal(cell("boft", factors=2))


NO_CONV1D = ["loha", "lokr", "oft", "boft", "miss", "shira"]


@pytest.mark.parametrize("name", NO_CONV1D)
def test_transposed_layers_are_refused(cell: MakeCell, name: str) -> None:
    assert f"method '{name}' cannot change the Conv1D layers of GPT2LMHeadModel" in refusal(cell(name, "gpt2"))


@pytest.mark.parametrize("name", ["loha", "lokr"])
def test_products_are_refused_on_4_bits(cell: MakeCell, name: str) -> None:
    assert refusal(cell(name, storage="nf4")).endswith("it works on: 8-bit, 16-bit, 32-bit")


@pytest.mark.parametrize("storage", ["nf4", "int8"])
@pytest.mark.parametrize("name", sorted(set(FORMULAS) - {"loha", "lokr"}))
def test_quantized_bases_carry_the_others(cell: MakeCell, tmp_path: Any, name: str, storage: str) -> None:
    chosen = cell(name, "llama", storage, **({"rank": 5} if name == "shira" else {}))
    assert chosen.refusal() is None
    model = chosen.tuned()
    stored = {key: weight.clone() for key, weight in model.named_parameters() if not weight.requires_grad}
    losses = chosen.train(model, steps=4, learning_rate=1e-2)
    assert losses[-1] < losses[0]
    assert all(torch.equal(weight, stored[key]) for key, weight in model.named_parameters() if key in stored)
    after = chosen.logits(model)
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    assert torch.equal(chosen.logits(chosen.reloaded(tmp_path)), after)


def test_facts_are_told_of_all() -> None:
    for name in FORMULAS:
        method = methods.get(name)
        assert method.paper
        assert method.use_when
        assert method.mergeable
