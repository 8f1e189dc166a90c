"""A pipeline on the tiny BERT: what starts from what, what is not run twice, and what an application loads."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from peftkit.cli.entry import main
from peftkit.errors import RecipeError, RunError
from peftkit.pipeline import Pipeline
from peftkit.predictor import load
from peftkit.results import PipelineResult, RunResult
from peftkit.stages.running import run_pipeline
from peftkit.training import RunOptions
from peftkit.yaml_source import parse_yaml

QUIET = RunOptions(show_progress=False)
TEXTS = ["a joyous film", "a dull mess of a movie"]
Values = dict[str, Any]
MakeValues = Callable[..., Values]


@pytest.fixture
def values(tiny_bert: Path, sentiment_files: dict[str, Path]) -> MakeValues:
    """Function that gives the values of a pipeline of two or three stages on the 48 sentences."""

    def make(*methods: Any, start: str = "merged", **changes: Any) -> Values:
        methods = methods or ("lora", "lora")
        stage = {
            "task": "sequence_classification",
            "data": {"name": "files", **{split: str(file) for split, file in sentiment_files.items()}},
            "training": {"epochs": 1, "batch_size": 16, "learning_rate": 0.01},
        }
        stages = [
            {"name": f"s{place}", "method": method, **stage, **({"start": start} if place else {})}
            for place, method in enumerate(methods)
        ]
        return {"name": "p", "model": {"id": str(tiny_bert), "max_length": 32}, "stages": stages, **changes}

    return make


def build(values: Values) -> Pipeline:
    return Pipeline.from_source(parse_yaml(yaml.safe_dump(values), origin="p.yaml"))


def stage_folders(run_dir: Path) -> list[str]:
    return sorted(path.name.rpartition("-")[0] for path in (run_dir / "stages").iterdir())


@pytest.mark.training
@pytest.mark.parametrize(
    ("methods", "start"),
    [
        (("lora", "lora"), "merged"),
        (("lora", "lora"), "stacked"),
        (("full", "lora"), "merged"),
        (("lora", "full"), "merged"),
    ],
)
def test_target_starts_from_what_the_stage_before_left(
    values: MakeValues, tmp_path: Path, tiny_bert: Path, methods: tuple[str, str], start: str
) -> None:
    """The target's learning rate is next to nothing, so that its backbone is that of the first stage."""
    given = values(*methods, start=start, compare=False)
    given["stages"][1]["training"] = {"max_steps": 1, "batch_size": 4, "learning_rate": 1e-12}
    result, _ = run_pipeline(build(given), tmp_path / "run", options=QUIET)
    first, last = (load(tmp_path / "run" / stage.folder, merge="full" not in stage.method) for stage in result.stages)
    base = load_file(tiny_bert / "model.safetensors")
    wanted, found = first.model.state_dict(), last.model.state_dict()
    moved = 0
    for name, weight in wanted.items():
        if name.startswith("bert."):
            assert torch.allclose(found[name], weight, atol=1e-6), name
            moved += not torch.equal(weight, base[name])
    assert moved > 0
    # a head starts anew
    assert not torch.allclose(found["classifier.weight"], wanted["classifier.weight"], atol=1e-3)


@pytest.mark.training
def test_the_folder_of_a_pipeline_answers_wherever_it_is(values: MakeValues, tmp_path: Path) -> None:
    for start in ("merged", "stacked"):
        result, _ = run_pipeline(build(values(start=start, compare=False)), tmp_path / start, options=QUIET)
        answers = load(tmp_path / start / result.stages[-1].folder)(TEXTS)
        assert load(tmp_path / start)(TEXTS) == answers
        shutil.move(tmp_path / start, tmp_path / f"moved-{start}")
        assert load(tmp_path / f"moved-{start}")(TEXTS) == answers


