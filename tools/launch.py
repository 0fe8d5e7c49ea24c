"""Brings the pipeline up to date, stages that do not depend on each other side by side.

    python -m tools.launch [TARGET ...] --dry-run
    python -m tools.launch [TARGET ...] [--jobs N] [--gpus-per-job F]
    python -m tools.launch [TARGET ...] --address ADDRESS          # on the nodes of a Ray cluster
    python -m tools.launch [train@VARIANT] --sweep KEY=VALUES ... [--seeds N] [--trials N]

Each stage is run by DVC itself (`dvc repro --single-item`), so dvc.lock, the run cache and all
outputs are those of a serial `dvc repro`. A stage that fails keeps back only what depends on it.
Each stage's output is in logs/launch/. docs/cluster.md tells of several machines.
"""

import argparse
import itertools
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from stages.shared import params
from stages.shared.stage import StageError, duration, outputs
from tools import cluster, doctor, local, node, pipeline
from tools.command import count, run
from tools.display import WORDS, Display
from tools.pipeline import Step
from tools.results import Revision

LOGS = Path("logs/launch")
POLL_SECONDS = 0.5


def main() -> None:
    args = parse_arguments()
    params.check()
    for ending in (signal.SIGTERM, signal.SIGHUP):  # as Ctrl-C: clean up
        if signal.getsignal(ending) != signal.SIG_IGN:  # as under `nohup`
            signal.signal(ending, signal.default_int_handler)
    if args.sweep:
        sys.exit(sweep(args))
    source = cluster.pushed_source(args.remote) if args.address and not args.dry_run else None
    steps, outdated = pipeline.plan(args.targets, put=not args.dry_run)
    if not outdated:
        print(f"Up to date: {len(steps)} stages.")
        return
    if args.dry_run:
        print(dry_run_text(outdated))
        return
    for found in doctor.check_disk(Path.cwd()):
        if found.level == "error":  # to be told now, and not after hours of training
            raise StageError(found.text)
    known = list(pipeline.locked())
    try:
        with connected(args) as connection:
            where = ClusterRunner(connection, source) if source else LocalRunner(connection)
            code = Launch(steps, outdated, where).run()
    finally:
        if not set(outdated) <= set(known):
            pipeline.put_in_order(known, list(steps))
    sys.exit(code)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Bring the pipeline up to date in parallel.")
    parser.add_argument("targets", nargs="*", help="as for `dvc repro`; everything if none")
    parser.add_argument("--dry-run", action="store_true", help="only print what would be run")
    parser.add_argument(
        "--jobs",
        type=jobs,
        default="auto",
        help="stages at a time; auto (the default): one per GPU share, or --cpus-per-job cores",
    )
    parser.add_argument(
        "--gpus-per-job",
        type=share,
        default=1.0,
        metavar="F",
        help="1, 2, ... or a fraction of one (default: 1); a training uses one",
    )
    parser.add_argument(
        "--cpus-per-job", type=count, default=2, metavar="N", help="cores per stage (default: 2)"
    )
    parser.add_argument("--address", help="Ray cluster, HOST:PORT or auto (default: this machine)")
    parser.add_argument("--remote", help="the DVC remote of the nodes (default: the default one)")
    parser.add_argument(
        "--sweep",
        action="append",
        metavar="KEY=VALUES",
        help="try values of a key of params.yaml: 1,2,3 or 0.01..1 or 0.01..1:log; may be repeated",
    )
    parser.add_argument(
        "--seeds",
        type=count,
        metavar="N",
        help="of a sweep's trials: 0 to N - 1, not the variant's",
    )
    parser.add_argument(
        "--trials",
        type=count,
        metavar="N",
        help="of a sweep: how many; needed with a range, else all combinations",
    )
    args = parser.parse_args()
    if args.dry_run and args.sweep:
        parser.error("--dry-run cannot go with --sweep")
    if (args.seeds or args.trials) and not args.sweep:
        parser.error("--seeds and --trials need --sweep KEY=VALUES")
    if args.remote and not args.address:
        parser.error("--remote needs --address")
    if args.address == "":
        parser.error("--address must be HOST:PORT or auto. Received: nothing")
    keys = [each.partition("=")[0] for each in args.sweep or []]
    if any(f"{a}.".startswith(f"{b}.") for a, b in itertools.permutations(keys, 2)):
        parser.error(
            "--sweep must name each key once, and none that lies under another. Received: "
            + ", ".join(keys)
        )
    return args


