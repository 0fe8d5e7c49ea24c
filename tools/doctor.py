"""Is this machine fit for the pipeline, and is the workspace in order? One line per finding.

    python -m tools.doctor

An error keeps the pipeline from working; a warning is worth a look. Each says what to do. Nothing
is changed here and no data is transferred.
"""

import argparse
import fcntl
import importlib.metadata
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

try:
    import filelock
    import psutil
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    from stages.shared import params
    from stages.shared.backend import import_keras
    from stages.shared.stage import StageError, _is_dvc
    from tools.command import run
    from tools.finding import Finding, first_few
    from tools.node import is_whole, without_passwords
    from tools.pipeline import locked
except ModuleNotFoundError as missing:  # most often the environment is not activated
    if __name__ != "__main__":
        raise
    sys.exit(
        f"error    {missing.name} is not installed in {sys.prefix}. "
        "`make setup`, then `source .venv/bin/activate`."
    )

ROOT = Path(__file__).resolve().parents[1]
PYTHON = SpecifierSet(">=3.11,<3.14")
LOW_DISK_GB, FULL_DISK_GB = 5, 1
COMMAND_SECONDS = 60  # for a command on this machine
REMOTE_SECONDS = 20  # for a DVC remote to answer
REFUSALS = {401, 403, 407}  # HTTP: unauthorized, forbidden, proxy login required
CUDA = Path(sys.prefix) / "installed-cuda"  # of `make CUDA=1 setup`


def main() -> None:
    description = "Check the environment and the workspace; exit with 1 if there is an error."
    argparse.ArgumentParser(description=description).parse_args()
    levels = set()
    for name, check in CHECKS.items():
        for finding in findings(check, Path.cwd()):
            print(f"{finding.level:<7}  {name:<9}  {finding.text}", flush=True)
            levels.add(finding.level)
    if "error" in levels:
        sys.exit(1)


def findings(check: "Check", folder: Path) -> list[Finding]:
    """What a check finds; a check that fails itself is a finding and does not stop the others."""
    try:
        return check(folder)
    except Exception as error:
        what = f"this check failed to run: {type(error).__name__}: {error}"
        return [Finding("warning", what, "What the other lines say may explain it.")]


def check_python(folder: Path) -> list[Finding]:
    """This Python's version, and that DVC would start the stages with this one."""
    version = platform.python_version()
    if not PYTHON.contains(version, prereleases=True):
        advice = "3.11 to 3.13 is needed: `rm -r .venv`, then `make PYTHON=python3.12 setup`."
        return [Finding("error", f"Python {version} in {sys.prefix}", advice)]
    started = ask(folder, "python", "-c", "import sys; print(sys.prefix)").stdout.strip()
    if started != sys.prefix:
        what = f"DVC would start stages with Python from {started or 'nowhere'}, not {sys.prefix}"
        return [Finding("warning", what, "`source .venv/bin/activate`.")]
    return [Finding("ok", f"{version} in {sys.prefix}")]


def check_packages(folder: Path) -> list[Finding]:
    """The installed versions against those of the lock file that the environment is set up from."""
    lock = folder / ("requirements-cuda.txt" if CUDA.exists() else "requirements.txt")
    absent, different = [], []
    wanted = requirements_of(lock)
    for requirement in wanted:
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            absent.append(requirement.name)
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            different.append(f"{requirement.name} {version} ({requirement.specifier} there)")
    install = f"`python -m pip install --require-hashes -r {lock.name}`."
    found = []
    if absent:
        found.append(
            Finding("error", f"of {lock.name}, not installed: {first_few(absent)}", install)
        )
    if different:
        what = f"other versions than in {lock.name}: {first_few(different)}"
        found.append(Finding("warning", what, f"Results may differ in their last bits: {install}"))
    return found or [Finding("ok", f"{len(wanted)} packages, all as in {lock.name}")]


def requirements_of(path: Path, python: str | None = None) -> list[Requirement]:
    """The requirements of a lock file that apply here to this Python, or to that version of it."""
    environment = (
        {"python_full_version": python, "python_version": python.rpartition(".")[0]}
        if python
        else None
    )
    lines = [text for text in path.read_text().splitlines() if text[:1].isalnum()]
    requirements = [Requirement(text.rstrip("\\ ")) for text in lines]
    return [
        each for each in requirements if each.marker is None or each.marker.evaluate(environment)
    ]


