"""What is done for a launch or a sweep, here or on a node of a cluster: one stage, by DVC itself.

The caller sends this module to the workers by value: it imports nothing of the project, and a node
needs no checkout but the one that it makes here. A node of a cluster keeps its clones, one per
revision, in LAUNCH_FOLDER (`~/.cache/cifar-pipeline` if that is not set), with one DVC cache.
"""

from __future__ import annotations  # the types below stay here: Ray cannot send a TypedDict

import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NotRequired, TypedDict

ATTEMPTS = 5
PAUSES = (0, 1, 10, 60, 300)  # seconds; an editor with a commit message holds git's index
TELL_SECONDS = 1.0
TAIL_BYTES = 4096
BUSY = (b"Unable to acquire lock", b"is being blocked by", b"index.lock")  # the last is git's
SETTINGS = {
    "VERBOSE": "1",
    "PYTHONUNBUFFERED": "1",
    "TF_FORCE_GPU_ALLOW_GROWTH": "true",  # stages may share a GPU: none takes all of its memory
}
NOTES = ".dvc/tmp/site"  # DVC would take a folder in /var/tmp that everyone may write to
FAILED = b"failed to run:"  # DVC, of a command that did not exit with 0


class StageJob(TypedDict):
    """What all that run a stage are told.

    Attributes:
        stage: its name.
        environment: what its process has besides ours.
    """

    stage: str
    environment: dict[str, str]


class LocalJob(StageJob):
    """A stage to be run in the caller's own folder.

    Attributes:
        root: the project's folder.
        outs: the paths that the stage writes.
        log: the path of its log, from the root.
    """

    root: str
    outs: list[str]
    log: str


class CloneSource(TypedDict):
    """A `cluster.Source` on its way to a node."""

    url: str
    revision: str
    remote: str | None
    folder: str | None
    cache: str | None


class CloneJob(StageJob, CloneSource):
    """A stage to be run in a clone.

    Attributes:
        inputs: paths to pull.
        small_outs: paths of the outputs that git keeps.
    """

    inputs: list[str]
    small_outs: list[str]


class NodeJob(CloneJob):
    """A stage to be run on a cluster's node.

    Attributes:
        outs: the paths that the stage writes.
        entries: those of dvc.lock that the stage builds on.
        files: contents by path, which git has and the stage reads.
    """

    outs: list[str]
    entries: dict[str, Any]
    files: dict[str, bytes]


class TrialJob(CloneJob):
    """A training with other parameters, to become an experiment of DVC's.

    Attributes:
        name: the experiment's.
        changes: to params.yaml: values by dotted key.
        identity: who commits, as git's environment variables.
    """

    name: str
    changes: dict[str, Any]
    identity: dict[str, str]


class Outcome(TypedDict):
    """What came of a job.

    Attributes:
        code: 0 if all went well.
        ran: whether the stage's command was started.
        error: what to do about a result that was not recorded or saved, or empty.
        log: what was printed.
        entry: the stage's in dvc.lock.
        files: the contents of its small outputs by path.
    """

    code: int
    ran: NotRequired[bool]
    error: NotRequired[str]
    log: NotRequired[bytes]
    entry: NotRequired[Any]
    files: NotRequired[dict[str, bytes]]


class Board:
    """An actor on which nodes write what their stages print, for the caller to show."""

    def __init__(self) -> None:
        self.lines: dict[str, str] = {}

    def write(self, stage: str, line: str) -> None:
        self.lines[stage] = line

    def read(self) -> dict[str, str]:
        return self.lines


def run_here(job: LocalJob) -> Outcome:
    """Runs one stage in the caller's own folder; returns `code`, `ran` and `error`."""
    root, log = Path(job["root"]), Path(job["root"], job["log"])
    with open(log, "w+b") as file:
        return reproduce(root, job["stage"], job["outs"], file, job["environment"])


