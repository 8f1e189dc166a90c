"""What a pipeline has to run: every stage on every start that it needs, each known by a digest of all it depends on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from peftkit.data.fingerprint import fingerprint
from peftkit.pipeline import Pipeline, Stage
from peftkit.recipe import ModelSpec, Recipe

STAGES_DIR = "stages"
START_DIR = "start"
"""In the folder of a stage: the model that the next one starts from, with the adapter merged."""
ALL = "all_stages"


@dataclass(frozen=True)
class Node:
    """One stage on one start.

    Args:
        parent: the stage that it starts from; None: the base model.
        key: digest of everything that the outcome depends on: equal key, equal outcome.
        folder: of the run.
    """

    stage: Stage
    seed: int
    parent: Node | None
    key: str
    folder: Path

    def chain(self) -> Iterator[Node]:
        """The stages from the base model to this one."""
        if self.parent is not None:
            yield from self.parent.chain()
        yield self

    def recipe(self, pipeline: Pipeline) -> Recipe:
        """What is run."""
        return pipeline.recipe(self.stage, model=self._model(pipeline), seed=self.seed)

    def _model(self, pipeline: Pipeline) -> ModelSpec:
        if self.parent is None:
            return pipeline.model
        if self.stage.start == "stacked":
            before = self.parent._model(pipeline)
            return before.model_copy(update={"adapters": (*before.adapters, str(self.parent.folder / "adapter"))})
        return pipeline.model.tuned(self.parent.folder / START_DIR)


def targets(pipeline: Pipeline, run_dir: Path) -> dict[str, dict[int, Node]]:
    """The last stage after every chain that is run, by label and seed: all stages first."""
    contents = {stage.name: _content(stage) for stage in pipeline.stages}
    return {
        label: {seed: _node(pipeline, chain, contents=contents, seed=seed, run_dir=run_dir) for seed in pipeline.seeds}
        for label, chain in _chains(pipeline).items()
    }


def _chains(pipeline: Pipeline) -> dict[str, Sequence[Stage]]:
    *before, target = pipeline.stages
    chains: dict[str, Sequence[Stage]] = {ALL: pipeline.stages}
    if pipeline.compare:
        if len(before) > 1:
            for left_out in before:
                chains[f"without_{left_out.name}"] = [stage for stage in pipeline.stages if stage is not left_out]
        chains[f"only_{target.name}"] = [target]
    return chains


def _node(pipeline: Pipeline, chain: Sequence[Stage], *, contents: Mapping[str, str], seed: int, run_dir: Path) -> Node:
    node: Node | None = None
    for stage in chain:
        start = node.key if node else pipeline.model.model_dump(mode="json")
        how = stage.start if node else None
        digest = hashlib.sha256(json.dumps([start, how, contents[stage.name], seed], sort_keys=True).encode())
        key = digest.hexdigest()
        node = Node(stage, seed, node, key, run_dir / STAGES_DIR / f"{stage.name}-{key[:12]}")
    assert node is not None  # a pipeline has stages
    return node


def _content(stage: Stage) -> str:
    """Digest of what a stage says and of its rows."""
    said = stage.model_dump(mode="json", exclude={"start"})
    rows = {split: fingerprint(rows) for split, rows in stage.data.load().splits.items()}
    return hashlib.sha256(json.dumps([said, rows], sort_keys=True).encode()).hexdigest()