def check_device(folder: Path) -> list[Finding]:
    """What Keras's backend computes on, and whether it misses a GPU that is there."""
    try:
        device, is_gpu = seen_device()
    except ImportError as error:
        advice = "`python -m pip install --require-hashes -r requirements.txt`."
        return [Finding("error", f"Keras cannot be loaded: {error}", advice)]
    driver = ask(folder, "nvidia-smi", "-L")
    if is_gpu or driver.returncode == 127:
        return [Finding("ok", device)]
    listed = driver.stdout.partition(" (UUID")[0].strip() if driver.returncode == 0 else ""
    what = f"{device}, although there is {listed or 'an nvidia-smi, which fails'}"
    if not listed:
        return [Finding("warning", what, "`nvidia-smi` says what is wrong with the driver.")]
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        hidden = f"CUDA_VISIBLE_DEVICES is '{os.environ['CUDA_VISIBLE_DEVICES']}': unset it."
        return [Finding("warning", what, hidden)]
    why = 'import tensorflow as tf; tf.config.list_physical_devices("GPU")'
    why = f"`TF_CPP_MIN_LOG_LEVEL=0 python -c '{why}'` says why."
    return [Finding("warning", what, why if CUDA.exists() else "`make CUDA=1 setup`.")]


def seen_device() -> tuple[str, bool]:
    """Keras's backend and its device in words, and whether that is a GPU."""
    keras = import_keras()
    from stages.training import record  # imports Keras by itself, with all its chatter

    return f"{keras.backend.backend()} on {record.describe_device()}", record.has_gpu()


def check_workspace(folder: Path) -> list[Finding]:
    """That `dvc` and git run, and that the folder is a repository of both."""
    found = []
    dvc = ask(folder, "dvc", "root")
    if dvc.returncode == 127:
        advice = "`source .venv/bin/activate`; before that, once, `make setup`."
        found.append(Finding("error", "dvc is not on the PATH", advice))
    elif dvc.returncode:
        what = f"dvc: {last_line(dvc.stderr)}"
        found.append(Finding("error", what, "Run from the project's root folder."))
    git = ask(folder, "git", "rev-parse", "--show-toplevel")
    if git.returncode:
        advice = "DVC needs git: install it, and clone the project rather than copy it."
        found.append(Finding("error", f"git: {last_line(git.stderr)}", advice))
    elif (root := Path(git.stdout.rstrip("\n"))).resolve() != folder.resolve():
        what = f"the project is a part of the repository in {root}"
        advice = "Sweeps and clusters clone the whole: make it a repository, or a submodule."
        found.append(Finding("error", what, advice))
    version = importlib.metadata.version("dvc")
    return found or [Finding("ok", f"DVC {version} and git run here")]


def check_remotes(folder: Path) -> list[Finding]:
    """That there is a DVC remote, that one is the default, and that each of them answers."""
    config = dvc_config(folder)
    remotes, default = config["remote"], config["core"].get("remote")
    if not remotes:
        advice = "To share data and results: `dvc remote add --default NAME URL`, `dvc push`."
        return [Finding("warning", "none is configured", advice)]
    found = [check_remote(folder, name, str(remotes[name].get("url"))) for name in remotes]
    if default not in remotes:
        what = f"none of {', '.join(remotes)} is the default, which is {default or 'not set'}"
        found.append(Finding("warning", what, "`dvc remote default NAME`."))
    for name in remotes:
        if not remotes[name].get("verify"):
            what = f"downloads from {name} are not verified: a truncated file would pass"
            found.append(Finding("warning", what, f"`dvc remote modify {name} verify true`."))
    return found


def check_remote(folder: Path, name: str, url: str) -> Finding:
    """Whether a remote answers in time. A process of its own asks, so that it can be ended."""
    program = "import sys; from tools import doctor; print(doctor.remote_problem(*sys.argv[1:]))"
    command = (sys.executable, "-c", program, str(folder), name)
    try:
        asked = ask(ROOT, *command, seconds=REMOTE_SECONDS)
        problem = last_line(asked.stderr) if asked.returncode else asked.stdout.strip()
    except subprocess.TimeoutExpired:
        problem = f"there was no answer within {REMOTE_SECONDS} s"
    shown, problem = map(without_passwords, (f"{name} ({url})", problem))
    if problem == "missing":
        advice = "The first `dvc push` creates it; if it should be there: is the disk mounted?"
        return Finding("warning", f"{shown} does not exist", advice)
    if problem:
        advice = "Check network, address and credentials (`dvc remote modify --local`)."
        return Finding("warning", f"{shown} cannot be reached: {problem}", advice)
    return Finding("ok", f"{shown} answers")