def run_on_node(job: NodeJob, board: Any) -> Outcome:
    """Runs one stage in this node's clone of the revision, and pushes what it wrote.

    Args:
        board: the actor to write on.

    Returns:
        `code`, `ran`, `log`, `entry` and `files`.
    """
    outcome: Outcome = {"code": 1, "ran": False}
    find_python()
    remote = ["--remote", job["remote"]] if job["remote"] else []
    base = node_folder(job["url"])
    log = base / "logs" / f"{job['stage']}.{os.getpid()}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "w+b") as file, reporting(board, job["stage"], log):
        folder = checkout(base, job["url"], job["revision"], file)
        if folder is not None:
            hand_over(folder, job)
            pull = ["pull", *remote, *job["inputs"]]
            outcome["code"] = dvc(folder, file, *pull) if job["inputs"] else 0
            if outcome["code"] == 0:
                outcome = reproduce(folder, job["stage"], job["outs"], file)
                if error := outcome.pop("error"):  # what to do, in this node's clone
                    file.write(f"In {folder}: {error}\n".encode())
            if outcome["code"] == 0:
                outcome["code"] = dvc(folder, file, "push", *remote, job["stage"])
            outcome["entry"] = locked_entry(folder, job["stage"])
            outcome["files"] = contents(folder, job["small_outs"])
            if outcome["entry"] is None:
                outcome["code"] = outcome["code"] or 1
    outcome["log"] = log.read_bytes()
    return outcome


def run_trial(job: TrialJob) -> Outcome:
    """Runs one training with other parameters, in a clone of its own, as an experiment of DVC's.

    Returns:
        `code`, `log`, `files` and `error`.
    """
    import filelock

    find_python()
    remote = ["--remote", job["remote"]] if job["remote"] else []
    base = Path(job["folder"]) if job["folder"] else node_folder(job["url"])
    folder, log = base / "trials" / job["name"], base / "logs" / f"{job['name']}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    if job["cache"]:
        fetch, share, only = ["checkout", "--allow-missing"], ["--no-cache"], []
    else:  # what its inputs were made from is not here, and not to be made anew
        fetch, share, only = ["pull", *remote], remote, ["--single-item"]
    untracked = [word for path in job["small_outs"] for word in ("--include-untracked", path)]
    folder.parent.mkdir(parents=True, exist_ok=True)
    guard = filelock.FileLock(folder.with_name(f"{folder.name}.lock"))  # of another sweep's trial
    with guard, open(log, "w+b") as file:
        shutil.rmtree(folder, ignore_errors=True)  # what an earlier sweep left
        cache = job["cache"] or str(base / "cache")
        code = int(not clone(folder, job["url"], job["revision"], cache, file))
        if code == 0:
            change(folder / "params.yaml", job["changes"])
        if code == 0 and not job["cache"]:  # to be told now, and not after hours of training
            push = ("push", "--dry-run", "--quiet", "origin", f"HEAD:refs/exps/{job['name']}")
            code = git(file, "-C", str(folder), *push)
        environment = job["identity"] | job["environment"]
        for command in ([*fetch, *job["inputs"]], ["repro", *only, job["stage"]]):
            code = code or dvc(folder, file, *command, environment=environment)
        trained = code == 0
        for command in (
            ["save", "--force", "--name", job["name"], *untracked, job["stage"]],
            ["push", "--force", *share, "origin", job["name"]],
        ):
            code = code or dvc(folder, file, "exp", *command, environment=environment)
        found, error = contents(folder, job["small_outs"]), ""
        if trained and code:
            save = f"`dvc exp save --force --name {job['name']}`"
            send = f"`dvc exp push origin {job['name']}`"
            error = f"trained, but not saved: in {folder} on {platform.node()}, {save}, {send}"
        else:
            shutil.rmtree(folder, ignore_errors=True)
    return {"code": code, "log": log.read_bytes(), "files": found, "error": error}


def reproduce(
    folder: Path,
    stage: str,
    outs: list[str],
    log: IO[bytes],
    environment: dict[str, str] | None = None,
) -> Outcome:
    """Has DVC bring one stage up to date, whatever else DVC is doing here meanwhile.

    DVC waits for the project's lock, but for half a dozen tries only for the one that guards its
    list of readers and writers, and not for that of git's index. If it fails before the command,
    the stage is started once more; if it fails when the command has done its work, that is recorded
    as it is.
    """
    error = ""
    for _ in range(ATTEMPTS):
        begin, since = log.tell(), time.time_ns()
        code = dvc(folder, log, "repro", "--single-item", stage, environment=environment)
        log.seek(begin)
        text = log.read()
        ran = b"> python" in text or b"Running stage" in text
        if code == 0 or FAILED in text:
            break
        if ran and all(written_since(folder / out, since) for out in outs):
            code = record(folder, stage, log)
            if code:
                error = f"it has finished, and could not be recorded: `dvc commit --force {stage}`"
            break
        if not any(words in text for words in BUSY):
            break
    return {"code": code, "ran": ran, "error": error}


