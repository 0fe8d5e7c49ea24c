"""What makes a stage a small program: it succeeds whole, or says why and leaves nothing behind.

Every stage imports this file, so a change here reruns everything: keep it small.
"""

import argparse
import errno
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

FULL_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
WATCH_SECONDS = 0.2


class StageError(Exception):
    """Bad input or a failure outside the program: shown as one message, without a traceback.

    The message says what is allowed, then `Received: ...`, then what to do.
    """


def run(main: Callable[[], None]) -> None:
    """Runs a stage's `main` and turns every way of failing into a non-zero exit status.

    SIGTERM becomes an ordinary exit, so that half-written outputs are removed on the way out. A
    stage does not outlive the DVC that started it: nobody would record its outputs, and the next
    `dvc repro` would start a second one beside it.
    """
    dvc = next((each for each in psutil.Process().parents() if _is_dvc(each)), None)
    if dvc:
        threading.Thread(target=_end_with, args=(dvc,), daemon=True).start()
    signal.signal(signal.SIGTERM, lambda signum, frame: sys.exit(128 + signum))
    try:
        main()
    except StageError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except OSError as error:
        if error.errno not in FULL_DISK:
            raise
        where = error.filename or "an output"
        sys.exit(f"error: No space left while writing {where}. Free some disk space and run again.")


def _is_dvc(process: psutil.Process) -> bool:
    try:
        return "dvc" in (Path(argument).name for argument in process.cmdline()[:3])
    except psutil.Error:
        return False


def _end_with(process: psutil.Process) -> None:
    """Ends this process, as if it had been killed, when the other one is gone."""
    while _is_alive(process):
        time.sleep(WATCH_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def argument_parser(description: str) -> argparse.ArgumentParser:
    """A stage's arguments; each stage has `--verbose`."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--verbose", action="store_true", help="print details; also: VERBOSE=1 dvc repro"
    )
    return parser


def detail(text: str) -> None:
    """Prints what is of interest only with `--verbose`, or VERBOSE=1 in the environment."""
    if "--verbose" in sys.argv[1:] or os.environ.get("VERBOSE", "0") not in ("", "0"):
        print(text, flush=True)


def duration(seconds: float) -> str:
    """In words: `0.8 s`, `52 s`, `8 min 43 s`, `2 h 5 min`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if minutes else f"{rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def size(*paths: Path) -> str:
    """What files, and folders with all that is in them, take: `15.8 MB`."""
    files = [file for path in paths for file in (path.rglob("*") if path.is_dir() else [path])]
    count = float(sum(file.stat().st_size for file in files if file.is_file()))
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return (
                f"{count:.0f} {unit}" if unit == "bytes" or count >= 100 else f"{count:.1f} {unit}"
            )
        count /= 1000
    return f"{count:.1f} GB"


@contextmanager
def outputs(*paths: Path) -> Iterator[list[Path]]:
    """Yields one temporary path per output; renames them all at the end, or removes them all.

    Args:
        paths: the final paths of files or folders. The temporary ones lie beside them as
            `.<name>.partial` (ignored by git and DVC); their parent folders exist.

    Raises:
        RuntimeError: if the body ends without having written one of them.
    """
    partials = [path.with_name(f".{path.name}.partial") for path in paths]
    for partial in partials:
        remove(partial)  # left by a killed run
        partial.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield partials
        for partial in partials:
            if not partial.exists():
                raise RuntimeError(f"The stage did not write {partial}.")
        for partial, path in zip(partials, paths, strict=True):
            remove(path)
            os.replace(partial, path)
    finally:
        for partial in partials:
            remove(partial)


def remove(path: Path) -> None:
    """Removes a file or a folder with all that is in it; one that is not there is fine."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
