"""The gate of a pull request: may this state of the project be merged?

    python -m tools.gate [--base REV] [--max-drop POINTS] [--remote NAME | --no-remote]
                         [--comment FILE] [--links PREFIX]

It needs no data and runs no stage, so that a fresh clone will do: what dvc.lock says is compared
with params.yaml, dvc.yaml, the code and the results that git has, with itself, with what is on the
DVC remote, and with what the branch began with (where it left `--base`).

A stage that has not been run is noted and no more: some trainings wait for a machine, and nothing
that is there is wrong. It is a failure if this branch adds it, or if dvc.lock should know it: the
base's does, its results are there, or others were made from them. An entry of a stage that is gone
is noted: DVC leaves it there.
"""

import argparse
import contextlib
import functools
import math
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stages.shared import params
from stages.shared.stage import StageError
from tools import changes, doctor, merge_lock
from tools.command import run
from tools.finding import NAMED, Finding, first_few
from tools.git import git
from tools.node import without_passwords
from tools.pipeline import LOCK, locked, parse_lock
from tools.results import Commit, Revision, differences

PIPELINE = Path("dvc.yaml")
CONFIG = Path(".dvc/config")
REQUIREMENTS = Path("requirements.txt")
BASES = ("origin/main", "main")
MARK = "<!-- dvc gate -->"  # by which the comment is found again, to be replaced
MAX_DROP = 1.0  # percentage points
LONGEST = 60_000  # characters of a comment, of which GitHub takes 65,536


@dataclass
class Pipeline:
    """The stages as dvc.yaml and params.yaml give them, and what dvc.lock knows of them.

    Attributes:
        stages: DVC's stages by name, filled from dvc.lock as far as that goes.
        ran: the names of those that have an entry there.
        left_over: the entries of no stage.
        lost: the names of those that should have one and have none.
        stores: where listings of folders are looked for: DVC's cache, then the remote.
    """

    repo: Any
    stages: dict[str, Any]
    ran: list[str]
    left_over: list[str]
    lost: set[str] = field(default_factory=set)
    stores: list[Any] = field(default_factory=list)

    @functools.cached_property
    def outs(self) -> dict[Path, Any]:
        """All outputs by path."""
        return {Path(out.fs_path): out for out in self.repo.index.outs}

    @functools.cached_property
    def outs_in(self) -> dict[Path, list[Any]]:
        """The outputs below each folder."""
        below = defaultdict(list)
        for path, out in self.outs.items():
            for folder in path.parents:
                below[folder].append(out)
        return dict(below)

    def outs_of(self, names: Iterable[str]) -> list[Any]:
        return [out for name in names for out in self.stages[name].outs]

    def source(self, path: Path) -> Any:
        """The output that a path is, or lies in; None if no stage writes it."""
        found = (self.outs[each] for each in (path, *path.parents) if each in self.outs)
        return next(found, None)


def main() -> None:
    args = parse_arguments()
    if not PIPELINE.exists():
        raise StageError(f"{PIPELINE} is missing. Run from the project's root folder.")
    base = find_base(args.base)
    found, summary = examine(args, base)
    failures = [each for each in found if each.level == "failure"]
    if failures:
        noun = "failure" if len(failures) == 1 else "failures"
        summary = f"gate: {len(failures)} {noun}"
    for finding in found:
        print(f"{finding.level:<7}  {finding.text}")
    print(summary)
    if args.comment:
        write_comment(args.comment, comment(found, summary, base, args.links))
    if failures:
        sys.exit(1)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Exit with 1 if this should not be merged.")
    parser.add_argument(
        "--base", metavar="REV", help=f"the branch to merge into (default: {BASES[0]})"
    )
    parser.add_argument(
        "--max-drop",
        type=points,
        default=MAX_DROP,
        metavar="POINTS",
        help=f"allowed accuracy drop, percentage points (default: {MAX_DROP})",
    )
    remotes = parser.add_mutually_exclusive_group()
    remotes.add_argument("--remote", metavar="NAME", help="the DVC remote, if not the default")
    remotes.add_argument("--no-remote", action="store_true", help="do not look at the remote")
    parser.add_argument("--comment", metavar="FILE", help="write Markdown there")
    parser.add_argument("--links", default="", metavar="PREFIX", help="URL prefix of the figures")
    return parser.parse_args()


