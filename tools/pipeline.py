"""What of the pipeline is stale, in which order DVC runs it, and what dvc.lock says of it."""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tenacity import Retrying, retry_if_exception_type, stop_after_attempt

from stages.shared.stage import StageError
from tools.command import run

LOCK = Path("dvc.lock")
ATTEMPTS = 5


@dataclass(frozen=True)
class Step:
    """One stage of the pipeline.

    Attributes:
        name: as DVC calls it, such as `train@cifar10-lenet`.
        upstream: the stages that it depends on directly.
        outs, small_outs: paths that it writes; DVC keeps the former, git the latter.
        inputs, small_inputs: the same of what it reads of other stages' outputs.
    """

    name: str
    upstream: list[str]
    outs: list[str]
    small_outs: list[str]
    inputs: list[str]
    small_inputs: list[str]


class Plan(NamedTuple):
    """What `dvc repro` looks at.

    Attributes:
        steps: the stages by name, in DVC's order.
        outdated: the names of those that may have to run, in the same order: what `dvc status`
            calls changed, and everything downstream.
    """

    steps: dict[str, Step]
    outdated: list[str]


def plan(targets: list[str], put: bool = False) -> Plan:
    """What `dvc repro TARGETS` looks at, and what of it is out of date.

    Args:
        targets: as for `dvc repro`.
        put: first puts the outputs of dvc.lock where others lie, such as another branch's, and
            those that lie there into DVC's cache, if it lost them. DVC may run a stage again for
            that alone.

    A process of its own looks: what DVC notes of who reads what may outlive a process that was kept
    from taking the note back, and a launch goes on for hours.

    Raises:
        StageError: if there is no such target, dvc.yaml is not valid, or another DVC is at work.
    """
    options = ["--put"] if put else []
    command = [sys.executable, "-m", "tools.pipeline", *options, "--", *targets]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise StageError(done.stderr.strip().removeprefix("error: "))
    found = json.loads(done.stdout.splitlines()[-1])
    if found["put"]:
        print(f"Put in place from DVC's cache: {', '.join(found['put'])}.")
    if found["saved"]:
        outs = f"the outputs of {', '.join(found['saved'])}"
        print(f"Put into DVC's cache, which had lost them: {outs}. `dvc push` shares them.")
    return Plan({each["name"]: Step(**each) for each in found["steps"]}, found["outdated"])


def main() -> None:
    from dvc.repo import lock_repo
    from dvc.repo.reproduce import collect_stages, get_active_graph, plan_repro

    parser = argparse.ArgumentParser(description="Print which stages are out of date, as JSON.")
    parser.add_argument("targets", nargs="*", help="as for `dvc repro`")
    parser.add_argument("--put", action="store_true", help="first put outputs in place")
    args = parser.parse_args()
    with opened() as repo:
        wanted = collect_stages(repo, args.targets) if args.targets else list(repo.index.stages)
        graph = get_active_graph(repo.index.graph)
        order = plan_repro(graph, wanted)
        put, saved = [], []
        with lock_repo(repo):  # no stage begins meanwhile
            changes = {stage: _changes(stage) for stage in order}
            if args.put:
                put = _put_in_place(repo, changes)
                saved = _save(changes)
        outdated = {stage for stage in order if changes[stage]}
        for stage in order:
            if outdated.intersection(graph.successors(stage)):
                outdated.add(stage)
        steps = [asdict(_step(stage, list(graph.successors(stage)))) for stage in order]
        names = [stage.addressing for stage in order if stage in outdated]
    print(json.dumps({"steps": steps, "outdated": names, "put": put, "saved": saved}))


def _put_in_place(repo: Any, changes: dict[Any, list[Any]]) -> list[str]:
    """Puts in place the outputs where others lie; returns their stages' names.

    What is downstream is seen to be moved only when what is upstream lies where it should.

    Args:
        changes: of each stage, what `_changes` says; it is brought up to date.
    """
    tried: list[Any] = []
    while True:
        moved = [stage for stage in changes if _is_moved(changes[stage])]
        new = [stage for stage in moved if stage not in tried]
        if not new:
            return [stage.addressing for stage in tried if stage not in moved]
        tried += new
        _checkout(repo, new)
        changes |= {stage: _changes(stage) for stage in changes}


def _save(changes: dict[Any, list[Any]]) -> list[str]:
    """Puts into DVC's cache the outputs that it lacks; returns their stages' names.

    Args:
        changes: as of `_put_in_place`.
    """
    from dvc.exceptions import DvcException

    saved = []
    for stage in changes:
        if _is_lost(stage, changes[stage]):
            with suppress(DvcException):  # somebody reads them
                stage.commit()
                saved.append(stage.addressing)
            changes[stage] = _changes(stage)
    return saved


def _checkout(repo: Any, stages: list[Any]) -> None:
    """Puts outputs in place, together, or all that can be: what lies there may be nowhere else."""
    from dvc.exceptions import DvcException

    names = [stage.addressing for stage in stages]
    try:
        repo.checkout(names, allow_missing=True)
    except DvcException:
        for name in names:
            with suppress(DvcException):
                repo.checkout([name], allow_missing=True)


