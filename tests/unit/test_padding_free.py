"""Padding-free execution equals the padded path, and steps aside where it cannot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import (
    BartConfig,
    DogeConfig,
    FalconH1Config,
    Lfm2Config,
    LlamaConfig,
    MistralConfig,
    RecurrentGemmaConfig,
)

from peftkit.kernels.packing import ATTENTION, Packing
from peftkit.padding_free import PaddingFree, padding_free_problem
from peftkit.training import RunOptions, run

Checkpoint = Callable[[str], Path]
MASKS = {
    "right": [[1] * 9, [1] * 4 + [0] * 5, [1] * 4 + [0] * 5, [1] + [0] * 8, [1] * 7 + [0] * 2],
    "left": [[1] * 9, [0] * 5 + [1] * 4, [0] * 5 + [1] * 4, [0] * 8 + [1], [0] * 2 + [1] * 7],
    "holes": [[1, 0, 1, 1, 0, 1, 1, 1, 0], [1] * 9, [1, 1, 1, 0, 0, 0, 1, 1, 1], [1] * 8 + [0], [1] + [0] * 8],
}
WINDOWED = {"vocab_size": 60, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
BART = {
    "vocab_size": 60,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": 64,
}
SMALL = {**WINDOWED, "num_attention_heads": 4, "num_key_value_heads": 2}


def made(name: str, checkpoint: Checkpoint) -> Any:
    """A model in float64 without dropout at work."""
    torch.manual_seed(0)
    if name == "mistral":
        config = MistralConfig(**WINDOWED, num_attention_heads=4, num_key_value_heads=2, sliding_window=3)
        model: Any = transformers.AutoModelForCausalLM.from_config(config)
    else:
        auto = "AutoModelForCausalLM" if name in ("gpt2", "llama") else "AutoModelForSequenceClassification"
        model = getattr(transformers, auto).from_pretrained(checkpoint(name))
    return model.double().eval()


def computed(model: Any, mask: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Outputs at real tokens, and the gradients of the sum of their squares."""
    ids = torch.randint(5, 50, mask.shape, generator=torch.Generator().manual_seed(3))
    given: dict[str, Any] = {"input_ids": ids * mask + 1 - mask, "attention_mask": mask}
    if not mask[:, 0].all():
        given["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
    model.zero_grad()
    logits = model(**given).logits
    real = logits[mask.bool()] if logits.ndim == 3 else logits
    real.square().sum().backward()
    grads = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    return real.detach(), grads


@pytest.mark.parametrize(
    ("name", "side"),
    [
        *((name, side) for name in ("bert", "roberta", "distilbert") for side in ("right", "holes")),
        *((name, side) for name in ("gpt2", "llama", "mistral") for side in MASKS),
    ],
)
def test_outputs_and_gradients_are_those_of_the_padded_path(name: str, side: str, checkpoint: Checkpoint) -> None:
    model, mask = made(name, checkpoint), torch.tensor(MASKS[side])
    wanted, wanted_grads = computed(model, mask)
    assert padding_free_problem(model) is None
    engine = PaddingFree(model)
    found, grads = computed(model, mask)
    assert (engine.packed, engine.padded) == (1, 0)
    torch.testing.assert_close(found, wanted, atol=1e-12, rtol=1e-10)
    assert grads.keys() == wanted_grads.keys()
    for weight, gradient in wanted_grads.items():
        torch.testing.assert_close(grads[weight], gradient, atol=1e-11, rtol=1e-9)
    engine.remove()
    again, _ = computed(model, mask)
    assert torch.equal(again, wanted), "removing it leaves the padded path"


def test_blocks_see_no_padding(checkpoint: Checkpoint) -> None:
    model, mask = made("bert", checkpoint), torch.tensor(MASKS["right"])
    engine, seen = PaddingFree(model, reads_blocks=True), []
    for layer in model.bert.encoder.layer:
        layer.intermediate.register_forward_hook(lambda module, args, output: seen.append(tuple(output.shape[:2])))
    computed(model, mask)
    assert seen == [(1, int(mask.sum()))] * 2
    engine.remove()


def test_rows_of_one_length_share_a_call() -> None:
    packing = Packing(torch.tensor(MASKS["right"]).bool())
    assert [tuple(group) for group in packing.groups] == [(0, 1, 1), (1, 2, 4), (9, 1, 7), (16, 1, 9)]
    values = torch.arange(45.0).view(5, 9, 1)
    packed = packing.packed(values)
    assert packed[0, :5, 0].tolist() == [27.0, 9.0, 10.0, 11.0, 12.0]
    restored = packing.padded(packed)
    assert torch.equal(restored, values * torch.tensor(MASKS["right"])[..., None])


def test_left_padded_encoders_stay_padded(checkpoint: Checkpoint) -> None:
    model = made("bert", checkpoint)
    wanted, _ = computed(model, torch.tensor(MASKS["left"]))
    engine = PaddingFree(model)
    found, _ = computed(model, torch.tensor(MASKS["left"]))
    assert (engine.packed, engine.padded) == (0, 1)
    assert torch.equal(found, wanted)


def test_generation_is_that_of_the_padded_path(checkpoint: Checkpoint) -> None:
    model = made("llama", checkpoint)
    given = {
        "input_ids": torch.tensor([[1, 1, 7, 8], [5, 6, 7, 9]]),
        "attention_mask": torch.tensor([[0, 0, 1, 1], [1] * 4]),
    }
    options: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 1}
    wanted = model.generate(**given, **options)
    PaddingFree(model)
    assert torch.equal(model.generate(**given, **options), wanted)


