"""The rules that keep the structure honest: what dvc.yaml declares is what the code does."""

import ast
import functools
import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT

from tools import doctor
from tools import readme as tools_readme
from tools.git import git

PIPELINE = yaml.safe_load((ROOT / "dvc.yaml").read_text())
FAMILIES = PIPELINE["stages"]
EXEMPT = "stages/shared/params.py"  # it accepts or refuses, and never alters a value


def body(family: str) -> dict[str, Any]:
    """A stage family's definition, with or without a loop around it."""
    return FAMILIES[family].get("do", FAMILIES[family])


@functools.cache
def imported_files(path: Path) -> set[str]:
    """The project's files that a file imports directly; those found by name as a pattern."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.JoinedStr) and isinstance(node.values[0], ast.Constant):
            names = [f"{node.values[0].value}*"]
        else:
            continue
        for name in names:
            file = f"{name.replace('.', '/')}.py"
            if name.startswith("stages.") and ("*" in file or (ROOT / file).is_file()):
                found.add(file)
    return found


def closure(file: str) -> set[str]:
    """All files of the project that running a file may import, itself included."""
    seen: set[str] = set()
    waiting = {file}
    while waiting:
        current = waiting.pop()
        seen.add(current)
        if "*" not in current:
            waiting |= imported_files(ROOT / current) - seen
    return seen


@pytest.mark.parametrize("family", FAMILIES)
def test_the_code_deps_of_a_stage_are_its_import_closure(family: str) -> None:
    module = re.search(r"python -m ([\w.]+)", body(family)["cmd"]).group(1)
    declared = {re.sub(r"\$\{.*?\}", "*", d) for d in body(family)["deps"] if d.endswith(".py")}
    assert declared == closure(f"{module.replace('.', '/')}.py") - {EXEMPT}


@pytest.mark.parametrize("folder", ["datasets", "models"])
def test_files_loaded_by_name_import_nothing_that_is_not_declared(folder: str) -> None:
    family = {"datasets": "download", "models": "train"}[folder]
    paths = list((ROOT / "stages" / folder).glob("*.py"))
    assert paths
    for path in paths:
        assert closure(f"stages/{folder}/{path.name}") - {f"stages/{folder}/{path.name}"} <= set(
            body(family)["deps"]
        )


def test_only_evaluate_declares_the_test_images() -> None:
    readers = [f for f in FAMILIES if any("/test" in dep for dep in body(f)["deps"])]
    assert readers == ["evaluate"]


def test_every_path_of_a_command_is_declared_and_the_other_way_round() -> None:
    for family in FAMILIES:
        stage = body(family)
        declared = {d for d in stage["deps"] if not d.endswith(".py")}
        for kind in ("outs", "metrics", "plots"):
            declared |= {
                out if isinstance(out, str) else next(iter(out)) for out in stage.get(kind, [])
            }
        used = set(re.findall(r"(?:data|results)/\S+", stage["cmd"]))
        assert used == declared, family


def out_paths() -> set[str]:
    """Every output of every stage."""
    with doctor.dvc_repository(ROOT) as repo:
        return {os.path.relpath(out.fs_path, ROOT) for out in repo.index.outs}


def test_git_ignores_exactly_what_dvc_keeps() -> None:
    assert [each.level for each in doctor.check_gitignore(ROOT)] == ["ok"]


def test_artifacts_are_outputs() -> None:
    paths = out_paths()
    for name, artifact in PIPELINE["artifacts"].items():
        assert artifact["path"] in paths, name


def test_every_plot_reads_an_output() -> None:
    paths = out_paths()
    for plot in PIPELINE["plots"]:
        (options,) = plot.values()
        assert set(options["y"]) <= paths


def test_every_template_is_there_and_no_other() -> None:
    text = (ROOT / "dvc.yaml").read_text()
    used = set(re.findall(r"template: (\w+)", text)) - {"confusion_normalized"}  # DVC's own
    assert used == {path.stem for path in (ROOT / ".dvc" / "plots").iterdir()}


def test_every_dependency_says_why_it_is_there() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    block = text.split("dependencies = [")[1].split("]\n")[0]
    lines = [line for line in block.splitlines() if line.strip()]
    assert lines and all(re.search(r'",\s+# \w', line) for line in lines)


def test_lock_files_hold_versions_and_hashes_and_no_addresses() -> None:
    for name in ("requirements.txt", "requirements-cuda.txt"):
        text = (ROOT / name).read_text()
        assert "--hash=sha256:" in text
        assert not re.search(r"://|index|find-links|^-", text, flags=re.MULTILINE), name


def test_an_environment_that_cannot_be_used_any_more_is_made_anew(tmp_path: Path) -> None:
    folder = tmp_path / "one place"
    binaries = folder / ".venv" / "bin"
    binaries.mkdir(parents=True)
    for name in ("Makefile", "requirements.txt"):
        shutil.copy(ROOT / name, folder)
    (binaries / "python").symlink_to(sys.executable)
    (binaries / "dvc").write_text(f"#!{binaries}/python\n")
    (folder / ".venv" / "installed").touch()

    def would_do(folder: Path) -> str:
        command = ["make", "--dry-run", "setup"]
        return subprocess.run(command, cwd=folder, capture_output=True, text=True).stdout

    assert "Nothing to be done" in would_do(folder)
    moved = folder.rename(tmp_path / "another")
    assert "venv --clear .venv" in would_do(moved)
    (moved / ".venv" / "bin" / "dvc").write_text(f"#!{moved}/.venv/bin/python\n")
    (moved / ".venv" / "installed").touch()
    assert "Nothing to be done" in would_do(moved)
    other = tmp_path / "with a link"
    other.mkdir()
    for name in ("Makefile", "requirements.txt"):
        shutil.copy2(moved / name, other)
    (other / ".venv").symlink_to(moved / ".venv")
    assert "Nothing to be done" in would_do(other)
    (other / "requirements.txt").write_text("numpy==1.0.0\n")
    refused = subprocess.run(["make", "setup"], cwd=other, capture_output=True, text=True)
    assert refused.returncode and "a link to an environment of another" in refused.stdout
    (moved / ".venv" / "bin" / "python").unlink()
    assert "venv --clear .venv" in would_do(moved)


def test_the_readme_names_every_file_and_every_target() -> None:
    readme = (ROOT / "README.md").read_text()
    layout = readme.split("## Repository layout")[1].split("\n\n")[1]
    files = [path.name for folder in ("stages", "tools") for path in (ROOT / folder).rglob("*.py")]
    named = re.findall(r"\w+\.py\b", layout)
    assert sorted(named) == sorted(files), "README's Repository layout must name each file, once"
    targets = re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    for target in targets:
        assert f"| `make {target}` |" in readme, target


def test_the_readme_has_the_results_of_today(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    if git("ls-files", "--deleted", "results"):
        pytest.skip("a stage is at work here: DVC has removed what it will write")
    readme = (ROOT / "README.md").read_text()
    assert "| `cifar10-" in readme
    assert readme == tools_readme.updated(readme), "`python -m tools.readme --write`"


def test_what_remotes_md_says_finds_damaged_objects(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "remotes.md").read_text()
    (script,) = re.findall(r"^    (cd files/md5 .*\n.*done)$", page, flags=re.MULTILINE)
    folder = tmp_path / "files" / "md5"
    for content, suffix in (
        (b"good", ""),
        (b"good list", ".dir"),
        (b"bad", ""),
        (b"bad too", ".dir"),
    ):
        name = hashlib.md5(content).hexdigest() + suffix
        (folder / name[:2]).mkdir(parents=True)
        written = content.replace(b"bad", b"bax")
        (folder / name[:2] / name[2:]).write_bytes(written)
    said = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True)
    bad = (hashlib.md5(content).hexdigest() for content in (b"bad", b"bad too"))
    assert {line.replace("/", "") for line in said.stdout.split()} == {
        name + suffix for name, suffix in zip(bad, ("", ".dir"), strict=True)
    }


def test_make_clean_leaves_what_a_stage_at_work_needs(tmp_path: Path) -> None:
    kept = ["checkpoints/v/lock", "results/weights/.v.partial", "data/raw/d", "downloads/d.partial"]
    removed = ["logs/launch/v.log", "report/index.html", "exports/v/model.onnx", "dvc_plots/a.html"]
    for file in kept + removed:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    command = ["make", "--file", str(ROOT / "Makefile"), "clean"]
    subprocess.run(command, cwd=tmp_path, capture_output=True, check=True)
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert left == set(kept)


@pytest.mark.parametrize(
    ("jobs", "command"), [([], "dvc repro"), (["JOBS=3"], "python -m tools.launch --jobs 3")]
)
def test_make_repro_runs_stages_side_by_side_if_asked(jobs: list[str], command: str) -> None:
    said = subprocess.run(
        ["make", "--dry-run", "repro", *jobs], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert command in said.stdout.splitlines()