def remote_problem(folder: str, name: str) -> str:
    """What keeps DVC from seeing a remote's folder; nothing if it does."""
    try:
        with dvc_repository(Path(folder)) as repo:
            remote = repo.cloud.get_remote(name)
            remote.fs.info(remote.path)
    except FileNotFoundError as error:
        cause = error.__cause__  # over HTTP: why there was no file
        if cause is None:
            return "missing"
        answered = getattr(cause, "status", 500)
        return str(cause) if answered in REFUSALS or answered >= 500 else ""
    except EOFError:
        return "it asks for a password, and none is set"
    except Exception as error:
        return str(error) or type(error).__name__
    return ""


def check_dvc_locks(folder: Path) -> list[Finding]:
    """Who holds DVC's locks, and which of them nobody holds any more."""
    tmp = folder / ".dvc" / "tmp"
    found = [*check_repository_lock(tmp / "lock"), *check_path_locks(tmp / "rwlock")]
    return found or [Finding("ok", "no DVC command is running, no stale lock")]


def check_repository_lock(path: Path) -> list[Finding]:
    """The lock of the whole workspace.

    Its file stays behind with the number of the process that last held it, so that says nothing:
    what counts is whether the system lets us have the lock.
    """
    try:
        with open(path) as file:
            owner = file.read().strip()
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return []
    except BlockingIOError:
        if owner.isdigit() and psutil.pid_exists(int(owner)):
            return [Finding("ok", f"a DVC command is at work: process {owner}")]
        what = f"{path.name} is held by process {owner}, which is not on this machine"
        return [Finding("warning", what, "Wait until it has finished, or end it there.")]
    if owner and not owner.isdigit():  # core.hardlink_lock: there the file itself is the lock
        advice = "If no DVC command is at work here: `rm .dvc/tmp/lock`."
        return [Finding("warning", f"{path.name} is held by {Path(owner).name}", advice)]
    return []


def check_path_locks(path: Path) -> list[Finding]:
    """The list of files that DVC commands are reading and writing."""
    advice = "When no DVC command is at work: `rm .dvc/tmp/rwlock`."
    try:
        modes = json.loads(path.read_bytes())
        readers = [info for infos in modes.get("read", {}).values() for info in infos]
        infos = [*modes.get("write", {}).values(), *readers]
        commands = {int(info["pid"]): str(info["cmd"]) for info in infos}
    except FileNotFoundError:
        return []
    except (ValueError, TypeError, KeyError, AttributeError):
        return [Finding("error", f"{path.name} is damaged, so that DVC refuses to work", advice)]
    found = []
    for pid, command in commands.items():
        what = f"process {pid} (`{Path(command).name}`)"
        if not psutil.pid_exists(pid):
            said = "DVC drops such an entry when it meets it."
            found.append(Finding("warning", f"{path.name} names {what}, which is gone", said))
        elif not _is_dvc(psutil.Process(pid)):
            what = f"{path.name} names {what}, but that is another program now, and DVC waits"
            found.append(Finding("warning", what, advice))
        else:
            found.append(Finding("ok", f"a DVC command is at work: {what}"))
    return found


def check_trainings(folder: Path) -> list[Finding]:
    """Which variants are being trained, by whom, and which a killed training would resume."""
    found = []
    for variant in sorted((folder / "checkpoints").glob("*/")):
        paths = sorted(variant.glob("*/seed-*/epoch-*.npz"))
        epochs = {path.parent.name: int(path.stem.removeprefix("epoch-")) for path in paths}
        reached = first_few(f"{seed} after epoch {epoch}" for seed, epoch in epochs.items())
        if holder := trainer_of(variant):
            so_far = f" ({reached})" if epochs else ""
            found.append(Finding("ok", f"{variant.name} is being trained by {holder}{so_far}"))
        elif epochs:
            what = f"{variant.name} resumes when rerun ({reached}), if nothing changed"
            given_up = f"`rm -r {variant.relative_to(folder)}` gives it up"
            found.append(Finding("ok", f"{what}; {given_up}"))
    return found or [Finding("ok", "none running, none to resume")]


def trainer_of(checkpoints: Path) -> str:
    """The process that holds the lock of a variant's checkpoints; empty if none does."""
    lock, owner = checkpoints / "lock", checkpoints / "owner"
    if not lock.exists():
        return ""
    try:
        with filelock.FileLock(lock, timeout=0):
            return ""
    except filelock.Timeout:
        return owner.read_text() if owner.exists() else "another process"


