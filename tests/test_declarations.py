"""Honest declarations: each stage opens what dvc.yaml says it does, all of it, and nothing else."""

import os
import subprocess
from pathlib import Path

import pytest
import yaml
from conftest import ROOT
from dvc.repo import Repo

STAGES = [
    "download@shapes",
    "stats@shapes",
    "lineup",
    "train@shapes-deep-bn",
    "evaluate@shapes-deep-bn",
    "plot@shapes",
]
EXEMPT = "stages/shared/params.py"  # checks, and never alters a value
SCRATCH = ("checkpoints/",)  # a training's own, named on its command line


@pytest.fixture(scope="module")
def workspace(clone: Path) -> Path:
    """The project with one small variant."""
    params = yaml.safe_load((clone / "params.yaml").read_text())
    params["datasets"]["shapes"] |= {"train_images": 120, "test_images": 20}
    params["recipes"]["demo-augmented"]["epochs"] = 1
    for name in ("shapes-lenet", "shapes-simple", "shapes-convnet"):
        del params["variants"][name]
    (clone / "params.yaml").write_text(yaml.safe_dump(params))
    return clone


def opened(workspace: Path, command: str, log: Path) -> tuple[set[str], set[str]]:
    """Runs a command, and returns the files of the workspace that it read and wrote."""
    environment = os.environ | {
        "PYTHONPATH": str(ROOT / "tests" / "audit"),
        "PYTHONDONTWRITEBYTECODE": "1",  # none is there, so that it is looked for, but not opened
        "AUDIT_LOG": str(log),
    }
    subprocess.run(command, shell=True, cwd=workspace, env=environment, check=True)
    read, written = set(), set()
    for line in log.read_text().splitlines():
        mode, path = line.split(" ", 1)
        if Path(path).is_relative_to(workspace) and "__pycache__" not in path:
            (written if mode == "w" else read).add(str(Path(path).relative_to(workspace)))
    return read, written


def inside(path: str, declared: set[str]) -> bool:
    """Whether a path is declared, or lies in a folder that is, or is to be renamed to one."""
    parts = Path(path.replace("/.", "/").replace(".partial", "")).parts
    return any("/".join(parts[: n + 1]) in declared for n in range(len(parts)))


def test_each_stage_opens_what_it_declares_and_nothing_else(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workspace)
    with Repo(str(workspace)) as repo:
        stages = {stage.addressing: stage for stage in repo.index.stages}
        for name in STAGES:
            stage = stages[name]
            read, written = opened(workspace, stage.cmd, tmp_path / f"{name}.log")
            deps = {dep.def_path for dep in stage.deps}
            outs = {out.def_path for out in stage.outs}
            files = {file for file in read | written if not file.startswith(SCRATCH)} - {EXEMPT}

            undeclared = {file for file in files if not inside(file, deps | outs)}
            assert not undeclared, f"{name} opens undeclared {undeclared}"
            assert not {file for file in written if inside(file, deps)}, f"{name} writes a dep"
            for dep in deps:
                path = workspace / dep
                within = path.rglob("*") if path.is_dir() else [path]
                unread = {str(p.relative_to(workspace)) for p in within if p.is_file()} - read
                assert not unread, f"{name} declares and never opens {unread}"
            for out in outs:
                assert any(inside(file, {out}) for file in written), f"{name} never writes {out}"
