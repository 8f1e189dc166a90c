"""A folder with just one of a data set's several configurations.

`datasets.load_dataset(folder)` looks for the files of the card's first configuration whichever one is asked for
(datasets 5.2, LocalDatasetModuleFactory), so a folder where only the asked one was fetched needs a card of its own.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import yaml

from peftkit.artifacts.dataset_files import CARD_FILE, DatasetFiles, read_card
from peftkit.artifacts.entries import entry_name
from peftkit.artifacts.hub import Snapshot
from peftkit.artifacts.places import locked, staged, views_dir, writing


def loadable_folder(snapshot: Snapshot, choice: DatasetFiles) -> Path:
    """A folder that `datasets.load_dataset` can read: the snapshot itself, or links to the files of one config."""
    card = read_card(snapshot.folder)
    configs = card.get("configs") or []
    if len(configs) < 2:
        return snapshot.folder
    config = choice.chosen_config(configs)
    name = entry_name("view", choice.locator, str(config.get("config_name", "default")), snapshot.commit[:12])
    files = [file for file in snapshot.files if file != CARD_FILE]
    target = views_dir() / name
    with locked(name):
        if target.is_dir() and all((target / file).is_file() for file in (CARD_FILE, *files)):
            return target
        with staged(name) as stage, writing():
            for file in files:
                _link((snapshot.folder / file).resolve(), stage / file)
            head = yaml.safe_dump(_only(card, config), sort_keys=False, allow_unicode=True)
            (stage / CARD_FILE).write_text(f"---\n{head}---\n", "utf-8")
            shutil.rmtree(target, ignore_errors=True)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(stage, target)
    return target


def _only(card: dict[str, Any], config: Any) -> dict[str, Any]:
    """What a card says about one configuration: its files, and its columns where they are declared."""
    infos = card.get("dataset_info") or []
    infos = infos if isinstance(infos, list) else [infos]
    name = config.get("config_name", "default")
    wanted = [info for info in infos if isinstance(info, dict) and info.get("config_name", "default") == name]
    return {"configs": [config], **({"dataset_info": wanted} if wanted else {})}


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        target.symlink_to(source)
    except OSError:  # Windows without the right to make links
        shutil.copyfile(source, target)
