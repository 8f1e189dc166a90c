"""How fast does peftkit train, and in how much memory, against the obvious ways?

    python benchmarks/speed/run.py sst2_lora --data DATA --pairs 5 --against trainer trainer_padded loop

Contestants take turns, A B A B, each in a process of its own, on the same rows in the same batches from the same first
weights, without dropout, so that their losses can be compared. DATA is a folder with sst2/train.tsv (GLUE's sentences,
text and label without header) and gsm8k/train.jsonl (its test rows do as well). Writes
benchmarks/results/speed/WORK.json: the median of the ratios of neighbouring runs, all runs, the largest difference
between losses, versions and the load of the machine. Nothing is left out, whoever wins.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from works import WORKS

HERE = Path(__file__).parent
RESULTS = HERE.parent / "results" / "speed"
LIBRARIES = ("torch", "transformers", "peft", "trl")


def main() -> None:
    """Time what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", choices=sorted(WORKS))
    parser.add_argument("--data", type=Path, required=True, help="folder with the data sets")
    parser.add_argument("--pairs", type=int, default=5, help="turns of every contestant")
    parser.add_argument("--against", nargs="+", default=["trainer"], metavar="CONTESTANT")
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    names = ["peftkit", *given.against]
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(given.pairs):
            for name in names:
                runs[name].append(timed(given.work, name, Path(folder), given))
                last = runs[name][-1]
                print(f"{turn} {name}: {last['tokens_per_second']:.0f} tokens/s, {last['peak_mb']:.0f} MB", flush=True)
    summary = summarize(given.work, runs, given.threads)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{given.work}.json").write_text(json.dumps(summary, indent=2) + "\n", "utf-8")
    for name, ratio in summary["against"].items():
        print(
            f"{given.work}: {ratio['speed']:.2f}x the tokens/s of {name} "
            f"({ratio['slowest_pair']:.2f} to {ratio['fastest_pair']:.2f}; per CPU second "
            f"{ratio['speed_per_cpu_second']:.2f}x), {ratio['memory']:.2f}x its memory, "
            f"losses differ by at most {ratio['largest_difference_of_losses']:.1e}"
        )


def timed(work: str, contestant: str, folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    """One run in a process of its own."""
    command = [sys.executable, str(HERE / "contestant.py"), work, contestant, str(folder), str(given.data.resolve())]
    environment = {**os.environ, "OMP_NUM_THREADS": str(given.threads), "TOKENIZERS_PARALLELISM": "false"}
    load = os.getloadavg()[0]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if found.returncode:
        raise SystemExit(f"{contestant} failed on {work}:\n{found.stderr[-3000:]}")
    result: dict[str, Any] = json.loads(found.stdout.strip().splitlines()[-1])
    result["tokens_per_second"] = result["tokens"] / result["seconds"]
    return {**result, "load_before": round(load, 2)}


def summarize(work: str, runs: dict[str, list[dict[str, Any]]], threads: int) -> dict[str, Any]:
    """Ratios of neighbouring runs, and the runs themselves."""
    ours = runs["peftkit"]
    against = {}
    for name, theirs in runs.items():
        if name == "peftkit":
            continue
        pairs = list(zip(ours, theirs, strict=True))
        speed = [one["tokens_per_second"] / other["tokens_per_second"] for one, other in pairs]
        differences = [abs(a - b) for one, other in pairs for a, b in zip(one["losses"], other["losses"], strict=True)]
        against[name] = {
            "speed": round(statistics.median(speed), 3),
            "slowest_pair": round(min(speed), 3),
            "fastest_pair": round(max(speed), 3),
            "speed_per_cpu_second": round(
                statistics.median(other["cpu_seconds"] / one["cpu_seconds"] for one, other in pairs), 3
            ),
            "memory": round(statistics.median(one["peak_mb"] / other["peak_mb"] for one, other in pairs), 3),
            "largest_difference_of_losses": max(differences),
        }
    return {
        "work": work,
        "against": against,
        "threads": threads,
        "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "versions": {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}},
        "runs": {
            name: [{key: value for key, value in one.items() if key != "losses"} for one in found]
            for name, found in runs.items()
        },
        "losses": {name: found[0]["losses"] for name, found in runs.items()},
    }


if __name__ == "__main__":
    main()
