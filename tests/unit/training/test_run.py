"""A run from recipe to folder, on a tiny model: what it leaves, that it repeats, resumes and refuses."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import peftkit.training
from peftkit.errors import CapabilityError, DataError, RecipeError, RunError
from peftkit.predictor import load
from peftkit.recipe import Recipe
from peftkit.results import RunResult
from peftkit.training import RunOptions, resume, run

MakeRecipe = Callable[..., Recipe]
RunCut = Callable[[Recipe, Path, int], str]

pytestmark = pytest.mark.training
QUIET = RunOptions(show_progress=False)
WORDS = {word: "positive" for word in ("joyous", "warm", "funny", "lovely", "great", "clever")}
WORDS |= {word: "negative" for word in ("dull", "boring", "mess", "flat", "bad", "weak")}


def weights(run_dir: Path) -> bytes:
    return (run_dir / "adapter" / "adapter_model.safetensors").read_bytes()


def test_run_leaves_a_folder_that_says_what_happened(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    train = tmp_path / "easy.csv"  # one word decides: a random tiny model can learn this
    rows = [
        f"{filler} {word},{label}" for word, label in WORDS.items() for filler in ("a", "the film is", "very", "so")
    ]
    train.write_text("\n".join(["text,label", *rows]))
    recipe = make_recipe("training.epochs=12", "method.rank=8", train=train)
    result = run(recipe, tmp_path / "run", options=QUIET)
    left = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"adapter", "recipe.yaml", "run.json", "report.html"} <= left
    assert "checkpoints" not in left
    assert RunResult.read(tmp_path / "run") == result
    assert result.data.rows == {"train": 48, "validation": 16}
    losses = [point.values["loss"] for point in result.history if "loss" in point.values]
    assert len(losses) == 72  # 12 epochs x 6 batches, logged at each step
    assert sum(losses[-6:]) < 0.5 * sum(losses[:6])
    scores = [point.values["validation_accuracy"] for point in result.history if "validation_accuracy" in point.values]
    assert result.metrics["validation"]["accuracy"] == max(scores)
    resolved = Recipe.from_yaml(tmp_path / "run" / "recipe.yaml")
    assert resolved.training.learning_rate == 0.01
    assert resolved.task.labels == ("negative", "positive")  # type: ignore[attr-defined] # of this task
    assert resolved.sha256 == result.recipe_sha256


def test_adapter_loads_in_a_process_that_never_imports_peftkit(
    make_recipe: MakeRecipe, tiny_bert: Path, tmp_path: Path
) -> None:
    run(make_recipe(), tmp_path / "run", options=QUIET)
    ours = load(tmp_path / "run").logits(["a joyous film", "a dull mess of a movie"])
    script = """
import json, sys, warnings
warnings.simplefilter("ignore")
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer
base, adapter = sys.argv[1:]
model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=2)
model = PeftModel.from_pretrained(model, adapter).eval()
tokenizer = AutoTokenizer.from_pretrained(adapter)
with torch.inference_mode():
    batch = tokenizer(["a joyous film", "a dull mess of a movie"], padding=True, return_tensors="pt")
    print("LOGITS" + json.dumps(model(**batch).logits.tolist()))