def check_orphans(folder: Path) -> list[Finding]:
    """Trainers that no DVC waits for: nobody will record what they write."""
    found = []
    for process in stage_processes(folder):
        try:
            command = process.cmdline()
            orphan = not any(_is_dvc(parent) for parent in process.parents())
        except psutil.Error:
            continue
        if "stages.train" in command and orphan:
            variant = (command[command.index("stages.train") + 1 :] or ["?"])[0]
            what = f"process {process.pid} trains {variant} without DVC, which will not record it"
            advice = f"`kill {process.pid}`, then `dvc repro train@{variant}`, which resumes it."
            found.append(Finding("warning", what, advice))
    return found or [Finding("ok", "every running trainer belongs to a DVC command")]


def check_partials(folder: Path) -> list[Finding]:
    """Half-written outputs, which only a killed stage leaves behind."""
    places = (folder / "data", folder / "results")
    paths = [str(path.relative_to(folder)) for at in places for path in at.rglob("*.partial")]
    if not paths:
        return [Finding("ok", "no half-written outputs")]
    if stage_processes(folder):
        return [
            Finding("ok", f"{len(paths)} outputs are being written: {first_few(sorted(paths))}")
        ]
    advice = "Their stages replace them; delete those whose variant is gone."
    return [Finding("warning", f"half-written outputs: {first_few(sorted(paths))}", advice)]


def check_disk(folder: Path) -> list[Finding]:
    """That the workspace and DVC's cache can be written, and the free space there."""
    cache = Path(str(dvc_config(folder)["cache"].get("dir") or folder / ".dvc" / "cache"))
    cache = next(path for path in (cache, *cache.parents) if path.exists())
    places = {"the workspace": folder, "DVC's cache": cache}
    closed = [name for name, path in places.items() if not os.access(path, os.W_OK)]
    if closed:
        advice = "DVC could not keep what a stage has made: it would be made again."
        return [Finding("error", f"{' and '.join(closed)} cannot be written", advice)]
    if cache.stat().st_dev == folder.stat().st_dev:
        places = {"the workspace and DVC's cache": folder}
    found = []
    for name, path in places.items():
        free_gb = shutil.disk_usage(path).free / 1e9
        what = f"{free_gb:.1f} GB free for {name}"
        if free_gb >= LOW_DISK_GB:
            found.append(Finding("ok", what))
            continue
        advice = (
            "Free some; `dvc gc --all-commits --all-experiments` drops from the cache what no "
            "commit and no experiment of this clone uses (not if others share the cache)."
        )
        found.append(Finding("error" if free_gb < FULL_DISK_GB else "warning", what, advice))
    return found


def check_gitignore(folder: Path) -> list[Finding]:
    """That git ignores what DVC's cache keeps, and keeps what that does not."""
    from dvc.exceptions import DvcException

    try:
        with dvc_repository(folder) as repo:
            outs = [out for out in repo.index.outs if out.is_in_repo]
            cached = {os.path.relpath(out.fs_path, folder): bool(out.use_cache) for out in outs}
    except DvcException as error:
        return [Finding("error", f"dvc.yaml: {error}", "`dvc stage list` says more.")]
    git = ask(folder, "git", "check-ignore", "--no-index", "-z", "--stdin", text="\0".join(cached))
    if git.returncode > 1:
        raise StageError(last_line(git.stderr))
    ignored = set(git.stdout.split("\0"))
    exposed = [path for path, is_cached in cached.items() if is_cached and path not in ignored]
    hidden = [path for path, is_cached in cached.items() if not is_cached and path in ignored]
    found = []
    if exposed:
        what = f"DVC keeps these, and git would too: {first_few(exposed)}"
        found.append(Finding("warning", what, "Add them to .gitignore."))
    if hidden:
        what = f"DVC leaves these to git, which ignores them: {first_few(hidden)}"
        advice = f"`git check-ignore -v --no-index {hidden[0]}` names the rule to change."
        found.append(Finding("warning", what, advice))
    return found or [Finding("ok", f"right for all {len(cached)} outputs of dvc.yaml")]


def check_hooks(folder: Path) -> list[Finding]:
    """That commits are checked by pre-commit, and dvc.lock is merged stage by stage."""
    git = ask(folder, "git", "rev-parse", "--git-path", "hooks/pre-commit")
    if git.returncode:
        raise StageError(last_line(git.stderr))
    hook = folder / git.stdout.strip()
    missing = []
    if not (hook.is_file() and os.access(hook, os.X_OK) and "pre-commit" in hook.read_text()):
        missing.append("commits are not checked")
    python, *_ = shlex.split(ask(folder, "git", "config", "merge.dvc-lock.driver").stdout) or [""]
    if not shutil.which(python):  # of an environment that was moved, or is another worktree's
        missing.append("dvc.lock is merged line by line")
    if ask(folder, "git", "config", "merge.dvc-result.driver").returncode:
        missing.append("results are merged line by line")
    if missing:
        return [Finding("warning", ", ".join(missing), "`make setup-git`.")]
    return [Finding("ok", "pre-commit checks each commit, dvc.lock is merged stage by stage")]