@pytest.mark.training
def test_what_is_finished_is_not_run_twice(
    values: MakeValues, tmp_path: Path, sentiment_files: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    given = values("lora", "lora", "lora")
    run_pipeline(build(given), tmp_path / "run", options=QUIET)
    # all three; the target without s0, without s1, and alone; s1 on the base for want of s0
    assert stage_folders(tmp_path / "run") == ["s0", "s1", "s1", "s2", "s2", "s2", "s2"]
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "stages").rglob("run.json")}
    run_pipeline(build(given), tmp_path / "run")
    assert capsys.readouterr().err.count("finished before") == 7
    assert {path: path.stat().st_mtime_ns for path in before} == before

    given["stages"][1]["method"] = "bitfit"
    run_pipeline(build(given), tmp_path / "run")
    said = capsys.readouterr().err
    assert said.count("finished before") == 3  # s0, s2 after s0, s2 alone
    assert {path: path.stat().st_mtime_ns for path in before} == before

    other = tmp_path / "other.csv"
    other.write_text(sentiment_files["train"].read_text().replace("film", "movie"))
    given["stages"][0]["data"] |= {"train": str(other)}
    run_pipeline(build(given), tmp_path / "run")
    other.write_text(sentiment_files["train"].read_text())  # the same path with other rows
    capsys.readouterr()
    run_pipeline(build(given), tmp_path / "run")
    assert "stage s0, seed 0 ->" in capsys.readouterr().err


@pytest.mark.training
def test_report_tells_what_each_stage_adds(values: MakeValues, tmp_path: Path) -> None:
    result, comparison = run_pipeline(build(values("lora", "bitfit", "lora")), tmp_path / "run", options=QUIET)
    scores = {summary.label: summary.score.mean for summary in comparison.summaries}
    assert set(scores) == {"all_stages", "without_s0", "without_s1", "only_s2"}
    target = RunResult.read(tmp_path / "run" / result.stages[-1].folder)
    assert scores["all_stages"] == target.splits["validation"].metrics["accuracy"]
    page = (tmp_path / "run" / "report.html").read_text()
    for label, words in (("without_s0", "s0"), ("without_s1", "s1"), ("only_s2", "all before it")):
        added = scores["all_stages"] - scores[label]
        assert f'{words}</th><td class="n">{scores[label]:.4f}</td><td class="n">{added:+.4f}' in page
    assert f'href="{result.stages[0].folder}/report.html"' in page
    assert (tmp_path / "run" / "comparison" / "index.html").is_file()
    assert PipelineResult.read(tmp_path / "run") == result


@pytest.mark.training
def test_a_target_without_validation_rows_keeps_its_last_weights(
    values: MakeValues, sentiment_files: dict[str, Path], tmp_path: Path
) -> None:
    given = values("lora", "lora")
    rows = {"train": str(sentiment_files["train"]), "test": str(sentiment_files["validation"])}
    given["stages"][1] |= {"data": {"name": "files", **rows}}
    result, comparison = run_pipeline(build(given), tmp_path / "run", options=QUIET)
    assert result.stages[0].chosen_score == result.stages[0].metrics["validation"]["accuracy"]
    assert result.stages[1].chosen_score is None
    assert comparison.score.split == "test"
    assert '<td>last step</td><td class="n">\N{EN DASH}</td>' in (tmp_path / "run" / "report.html").read_text()
    # stages are there to change what the target starts from
    assert "base model" not in comparison.differences
    assert "do not compare" not in (tmp_path / "run" / "comparison" / "comparison.md").read_text()