def points(argument: str) -> float:
    value = float(argument)
    if not (math.isfinite(value) and value >= 0):
        raise argparse.ArgumentTypeError(f"must be 0 or more. Received: {argument}")
    return value


def find_base(wanted: str | None) -> Revision | None:
    """Where the current branch left the one that it is to be merged into.

    Args:
        wanted: a revision; without it, the first of BASES that there is, or None.

    Raises:
        StageError: if git does not know it.
    """
    for name in BASES if wanted is None else [wanted]:
        verify = ("rev-parse", "--verify", "--quiet", "--end-of-options")
        try:
            commit = git(*verify, f"{name}^{{commit}}")
        except StageError:
            continue
        with contextlib.suppress(StageError):  # nothing in common
            commit = git("merge-base", commit, "HEAD")
        return Commit(str(name), commit)
    if wanted is None:
        return None
    raise StageError(
        f"--base must be a commit, a branch or a tag. Received: '{wanted}'. `git fetch` brings "
        "what others pushed."
    )


def examine(args: argparse.Namespace, base: Revision | None) -> tuple[list[Finding], str]:
    """All findings, failures first, and what to say if none of them is a failure."""
    from dvc.exceptions import DvcException

    found, passed = [], "gate: passed"
    if base is None:
        what = f"nothing is compared with a base: there is neither {' nor '.join(BASES)}"
        found.append(Finding("note", what, "`--base REV` names one."))
    if base and base.read(CONFIG) != Revision().read(CONFIG):
        what = f"{CONFIG} is not the base's: who pulls this asks the remotes that it names"
        found.append(Finding("note", what, "Look at it before you do."))
    if git("rev-parse", "--is-shallow-repository") == "true":
        what = "this clone lacks older commits, so neither the base nor merges can be looked at"
        found.append(Finding("failure", what, "`git fetch --unshallow`."))
    if left := [line[3:] for line in git("status", "--porcelain").splitlines()]:
        what = f"not committed, and so not in what would be merged: {first_few(left)}"
        found.append(Finding("note", what, "Commit it, or have git ignore it."))
    try:
        with doctor.dvc_repository(Path.cwd()) as repo:
            pipeline = read_pipeline(repo)
            name, store, said = open_remote(repo, args.remote, args.no_remote)
            pipeline.stores = [repo.cache.local]
            if store is not None:
                pipeline.stores.append(store)
            found += check_entries(pipeline, base)
            found += check_merges(pipeline, base)
            found += check_lock(pipeline)
            found += check_results(pipeline)
            found += said
            passed += f", {len(pipeline.ran)} stages"
            if store is not None:
                found += check_remote(pipeline, name, store)
                passed += f", {len(cached(pipeline))} outputs on remote {name}"
    except DvcException as error:
        found.append(Finding("failure", f"DVC cannot read the pipeline: {error}", "Fix it."))
    except Damaged as error:
        found.append(Finding("failure", str(error)))
        base = None  # metrics are told apart by dvc.lock
    try:
        found += check_versions()
        if base is not None:
            found += check_metrics(base, args.max_drop)
    except StageError as error:
        found.append(Finding("failure", str(error)))
    return sorted(found, key=lambda each: each.level != "failure"), passed


class Damaged(StageError):
    """A file of the project is not what it must be: a finding, where a bad argument is none."""


def read_pipeline(repo: Any) -> Pipeline:
    """The stages of dvc.yaml in their order.

    Raises:
        Damaged: if dvc.lock is not what DVC writes.
    """
    try:
        lock = locked()
    except StageError as error:
        raise Damaged(str(error)) from None
    stages = stages_of(repo)
    ran = [name for name in stages if name in lock]
    return Pipeline(repo, stages, ran, [name for name in lock if name not in stages])


