"""What the pipeline takes beside training: a no-op, each stage's start, and each stage's work.

    python -m benchmarks.overhead [--dataset cifar10] [--rounds 5]

Needs a workspace in which the dataset's stages are up to date. Stages run with outputs in a
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

STAGES = ("download", "stats", "lineup", "train", "evaluate", "plot")
OUTPUTS = {"--train", "--test", "--stats", "--out", "--metrics", "--details", "--predictions"}
OUTPUTS |= {"--examples", "--figures", "--all-curves"}
DVC = [sys.executable, "-m", "dvc"]
STANDIN = """
import pathlib, sys
folders = {"--train", "--test", "--weights", "--figures", "--out"}
files = {"--stats", "--curves", "--record", "--examples", "--metrics", "--details"}
files |= {"--predictions", "--all-curves"}
for flag, value in zip(sys.argv, sys.argv[1:]):
    path = pathlib.Path(value)
    if flag in folders:
        path.mkdir(parents=True, exist_ok=True)
        for name in ("cifar10", "cifar100", "shapes"):
            (path / f"{name}.json").write_text(value)
    elif flag in files and not path.is_dir():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(value)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what is not training.")
    parser.add_argument("--dataset", default="shapes", help="whose stages to run")
    parser.add_argument("--variant", default="shapes-lenet", help="which variant to evaluate")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each command")
    args = parser.parse_args()

    commands = {"start of dvc": [*DVC, "--version"]}
    for stage in STAGES:
        commands[f"start of {stage}"] = [sys.executable, "-m", f"stages.{stage}", "--help"]
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(args.rounds):
        for name, command in commands.items():
            seconds[name].append(timed(command))
    names = [f"download@{args.dataset}", f"stats@{args.dataset}", "lineup"]
    names += [f"evaluate@{args.variant}", f"plot@{args.dataset}"]
    with tempfile.TemporaryDirectory() as folder:
        clone = all_up_to_date(Path(folder) / "clone")
        no_op = "no-op dvc repro with all variants"
        seconds[no_op] = [timed([*DVC, "repro"], clone) for _ in range(args.rounds)]
        for name in names:
            command = elsewhere(stage_command(name), name.split("@")[0], Path(folder))
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
    standin = folder.parent / "bin" / "python"
    standin.parent.mkdir()
    standin.write_text(f"#!{sys.executable} -IS\n{STANDIN}")
    standin.chmod(0o755)
    path = f"{standin.parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(
        [*DVC, "repro"],
        check=True,
        capture_output=True,
        cwd=folder,
        env=os.environ | {"PATH": path},
    )
    return folder


def stage_command(name: str) -> list[str]:
    """A stage's command, as DVC would run it."""
    with Repo() as repository:
        command = repository.stage.load_one(name=name).cmd
    assert isinstance(command, str)
    return [sys.executable, *shlex.split(command)[1:]]


def elsewhere(command: list[str], stage: str, folder: Path) -> list[str]:
    """The command with its outputs in another folder."""
    inputs = {"plot": {"--metrics", "--details", "--examples"}}.get(stage, set())
    for position, word in enumerate(command):
        is_output = word in OUTPUTS - inputs
        if is_output:
            place = folder / stage / command[position + 1]
            place.parent.mkdir(parents=True, exist_ok=True)
            command[position + 1] = str(place)
    return command


if __name__ == "__main__":
    main()
