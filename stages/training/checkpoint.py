"""Checkpoints that a killed training resumes from, and the lock that keeps two trainers apart.

A checkpoint belongs to a fingerprint of everything that the result depends on: parameters, code,
data and environment. Anything else finds no checkpoint and starts afresh. DVC does not know of
these files; they are git-ignored and removed when the training has succeeded.
"""

import hashlib
import json
import os
import socket
import sys
import time
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filelock
import numpy as np

from stages.shared.stage import StageError, remove

KEPT = 2  # the newest may be cut short by a power failure; then the one before is used
DAMAGED = (
    OSError,
    ValueError,
    KeyError,
    EOFError,
    NotImplementedError,
    zipfile.BadZipFile,
    zlib.error,
)


@contextmanager
def only_trainer(folder: Path) -> Iterator[None]:
    """Holds the lock of a variant's checkpoints while the body runs.

    Raises:
        StageError: if another process holds it; the message names that process.
    """
    folder.mkdir(parents=True, exist_ok=True)
    owner = folder / "owner"
    try:
        with filelock.FileLock(folder / "lock", timeout=0):
            owner.write_text(
                f"process {os.getpid()} on {socket.gethostname()}, "
                f"since {time.strftime('%Y-%m-%d %H:%M:%S')}"
            )
            yield
    except filelock.Timeout:
        who = owner.read_text() if owner.exists() else "another process"
        raise StageError(
            f"Only one process may train a variant at a time. {folder} is held by {who}. "
            "Wait until it has finished, or end it; a killed training resumes."
        ) from None


def fingerprint(facts: dict[str, Any], files: Iterable[Path]) -> str:
    """A hexadecimal digest of JSON facts and of the contents of files, whatever their order."""
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for path in sorted(files):
        digest.update(sha256(path).encode())
    return digest.hexdigest()[:32]


def sha256(path: Path) -> str:
    """The hexadecimal SHA-256 of a file, read in blocks."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def loaded_code(model: str) -> list[Path]:
    """The files of this project that a training runs: what is imported so far, and its model.

    The schema of params.yaml is left out: it never alters a value.
    """
    root = Path(__file__).resolve().parents[1]
    loaded = [getattr(module, "__file__", None) for module in sys.modules.values()]
    files = {Path(file).resolve() for file in loaded if file}
    files = {file for file in files if root in file.parents and file.name != "params.py"}
    return sorted(files | {root / "models" / f"{model}.py"})


def save(folder: Path, epoch: int, facts: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """Writes a checkpoint whole or not at all, and drops all but the newest ones.

    Args:
        folder: where the checkpoints of one training lie.
        epoch: how many epochs are done.
        facts: JSON values. arrays: by name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"epoch-{epoch:06d}.npz"
    partial = path.with_name(path.name + ".partial")
    with open(partial, "wb") as file:
        np.savez(file, facts=np.frombuffer(json.dumps(facts).encode(), np.uint8), **arrays)  # type: ignore[arg-type]
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    for old in _newest_first(folder)[KEPT:]:
        old.unlink()


def load(folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]] | None:
    """The facts and arrays of the newest checkpoint that is whole, or None."""
    for path in _newest_first(folder):
        try:
            with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            return json.loads(arrays.pop("facts").tobytes()), arrays
        except DAMAGED as error:
            print(f"{path} is damaged ({error}); trying the one before.")
    return None


def discard_others(folder: Path, fingerprint: str) -> None:
    """Removes the checkpoints that belong to anything but this fingerprint."""
    for path in folder.glob("*/"):
        if path.is_dir() and path.name != fingerprint:
            remove(path)


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("epoch-*.npz"), reverse=True)
