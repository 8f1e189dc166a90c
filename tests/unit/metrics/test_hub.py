from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import evaluate
import pytest
from pydantic import ValidationError

from peftkit.errors import ArtifactError, CapabilityError, DataError, RecipeError, UnknownComponentError
from peftkit.metrics import hub, metrics
from peftkit.metrics.bootstrap import bootstrap_intervals

SHARED_WORDS = '''
import datasets
import evaluate

class SharedWords(evaluate.Metric):
    """Words that two texts share."""

    def _info(self):
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description="", citation="", inputs_description="",
            features=datasets.Features(predictions=text, references=text),
        )

    def _compute(self, predictions, references, case=False):
        fold = str if case else str.lower
        shared = [len({*fold(p).split()} & {*fold(r).split()}) for p, r in zip(predictions, references)]
        return {"most": max(shared), "shared_words": sum(shared) / len(shared), "each": shared}
'''


class _Scripts(BaseHTTPRequestHandler):
    """Metric scripts of a hub, by the path that evaluate asks for."""

    files: dict[str, bytes]
    asked: list[str]

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        self.asked.append(self.path)
        body = self.files.get(self.path)
        self.send_response(404 if body is None else 200)
        self.send_header("Content-Length", str(len(body or b"")))
        self.send_header("ETag", '"1"')
        self.end_headers()
        if with_body and body:
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@pytest.fixture
def asked() -> list[str]:
    """Paths that were requested from the hub."""
    return []


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, asked: list[str]) -> Iterator[dict[str, bytes]]:
    """Files of a reachable hub on the loopback interface, by path; no metric is loaded or cached yet."""
    hub._load.cache_clear()
    files: dict[str, bytes] = {}
    handler = type("Scripts", (_Scripts,), {"files": files, "asked": asked})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(evaluate.config, "HUB_EVALUATE_URL", address + "/{path}/{name}")
    monkeypatch.setattr(evaluate.config, "HF_UPDATE_DOWNLOAD_COUNTS", False)
    monkeypatch.setattr(evaluate.config, "DOWNLOADED_EVALUATE_PATH", str(tmp_path / "downloads"))
    monkeypatch.setattr("peftkit.artifacts.hub_reachable", lambda: True)
    monkeypatch.chdir(tmp_path)
    yield files
    server.shutdown()
    server.server_close()
    hub._load.cache_clear()


TEXTS = (["the red Cat", "a dog"], ["the cat", "one Dog barks"])


def test_metric_comes_from_the_hub(scripts: dict[str, bytes]) -> None:
    scripts["/evaluate-metric/shared_words/shared_words.py"] = SHARED_WORDS.encode()
    metric = metrics.build("hub:shared_words")
    assert metric.score_name == "shared_words"
    # Two shared words in the first pair, one in the second; the list with one number per row is no score.
    assert list(metric.compute(*TEXTS).items()) == [("shared_words", 1.5), ("most", 2.0)]
    assert bootstrap_intervals(metric, *TEXTS) == {}


def test_options_and_the_deciding_score_come_from_the_recipe(scripts: dict[str, bytes]) -> None:
    scripts["/evaluate-metric/shared_words/shared_words.py"] = SHARED_WORDS.encode()
    spec = {"name": "hub", "metric": "shared_words", "score": "most", "options": {"case": True}}
    metric = metrics.build({**spec, "lower_is_better": True})
    assert list(metric.compute(*TEXTS).items()) == [("most", 1.0), ("shared_words", 0.5)]
    assert not metric.greater_is_better
    assert metrics.build(metric.spec()) == metric
    with pytest.raises(RecipeError, match="has no result 'least' \\(it has: most, shared_words\\)"):
        metrics.build({**spec, "score": "least"}).compute(*TEXTS)


def test_unknown_metric_of_a_reachable_hub(scripts: dict[str, bytes]) -> None:
    with pytest.raises(ArtifactError, match="the hub has no metric 'no_such' in evaluate-metric; see https://"):
        metrics.build("hub:no_such").compute([0], [0])


def test_metric_with_a_missing_package_names_it(scripts: dict[str, bytes]) -> None:
    scripts["/evaluate-metric/needy/needy.py"] = b"import a_package_that_nobody_has\n" + SHARED_WORDS.encode()
    with pytest.raises(CapabilityError, match=r"'hub:needy' cannot be used: .*a_package_that_nobody_has"):
        metrics.build("hub:needy").compute(*TEXTS)


def test_input_that_the_metric_refuses_is_a_data_error(scripts: dict[str, bytes]) -> None:
    scripts["/evaluate-metric/shared_words/shared_words.py"] = SHARED_WORDS.encode()
    with pytest.raises(DataError, match="'hub:shared_words' refuses its input"):
        metrics.build("hub:shared_words").compute([1, 2], [1, 2])


def test_code_of_the_working_directory_is_never_run(scripts: dict[str, bytes], tmp_path: Path) -> None:
    trap = tmp_path / "evaluate-metric" / "rouge" / "rouge.py"
    trap.parent.mkdir(parents=True)
    trap.write_text("raise RuntimeError('ran code of the working directory')\n")
    with pytest.raises(CapabilityError, match=r"'hub:rouge' is hidden by the local folder '.*rouge'; rename"):
        metrics.build("hub:rouge").compute([0], [0])


def test_unreachable_hub_names_the_metric_and_what_works_offline(
    scripts: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("peftkit.artifacts.hub_reachable", lambda: False)
    message = "'hub:rouge' comes from the hub, which cannot be reached.* without a network there are: accuracy, bleu, "
    with pytest.raises(CapabilityError, match=message):
        metrics.build("hub:rouge").compute([0], [0])


def test_metric_that_was_loaded_before_works_without_the_hub(
    scripts: dict[str, bytes], asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    scripts["/evaluate-metric/shared_words/shared_words.py"] = SHARED_WORDS.encode()
    metric = metrics.build("hub:shared_words")
    online = metric.compute(*TEXTS)
    hub._load.cache_clear()
    monkeypatch.setattr("peftkit.artifacts.hub_reachable", lambda: False)
    asked.clear()
    assert metric.compute(*TEXTS) == online
    assert asked == []


def test_only_result_counts_whatever_its_name(scripts: dict[str, bytes]) -> None:
    only = SHARED_WORDS.replace('"most": max(shared), "shared_words"', '"mean"')
    scripts["/evaluate-metric/overlap/overlap.py"] = only.encode()
    assert metrics.build("hub:overlap").compute(*TEXTS) == {"overlap": 1.5}


@pytest.mark.parametrize("spec", ["hub:somebody/metric", "hub:../metric", "hub:", "hub"])
def test_only_the_librarys_own_metrics_can_be_named(spec: str) -> None:
    with pytest.raises(ValidationError, match=r"metric\n  (String should match pattern|Field required)"):
        metrics.build(spec)


def test_shorthand_is_spelled_out() -> None:
    assert metrics.build("hub:rouge").spec() == {
        "name": "hub",
        "metric": "rouge",
        "options": {},
        "score": None,
        "lower_is_better": False,
    }
    with pytest.raises(
        UnknownComponentError, match="'accuracy' takes nothing after a colon, but 'accuracy:x' gives 'x'"
    ):
        metrics.build("accuracy:x")
    with pytest.raises(UnknownComponentError, match="unknown metric 'hubb'; did you mean 'hub'"):
        metrics.build("hubb:rouge")
