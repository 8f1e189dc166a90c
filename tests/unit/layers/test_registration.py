"""Plain peft code loads our folders after `import peftkit`, whatever is imported first, and says so without it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from peftkit.layers import registration
from peftkit.layers.bias import BitFitConfig, BitFitModel
from peftkit.layers.bottleneck import BottleneckConfig

# What each script does after its imports: plain peft code, from base model and adapter folders to logits.
LOAD = """
import json, sys, warnings
import torch
from peft import PeftConfig, PeftModel
from transformers import AutoModelForSequenceClassification
base, *folders = sys.argv[1:]
found = []
for folder in folders:
    torch.manual_seed(9)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=2)
    model = PeftModel.from_pretrained(model, folder).eval()
    assert type(PeftConfig.from_pretrained(folder)) is type(model.peft_config["default"])
    with torch.inference_mode():
        found.append(model(input_ids=torch.tensor([[2, 7, 8, 9, 3]])).logits.tolist())
print("LOGITS" + json.dumps(found))
"""
WATCHERS = "[f for f in sys.meta_path if type(f).__name__ == '_PeftWatcher']"
ORDERS = {
    "peftkit, looking for peft, peft in eight threads at once": f"""
import importlib, importlib.util, sys, threading
import peftkit
assert importlib.util.find_spec("peft").origin.endswith("__init__.py")  # looking is no import
assert "torch" not in sys.modules and len({WATCHERS}) == 1
start, missed = threading.Barrier(8), []
def load():
    start.wait()
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING as table
    if "BOTTLENECK: IMPORT PEFTKIT FIRST" not in table or "BITFIT: IMPORT PEFTKIT FIRST" not in table:
        missed.append(threading.current_thread().name)
threads = [threading.Thread(target=load) for _ in range(8)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
assert not missed, missed
import peft
assert type(peft.__loader__).__name__ == type(peft.__spec__.loader).__name__ == "SourceFileLoader"
assert not {WATCHERS}
importlib.reload(peft)
importlib.reload(peftkit)
assert not {WATCHERS}
""",
    "peft, peftkit": "import peft\nimport peftkit\n",
    "a tuner itself": "from peftkit.layers.bottleneck.config import BottleneckConfig\n",
}


@pytest.fixture
def folders(
    classifier: Callable[..., Any], randomized: Callable[..., Any], tmp_path: Path
) -> tuple[list[str], list[list[list[float]]]]:
    """A folder of each tuner on the tiny BERT, and the logits they have to give."""
    from peft import get_peft_model

    expected = []
    configs = {"bottleneck": BottleneckConfig(style="parallel", width=3), "bitfit": BitFitConfig()}
    for name, config in configs.items():
        config.task_type = "SEQ_CLS"
        model = randomized(get_peft_model(classifier("bert"), config)).eval()
        model.save_pretrained(tmp_path / name)
        with torch.inference_mode():
            expected.append(model(input_ids=torch.tensor([[2, 7, 8, 9, 3]])).logits.tolist())
    return [str(tmp_path / name) for name in configs], expected


def execute(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, *arguments], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("order", ORDERS)
def test_plain_peft_loads_our_folders(
    folders: tuple[list[str], list[list[list[float]]]], tiny_bert: Path, order: str
) -> None:
    paths, expected = folders
    done = execute(ORDERS[order] + LOAD, str(tiny_bert), *paths)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.partition("LOGITS")[2]) == expected


def test_failed_import_of_peft_is_waited_for_again(tmp_path: Path) -> None:
    (tmp_path / "peft.py").write_text("raise ImportError('half of an update')")
    script = f"""
import importlib, sys
import peftkit
sys.path.insert(0, sys.argv[1])
try:
    import peft
except ImportError as problem:
    print(problem)
importlib.reload(peftkit)
print(len({WATCHERS}))
"""
    assert execute(script, str(tmp_path)).stdout.splitlines() == ["half of an update", "1"]


def test_without_peftkit_the_error_says_what_to_import(
    folders: tuple[list[str], list[list[list[float]]]], tiny_bert: Path
) -> None:
    paths, _ = folders
    script = """
import sys
from peft import PeftConfig
for folder in sys.argv[2:]:
    try:
        PeftConfig.from_pretrained(folder)
    except KeyError as problem:
        print(repr(problem))
assert "peftkit" not in sys.modules
"""
    done = execute(script, str(tiny_bert), *paths)
    assert done.stdout.splitlines() == [
        "KeyError('BOTTLENECK: IMPORT PEFTKIT FIRST')",
        "KeyError('BITFIT: IMPORT PEFTKIT FIRST')",
    ], done.stderr


def test_tuner_registered_again_takes_the_place_of_its_former_self() -> None:
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING
    from peft.utils import PeftType

    class Again(BitFitConfig):
        pass

    members = len(PeftType)
    try:
        registration.register_tuner(name="bitfit", config=Again, model=BitFitModel)
        assert PEFT_TYPE_TO_CONFIG_MAPPING["BITFIT: IMPORT PEFTKIT FIRST"] is Again
        assert len(PeftType) == members
        assert list(PEFT_TYPE_TO_PREFIX_MAPPING.values()).count("bitfit_") == 1
    finally:
        registration.register_tuner(name="bitfit", config=BitFitConfig, model=BitFitModel)


def test_peft_that_does_not_fit_stays_usable_and_is_warned_about(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registration, "TUNERS", ("peftkit.layers.no_such_tuner",))
    with pytest.warns(RuntimeWarning, match=r"cannot register its adapters with peft 0\.\d+.*no_such_tuner"):
        registration.register_with_peft()
    assert not [finder for finder in sys.meta_path if type(finder).__name__ == "_PeftWatcher"]
