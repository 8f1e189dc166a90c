"""The method `bottleneck`: its options reach the adapter, it refuses what it cannot tune, and a run trains it."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from peftkit.errors import CapabilityError, InterruptedRunError
from peftkit.methods import TuningContext, methods
from peftkit.predictor import load
from peftkit.recipe import Recipe
from peftkit.training import RunOptions, resume, run
from peftkit.training.callbacks import ShowProgress

CONTEXT = TuningContext(peft_task_type="SEQ_CLS", head_modules=("classifier",), total_steps=10)
QUIET = RunOptions(show_progress=False)


def classifier(folder: Path) -> Any:
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)


def test_options_reach_the_adapter(tiny_bert: Path) -> None:
    options = {"style": "scaled_parallel", "width": 3, "non_linearity": "silu", "dropout": 0.25, "init": "normal"}
    model = methods.build({"name": "bottleneck", "scale": 2.5, **options}).apply(classifier(tiny_bert), CONTEXT)
    config = model.peft_config["default"]
    assert {name: getattr(config, name) for name in options} == options
    assert config.scale == 2.5
    assert set(config.modules_to_save) >= {"classifier"}
    layer = model.get_submodule("base_model.model.bert.encoder.layer.0.output.dense")
    assert layer.bottleneck_down["default"].weight.shape == (3, 32)


@pytest.mark.parametrize(("style", "scale"), [("scaled_parallel", 4.0), ("parallel", 1.0), ("houlsby", 1.0)])
def test_scale_of_the_papers(tiny_bert: Path, style: str, scale: float) -> None:
    model = methods.build({"name": "bottleneck", "style": style}).apply(classifier(tiny_bert), CONTEXT)
    assert model.peft_config["default"].scale == scale


def test_default_width_is_a_sixteenth(tiny_bert: Path) -> None:
    model = methods.build("bottleneck").apply(classifier(tiny_bert), CONTEXT)
    layer = model.get_submodule("base_model.model.bert.encoder.layer.0.output.dense")
    assert layer.bottleneck_down["default"].weight.shape == (2, 32)


def test_extra_modules_and_new_tokens_of_a_stack_are_trained(tiny_gpt2: Path) -> None:
    context = TuningContext("SEQ_CLS", ("score",), 10, extra_modules=("ln_f",), new_token_ids=(4, 9, 11))
    model = methods.build("bottleneck").apply(classifier(tiny_gpt2), context)
    names = [name for name, weight in model.named_parameters() if weight.requires_grad]
    assert [n for n in names if "ln_f.modules_to_save.default.weight" in n]
    (tokens,) = (weight for name, weight in model.named_parameters() if "trainable_tokens_delta" in name)
    assert tokens.shape == (3, 32)
    assert tokens.requires_grad


def test_model_without_feed_forward_parts_is_refused_before_it_has_weights() -> None:
    from transformers import MambaConfig, MambaForCausalLM

    with torch.device("meta"):
        model = MambaForCausalLM(MambaConfig(hidden_size=32, num_hidden_layers=1, vocab_size=50, state_size=4))
    context = TuningContext("CAUSAL_LM", (), 10)
    method = methods.build("bottleneck")
    problem = method.problem(model, context)
    assert problem is not None
    assert problem.startswith("method 'bottleneck' cannot tune this model: the sub-layers of backbone.layers.0")
    assert problem.endswith("choose method lora")
    with pytest.raises(CapabilityError, match="cannot be told apart"):
        method.apply(model, context)


@pytest.mark.parametrize("name", ["tiny_bert", "tiny_distilbert", "tiny_roberta", "tiny_gpt2", "tiny_llama", "tiny_t5"])
@pytest.mark.parametrize("bits", [4, 8, 16, 32])
def test_nothing_is_refused_on_the_six_architectures(request: pytest.FixtureRequest, name: str, bits: int) -> None:
    from transformers import AutoConfig, AutoModelForSequenceClassification

    config = AutoConfig.from_pretrained(request.getfixturevalue(name))
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(config)
    context = TuningContext("SEQ_CLS", ("classifier",), 10, base_bits=bits, gradient_checkpointing=True)
    assert methods.build("bottleneck").problem(model, context) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"style": "adapterfusion"}, "style"),
        ({"reduction_factor": 0}, "reduction_factor"),
        ({"width": 0}, "width"),
        ({"non_linearity": "elu"}, "non_linearity"),
        ({"dropout": 1.0}, "dropout"),
        ({"style": "scaled_parallel", "scale": 0}, "scale"),
        ({"style": "parallel", "scale": 2.0}, "scale belongs to style scaled_parallel, not to parallel"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        methods.build({"name": "bottleneck", **options})


@pytest.fixture
def recipe(tiny_bert: Path, sentiment_files: dict[str, Path]) -> Callable[[str], Recipe]:
    def make(method: str) -> Recipe:
        text = f"""
            name: tiny
            model: {{id: {tiny_bert}, max_length: 32}}
            task: sequence_classification
            data: {{name: files, train: {sentiment_files["train"]}, validation: {sentiment_files["validation"]}}}
            method: {method}
            training: {{epochs: 2, batch_size: 8, learning_rate: 0.01, logging_steps: 1}}
        """
        return Recipe.from_text(text)

    return make


METHODS = {
    "houlsby": "{name: bottleneck, style: houlsby, width: 4, dropout: 0.1}",
    "parallel": "{name: bottleneck, style: scaled_parallel, width: 4, dropout: 0.1}",
    "bitfit": "bitfit",
}


@pytest.mark.training
@pytest.mark.parametrize("method", METHODS)
def test_run_trains_resumes_and_predicts(
    recipe: Callable[[str], Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    original = ShowProgress.on_step_end

    def press(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 8:
            os.kill(os.getpid(), signal.SIGINT)  # Ctrl-C in the second epoch
        original(self, args, state, control, **kwargs)

    whole = run(recipe(METHODS[method]), tmp_path / "whole", options=QUIET)
    losses = [point.values["loss"] for point in whole.history if "loss" in point.values]
    assert losses[-1] != losses[0]
    with monkeypatch.context() as patched:
        patched.setattr(ShowProgress, "on_step_end", press)
        with pytest.raises(InterruptedRunError, match="stopped at step 8"):
            run(recipe(METHODS[method]), tmp_path / "cut", options=QUIET)
    assert resume(tmp_path / "cut", options=QUIET).metrics == whole.metrics
    files = [tmp_path / part / "adapter" / "adapter_model.safetensors" for part in ("whole", "cut")]
    assert files[0].read_bytes() == files[1].read_bytes()
    config = json.loads((tmp_path / "whole" / "adapter" / "adapter_config.json").read_text())
    assert config["peft_type"] == f"{'BITFIT' if method == 'bitfit' else 'BOTTLENECK'}: IMPORT PEFTKIT FIRST"
    predictor = load(tmp_path / "whole")
    assert predictor("a joyous film")[0]["label"] in ("negative", "positive")
    assert (load(tmp_path / "cut").logits(["a dull mess"]) == predictor.logits(["a dull mess"])).all()
