"""tools/launch.py on one machine, with DVC, and stand-ins for the stages' commands."""

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import yaml
from conftest import PARAMS, ROOT
from dvc.fs import localfs
from dvc.lock import LockError
from dvc.repo import Repo
from dvc.rwlock import rwlock
from rerunning import Project, opened
from rich.console import Console

from stages.shared.stage import StageError
from tools import cluster, display, doctor, launch, local, node, pipeline
from tools.pipeline import Step

TARGET = "plot@shapes"
SHAPES = [f"shapes-{name}" for name in ("lenet", "simple", "convnet", "deep-bn")]
SECONDS = 300  # no command takes longer, whatever else the machine does


@pytest.fixture(scope="module")
def shapes(clone: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """The project with the shapes variants up to date, by stand-ins."""
    with opened(clone, tmp_path_factory.mktemp("scratch"), TARGET) as project:
        yield project


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "tools.launch", *arguments]


def run_launch(project: Project, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), cwd=project.folder, capture_output=True, text=True, timeout=SECONDS
    )


def dvc_lock(project: Project) -> str:
    return (project.folder / "dvc.lock").read_text()


def wait_for(condition: Any) -> None:
    """Until it holds; the deadline only keeps a broken test from hanging."""
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def processes_in(folder: Path) -> list[psutil.Process]:
    """All that work in a folder, but this one."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.cwd() == str(folder) and process.pid != os.getpid():
                found.append(process)
    return found


def test_a_failure_holds_back_only_what_depends_on_it_and_the_lock_becomes_a_serial_runs(
    shapes: Project,
) -> None:
    tree = yaml.safe_load(shapes.text)
    tree["recipes"]["demo"]["epochs"] += 1
    tree["recipes"]["demo-augmented"]["epochs"] += 1
    tree["variants"]["shapes-new"] = deepcopy(tree["variants"]["shapes-lenet"]) | {"seeds": [3]}
    lock = dvc_lock(shapes)
    shapes.write_params(tree)
    shapes.tell_standin()
    serial_repro = [sys.executable, "-m", "dvc", "repro", "--quiet", TARGET]
    subprocess.run(serial_repro, cwd=shapes.folder, check=True)
    serial, expected = shapes.ran(), dvc_lock(shapes)
    (shapes.folder / "dvc.lock").write_text(lock)
    subprocess.run(["git", "clean", "-fdxq", "data", "results"], cwd=shapes.folder, check=True)
    cache = shapes.folder / ".dvc/cache"
    cache.rename(cache.with_name("cache.serial"))

    shapes.tell_standin(failing=["train@shapes-simple"])
    *foreseen, total = run_launch(shapes, TARGET, "--dry-run").stdout.splitlines()
    assert {line.split()[0] for line in foreseen} >= serial
    assert total.startswith(f"{len(foreseen)} stages may run.")
    assert shapes.ran() == set()
    done = run_launch(shapes, TARGET, "--jobs", "3")
    assert done.returncode == 1
    assert "evaluate@shapes-simple: skipped: it depends on a failed one" in done.stdout
    assert f"{TARGET}: skipped" in done.stdout
    assert "train@shapes-simple failed: logs/launch/train@shapes-simple.log" in done.stderr
    log = (shapes.folder / "logs/launch/train@shapes-simple.log").read_text()
    assert "train@shapes-simple was told to fail" in log
    held_back = {"train@shapes-simple", "evaluate@shapes-simple", TARGET}
    assert shapes.ran() - {"train@shapes-simple"} >= serial - held_back

    shapes.tell_standin()
    done = run_launch(shapes, TARGET, "--jobs", "3")
    assert done.returncode == 0, done.stderr
    assert shapes.ran() == held_back
    assert dvc_lock(shapes) == expected

    done = run_launch(shapes, TARGET)
    assert done.stdout == "Up to date: 14 stages.\n"
    assert shapes.repro(TARGET) == set()


def test_what_another_branch_left_in_place_is_not_run_again(shapes: Project) -> None:
    """As DVC itself would here, where others ran it: the cache lacks the files that git has."""
    here = yaml.safe_load(shapes.text)
    shapes.write_params(here)
    shapes.repro(TARGET)
    lock = dvc_lock(shapes)
    kinds = [shapes.folder / "results" / kind for kind in ("curves", "runs", "metrics", "figures")]
    files = [path for kind in kinds for path in kind.rglob("*") if path.is_file()]
    small = {path: path.read_bytes() for path in files}
    tree = deepcopy(here)
    tree["recipes"]["demo"]["epochs"] += 5
    shapes.write_params(tree)
    assert "train@shapes-lenet" in shapes.repro(TARGET)
    shapes.write_params(here)  # and what else `git switch` brings back
    (shapes.folder / "dvc.lock").write_text(lock)
    for path, content in small.items():
        path.write_bytes(content)
        digest = hashlib.md5(content).hexdigest()
        (shapes.folder / ".dvc/cache/files/md5" / digest[:2] / digest[2:]).unlink(missing_ok=True)
    shapes.tell_standin()
    done = run_launch(shapes, TARGET)
    assert not {name for name in shapes.ran() if name.startswith("train@")}, done.stdout
    assert done.returncode == 0


def test_outputs_are_put_in_place_where_nothing_else_is_wrong_and_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("moved", "lost", "unsaved", "changed", "unrecorded")
    stages = {
        name: {"cmd": f"cat {name}.in > {name}", "deps": [f"{name}.in"], "outs": [name]}
        for name in names
    }
    monkeypatch.chdir(tiny_project(tmp_path / "project", stages))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))

    def repro(content: str) -> None:
        for name in names:
            Path(f"{name}.in").write_text(f"{content} {name}")
        subprocess.run([sys.executable, "-m", "dvc", "repro", "--quiet"], check=True)

    repro("ours")
    lock = pipeline.LOCK.read_bytes()
    repro("theirs")
    pipeline.LOCK.write_bytes(lock)  # a switch of branches back
    for name in ("moved", "lost", "unsaved", "unrecorded"):
        Path(f"{name}.in").write_text(f"ours {name}")
    for name, content in (("unsaved", "by hand"), ("lost", "ours lost")):
        Path(name).unlink()  # which may be a link into the cache
        Path(name).write_text(content)
    digest = hashlib.md5(b"ours lost").hexdigest()
    cached = Path(".dvc/cache/files/md5", digest[:2], digest[2:])
    cached.unlink()
    entries = pipeline.locked()
    pipeline.write_lock(pipeline.LOCK, {n: e for n, e in entries.items() if n != "unrecorded"})
    _, outdated = pipeline.plan([], put=True)
    assert {name: Path(name).read_text() for name in names} == {
        "moved": "ours moved",
        "lost": "ours lost",
        "unsaved": "by hand",
        "changed": "theirs changed",
        "unrecorded": "theirs unrecorded",
    }
    assert set(outdated) == {"unsaved", "changed", "unrecorded"}
    assert cached.read_text() == "ours lost"


@pytest.mark.parametrize("way", [signal.SIGINT, signal.SIGHUP])
def test_an_interrupted_launch_ends_all_that_it_started(
    shapes: Project, way: signal.Signals
) -> None:
    tree = yaml.safe_load(shapes.text)
    tree["recipes"]["demo"]["epochs"] += 1
    shapes.write_params(tree)
    shapes.tell_standin(seconds={f"train@{name}": SECONDS for name in tree["variants"]})
    ignored = signal.signal(
        way, signal.default_int_handler
    )  # under `nohup`, and all that is started
    with subprocess.Popen(
        command(TARGET, "--jobs", "2"), cwd=shapes.folder, stderr=subprocess.PIPE, text=True
    ) as process:
        signal.signal(way, ignored)
        try:
            wait_for(lambda: shapes.log.read_text().count("train@") == 2)
            assert len(processes_in(shapes.folder)) >= 3
        finally:
            process.send_signal(way)
        try:
            _, stderr = process.communicate(timeout=SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    assert process.returncode == 130
    assert "Interrupted; ending train@shapes-" in stderr
    assert processes_in(shapes.folder) == []
    rwlock = json.loads((shapes.folder / ".dvc" / "tmp" / "rwlock").read_text())
    assert not any(rwlock.values()), "DVC was not left the time to end what it does"
    assert shapes.repro(TARGET) >= {"train@shapes-lenet", "train@shapes-simple"}


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--jobs", "0"], "--jobs: must be 1 or more. Received: 0"),
        (["--cpus-per-job", "x"], "--cpus-per-job: must be 1 or more. Received: x"),
        (["--gpus-per-job", "1.5"], "must be between 0 and 1, or whole. Received: 1.5"),
        (["--trials", "3"], "--seeds and --trials need --sweep"),
        (["--dry-run", "--sweep", "a=1"], "--dry-run cannot go with --sweep"),
        (["--remote", "store"], "--remote needs --address"),
        (["--sweep", "a=1", "--sweep", "a=2"], "must name each key once, and none that"),
        (["--sweep", "a.b=1", "--sweep", "a=2"], "lies under another. Received: a.b, a"),
        (["--address", ""], "--address must be HOST:PORT or auto. Received: nothing"),
    ],
)
def test_bad_arguments_are_named(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.setattr(sys, "argv", ["launch", *arguments])
    with pytest.raises(SystemExit):
        launch.parse_arguments()
    assert message in capsys.readouterr().err


def test_what_may_run_is_told_with_what_it_took(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "params.yaml").write_bytes(PARAMS.read_bytes())
    (tmp_path / "results/runs/shapes").mkdir(parents=True)
    rest = {"epochs": 1, "weights_sha256": ""}
    trainings = {"trainings": [{"seconds": 50.0} | rest, {"seconds": 70.4} | rest]}
    (tmp_path / "results/runs/shapes/shapes-lenet.json").write_text(json.dumps(trainings))
    monkeypatch.chdir(tmp_path)
    names = ["lineup", "train@shapes-lenet", "train@shapes-simple"]
    lines = [line.split(maxsplit=1) for line in launch.dry_run_text(names[:2]).splitlines()]
    assert lines[:2] == [["lineup"], ["train@shapes-lenet", "2 min 0 s"]]
    assert " ".join(lines[2]) == "2 stages may run. Their trainings took 2 min 0 s before."
    lines = [line.split(maxsplit=1) for line in launch.dry_run_text(names).splitlines()]
    assert lines[2] == ["train@shapes-simple", "not yet run"]
    assert launch.dry_run_text(["lineup"]) == "lineup\n1 stage may run."
    assert " ".join(lines[3]).endswith("took 2 min 0 s before, except 1 not yet run.")


def test_a_target_that_is_not_there_is_named(shapes: Project) -> None:
    done = run_launch(shapes, "plot@shaps")
    assert done.returncode == 1
    assert done.stderr.startswith("error: Stage 'plot@shaps' not found")


@pytest.mark.parametrize(
    ("gpus", "per_job", "shares"),
    [
        ([], 1.0, []),
        (["0", "1"], 1.0, ["0", "1"]),
        (["0", "1"], 0.5, ["0", "1", "0", "1"]),
        (["3"], 0.3, ["3", "3", "3"]),
        (["3"], 0.2, ["3"] * 5),
        (["0", "1", "2", "3", "4"], 2.0, ["0,1", "2,3"]),
    ],
)
def test_each_job_sees_its_share_of_the_gpus(
    gpus: list[str], per_job: float, shares: list[str]
) -> None:
    assert local.gpu_shares(gpus, per_job) == shares


def test_more_gpus_than_there_are_is_an_error() -> None:
    with pytest.raises(StageError, match=r"must be at most 1\. Received: 2\."):
        local.gpu_shares(["0"], 2.0)


@pytest.mark.parametrize(
    ("visible", "per_job", "jobs"), [("0,1,2", 1.0, 3), ("0,1,2", 0.5, 6), ("-1", 1.0, 4)]
)
def test_as_many_jobs_run_as_there_are_shares_of_gpus_or_without_one_of_cores(
    monkeypatch: pytest.MonkeyPatch, visible: str, per_job: float, jobs: int
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(local, "usable_cores", lambda: 8)
    with local.connected(None, per_job, 2) as connection:
        assert connection.jobs == connection.slots() == jobs
    with local.connected(5, per_job, 2) as connection:
        assert connection.jobs == 5
    monkeypatch.setattr(local, "usable_cores", lambda: 1)
    with local.connected(None, per_job, 2) as connection:
        assert connection.jobs == (jobs if visible != "-1" else 1)


def test_a_stages_command_sees_its_share_of_the_gpus_and_takes_no_whole_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = {"cmd": "env > ${item}", "outs": ["${item}"]}
    project = tiny_project(tmp_path / "project", {"train": {"foreach": ["a", "b"], "do": one}})
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    seen = []
    with local.connected(1, 1.0, 2) as connection:
        for name in ("a", "b"):  # in turn
            job = {"root": str(project), "stage": f"train@{name}", "outs": [name], "log": "log"}
            job["environment"] = {}
            assert connection.outcome(connection.run_here(job))["code"] == 0
            lines = (project / name).read_text().splitlines()
            assert "TF_FORCE_GPU_ALLOW_GROWTH=true" in lines
            seen += [line for line in lines if line.startswith("CUDA_VISIBLE_DEVICES=")]
    assert seen == ["CUDA_VISIBLE_DEVICES=0", "CUDA_VISIBLE_DEVICES=1"]


class FakeRay:
    """What a connection asks of Ray, with such nodes and one that is gone.

    Attributes:
        asked: the cores and GPUs of each job that was started.
    """

    def __init__(self, *nodes: dict[str, float]) -> None:
        self.alive, self.asked = nodes, list[tuple[float, float]]()

    def nodes(self) -> list[dict[str, Any]]:
        gone = {"Alive": False, "Resources": {"CPU": 99, "GPU": 99}}
        return [gone, *({"Alive": True, "Resources": each} for each in self.alive)]

    def get_runtime_context(self) -> Any:
        return SimpleNamespace(get_node_id=lambda: 56 * "0")

    def remote(self, num_cpus: float, num_gpus: float = 0, **_: Any) -> Any:
        def start(*arguments: Any) -> None:
            self.asked.append((num_cpus, num_gpus))

        started = SimpleNamespace(remote=start)
        return lambda _: SimpleNamespace(options=lambda **_: started, remote=lambda: None)


@pytest.mark.parametrize(("most", "gpus"), [({"CPU": 8, "GPU": 2}, 0.5), ({"CPU": 8}, 0)])
def test_of_a_cluster_only_training_and_evaluation_ask_for_a_gpu_if_there_is_one(
    most: dict[str, float], gpus: float
) -> None:
    ray = FakeRay(most)
    connection = cluster.Connection(ray, None, 0.5, 3)
    for stage in ("train@a", "evaluate@a", "plot@b"):
        connection.run_on_node({"stage": stage})
    connection.run_trial({"stage": "train@a"})
    assert ray.asked == [(3, gpus), (3, gpus), (3, 0), (3, gpus)]


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A git repository with one commit, as the current folder."""
    monkeypatch.chdir(tmp_path)
    for name in ("params.yaml", "dvc.lock", "results/a.json", "stages/train.py"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text("1\n")
    for line in ("init --quiet", "add --all", "commit --quiet -m Start"):
        subprocess.run(["git", *line.split()], check=True)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("params.yaml", " M params.yaml"),
        ("stages/train.py", " M stages/train.py"),
        ("stages/models/new.py", "?? stages/models/new.py"),
        ("dvc.lock", None),
        ("results/a.json", None),
        ("results/b.json", None),
        ("notes.txt", None),
    ],
)
def test_what_runs_in_clones_is_committed(repository: Path, name: str, shown: str | None) -> None:
    (repository / name).parent.mkdir(exist_ok=True)
    (repository / name).write_text("2\n")
    if shown is None:
        assert len(cluster.committed()) == 40
        return
    with pytest.raises(StageError, match="nothing may be uncommitted") as caught:
        cluster.committed()
    assert str(caught.value).splitlines()[1:-1] == [shown]


