"""Stages side by side: `tools.launch` against `dvc repro`, each a whole command from start to end.

    python -m benchmarks.launch [--seconds 10] [--rounds 1] [--real]

Eight stages, the trainings and evaluations of the shapes variants, in a clone of the last commit.
By default stand-ins that take some seconds and no processor, on four slots: what is measured is
what DVC and the launcher add to the ideal, a quarter of the serial time. With `--real` the
trainings themselves, two at a time: whether sharing the cores costs anything.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.alternation import report
from benchmarks.overhead import DVC, stand_in, timed
from tools.command import count, run

SLOTS, REAL_SLOTS = 4, 2
TARGETS = [f"evaluate@shapes-{name}" for name in ("lenet", "simple", "convnet", "deep-bn")]


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare tools.launch with dvc repro.")
    parser.add_argument("--seconds", type=float, default=10, help="what a stand-in takes")
    parser.add_argument("--rounds", type=count, default=1, help="runs of each way")
    parser.add_argument("--real", action="store_true", help="train, in place of the stand-ins")
    args = parser.parse_args()

    slots = REAL_SLOTS if args.real else SLOTS
    launch = [sys.executable, "-m", "tools.launch", "--jobs", str(slots), *TARGETS]
    ways = {"serial": [*DVC, "repro", *TARGETS], "parallel": launch}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "clone"
        subprocess.run(["git", "clone", "--quiet", Path.cwd(), clone], check=True)
        if not args.real:
            os.environ |= stand_in(Path(folder) / "bin", args.seconds)
        subprocess.run(ways["serial"], check=True, cwd=clone, capture_output=True)
        for number in range(args.rounds):
            for way, command in ways.items():
                make_outdated(clone / "params.yaml", f"{number}{len(way)}")
                seconds[way].append(timed(command, clone))
    ratios = [b / a for a, b in zip(seconds["serial"], seconds["parallel"], strict=True)]
    ideal = 1.0 if args.real else 1 / slots
    report(
        "launch_real" if args.real else "launch",
        {
            "slots": slots,
            "seconds": {way: [round(each, 1) for each in found] for way, found in seconds.items()},
            "parallel_to_serial": [round(ratio, 3) for ratio in ratios],
            "times_ideal": [round(ratio / ideal, 3) for ratio in ratios],
        },
    )


def make_outdated(path: Path, digits: str) -> None:
    """Changes the last digits of the demo recipes' learning rates: all their variants are stale."""
    text = path.read_text()
    head, demo = text.split("\n  demo:", 1)
    changed = re.sub(r"learning_rate: 0\.001\d*", f"learning_rate: 0.00100{digits}", demo)
    path.write_text(f"{head}\n  demo:{changed}")


if __name__ == "__main__":
    run(main)