def check_lock_file(folder: Path) -> list[Finding]:
    """That dvc.lock is whole. DVC writes it in place, so whoever is killed just then cuts it short.

    Entries that are lost with it are no loss: DVC finds the outputs again in its run cache.
    """
    path = folder / "dvc.lock"
    if not path.exists():
        return [Finding("ok", "nothing has been run yet")]
    whole = is_whole(path)
    if not whole:  # or a DVC command is just writing it
        try:
            with open(folder / ".dvc" / "tmp" / "lock") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                whole = is_whole(path)
        except BlockingIOError:
            what = "dvc.lock is not whole while a DVC command is at work"
            return [Finding("warning", what, "Ask again when that has finished.")]
        except FileNotFoundError:
            pass  # no DVC command has ever been at work here
    if not whole and ask(folder, "git", "ls-files", "--unmerged", "--", "dvc.lock").stdout:
        advice = "`make setup-git && git checkout --merge dvc.lock && git add dvc.lock`."
        if ask(folder, "git", "config", "merge.dvc-lock.driver").returncode == 0:
            advice = "Take one side's: `git checkout --ours dvc.lock`, and `dvc repro`."
        return [Finding("error", "dvc.lock has conflicts of a merge", advice)]
    if not whole:
        advice = "`git checkout -- dvc.lock`, then `dvc repro`."
        return [Finding("error", "dvc.lock is cut short or damaged", advice)]
    return [Finding("ok", f"dvc.lock is whole: {len(locked(folder))} stages")]


def check_params(folder: Path) -> list[Finding]:
    """That params.yaml is valid, with every variant's config."""
    try:
        config = params.check(folder / params.PATH)
    except StageError as error:
        problems = str(error).splitlines()
        what = " ".join(problems[:2])  # "... is not valid:" and the first mistake
        more = f" and {len(problems) - 2} more" if len(problems) > 2 else ""
        advice = "`python -m stages.shared.params` names every mistake."
        return [Finding("error", what.rstrip(".") + more, advice)]
    counts = f"{len(config.datasets)} datasets, {len(config.recipes)} recipes"
    return [Finding("ok", f"valid: {counts}, {len(config.variants)} variants")]


Check = Callable[[Path], list[Finding]]
CHECKS: dict[str, Check] = {
    "python": check_python,
    "packages": check_packages,
    "device": check_device,
    "workspace": check_workspace,
    "params": check_params,
    "dvc.lock": check_lock_file,
    "gitignore": check_gitignore,
    "hooks": check_hooks,
    "disk": check_disk,
    "partials": check_partials,
    "training": check_trainings,
    "orphans": check_orphans,
    "locks": check_dvc_locks,
    "remote": check_remotes,
}


def ask(
    folder: Path, *command: str, text: str = "", seconds: int = COMMAND_SECONDS
) -> "subprocess.CompletedProcess[str]":
    """Runs a command in a folder; one that is not there gives status 127, as in a shell.

    Raises:
        subprocess.TimeoutExpired: if it takes longer than that; it is ended.
    """
    try:
        return subprocess.run(
            command,
            cwd=folder,
            input=text,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
            start_new_session=True,  # without a terminal, it cannot wait for a password
        )
    except FileNotFoundError:
        return subprocess.CompletedProcess(command, 127, "", f"{command[0]} is not on the PATH")


def dvc_repository(folder: Path) -> Any:
    """DVC's view of a workspace; a context manager."""
    from dvc.repo import Repo

    return Repo(str(folder))


def dvc_config(folder: Path) -> dict[str, Any]:
    """DVC's settings for a workspace, from the system's, the user's and the project's files."""
    from dvc.config import Config

    return Config(dvc_dir=str(folder / ".dvc"))


def stage_processes(folder: Path) -> list[psutil.Process]:
    """The processes that run a stage in a folder or below it (DVC's experiments lie there)."""
    found = []
    for process in psutil.process_iter():
        try:
            if any(argument.startswith("stages.") for argument in process.cmdline()):
                at = Path(process.cwd())
                if folder.resolve() in (at, *at.parents):
                    found.append(process)
        except psutil.Error:
            continue
    return found


def last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no message"])[-1]


if __name__ == "__main__":
    run(main)
