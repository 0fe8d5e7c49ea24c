"""The Ray cluster that tools/launch.py runs stages on, and what its nodes are to fetch."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.shared.stage import StageError
from tools import node
from tools.git import git
from tools.local import ON_DEVICE, jobs_on
from tools.pipeline import opened

NODE_LOSSES = 3  # how often a stage is begun anew elsewhere because its node died
SETTINGS = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}


@dataclass(frozen=True)
class Source:
    """Where clones get the code and the data.

    Attributes:
        url: of the git repository, with the `revision`.
        remote: the DVC remote; None for the default one.
        folder, cache: for the clones, and the DVC cache that they use; None on other machines.
    """

    url: str
    revision: str
    remote: str | None
    folder: str | None = None
    cache: str | None = None

    def fields(self) -> node.CloneSource:
        """Its part of a job."""
        return {
            "url": self.url,
            "revision": self.revision,
            "remote": self.remote,
            "folder": self.folder,
            "cache": self.cache,
        }


def local_source() -> Source:
    """This folder's revision, for clones on this machine.

    Raises:
        StageError: if there are uncommitted changes.
    """
    revision = committed()
    with opened() as repo:
        folder = str(Path(repo.tmp_dir) / "launch")
        return Source(str(Path.cwd()), revision, None, folder, repo.cache.local_cache_dir)


def pushed_source(remote: str | None) -> Source:
    """This folder's revision, for other machines.

    Raises:
        StageError: if it is not committed and pushed, or if there is no git or DVC remote.
    """
    revision = committed()
    try:
        url = git("config", "--get", "remote.origin.url")
    except StageError:
        raise StageError(
            "Nodes clone the git remote 'origin'. Received: no such remote. "
            "`git remote add origin URL`."
        ) from None
    if not git("branch", "--remotes", "--list", "origin/*", "--contains", revision):
        raise StageError(f"HEAD must be pushed to origin. Received: {revision[:12]}. `git push`.")
    with opened() as repo:
        if not (remote or repo.config["core"].get("remote")):
            raise StageError(
                "Nodes share data through a DVC remote. Received: no default one. "
                "`dvc remote add --default NAME ADDRESS`, commit and push."
            )
    return Source(str(Path(url).resolve()) if Path(url).exists() else url, revision, remote)


def committed() -> str:
    """The commit that HEAD is.

    Raises:
        StageError: if anything but results differs from it, or the stages' code has new files.
    """
    rest = (".", ":!dvc.lock", ":!results")
    changed = git("status", "--porcelain", "--untracked-files=no", "--", *rest).splitlines()
    changed += git("status", "--porcelain", "--untracked-files=all", "--", "stages").splitlines()
    if changed:
        raise StageError(
            "Clones run committed code only, so nothing may be uncommitted. Received:\n"
            + "\n".join(dict.fromkeys(changed))
            + "\nCommit it, and push it for other machines."
        )
    return git("rev-parse", "HEAD")


class Connection:
    """Runs stages on a cluster.

    Args:
        ray: the module, connected.
        jobs: stages at a time; None for as many as the cluster has room for.
        gpus_per_job: what a training or an evaluation takes, if any node has GPUs.
        cpus_per_job: what each stage takes.

    Raises:
        StageError: if no node has as many GPUs or cores.
    """

    def __init__(self, ray: Any, jobs: int | None, gpus_per_job: float, cpus_per_job: int) -> None:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self._ray, self.jobs = ray, jobs
        gpus, cpus = (self._most(kind) for kind in ("GPU", "CPU"))
        if gpus and gpus < gpus_per_job:
            raise StageError(
                f"--gpus-per-job must be at most {gpus:g}, what the largest node has. Received: "
                f"{gpus_per_job:g}."
            )
        if cpus and cpus < cpus_per_job:
            raise StageError(
                f"--cpus-per-job must be at most {cpus:g}, what the largest node has. Received: "
                f"{cpus_per_job}."
            )
        self._gpus = gpus_per_job if gpus else 0
        self._cpus = cpus_per_job
        this = ray.get_runtime_context().get_node_id()
        there = NodeAffinitySchedulingStrategy(this, soft=False)
        board = ray.remote(num_cpus=0, scheduling_strategy=there)(node.Board)
        self._board = board.remote()  # not on a node that may die before us

    def _nodes(self) -> list[dict[str, float]]:
        """What each node that is there has: "CPU", "GPU" and others."""
        return [each["Resources"] for each in self._ray.nodes() if each["Alive"]]

    def _most(self, kind: str) -> float:
        """How much of a resource the node has that has most of it."""
        return max((each.get(kind, 0) for each in self._nodes()), default=0)

    def slots(self) -> int:
        """How many trainings can run at once on the nodes that are there now, at least one."""
        shares = [each.get("CPU", 0) // self._cpus for each in self._nodes()]
        if self._gpus:
            on_gpus = [jobs_on(int(each.get("GPU", 0)), self._gpus) for each in self._nodes()]
            shares = list(map(min, shares, on_gpus))
        return self.jobs or max(1, int(sum(shares)))

    def run_on_node(self, job: node.NodeJob) -> Any:
        return self._start(node.run_on_node, job, self._board)

    def run_trial(self, job: node.TrialJob) -> Any:
        return self._start(node.run_trial, job)

    def _start(self, function: Any, job: node.StageJob, *more: Any) -> Any:
        gpus = self._gpus if job["stage"].startswith(ON_DEVICE) else 0
        options = {"num_cpus": self._cpus, "num_gpus": gpus, "max_retries": NODE_LOSSES}
        return self._ray.remote(**options)(function).options(name=job["stage"]).remote(job, *more)

    def lines(self) -> dict[str, str]:
        """The last line that each stage on a node has printed."""
        return dict(self._ray.get(self._board.read.remote()))

    def finished(self, references: list[Any], seconds: float) -> list[Any]:
        """Waits for a stage to end, that long at most; returns those that have ended."""
        done, _ = self._ray.wait(references, timeout=seconds)
        return list(done)

    def outcome(self, reference: Any) -> node.Outcome:
        """What a worker returned; of one that Ray lost for good, what Ray says."""
        try:
            outcome: node.Outcome = self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            text = str(error).strip()
            return {"code": 1, "ran": True, "error": text, "log": text.encode()}
        return outcome


@contextmanager
def connected(
    address: str, jobs: int | None, gpus_per_job: float, cpus_per_job: int
) -> Iterator[Connection]:
    """A connection to the cluster at that address; its stages end with the connection.

    Raises:
        StageError: if Ray is not installed or cannot be reached.
    """
    os.environ.update(SETTINGS)
    try:
        import ray
    except ModuleNotFoundError:
        raise StageError(
            "--address needs Ray, the extra `cluster`. Received: no Ray. `make setup`."
        ) from None
    ray.cloudpickle.register_pickle_by_value(node)  # type: ignore[no-untyped-call]
    try:
        ray.init(address, logging_level=logging.ERROR, log_to_driver=False)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise StageError(
            f"--address must be that of a Ray cluster which this machine belongs to. Received: "
            f"{address}: {error}"
        ) from None
    try:
        yield Connection(ray, jobs, gpus_per_job, cpus_per_job)
    finally:
        ray.shutdown()
