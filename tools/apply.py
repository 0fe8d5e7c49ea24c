"""Brings several experiments of DVC's into this folder together.

    python -m tools.apply EXPERIMENT ...

`dvc exp apply` replaces everything by one experiment, so a second one would lose the first. Here
what each changed against its own baseline is put in: values of params.yaml, the stages that it ran
with their entries in dvc.lock, and their results. Nothing is trained again.
"""

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

from stages.shared import params
from stages.shared.stage import StageError, outputs, run
from tools import node, pipeline
from tools.pipeline import Step
from tools.results import Revision, leaves, revisions


def main() -> None:
    parser = argparse.ArgumentParser(description="Apply experiments together.")
    parser.add_argument("experiments", nargs="+", help="names that `dvc exp list` shows")
    args = parser.parse_args()

    values: dict[str, Any] = {}
    entries: dict[str, Any] = {}
    files: dict[str, bytes] = {}
    for revision in revisions(args.experiments):
        if revision.commit is None:
            raise StageError(f"An experiment must be committed. Received: '{revision.name}'.")
        baseline = Revision(f"{revision.name}'s baseline", f"{revision.commit}^")
        add(values, changed_values(baseline, revision), revision.name)
        found = changed_entries(baseline, revision)
        add(entries, found, revision.name)
        steps, _ = pipeline.plan(list(found))
        for name in found:
            files |= small_files(revision, steps[name].small_outs)
            check_cached(found[name], steps[name])
    put(values, entries, files)
    stages = ", ".join(entries) or "no stage"
    print(f"Applied {', '.join(args.experiments)}: {len(values)} values, {stages}. `dvc repro`.")


def read(revision: Revision, name: str) -> dict[str, Any]:
    """A YAML file in a revision."""
    data = revision.read(Path(name))
    return params.parse(data or b"{}", f"{revision.name}'s {name}") or {}


def changed_values(baseline: Revision, revision: Revision) -> dict[str, Any]:
    """The values of params.yaml that are not the baseline's; `...` for one that is gone."""
    before, after = (dict(leaves(read(each, "params.yaml"))) for each in (baseline, revision))
    gone = dict.fromkeys(before.keys() - after.keys(), ...)
    return gone | {key: value for key, value in after.items() if before.get(key, ...) != value}


def changed_entries(baseline: Revision, revision: Revision) -> dict[str, Any]:
    """The entries of dvc.lock that are not the baseline's."""
    before, after = (
        read(each, pipeline.LOCK.name).get("stages", {}) for each in (baseline, revision)
    )
    return {name: entry for name, entry in after.items() if before.get(name) != entry}


def add(known: dict[str, Any], found: dict[str, Any], name: str) -> None:
    """Adds what an experiment changed to what the ones before did.

    Raises:
        StageError: if two of them changed the same differently.
    """
    for key, value in found.items():
        if known.get(key, value) != value:
            raise StageError(
                f"Experiments that are applied together must not change the same. Received: {key}, "
                f"which '{name}' and one before it set differently. Leave one of them out."
            )
    known |= found


def small_files(revision: Revision, paths: tuple[str, ...]) -> dict[str, bytes]:
    """The files among a stage's outputs that git has, as the experiment has them."""
    listed = subprocess.run(
        ["git", "ls-tree", "-r", "--name-only", str(revision.commit), "--", *paths],
        capture_output=True,
        text=True,
        check=True,
    )
    return {path: revision.read(Path(path)) or b"" for path in listed.stdout.splitlines()}


def check_cached(entry: dict[str, Any], step: Step) -> None:
    """Whether DVC's cache has all that a stage wrote.

    Raises:
        StageError: if not.
    """
    from dvc_data.hashfile.hash_info import HashInfo
    from dvc_data.hashfile.tree import Tree

    with pipeline.opened() as repo:
        store = repo.cache.local
        for out in entry["outs"]:
            if out["path"] not in step.outs:
                continue
            wanted = [out["md5"]]
            if out["md5"].endswith(".dir") and store.exists(out["md5"]):
                tree: Any = Tree.load(store, HashInfo("md5", out["md5"]))
                wanted += [found.value for _, (_, found) in tree.iteritems()]
            if not all(map(store.exists, wanted)):
                raise StageError(
                    f"DVC's cache must have the experiments' outputs. {out['path']} of {step.name} "
                    "is not there: `dvc exp pull` it."
                )


def put(values: dict[str, Any], entries: dict[str, Any], files: dict[str, bytes]) -> None:
    """Writes all of it here, checked before anything is touched.

    Raises:
        StageError: if params.yaml does not allow the values together.
    """
    with outputs(params.PATH) as (partial,):
        partial.write_bytes(params.PATH.read_bytes())
        node.change(partial, values)
        params.load(partial)
    for path, content in files.items():
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(content)
    pipeline.record(entries)
    command = [sys.executable, "-m", "dvc", "checkout", "--force", *entries]
    if entries and subprocess.run(command, stdout=subprocess.DEVNULL).returncode:
        raise StageError("`dvc checkout` must succeed. See what it says above.")


if __name__ == "__main__":
    run(main)
