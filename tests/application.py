"""An application in a process of its own: it imports peftkit, loads run folders and answers, and never trains."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

_CODE = """
import json, sys, traceback
import peftkit
answers, sys.stdout = sys.stdout, sys.stderr
for line in sys.stdin:
    folder, inputs = json.loads(line)
    try:
        said = {"said": peftkit.load(folder)(inputs)}
    except Exception:
        said = {"problem": traceback.format_exc()}
    print(json.dumps(said), file=answers, flush=True)
"""


class Application:
    """One process that serves many tests, for an import of the libraries takes seconds."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", _CODE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def __call__(self, folder: Path, inputs: Any) -> Any:
        """What it answers with the run of a folder."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([str(folder), inputs]) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        assert "problem" not in answer, answer["problem"]
        return answer["said"]

    def close(self) -> None:
        """End it."""
        self._process.communicate(timeout=60)
