"""Bottleneck adapters against their formulas, and through recomputation, threads and copies."""

from __future__ import annotations

import copy
import math
import pickle
import threading
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from peftkit.layers.bottleneck import BottleneckConfig, BottleneckLayer

STYLES = ("houlsby", "pfeiffer", "parallel", "scaled_parallel")
HEADS = {
    "bert": ["classifier"],
    "distilbert": ["pre_classifier", "classifier"],
    "roberta": ["classifier"],
    "gpt2": ["score"],
    "llama": ["score"],
    "t5": ["classification_head"],
}
HEAD_WEIGHTS = {"bert": 66, "distilbert": 1056 + 66, "roberta": 1056 + 66, "gpt2": 64, "llama": 64, "t5": 1056 + 66}
HIDDEN, WIDTH, LAYERS = 32, 5, 2
# Read off the architectures by hand: where a sub-layer's output, before the residual add, can be seen.
ATTENTION = {
    "bert": ["bert.encoder.layer.{}.attention.output.dense"],
    "distilbert": ["distilbert.transformer.layer.{}.attention.out_lin"],
    "roberta": ["roberta.encoder.layer.{}.attention.output.dense"],
    "gpt2": ["transformer.h.{}.attn.c_proj"],
    "llama": ["model.layers.{}.self_attn.o_proj"],
    "t5": [
        "transformer.encoder.block.{}.layer.0.SelfAttention.o",
        "transformer.decoder.block.{}.layer.0.SelfAttention.o",
        "transformer.decoder.block.{}.layer.1.EncDecAttention.o",
    ],
}
FEED_FORWARD = {
    "bert": ["bert.encoder.layer.{}.output.dense"],
    "distilbert": ["distilbert.transformer.layer.{}.ffn.lin2"],
    "roberta": ["roberta.encoder.layer.{}.output.dense"],
    "gpt2": ["transformer.h.{}.mlp.c_proj"],
    "llama": ["model.layers.{}.mlp.down_proj"],
    "t5": [
        "transformer.encoder.block.{}.layer.1.DenseReluDense.wo",
        "transformer.decoder.block.{}.layer.2.DenseReluDense.wo",
    ],
}
Logits = Callable[[Any, Mapping[str, Tensor]], Tensor]
Weights = Mapping[str, Tensor]


def expand(names: list[str]) -> list[str]:
    return [name.format(layer) for name in names for layer in range(LAYERS)]


def adapted(model: Any, name: str, *, adapter: str = "default", **options: Any) -> Any:
    from peft import get_peft_model

    config = BottleneckConfig(task_type="SEQ_CLS", modules_to_save=[*HEADS[name]], **{"width": WIDTH, **options})
    return get_peft_model(model, config, adapter_name=adapter).eval()


def weights_of(model: Any, place: str) -> Weights:
    """The adapter at a place: down (width, hidden), up (hidden, width) and their biases."""
    layer = model.get_submodule(f"base_model.model.{place}")
    down, up = layer.bottleneck_down["default"], layer.bottleneck_up["default"]
    return {"A": down.weight, "a": down.bias, "B": up.weight, "b": up.bias}


def formula(weights: Weights, h: Tensor) -> Tensor:
    """B relu(A h + a) + b, of Houlsby et al. figure 2 without its skip connection."""
    inner = torch.einsum("wh,...h->...w", weights["A"], h) + weights["a"]
    return torch.einsum("hw,...w->...h", weights["B"], torch.clamp(inner, min=0)) + weights["b"]


def add_sequential(base: nn.Module, place: str, weights: Weights) -> None:
    """h <- h + A(h) on what the sub-layer gives."""
    base.get_submodule(place).register_forward_hook(lambda module, args, h: h + formula(weights, h))


def add_parallel(base: nn.Module, place: str, weights: Weights, *, scale: float) -> None:
    """FFN(x) <- FFN(x) + s A(x), computed another way than our layers do.

    Where the feed-forward part is a module of its own, from that module's input. In BERT, whose output module gives
    LayerNorm(dense(h) + x), by giving it x + s A(x) for x.
    """
    part = base.get_submodule(place.rpartition(".")[0])
    if "output" in place:
        part.register_forward_pre_hook(lambda module, args: (args[0], args[1] + scale * formula(weights, args[1])))
    else:
        part.register_forward_hook(lambda module, args, h: h + scale * formula(weights, args[0]))


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("name", HEADS)
def test_outputs_follow_the_papers_formula(
    classifier: Callable[..., Any], batch: Any, randomized: Any, logits: Logits, name: str, style: str
) -> None:
    model = randomized(adapted(classifier(name), name, style=style))
    reference = classifier(name)
    for place in expand(FEED_FORWARD[name]):
        if style in ("houlsby", "pfeiffer"):
            add_sequential(reference, place, weights_of(model, place))
        else:
            scale = 4.0 if style == "scaled_parallel" else 1.0
            add_parallel(reference, place, weights_of(model, place), scale=scale)
    for place in expand(ATTENTION[name]) if style == "houlsby" else []:
        add_sequential(reference, place, weights_of(model, place))
    expected = logits(reference, batch(name))
    torch.testing.assert_close(logits(model, batch(name)), expected, rtol=1e-4, atol=1e-5)  # float32, other sum order
    assert (expected - logits(classifier(name), batch(name))).abs().max() > 1e-2


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("name", HEADS)
def test_only_adapters_and_head_train_and_are_counted(classifier: Callable[..., Any], name: str, style: str) -> None:
    model = adapted(classifier(name), name, style=style)
    places = expand(FEED_FORWARD[name]) + (expand(ATTENTION[name]) if style == "houlsby" else [])
    count = len(places) * (2 * HIDDEN * WIDTH + WIDTH + HIDDEN)
    assert model.get_nb_trainable_parameters()[0] == count + HEAD_WEIGHTS[name]
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    adapters = {n for n, m in model.base_model.model.named_modules() if isinstance(m, BottleneckLayer)}
    assert adapters == set(places)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("name", HEADS)
