"""How the tools run: what the system refuses is one line, and no traceback."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tools.command import plain


def outcome(body: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
    """What becomes of a tool whose `main` has this body."""
    code = f"import os\nfrom tools.command import run\ndef main():\n    {body}\nrun(main)"
    environment = os.environ | {"PYTHONIOENCODING": "utf-8"}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, stderr=subprocess.PIPE, **options
    )


def test_a_pipe_that_nobody_reads_ends_a_tool_without_a_word() -> None:
    for body in ("print('x')", "print('x' * 10**6)", "print('x'); raise SystemExit(1)"):
        read, write = os.pipe()
        os.close(read)
        done = outcome(body, stdout=write)
        os.close(write)
        assert (done.returncode, done.stderr) == (141, b"")


def test_what_the_system_refuses_is_one_line(tmp_path: Path) -> None:
    known = (("no/such", "No such file or directory"), (".", "Is a directory"))
    for path, reason in ((str(tmp_path / name), reason) for name, reason in known):
        done = outcome(f"open({path!r}, 'w')")
        assert (done.returncode, done.stderr.decode()) == (1, f"error: {path}: {reason}.\n")


def test_a_mistake_of_ours_has_its_traceback() -> None:
    done = outcome("raise OSError('no file is named')")
    assert done.returncode and b"Traceback" in done.stderr


def test_a_terminal_obeys_nothing_that_others_wrote() -> None:
    assert plain("é\tx\ny \x1b]52;c;eA==\x07\r\u202e") == "é\tx\ny \\x1b]52;c;eA==\\x07\\r\\u202e"
    body = r"from stages.shared.stage import StageError; raise StageError('a\nb \x1b[2J')"
    done = outcome(body)
    assert (done.returncode, done.stderr) == (1, b"error: a\nb \\x1b[2J\n")


def test_a_name_of_any_bytes_can_be_printed() -> None:
    done = outcome(r"print(os.fsdecode(b'\xff.png'))", stdout=subprocess.PIPE)
    assert (done.returncode, done.stdout) == (0, b"\\udcff.png\n")
