"""Stages as small programs: they succeed whole, or say why and leave nothing behind."""

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import ROOT

from stages.shared.stage import StageError, duration, outputs, remove, size

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}

HEAD = """
import errno, os, signal, sys
from pathlib import Path
from stages.shared.stage import StageError, detail, outputs, run

def main():
"""
WRITES_FOR_EVER = """
    signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs may ignore it
    with outputs(Path("file"), Path("folder")) as (file, folder):
        file.write_text("half")
        folder.mkdir()
        (folder / "part").write_text("half")
        print("ready", flush=True)
        while True:
            pass
"""


def program(body: str) -> list[str]:
    """A command that runs a stage whose `main` has this body."""
    return [sys.executable, "-c", f"{HEAD}{body}\nrun(main)"]


def run_stage(body: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        program("    " + body), cwd=folder, env=ENVIRONMENT, capture_output=True, text=True
    )


@contextmanager
def writing_for_ever(folder: Path) -> Iterator["subprocess.Popen[str]"]:
    """A stage that has begun to write its outputs, and never ends by itself."""
    with subprocess.Popen(
        program(WRITES_FOR_EVER),
        cwd=folder,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_outputs_appear_together_at_the_end(tmp_path: Path) -> None:
    file, folder = tmp_path / "new" / "file.txt", tmp_path / "folder"
    with outputs(file, folder) as (partial_file, partial_folder):
        assert partial_file == tmp_path / "new" / ".file.txt.partial"
        partial_file.write_text("whole")
        partial_folder.mkdir()
        (partial_folder / "part").write_text("whole")
        assert not file.exists()
        assert not folder.exists()
    assert file.read_text() == "whole"
    assert names(folder) == ["part"]
    assert names(tmp_path) == ["folder", "new"]
    assert names(tmp_path / "new") == ["file.txt"]


@pytest.mark.parametrize("kind", [ValueError, StageError, KeyboardInterrupt, SystemExit])
def test_a_failure_leaves_nothing(tmp_path: Path, kind: type[BaseException]) -> None:
    with (
        pytest.raises(kind, match="some reason"),
        outputs(tmp_path / "file", tmp_path / "folder") as (file, folder),
    ):
        file.write_text("half")
        folder.mkdir()
        (folder / "part").write_text("half")
        raise kind("some reason")
    assert names(tmp_path) == []


def test_a_failure_keeps_the_outputs_of_an_earlier_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("earlier")
    with pytest.raises(ValueError, match="reason"), outputs(tmp_path / "file") as (file,):
        file.write_text("half")
        raise ValueError("reason")
    assert names(tmp_path) == ["file"]
    assert (tmp_path / "file").read_text() == "earlier"


def test_what_a_killed_run_left_is_removed_first(tmp_path: Path) -> None:
    (tmp_path / ".folder.partial").mkdir()
    (tmp_path / ".folder.partial" / "old").write_text("half")
    (tmp_path / ".file.partial").write_text("half")
    with outputs(tmp_path / "folder", tmp_path / "file") as (folder, file):
        assert not folder.exists()
        assert not file.exists()
        folder.mkdir()
        file.write_text("whole")
    assert names(tmp_path) == ["file", "folder"]
    assert names(tmp_path / "folder") == []


def test_an_output_that_was_not_written_is_an_error(tmp_path: Path) -> None:
    with (
        pytest.raises(RuntimeError, match=r"did not write .*\.two\.partial"),
        outputs(tmp_path / "one", tmp_path / "two") as (one, _),
    ):
        one.write_text("whole")
    assert names(tmp_path) == []


def test_earlier_outputs_are_replaced_whole(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "old").write_text("old")
    (tmp_path / "file").write_text("old")
    with outputs(tmp_path / "folder", tmp_path / "file") as (folder, file):
        folder.mkdir()
        (folder / "new").write_text("new")
        file.write_text("new")
    assert names(tmp_path / "folder") == ["new"]
    assert (tmp_path / "file").read_text() == "new"


def test_a_link_is_removed_and_not_what_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").write_text("kept")
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for name in ("link", "dangling", "never-there"):
        remove(tmp_path / name)
    assert names(tmp_path) == ["kept"]
    assert names(tmp_path / "kept") == ["file"]


def test_a_stage_that_succeeds_exits_with_zero(tmp_path: Path) -> None:
    result = run_stage("print('done')", tmp_path)
    assert (result.returncode, result.stdout, result.stderr) == (0, "done\n", "")


def test_a_users_mistake_is_one_message_without_a_traceback(tmp_path: Path) -> None:
    result = run_stage("raise StageError('x must be 1. Received: 2.')", tmp_path)
    assert result.returncode == 1
    assert result.stderr == "error: x must be 1. Received: 2.\n"


@pytest.mark.parametrize("name", ["ENOSPC", "EDQUOT", "EFBIG"])
def test_a_full_disk_is_one_message_that_names_the_file(tmp_path: Path, name: str) -> None:
    result = run_stage(f"raise OSError(errno.{name}, 'full', 'some/file')", tmp_path)
    assert result.returncode == 1
    assert result.stderr == (
        "error: No space left while writing some/file. Free some disk space and run again.\n"
    )


def test_a_full_disk_without_a_file_name_is_one_message(tmp_path: Path) -> None:
    result = run_stage(f"raise OSError({errno.ENOSPC}, 'full')", tmp_path)
    assert result.returncode == 1
    assert result.stderr.startswith("error: No space left while writing an output. ")


@pytest.mark.parametrize("error", ["OSError(errno.EIO, 'broken')", "OSError('odd')", "KeyError(1)"])
def test_a_failure_that_nobody_foresaw_shows_its_traceback(tmp_path: Path, error: str) -> None:
    result = run_stage(f"raise {error}", tmp_path)
    assert result.returncode == 1
    assert "Traceback" in result.stderr


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_stage_and_leaves_nothing(tmp_path: Path, stop: signal.Signals) -> None:
    with writing_for_ever(tmp_path) as process:
        assert names(tmp_path) == [".file.partial", ".folder.partial"]
        process.send_signal(stop)
        _, errors = process.communicate()
    assert (process.returncode, errors) == (128 + stop, "")
    assert names(tmp_path) == []


def test_what_kill_leaves_is_not_taken_for_an_output(tmp_path: Path) -> None:
    with writing_for_ever(tmp_path) as process:
        process.kill()
    assert names(tmp_path) == [".file.partial", ".folder.partial"]
    with outputs(tmp_path / "file") as (file,):
        file.write_text("whole")
    assert (tmp_path / "file").read_text() == "whole"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (523, "8 min 43 s"),
        (3599.6, "1 h 0 min"),
        (7500, "2 h 5 min"),
    ],
)
def test_a_duration_reads_as_people_say_it(seconds: float, words: str) -> None:
    assert duration(seconds) == words


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1.0 kB"),
        (123_456, "123 kB"),
        (15_800_000, "15.8 MB"),
    ],
)
def test_a_size_counts_a_folder_with_all_that_is_in_it(
    tmp_path: Path, count: int, words: str
) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "one").write_bytes(bytes(count // 2))
    (tmp_path / "inner" / "two").write_bytes(bytes(count - count // 2))
    assert size(tmp_path) == size(tmp_path / "one", tmp_path / "inner") == words


def test_details_are_printed_only_when_asked_for(tmp_path: Path) -> None:
    body = "    print('summary'); detail('each epoch')"
    command = [*program(body)]
    for extra, environment, expected in (
        ([], {}, "summary\n"),
        ([], {"VERBOSE": "0"}, "summary\n"),
        ([], {"VERBOSE": "1"}, "summary\neach epoch\n"),
        (["--verbose"], {}, "summary\neach epoch\n"),
    ):
        result = subprocess.run(
            command + extra, env=ENVIRONMENT | environment, capture_output=True, text=True
        )
        assert (result.stdout, result.stderr) == (expected, "")


KERAS = """
import os
os.write(2, b"chatter\\n")
if "WHOLE" not in os.environ:
    raise ImportError
"""
LOADS_TWICE = """
import os
from stages.shared.backend import import_keras
try:
    import_keras()
except ImportError:
    os.write(2, b"it failed\\n")
os.environ["WHOLE"] = "yes"
print(import_keras().__name__)
os.write(2, b"it is loaded\\n")
"""


def test_what_keras_says_while_it_loads_is_shown_only_if_that_fails(tmp_path: Path) -> None:
    (tmp_path / "keras.py").write_text(KERAS)
    result = subprocess.run(
        [sys.executable, "-c", LOADS_TWICE],
        cwd=tmp_path,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    assert (result.returncode, result.stdout) == (0, "keras\n")
    assert result.stderr == "chatter\nit failed\nit is loaded\n"