def test_starts_as_the_base_and_can_be_switched_off(
    classifier: Callable[..., Any], batch: Any, randomized: Any, logits: Logits, name: str, style: str
) -> None:
    before = logits(classifier(name), batch(name))
    model = adapted(classifier(name), name, style=style)
    assert torch.equal(logits(model, batch(name)), before)
    randomized(model)
    changed = logits(model, batch(name))
    assert not torch.allclose(changed, before, atol=1e-3)
    with model.disable_adapter():
        assert torch.equal(logits(model, batch(name)), before)
    assert torch.equal(logits(model, batch(name)), changed)
    bare = model.unload()
    assert torch.equal(logits(bare, batch(name)), before)
    assert not [m for m in bare.modules() if m._forward_pre_hooks or isinstance(m, BottleneckLayer)]


def test_active_adapters_add_up_on_the_bare_layer() -> None:
    from peft import get_peft_model

    base = nn.Sequential(nn.Linear(HIDDEN, HIDDEN))
    x = torch.randn(3, HIDDEN, generator=torch.Generator().manual_seed(0))
    h = base(x)
    config = BottleneckConfig(target_modules=["0"], width=WIDTH, init="normal")
    model = get_peft_model(base, config)
    model.add_adapter("second", config)
    layer = model.get_submodule("base_model.model.0")
    with torch.no_grad():
        for weight in layer.parameters():
            weight.uniform_(-0.5, 0.5) if weight.requires_grad else None
        layer.bottleneck_up["second"].weight.fill_(0.1)
    model.base_model.set_adapter(["default", "second"])

    def one(name: str) -> Tensor:
        down, up = layer.bottleneck_down[name], layer.bottleneck_up[name]
        return formula({"A": down.weight, "a": down.bias, "B": up.weight, "b": up.bias}, h)

    torch.testing.assert_close(model(x), h + one("default") + one("second"), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("style", ["houlsby", "scaled_parallel"])
@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "t5"])
def test_gradient_checkpointing_gives_equal_gradients(
    classifier: Callable[..., Any], batch: Any, randomized: Any, name: str, style: str, reentrant: bool
) -> None:
    def gradients(checkpointing: bool) -> dict[str, Tensor]:
        model = randomized(adapted(classifier(name), name, style=style, dropout=0.2)).train()
        model.config.use_cache = False
        if checkpointing:
            model.enable_input_require_grads()
            model.activation_checkpointing_enable({"use_reentrant": reentrant})
        torch.manual_seed(4)
        functional.cross_entropy(model(**batch(name)).logits, torch.tensor([0, 1, 1])).backward()
        assert not kept_inputs(model)
        return {n: p.grad for n, p in model.named_parameters() if p.requires_grad}

    plain, recomputed = gradients(False), gradients(True)
    assert plain.keys() == recomputed.keys()
    for n in plain:  # T5's reentrant pass adds the encoder's gradients up in another order
        torch.testing.assert_close(recomputed[n], plain[n], rtol=1e-5, atol=1e-7)
    assert all(plain[n].abs().max() > 0 for n in plain if "bottleneck_up" in n)


def kept_inputs(model: nn.Module) -> list[BottleneckLayer]:
    """Layers whose feed-forward input was not used up."""
    layers = [module for module in model.modules() if isinstance(module, BottleneckLayer)]
    return [
        layer for layer in layers if layer._input is not None and vars(layer._input._places).get("value") is not None
    ]


