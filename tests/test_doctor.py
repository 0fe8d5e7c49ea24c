"""tools/doctor.py: each check finds its problem, and a workspace in order gives no error."""

import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import filelock
import psutil
import pytest
from conftest import PARAMS, ROOT
from dvc.fs import localfs
from dvc.rwlock import rwlock

from tools import doctor

DVC_YAML = """\
stages:
  train:
    cmd: python -m stages.train
    outs: [weights]
    metrics: [metrics.json: {cache: false}]
"""


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A git and DVC repository in good order, with one stage, as the current folder."""
    folder = tmp_path / "workspace"
    (folder / ".dvc" / "tmp").mkdir(parents=True)
    monkeypatch.chdir(folder)
    subprocess.run(["git", "init", "--quiet"], check=True)
    (folder / ".dvc" / "config").write_text("[core]\n    analytics = false\n")
    (folder / "dvc.yaml").write_text(DVC_YAML)
    (folder / "params.yaml").write_bytes(PARAMS.read_bytes())
    (folder / ".gitignore").write_text("/weights\n")
    for lock in ("requirements.txt", "requirements-cuda.txt"):
        (folder / lock).write_text(f"psutil=={psutil.__version__} \\\n    --hash=sha256:0\n")
    return folder


@pytest.fixture
def children() -> Iterator[list[subprocess.Popen[str]]]:
    """Processes to be ended with the test."""
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        process.kill()
        process.communicate()


def levels(findings: list[doctor.Finding]) -> list[str]:
    return [finding.level for finding in findings]


def only(findings: list[doctor.Finding], level: str) -> str:
    """The text of the only finding, which is of that level and, unless it is ok, has advice."""
    (finding,) = findings
    assert finding.level == level
    assert bool(finding.advice) == (level != "ok")
    return f"{finding.what} {finding.advice}"


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def use_checks(monkeypatch: pytest.MonkeyPatch, *findings: doctor.Finding) -> None:
    """Makes the command run one check that finds these."""
    monkeypatch.setattr(doctor, "CHECKS", {"toy": lambda folder: list(findings)})
    monkeypatch.setattr(sys, "argv", ["doctor"])


def test_a_workspace_in_order_gives_no_error_and_one_line_per_finding(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "seen_device", lambda: ("toy on GPU", True))
    monkeypatch.setattr(sys, "argv", ["doctor"])
    doctor.main()
    lines = capsys.readouterr().out.splitlines()
    found = {tuple(line.split()[:2]) for line in lines}
    assert len(lines) == len(doctor.CHECKS)
    assert {name for _, name in found} == set(doctor.CHECKS)
    # A toy without hooks and without a remote; the disk is this machine's.
    assert {name for level, name in found if level != "ok"} - {"disk"} == {"hooks", "remote"}
    assert "error" not in {level for level, name in found if name != "disk"}


def test_an_error_makes_the_exit_status_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use_checks(monkeypatch, doctor.Finding("ok", "fine"), doctor.Finding("error", "bad", "Mend."))
    with pytest.raises(SystemExit) as exit:
        doctor.main()
    assert exit.value.code == 1
    assert capsys.readouterr().out == "ok       toy        fine\nerror    toy        bad. Mend.\n"


def test_a_warning_leaves_the_exit_status_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    use_checks(monkeypatch, doctor.Finding("warning", "odd", "Look."))
    doctor.main()


def test_a_check_that_fails_is_a_warning_on_one_line_and_stops_no_other(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(folder: Path) -> list[doctor.Finding]:
        raise ZeroDivisionError("two\nlines")

    use_checks(monkeypatch, doctor.Finding("ok", "fine"))
    monkeypatch.setattr(doctor, "CHECKS", {"broken": fails, **doctor.CHECKS})
    doctor.main()
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("warning  broken") and "ZeroDivisionError: two lines" in first
    assert second.startswith("ok       toy")


def test_without_the_packages_the_command_says_how_to_get_them() -> None:
    command = [sys.executable, "-S", "-m", "tools.doctor"]  # -S: no installed packages
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.returncode == 1
    assert "is not installed" in result.stderr and "make setup" in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("version", ["3.9.18", "3.14.0", "3.14.0rc1"])
def test_another_python_version_is_an_error(
    version: str, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "python_version", lambda: version)
    assert "3.11 to 3.13" in only(doctor.check_python(workspace), "error")


def test_another_python_on_the_path_is_a_warning(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = workspace / "bin" / "python"
    fake.parent.mkdir()
    fake.write_text("#!/bin/sh\necho /elsewhere\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}{os.pathsep}{os.environ['PATH']}")
    text = only(doctor.check_python(workspace), "warning")
    assert "/elsewhere" in text and "activate" in text


def test_packages_that_are_missing_or_differ_are_named(workspace: Path) -> None:
    lines = [
        "no-such-package==1.0 \\",
        "    --hash=sha256:0",
        "psutil==0.0.1 ; python_full_version >= '3.10' \\",
        "filelock==0.0.1 ; python_full_version < '3.0' \\",
        "not-for-this-system==1.0 ; sys_platform == 'amiga' \\",
        *(f"missing-{number}==1 \\" for number in range(5)),
    ]
    for lock in ("requirements.txt", "requirements-cuda.txt"):
        (workspace / lock).write_text("\n".join(lines))
    absent, different = doctor.check_packages(workspace)
    assert absent.level == "error" and "no-such-package, missing-0" in absent.what
    assert absent.what.endswith("and 3 more")
    assert different.level == "warning" and "(==0.0.1 there)" in different.what
    assert f"psutil {psutil.__version__}" in different.what
    assert not any("filelock" in each.what or "amiga" in each.what for each in (absent, different))
    assert "--require-hashes" in absent.advice


@pytest.mark.parametrize("level", ["ok", "warning"])
def test_a_gpu_that_keras_does_not_see_is_a_warning(
    level: str, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = workspace / "nvidia-smi"
    fake.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-1)'\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{workspace}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(doctor, "seen_device", lambda: ("toy on D", level == "ok"))
    text = only(doctor.check_device(workspace), level)
    assert "toy on D" in text
    if level == "warning":
        assert "NVIDIA H100 80GB HBM3" in text and "UUID" not in text
        assert "make CUDA=1 setup" in text
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
        assert "unset" in only(doctor.check_device(workspace), level)
        fake.write_text("#!/bin/sh\nexit 9\n")
        assert "driver" in only(doctor.check_device(workspace), level)


def test_keras_that_does_not_load_is_an_error(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails() -> tuple[str, bool]:
        raise ImportError("no libcudart")

    monkeypatch.setattr(doctor, "seen_device", fails)
    assert "no libcudart" in only(doctor.check_device(workspace), "error")


def test_a_folder_without_dvc_and_git_is_two_errors(
    tmp_path: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    dvc, git = doctor.check_workspace(elsewhere)
    assert (dvc.level, git.level) == ("error", "error")
    assert "DVC repository" in dvc.what and "not a git repository" in git.what


def test_a_path_without_dvc_and_git_is_two_errors(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(workspace))
    dvc, git = doctor.check_workspace(workspace)
    assert (dvc.level, git.level) == ("error", "error")
    assert "activate" in dvc.advice and "git is not on the PATH" in git.what


def test_no_remote_is_a_warning(workspace: Path) -> None:
    assert "dvc remote add" in only(doctor.check_remotes(workspace), "warning")


def set_remote(workspace: Path, url: str, default: str = "store", verify: str = "true") -> None:
    remote = f"['remote \"store\"']\n    url = {url}\n    verify = {verify}\n"
    text = f"[core]\n    remote = {default}\n{remote}"
    (workspace / ".dvc" / "config").write_text(text)


def test_a_remote_whose_objects_are_not_checked_is_a_warning(workspace: Path) -> None:
    (workspace / "store").mkdir()
    set_remote(workspace, "../store", verify="false")
    answers, unchecked = doctor.check_remotes(workspace)
    assert (answers.level, unchecked.level) == ("ok", "warning")
    assert unchecked.advice == "`dvc remote modify store verify true`."


def test_a_remote_that_answers_is_ok(workspace: Path) -> None:
    (workspace / "store").mkdir()
    set_remote(workspace, "../store")
    text = only(doctor.check_remotes(workspace), "ok")
    assert f"{workspace / 'store'}" in text
    assert list((workspace / "store").iterdir()) == []


def test_a_remote_that_is_not_there_and_one_that_is_not_the_default_are_warnings(
    workspace: Path,
) -> None:
    set_remote(workspace, "/nowhere/at/all", default="other")
    absent, default = doctor.check_remotes(workspace)
    assert absent.level == "warning" and "does not exist" in absent.what
    assert default.level == "warning" and "other" in default.what


def test_a_remote_that_cannot_be_reached_is_a_warning_without_its_password(
    workspace: Path,
) -> None:
    set_remote(workspace, "http://me:secret@127.0.0.1:1/store")
    text = only(doctor.check_remotes(workspace), "warning")
    assert "cannot be reached: Cannot connect" in text and "http://127.0.0.1:1/store" in text
    assert "secret" not in text


def test_a_remote_that_does_not_answer_is_given_up(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(folder: Path, *command: str, seconds: float) -> None:
        raise subprocess.TimeoutExpired(command, seconds)

    monkeypatch.setattr(doctor, "ask", never)
    set_remote(workspace, "../store")
    said = f"no answer within {doctor.REMOTE_SECONDS} s"
    assert said in only(doctor.check_remotes(workspace), "warning")


def write_rwlock(workspace: Path, pid: int) -> None:
    info = {"pid": pid, "cmd": "/x/bin/dvc repro"}
    locks = {"write": {"weights": info}, "read": {"data": [info], "code": [info]}}
    (workspace / ".dvc" / "tmp" / "rwlock").write_text(json.dumps(locks))


def test_dvc_notes_its_readers_and_writers_as_the_doctor_reads_them(workspace: Path) -> None:
    paths = [str(workspace / name) for name in ("data", "weights")]
    with rwlock(str(workspace / ".dvc/tmp"), localfs, "/x/dvc repro", paths[:1], paths[1:], False):
        text = only(doctor.check_dvc_locks(workspace), "warning")
    assert f"process {os.getpid()} (`dvc repro`), but that is another program" in text


def test_an_rwlock_entry_of_a_dead_process_is_a_warning(workspace: Path) -> None:
    pid = dead_pid()
    write_rwlock(workspace, pid)
    text = only(doctor.check_dvc_locks(workspace), "warning")
    assert f"process {pid} (`dvc repro`), which is gone" in text


def test_an_rwlock_entry_whose_number_was_given_anew_is_a_warning(workspace: Path) -> None:
    write_rwlock(workspace, os.getpid())
    assert "rm .dvc/tmp/rwlock" in only(doctor.check_dvc_locks(workspace), "warning")


def test_an_rwlock_entry_of_a_dvc_at_work_is_ok(
    workspace: Path, children: list[subprocess.Popen[str]]
) -> None:
    children.append(fake_dvc(workspace, "input()"))
    write_rwlock(workspace, children[0].pid)
    assert f"process {children[0].pid}" in only(doctor.check_dvc_locks(workspace), "ok")


@pytest.mark.parametrize("content", ["", "[]", '{"write": {"a": {}}}'])
def test_a_damaged_rwlock_is_an_error(content: str, workspace: Path) -> None:
    (workspace / ".dvc" / "tmp" / "rwlock").write_text(content)
    assert "rm .dvc/tmp/rwlock" in only(doctor.check_dvc_locks(workspace), "error")


def test_the_lock_file_that_dvc_always_leaves_behind_is_no_problem(workspace: Path) -> None:
    (workspace / ".dvc" / "tmp" / "lock").write_text(f" {dead_pid()}\n")
    (workspace / ".dvc" / "tmp" / "rwlock").write_text("{}")
    only(doctor.check_dvc_locks(workspace), "ok")


def test_a_held_lock_of_dvc_names_its_process(
    workspace: Path, children: list[subprocess.Popen[str]]
) -> None:
    lock = workspace / ".dvc" / "tmp" / "lock"
    program = f"import zc.lockfile; lock = zc.lockfile.LockFile({str(lock)!r})"
    children.append(child(f"{program}; {SLEEP}", ROOT))
    text = only(doctor.check_dvc_locks(workspace), "ok")
    assert f"at work: process {children[0].pid}" in text
    lock.write_text(f" {dead_pid()}\n")
    assert "not on this machine" in only(doctor.check_dvc_locks(workspace), "warning")


def test_a_hard_link_lock_that_is_left_over_is_a_warning(workspace: Path) -> None:
    (workspace / ".dvc" / "tmp" / "lock").write_text("/w/.dvc/tmp/0123.lock")
    assert "rm .dvc/tmp/lock" in only(doctor.check_dvc_locks(workspace), "warning")


def child(program: str, cwd: Path, *arguments: str) -> "subprocess.Popen[str]":
    """Starts a Python program and waits for the first line that it prints."""
    command = [sys.executable, "-c", program, *arguments]
    return started(subprocess.Popen(command, cwd=cwd, text=True, **pipes()))


def fake_dvc(workspace: Path, body: str) -> "subprocess.Popen[str]":
    """Starts a Python program that is called `dvc`, in the workspace."""
    program = workspace / "dvc"
    program.write_text(f"print('started', flush=True)\n{body}\n")
    command = [sys.executable, str(program), "repro"]
    return started(subprocess.Popen(command, cwd=workspace, text=True, **pipes()))


def pipes() -> dict[str, int]:
    return {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}


def started(process: "subprocess.Popen[str]") -> "subprocess.Popen[str]":
    assert process.stdout is not None
    assert process.stdout.readline()
    return process


def test_a_trainer_at_work_is_named_and_its_lock_is_left_alone(
    workspace: Path, children: list[subprocess.Popen[str]]
) -> None:
    folder = workspace / "checkpoints" / "toy-simple"
    program = (
        "import sys; from pathlib import Path\n"
        "from stages.training.checkpoint import only_trainer\n"
        "with only_trainer(Path(sys.argv[1])): print('held', flush=True); input()\n"
    )
    children.append(child(program, ROOT, str(folder)))
    text = only(doctor.check_trainings(workspace), "ok")
    assert f"toy-simple is being trained by process {children[0].pid} on" in text
    with pytest.raises(filelock.Timeout):
        filelock.FileLock(folder / "lock", timeout=0).acquire()
    children[0].kill()
    children[0].wait()
    assert "none running" in only(doctor.check_trainings(workspace), "ok")


def test_a_lock_without_an_owner_is_held_by_another_process(workspace: Path) -> None:
    folder = workspace / "checkpoints" / "toy-simple"
    folder.mkdir(parents=True)
    with filelock.FileLock(folder / "lock"):
        assert "by another process" in only(doctor.check_trainings(workspace), "ok")
        (folder / "0123abcd" / "seed-7").mkdir(parents=True)
        (folder / "0123abcd" / "seed-7" / "epoch-000012.npz").touch()
        assert "process (seed-7 after epoch 12)" in only(doctor.check_trainings(workspace), "ok")


def test_a_killed_training_says_where_it_resumes(workspace: Path) -> None:
    for seed, epoch in ((7, 9), (7, 10), (8, 3)):
        folder = workspace / "checkpoints" / "toy-simple" / "0123abcd" / f"seed-{seed}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"epoch-{epoch:06d}.npz").touch()
    text = only(doctor.check_trainings(workspace), "ok")
    assert "toy-simple resumes" in text
    assert "seed-7 after epoch 10, seed-8 after epoch 3" in text
    assert "rm -r checkpoints/toy-simple" in text
    assert not (workspace / "checkpoints" / "toy-simple" / "lock").exists()


SLEEP = "print('started', flush=True); input()"


def test_a_trainer_without_dvc_is_a_warning_that_says_how_to_end_it(
    workspace: Path, tmp_path: Path, children: list[subprocess.Popen[str]]
) -> None:
    children.append(child(SLEEP, workspace, "stages.train", "toy-simple"))
    children.append(child(SLEEP, tmp_path, "stages.train", "of-another-workspace"))
    text = only(doctor.check_orphans(workspace), "warning")
    assert f"kill {children[0].pid}" in text and "toy-simple" in text


def test_a_trainer_of_a_dvc_is_no_orphan(
    workspace: Path, children: list[subprocess.Popen[str]]
) -> None:
    command = [sys.executable, "-c", "import time; time.sleep(60)", "stages.train", "toy"]
    body = f"import subprocess\np = subprocess.Popen({command!r})\nprint(p.pid, flush=True)\n"
    children.append(fake_dvc(workspace, f"{body}input()\np.kill()"))
    trainer = psutil.Process(int(children[0].stdout.readline()))
    try:
        while "stages.train" not in trainer.cmdline():  # until it has replaced its parent's image
            time.sleep(0.01)
        assert trainer in doctor.stage_processes(workspace)
        only(doctor.check_orphans(workspace), "ok")
    finally:
        trainer.kill()


def test_half_written_outputs_are_a_warning_unless_a_stage_is_at_work(
    workspace: Path, children: list[subprocess.Popen[str]]
) -> None:
    (workspace / "results" / "weights" / ".toy.partial").mkdir(parents=True)
    (workspace / "checkpoints").mkdir()
    (workspace / "checkpoints" / "epoch-1.npz.partial").touch()
    text = only(doctor.check_partials(workspace), "warning")
    assert "results/weights/.toy.partial" in text and "replace them" in text
    assert "checkpoints/" not in text
    children.append(child(SLEEP, workspace, "stages.evaluate"))
    assert "being written" in only(doctor.check_partials(workspace), "ok")


@pytest.mark.parametrize(("free_gb", "level"), [(5.1, "ok"), (4.9, "warning"), (0.9, "error")])
def test_little_free_space_is_a_warning_and_none_an_error(
    free_gb: float, level: str, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = SimpleNamespace(free=int(free_gb * 1e9))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    text = only(doctor.check_disk(workspace), level)
    assert f"{free_gb} GB" in text and "the workspace and DVC's cache" in text


def test_a_cache_that_cannot_be_written_is_an_error(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = workspace / ".dvc" / "cache"
    cache.mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: (path, mode) != (cache, os.W_OK))
    assert only(doctor.check_disk(workspace), "error").startswith("DVC's cache cannot be written")


def test_a_cache_on_another_disk_is_measured_by_itself(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Path("/dev/shm")
    if not other.is_dir() or other.stat().st_dev == workspace.stat().st_dev:
        pytest.skip("there is no second file system here")
    text = "[cache]\n    dir = /dev/shm/not/yet/there\n"
    (workspace / ".dvc" / "config").write_text(text)
    gigabytes = {workspace: 50, other: 2}
    usage = lambda path: SimpleNamespace(free=gigabytes[path] * 10**9)  # noqa: E731
    monkeypatch.setattr(shutil, "disk_usage", usage)
    assert levels(doctor.check_disk(workspace)) == ["ok", "warning"]


@pytest.mark.parametrize(
    "text", ["", "schema: '2.0'\nstages:\n  a:\n    cmd: b\n  c:\n    de", "- 1\n"]
)
def test_a_lock_file_that_was_cut_short_is_an_error(workspace: Path, text: str) -> None:
    lock = workspace / "dvc.lock"
    assert "nothing has been run" in only(doctor.check_lock_file(workspace), "ok")
    lock.write_text("schema: '2.0'\nstages:\n  a:\n    cmd: b\n")
    assert "1 stages" in only(doctor.check_lock_file(workspace), "ok")
    lock.write_text(text)
    assert "git checkout" in only(doctor.check_lock_file(workspace), "error")


def test_a_lock_file_with_conflicts_is_merged_again(workspace: Path) -> None:
    lock = workspace / "dvc.lock"
    text = "schema: '2.0'\nstages:\n  a:\n    cmd: {}\n"
    for branch in ("ours", "theirs"):
        subprocess.run(["git", "checkout", "--quiet", "--orphan", branch], check=True)
        lock.write_text(text.format(branch))
        subprocess.run(["git", "add", "dvc.lock"], check=True)
        subprocess.run(["git", "commit", "--quiet", "--message", branch], check=True)
    merge = ["git", "merge", "--allow-unrelated-histories", "ours"]
    assert subprocess.run(merge, capture_output=True).returncode == 1
    assert "git checkout --merge dvc.lock" in only(doctor.check_lock_file(workspace), "error")
    subprocess.run(["git", "config", "merge.dvc-lock.driver", "false"], check=True)
    assert "git checkout --ours dvc.lock" in only(doctor.check_lock_file(workspace), "error")


def test_a_lock_file_that_dvc_may_be_writing_is_left_alone(
    workspace: Path, children: list[subprocess.Popen[str]]
) -> None:
    (workspace / "dvc.lock").write_text("schema: '2.0'\nstages:\n  a:\n    cm")
    lock = workspace / ".dvc" / "tmp" / "lock"
    lock.touch()
    assert "git checkout" in only(doctor.check_lock_file(workspace), "error")
    program = f"import zc.lockfile; lock = zc.lockfile.LockFile({str(lock)!r})"
    children.append(child(f"{program}; {SLEEP}", ROOT))
    assert "Ask again" in only(doctor.check_lock_file(workspace), "warning")


def test_what_gitignore_lacks_and_what_it_has_too_much_are_warnings(workspace: Path) -> None:
    assert "right for all 2" in only(doctor.check_gitignore(workspace), "ok")
    (workspace / ".gitignore").write_text("*.json\n")
    exposed, hidden = doctor.check_gitignore(workspace)
    assert exposed.level == "warning" and exposed.what.endswith(": weights")
    assert hidden.level == "warning" and hidden.what.endswith(": metrics.json")


def test_a_broken_dvc_yaml_is_an_error(workspace: Path) -> None:
    (workspace / "dvc.yaml").write_text("stages: {train: {cmd: x, outs: ['${nowhere}']}}\n")
    assert "nowhere" in only(doctor.check_gitignore(workspace), "error")


def test_a_lock_file_that_was_cut_within_a_line_is_an_error(workspace: Path) -> None:
    text = "schema: '2.0'\nstages:\n  a:\n    cmd: b\n    outs:\n    - path: c\n      md5: 0123\n"
    for kept in (kept for kept in range(1, len(text)) if text[kept - 1] != "\n"):
        (workspace / "dvc.lock").write_text(text[:kept])
        only(doctor.check_lock_file(workspace), "error")


class Answer(Exception):
    """What an HTTP server said, as DVC's file systems raise it."""

    def __init__(self, status: int) -> None:
        super().__init__(f"status {status}")
        self.status = status