@pytest.mark.training
def test_command_line_runs_checks_and_continues(
    values: MakeValues, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "two.yaml"
    recipe.write_text(yaml.safe_dump(values()))
    assert main(["check", str(recipe)]) == 0
    assert capsys.readouterr().out.count("rows    train 48, validation 16") == 2
    folder = tmp_path / "run"
    assert main(["run", str(recipe), "--run-dir", str(folder), "--set", "stages.1.training.epochs=2"]) == 0
    shown = capsys.readouterr()
    assert "What the stages add to s1" in shown.out
    assert f"peftkit predict {folder}" in shown.out
    assert main(["run", "--resume", str(folder), "--quiet"]) == 0
    assert main(["predict", str(folder), "a joyous film"]) == 0
    assert "a joyous film" in capsys.readouterr().out
    assert main(["run", str(recipe), "--run-dir", str(folder), "--overwrite"]) == 5
    assert "is kept: a pipeline runs anew what has changed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v["stages"].pop(), r"stages \(line \d+\): .*2"),
        (lambda v: v["stages"][1].update(name="s0"), "two stages are called 's0'; give each a name of its own"),
        (lambda v: v["stages"][0].update(start="stacked"), r"stages\.0\.start .*starts from the base model; remove it"),
        (lambda v: v["stages"][0].update(method="prefix"), r"stages\.0\.method .*'prefix' adds cannot be merged"),
        (
            lambda v: (v["stages"][0].update(method="full"), v["stages"][1].update(start="stacked")),
            r"stages\.1\.start .*'full' of the stage before it leaves no adapter; write  start: merged",
        ),
        (
            lambda v: v["stages"][1].update(start="stacked", quantization="int8"),
            r"stages\.1\.start .*int8 would round that adapter",
        ),
        (lambda v: v["stages"][1].update(loss="mean_squared_error"), r"stages\.1\.loss .*works with numbers"),
        (lambda v: v["stages"][1].update(methd="lora"), r"stages\.1\.methd .*unknown key; did you mean 'method'"),
        (lambda v: v["stages"][1].pop("task"), r"stages\.1\.task .*is required but absent"),
        (lambda v: v.update(seeds=[1, 1]), r"seeds .*names a seed twice"),
        (lambda v: v.update(task="sequence_classification"), r"task .*unknown key"),
        (lambda v: v["stages"][0]["training"].update(epochs=0), r"stages\.0\.training\.epochs .*more than 0"),
    ],
)
def test_pipelines_that_cannot_work_are_refused(
    values: MakeValues, change: Callable[[Values], Any], message: str
) -> None:
    given = values()
    change(given)
    with pytest.raises(RecipeError, match=message):
        build(given)


def test_a_resolved_pipeline_reads_back_equal(values: MakeValues) -> None:
    pipeline = build(values("lora", "full", start="merged", seeds=[3, 4], description="two"))
    assert Pipeline.from_source(parse_yaml(pipeline.to_yaml(), origin="again")) == pipeline


@pytest.mark.parametrize("left", ["run.json", "notes.txt"])
def test_other_folders_are_left_alone(values: MakeValues, tmp_path: Path, left: str) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / left).write_text("{}")
    with pytest.raises(RunError, match=f"holds something else .*{left}"):
        run_pipeline(build(values()), tmp_path / "run", options=QUIET)


def test_an_adapter_that_is_none_is_named(values: MakeValues, tmp_path: Path) -> None:
    given = values(compare=False)
    given["model"]["adapters"] = [str(tmp_path)]
    with pytest.raises(Exception, match="holds no adapter that peft can read; correct"):
        run_pipeline(build(given), tmp_path / "run", options=QUIET)


SCRATCH = {
    "architecture": {"type": "bert", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2},
    "tokenizer": {"type": "wordpiece", "vocab_size": 300},
    "max_length": 32,
}


def from_scratch(values: MakeValues, **changes: Any) -> Values:
    made = values("full", "lora", model=SCRATCH, **changes)
    made["stages"][0]["task"] = "masked_lm"
    return made


@pytest.mark.training
def test_the_first_stage_may_start_from_random_weights(values: MakeValues, tmp_path: Path) -> None:
    run_pipeline(build(from_scratch(values, compare=False)), tmp_path / "run", options=QUIET)
    assert load(tmp_path / "run")(TEXTS)[0]["label"] in ("negative", "positive")
    first, second = (next((tmp_path / "run" / "stages").glob(f"{name}-*")) for name in ("s0", "s1"))
    scratch, start = (load_file(folder / "model.safetensors") for folder in (first / "model", first / "start"))
    name = "embeddings.word_embeddings.weight"
    assert torch.equal(scratch[f"bert.{name}"], next(start[key] for key in start if key.endswith(name)))
    assert RunResult.read(second).recipe["model"]["architecture"] is None


def test_stages_that_need_a_base_are_not_compared_without_it(values: MakeValues) -> None:
    with pytest.raises(RecipeError, match=r"compare.*random weights of model\.architecture; write  compare: false"):
        build(from_scratch(values))
