"""Brings several experiments of DVC's into this folder together.

    python -m tools.apply EXPERIMENT ...

`dvc exp apply` replaces everything by one experiment, so a second one would lose the first. Here
what each changed against its own baseline is put in: values of params.yaml, the stages that it ran
with their entries in dvc.lock, and their results. Nothing is trained again. A dataset's figures, if
several of them drew them, are left for `dvc repro`.
"""

import argparse
import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stages.shared import params
from stages.shared.stage import StageError
from tools import node, pipeline
from tools.command import run
from tools.git import git
from tools.results import Revision, differences, revisions

OF_ALL_VARIANTS = ("lineup", "plot@")


def main() -> None:
    parser = argparse.ArgumentParser(description="Apply experiments together.")
    parser.add_argument("experiments", nargs="+", help="names that `dvc exp list` shows")
    args = parser.parse_args()

    values: dict[str, Any] = {}
    ran: dict[str, tuple[Revision, Any]] = {}
    left = set()
    for revision in revisions(args.experiments):
        if revision.commit is None:
            raise StageError(f"An experiment must be committed. Received: '{revision.name}'.")
        baseline = Revision(f"{revision.name}'s baseline", f"{revision.commit}^")
        add(values, changed_values(baseline, revision), revision.name)
        found = changed_entries(baseline, revision)
        known = {name: entry for name, (_, entry) in ran.items()}
        twice = {name for name in found if known.get(name, found[name]) != found[name]}
        left |= {name for name in twice if name.startswith(OF_ALL_VARIANTS)}
        add({name: known[name] for name in twice - left}, found, revision.name)
        ran |= {name: (revision, entry) for name, entry in found.items()}
    files: dict[str, bytes] = {}
    for name in left:
        del ran[name]
    for name, (revision, entry) in ran.items():
        small = small_files(revision, [out["path"] for out in entry["outs"]])
        check_code(name, entry, str(revision.commit))
        check_cached(name, entry, small)
        files |= small
    put(values, {name: entry for name, (_, entry) in ran.items()}, files)
    stages = ", ".join(ran) or "no stage"
    print(
        f"Applied {', '.join(args.experiments)}: {len(values)} values, {stages}. "
        "`python -m tools.launch --dry-run` lists what is to be run now."
    )


def changed_values(baseline: Revision, revision: Revision) -> dict[str, Any]:
    """The values of params.yaml that are not the baseline's; `...` for one that is gone."""
    before, after = (
        params.parse(each.read(params.PATH) or b"{}", f"{each.name}'s {params.PATH}")
        for each in (baseline, revision)
    )
    return {key: value for key, _, value in differences(before, after)}


def changed_entries(baseline: Revision, revision: Revision) -> dict[str, Any]:
    """The entries of dvc.lock that are not the baseline's."""
    before = baseline.locked
    return {name: entry for name, entry in revision.locked.items() if before.get(name) != entry}


def add(known: dict[str, Any], found: dict[str, Any], name: str) -> None:
    """Adds what an experiment changed to what the ones before did.

    Raises:
        StageError: if two of them changed the same differently.
    """
    for key, value in found.items():
        if known.get(key, value) != value:
            raise StageError(
                f"Experiments applied together must not change the same key. Received: {key}, "
                f"which '{name}' and an earlier one set differently. Omit one of them."
            )
    known |= found


def small_files(revision: Revision, paths: list[str]) -> dict[str, bytes]:
    """The files among a stage's outputs that git has, as the experiment has them.

    Raises:
        StageError: if an output lies where no stage writes: somebody may have made it up.
    """
    for path in map(Path, paths):
        if path.parts[:1] not in (("data",), ("results",)) or ".." in path.parts:
            raise StageError(
                f"Outputs must lie in data/ or results/. Received: '{path}', in '{revision.name}'."
            )
    listed = git("ls-tree", "-r", "-z", "--name-only", str(revision.commit), "--", *paths)
    return {path: revision.read(Path(path)) or b"" for path in listed.split("\0") if path}


