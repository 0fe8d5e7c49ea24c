"""A day in a team: the commands of the README's "Working as a team", run as they stand there.

Two people, a bare git repository and a DVC remote; stand-ins for the stages' commands.
"""

import hashlib
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from conftest import ROOT
from rerunning import Project, opened, project_tree

SECONDS = 300  # no command takes longer, whatever else the machine does
TARGET = "plot@shapes"
README = (ROOT / "README.md").read_text()
SECTION = README.split("## Working as a team")[1].split("\n## ")[0]


class Person:
    """Somebody with a clone.

    Args:
        project: the clone, whose stand-ins everybody shares.
        team: the folder of the git repository and the DVC remote that all share.
    """

    def __init__(self, project: Project, team: Path) -> None:
        self.project, self.team = project, team

    def does(self, line: str, code: int = 0) -> str:
        """Runs a line of the README's; returns what it prints."""
        assert f"    {line}\n" in re.sub(r"  +#.*", "", SECTION), f"not in the README: {line}"
        line = line.replace("/mnt/shared", str(self.team))
        python = f"{sys.executable} -m"
        line = re.sub(r"(?<![\w-])python -m", python, line)
        line = re.sub(r"(?<![\w/-])dvc (?=[a-z])", f"{python} dvc ", line)
        return self.runs(line, code)

    def runs(self, line: str, code: int = 0) -> str:
        """Runs any line in a shell."""
        done = subprocess.run(
            line,
            shell=True,
            cwd=self.project.folder,
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def edits(self, old: str, new: str) -> None:
        path = self.project.folder / "params.yaml"
        text = path.read_text()
        assert old in text
        self.project.write_text(text.replace(old, new))
        self.project.tree = yaml.safe_load(self.project.text)

    def brings_up_to_date(self) -> set[str]:
        """Launches; returns the stages whose commands ran."""
        self.project.tree = yaml.safe_load((self.project.folder / "params.yaml").read_text())
        self.project.tell_standin()
        self.does(f"python -m tools.launch --jobs auto {TARGET}")
        return self.project.ran()


@pytest.fixture(scope="module")
def ann(clone: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Person]:
    """She begins: the shapes are up to date, one variant is not trained, origin is bare."""
    team = tmp_path_factory.mktemp("team")
    kept = ("shapes-lenet", "shapes-simple", "shapes-convnet", "shapes-deep-bn", "cifar10-lenet")
    tree = project_tree(*kept)
    (clone / "params.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    with opened(clone, tmp_path_factory.mktemp("standin"), TARGET) as project:
        person = Person(project, team)
        person.runs("git add --all && git commit --quiet -m Start")
        person.runs(f"git init --quiet --bare --initial-branch main {team}/origin.git")
        person.runs(f"git remote add origin {team}/origin.git && git push --quiet -u origin main")
        yield person


def newcomer(ann: Person, folder: Path, branch: str = "main") -> Person:
    """Clones as the README says; `make setup-git` without what it installs."""
    assert (
        "    git clone <this repository> && cd <its folder> && make setup-git\n"
        "    source .venv/bin/activate && dvc pull --allow-missing\n"
    ) in SECTION
    ann.runs(f"git clone --quiet --branch {branch} {ann.team}/origin.git {folder}")
    project = Project(folder, folder.parent)
    project.log, project.standin = ann.project.log, ann.project.standin
    person = Person(project, ann.team)
    project.merge_drivers()
    person.runs("git config user.name Bob && git config user.email bob@example.org")
    person.runs(f"{sys.executable} -m dvc pull --allow-missing")
    return person


NEW = "  {}: {{dataset: shapes, model: lenet, config: {{}}, recipe: demo-augmented, seeds: [{}]}}\n"
FIRST = "variants:\n"


def changes_a_recipe_and_adds_a_variant(ann: Person) -> None:
    """Ann, on a branch, which goes through the gate into main."""
    ann.does("git switch --create longer")
    ann.edits(FIRST, FIRST + NEW.format("shapes-ann", 11))
    ann.edits("  demo:\n    epochs: 6\n", "  demo:\n    epochs: 9\n")
    ann.does("python -m stages.shared.params")
    names = [name for name, v in ann.project.tree["variants"].items() if v["recipe"] == "demo"]
    changed = {f"{family}@{name}" for family in ("train", "evaluate") for name in names}
    changed |= {"train@shapes-ann", "evaluate@shapes-ann"}
    assert ann.brings_up_to_date() == changed | {"lineup", TARGET}
    ann.does("python -m tools.readme --write")
    ann.does('git add --all && git commit -m "Longer trainings"')
    assert "not on remote store" in ann.does("python -m tools.gate", code=1)
    ann.does("dvc push && git push --set-upstream origin longer")
    assert "gate: passed" in ann.does("python -m tools.gate")
    ann.runs("git switch --quiet main && git merge --quiet --ff-only longer && git push --quiet")


def adds_a_variant_in_the_same_place_and_merges(bob: Person) -> None:
    """Bob, who has not seen it: params.yaml is for him to put together, dvc.lock is not."""
    bob.runs("git switch --quiet --create another")
    bob.edits(FIRST, FIRST + NEW.format("shapes-bob", 22))
    assert bob.brings_up_to_date() == {"train@shapes-bob", "evaluate@shapes-bob", "lineup", TARGET}
    bob.runs('git add --all && git commit --quiet -m "Bob\'s variant"')
    bob.runs("git push --quiet --set-upstream origin another")

    conflict = bob.does("git pull --no-rebase origin main", code=1)
    assert "CONFLICT (content): Merge conflict in params.yaml" in conflict
    unmerged = bob.runs("git diff --name-only --diff-filter=U").split()
    assert unmerged == ["params.yaml"]
    assert "params.yaml must be valid YAML" in bob.does("python -m stages.shared.params", code=1)
    path = bob.project.folder / "params.yaml"
    path.write_text(re.sub(r"^(<<<<<<<|=======|>>>>>>>).*\n", "", path.read_text(), flags=re.M))
    bob.does("python -m stages.shared.params")
    bob.does("dvc pull --allow-missing")
    assert bob.brings_up_to_date() == {"lineup", TARGET}
    bob.does('git add --all && git commit -m "Merge main"')
    bob.does("dvc push && git push")
    assert "gate: passed" in bob.does("python -m tools.gate")
    bob.runs("git push --quiet origin another:main")


def begins_a_branch_that_nobody_else_has(bob: Person) -> None:
    bob.runs("git switch --quiet --create alone main")
    bob.edits(FIRST, FIRST + NEW.format("shapes-alone", 33))
    assert bob.brings_up_to_date() >= {"train@shapes-alone"}
    bob.runs("git add --all && git commit --quiet -m Alone && git push --quiet -u origin alone")
    bob.does("dvc push && git push")


def shares_an_experiment(bob: Person) -> str:
    """Returns the hash of a file that only the experiment has."""
    dvc = f"{sys.executable} -m dvc"
    bob.runs(f"echo tried > tried.txt && {dvc} add --quiet tried.txt")
    bob.runs(f"{dvc} exp save --name tried --include-untracked tried.txt.dvc {TARGET}")
    bob.runs(f"{dvc} exp push origin tried")
    return hashlib.md5(b"tried\n").hexdigest()


def removes_what_no_commit_needs(ann: Person, folder: Path, tried: str) -> None:
    """And nothing else: a newcomer gets every branch's results, and an experiment keeps its own."""
    dvc = f"{sys.executable} -m dvc"
    ann.runs(f"echo orphan > orphan.txt && {dvc} add --quiet orphan.txt && {dvc} push --quiet")
    ann.runs("rm orphan.txt orphan.txt.dvc && git checkout --quiet -- .gitignore")
    orphan = hashlib.md5(b"orphan\n").hexdigest()
    assert (ann.team / "dvc/files/md5" / orphan[:2] / orphan[2:]).exists()
    ann.does(
        'test "$(git rev-parse --is-shallow-repository)" = false &&\n'
        "      git fetch --all --prune --tags --force &&\n"
        "      git fetch --prune --force origin 'refs/exps/*:refs/remotes/exps/*' &&\n"
        "      dvc gc --all-commits --all-experiments --cloud --force"
    )
    assert not (ann.team / "dvc/files/md5" / orphan[:2] / orphan[2:]).exists()
    assert (ann.team / "dvc/files/md5" / tried[:2] / tried[2:]).exists()
    for branch in ("main", "longer", "another", "alone"):
        shutil.rmtree(folder, ignore_errors=True)
        late = newcomer(ann, folder, branch)
        # The folder that `alone` was made in had another branch's example images left over.
        assert late.project.repro(TARGET) <= ({TARGET} if branch == "alone" else set())


def test_two_people_work_a_day_without_training_anything_twice(ann: Person, tmp_path: Path) -> None:
    ann.does(
        "dvc remote add --default store /mnt/shared/dvc && dvc remote modify store verify true"
    )
    ann.does("dvc remote modify store shared group")
    ann.does('git add .dvc/config && git commit -m "A remote for data and results" && git push')
    ann.does("dvc push --run-cache")

    bob = newcomer(ann, tmp_path / "bob")
    assert bob.project.repro(TARGET) == set()
    changes_a_recipe_and_adds_a_variant(ann)
    adds_a_variant_in_the_same_place_and_merges(bob)
    ann.does("git pull && dvc pull --allow-missing")
    assert ann.project.repro(TARGET) == set()
    begins_a_branch_that_nobody_else_has(bob)
    removes_what_no_commit_needs(ann, tmp_path / "late", shares_an_experiment(bob))
