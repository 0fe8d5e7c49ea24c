"""What several test files use."""

import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from stages.shared.dataset import Split

ROOT = Path(__file__).resolve().parents[1]
PARAMS = ROOT / "tests" / "params.yaml"  # in place of the project's, which people change

GIT_SETTINGS = """[user]
    name = Tester
    email = tester@example.org
[safe]
    directory = *
"""
DVC_SETTINGS = """[core]
    analytics = false
    check_update = false
"""


THEIRS = "KERAS_BACKEND LANGUAGE VERBOSE JOBS CUDA MAKEFLAGS FORCE_COLOR".split()
THEIRS += "PYTHONWARNINGS PYTHONDEVMODE".split()


def forget_who_runs_this(folder: Path) -> None:
    """Tests see no settings of git, DVC, Keras or make, no proxy, GPU or language but these."""
    (folder / "git").mkdir()
    (folder / "git/config").write_text(GIT_SETTINGS)
    (folder / "config").write_text(DVC_SETTINGS)
    for name in list(os.environ):
        ours = name.startswith(("GIT_", "DVC_")) or name.lower().endswith("_proxy")
        if ours or name in THEIRS:
            del os.environ[name]
    os.environ |= {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "GIT_CONFIG_GLOBAL": str(folder / "git/config"),
        "GIT_CONFIG_NOSYSTEM": "1",
        "XDG_CONFIG_HOME": str(folder),  # where DVC's libgit2 looks, and git before 2.32
        "DVC_GLOBAL_CONFIG_DIR": str(folder),
        "DVC_SYSTEM_CONFIG_DIR": str(folder / "none"),
        "DVC_SITE_CACHE_DIR": str(folder / "site"),
        "KERAS_HOME": str(folder / "keras"),
        "PRE_COMMIT_HOME": str(folder / "pre-commit"),
        "CUDA_VISIBLE_DEVICES": "-1",
        "LC_ALL": "C.UTF-8",
        "SHELL": "/bin/sh",  # in which DVC runs commands
        "TERM": "xterm",
    }


if multiprocessing.parent_process() is None:  # a test's own process has its test's
    SETTINGS = tempfile.TemporaryDirectory(prefix="cifar-tests-")  # of each test process
    forget_who_runs_this(Path(SETTINGS.name))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# A shell's background job ignores Ctrl-C, and so would all that it starts; some tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


LONGEST = ("crash", "training", "pipeline", "reruns", "params", "gate", "launch", "sweep", "team")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that the processes of `make test` end at about the same time."""
    places = {f"test_{name}": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def toy_split(random: np.random.Generator) -> Split:
    return make_toy_split(random)


def make_toy_split(random: np.random.Generator) -> Split:
    """Sixty random images of three classes, twenty of each, in turn."""
    return Split(
        images=random.integers(0, 256, (60, 32, 32, 3), np.uint8),
        labels=(np.arange(60) % 3).astype(np.uint8),
        classes=("circle", "square", "star"),
    )


@pytest.fixture(scope="session")
def project_files() -> list[str]:
    """The paths of the project's own files, as git would commit them now, without results."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    files = [file for file in listed.stdout.splitlines() if (ROOT / file).is_file()]
    return [file for file in files if not file.startswith("results/") and file != "dvc.lock"]


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory, project_files: list[str]) -> Path:
    """A git repository with the project as it is now, without results, and with PARAMS."""
    folder = tmp_path_factory.mktemp("clone")
    for file in project_files:
        target = folder / file
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((PARAMS if file == "params.yaml" else ROOT / file).read_bytes())
    for command in (
        "git init --quiet --initial-branch main",
        "git add --all",
        "git commit --quiet --message Project",
    ):
        subprocess.run(command.split(), cwd=folder, check=True)
    return folder
