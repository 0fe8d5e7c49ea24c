"""Merges of dvc.lock: through git and DVC, with stand-ins for the stages' commands."""

import copy
import itertools
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT
from rerunning import Project, Tree, opened, project_tree

from stages.shared.stage import StageError
from tools import merge_lock
from tools.pipeline import locked

Stages = dict[str, Any]


@pytest.mark.parametrize(
    ("ours", "theirs", "merged", "dropped"),
    [
        ({"a": 1}, {"a": 1}, {"a": 1}, []),
        ({"a": 2}, {"a": 1}, {"a": 2}, []),
        ({"a": 1}, {"a": 2}, {"a": 2}, []),
        ({"a": 2}, {"a": 2}, {"a": 2}, []),
        ({"a": 2}, {"a": 3}, {}, ["a"]),
        ({}, {"a": 1}, {}, []),
        ({"a": 1}, {}, {}, []),
        ({}, {"a": 2}, {}, ["a"]),
        ({"a": 2}, {}, {}, ["a"]),
        ({"a": 1, "b": 1}, {"a": 1, "c": 1}, {"a": 1, "b": 1, "c": 1}, []),
        ({"a": 1, "b": 1}, {"a": 1, "b": 2}, {"a": 1}, ["b"]),
    ],
)
def test_each_stage_is_merged_whole(
    ours: Stages, theirs: Stages, merged: Stages, dropped: list[str]
) -> None:
    def entries(numbers: Stages) -> Stages:
        return {name: {"cmd": number} for name, number in numbers.items()}

    found = merge_lock.merge(entries({"a": 1}), entries(ours), entries(theirs))
    assert found == (entries(merged), dropped)


def test_of_two_runs_with_the_same_inputs_ours_stays() -> None:
    """As when two people have trained what nobody had: the times differ, in the run records."""
    ours, theirs = ({"cmd": "train", "deps": [1], "outs": [out]} for out in ("ours", "theirs"))
    assert merge_lock.merge({}, {"a": ours}, {"a": theirs}) == ({"a": ours}, [])
    assert merge_lock.merge({}, {"a": ours}, {"a": theirs | {"deps": [2]}}) == ({}, ["a"])


def run_driver(folder: Path, *texts: str) -> str:
    """Merges three files by the driver, and returns the result's text."""
    paths = [folder / name for name in ("base", "ours", "theirs")]
    for path, text in zip(paths, texts, strict=True):
        path.write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["merge_lock", *map(str, paths)])
        merge_lock.main()
    return paths[1].read_text()