@pytest.mark.parametrize("asked", ["output_hidden_states", "output_attentions"])
def test_what_is_inside_the_model_is_shown_padded(asked: str, checkpoint: Checkpoint) -> None:
    model, mask = made("llama", checkpoint), torch.tensor(MASKS["right"])
    engine = PaddingFree(model)
    if asked == "output_hidden_states":
        states = model(input_ids=mask + 5, attention_mask=mask, output_hidden_states=True).hidden_states
        assert all(state.shape[:2] == mask.shape for state in states)
    else:
        model.config.output_attentions = False
        model(input_ids=mask + 5, attention_mask=mask, output_attentions=True)
    assert (engine.packed, engine.padded) == (0, 1)


def test_dropout_of_attention_is_at_work(checkpoint: Checkpoint) -> None:
    model, mask = made("bert", checkpoint).train(), torch.tensor(MASKS["right"])
    for part in model.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    for layer in model.bert.encoder.layer:
        layer.attention.self.dropout.p = 0.5
    engine = PaddingFree(model)
    first, _ = computed(model, mask)
    second, _ = computed(model, mask)
    assert not torch.allclose(first, second)
    engine.remove()


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda model: model.config.__setattr__("_attn_implementation", "eager"), "attention is computed by eager"),
        (lambda model: model.bert.encoder.__setattr__("layer", torch.nn.ModuleList()), "the model has 0 stacks"),
    ],
)
def test_models_that_cannot_are_named(spoil: Callable[[Any], None], problem: str, checkpoint: Checkpoint) -> None:
    model = made("bert", checkpoint)
    spoil(model)
    assert problem in (padding_free_problem(model) or "")