assert "peftkit" not in sys.modules
"""
    command = [sys.executable, "-c", script, str(tiny_bert), str(tmp_path / "run" / "adapter")]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    theirs = json.loads(printed.partition("LOGITS")[2])
    assert torch.allclose(torch.tensor(theirs), torch.from_numpy(ours), atol=1e-5)


def test_same_recipe_and_seed_give_identical_metrics_and_bytes(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    settings = ("method.dropout=0.1", "training.batching=group_by_length")
    runs = [run(make_recipe(*settings), tmp_path / name, options=QUIET) for name in ("first", "second")]
    assert runs[0].metrics == runs[1].metrics
    folders = [tmp_path / name / "adapter" for name in ("first", "second")]
    files = [{path.name: path.read_bytes() for path in folder.iterdir()} for folder in folders]
    assert files[0] == files[1]
    other = run(make_recipe(*settings, "seed=1"), tmp_path / "third", options=QUIET)
    assert weights(tmp_path / "third") != weights(tmp_path / "first")
    assert other.recipe_sha256 != runs[0].recipe_sha256


@pytest.mark.parametrize("batching", ["random", "group_by_length"])
@pytest.mark.parametrize("step", [3, 6, 8])  # in the first epoch, at its end, in the second
def test_interrupted_run_resumes_to_the_same_bytes(
    make_recipe: MakeRecipe, tmp_path: Path, run_cut: RunCut, batching: str, step: int
) -> None:
    recipe = make_recipe("method.dropout=0.2", f"training.batching={batching}")
    handler = signal.getsignal(signal.SIGINT)
    whole = run(recipe, tmp_path / "whole", options=QUIET)
    message = run_cut(recipe, tmp_path / "cut", step)
    assert re.search(rf"stopped at step {step} of 12.*--resume {tmp_path}/cut", message, re.DOTALL)
    assert (tmp_path / "cut" / "checkpoints" / f"checkpoint-{step}").is_dir()
    resumed = resume(tmp_path / "cut", options=QUIET)
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")
    assert resumed.metrics == whole.metrics
    assert [point.values.get("validation_accuracy") for point in resumed.history] == [
        point.values.get("validation_accuracy") for point in whole.history
    ]
    assert signal.getsignal(signal.SIGINT) is handler


def test_resume_passes_over_a_damaged_checkpoint_and_says_so(
    make_recipe: MakeRecipe, tmp_path: Path, run_cut: RunCut, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = make_recipe("training.epochs=3", "training.keep_checkpoints=3")
    run(recipe, tmp_path / "whole", options=QUIET)
    run_cut(recipe, tmp_path / "cut", 14)
    (tmp_path / "cut" / "checkpoints" / "checkpoint-14" / "optimizer.pt").unlink()
    resume(tmp_path / "cut")
    said = capsys.readouterr().err
    assert "checkpoint-14' is not whole: optimizer.pt is missing" in said
    assert "resuming from checkpoint-12" in said
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")


def test_accumulated_micro_batches_equal_one_batch(make_recipe: MakeRecipe, tiny_bert: Path, tmp_path: Path) -> None:
    """48 rows in batches of 20, 20, 8: whole, and as micro-batches of 5; the last step has only two, of 5 and 3."""
    still = shutil.copytree(tiny_bert, tmp_path / "without-dropout")
    config = json.loads((still / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (still / "config.json").write_text(json.dumps(config))
    common = (
        f"model.id={still}",
        "training.optimizer=sgd",
        "training.learning_rate=0.5",
        "training.epochs=1",
        "training.max_grad_norm=0",
    )
    run(make_recipe(*common, "training.batch_size=20"), tmp_path / "one", options=QUIET)
    run(
        make_recipe(*common, "training.batch_size=5", "training.accumulation_steps=4"), tmp_path / "four", options=QUIET
    )
    one, four = (load_file(tmp_path / name / "adapter" / "adapter_model.safetensors") for name in ("one", "four"))
    for name, expected in one.items():
        # fp32 sums in another order: a few ulps of the largest weight
        assert torch.allclose(four[name], expected, atol=2e-6), name


def test_full_tuning_saves_a_whole_model_that_predicts_as_evaluated(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = make_recipe("method=full", "training.learning_rate=0.001", "training.epochs=4")
    result = run(recipe, tmp_path / "run", options=QUIET)
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()
    assert result.model.trainable_parameters == result.model.total_parameters
    assert_predicts_as_evaluated(recipe, result, tmp_path / "run")


def test_predictor_gives_the_scores_of_the_evaluation(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = make_recipe("training.epochs=4")
    result = run(recipe, tmp_path / "run", options=QUIET)
    assert_predicts_as_evaluated(recipe, result, tmp_path / "run")


def assert_predicts_as_evaluated(recipe: Recipe, result: RunResult, run_dir: Path) -> None:
    rows = recipe.data.load().splits["validation"]
    answers = load(run_dir)(rows["text"])
    right = [answer["label"] == label for answer, label in zip(answers, rows["label"], strict=True)]
    assert sum(right) / len(right) == pytest.approx(result.metrics["validation"]["accuracy"])
    assert all(sum(answer["probabilities"].values()) == pytest.approx(1.0) for answer in answers)


def test_merged_adapter_predicts_the_same(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    run(make_recipe(), tmp_path / "run", options=QUIET)
    texts = ["a joyous film", "", "dull " * 40, "a joyous film"]
    apart = load(tmp_path / "run").logits(texts, batch_size=3)
    merged = load(tmp_path / "run", merge=True).logits(texts)
    assert torch.allclose(torch.from_numpy(merged), torch.from_numpy(apart), atol=1e-5)
    assert apart[0] == pytest.approx(apart[3], abs=1e-6)  # the order of the inputs is kept


def test_unmergeable_method_and_unknown_device_are_refused(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    run(make_recipe("method=full", "training.max_steps=1"), tmp_path / "run", options=QUIET)
    with pytest.raises(CapabilityError, match="method 'full' cannot be merged"):
        load(tmp_path / "run", merge=True)
    with pytest.raises(CapabilityError, match="device 'quantum' cannot be used here"):
        load(tmp_path / "run", device="quantum")


def test_changed_weights_are_not_served(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    run(make_recipe("training.max_steps=1"), tmp_path / "run", options=QUIET)
    path = tmp_path / "run" / "adapter" / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(RunError, match=r"adapter_model\.safetensors' has changed since the run wrote it"):
        load(tmp_path / "run")


def test_head_lost_in_saving_fails_the_run(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = peftkit.training.save_weights

    def save_without_head(*args: Any, **kwargs: Any) -> Path:
        folder = save(*args, **kwargs)
        path = folder / "adapter_model.safetensors"
        kept = {name: tensor * (0.0 if "classifier" in name else 1.0) for name, tensor in load_file(path).items()}
        save_file(kept, path)
        return folder

    monkeypatch.setattr(peftkit.training, "save_weights", save_without_head)
    with pytest.raises(RunError, match="the saved weights do not reload: logits of 8 probe rows differ by up to"):
        run(make_recipe("training.max_steps=2"), tmp_path / "run", options=QUIET)
    assert not (tmp_path / "run" / "run.json").exists()
    assert (tmp_path / "run" / "checkpoints").is_dir()


def test_loss_that_is_no_number_names_the_rows(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = make_recipe("training.learning_rate=1e30", "training.max_grad_norm=0", "training.optimizer=sgd")
    with pytest.raises(
        RunError, match=r"the loss became (nan|inf) at step \d+, on this batch: train row \d+ \(.*csv:\d+\)"
    ):
        run(recipe, tmp_path / "run", options=QUIET)


def test_parameter_without_gradient_is_named(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peftkit.methods.lora import Lora

    apply = Lora.apply

    def apply_with_idle_weight(self: Lora, model: Any, context: Any) -> Any:
        tuned = apply(self, model, context)
        tuned.idle = torch.nn.Parameter(torch.zeros(3))
        return tuned

    monkeypatch.setattr(Lora, "apply", apply_with_idle_weight)
    with pytest.raises(RunError, match=r"1 of \d+ trainable parameters got no gradient on the first step.*: idle;"):
        run(make_recipe(), tmp_path / "run", options=QUIET)


def test_gradient_checkpointing_changes_no_byte(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    """Both with padding, which checkpointing needs."""
    settings = ("training.max_steps=4", "training.padding_free=false")
    run(make_recipe(*settings), tmp_path / "plain", options=QUIET)
    run(make_recipe(*settings, "training.gradient_checkpointing=true"), tmp_path / "less", options=QUIET)
    assert weights(tmp_path / "plain") == weights(tmp_path / "less")


def test_early_stopping_stops(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = make_recipe("training.learning_rate=1e-12", "training.epochs=9", "training.early_stopping_patience=2")
    result = run(recipe, tmp_path / "run", options=QUIET)
    assert result.cost.steps == 18  # nothing improves after the first of epochs of 6 steps
    assert result.best_step == 6


def test_metric_that_does_not_fit_is_found_before_training(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    (tmp_path / "three.csv").write_text("text,label\n" + "".join(f"row {i},{'abc'[i % 3]}\n" for i in range(12)))
    recipe = make_recipe("metrics=[f1]", train=tmp_path / "three.csv", validation=tmp_path / "three.csv")
    with pytest.raises(DataError, match="binary"):
        run(recipe, tmp_path / "run", options=QUIET)
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_best_metric_may_be_named_by_its_options(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    metric = "metrics=[accuracy, {name: f1, average: micro}]"
    recipe = make_recipe(metric, "training.best_metric=f1_micro", "training.max_steps=1")
    assert run(recipe, tmp_path / "run", options=QUIET).best_metric == "validation_f1_micro"


def test_run_of_a_plugin_that_is_not_loaded_says_so(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    run(make_recipe("training.max_steps=1"), tmp_path / "run", options=QUIET)
    path = tmp_path / "run" / "run.json"
    path.write_text(path.read_text().replace('"name": "lora"', '"name": "moonshot"'))
    with pytest.raises(RecipeError, match="unknown tuning method 'moonshot'"):
        load(tmp_path / "run")
    with pytest.raises(RunError, match=r"there is no run folder '.*nowhere'"):
        load(tmp_path / "nowhere")


def test_tensorboard_gets_the_curve(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    run(make_recipe("training.max_steps=2", "training.report_to=[tensorboard]"), tmp_path / "run", options=QUIET)
    assert list((tmp_path / "run").rglob("events.out.tfevents.*"))


def test_missing_tracker_is_named_before_anything_is_loaded(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    if __import__("importlib").util.find_spec("mlflow"):
        pytest.skip("mlflow is installed here")
    with pytest.raises(CapabilityError, match=r"training\.report_to names 'mlflow', which is not installed"):
        run(make_recipe("training.report_to=[mlflow]", "model.id=./nowhere"), tmp_path / "run", options=QUIET)


def test_used_folder_is_refused_and_overwritten_only_if_it_is_a_run(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = make_recipe("training.max_steps=1")
    run(recipe, tmp_path / "run", options=QUIET)
    with pytest.raises(RunError, match=r"run' is not empty \(adapter, .*replace it with --overwrite"):
        run(recipe, tmp_path / "run", options=QUIET)
    with pytest.raises(RunError, match="is finished already; see it with  peftkit report"):
        resume(tmp_path / "run", options=QUIET)
    (tmp_path / "run" / "left.txt").write_text("from before")
    run(recipe, tmp_path / "run", options=RunOptions(overwrite=True, show_progress=False))
    assert not (tmp_path / "run" / "left.txt").exists()

    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"meow")
    with pytest.raises(RunError, match="holds files that are no run of peftkit"):
        run(recipe, tmp_path / "photos", options=RunOptions(overwrite=True, show_progress=False))
    assert (tmp_path / "photos" / "cat.jpg").read_bytes() == b"meow"


def test_run_that_failed_before_it_computed_anything_can_be_repeated(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no file"):
        run(make_recipe(train=tmp_path / "absent.csv"), tmp_path / "run", options=QUIET)
    run(make_recipe("training.max_steps=1"), tmp_path / "run", options=QUIET)
    assert (tmp_path / "run" / "run.json").is_file()


def test_resume_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"holds no run to resume \(no recipe.yaml\)"):
        resume(tmp_path, options=QUIET)


def test_broken_rows_stop_the_run_all_at_once(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("text,label\ngood,positive\n,negative\nfine,\nbad,negative\n")
    with pytest.raises(DataError) as caught:
        run(make_recipe(train=tmp_path / "train.csv"), tmp_path / "run", options=QUIET)
    assert "train.csv:3" in str(caught.value)
    assert "train.csv:4" in str(caught.value)


def test_rows_without_a_training_split_are_refused(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = make_recipe("data.train=null")
    with pytest.raises(DataError, match=r"gives no split 'train' \(it gives: validation\)"):
        run(recipe, tmp_path / "run", options=QUIET)


def test_half_precision_weights_cannot_be_trained(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    with pytest.raises(
        RecipeError, match=r"model\.dtype bfloat16 stores the base weights in 16 bits, and method 'full'"
    ):
        run(make_recipe("method=full", "model.dtype=bfloat16"), tmp_path / "run", options=QUIET)


def test_bfloat16_base_trains_float32_adapters_and_reloads(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    run(make_recipe("model.dtype=bfloat16", "training.precision=bf16"), tmp_path / "run", options=QUIET)
    saved = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}
    assert load(tmp_path / "run")("a joyous film")[0]["label"] in ("negative", "positive")


def test_arithmetic_of_training_does_not_matter_to_what_is_saved(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = make_recipe("training.precision=bf16", "training.max_steps=2")
    assert run(recipe, tmp_path / "run", options=QUIET).environment["precision"] == "bf16"


def test_adapter_names_its_base_as_the_recipe_does(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    run(make_recipe("training.max_steps=1"), tmp_path / "run", options=QUIET)
    config = json.loads((tmp_path / "run" / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == make_recipe().model.id
    assert config["modules_to_save"] == ["classifier", "score"]  # peft itself writes classifier twice
    digest = hashlib.sha256(weights(tmp_path / "run")).hexdigest()
    assert RunResult.read(tmp_path / "run").files["adapter/adapter_model.safetensors"] == digest
