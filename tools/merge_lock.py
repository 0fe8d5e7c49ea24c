"""Git's merge driver for dvc.lock: stage by stage, where git alone would leave conflict markers.

    make setup-git        # once per clone

A stage whose entry only one branch changed, added or removed is merged as that branch has it. One
that both changed, and not to the same, is left out: DVC then runs it again, or takes it from its
run cache. If both ran it with the same inputs, ours stays: either is right. An entry is never mixed
from two, so whatever DVC calls up to date after a merge is.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from stages.shared.stage import StageError
from tools.command import run
from tools.pipeline import parse_lock, write_lock


def main() -> None:
    parser = argparse.ArgumentParser(description="Merge two versions of dvc.lock, as git asks.")
    parser.add_argument("base", type=Path, help="git's %%O: what both began with; may be empty")
    parser.add_argument("ours", type=Path, help="git's %%A; the result is written here")
    parser.add_argument("theirs", type=Path, help="git's %%B")
    args = parser.parse_args()

    paths = (args.base, args.ours, args.theirs)
    try:
        base, ours, theirs = (parse_lock(path.read_bytes(), str(path)) for path in paths)
    except (StageError, OSError) as error:  # git then leaves the merge to people
        advice = "Take one side's: `git checkout --ours dvc.lock`, and `dvc repro`."
        raise StageError(f"{error} {advice}") from None
    stages, dropped = merge(base, ours, theirs)
    write_lock(args.ours, stages)
    if dropped:
        print(
            f"dvc.lock: changed in both, so `dvc repro` runs: {', '.join(dropped)}", file=sys.stderr
        )


def merge(
    base: dict[str, Any], ours: dict[str, Any], theirs: dict[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """Merges the stages of three lock files.

    Returns:
        The merged stages, ours first, and the names of those left out as both sides changed them.
    """
    merged, dropped = {}, []
    for name in dict.fromkeys([*ours, *theirs]):
        original, a, b = base.get(name), ours.get(name), theirs.get(name)
        if a != b and original not in (a, b) and not (a and b and inputs(a) == inputs(b)):
            dropped.append(name)
            continue
        kept = b if a == original else a
        if kept is not None:
            merged[name] = kept
    return merged, dropped


def inputs(entry: dict[str, Any]) -> list[Any]:
    """What a stage was run with: its command, inputs and parameters."""
    return [entry.get(key) for key in ("cmd", "deps", "params")]


if __name__ == "__main__":
    run(main)
