"""What git says, and what it has of a commit."""

import subprocess
from pathlib import Path

from stages.shared.stage import StageError
from tools.results import Revision


class Commit(Revision):
    """A commit of which only what git has is read, without DVC: no setting of its can be wrong."""

    def read(self, path: Path) -> bytes | None:
        command = ("git", "show", f"{self.commit}:{path.as_posix()}")
        asked = subprocess.run(command, capture_output=True, check=False)
        return None if asked.returncode else asked.stdout


def git(*arguments: str) -> str:
    """What a git command prints.

    Raises:
        StageError: if it fails, with git's words.
    """
    try:
        asked = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise StageError("git is not on the PATH. Install it.") from None
    if asked.returncode:
        raise StageError(f"git {arguments[0]} failed: {asked.stderr.strip() or 'no message'}.")
    return asked.stdout.strip("\n")