def test_numbers_are_written_as_dvc_wrote_them(tmp_path: Path) -> None:
    show = ["git", "show", "HEAD:dvc.lock"]  # the one that lies there may be half written
    lock = subprocess.run(show, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "e-0" in lock or "0.0001" in lock
    assert run_driver(tmp_path, lock, lock, lock) == lock


@pytest.mark.parametrize(
    "text",
    ["stages: [", "schema: '1.0'\nstages: {}\n", "schema: '2.0'\n", "[1]", "<<<<<<< ours\n", "\0"],
)
def test_what_is_no_lock_file_is_left_to_people(tmp_path: Path, text: str) -> None:
    whole = "schema: '2.0'\nstages: {}\n"
    with pytest.raises(StageError, match=r"theirs must be a whole dvc\.lock of schema 2\.0"):
        run_driver(tmp_path, whole, whole, text)
    assert (tmp_path / "ours").read_text() == whole


# What a branch may do to a variant, as functions that change the parameters in place.


def add(tree: Tree, name: str, branch: str) -> None:
    tree["variants"][f"{name}-{branch}"] = dict(tree["variants"][name])


def change(tree: Tree, name: str, branch: str) -> None:
    tree["variants"][name]["seeds"] = [{"one": 11, "two": 22}[branch]]


def remove(tree: Tree, name: str, branch: str) -> None:
    del tree["variants"][name]


def rename(tree: Tree, name: str, branch: str) -> None:
    tree["variants"][f"{name}-{branch}"] = tree["variants"].pop(name)


Edit = Callable[[Tree, str, str], None]
KEPT = ("shapes-lenet", "shapes-simple", "shapes-convnet")


def git(project: Project, *arguments: str, ok: bool = True) -> str:
    result = subprocess.run(
        ["git", *arguments], cwd=project.folder, capture_output=True, text=True, check=False
    )
    assert not ok or result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def repository(clone: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """Three variants with results, committed, in a repository with the merge drivers."""
    tree = project_tree(*KEPT)
    (clone / "params.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    with opened(clone, tmp_path_factory.mktemp("standin")) as project:
        commit(project, tree, "start")
        project.merge_drivers()
        yield project


def commit(project: Project, tree: Tree, message: str) -> set[str]:
    """Brings results up to date with the parameters and commits both."""
    project.write_params(tree)
    ran = project.repro()
    git(project, "add", "--all")
    git(project, "commit", "--quiet", "--allow-empty", "--message", message)
    return ran


def merged_on(
    project: Project,
    one: tuple[Edit, str],
    two: tuple[Edit, str],
) -> tuple[set[str], set[str]]:
    """Does one thing on each of two branches and merges them.

    Returns:
        The stages that ran after the merge, and those whose lock entries it kept.
    """
    git(project, "checkout", "--quiet", "--force", "main")
    start = yaml.safe_load((project.folder / "params.yaml").read_text())
    together = copy.deepcopy(start)
    for branch, (edit, name) in (("one", one), ("two", two)):
        git(project, "checkout", "--quiet", "--force", "-B", branch, "main")
        tree = copy.deepcopy(start)
        edit(tree, name, branch)
        commit(project, tree, branch)
        edit(together, name, branch)
    git(project, "checkout", "--quiet", "--force", "-B", "merged", "one")
    git(project, "merge", "--no-edit", "two", ok=False)
    unmerged = set(git(project, "diff", "--name-only", "--diff-filter=U").split())
    assert not [path for path in unmerged if path == "dvc.lock"], unmerged
    kept = set(yaml.safe_load((project.folder / "dvc.lock").read_text())["stages"])
    ran = commit(project, together, "Merged")  # with what people make of params.yaml
    assert project.repro() == set()
    return ran, kept


EDITS = (add, change, remove, rename)
ALWAYS = {"lineup", "plot@shapes"}  # what all variants are in


@pytest.mark.parametrize(
    ("one", "two"),
    [
        pytest.param(*pair, marks=[] if pair[0] is pair[1] else pytest.mark.slow)
        for pair in itertools.product(EDITS, EDITS)
    ],
)
def test_branches_that_touch_two_variants_merge_without_training(
    repository: Project, one: Edit, two: Edit
) -> None:
    ran, kept = merged_on(repository, (one, KEPT[0]), (two, KEPT[1]))
    assert ran <= ALWAYS
    for name in yaml.safe_load((repository.folder / "params.yaml").read_text())["variants"]:
        assert {f"train@{name}", f"evaluate@{name}"} <= kept


@pytest.mark.parametrize("how", ["merge", "rebase"])
def test_a_result_is_not_taken_for_another_ones_that_was_renamed(
    repository: Project, how: str
) -> None:
    """Run records are much alike: git takes a removed and an added one for a single file."""
    records = repository.folder / "results/runs/shapes"
    alike = "".join(f"{number}\n" for number in range(50))
    git(repository, "checkout", "--quiet", "--force", "-B", "began", "main")
    for branch, name, text in (("began", "a", "0"), ("ours", "a", "1"), ("theirs", "b", "2")):
        git(repository, "checkout", "--quiet", "--force", "-B", branch, "began")
        (records / "a.json").unlink(missing_ok=True)
        (records / f"{name}.json").write_text(alike + text)
        git(repository, "add", "--all")
        git(repository, "commit", "--quiet", "--message", branch)
    if how == "merge":
        git(repository, "checkout", "--quiet", "ours")
    git(repository, how, *["--no-edit"] * (how == "merge"), {"merge": "theirs"}.get(how, "ours"))
    assert (records / "b.json").read_text() == alike + "2"


def test_if_the_driver_cannot_start_git_leaves_conflict_markers(repository: Project) -> None:
    """Without them a commit would silently drop all of theirs."""
    git(repository, "checkout", "--quiet", "--force", "-B", "ours", "main")
    lock = repository.folder / "dvc.lock"
    for branch in ("theirs", "ours"):
        git(repository, "checkout", "--quiet", "--force", "-B", branch, "main")
        lock.write_text(lock.read_text().replace("cmd: python", f"cmd: {branch}"))
        git(repository, "commit", "--quiet", "--all", "--message", branch)
    git(repository, *broken_driver(), "merge", "--no-edit", "theirs", ok=False)
    assert "<<<<<<<" in lock.read_text()
    git(repository, "merge", "--abort")


def test_if_the_driver_cannot_start_git_does_not_mix_an_entry_from_two(
    repository: Project,
) -> None:
    """By lines it would be clean: a dependency's hash of one branch, an output's of the other."""
    lock = repository.folder / "dvc.lock"
    git(repository, "checkout", "--quiet", "--force", "-B", "ours", "main")
    text = lock.read_text()
    first, last = text.index("md5: ") + 5, text.rindex("md5: ") + 5
    for branch, place in (("theirs", first), ("ours", last)):
        git(repository, "checkout", "--quiet", "--force", "-B", branch, "main")
        lock.write_text(text[:place] + "0" * 8 + text[place + 8 :])
        git(repository, "commit", "--quiet", "--all", "--message", branch)
    git(repository, *broken_driver(), "merge", "--no-edit", "theirs", ok=False)
    assert git(repository, "diff", "--name-only", "--diff-filter=U").split() == ["dvc.lock"]
    with pytest.raises(StageError, match="must be a whole dvc"):  # nor is it added unseen
        locked(repository.folder)
    git(repository, "merge", "--abort")


def broken_driver() -> tuple[str, str]:
    """A setting of git's: the driver of `make setup-git` with an environment that is gone."""
    makefile = (ROOT / "Makefile").read_text()
    (driver,) = re.findall(r"git config merge\.dvc-lock\.driver '([^']*)'", makefile)
    return "-c", f"merge.dvc-lock.driver={driver.replace('$(abspath $(BIN))', '/nowhere')}"


def test_a_variant_that_both_branches_changed_runs_again_and_no_other(repository: Project) -> None:
    ran, kept = merged_on(repository, (change, KEPT[0]), (change, KEPT[0]))
    assert f"train@{KEPT[0]}" not in kept
    assert ran <= ALWAYS | {f"train@{KEPT[0]}", f"evaluate@{KEPT[0]}"}
    assert f"train@{KEPT[2]}" in kept