@pytest.mark.parametrize("kept", [0, 5, 20, 24, 27, 32, 38, 40])
def test_a_lock_that_was_cut_short_in_a_nodes_clone_is_gits_again(
    repository: Path, kept: int
) -> None:
    Repo.init().close()
    lock = repository / "dvc.lock"
    lock.write_text("schema: '2.0'\nstages:\n  a:\n    cmd: one\n")
    subprocess.run(["git", "commit", "--quiet", "-am", "Lock"], check=True)
    lock.write_text(lock.read_text()[:kept])
    node.hand_over(repository, {"files": {}, "entries": {"b": {"cmd": "two"}}})
    assert pipeline.locked(repository) == {"a": {"cmd": "one"}, "b": {"cmd": "two"}}


def test_outside_of_a_repository_nothing_counts_as_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StageError, match="git status failed"):
        cluster.committed()


@pytest.mark.parametrize(
    ("nodes", "jobs", "slots"),
    [
        ([{"CPU": 8, "GPU": 2}, {"CPU": 4}], None, 2),
        ([{"CPU": 8, "GPU": 2}, {"CPU": 2, "GPU": 4}], None, 3),
        ([{"CPU": 5}, {"CPU": 4}], None, 4),
        ([{"CPU": 5}, {"CPU": 4}], 3, 3),
        ([{}], None, 1),
    ],
)
def test_a_cluster_has_as_many_slots_as_its_nodes_have_room_for(
    nodes: list[dict[str, float]], jobs: int | None, slots: int
) -> None:
    assert cluster.Connection(FakeRay(*nodes), jobs, 1.0, 2).slots() == slots