@pytest.mark.parametrize("status", [404, 401, 403, 407, 500, 503])
def test_over_http_only_a_missing_folder_counts_as_an_answer(
    monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    def refused(folder: Path) -> None:
        raise FileNotFoundError("/store") from Answer(status)

    monkeypatch.setattr(doctor, "dvc_repository", refused)
    expected = "" if status == 404 else f"status {status}"
    assert doctor.remote_problem(".", "store") == expected


def test_a_project_within_another_repository_is_an_error(tmp_path: Path) -> None:
    folder = tmp_path / "project"
    folder.mkdir()
    for at, line in ((tmp_path, "git init --quiet"), (folder, "dvc init --quiet --subdir")):
        subprocess.run(line.split(), cwd=at, check=True)
    assert f"repository in {tmp_path}" in only(doctor.check_workspace(folder), "error")


def test_missing_hooks_and_merge_drivers_are_a_warning_until_they_are_installed(
    workspace: Path,
) -> None:
    text = only(doctor.check_hooks(workspace), "warning")
    assert "commits are not checked, dvc.lock is merged line by line" in text
    assert "make setup-git" in text
    (workspace / ".pre-commit-config.yaml").write_text("repos: []\n")
    subprocess.run(["pre-commit", "install"], check=True, capture_output=True)
    assert "commits" not in only(doctor.check_hooks(workspace), "warning")
    for driver in ("dvc-lock", "dvc-result"):
        assert "merged line by line" in only(doctor.check_hooks(workspace), "warning")
        subprocess.run(["git", "config", f"merge.{driver}.driver", "true"], check=True)
    only(doctor.check_hooks(workspace), "ok")
    gone = '"/no such/python" -m tools.merge_lock'
    subprocess.run(["git", "config", "merge.dvc-lock.driver", gone], check=True)
    assert "dvc.lock is merged line by line" in only(doctor.check_hooks(workspace), "warning")


def test_invalid_params_are_an_error_that_counts_the_mistakes(workspace: Path) -> None:
    path = workspace / "params.yaml"
    path.write_text("datasets: {}\nrecipe: {}\n")
    text = only(doctor.check_params(workspace), "error")
    assert "is not valid:" in text and "and 2 more" in text and "stages.shared.params" in text
    path.unlink()
    assert "missing" in only(doctor.check_params(workspace), "error")


def test_a_variant_whose_config_does_not_fit_its_model_is_an_error(workspace: Path) -> None:
    path = workspace / "params.yaml"
    path.write_text(path.read_text().replace("config: {}", "config: {depht: 3}", 1))
    assert "depht" in only(doctor.check_params(workspace), "error")