def connected(args: argparse.Namespace) -> Any:
    """A connection to this machine, or to the cluster that was asked for."""
    shares = args.jobs, args.gpus_per_job, args.cpus_per_job
    return cluster.connected(args.address, *shares) if args.address else local.connected(*shares)


def jobs(text: str) -> int | None:
    """A number of jobs, or None for `auto`."""
    return None if text == "auto" else count(text)


def share(text: str) -> float:
    """A share of GPUs as Ray takes it: below 1, or whole."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1 and not (value >= 1 and value.is_integer()):
        raise argparse.ArgumentTypeError(f"must be between 0 and 1, or whole. Received: {text}")
    return value


def dry_run_text(outdated: list[str]) -> str:
    """The stages that may have to run, and what the trainings among them took when they last ran.

    Fewer run if a change makes no difference to what a stage writes, if DVC has seen the same
    inputs before, or if all that is wrong is that another branch's outputs lie there, or that DVC's
    cache has lost what lies there.
    """
    here = Revision()
    records = {f"train@{each.variant}": each.record for each in here.results()}
    lines, seconds, untrained = [], 0.0, 0
    for name in outdated:
        note = ""
        if name in records:
            took = sum(each["seconds"] for each in records[name].get("trainings", []))
            note = duration(took) if took else "not yet run"
            seconds += took
            untrained += not took
        lines.append(f"{name:<40}  {note}".rstrip())
    total = "1 stage may run." if len(outdated) == 1 else f"{len(outdated)} stages may run."
    if seconds:
        total += f" Their trainings took {duration(seconds)} before"
        total += f", except {untrained} not yet run." if untrained else "."
    return "\n".join([*lines, total])


def sweep(args: argparse.Namespace) -> int:
    """Runs the trials of a sweep and prints what came of them; returns the exit status."""
    from tools.sweep import Sweep, parse, report

    source = cluster.pushed_source(args.remote) if args.address else cluster.local_source()
    steps = pipeline.plan(args.targets).steps
    trials = Sweep(dict(map(parse, args.sweep)), steps, args.targets, args.seeds, args.trials)
    with connected(args) as connection:
        code = report(trials.run(connection, source))
    return 128 + signal.SIGINT if trials.interrupted else code


class LocalRunner:
    """Stages run in this folder."""

    def __init__(self, connection: local.Local) -> None:
        self.connection = connection

    def start(self, step: Step, log: Path) -> Any:
        outs = [*step.outs, *step.small_outs]
        return self.connection.run_here(
            {
                "stage": step.name,
                "environment": {},
                "root": str(Path.cwd()),
                "outs": outs,
                "log": str(log),
            }
        )

    def is_outdated(self, step: Step) -> bool:
        """DVC looks by itself when it is started."""
        return True

    def lines(self, logs: dict[str, Path]) -> dict[str, str]:
        """The last line of each running stage's output."""
        return {name: node.last_line(log) for name, log in logs.items()}

    def collect(self, step: Step, outcome: node.Outcome, log: Path) -> None:
        """All is in its place already."""


class ClusterRunner:
    """Stages run in clones on a cluster's nodes; results are brought here through git and DVC."""

    def __init__(self, connection: cluster.Connection, source: cluster.Source) -> None:
        self.connection, self.source = connection, source

    def start(self, step: Step, log: Path) -> Any:
        entries = pipeline.locked()
        job: node.NodeJob = {
            "stage": step.name,
            "environment": {},
            "outs": [*step.outs, *step.small_outs],
            "small_outs": step.small_outs,
            "inputs": step.inputs,
            "files": node.contents(Path(), step.small_inputs),
            "entries": {name: entries[name] for name in step.upstream if name in entries},
            **self.source.fields(),
        }
        return self.connection.run_on_node(job)

    def is_outdated(self, step: Step) -> bool:
        """Whether it is still so after what ran before it: DVC sees whether its inputs changed."""
        return step.name in pipeline.plan([step.name]).outdated

    def lines(self, logs: dict[str, Path]) -> dict[str, str]:
        """The last line of each running stage's output, as its node tells it."""
        told = self.connection.lines()
        return {name: told.get(name, "") for name in logs}

    def collect(self, step: Step, outcome: node.Outcome, log: Path) -> None:
        """Puts a node's results where `dvc repro` looks for them."""
        log.write_bytes(outcome["log"])
        if outcome["code"]:
            return
        paths = [Path(path) for path in step.small_outs]
        with outputs(*paths) as partials:
            for out, partial in zip(paths, partials, strict=True):
                for path, content in outcome["files"].items():
                    if Path(path).is_relative_to(out):
                        file = partial / Path(path).relative_to(out)
                        file.parent.mkdir(parents=True, exist_ok=True)
                        file.write_bytes(content)
        pipeline.record({step.name: outcome["entry"]})
        remote = ["--remote", self.source.remote] if self.source.remote else []
        with open(log, "ab") as appended:
            outcome["code"] = node.dvc(Path(), appended, "pull", *remote, step.name)


