"""How each tool runs: as a stage does, and what the system refuses is told in a line as well."""

import argparse
import io
import os
import signal
import sys
from collections.abc import Callable

from stages.shared import stage
from stages.shared.stage import FULL_DISK, StageError


def run(main: Callable[[], None]) -> None:
    """Runs a tool's `main` as `stage.run` does a stage's.

    A file or folder that cannot be read or written is a user's error. If nobody reads what is
    printed any longer (`| head`), the tool ends without a word, as others do.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file's name may be any bytes
    stage.run(lambda: _guarded(main))


def plain(text: str) -> str:
    """A text of others' on its way to a terminal, which must not obey what is in it."""
    return "".join(
        each if each.isprintable() or each in "\n\t" else each.encode("unicode_escape").decode()
        for each in text
    )


def _guarded(main: Callable[[], None]) -> None:
    try:
        try:
            main()
        except StageError as error:
            raise StageError(plain(str(error))) from None
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except OSError as error:
        if error.errno in FULL_DISK or not error.filename:
            raise
        raise StageError(f"{error.filename}: {error.strerror}.") from None


def count(text: str) -> int:
    """An argument that is a number from 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more. Received: {text}")
    return int(text)
