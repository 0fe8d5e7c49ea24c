"""What the pipeline takes beside training: a no-op, each stage's start, and each stage's work.

    python -m benchmarks.overhead [--rounds 5]

Needs a workspace in which the demo's stages are up to date. Stages run with outputs in a
temporary folder; the commands are those of dvc.yaml. The no-op is measured with every variant of
params.yaml, in a clone in which stand-ins have written all outputs.
"""

import argparse
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from dvc.repo import Repo

from benchmarks.alternation import report
from stages.shared import params
from tools.command import count, run

STAGES = ("download", "stats", "lineup", "train", "evaluate", "plot")
DVC = [sys.executable, "-m", "dvc"]
STANDIN = """
import os, pathlib, sys, time
folders = {"--train", "--test", "--weights", "--figures", "--out"}
files = {"--stats", "--curves", "--record", "--examples", "--metrics", "--details"}
files |= {"--predictions", "--all-curves"}
if sys.argv[2] in ("stages.train", "stages.evaluate"):
    time.sleep(float(os.environ.get("STANDIN_SECONDS", 0)))
for flag, value in zip(sys.argv, sys.argv[1:]):
    path = pathlib.Path(value)
    if flag not in folders | files or path.exists():
        continue  # an input: DVC removes outputs before it runs a stage
    path.parent.mkdir(parents=True, exist_ok=True)
    written = [path]
    if flag in folders:
        path.mkdir()
        written = [path / f"{name}.json" for name in os.environ["STANDIN_DATASETS"].split()]
    for each in written:
        each.write_text(str(time.time()))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what is not training.")
    parser.add_argument("--rounds", type=count, default=5, help="runs of each command")
    args = parser.parse_args()

    commands = {"start of dvc": [*DVC, "--version"]}
    for stage in STAGES:
        commands[f"start of {stage}"] = [sys.executable, "-m", f"stages.{stage}", "--help"]
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(args.rounds):
        for name, command in commands.items():
            seconds[name].append(timed(command))
    names = ["download@shapes", "stats@shapes", "lineup", "evaluate@shapes-lenet", "plot@shapes"]
    with tempfile.TemporaryDirectory() as folder:
        clone = all_up_to_date(Path(folder) / "clone")
        no_op = "no-op dvc repro with all variants"
        seconds[no_op] = [timed([*DVC, "repro"], clone) for _ in range(args.rounds)]
        for name in names:
            command = elsewhere(name, Path(folder))
            seconds[name] = [timed(command) for _ in range(args.rounds)]
    medians = {name: round(statistics.median(each), 3) for name, each in seconds.items()}
    report("overhead", {"rounds": args.rounds, "median_seconds": medians})


def timed(command: list[str], folder: Path | None = None) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, cwd=folder)
    return time.perf_counter() - start


def all_up_to_date(folder: Path) -> Path:
    """A clone of this workspace's last commit with some file for every output."""
    subprocess.run(["git", "clone", "--quiet", Path.cwd(), folder], check=True)
    environment = os.environ | stand_in(folder.parent / "bin")
    subprocess.run([*DVC, "repro"], check=True, capture_output=True, cwd=folder, env=environment)
    return folder


def stand_in(folder: Path, seconds: float = 0) -> dict[str, str]:
    """Makes a folder with a `python` that runs STANDIN, whatever it is asked to run.

    Args:
        seconds: what a training or an evaluation takes.

    Returns:
        The environment in which it is found.
    """
    folder.mkdir()
    (folder / "program.py").write_text(STANDIN)
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -IS "{folder}/program.py" "$@"\n')
    python.chmod(0o755)
    return {
        "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
        "STANDIN_DATASETS": " ".join(params.load().datasets),
        "STANDIN_SECONDS": str(seconds),
    }


def elsewhere(name: str, folder: Path) -> list[str]:
    """A stage's command as DVC would run it, but with its outputs in another folder."""
    with Repo() as repository:
        stage = repository.stage.load_one(name=name)
        outs = {os.path.relpath(out.fs_path) for out in stage.outs}
        words = shlex.split(str(stage.cmd))[1:]
    for position, word in enumerate(words):
        if word in outs:
            place = folder / name.split("@")[0] / word
            place.parent.mkdir(parents=True, exist_ok=True)
            words[position] = str(place)
    return [sys.executable, *words]


if __name__ == "__main__":
    run(main)