def test_threads_do_not_see_each_others_inputs(classifier: Callable[..., Any], randomized: Any, logits: Logits) -> None:
    model = randomized(adapted(classifier("bert"), "bert", style="scaled_parallel"))
    inputs = [{"input_ids": torch.tensor([row])} for row in ([2, 7, 8, 9, 3], [2, 20, 21, 22, 3])]
    alone = [logits(model, batch) for batch in inputs]
    # Both threads have been through the first layer of a feed-forward part before one gets to its last layer.
    meeting = threading.Barrier(2, timeout=30)

    def meet(*_: Any) -> None:
        meeting.wait()

    for first in model.base_model.model.bert.encoder.layer:
        first.intermediate.dense.register_forward_hook(meet)
    found: dict[int, Tensor] = {}
    threads = [
        threading.Thread(target=lambda i=i: found.update({i: logits(model, inputs[i])})) for i in range(len(inputs))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [torch.equal(found[i], alone[i]) for i in range(2)] == [True, True]
    assert not torch.equal(alone[0], alone[1])


def test_copies_of_a_model_are_independent(
    classifier: Callable[..., Any], batch: Any, randomized: Any, logits: Logits
) -> None:
    model = randomized(adapted(classifier("bert"), "bert", style="parallel"))
    expected = logits(model, batch("bert"))
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(logits(twin, batch("bert")), expected)
        randomized(twin, seed=8)
        assert not torch.equal(logits(twin, batch("bert")), expected)
        assert torch.equal(logits(model, batch("bert")), expected)
        model_input = next(m._input for m in model.modules() if isinstance(m, BottleneckLayer))
        assert all(m._input is not model_input for m in twin.modules() if isinstance(m, BottleneckLayer))


def test_last_layer_alone_has_no_input(classifier: Callable[..., Any], batch: Any, logits: Logits) -> None:
    model = adapted(classifier("bert"), "bert", style="parallel")
    logits(model, batch("bert"))
    last = model.get_submodule("base_model.model.bert.encoder.layer.0.output.dense")
    with pytest.raises(RuntimeError, match="got no input: the feed-forward part's last layer was called without its"):
        last(torch.zeros(1, 64))


@pytest.mark.parametrize(
    ("non_linearity", "reference"),
    [
        ("relu", lambda x: max(x, 0.0)),
        ("gelu", lambda x: x * 0.5 * (1 + math.erf(x / math.sqrt(2)))),
        ("silu", lambda x: x / (1 + math.exp(-x))),
        ("swish", lambda x: x / (1 + math.exp(-x))),
        ("tanh", math.tanh),
    ],
)
def test_non_linearities(non_linearity: str, reference: Callable[[float], float]) -> None:
    from peft import get_peft_model

    config = BottleneckConfig(target_modules=["0"], width=1, non_linearity=non_linearity)
    model = get_peft_model(nn.Sequential(nn.Linear(1, 1)), config)
    layer = model.get_submodule("base_model.model.0")
    with torch.no_grad():
        for weight, value in zip(layer.parameters(), (1.0, 0.0, 2.0, 0.5, 3.0, -0.25), strict=True):
            weight.fill_(value)  # base: y = x;  down: 2 h + 0.5;  up: 3 f - 0.25
    for x in (-1.5, -0.25, 0.0, 0.7):
        expected = x + 3 * reference(2 * x + 0.5) - 0.25
        assert model(torch.tensor([[x]])).item() == pytest.approx(expected, abs=1e-6)


def test_normal_init_is_small_and_cut_off() -> None:
    from peft import get_peft_model

    torch.manual_seed(0)
    config = BottleneckConfig(target_modules=["0"], width=64, init="normal")
    model = get_peft_model(nn.Sequential(nn.Linear(256, 256)), config)
    layer = model.get_submodule("base_model.model.0")
    for projection in (layer.bottleneck_down["default"], layer.bottleneck_up["default"]):
        assert projection.weight.abs().max() <= 0.02
        assert projection.weight.std().item() == pytest.approx(0.0088, rel=0.03)  # of a normal cut off at 2 sigma
        assert projection.bias.abs().max() == 0


def test_width_comes_from_the_reduction_factor() -> None:
    assert [BottleneckConfig(reduction_factor=f).width_for(768) for f in (2, 16, 5, 1000)] == [384, 48, 153, 1]
    assert BottleneckConfig(width=7, reduction_factor=2).width_for(768) == 7


def test_dropout_acts_in_training_only(classifier: Callable[..., Any], batch: Any, randomized: Any) -> None:
    model = randomized(adapted(classifier("gpt2"), "gpt2", dropout=0.5))
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # the base's own
    with torch.no_grad():
        first, second = (model(**batch("gpt2")).logits for _ in range(2))
        assert torch.equal(first, second)
        model.train()
        first, second = (model(**batch("gpt2")).logits for _ in range(2))
        assert not torch.equal(first, second)


@pytest.mark.parametrize("style", ["houlsby", "parallel"])
def test_16_bit_base_keeps_its_type_and_float32_adapters(
    classifier: Callable[..., Any], batch: Any, randomized: Any, style: str
) -> None:
    model = randomized(adapted(classifier("llama", dtype=torch.bfloat16), "llama", style=style))
    assert {p.dtype for n, p in model.named_parameters() if "bottleneck_" in n} == {torch.float32}
    seen = []
    for layer in model.modules():
        if isinstance(layer, BottleneckLayer):
            layer.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    model.base_model.model.model(**batch("llama"))
    assert set(seen) == {torch.bfloat16}