def stages_of(repo: Any) -> dict[str, Any]:
    """The stages of dvc.yaml by name; those of `dvc add` have none."""
    return {stage.name: stage for stage in repo.index.stages if getattr(stage, "name", None)}


def check_entries(pipeline: Pipeline, base: Revision | None) -> list[Finding]:
    """That dvc.lock has an entry for each stage that should have been run."""
    found: list[Finding] = []
    at_base: set[str] | None = None
    ran_at_base: set[str] = set()
    if base:
        try:
            at_base, ran_at_base = stages_at(base)
        except Damaged as error:  # this branch may be what mends it
            found.append(Finding("note", f"stages are not compared with the base's: {error}"))
    why, never = defaultdict(list), []
    read = [Path(dep.fs_path) for name in pipeline.ran for dep in pipeline.stages[name].deps]
    used = {each for path in read for each in (path, *path.parents)}
    for name, stage in pipeline.stages.items():
        if name in pipeline.ran:
            continue
        there = [out for out in stage.outs if not out.use_cache and out.exists]
        if name in ran_at_base:
            why["is no longer in dvc.lock"].append(name)
        elif there or used & {Path(out.fs_path) for out in stage.outs}:
            why["is not in dvc.lock, though its results exist or are used"].append(name)
        elif at_base is not None and name not in at_base:
            why["is new and has not been run"].append(name)
        else:
            never.append(name)
    pipeline.lost = {name for names in why.values() for name in names}
    found += to_rerun(why)
    if never:
        where = "here or on the base" if base else "here"
        what = f"not run yet, {where}: {first_few(never)}"
        found.append(Finding("note", what, "`dvc repro NAME` runs one when there is time."))
    if pipeline.left_over:
        what = f"dvc.lock has entries of deleted stages: {first_few(pipeline.left_over)}"
        found.append(Finding("note", what, "They only slow DVC down, and can be deleted there."))
    return found