MIXING = {
    "convolution": lambda: Lfm2Config(**SMALL, layer_types=["conv", "full_attention"]),
    "state space beside attention": lambda: FalconH1Config(
        **SMALL, mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8, mamba_d_state=8
    ),
    "recurrence": lambda: RecurrentGemmaConfig(
        **SMALL | {"num_key_value_heads": 1, "num_hidden_layers": 3}, lru_width=32
    ),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", MIXING)
def test_blocks_that_mix_neighbouring_rows_are_found_out(kind: str, dtype: torch.dtype) -> None:
    """Packed, they would read the row before; first weights are small, so that it shows in the last digits only."""
    torch.manual_seed(0)
    model: Any = transformers.AutoModel.from_config(MIXING[kind]()).to(dtype)
    assert "mix tokens by other means than attention" in (padding_free_problem(model) or "")


def test_blocks_that_count_places_themselves_are_found_out(checkpoint: Checkpoint) -> None:
    model = made("bert", checkpoint)
    for layer in model.bert.encoder.layer:
        layer.intermediate.register_forward_hook(
            lambda module, args, output: output + torch.arange(output.shape[1])[:, None]
        )
    assert padding_free_problem(model) == "BertModel gives other outputs when it is computed without padding"


def test_models_that_break_when_packed_are_named() -> None:
    config = DogeConfig(**SMALL, pad_token_id=1, bos_token_id=0, eos_token_id=2)
    model: Any = transformers.AutoModel.from_config(config)
    assert "DogeModel could not be tried: RuntimeError" in (padding_free_problem(model) or "")
    ids = torch.tensor([[5, 6, 7], [5, 6, 1]])
    model(input_ids=ids, attention_mask=torch.tensor([[1, 1, 1], [1, 1, 0]]))  # left as it was


def test_trying_a_model_leaves_no_trace(checkpoint: Checkpoint) -> None:
    model = made("bert", checkpoint).train()
    model.bert.encoder.layer[1].eval()
    modes = [part.training for part in model.modules()]
    drawn = torch.get_rng_state()
    assert padding_free_problem(model) is None
    assert [part.training for part in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), drawn)
    assert model.config._attn_implementation == "sdpa"
    assert all(weight.grad is None for weight in model.parameters())


@pytest.mark.parametrize("side", MASKS)
@pytest.mark.parametrize("name", ["t5", "bart"])
def test_encoders_of_encoder_decoders_are_packed(name: str, side: str, checkpoint: Checkpoint) -> None:
    """Relative biases, which layers share, and their gradients among them."""
    torch.manual_seed(0)
    if name == "t5":
        model: Any = transformers.AutoModelForSeq2SeqLM.from_pretrained(checkpoint("t5"))
    else:
        model = transformers.BartForConditionalGeneration(BartConfig(**BART))
    model, mask = model.double().eval(), torch.tensor(MASKS[side])
    given = {"input_ids": mask * 7 + torch.arange(9), "attention_mask": mask, "labels": torch.arange(20).view(5, 4)}

    def steps() -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        model.zero_grad()
        output = model(**given)
        output.loss.backward()
        grads = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
        return output.logits.detach(), grads

    wanted, wanted_grads = steps()
    assert padding_free_problem(model) is None
    engine = PaddingFree(model)
    found, grads = steps()
    assert (engine.packed, engine.padded) == ((0, 1) if engine.bidirectional and side == "left" else (1, 0))
    torch.testing.assert_close(found, wanted, atol=1e-12, rtol=1e-10)
    assert grads.keys() == wanted_grads.keys()
    for weight, gradient in wanted_grads.items():
        torch.testing.assert_close(grads[weight], gradient, atol=1e-11, rtol=1e-9)
    engine.remove()
    assert torch.equal(steps()[0], wanted), "removing it leaves the padded path"


@pytest.mark.parametrize("mask", [[[1] * 9, [1] * 4 + [0] * 5, [1] * 7 + [0] * 2], [[1, 1] + [0] * 6 + [1]]])
def test_relative_biases_are_as_large_as_the_padded_batch(mask: list[list[int]], checkpoint: Checkpoint) -> None:
    """Not as all of its tokens, of which there may be thousands, or fewer than places in a row."""
    encoder = transformers.AutoModelForSeq2SeqLM.from_pretrained(checkpoint("t5")).double().eval().encoder
    given = {"input_ids": torch.tensor(mask) * 7 + torch.arange(9), "attention_mask": torch.tensor(mask)}
    real = torch.tensor(mask).bool()
    wanted = encoder(**given)[0][real]
    engine, sizes = PaddingFree(encoder), []
    table = next(part.relative_attention_bias for part in encoder.modules() if hasattr(part, "compute_bias"))
    table.register_forward_hook(lambda module, args, output: sizes.append(tuple(output.shape[:2])))
    torch.testing.assert_close(encoder(**given)[0][real], wanted, atol=1e-12, rtol=1e-10)
    assert (engine.packed, sizes) == (1, [(9, 9)])