@pytest.mark.parametrize(("share", "slots"), [(0.2, 10), (0.3, 6), (0.5, 4), (2.0, 1)])
def test_a_share_is_of_one_of_a_nodes_gpus(share: float, slots: int) -> None:
    assert cluster.Connection(FakeRay({"CPU": 64, "GPU": 2}), None, share, 2).slots() == slots


def test_more_than_the_largest_node_has_is_an_error() -> None:
    ray = FakeRay({"CPU": 8, "GPU": 4}, {"CPU": 6, "GPU": 4})
    with pytest.raises(StageError, match=r"--gpus-per-job must be at most 4.* Received: 8\."):
        cluster.Connection(ray, None, 8.0, 2)
    with pytest.raises(StageError, match=r"--cpus-per-job must be at most 8.* Received: 14\."):
        cluster.Connection(ray, None, 1.0, 14)


def test_gpus_are_those_that_the_user_left_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, GPU-77")
    assert local.visible_gpus() == ["2", "GPU-77"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert local.visible_gpus() == []


@pytest.mark.parametrize(("code", "found"), [(0, ["0", "1"]), (9, [])])
def test_without_that_gpus_are_those_that_nvidia_smi_lists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, found: list[str]
) -> None:
    lines = "GPU 0: NVIDIA H100 (UUID: GPU-1)\\n  MIG 1g.10gb Device 0\\nGPU 1: NVIDIA H100"
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\nprintf '{lines}\\n'\nexit {code}\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert local.visible_gpus() == found


