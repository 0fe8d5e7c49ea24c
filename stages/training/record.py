"""The run record: on what a training ran and how long it took. Facts of a run, not of a result.

A training that is repeated and gives the same weights in the same environment keeps the record
that git already has. So a forced rerun leaves no trace, and the record always tells of the run that
first gave these weights.
"""

import importlib.metadata
import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import keras


def prepare_device(deterministic: bool) -> None:
    """Lets a GPU's memory grow as needed, and asks for deterministic operations if so wished."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        for gpu in tf.config.list_physical_devices("GPU"):
            tf.config.experimental.set_memory_growth(gpu, True)
        tf.get_logger().setLevel("ERROR")  # every seed traces its own functions, and may
        if deterministic:
            tf.config.experimental.enable_op_determinism()
    elif backend == "torch" and deterministic:
        import torch

        torch.use_deterministic_algorithms(True)
    elif backend == "jax" and deterministic:
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{flags} --xla_gpu_deterministic_ops=true".strip()


def environment(deterministic: bool) -> dict[str, Any]:
    """What a training ran on, and so what its bits depend on beside parameters, code and data."""
    repeatable = deterministic or not has_gpu()
    return {
        "device": describe_device(),
        "backend": keras.backend.backend(),
        "guarantee": "bit for bit on this device with these versions" if repeatable else "none",
        "versions": versions(),
    }


def has_gpu() -> bool:
    """Whether the backend will compute on a GPU."""
    return bool(_gpu())


def describe_device() -> str:
    """The device's name, such as `NVIDIA H100` or `CPU: AMD EPYC, 2 cores`."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return _gpu() or f"CPU: {_processor()}, {cores} cores"


def _gpu() -> str:
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        gpus = tf.config.list_physical_devices("GPU")
        details = tf.config.experimental.get_device_details(gpus[0]) if gpus else {}
        return str(details.get("device_name", "GPU")) if gpus else ""
    if backend == "jax":
        import jax

        device = jax.devices()[0]
        return str(device.device_kind) if device.platform == "gpu" else ""
    if backend == "torch":
        import torch

        return torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return ""


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def versions() -> list[str]:
    """Python's, Keras's, the backend's and numpy's versions, as `name version`."""
    packages = ("keras", keras.backend.backend(), "numpy")
    found = [f"{package} {importlib.metadata.version(package)}" for package in packages]
    return [f"python {platform.python_version()}", *found]


def git_revision() -> str:
    """The commit that is checked out, with `+changes` if code or parameters differ from it."""
    revision = _git("rev-parse", "--short=12", "HEAD").strip()
    changed = _git("status", "--porcelain", "--", "stages", "params.yaml", "dvc.yaml")
    return (revision or "none") + ("+changes" if changed else "")


def write_record(record: dict[str, Any], partial: Path, path: Path) -> None:
    """Writes the record, or again what git has of it where this run only repeated that one.

    Args:
        record: `trainings` and `environment`, lists so that DVC does not take what is in them for
            metrics, and numbers, which it shall.
        partial: where to write.
        path: the file's final path, for which git is asked.
    """
    try:
        previous = json.loads(_git("show", f":./{path.as_posix()}"))
        if _outcome(previous) == _outcome(record):
            record = previous
    except (ValueError, KeyError, TypeError):
        pass  # git has none, or one of another shape
    partial.write_text(json.dumps(record, indent=1) + "\n")


def _outcome(record: dict[str, Any]) -> list[Any]:
    """What two records have in common if one run repeated the other."""
    (environment,) = record["environment"]
    return [
        {key: value for key, value in environment.items() if key != "git_revision"},
        [training["weights_sha256"] for training in record["trainings"]],
    ]


def _git(*arguments: str) -> str:
    """What git prints, or nothing where there is no git or no repository."""
    try:
        result = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return result.stdout if result.returncode == 0 else ""