@pytest.mark.parametrize("beams", [1, 3])
def test_encoder_decoders_generate_the_same(beams: int, checkpoint: Checkpoint) -> None:
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(checkpoint("t5")).double().eval()
    mask = torch.tensor(MASKS["right"])
    given = {"input_ids": mask * 7 + torch.arange(9), "attention_mask": mask}
    options: dict[str, Any] = {"max_new_tokens": 6, "num_beams": beams, "do_sample": False}
    wanted = model.generate(**given, **options)
    engine = PaddingFree(model)
    assert torch.equal(model.generate(**given, **options), wanted)
    assert engine.packed == 1


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["bert", "llama"])
def test_gradients_are_no_further_from_float64_than_padded_ones(
    name: str, precision: str, checkpoint: Checkpoint
) -> None:
    """Those of the embedded input; rounding falls either way in one batch, so that errors of eight are added."""
    mask = torch.tensor(MASKS["right"])

    def gradient(dtype: torch.dtype, seed: int, *, packed: bool) -> torch.Tensor:
        model = made(name, checkpoint).to(dtype)
        ids = torch.randint(5, 50, mask.shape, generator=torch.Generator().manual_seed(seed))
        embedded = model.get_input_embeddings()(ids).detach().requires_grad_()
        engine = PaddingFree(model) if packed else None
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16" and dtype == torch.float32):
            logits = model(inputs_embeds=embedded, attention_mask=mask).logits
        (logits[mask.bool()] if logits.ndim == 3 else logits).to(dtype).sum().backward()
        assert embedded.grad is not None
        assert engine is None or (engine.packed == 1 and not embedded.grad[mask == 0].any())
        return embedded.grad.double() * mask[..., None]

    errors = dict.fromkeys((False, True), 0.0)
    for seed in range(8):
        true = gradient(torch.float64, seed, packed=False)
        for packed in errors:
            errors[packed] += ((gradient(torch.float32, seed, packed=packed) - true).norm() / true.norm()).item()
    assert 0 < errors[True] < 1.25 * errors[False]


@pytest.mark.training
@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({}, "on"),
        ({"training": {"padding_free": False}}, "off: training.padding_free is false"),
        ({"training": {"gradient_checkpointing": True}}, "off: gradient checkpointing"),
        ({"regularizers": ["mixup"]}, "off: regularizer 'mixup' mixes rows"),
        ({"method": "prefix"}, "off: the method or task reads more"),
    ],
)
def test_the_record_says_whether_and_why(
    changes: dict[str, Any], wanted: str, tiny_bert: Path, sentiment_files: dict[str, Path], tmp_path: Path
) -> None:
    from peftkit.recipe import Recipe

    values: dict[str, Any] = {
        "model": {"id": str(tiny_bert), "max_length": 32},
        "task": "sequence_classification",
        "data": {"name": "files"} | {split: str(path) for split, path in sentiment_files.items()},
        "method": "lora",
        "training": {"max_steps": 2, "batch_size": 8},
    }
    values |= {key: {**values[key], **part} if key == "training" else part for key, part in changes.items()}
    result = run(Recipe.from_values(values, origin="test"), tmp_path / "run", options=RunOptions(show_progress=False))
    assert result.execution["padding_free"].startswith(wanted)


def test_transformers_knows_the_attention_by_name() -> None:
    config = LlamaConfig(**WINDOWED, num_attention_heads=4, attn_implementation=ATTENTION)
    model: Any = transformers.AutoModelForCausalLM.from_config(config)
    plain: Any = transformers.AutoModelForCausalLM.from_config(LlamaConfig(**WINDOWED, num_attention_heads=4))
    plain.load_state_dict(model.state_dict())
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(model(ids).logits, plain(ids).logits), "alone it is the SDPA attention of transformers"
