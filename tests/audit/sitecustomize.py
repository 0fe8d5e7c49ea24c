"""Python imports this as it starts, if it is on PYTHONPATH: it notes each file that is opened."""

import os
import sys
from typing import Any

LOG = os.environ.get("AUDIT_LOG")


def note(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and isinstance(arguments[0], (str, bytes)):
        path, mode, flags = arguments
        if mode is None:
            return  # os.open, as by shutil.rmtree: a name relative to some open folder
        writes = bool(flags & (os.O_WRONLY | os.O_RDWR))
        line = f"{'w' if writes else 'r'} {os.path.abspath(os.fsdecode(path))}\n"  # noqa: PTH100 (as it is named)
        os.write(log, line.encode())


if LOG:
    log = os.open(LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    sys.addaudithook(note)
