"""Adapters that plain peft or LLaMA-Factory has saved, loaded by peftkit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import peftkit
from peftkit.cli.entry import main
from peftkit.errors import ArtifactError, CapabilityError, PeftkitError, RecipeError, RunError, UnknownComponentError
from peftkit.models import quiet_libraries

TEXTS = ["The soup was lovely.", "A dull film.", "kind", "two hours that nobody will get back"]
Saved = tuple[Path, Any]
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def _randomised(model: Any) -> Any:
    """Every weight of the adapter large, so that answers depend on all of them."""
    torch.manual_seed(5)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.normal_(0, 0.2)
    return model.eval()


def _saved(base: Path, folder: Path, auto_class: str, config: Any, *, tokenizer: Any = None, **labels: Any) -> Saved:
    """The folder of an adapter with random weights, and the model that it was saved from."""
    from peft import get_peft_model

    with quiet_libraries():
        model = getattr(transformers, auto_class).from_pretrained(base, **labels)
        if tokenizer is not None:
            model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
            tokenizer.save_pretrained(folder)
        tuned = _randomised(get_peft_model(model, config))
        tuned.save_pretrained(folder)
    return folder, tuned


@pytest.fixture
def classifier(tiny_bert: Path, tmp_path: Path) -> Saved:
    from peft import LoraConfig

    config = LoraConfig(task_type="SEQ_CLS", target_modules=["query", "value"], modules_to_save=["classifier"])
    auto = "AutoModelForSequenceClassification"
    return _saved(tiny_bert, tmp_path / "classifier", auto, config, num_labels=3)


@pytest.fixture
def generator(tiny_llama: Path, tmp_path: Path) -> Saved:
    from peft import LoraConfig

    config = LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear")
    return _saved(tiny_llama, tmp_path / "generator", "AutoModelForCausalLM", config)


def _logits(model: Any, tokenizer: Any, text: str) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(**tokenizer(text, return_tensors="pt")).logits
    return logits


def test_classifier_of_plain_peft_predicts(classifier: Saved, capsys: pytest.CaptureFixture[str]) -> None:
    folder, tuned = classifier
    predict = peftkit.load(folder, labels=["bad", "fine", "good"])
    expected = torch.cat([_logits(tuned, predict.tokenizer, text) for text in TEXTS])
    assert predict.logits(TEXTS) == pytest.approx(expected.numpy(), abs=1e-5)
    assert [answer["label"] for answer in predict(TEXTS)] == [
        ("bad", "fine", "good")[index] for index in expected.argmax(1).tolist()
    ]
    assert peftkit.load(folder)("kind")[0]["label"].startswith("LABEL_")
    merged = peftkit.load(folder, merge=True)
    assert merged.logits(TEXTS) == pytest.approx(expected.numpy(), abs=1e-4)
    assert main(["predict", str(folder), "kind", "--labels", "bad, fine,good", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["label"] == predict("kind")[0]["label"]


def test_regression_of_plain_peft_gives_a_number(tiny_bert: Path, tmp_path: Path) -> None:
    from peft import IA3Config

    config = IA3Config(task_type="SEQ_CLS", target_modules=["key", "value"], feedforward_modules=[])
    auto = "AutoModelForSequenceClassification"
    folder, tuned = _saved(tiny_bert, tmp_path / "regression", auto, config, num_labels=1)
    predict = peftkit.load(folder)
    assert predict("kind")[0]["value"] == pytest.approx(_logits(tuned, predict.tokenizer, "kind").item(), abs=1e-5)
    with pytest.raises(RecipeError, match=r"gives one number, so labels \['a'\] name nothing"):
        peftkit.load(folder, labels=["a"])


@pytest.mark.parametrize("named", [True, False], ids=["task type", "class of the base"])
def test_generator_gives_the_same_logits_bit_by_bit(generator: Saved, named: bool) -> None:
    folder, tuned = generator
    if not named:  # peft saves this where a trainer was given a LoraConfig without task type
        _change(folder, task_type=None, auto_mapping={"base_model_class": "LlamaForCausalLM", "parent_library": "x"})
    loaded = peftkit.load_adapter(folder)
    assert not loaded.model.training
    for text in TEXTS:
        assert torch.equal(_logits(loaded.model, loaded.tokenizer, text), _logits(tuned, loaded.tokenizer, text))


def test_sequence_to_sequence_and_token_classes(tiny_t5: Path, tiny_bert: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, TaskType

    for kind, auto, base, labels in (
        (TaskType.TOKEN_CLS, "AutoModelForTokenClassification", tiny_bert, {"num_labels": 5}),
        (TaskType.SEQ_2_SEQ_LM, "AutoModelForSeq2SeqLM", tiny_t5, {}),
    ):
        targets = ["q", "v"] if kind == "SEQ_2_SEQ_LM" else ["query"]
        config = LoraConfig(task_type=kind, target_modules=targets)
        folder, tuned = _saved(base, tmp_path / kind, auto, config, **labels)
        loaded = peftkit.load_adapter(folder)
        inputs = dict(loaded.tokenizer("A dull film.", return_tensors="pt"))
        if kind == "SEQ_2_SEQ_LM":
            inputs["decoder_input_ids"] = inputs["input_ids"][:, :3]
        with torch.no_grad():
            assert torch.equal(loaded.model(**inputs).logits, tuned(**inputs).logits)


@pytest.fixture
def llama_factory(tiny_llama: Path, tmp_path: Path) -> Saved:
    """LLaMA-Factory's output folder: tokenizer with tokens of its own, resized embeddings, logs, checkpoints."""
    from peft import LoraConfig

    folder = tmp_path / "saves"
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_llama)
    tokenizer.add_special_tokens({"pad_token": "<|pad|>", "additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"
    config = LoraConfig(
        task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"], modules_to_save=["embed_tokens", "lm_head"]
    )
    saved = _saved(tiny_llama, folder, "AutoModelForCausalLM", config, tokenizer=tokenizer)
    for name in ("all_results.json", "trainer_state.json", "train_results.json"):
        (folder / name).write_text("{}")
    (folder / "trainer_log.jsonl").write_text('{"current_steps": 2, "loss": 1.0}\n')
    (folder / "training_args.bin").write_bytes(b"not read")
    return saved


def test_folder_of_llama_factory(llama_factory: Saved) -> None:
    folder, tuned = llama_factory
    loaded = peftkit.load_adapter(folder)
    assert loaded.tokenizer.convert_tokens_to_ids("<|im_end|>") == len(loaded.tokenizer) - 1
    text = loaded.tokenizer.apply_chat_template([{"role": "user", "content": "A dull film."}], tokenize=False)
    assert text == "<|im_start|>A dull film.<|im_end|>"
    assert torch.equal(_logits(loaded.model, loaded.tokenizer, text), _logits(tuned, loaded.tokenizer, text))


def test_value_head_is_told_to_be_left_out(llama_factory: Saved, capsys: pytest.CaptureFixture[str]) -> None:
    folder, _ = llama_factory
    (folder / "value_head.safetensors").write_bytes(b"")
    peftkit.load_adapter(folder)
    assert f"'{folder / 'value_head.safetensors'}' is left out" in capsys.readouterr().err


def test_embedding_beside_the_adapter_is_loaded(tiny_llama: Path, tmp_path: Path) -> None:
    """peft saves the whole embedding where it has grown; more rows than tokens, as trainers pad them."""
    from peft import LoraConfig, get_peft_model

    with quiet_libraries():
        base = transformers.AutoModelForCausalLM.from_pretrained(tiny_llama)
        base.resize_token_embeddings(512, mean_resizing=False)
        tuned = _randomised(get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"])))
        tuned.save_pretrained(tmp_path, save_embedding_layers=True)
    loaded = peftkit.load_adapter(tmp_path)
    assert torch.equal(_logits(loaded.model, loaded.tokenizer, "kind"), _logits(tuned, loaded.tokenizer, "kind"))


def test_base_elsewhere_and_quantized(generator: Saved, tiny_llama: Path) -> None:
    folder, tuned = generator
    _change(folder, base_model_name_or_path="/gone/llama")
    with pytest.raises(ArtifactError, match="/gone/llama"):
        peftkit.load_adapter(folder)
    loaded = peftkit.load_adapter(folder, base=str(tiny_llama))
    whole = _logits(tuned, loaded.tokenizer, "kind")
    assert torch.equal(_logits(loaded.model, loaded.tokenizer, "kind"), whole)
    quantized = peftkit.load_adapter(folder, base=str(tiny_llama), quantization="nf4")
    assert type(quantized.model.get_submodule("base_model.model.model.layers.0.mlp.up_proj.base_layer")).__name__ == (
        "Linear4bit"
    )
    logits = _logits(quantized.model, quantized.tokenizer, "kind")
    assert torch.nn.functional.cosine_similarity(logits.flatten(), whole.flatten(), dim=0) > 0.8


def _change(folder: Path, **values: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def _drop_config(folder: Path) -> None:
    (folder / "adapter_config.json").rename(folder / "other.json")


def _move_into_checkpoints(folder: Path) -> None:
    for step in (9, 30):
        (folder / f"checkpoint-{step}").mkdir()
        (folder / f"checkpoint-{step}" / "adapter_config.json").write_text("{}")
    _drop_config(folder)


def _pickle(folder: Path) -> None:
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")


def _damage(folder: Path) -> None:
    (folder / "adapter_model.safetensors").write_bytes(b"\x00" * 40)


def _lose_a_weight(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "adapter_model.safetensors")
    weights.pop("base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight")
    save_file(weights, folder / "adapter_model.safetensors")


def _add_a_weight(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "adapter_model.safetensors")
    weights["base_model.model.model.layers.7.self_attn.q_proj.lora_B.weight"] = torch.zeros(2)
    save_file(weights, folder / "adapter_model.safetensors")


@pytest.mark.parametrize(
    ("harm", "kind", "message"),
    [
        (_drop_config, ArtifactError, "holds no adapter: adapter_config.json is missing; give the folder"),
        (_move_into_checkpoints, ArtifactError, "it lies deeper; try '.*checkpoint-30'"),
        (_pickle, ArtifactError, r"adapter_model\.bin, a pickle that could run code"),
        (_damage, ArtifactError, "is damaged .*; copy it again"),
        (
            _lose_a_weight,
            ArtifactError,
            r"does not fit the base .*layers\.1\.self_attn\.q_proj\.lora_B.*; name the base",
        ),
        (_add_a_weight, ArtifactError, r"1 of its weights have no place there, such as .*layers\.7"),
        (lambda folder: _change(folder, r=4), ArtifactError, "does not fit the base .*size mismatch"),
        (lambda folder: _change(folder, peft_type="FANCY"), CapabilityError, "peft_type 'FANCY', which peft does not"),
        (lambda folder: _change(folder, use_fancy=True), CapabilityError, "sets use_fancy, which peft's LoraConfig"),
        (lambda folder: _change(folder, task_type="FANCY"), ArtifactError, "task_type 'FANCY'; set it to one of SEQ_"),
        (lambda folder: _change(folder, task_type=None), ArtifactError, "task_type None; set it to one of SEQ_CLS"),
        (lambda folder: _change(folder, base_model_name_or_path=None), ArtifactError, "names no base model; name it"),
        (lambda folder: (folder / "adapter_config.json").write_text("{"), ArtifactError, "is no JSON"),
    ],
)
def test_what_is_wrong_is_said(
    generator: Saved, harm: Callable[[Path], Any], kind: type[PeftkitError], message: str
) -> None:
    folder, _ = generator
    harm(folder)
    with pytest.raises(kind, match=message):
        peftkit.load_adapter(folder)


def test_unused_settings_of_another_version_are_no_problem(generator: Saved) -> None:
    folder, tuned = generator
    _change(folder, use_fancy=False, fancy_config=None, fancy_pattern={})
    loaded = peftkit.load_adapter(folder)
    assert torch.equal(_logits(loaded.model, loaded.tokenizer, "kind"), _logits(tuned, loaded.tokenizer, "kind"))


def test_wrong_use_is_said(generator: Saved, classifier: Saved, tmp_path: Path) -> None:
    with pytest.raises(CapabilityError, match=r"adapter for CAUSAL_LM, and peftkit predicts with SEQ_CLS only"):
        peftkit.load(generator[0])
    with pytest.raises(RecipeError, match=r"labels names 2 classes \(a, b\), the model has 3; name each"):
        peftkit.load(classifier[0], labels=["a", "b"])
    with pytest.raises(ArtifactError, match="there is no such folder"):
        peftkit.load_adapter(tmp_path / "nowhere")
    with pytest.raises(CapabilityError, match=r"device 'blah' cannot be used here .*; use auto or cpu"):
        peftkit.load_adapter(generator[0], device="blah")
    with pytest.raises(UnknownComponentError, match="unknown quantizer 'nf5'; did you mean 'nf4'"):
        peftkit.load_adapter(generator[0], quantization="nf5")
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text("{}")
    with pytest.raises(RunError, match="whose recipe decides; remove  base"):
        peftkit.load(run, base="x")
