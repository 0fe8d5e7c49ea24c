"""Runs stages side by side on this machine for tools/launch.py: a thread per job, a GPU share each.

Ray would do that too (tools/cluster.py), but takes as long to start as a short stage, and listens.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from queue import SimpleQueue
from typing import Any

import psutil

from stages.shared.stage import StageError
from tools import node

ENDING_SECONDS = 10
LEAVING_SECONDS = 30
POLL_SECONDS = 0.1
ON_DEVICE = ("train@", "evaluate@")


class Local:
    """Runs jobs on this machine.

    Args:
        jobs: how many at a time; None for one per GPU share, or without a GPU per share of cores.
        gpus_per_job: 1, 2, ..., or a part of one.
        cpus_per_job: cores; counted only where there is no GPU.

    Raises:
        StageError: if there are not as many GPUs.
    """

    def __init__(self, jobs: int | None, gpus_per_job: float, cpus_per_job: int) -> None:
        shares = gpu_shares(visible_gpus(), gpus_per_job)
        self.jobs = jobs or len(shares) or max(1, usable_cores() // cpus_per_job)
        self._shares: SimpleQueue[str] = SimpleQueue()  # what is free, for CUDA_VISIBLE_DEVICES
        for share in shares:
            self._shares.put(share)
        self._on_gpu = bool(shares)
        self._threads = ThreadPoolExecutor(max_workers=self.jobs)
        self._started: list[Future[node.Outcome]] = []
        self._others = set(psutil.Process().children())  # none of ours

    def slots(self) -> int:
        """How many jobs can run at once."""
        return self.jobs

    def run_here(self, job: node.LocalJob) -> Future[node.Outcome]:
        return self._submit(node.run_here, job)

    def run_trial(self, job: node.TrialJob) -> Future[node.Outcome]:
        return self._submit(node.run_trial, job)

    def _submit(self, function: Any, job: node.StageJob) -> Future[node.Outcome]:
        self._started.append(self._threads.submit(self._run, function, job))
        return self._started[-1]

    def _run(self, function: Any, job: node.StageJob) -> node.Outcome:
        outcome: node.Outcome
        if not (self._on_gpu and job["stage"].startswith(ON_DEVICE)):
            outcome = function(job)
            return outcome
        share = self._shares.get()
        try:
            outcome = function(job | {"environment": {"CUDA_VISIBLE_DEVICES": share}})
            return outcome
        finally:
            self._shares.put(share)

    def finished(self, references: list[Any], seconds: float) -> list[Any]:
        """Waits for a job to end, that long at most; returns those that have ended."""
        done, _ = wait(references, seconds, FIRST_COMPLETED)
        return list(done)

    def outcome(self, reference: Any) -> node.Outcome:
        """What the job returned."""
        outcome: node.Outcome = reference.result()
        return outcome

    def end(self) -> None:
        """Ends what still runs, with all its processes.

        A thread may begin another meanwhile, as when it has waited for a share of a GPU that the
        end of a process gives back: so until all threads are at their end.
        """
        self._threads.shutdown(wait=False, cancel_futures=True)
        while left := [each for each in self._started if not each.done()]:
            ours = list(set(psutil.Process().children()) - self._others)
            end_processes([child for each in ours for child in descendants(each)])
            psutil.wait_procs(ours, LEAVING_SECONDS)  # DVC may be writing dvc.lock, in place
            end_processes(ours)
            wait(left, POLL_SECONDS)
        self._threads.shutdown()


@contextmanager
def connected(jobs: int | None, gpus_per_job: float, cpus_per_job: int) -> Iterator[Local]:
    """This machine, on which nothing of it runs afterwards."""
    local = Local(jobs, gpus_per_job, cpus_per_job)
    try:
        yield local
    finally:
        local.end()


def usable_cores() -> int:
    """The cores that this process may use: a batch system may have given it a few of many."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return cores or 1


def visible_gpus() -> list[str]:
    """The NVIDIA GPUs that may be used, as CUDA_VISIBLE_DEVICES names them."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [name.strip() for name in chosen.split(",") if name.strip() not in ("", "-1")]
    if not shutil.which("nvidia-smi"):
        return []
    done = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True)
    lines = done.stdout.splitlines() if done.returncode == 0 else []  # `GPU 0: ...`, and its parts
    return [line.split(":")[0].removeprefix("GPU ") for line in lines if line.startswith("GPU ")]


def jobs_on(gpus: int, per_job: float) -> int:
    """How many jobs have room on that many GPUs, if each takes so many, or a share of one."""
    return gpus * int(1 / per_job + 1e-9) if per_job < 1 else gpus // int(per_job)


def gpu_shares(gpus: list[str], per_job: float) -> list[str]:
    """What each job may see: several GPUs, one, or one that others see too.

    Raises:
        StageError: if there are not as many GPUs.
    """
    if per_job < 1:
        return gpus * jobs_on(1, per_job)
    size = int(per_job)
    if gpus and len(gpus) < size:
        raise StageError(f"--gpus-per-job must be at most {len(gpus)}. Received: {size}.")
    whole = range(0, len(gpus) - size + 1, size)
    return [",".join(gpus[first : first + size]) for first in whole]


def descendants(process: psutil.Process) -> list[psutil.Process]:
    try:
        return list(process.children(recursive=True))
    except psutil.NoSuchProcess:
        return []


def end_processes(processes: list[psutil.Process]) -> None:
    """Ends processes, gently first."""
    for process in processes:
        with suppress(psutil.Error):
            process.terminate()
    _, alive = psutil.wait_procs(processes, ENDING_SECONDS)
    for process in alive:
        with suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(alive, ENDING_SECONDS)