def record(folder: Path, stage: str, log: IO[bytes]) -> int:
    """Puts a finished stage into DVC's cache and dvc.lock."""
    for pause in PAUSES:
        time.sleep(pause)
        begin = log.tell()
        code = dvc(folder, log, "commit", "--force", stage)
        log.seek(begin)
        text = log.read()
        if code == 0 or not any(words in text for words in BUSY):
            break
    return code


def written_since(path: Path, nanoseconds: int) -> bool:
    """Whether a file or folder is there, and was written after that time."""
    return path.exists() and path.stat().st_mtime_ns >= nanoseconds


def dvc(
    folder: Path, log: IO[bytes], *arguments: str, environment: dict[str, str] | None = None
) -> int:
    """Runs a DVC command in a folder; returns its exit status."""
    environment = os.environ | SETTINGS | (environment or {})
    command = [sys.executable, "-m", "dvc", "--wait-for-lock", *arguments]
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        start_new_session=True,  # Ctrl-C is the launcher's to deal with
    )
    log.seek(0, os.SEEK_END)
    return done.returncode


def find_python() -> None:
    """Puts this Python's folder into PATH, if Ray was started without its environment activated."""
    folder, paths = str(Path(sys.executable).parent), os.environ["PATH"].split(os.pathsep)
    if folder not in paths:
        os.environ["PATH"] = os.pathsep.join([folder, *paths])


def node_folder(url: str) -> Path:
    """Where this node keeps its clones of a repository: what lies there is run.

    Raises:
        PermissionError: if somebody else can write there.
    """
    base = Path(os.environ.get("LAUNCH_FOLDER", "~/.cache/cifar-pipeline")).expanduser()
    name = f"{platform.node()} {url}"  # DVC's locks are none for another machine's processes
    folder = base / hashlib.sha256(name.encode()).hexdigest()[:12]
    for each in (base, folder):
        each.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = each.lstat()  # a link is everyone's to write to
        if found.st_uid != os.getuid() or found.st_mode & 0o022:
            raise PermissionError(
                f"{each} must be a folder of yours that nobody else can write to. Received: owner "
                f"{found.st_uid}, mode {found.st_mode & 0o777:o}. `chmod go-w`, or set "
                "LAUNCH_FOLDER."
            )
    return folder


def checkout(base: Path, url: str, revision: str, log: IO[bytes]) -> Path | None:
    """This node's clone of exactly this revision, made if it is not there; None if git refuses."""
    import filelock

    folder = base / revision[:12]
    with filelock.FileLock(base / "lock"):
        if folder.exists():
            return folder
        return folder if clone(folder, url, revision, str(base / "cache"), log) else None