def test_trainings_take_turns_on_a_gpu_and_other_stages_do_not_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    together, lock = set[str](), threading.Lock()

    def work(job: dict[str, Any]) -> dict[str, Any]:
        device = job.get("environment", {}).get("CUDA_VISIBLE_DEVICES", "none")
        with lock:
            assert device == "none" or device not in together
            together.add(device)
        time.sleep(0.02)
        with lock:
            together.discard(device)
        return {"device": device}

    monkeypatch.setattr(node, "run_here", work)
    with local.connected(4, 1.0, 2) as connection:
        names = [f"train@{n}" for n in range(8)] + ["stats@shapes"]
        jobs = [connection.run_here({"stage": name}) for name in names]
        devices = [connection.outcome(job)["device"] for job in jobs]
    assert set(devices[:-1]) == {"0", "1"} and devices[-1] == "none"


def test_what_needs_no_gpu_does_not_wait_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    free = threading.Event()

    def work(job: dict[str, Any]) -> dict[str, Any]:
        return {"free": job["stage"] == "stats@a" or free.wait(SECONDS)}

    monkeypatch.setattr(node, "run_here", work)
    with local.connected(3, 1.0, 2) as connection:
        try:
            connection.run_here({"stage": "train@a"})
            connection.run_here({"stage": "train@b"})  # has no GPU yet
            other = connection.run_here({"stage": "stats@a"})
            assert connection.finished([other], 30) == [other]
        finally:
            free.set()


@pytest.mark.parametrize("code", [1, 0])
def test_what_failed_on_a_node_or_could_not_be_pulled_has_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("m.json").write_text("old")
    recorded: list[Any] = []
    monkeypatch.setattr(pipeline, "record", recorded.append)
    monkeypatch.setattr(node, "dvc", lambda *_: 7)  # the pull
    nodes = launch.ClusterRunner(SimpleNamespace(jobs=1), cluster.Source("origin", "abc", None))
    outcome = {"code": code, "ran": True, "log": b"why\n"}  # all that there is of a lost one
    outcome |= {} if code else {"files": {"m.json": b"new"}, "entry": {}}
    nodes.collect(Step("a", [], [], ["m.json"], [], []), outcome, Path("a.log"))
    assert (outcome["code"], len(recorded)) == ((1, 0) if code else (7, 1))
    assert Path("m.json").read_text() == ("old" if code else "new")
    assert Path("a.log").read_bytes() == b"why\n"


