"""tools/launch.py on two nodes of a real Ray cluster, which share a git and a DVC remote only."""

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from rerunning import Project, opened

pytestmark = pytest.mark.servers

TARGET = "plot@shapes"
VARIANTS = [f"shapes-{name}" for name in ("lenet", "simple", "convnet", "deep-bn")]
TRAININGS = {f"train@{name}" for name in VARIANTS}
STAGES = {"download@shapes", "stats@shapes", "lineup", TARGET} | TRAININGS
STAGES |= {f"evaluate@{name}" for name in VARIANTS}
SECONDS = 600  # no command takes longer, whatever else the machine does


class Cluster:
    """Nodes of Ray, each in a network namespace of its own, joined by a cable that nobody else has.

    The caller is on the first node's machine, as it is in earnest.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.nodes = folder, list[subprocess.Popen[bytes]]()
        self.session = tempfile.mkdtemp(prefix="ray", dir="/tmp")  # sockets' paths must be short
        self.environment = os.environ | {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_process_group_cleanup_enabled": "true",
        }
        self.address = "10.77.0.1:6379"
        self.namespaces = [subprocess.Popen(["unshare", "--net", "sleep", "3600"]) for _ in "ab"]
        a, b = (each.pid for each in self.namespaces)
        wait_for(lambda: all(network(pid) != network("self") for pid in (a, b)))
        run(f"ip link add cable netns {a} type veth peer name cable netns {b}")
        for n in (0, 1):
            run(f"{self.within(n)} ip address add 10.77.0.{n + 1}/24 dev cable")
            run(f"{self.within(n)} ip link set cable up")
            run(f"{self.within(n)} ip link set lo up")

    def within(self, n: int) -> str:
        """What a command begins with that is to run on the n-th machine."""
        return f"nsenter --net=/proc/{self.namespaces[n].pid}/ns/net"

    def add(self) -> subprocess.Popen[bytes]:
        """Starts a node and waits until it belongs to the cluster."""
        n = len(self.nodes)
        log = self.folder / f"node-{n}.log"
        where = f"--address={self.address}" if n else "--head --port=6379 --include-dashboard=false"
        command = f"{self.within(n)} {Path(sys.executable).parent}/ray start {where} --num-cpus=2"
        command += " --object-store-memory=100000000 --block"
        command += f" --node-ip-address=10.77.0.{n + 1} --temp-dir={self.session}/{n}"
        for _ in range(3):  # Ray gives its own processes 30 s, which is little on a busy machine
            node = self.start(command, n, log)
            if node.poll() is None:
                return node
        raise AssertionError(log.read_text())

    def start(self, command: str, n: int, log: Path) -> subprocess.Popen[bytes]:
        with open(log, "wb") as file:
            node = subprocess.Popen(
                command.split(),
                env=self.environment | {"LAUNCH_FOLDER": str(self.folder / f"node-{n}")},
                stdout=file,
                stderr=file,
                cwd=self.folder,
            )
        self.nodes.append(node)
        wait_for(lambda: "Ray runtime started" in log.read_text() or node.poll() is not None)
        return node

    def kill(self, node: subprocess.Popen[bytes]) -> None:
        """Ends a node with all its processes, as if its plug had been pulled."""
        processes = [psutil.Process(node.pid), *psutil.Process(node.pid).children(recursive=True)]
        for process in processes:
            process.kill()
        node.wait()

    def end(self) -> None:
        for node in self.nodes:
            if node.poll() is None:
                self.kill(node)
        for each in self.namespaces:
            each.kill()
            each.wait()
        shutil.rmtree(self.session, ignore_errors=True)


def run(line: str) -> None:
    subprocess.run(line.split(), check=True)


def network(pid: int | str) -> Path:
    """The network namespace of a process."""
    return Path(f"/proc/{pid}/ns/net").readlink()


def can_make_networks() -> bool:
    """Whether this user may make network namespaces, and has the programs for it."""
    programs = all(map(shutil.which, ("unshare", "nsenter", "ip")))
    cable = "unshare --net ip link add cable type veth peer name other"
    return programs and subprocess.run(cable.split()).returncode == 0


def wait_for(condition: Any, process: subprocess.Popen[str] | None = None) -> None:
    """Until it holds; the deadline only keeps a broken test from hanging."""
    deadline = time.monotonic() + SECONDS
    while not condition():
        if time.monotonic() > deadline or (process and process.poll() is not None):
            if process:
                process.terminate()
            pytest.fail(process.communicate()[0] if process else f"not within {SECONDS} s")
        time.sleep(0.1)


@pytest.fixture
def project(clone: Path, tmp_path: Path) -> Iterator[Project]:
    """A clone that has trained nothing, with a git remote and a DVC remote, all pushed."""
    with opened(clone, tmp_path, "lineup") as project:
        for line in (
            f"git init --quiet --bare {tmp_path}/team.git",
            f"git remote add origin {tmp_path}/team.git",
            f"{sys.executable} -m dvc remote add --force --default team {tmp_path}/storage",
            "rm -rf dvc.lock data results .dvc/cache",
            "git add --all",
            "git commit --quiet --message Remote",
            "git push --quiet --set-upstream origin main",
        ):
            subprocess.run(line.split(), cwd=project.folder, check=True)
        yield project
        run(f"git -C {project.folder} remote remove origin")


@pytest.fixture
def cluster(project: Project, tmp_path: Path) -> Iterator[Cluster]:
    if not can_make_networks():
        pytest.skip("no network namespaces: run as root, with iproute2")
    project.tell_standin()  # the nodes' environment names its file
    cluster = Cluster(tmp_path)
    try:
        cluster.add()
        cluster.add()
        yield cluster
    finally:
        cluster.end()


def start_launch(project: Project, cluster: Cluster) -> subprocess.Popen[str]:
    arguments = [TARGET, "--address", cluster.address, "--cpus-per-job", "1"]
    return subprocess.Popen(
        [*cluster.within(0).split(), sys.executable, "-m", "tools.launch", *arguments],
        cwd=project.folder,
        env=cluster.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def trainings_below(node: subprocess.Popen[bytes]) -> set[str]:
    """The train stages whose commands are at work on a node."""
    found = set()
    for process in psutil.Process(node.pid).children(recursive=True):
        with suppress(psutil.Error):
            words = process.cmdline()
            if "stages.train" in words:
                found.add(f"train@{words[words.index('stages.train') + 1]}")
    return found


def test_the_stages_of_a_node_that_dies_are_run_elsewhere(
    project: Project, cluster: Cluster
) -> None:
    project.tell_standin(seconds=dict.fromkeys(TRAININGS, 10))
    launch = start_launch(project, cluster)
    node = cluster.nodes[1]
    wait_for(lambda: trainings_below(node) & set(project.log.read_text().split()), launch)
    cluster.kill(node)
    output, _ = launch.communicate(timeout=SECONDS)
    assert launch.returncode == 0, output
    ran = project.log.read_text().split()
    assert set(ran) == STAGES
    twice = {name for name in ran if ran.count(name) == 2}
    assert twice and twice <= TRAININGS
    assert len(ran) == len(STAGES) + len(twice)
    assert project.repro(TARGET) == set()


def test_uncommitted_or_unpushed_changes_are_refused(project: Project) -> None:
    path = project.folder / "params.yaml"
    path.write_text(path.read_text() + "# changed\n")
    assert "nothing may be uncommitted. Received:\n M params.yaml" in refusal(project)
    subprocess.run(["git", "commit", "-qam", "Changed"], cwd=project.folder, check=True)
    assert "HEAD must be pushed" in refusal(project)


def refusal(project: Project) -> str:
    arguments = [TARGET, "--address", "10.77.0.1:6379"]
    command = [sys.executable, "-m", "tools.launch", *arguments]
    done = subprocess.run(command, cwd=project.folder, capture_output=True, text=True)
    assert done.returncode == 1
    return done.stderr