class Launch:
    """Starts each stage as soon as all that it depends on is done.

    Args:
        steps: all stages, in DVC's order.
        outdated: names of those that may have to run.
        where: runs a stage, here or elsewhere.
    """

    def __init__(
        self, steps: dict[str, Step], outdated: list[str], where: LocalRunner | ClusterRunner
    ) -> None:
        self.steps, self.where, self.jobs = steps, where, where.connection.jobs
        self.waiting = list(outdated)
        self.running: dict[Any, str] = {}
        self.state: dict[str, str] = {}  # ran, unchanged, failed or skipped
        self.failed: dict[str, str] = {}  # why, or where that stands
        self.begin = time.monotonic()
        self.display = Display(len(outdated))

    def run(self) -> int:
        """Until nothing is left that can be run; returns the exit status."""
        try:
            with self.display:
                while True:
                    self.start_ready()
                    if not self.running:
                        return self.summary()
                    for each in self.where.connection.finished(list(self.running), POLL_SECONDS):
                        self.conclude(each)
                    logs = {name: self.log(name) for name in self.running.values()}
                    self.display.update(self.where.lines(logs))
        except KeyboardInterrupt:
            names = ", ".join(self.running.values()) or "nothing"
            print(f"Interrupted; ending {names}. A training resumes later.", file=sys.stderr)
            return 128 + signal.SIGINT

    def start_ready(self) -> None:
        """Starts what can be, and gives up what depends on a failure."""
        for name in list(self.waiting):
            upstream = self.steps[name].upstream
            if any(self.state.get(each) in ("failed", "skipped") for each in upstream):
                self.end(name, "skipped")
            elif self.jobs is not None and len(self.running) >= self.jobs:
                continue
            elif not {*self.waiting, *self.running.values()}.intersection(upstream):
                self.start(name)

    def start(self, name: str) -> None:
        step = self.steps[name]
        try:
            if self.state.keys() & set(step.upstream) and not self.where.is_outdated(step):
                self.end(name, "unchanged")
                return
            LOGS.mkdir(parents=True, exist_ok=True)
            self.log(name).unlink(missing_ok=True)
            reference = self.where.start(step, self.log(name))
        except (StageError, OSError) as error:  # others may go on
            self.end(name, "failed", str(error))
            return
        self.waiting.remove(name)
        self.running[reference] = name
        self.display.started(name)

    def conclude(self, reference: Any) -> None:
        """Takes a stage's outcome."""
        name = self.running.pop(reference)
        outcome: node.Outcome = {"code": 1}
        try:
            outcome = self.where.connection.outcome(reference)
            self.where.collect(self.steps[name], outcome, self.log(name))
        except (StageError, OSError) as error:  # others may go on
            outcome |= {"code": 1, "error": str(error)}
        state = "failed" if outcome["code"] else "ran" if outcome["ran"] else "unchanged"
        self.end(name, state, outcome.get("error", ""))

    def end(self, name: str, state: str, error: str = "") -> None:
        if name in self.waiting:
            self.waiting.remove(name)
        self.state[name] = state
        if state == "failed":
            log = self.log(name)
            if error and log.exists():
                self.failed[name] = f"{log}: {error}"
            else:
                self.failed[name] = error or str(log)
        self.display.ended(name, state, self.failed.get(name, ""))

    def log(self, name: str) -> Path:
        return LOGS / f"{name}.log"

    def summary(self) -> int:
        """Prints what came of it; returns the exit status."""
        numbers = Counter(self.state.values())
        counts = [f"{numbers[state]} {state}" for state in WORDS if numbers[state]]
        took = duration(time.monotonic() - self.begin)
        print(f"launch: {len(self.state)} stages in {took}: {', '.join(counts)}.")
        for name, why in self.failed.items():
            print(f"  {name} failed: {why}", file=sys.stderr)
        return 1 if self.failed else 0


if __name__ == "__main__":
    run(main)