def test_a_commit_that_only_another_remote_has_is_not_pushed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nodes clone origin."""
    monkeypatch.chdir(tiny_project(tmp_path / "project", {}))
    for line in (
        "git add --all",
        "git commit --quiet --message Project",
        "git remote add origin elsewhere",
        "git update-ref refs/remotes/fork/main HEAD",
    ):
        subprocess.run(line.split(), check=True)
    with pytest.raises(StageError, match=r"HEAD must be pushed to origin\."):
        cluster.pushed_source(None)
    subprocess.run("git update-ref refs/remotes/origin/main HEAD".split(), check=True)
    with pytest.raises(StageError, match=r"Nodes share data through a DVC remote"):
        cluster.pushed_source(None)


def test_dvcs_lock_is_written_whole_under_its_guard_and_loses_no_entry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_project(tmp_path / "project", {}))
    pipeline.write_lock(pipeline.LOCK, {name: {"cmd": name} for name in ("theirs", "b", "a")})
    pipeline.put_in_order(["a"], ["b"])
    assert list(pipeline.locked()) == ["a", "b", "theirs"]
    guard, held, whole = Path(".dvc/tmp/lock"), [], pipeline.LOCK.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(
            pipeline, "write_lock", lambda *_: held.extend(doctor.check_repository_lock(guard))
        )
        pipeline.record({"c": {"cmd": "c"}})
        pipeline.put_in_order(["b"], [])
    assert [f"process {os.getpid()}" in each.what for each in held] == [True, True]

    def dies(name: str, data: Any) -> None:
        Path(name).write_text("schema")
        raise KeyboardInterrupt

    monkeypatch.setattr("dvc.utils.serialize.dump_yaml", dies)
    with pytest.raises(KeyboardInterrupt):
        pipeline.write_lock(pipeline.LOCK, {})
    assert pipeline.LOCK.read_bytes() == whole


def test_an_end_also_ends_what_was_waiting_for_a_gpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setattr(local, "LEAVING_SECONDS", 1)

    def work(job: dict[str, Any]) -> dict[str, Any]:
        (tmp_path / job["stage"]).touch()
        time.sleep(0.5)  # has the GPU, but no process yet
        subprocess.run(["sh", "-c", "sleep 20 && touch finished"], cwd=tmp_path)
        return {}

    monkeypatch.setattr(node, "run_here", work)
    with local.connected(3, 1.0, 2) as connection:
        references = [connection.run_here({"stage": f"train@{n}"}) for n in range(5)]
        wait_for(lambda: list(tmp_path.iterdir()))
    assert all(reference.done() for reference in references)
    assert not (tmp_path / "finished").exists()


DIAMOND = {
    name: Step(name, upstream, (name,), (), upstream, ())
    for name, upstream in {"a": (), "b": ("a",), "c": ("a",), "d": ("b", "c"), "e": ()}.items()
}


class Stages:
    """Runs stages in no time, one after the other, and says which were running together."""

    def __init__(
        self,
        jobs: int | None = None,
        failing: str = "",
        unchanged: str = "",
        unknown: str = "",
        uncollected: str = "",
        lost: str = "",
    ) -> None:
        self.connection = SimpleNamespace(jobs=jobs, finished=self.finished, outcome=self.outcome)
        self.failing, self.unchanged = failing, unchanged
        self.unknown, self.uncollected, self.lost = unknown, uncollected, lost
        self.together: list[str] = []
        self.asked = ""

    def start(self, step: Step, log: Path) -> str:
        return step.name

    def is_outdated(self, step: Step) -> bool:
        self.asked += step.name
        if step.name in self.unknown:
            raise StageError("params.yaml is being edited")
        return step.name not in self.unchanged

    def lines(self, logs: dict[str, Path]) -> dict[str, str]:
        return dict.fromkeys(logs, "")

    def collect(self, step: Step, outcome: dict[str, Any], log: Path) -> None:
        if step.name in self.uncollected:
            raise OSError("the disk is full")

    def finished(self, names: list[str], seconds: float) -> list[str]:
        self.together.append("".join(names))
        return names[:1]

    def outcome(self, name: str) -> dict[str, Any]:
        if name in self.lost:
            raise OSError("no process can be started")
        return {"code": int(name in self.failing), "ran": True}


@pytest.mark.parametrize(
    "stages, together, code",
    [
        (Stages(), ["ae", "ebc", "bc", "c", "d"], 0),
        (Stages(jobs=1), ["a", "b", "c", "d", "e"], 0),
        (Stages(jobs=2), ["ae", "eb", "bc", "c", "d"], 0),
        (Stages(failing="b"), ["ae", "ebc", "bc", "c"], 1),
        (Stages(failing="ae"), ["ae", "e"], 1),
        (Stages(unchanged="bc"), ["ae", "ed", "d"], 0),
        (Stages(unknown="b"), ["ae", "ec", "c"], 1),
        (Stages(uncollected="e"), ["ae", "ebc", "bc", "c", "d"], 1),
        (Stages(lost="b"), ["ae", "ebc", "bc", "c"], 1),
    ],
)
def test_a_stage_starts_as_soon_as_all_that_it_depends_on_is_done(
    stages: Stages,
    together: list[str],
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert launch.Launch(DIAMOND, list(DIAMOND), stages).run() == code
    assert stages.together == together


def test_why_a_stage_failed_is_told_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    launch.Launch(DIAMOND, list(DIAMOND), Stages(failing="a", uncollected="e")).run()
    said = capsys.readouterr().err
    assert said == "  a failed: logs/launch/a.log\n  e failed: the disk is full\n"
    stages: Any = Stages(uncollected="a")
    stages.start = lambda step, log: log.write_text(step.name) and step.name
    launch.Launch(DIAMOND, ["a"], stages).run()
    assert capsys.readouterr().err == "  a failed: logs/launch/a.log: the disk is full\n"


def test_a_stage_is_tried_again_while_git_writes_its_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DVC has recorded it then, and fails when it is to tell git."""

    def dvc(folder: Path, log: Any, *command: str, **_: Any) -> int:
        said = next(outcomes)
        log.write(said)
        return int(bool(said))

    outcomes = iter([b"unexpected error - ('.git/index', '.git/index.lock')\n", b""])
    monkeypatch.setattr(node, "dvc", dvc)
    with open(tmp_path / "log", "w+b") as log:
        outcome = node.reproduce(tmp_path, "lineup", ["data/lineup"], log)
    assert outcome == {"code": 0, "ran": False, "error": ""}