def _step(stage: Any, upstream: list[Any]) -> Step:
    deps = [Path(dep.fs_path) for dep in stage.deps]
    read = [
        out
        for each in upstream
        for out in each.outs
        if any(_overlap(Path(out.fs_path), path) for path in deps)
    ]
    outs, small_outs = _paths(stage.outs)
    inputs, small_inputs = _paths(read)
    return Step(
        name=stage.addressing,
        upstream=[each.addressing for each in upstream],
        outs=outs,
        small_outs=small_outs,
        inputs=inputs,
        small_inputs=small_inputs,
    )


def _paths(outs: list[Any]) -> tuple[list[str], list[str]]:
    """Those that DVC keeps and those that git does, relative to the project's root."""
    kept = [os.path.relpath(out.fs_path) for out in outs if out.use_cache]
    return kept, [os.path.relpath(out.fs_path) for out in outs if not out.use_cache]


def _overlap(a: Path, b: Path) -> bool:
    return a.is_relative_to(b) or b.is_relative_to(a)


def _changes(stage: Any) -> list[Any]:
    """What `dvc status` says; asked again if the guard of DVC's readers and writers is taken."""
    from dvc.lock import LockError

    busy, tries = retry_if_exception_type(LockError), stop_after_attempt(ATTEMPTS)
    for attempt in Retrying(retry=busy, stop=tries, reraise=True):
        with attempt:
            changes = stage.status().get(stage.addressing, [])
    return list(changes)


def _is_moved(changes: list[Any]) -> bool:
    """Whether all that is wrong is that others lie where outputs should.

    If anything else is, what lies there may be this stage's, and not recorded yet; where nothing
    lies, it may be running.
    """
    return "modified" in _changed_outs(changes)


def _is_lost(stage: Any, changes: list[Any]) -> bool:
    """Whether all that is wrong is that DVC's cache lacks outputs which lie where they should."""
    return "not in cache" in _changed_outs(changes) and not any(
        out.workspace_status() for out in stage.outs
    )


def _changed_outs(changes: list[Any]) -> set[str]:
    """How outputs have changed, if nothing else has."""
    outs = [each.get("changed outs", {}) for each in changes if isinstance(each, dict)]
    is_all = len(changes) == len(outs) and all(outs)
    return {how for each in outs for how in each.values()} if is_all else set()


def locked(folder: Path = Path()) -> dict[str, Any]:
    """The entries of dvc.lock, in its order; none if there is no such file.

    Raises:
        StageError: if it is not what DVC writes.
    """
    path = folder / LOCK
    return parse_lock(path.read_bytes(), str(path)) if path.exists() else {}


def parse_lock(data: bytes, name: str) -> dict[str, Any]:
    """The entries of a dvc.lock by stage, in its order; none in an empty file.

    Raises:
        StageError: if it is not what DVC writes.
    """
    from dvc.exceptions import DvcException
    from dvc.utils.serialize import parse_yaml

    try:
        values = parse_yaml(data, name) or {"schema": "2.0", "stages": {}}
        if values["schema"] != "2.0":
            raise ValueError(f"schema {values['schema']}")
        for entry in values["stages"].values():
            for kind in ("deps", "outs"):
                _ = [item["path"] for item in entry.get(kind, [])]
        return dict(values["stages"])
    except (DvcException, ValueError, KeyError, TypeError, AttributeError) as error:
        advice = " `make doctor` says what to do." if name == str(LOCK) else ""
        raise StageError(
            f"{name} must be a whole dvc.lock of schema 2.0. Received: {error!r}.{advice}"
        ) from None


def write_lock(path: Path, stages: dict[str, Any]) -> None:
    """Writes a dvc.lock as DVC does, whole or not at all."""
    from dvc.utils.serialize import dump_yaml

    partial = path.with_name(f".{path.name}.partial")
    dump_yaml(str(partial), {"schema": "2.0", "stages": stages})
    os.replace(partial, path)


def record(entries: dict[str, Any]) -> None:
    """Puts stages' entries into dvc.lock, each in the place of the one of that name."""
    with opened() as repo, repo.lock:
        before = locked()
        _write(before, before | entries)


def put_in_order(known: list[str], order: list[str]) -> None:
    """Orders dvc.lock as a serial `dvc repro` would have: entries known before, then new ones."""
    with opened() as repo, repo.lock:
        before = locked()
        names = dict.fromkeys(name for name in [*known, *order, *before] if name in before)
        _write(before, {name: before[name] for name in names})


def _write(before: dict[str, Any], after: dict[str, Any]) -> None:
    if list(before.items()) != list(after.items()):
        write_lock(LOCK, after)


@contextmanager
def opened() -> Iterator[Any]:
    """The DVC project here; its errors become a user's.

    Raises:
        StageError: if DVC raises one of its own.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from dvc.rwlock import RWLockFileCorruptedError, RWLockFileFormatError

    try:
        with Repo(_wait_for_lock=True) as repo:
            yield repo
    except (RWLockFileCorruptedError, RWLockFileFormatError) as error:
        raise StageError(f"{error}. `make doctor` says what to do.") from None
    except DvcException as error:
        raise StageError(f"{error}") from None


if __name__ == "__main__":
    run(main)