def stages_at(base: Revision) -> tuple[set[str], set[str]]:
    """The names of all stages in a revision, and of those that its dvc.lock has.

    Read in a folder of their own: with the settings of then, those of this machine, such as
    passwords of a remote that this branch adds, may not be valid.

    Raises:
        Damaged: if DVC cannot read its dvc.yaml.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    with tempfile.TemporaryDirectory() as folder:
        for path in (PIPELINE, LOCK, params.PATH):
            if (data := base.read(path)) is not None:
                (Path(folder) / path).write_bytes(data)
        Path(folder, ".dvc").mkdir()
        try:
            with Repo(folder, config={"core": {"no_scm": True, "site_cache_dir": folder}}) as repo:
                stages = stages_of(repo)
        except DvcException as error:
            raise Damaged(f"DVC cannot read the pipeline of {base.name}: {error}") from None
    ran = {name for name in stages if any(out.hash_info for out in stages[name].outs)}
    return set(stages), ran


def check_lock(pipeline: Pipeline) -> list[Finding]:
    """That each entry of dvc.lock is what its stage would be run with now."""
    why, unknown = defaultdict(list), []
    for name in pipeline.ran:
        stage = pipeline.stages[name]
        if stage.frozen:
            why[
                "it is frozen in dvc.yaml, so that DVC ignores its dependencies: remove that"
            ].append(name)
        if stage.cmd_changed:
            why["its command in dvc.yaml has changed since the run"].append(name)
        for dep in stage.deps:
            try:
                for reason in changed(pipeline, dep):
                    why[reason].append(name)
            except LookupError:
                unknown.append(str(dep))
    found = to_rerun(why)
    if unknown:
        what = f"not compared, as their folders' listings are missing: {first_few(unknown)}"
        found.append(Finding("note", what, "`dvc pull`, or a remote, brings them."))
    return found + extra_files(pipeline)


def check_merges(pipeline: Pipeline, base: Revision | None) -> list[Finding]:
    """That no entry was mixed from two branches' when git merged dvc.lock by itself, line by line.

    As it does on a server and where nobody called `make setup-git`: code of one branch and outputs
    of the other may then stand in one entry, which nobody ran and which DVC takes for up to date.
    """
    since = [f"^{base.commit}"] if base else ["--max-count=1"]
    merges = git("rev-list", "--parents", "--min-parents=2", "--max-parents=2", "HEAD", *since)
    now, mixed = locked(), dict[str, None]()
    for merge in merges.splitlines():
        entries = mixed_entries(*merge.split())
        mixed |= dict.fromkeys(name for name in entries if entries[name] == now.get(name))
    names = [name for name in mixed if name in pipeline.stages]
    what = (
        f"{first_few(names)}: git mixed two branches' entries in dvc.lock; this may never have run"
    )
    advice = "`make setup-git`, merge again, then `dvc repro`."
    return [Finding("failure", what, advice)] if names else []


def mixed_entries(merge: str, ours: str, theirs: str) -> dict[str, Any]:
    """The entries of a merge commit's dvc.lock that git made of both parents'.

    Not those behind all that the driver keeps: it leaves out what both sides changed, and DVC adds
    that when it has been run. Without the driver, an entry that was run again in its place, with
    the same result, looks mixed too.
    """
    try:
        bases = git("merge-base", ours, theirs).splitlines()  # of several, git merges these first
        commits = (bases[0], ours, theirs, merge)
        *before, after = (Commit(each, each).read(LOCK) or b"" for each in commits)
        base, our, their, merged = (parse_lock(text, str(LOCK)) for text in (*before, after))
    except StageError:  # nothing in common; or one is damaged, which is told where it counts
        return {}
    names, kept = list(merged), list(merge_lock.merge(base, our, their)[0])
    run_since = names[len(kept) :] if names[: len(kept)] == kept else []
    mixed = {}
    for text in merged_by_lines(*before):
        for name, entry in merged.items():
            is_of_one = entry in (our.get(name), their.get(name))
            may_have_run = name in run_since and text != after
            if not is_of_one and not may_have_run and entry in versions(text, name):
                mixed[name] = entry
    return mixed


def versions(text: bytes, name: str) -> Iterator[Any]:
    """A stage's entry in a dvc.lock, or both sides' where they conflict as a whole."""
    entry = rb"^  %b:\n(?:    .*\n)+" % re.escape(name.encode())
    for found in re.findall(entry, text, re.MULTILINE):
        with contextlib.suppress(StageError):  # it conflicts within
            yield parse_lock(b"schema: '2.0'\nstages:\n" + found, str(LOCK))[name]


def merged_by_lines(base: bytes, ours: bytes, theirs: bytes) -> Iterator[bytes]:
    """What git may make of three versions of a file, with its marks where they conflict.

    A merge looks for differences in another way than `git merge-file` does, unless it is told to:
    by git 2.44 and later.
    """
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, name) for name in ("ours", "base", "theirs")]
        for path, data in zip(paths, (ours, base, theirs), strict=True):
            path.write_bytes(data)
        for options in ([], ["--diff-algorithm=histogram"]):
            command = ["git", "merge-file", "--stdout", *options, *map(str, paths)]
            yield subprocess.run(command, capture_output=True, check=False).stdout


def changed(pipeline: Pipeline, dep: Any) -> Iterator[str]:
    """In what a dependency is not as dvc.lock has it for the stage that reads it.

    Raises:
        LookupError: if that cannot be told without data.
    """
    from dvc.dependency import ParamsDependency

    if isinstance(dep, ParamsDependency):
        yield from changed_params(dep)
        return
    path = Path(dep.fs_path)
    source = pipeline.source(path)
    if not dep.hash_info:
        yield f"{dep} is a dependency in dvc.yaml, and not in dvc.lock"
    elif source is None and path not in pipeline.outs_in:
        if dep.workspace_status():
            yield f"{dep} has changed since the run" if dep.exists else f"{dep} is missing"
    else:
        made = hash_in(pipeline, source, path) if source else hash_of_folder(pipeline, path)
        if made not in (None, dep.hash_info.value):
            what = f"it ran with a {dep} other than the one dvc.lock records"
            if source is None:
                what += ", or with another branch's files in it, which `dvc checkout "
                what += "--allow-missing` removes"
            yield what


def changed_params(dep: Any) -> Iterator[str]:
    """Which parameters of a stage are not those that it was run with; values by their meaning."""
    status = dep.workspace_status().get(str(dep), {})
    if isinstance(status, str):
        yield f"{dep} is {status}"
        return
    if not status:
        return
    now, then = dep.read_params(), dep.hash_info.value or {}
    for name in status:
        different = [
            f"{key}: {shown(a)} then, {shown(b)} now"
            for key, a, b in differences(then.get(name, ...), now.get(name, ...), name)
        ]
        yield f"it ran with a different `{name}` ({first_few(different)})"


def shown(value: Any) -> str:
    return "nothing" if value is ... else changes.short(value)


def hash_in(pipeline: Pipeline, out: Any, path: Path) -> str | None:
    """The hash that dvc.lock gives an output, or a file in it; None if its stage has not been run.

    Raises:
        LookupError: if the listing of the output's folder is not at hand.
    """
    if not out.hash_info:
        return None
    if path == Path(out.fs_path):
        return str(out.hash_info.value)
    tree = listing(out, pipeline.stores)
    if tree is None:
        raise LookupError(path)
    _, found = tree.get(path.relative_to(out.fs_path).parts, (None, None))
    return str(found.value) if found else "none"


def hash_of_folder(pipeline: Pipeline, folder: Path) -> str | None:
    """The hash of a folder that several stages write into, from what dvc.lock says they wrote.

    Returns:
        None if an entry is lost there: a failure by itself, and no reason to doubt the rest.

    Raises:
        LookupError: if one of them writes a whole folder and its listing is not at hand.
    """
    from dvc_data.hashfile.tree import Tree

    if any(out.stage.name in pipeline.lost for out in pipeline.outs_in[folder]):
        return None
    tree: Any = Tree()  # type: ignore[no-untyped-call]
    for out in pipeline.outs_in[folder]:
        key = Path(out.fs_path).relative_to(folder).parts
        files = [((), None, out.hash_info)] if out.hash_info else []
        if out.hash_info and out.hash_info.isdir:
            files = listing(out, pipeline.stores)
            if files is None:
                raise LookupError(folder)
        for below, meta, found in files:
            tree.add((*key, *below), meta, found)
    tree.digest()
    return str(tree.hash_info.value)


def listing(out: Any, stores: list[Any]) -> Any:
    """What an output's folder holds, from the first of these that has it; None if none does.

    Raises:
        Damaged: if it is another one than dvc.lock names: DVC does not look.
    """
    from dvc_data.hashfile.tree import Tree
    from dvc_objects.errors import ObjectFormatError

    for store in stores:
        try:
            tree: Any = Tree.load(store, out.hash_info)
        except (OSError, ObjectFormatError):
            continue
        tree.digest()
        if tree.hash_info == out.hash_info and not any(".." in key for key, _, _ in tree):
            return tree
        raise Damaged(f"{out}: its folder's listing is not the one that dvc.lock names")
    return None


def extra_files(pipeline: Pipeline) -> list[Finding]:
    """That folders that several stages write into hold nothing else: DVC counts all of it."""
    found, repo = [], pipeline.repo
    read = {Path(dep.fs_path) for stage in pipeline.stages.values() for dep in stage.deps}
    for folder in sorted(read & set(pipeline.outs_in)):
        if pipeline.source(folder) or not folder.is_dir():
            continue
        paths = [Path(path) for path in repo.dvcignore.find(repo.fs, str(folder))]
        extra = sorted(shorter(path) for path in paths if pipeline.source(path) is None)
        if extra:
            what = f"written by no stage, in a folder that stages read: {first_few(extra)}"
            advice = "DVC counts whatever lies there: remove it, then `dvc repro`."
            found.append(Finding("failure", what, advice))
    return found


def shorter(path: Path) -> str:
    return path.relative_to(Path.cwd()).as_posix()


def check_results(pipeline: Pipeline) -> list[Finding]:
    """That the results that git has are those of dvc.lock, and dvc.lock has every output."""
    found = []
    for out in pipeline.outs_of(pipeline.ran):
        name = out.stage.name
        if out.use_cache and not out.can_push:
            what = f"{out} of {name} has `push: false` in dvc.yaml: nobody else would get it"
            found.append(Finding("failure", what, "Remove that, then `dvc push`."))
        if not out.hash_info:
            what = f"{out} is an output of {name} in dvc.yaml, and not in dvc.lock"
            found.append(Finding("failure", what, repro([name])))
        elif not out.use_cache and (status := out.workspace_status()):
            what = (
                f"{out} is missing"
                if "deleted" in status.values()
                else f"{out} is not what {name} wrote, by dvc.lock"
            )
            advice = (
                f"`git checkout -- {out}` takes the committed one, or `git checkout BRANCH -- "
                f"{out}` that of the branch which ran it; `dvc repro {name}`."
            )
            found.append(Finding("failure", what, advice))
    return found


def check_versions() -> list[Finding]:
    """That trainings ran with the versions of the lock file; a new version reruns nothing."""
    wanted_by = functools.cache(functools.partial(doctor.requirements_of, REQUIREMENTS))
    others: dict[str, dict[str, None]] = defaultdict(dict)
    for result in Revision().results():
        for environment in result.record.get("environment", []):
            versions = dict(text.partition(" ")[::2] for text in environment.get("versions", []))
            for each in wanted_by(versions.get("python")):
                version = versions.get(each.name)
                if version and not each.specifier.contains(version, prereleases=True):
                    others[f"{each.name} {version}"][result.variant] = None
    advice = "`dvc repro --force --single-item train@V` would tell what that changes."
    return [
        Finding(
            "note",
            f"trained with {what}, and not {REQUIREMENTS}'s: {first_few(list(names))}",
            advice,
        )
        for what, names in others.items()
    ]


def open_remote(repo: Any, wanted: str | None, skip: bool) -> tuple[str, Any, list[Finding]]:
    """A DVC remote's name, its store of objects or None, and what there is to say about it.

    Raises:
        StageError: if there is no remote of the wanted name.
    """
    known = {name: str(each.get("url")) for name, each in repo.config["remote"].items()}
    name = wanted or repo.config["core"].get("remote") or ""
    if wanted and wanted not in known:
        names = ", ".join(known) or "none"
        raise StageError(f"--remote must be among: {names}. Received: '{wanted}'.")
    if skip:
        return name, None, [Finding("note", "the remote was not checked: --no-remote")]
    if not known:
        advice = "`dvc remote add --default NAME URL`, `dvc push`."
        return name, None, [Finding("note", "no DVC remote is configured", advice)]
    if name not in known:
        what = f"of the DVC remotes {', '.join(known)} none is the default"
        return name, None, [Finding("failure", what, "`dvc remote default NAME`, or `--remote`.")]
    said = doctor.check_remote(Path.cwd(), name, known[name])
    if said.level != "ok":
        return name, None, [Finding("failure", f"remote {said.what}", said.advice)]
    return name, repo.cloud.get_remote_odb(name), []


def cached(pipeline: Pipeline) -> list[Any]:
    """The outputs that dvc.lock names and DVC pushes."""
    outs = pipeline.outs_of(pipeline.ran)
    return [out for out in outs if out.use_cache and out.can_push and out.hash_info]


def check_remote(pipeline: Pipeline, name: str, store: Any) -> list[Finding]:
    """That the remote has every object of every output.

    Each object is asked for, also those in folders: `dvc status --cloud` and `dvc push` believe
    that a remote with a folder's listing has its files.
    """
    objects = {}
    try:
        for out in cached(pipeline):
            files = (listing(out, [store]) or ()) if out.hash_info.isdir else ()
            objects[out] = {out.hash_info.value, *(found.value for _, _, found in files)}
        there = set(store.list_oids_exists(sorted(set().union(*objects.values()))))
    except Damaged as error:
        advice = f"Delete it on remote {name}, then `dvc push` where it was made."
        return [Finding("failure", str(error), advice)]
    except Exception as error:
        return [cannot_ask(name, error)]
    absent = [out for out in objects if out.hash_info.value not in there]
    torn = [out for out in objects if out not in absent and objects[out] - there]
    found, push = [], f"`dvc push --remote {name}`"
    if absent:
        what = f"not on remote {name}: {first_few(sorted(map(str, absent)))}"
        found.append(Finding("failure", what, f"{push} where they were made."))
    for out in torn:
        listed = out.hash_info.value
        what = f"{out} is incomplete on remote {name}: it has the listing, and not all files"
        advice = (
            f"Delete files/md5/{listed[:2]}/{listed[2:]} there, so that {push} sends all of it."
        )
        found.append(Finding("failure", what, advice))
    return found


def cannot_ask(name: str, error: Exception) -> Finding:
    text = without_passwords(f"{type(error).__name__}: {error}")
    advice = "Check network, address and credentials; `make doctor`."
    return Finding("failure", f"remote {name} cannot be queried: {text}", advice)


def check_metrics(base: Revision, max_drop: float) -> list[Finding]:
    """That no accuracy fell by more than that, or disappeared."""
    try:
        before = changes.metrics(base)
    except StageError as error:  # this branch may be what mends it
        return [Finding("note", f"accuracies are not compared with the base's: {error}")]
    found = []
    for each in changes.pairs(before, changes.metrics(Revision())):
        where = f"{each.variant}'s accuracy"
        if each.after is None:
            if each.before:
                found.append(Finding("note", f"{each.variant} is gone, and its results"))
        elif each.before and not each.after:
            what = (
                f"{where} was {each.before['accuracy']:.2%} in {base.name}, and there is none here"
            )
            found.append(Finding("failure", what, repro([f"evaluate@{each.variant}"])))
        elif each.before and each.points is not None and -each.points > max_drop:
            what = (
                f"{where} fell by {-each.points:.2f} points, from {each.before['accuracy']:.2%} in "
                f"{base.name} to {each.after['accuracy']:.2%}: more than {max_drop:g}"
            )
            advice = "Find out why; if intended, `--max-drop`, or the label `lower accuracy`."
            chance = chance_of_seeds(each.before, each.after)
            if -each.points <= chance:
                what += f", but within its seeds' spread, {chance:.2f}"
                advice = "More seeds would settle it."
            found.append(Finding("note" if -each.points <= chance else "failure", what, advice))
    return found


def chance_of_seeds(before: dict[str, Any], after: dict[str, Any]) -> float:
    """Two standard errors of the difference for other seeds, in percentage points.

    By the base's spread, 0 if it has one seed: a seed that collapses is no excuse for its mean.
    Without a change, 9 % of differences between three seeds each fall below it, as the spread is
    estimated: more than the 2 % of many seeds.
    """
    seeds = sum(1 / (metrics.get("seeds") or 1) for metrics in (before, after))
    return 200 * (before.get("accuracy_std") or 0.0) * math.sqrt(seeds)


def to_rerun(why: dict[str, list[str]]) -> list[Finding]:
    """A failure for each reason that some stages have to be run again."""
    return [
        Finding("failure", f"{first_few(names)}: {what}", repro(names))
        for what, names in why.items()
    ]


def repro(names: list[str]) -> str:
    """What to do about stages."""
    listed = " ".join(names[:NAMED])
    more = " ..." if len(names) > NAMED else ""
    return f"`dvc repro {listed}{more}`, then commit what it wrote."


def comment(found: list[Finding], summary: str, base: Revision | None, links: str) -> str:
    """What a pull request is told, in Markdown."""
    lines = [MARK, f"### {summary}", ""]
    lines += [f"- **{each.level}**: {changes.escaped(each.text)}" for each in found]
    if base is not None:
        lines += ["", changes.text(base, links)]
    text = "\n".join(lines).rstrip("\n") + "\n"
    if len(text) > LONGEST:
        whole_lines = text[:LONGEST].rpartition("\n")[0]
        text = f"{whole_lines}\n\nand more: `python -m tools.gate` has all.\n"
    return text


def write_comment(path: str, text: str) -> None:
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise StageError(f"--comment must be a file that can be written. {error}.") from None


if __name__ == "__main__":
    run(main)
