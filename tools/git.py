"""Runs git."""

import subprocess

from stages.shared.stage import StageError


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


def identity() -> dict[str, str]:
    """Who commits here, as environment variables, for clones that lack this one's settings.

    Raises:
        StageError: if git does not know; it says how to tell it.
    """
    name, _, rest = git("var", "GIT_COMMITTER_IDENT").partition(" <")
    email = rest.partition(">")[0]
    return {
        "GIT_AUTHOR_NAME": name,
        "GIT_AUTHOR_EMAIL": email,
        "GIT_COMMITTER_NAME": name,
        "GIT_COMMITTER_EMAIL": email,
    }