def test_of_what_nothing_ran_before_the_plan_still_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DVC takes seconds to say it, with hundreds of stages, and meanwhile nothing is started."""
    monkeypatch.chdir(tmp_path)
    stages = Stages()
    assert launch.Launch(DIAMOND, list("bcde"), stages).run() == 0
    assert stages.asked == "d"


def test_on_a_terminal_each_running_stage_is_a_line_with_its_latest_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"epoch 2\n 10%\r epoch 3  loss 0.5\r\n\n")
    monkeypatch.setattr(display, "Console", partial(Console, force_terminal=True, width=100))
    with display.Display(2) as shown:
        shown.started("train@a")
        shown.update({"train@a": node.last_line(log)})
        shown.ended("train@a", "ran")
    said = capsys.readouterr().out
    assert "epoch 3  loss 0.5" in said and "10%" not in said
    assert "[1/2] train@a: done in " in said
    assert node.last_line(tmp_path / "none") == ""


def tiny_project(folder: Path, stages: dict[str, Any]) -> Path:
    """A git and DVC project with these stages."""
    folder.mkdir()
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    for line in ("git init --quiet", f"{sys.executable} -m dvc init --quiet"):
        subprocess.run(line.split(), cwd=folder, check=True)
    return folder


@pytest.mark.parametrize("more", [0, 71])  # epochs than it was trained with
def test_a_trial_on_a_node_runs_its_training_and_makes_no_data_anew(
    shapes: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: int
) -> None:
    """Though the node has only the training images of what `download` wrote."""
    shapes.write_params(yaml.safe_load(shapes.text))
    shapes.repro(TARGET)
    epochs = shapes.tree["recipes"]["demo"]["epochs"] + more
    node_of = tmp_path / "of-the-node"
    for line in (
        f"git clone --quiet {shapes.folder} {node_of}",
        f"{sys.executable} -m dvc remote add --local store {tmp_path / 'store'}",
        f"{sys.executable} -m dvc push --quiet --remote store stats@shapes download@shapes",
    ):
        subprocess.run(line.split(), cwd=shapes.folder, check=True)
    (steps, _), stage = pipeline.plan([TARGET]), "train@shapes-lenet"
    for name in ("params.yaml", "dvc.lock", ".dvc/config.local"):
        shutil.copy(shapes.folder / name, node_of / name)
    config = (node_of / ".dvc/config.local").read_text()
    (node_of / ".dvc/config").write_text(config)
    for line in ("git add --all", "git commit --quiet --message Trained"):
        subprocess.run(line.split(), cwd=node_of, check=True)
    monkeypatch.setenv("LAUNCH_FOLDER", str(tmp_path / "node"))
    job = {
        "name": "trial",
        "changes": {"recipes.demo.epochs": epochs},
        "stage": stage,
        "inputs": steps[stage].inputs,
        "small_outs": steps[stage].small_outs,
        "url": str(node_of),
        "revision": "HEAD",
        "remote": "store",
        "folder": None,
        "cache": None,
        "identity": {},
        "environment": {},
    }
    shapes.tell_standin()
    before = set((tmp_path / "store").rglob("*"))
    outcome = node.run_trial(job)
    subprocess.run(
        [sys.executable, "-m", "dvc", "remote", "remove", "--local", "store"], check=True
    )
    assert outcome["code"] == 0, outcome["log"].decode()
    assert shapes.ran() == {stage}
    assert outcome["files"].keys() == set(steps[stage].small_outs)
    listed = ["git", "-C", str(node_of), "for-each-ref", "refs/exps"]
    assert "/trial\n" in subprocess.run(listed, capture_output=True, text=True).stdout
    assert set((tmp_path / "store").rglob("*")) > before  # the weights
    assert not list(tmp_path.glob("node/*/trials/trial"))  # a clone with its data


@pytest.mark.parametrize("fails, kept", [("repro", False), ("exp", True)])
def test_the_clone_of_a_trial_is_kept_if_what_it_trained_could_not_be_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str, kept: bool
) -> None:
    def clone(folder: Path, *_: Any) -> bool:
        folder.mkdir()
        return True

    monkeypatch.setattr(node, "clone", clone)
    monkeypatch.setattr(node, "change", lambda *_: None)
    environments = []

    def dvc(_: Path, __: Any, command: str, *___: str, environment: dict[str, str]) -> int:
        environments.append(environment)
        return int(command == fails)

    monkeypatch.setattr(node, "dvc", dvc)
    job = {"name": "trial", "changes": {}, "stage": "train@a", "inputs": [], "small_outs": []}
    job |= {"url": "", "revision": "", "remote": None, "folder": str(tmp_path), "cache": "here"}
    job |= {"identity": {"GIT_AUTHOR_NAME": "A"}, "environment": {"CUDA_VISIBLE_DEVICES": "1"}}
    outcome = node.run_trial(job)
    assert environments[-1] == {"GIT_AUTHOR_NAME": "A", "CUDA_VISIBLE_DEVICES": "1"}
    assert outcome["code"] == 1
    assert (tmp_path / "trials" / "trial").exists() == kept
    assert ("not saved: in" in outcome["error"]) == kept


HOLDER = f"""
import os, time, zc.lockfile
lock = zc.lockfile.LockFile(".dvc/tmp/rwlock.lock")
if os.fork():
    os._exit(0)