def check_code(stage: str, entry: dict[str, Any], commit: str) -> None:
    """Whether the code here is what a stage ran with; else `dvc repro` would run it again.

    Raises:
        StageError: if not.
    """
    for dep in entry["deps"]:
        path = Path(dep["path"])
        if path.suffix != ".py":
            continue
        if not path.is_file() or hashlib.md5(path.read_bytes()).hexdigest() != dep["md5"]:
            raise StageError(
                f"The code must be what the experiments ran with. {path} is not that of {stage}: "
                f"`git checkout {commit[:12]} -- {path}` takes it from there."
            )


def check_cached(stage: str, entry: dict[str, Any], small: dict[str, bytes]) -> None:
    """Whether DVC's cache has all that a stage wrote and git does not have.

    Raises:
        StageError: if not.
    """
    from dvc_data.hashfile.hash_info import HashInfo
    from dvc_data.hashfile.tree import Tree

    with pipeline.opened() as repo:
        store = repo.cache.local
        for out in entry["outs"]:
            if any(Path(path).is_relative_to(out["path"]) for path in small):
                continue
            wanted = [out["md5"]]
            if out["md5"].endswith(".dir") and store.exists(out["md5"]):
                tree: Any = Tree.load(store, HashInfo("md5", out["md5"]))
                wanted += [found.value for _, (_, found) in tree.iteritems()]
            if not all(map(store.exists, wanted)):
                raise StageError(
                    f"DVC's cache must have the experiments' outputs. {out['path']} of {stage} "
                    "is not there: `dvc exp pull` it."
                )


def put(values: dict[str, Any], entries: dict[str, Any], files: dict[str, bytes]) -> None:
    """Writes all of it here, checked before anything is touched.

    Raises:
        StageError: if params.yaml does not allow the values together, or does not have the variant
            of an entry; or if DVC cannot check out the outputs.
    """
    params.load()
    partial = params.PATH.with_name(f".{params.PATH.name}.partial")
    try:
        partial.write_bytes(params.PATH.read_bytes())
        node.change(partial, values)
        variants = params.load(partial).variants
        if gone := [name for name in entries if variant_of(name) not in (None, *variants)]:
            raise StageError(f"{partial} has no variant any more for {', '.join(gone)}.")
        check_params(entries, params.parse(partial.read_bytes()), str(partial))
        os.replace(partial, params.PATH)
    except StageError as error:
        raise StageError(str(error).replace(str(partial), f"{params.PATH} with these")) from None
    finally:
        partial.unlink(missing_ok=True)
    for path, content in files.items():
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).unlink(missing_ok=True)  # it may be a link into DVC's cache
        Path(path).write_bytes(content)
    pipeline.record(entries)
    command = [sys.executable, "-m", "dvc", "checkout", "--force", "--", *entries]
    if entries and subprocess.run(command, stdout=subprocess.DEVNULL).returncode:
        raise StageError("`dvc checkout` must succeed. See what it says above.")


def check_params(entries: dict[str, Any], tree: dict[str, Any], name: str) -> None:
    """Whether stages ran with the parameters that are to be here; else they would run again.

    Raises:
        StageError: if not.
    """
    here = dict(sections(tree))
    for stage, entry in entries.items():
        if stage.startswith(OF_ALL_VARIANTS):
            continue  # which take no time
        for key, value in entry.get("params", {}).get(str(params.PATH), {}).items():
            if here.get(key, ...) != value:
                raise StageError(
                    f"{name} has another {key} than {stage} ran with: several experiments change "
                    "it, or it has changed since. Apply one of them, then `dvc repro` the others' "
                    "stages."
                )


def sections(tree: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """All of a tree's values, mappings too, by their dotted keys."""
    for key, value in tree.items():
        yield f"{path}{key}", value
        if isinstance(value, dict):
            yield from sections(value, f"{path}{key}.")


def variant_of(stage: str) -> str | None:
    family, _, key = stage.partition("@")
    return key if family in ("train", "evaluate") else None


if __name__ == "__main__":
    run(main)