def clone(folder: Path, url: str, revision: str, cache: str, log: IO[bytes]) -> bool:
    """Clones a revision, whole or not at all, with a DVC cache that others use too."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    code = (
        git(log, "clone", "--quiet", "--no-checkout", url, str(partial))
        or git(log, "-C", str(partial), "checkout", "--quiet", "--detach", revision)
        or dvc(partial, log, "config", "--local", "cache.dir", cache)
        or dvc(partial, log, "config", "--local", "core.site_cache_dir", str(folder / NOTES))
    )
    if code == 0:
        os.replace(partial, folder)
    return code == 0


def git(log: IO[bytes], *arguments: str) -> int:
    """Runs a git command; returns its exit status."""
    log.write(f"> git {without_passwords(' '.join(arguments))}\n".encode())
    log.flush()
    return subprocess.run(["git", *arguments], stdout=log, stderr=log).returncode


def without_passwords(text: str) -> str:
    """A text whose addresses lack what stands before an @."""
    return re.sub(r"//[^/\s]*@", "//", text)


def change(path: Path, values: dict[str, Any]) -> None:
    """Changes values of params.yaml, given by their dotted keys, where they are.

    Args:
        path: the file, of which all other values stay, and comments too.
        values: `...` stands for one that is to go, and its section too if it was the last one.
    """
    from ruamel.yaml import YAML

    yaml = YAML()
    yaml.width, yaml.preserve_quotes = sys.maxsize, True  # lines stay as long as they are
    tree = yaml.load(path)
    for key in [key for key, value in values.items() if value is ...]:
        remove(tree, key.split("."))
    for key, value in values.items():
        if value is not ...:
            assign(tree, key.split("."), value)
    yaml.dump(tree, path)


def assign(tree: Any, key: list[str], value: Any) -> None:
    """Sets a leaf, and makes the sections around it that are not there."""
    *sections, last = key
    for section in sections:
        tree = tree.setdefault(section, {})
    tree[last] = value


def remove(tree: Any, key: list[str]) -> None:
    """Removes a leaf, if it is there, and with it the sections that held nothing else."""
    first, *rest = key
    if first not in tree:
        return
    if rest:
        remove(tree[first], rest)
    if not rest or not tree[first]:
        del tree[first]


def hand_over(folder: Path, job: NodeJob) -> None:
    """Puts the caller's lock entries and small files into a clone: they may be newer than git's."""
    from dvc.repo import Repo
    from dvc.utils.serialize import modify_yaml

    with Repo(folder, _wait_for_lock=True) as repo, repo.lock:
        if not is_whole(folder / "dvc.lock"):  # a death cut it short; git has a whole one
            subprocess.run(["git", "checkout", "HEAD", "--", "dvc.lock"], cwd=folder, check=True)
        for path, content in job["files"].items():
            file = folder / path
            file.parent.mkdir(parents=True, exist_ok=True)
            if not file.is_file() or file.read_bytes() != content:
                file.unlink(missing_ok=True)  # it may be a link into DVC's cache
                file.write_bytes(content)
        with modify_yaml(str(folder / "dvc.lock")) as lock:
            lock.setdefault("schema", "2.0")
            lock.setdefault("stages", {}).update(job["entries"])


def is_whole(lock: Path) -> bool:
    """Whether a dvc.lock, if there is one, is what DVC writes: it does so in place."""
    from dvc.utils.serialize import YAMLFileCorruptedError, parse_yaml

    if not lock.exists():
        return True
    data = lock.read_bytes()
    try:
        entries = parse_yaml(data, str(lock))["stages"].values()
        return data.endswith(b"\n") and all("cmd" in entry for entry in entries)
    except (YAMLFileCorruptedError, LookupError, TypeError, AttributeError):
        return False


@contextmanager
def reporting(board: Any, stage: str, log: Path) -> Iterator[None]:
    """Meanwhile, sends a log's last line to the board every TELL_SECONDS."""
    done = threading.Event()

    def tell() -> None:
        while not done.wait(TELL_SECONDS):
            board.write.remote(stage, last_line(log))

    threading.Thread(target=tell, daemon=True).start()
    try:
        yield
    finally:
        done.set()


def last_line(path: Path) -> str:
    """The last line of a log that says something."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL_BYTES))
            lines = file.read().decode(errors="replace").strip().splitlines()
    except OSError:
        return ""
    return lines[-1].strip() if lines else ""


def locked_entry(folder: Path, stage: str) -> Any:
    """A stage's entry in a clone's dvc.lock; None if there is none."""
    from dvc.repo import Repo
    from dvc.utils.serialize import load_yaml

    lock = folder / "dvc.lock"
    with Repo(folder, _wait_for_lock=True) as repo, repo.lock:  # DVC writes it in place
        stages = load_yaml(str(lock)).get("stages", {}) if lock.exists() else {}
    return stages.get(stage)


def contents(folder: Path, paths: Iterable[str]) -> dict[str, bytes]:
    """The bytes of these files, and of all files in these folders, by path; none if missing."""
    found: dict[str, bytes] = {}
    for path in (folder / each for each in paths):
        for file in path.rglob("*") if path.is_dir() else [path]:
            if file.is_file():
                found[str(file.relative_to(folder))] = file.read_bytes()
    return found