os.closerange(0, 3)
for _ in range({20 * SECONDS}):
    if os.path.exists("released"):
        break
    time.sleep(0.05)
"""


@pytest.fixture
def impatient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes DVC's tries for its guard, which are as many as ever, follow each other at once."""
    (tmp_path / "sitecustomize.py").write_text("import dvc.lock\ndvc.lock.DEFAULT_TIMEOUT = 0.1\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


def reproduced_by_a_dvc_that_is_refused_its_guard(folder: Path) -> tuple[dict[str, Any], str]:
    """What came of the stage `work`, and the log; the guard is released once DVC gives up."""
    path = folder / "log"
    with open(path, "w+b") as log, ThreadPoolExecutor() as threads:
        work = threads.submit(node.reproduce, folder, "work", ["out"], log)
        try:
            wait_for(lambda: work.done() or b"Unable to acquire lock" in path.read_bytes())
        finally:
            (folder / "released").touch()
        return work.result(), path.read_text()


def test_a_stage_that_finished_while_dvc_could_not_record_it_is_recorded_and_not_run_again(
    tmp_path: Path, impatient: None
) -> None:
    (tmp_path / "holder.py").write_text(HOLDER)
    line = f"echo once >> ran && echo result > out && {sys.executable} ../holder.py"
    folder = tiny_project(tmp_path / "project", {"work": {"cmd": line, "outs": ["out"]}})
    outcome, log = reproduced_by_a_dvc_that_is_refused_its_guard(folder)
    assert outcome == {"code": 0, "ran": True, "error": ""}, log
    assert "Unable to acquire lock" in log
    assert (folder / "ran").read_text() == "once\n"
    assert list(pipeline.locked(folder)) == ["work"]


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ([b"fatal: Unable to create '.git/index.lock': File exists"] * 2 + [b""], 3),
        ([b"No space left on device"], 1),
    ],
)
def test_a_finished_stage_is_recorded_once_an_editor_has_let_gits_index_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: list[bytes], expected: int
) -> None:
    waited: list[float] = []
    left = list(said)

    def commit(folder: Path, log: Any, *arguments: str) -> int:
        assert arguments == ("commit", "--force", "work")
        log.write(left.pop(0))
        return int(said[-1] != b"" or bool(left))

    monkeypatch.setattr(node, "dvc", commit)
    monkeypatch.setattr(time, "sleep", waited.append)
    with open(tmp_path / "log", "w+b") as log:
        assert node.record(tmp_path, "work", log) == (0 if said[-1] == b"" else 1)
        assert log.tell() == len(b"".join(said))
    assert waited == list(node.PAUSES[:expected])


def test_nothing_is_started_where_it_could_not_be_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = doctor.Finding("error", "0.1 GB free for the workspace", "Free some")
    monkeypatch.setattr(doctor, "check_disk", lambda folder: [full])
    monkeypatch.setattr(pipeline, "plan", lambda targets, put: ({}, ["train@shapes-lenet"]))
    monkeypatch.setattr(sys, "argv", ["launch"])
    monkeypatch.chdir(ROOT)
    with pytest.raises(StageError, match=r"^0\.1 GB free for the workspace\. Free some$"):
        launch.main()


def test_how_to_record_what_dvc_could_not_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, impatient: None
) -> None:
    (tmp_path / "holder.py").write_text(HOLDER)
    line = f"echo result > out && {sys.executable} ../holder.py"
    folder = tiny_project(tmp_path / "project", {"work": {"cmd": line, "outs": ["out"]}})
    monkeypatch.setattr(node, "record", lambda *_: 255)  # no room
    outcome, _ = reproduced_by_a_dvc_that_is_refused_its_guard(folder)
    assert (outcome["code"], outcome["ran"]) == (255, True)
    assert "`dvc commit --force work`" in outcome["error"]


def test_a_stage_is_tried_again_while_dvcs_guard_is_taken(tmp_path: Path, impatient: None) -> None:
    stages = {"work": {"cmd": "echo once >> ran && echo result > out", "outs": ["out"]}}
    folder = tiny_project(tmp_path / "project", stages)
    (folder / ".dvc/tmp").mkdir(exist_ok=True)
    subprocess.run([sys.executable, "-c", HOLDER], cwd=folder, check=True)
    outcome, log = reproduced_by_a_dvc_that_is_refused_its_guard(folder)
    assert outcome == {"code": 0, "ran": True, "error": ""}, log
    assert "Unable to acquire lock" in log
    assert (folder / "ran").read_text() == "once\n"


def test_what_a_node_runs_can_be_sent_to_where_the_project_is_not() -> None:
    import ray

    ray.cloudpickle.register_pickle_by_value(node)
    try:
        sent = ray.cloudpickle.dumps([node.Board, node.run_on_node, node.run_trial])
    finally:
        ray.cloudpickle.unregister_pickle_by_value(node)
    program = "import pickle, sys; print([e.__name__ for e in pickle.load(sys.stdin.buffer)])"
    isolated = [sys.executable, "-I", "-c", program]
    received = subprocess.run(isolated, input=sent, capture_output=True, check=False)
    assert received.stdout.decode() == "['Board', 'run_on_node', 'run_trial']\n", received.stderr


def test_a_node_runs_nothing_from_where_others_can_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAUNCH_FOLDER", str(tmp_path / "launch"))
    folder = node.node_folder("url")
    for each in (folder, folder.parent):
        assert each.stat().st_mode & 0o777 == 0o700
        each.chmod(0o770)
        with pytest.raises(PermissionError, match=rf"^{each} .* nobody else .* mode 770"):
            node.node_folder("url")
        each.chmod(0o700)


def test_a_log_has_no_password(tmp_path: Path) -> None:
    with open(tmp_path / "log", "wb") as log:
        node.git(log, "check-ref-format", "https://me:sec@ret@example.org/team.git")
    assert (tmp_path / "log").read_text() == "> git check-ref-format https://example.org/team.git\n"


def test_dvc_says_that_a_path_is_busy_in_the_words_that_are_waited_for(tmp_path: Path) -> None:
    with (
        rwlock(str(tmp_path), localfs, "one", [], ["/data"], False),
        pytest.raises(LockError) as refused,
        rwlock(str(tmp_path), localfs, "two", ["/data"], [], False),
    ):
        pass
    assert any(words.decode() in str(refused.value) for words in node.BUSY)


@pytest.mark.parametrize("damaged", ["", "[]"])
def test_damaged_notes_of_dvcs_are_an_error_that_names_the_doctor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damaged: str
) -> None:
    folder = tiny_project(tmp_path / "project", {"work": {"cmd": "touch out", "outs": ["out"]}})
    (folder / ".dvc/tmp").mkdir(exist_ok=True)
    (folder / ".dvc/tmp/rwlock").write_text(damaged)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    with pytest.raises(StageError, match=r"rwlock.*`make doctor`"):
        pipeline.plan([])


def test_a_failed_command_is_not_recorded_though_its_outputs_are_there(tmp_path: Path) -> None:
    stages = {"work": {"cmd": "echo once >> ran && echo half > out && exit 3", "outs": ["out"]}}
    folder = tiny_project(tmp_path / "project", stages)
    with open(tmp_path / "log", "w+b") as log:
        outcome = node.reproduce(folder, "work", ["out"], log)
    assert outcome["code"] != 0
    assert (folder / "ran").read_text() == "once\n"
    assert pipeline.locked(folder) == {}


CONTENDER = """
import random, sys, time, zc.lockfile
random.seed(0)
while True:
    path, longest = random.choice([(".dvc/tmp/lock", 0.5)] * 19 + [(".dvc/tmp/rwlock.lock", 6.0)])
    try:
        lock = zc.lockfile.LockFile(path)
    except zc.lockfile.LockError:
        time.sleep(0.01)
        continue
    time.sleep(random.uniform(0, longest))
    lock.close()
    time.sleep(random.uniform(0, 2))
"""
LAUNCHES = """
import sys
from pathlib import Path
from tools import launch, local, pipeline
path = Path("params.yaml")
lost = recorded = 0
with local.connected(4, 1.0, 2) as connection:
    for n in range(int(sys.argv[1])):
        text = path.read_text()
        path.write_text(text.replace("seeds: [", f"seeds: [{1000 + n}, "))
        steps, outdated = pipeline.plan(sys.argv[2:])
        code = launch.Launch(steps, outdated, launch.LocalRunner(connection)).run()
        entries = pipeline.locked()
        for name in outdated:
            seeds = f"variants.{name.partition('@')[2]}"
            found = entries[name]["params"]["params.yaml"][seeds]["seeds"]
            recorded += found[0] == 1000 + n
            lost += found[0] != 1000 + n
        path.write_text(text)
        assert code == 0, n
print(f"{recorded} results, {lost} lost")
"""


@pytest.mark.slow
def test_fifty_launches_that_others_lock_out_again_and_again_lose_no_result(
    shapes: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [f"train@{name}" for name in SHAPES]
    tree = yaml.safe_load(shapes.text)
    shapes.write_text(yaml.safe_dump(tree, sort_keys=False, default_flow_style=None))
    shapes.repro(*names)
    contender = subprocess.Popen([sys.executable, "-c", CONTENDER], cwd=shapes.folder)
    try:
        done = subprocess.run(
            [sys.executable, "-c", LAUNCHES, "50", *names],
            cwd=shapes.folder,
            capture_output=True,
            text=True,
        )
    finally:
        contender.kill()
        contender.wait()
    assert done.returncode == 0, done.stdout + done.stderr
    with capsys.disabled():
        print(f"\n{done.stdout.splitlines()[-1]}")
    assert done.stdout.splitlines()[-1] == "200 results, 0 lost"
