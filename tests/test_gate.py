"""tools/gate.py: each reason not to merge is found, and nothing else. Stand-ins ran the stages."""

import copy
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from dvc.repo import Repo
from rerunning import Project, Tree, opened, project_tree
from test_merge_lock import git

from stages.shared.stage import StageError
from tools import changes, doctor, gate, pipeline
from tools.git import git as tools_git
from tools.results import leaves

TRAINED, OTHER, WAITING = "shapes-lenet", "shapes-simple", "cifar10-lenet"
TRAINING = f"train@{TRAINED}"
METRICS = Path(f"results/metrics/shapes/{TRAINED}.json")
Gate = Callable[..., list[str]]


@pytest.fixture(scope="module")
def repository(clone: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """Two variants with results and one that waits for its training, all committed on main."""
    whole = project_tree(TRAINED, OTHER, WAITING)
    shapes = copy.deepcopy(whole)
    del shapes["datasets"]["cifar10"], shapes["variants"][WAITING]
    (clone / "params.yaml").write_text(yaml.safe_dump(shapes, sort_keys=False))
    with opened(clone, tmp_path_factory.mktemp("standin")) as project:
        project.write_params(whole)
        assert project.repro("lineup") == {"lineup"}
        save(project)
        yield project


@pytest.fixture
def project(repository: Project, monkeypatch: pytest.MonkeyPatch) -> Project:
    """That repository on a branch that is still as main is."""
    monkeypatch.chdir(repository.folder)
    git(repository, "read-tree", "--empty")  # edits within a clock tick look like none to git
    git(repository, "checkout", "--quiet", "--force", "-B", "branch", "main")
    git(repository, "clean", "--quiet", "--force", "-d", "results", "stages")
    repository.write_params(yaml.safe_load(Path("params.yaml").read_text()))
    return repository


@pytest.fixture
def failures(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., list[str]]:
    """Runs the gate, and returns its lines of failures; it exits with 1 if there are any."""

    def run(*arguments: str, said: list[str] | None = None) -> list[str]:
        monkeypatch.setattr(sys, "argv", ["gate", *arguments])
        capsys.readouterr()
        status = 0
        try:
            gate.main()
        except SystemExit as stopped:
            status = stopped.code
        lines = capsys.readouterr().out.splitlines()
        found = [line for line in lines if line.startswith("failure  ")]
        assert found == lines[: len(found)]  # before notes
        assert status == (1 if found else 0)
        count = f"gate: {len(found)} failure{'s' * (len(found) > 1)}" if found else "gate: passed"
        assert lines[-1].startswith(count)
        if said is not None:
            said += lines
        return found

    return run


def only(found: list[str], *parts: str) -> None:
    """There is one failure, and it has all these parts."""
    assert len(found) == 1, found
    for part in parts:
        assert part in found[0]


def save(project: Project) -> None:
    git(project, "add", "--all")
    git(project, "commit", "--quiet", "--message", "Saved")


def edit_lock(change: Callable[[Tree], None]) -> None:
    lock = yaml.safe_load(Path("dvc.lock").read_text())
    change(lock["stages"])
    Path("dvc.lock").write_text(yaml.safe_dump(lock, sort_keys=False))


def measure(project: Project, accuracy: float) -> None:
    """Gives a variant an accuracy as if evaluate had measured it; the figures follow."""
    values = {"accuracy": accuracy, "accuracy_low": accuracy - 0.01, "accuracy_high": 0.9}
    METRICS.write_text(json.dumps(values))
    with Repo() as repo:
        repo.commit(f"evaluate@{TRAINED}", force=True)
    assert project.repro("plot@shapes") == {"plot@shapes"}


def test_what_is_up_to_date_passes(project: Project, failures: Gate) -> None:
    said: list[str] = []
    assert failures(said=said) == []
    assert said[-1] == "gate: passed, 8 stages"
    assert any(line.startswith("note") and f"train@{WAITING}" in line for line in said)
    assert any(line.startswith("note") and "no DVC remote" in line for line in said)


def test_a_parameter_changed_without_a_run_fails(project: Project, failures: Gate) -> None:
    tree = copy.deepcopy(project.tree)
    tree["recipes"]["demo"]["epochs"] += 1
    project.write_params(tree)
    only(failures(), f"train@{TRAINED}", "recipes.demo.epochs", "dvc repro train@", " then, ")
    project.repro("plot@shapes")
    assert failures() == []


def test_numbers_that_mean_the_same_are_the_same(project: Project, failures: Gate) -> None:
    def write_otherwise(stages: Tree) -> None:
        recipe = stages[f"train@{TRAINED}"]["params"]["params.yaml"]["recipes.demo"]
        recipe["epochs"] = float(recipe["epochs"])

    edit_lock(write_otherwise)
    assert failures() == []


@pytest.mark.parametrize("there", [True, False])
def test_code_that_is_not_what_was_run_fails(project: Project, failures: Gate, there: bool) -> None:
    code = Path("stages/evaluate.py")
    code.write_text(code.read_text() + "\n# changed\n") if there else code.unlink()
    word = "has changed since the run" if there else "missing"
    only(failures(), f"evaluate@{TRAINED}, evaluate@{OTHER}", str(code), word)


def test_another_command_fails(project: Project, failures: Gate) -> None:
    pipeline = Path("dvc.yaml")
    text = pipeline.read_text()
    assert "python -m stages.stats " in text
    pipeline.write_text(
        text.replace("python -m stages.stats ", "python -m stages.stats --verbose ")
    )
    only(failures(), "stats@shapes", "command in dvc.yaml")


def test_a_new_dependency_fails(project: Project, failures: Gate) -> None:
    pipeline = Path("dvc.yaml")
    text = pipeline.read_text()
    pipeline.write_text(text.replace("- stages/stats.py", "- stages/stats.py\n        - Makefile"))
    only(failures(), "stats@shapes", "Makefile is a dependency in dvc.yaml, and not in dvc.lock")


def test_a_result_edited_by_hand_fails(project: Project, failures: Gate) -> None:
    METRICS.write_text(METRICS.read_text().replace("0.75", "0.76"))
    only(failures(), str(METRICS), f"not what evaluate@{TRAINED} wrote", "git checkout")


def test_a_result_that_is_missing_fails(project: Project, failures: Gate) -> None:
    curves = Path(f"results/curves/shapes/{TRAINED}.csv")
    curves.unlink()
    only(failures(), f"{curves} is missing")


def test_a_metrics_file_that_is_no_json_fails(project: Project, failures: Gate) -> None:
    METRICS.write_text("<<<<<<< ours")
    found = failures()
    assert len(found) == 2
    assert any(f"{METRICS} must be JSON" in line for line in found)


@pytest.mark.parametrize("name", ["lineup", f"train@{TRAINED}", "stats@shapes", "plot@shapes"])
@pytest.mark.parametrize("base", [True, False])
def test_a_lock_entry_that_was_deleted_fails(
    project: Project, failures: Gate, monkeypatch: pytest.MonkeyPatch, name: str, base: bool
) -> None:
    edit_lock(lambda stages: stages.pop(name))
    monkeypatch.setattr(gate, "BASES", ("main",) if base else ("gone",))
    only(failures(), name, "no longer in dvc.lock" if base else "its results exist or are used")


def test_no_lock_at_all_and_a_damaged_one_fail(project: Project, failures: Gate) -> None:
    Path("dvc.lock").unlink()
    assert any("no longer in dvc.lock" in line for line in failures())
    Path("dvc.lock").write_text("stages: [")
    only(failures(), "dvc.lock must be")


def test_a_pipeline_that_cannot_be_read_fails(project: Project, failures: Gate) -> None:
    Path("dvc.yaml").write_text("stages: [")
    only(failures(), "DVC cannot read the pipeline", "dvc.yaml")


def test_parameters_that_are_not_valid_fail(project: Project, failures: Gate) -> None:
    tree = copy.deepcopy(project.tree)
    tree["variants"][WAITING]["seeds"] = "many"
    project.write_params(tree)
    assert any(f"variants.{WAITING}.seeds" in line for line in failures())


def test_a_producer_that_ran_again_without_its_consumer_fails(
    project: Project, failures: Gate
) -> None:
    tree = copy.deepcopy(project.tree)
    tree["variants"][TRAINED]["seeds"] = [11]
    project.write_params(tree)
    project.repro("lineup", f"train@{TRAINED}")
    found = failures()
    weights = f"results/weights/shapes/{TRAINED}"
    assert any(f"evaluate@{TRAINED}" in line and weights in line for line in found)
    for kind in ("curves", "runs", "examples"):  # examples: only DVC has them
        assert any("plot@shapes" in each and f"results/{kind}/shapes" in each for each in found)
    assert any("and there is none here" in each for each in found)  # of these weights
    assert len(found) == 5, found
    project.repro("plot@shapes")
    assert failures() == []


def test_a_file_in_a_folder_that_dvc_keeps_is_compared_by_the_folders_listing(
    project: Project, failures: Gate
) -> None:
    def wrong(stages: Tree) -> None:
        deps = {dep["path"]: dep for dep in stages["plot@shapes"]["deps"]}
        deps["data/lineup/shapes.json"]["md5"] = "0" * 32

    edit_lock(wrong)
    only(failures(), "plot@shapes", "data/lineup/shapes.json other than")


def test_a_file_of_no_stage_among_results_fails(project: Project, failures: Gate) -> None:
    Path("results/metrics/shapes/stray.json").write_text("{}")
    only(failures(), "results/metrics/shapes/stray.json", "remove it")


def test_of_a_removed_variant_the_results_must_go_and_the_entry_may_stay(
    project: Project, failures: Gate
) -> None:
    tree = copy.deepcopy(project.tree)
    del tree["variants"][OTHER]
    project.write_params(tree)
    project.repro("lineup", "plot@shapes")
    found = failures()
    for kind in ("metrics", "details"):  # git has the one, DVC the other
        assert any("remove it" in each and f"{kind}/shapes/{OTHER}" in each for each in found)
    for path in Path("results").glob(f"*/shapes/{OTHER}*"):
        path.unlink()
    project.repro("plot@shapes")
    git(
        project,
        "rm",
        "--quiet",
        "-r",
        "--",
        *git(project, "ls-files", f"results/*{OTHER}*").split(),
    )
    project.repro("lineup", "plot@shapes")
    said: list[str] = []
    assert failures(said=said) == []
    assert any("of deleted stages" in line and f"train@{OTHER}" in line for line in said)
    assert any(f"{OTHER} is gone" in line for line in said)


def test_a_variant_added_without_results_fails(project: Project, failures: Gate) -> None:
    tree = copy.deepcopy(project.tree)
    tree["variants"]["cifar10-new"] = copy.deepcopy(tree)["variants"][WAITING]
    project.write_params(tree)
    project.repro("lineup")
    only(failures(), "train@cifar10-new, evaluate@cifar10-new", "is new and has not been run")


def test_a_waiting_variants_parameters_can_be_changed(project: Project, failures: Gate) -> None:
    tree = copy.deepcopy(project.tree)
    tree["variants"][WAITING]["seeds"] = [1, 2, 3]
    project.write_params(tree)
    project.repro("lineup")
    assert failures() == []


def test_an_accuracy_that_falls_further_than_allowed_fails(
    project: Project, failures: Gate
) -> None:
    measure(project, 0.735)
    only(failures(), TRAINED, "fell by 1.50 points, from 75.00% in main to 73.50%: more than 1")
    assert failures("--max-drop", "1.5") == []  # and so is a fall of just as much
    only(failures("--max-drop", "1.49"), "more than 1.49")


def test_a_fall_within_what_seeds_explain_is_noted(project: Project, failures: Gate) -> None:
    before = json.loads(METRICS.read_text()) | {"accuracy_std": 0.01, "seeds": 4}
    METRICS.write_text(json.dumps(before))
    save(project)
    git(project, "branch", "--force", "spread", "HEAD")
    said: list[str] = []
    for accuracy, fails in ((0.737, False), (0.736, True)):
        values = before | {"accuracy": accuracy, "accuracy_std": 0.2, "seeds": 5}  # one collapsed
        METRICS.write_text(json.dumps(values))  # its hash is another failure
        found = failures("--base", "spread", said=said)
        assert any("fell by" in line for line in found) == fails
    note = "note     shapes-lenet's accuracy fell by 1.30 points, from 75.00% in spread to 73.70%"
    assert any(line.startswith(note) and "seeds' spread, 1.34" in line for line in said)


def test_a_training_with_other_versions_than_the_lock_files_is_noted(
    project: Project, failures: Gate
) -> None:
    """By what the lock file has for the Python that it ran with."""
    for name, python, keras in (
        (TRAINED, platform.python_version(), "3.0.0"),
        (OTHER, "3.13.1", metadata.version("keras")),
    ):
        locked = {each.name: each for each in doctor.requirements_of(gate.REQUIREMENTS, python)}
        numpy = str(locked["numpy"].specifier).removeprefix("==")
        versions = [f"python {python}", f"keras {keras}", f"numpy {numpy}", "strange"]
        record = {"environment": [{"versions": versions}]}
        Path(f"results/runs/shapes/{name}.json").write_text(json.dumps(record))
    said: list[str] = []
    failures(said=said)  # the files are not what dvc.lock has, which is another finding
    (line,) = (line for line in said if "trained with" in line)
    assert f"trained with keras 3.0.0, and not requirements.txt's: {TRAINED}. " in line


def test_a_remote_that_answers_and_then_fails_is_a_failure_without_its_password() -> None:
    def gone(*_: Any) -> None:
        raise ConnectionError("https://me:secret@example.org/store is gone")

    nothing = gate.Pipeline(None, {}, set(), [])
    (found,) = gate.check_remote(nothing, "store", SimpleNamespace(list_oids_exists=gone))
    assert found.level == "failure" and "https://example.org/store is gone" in found.what


def test_a_shallow_clone_fails(project: Project, failures: Gate) -> None:
    shallow = Path(".git/shallow")
    shallow.write_text(git(project, "rev-parse", "HEAD"))
    assert ["git fetch --unshallow" in line for line in failures()] == [True]
    shallow.unlink()
    assert failures() == []


def test_the_base_is_what_origin_has_of_main(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for line in (
        "init --quiet --initial-branch main",
        "commit --quiet --allow-empty --message Shared",
        "update-ref refs/remotes/origin/main HEAD",
        "commit --quiet --allow-empty --message Mine",
    ):
        subprocess.run(["git", *line.split()], check=True)
    base = gate.find_base(None)
    assert base and (base.name, base.commit) == ("origin/main", tools_git("rev-parse", "HEAD^"))


def test_an_accuracy_that_falls_less_or_rises_passes(project: Project, failures: Gate) -> None:
    measure(project, 0.741)
    assert failures() == []
    measure(project, 0.8)
    assert failures("--max-drop", "0") == []


def test_a_metric_that_is_gone_fails(project: Project, failures: Gate) -> None:
    edit_lock(lambda stages: stages.pop(f"evaluate@{TRAINED}"))
    METRICS.unlink()
    assert any(f"{TRAINED}'s accuracy was 75.00% in main" in line for line in failures())


def with_another_hash(text: str, which: int, stage: str = TRAINING, digit: str = "0") -> str:
    """A dvc.lock with another of the hashes in a stage's entry."""
    whole = re.search(rf"^  {stage}:\n(?:    .*\n)+", text, re.MULTILINE)
    assert whole
    found = [match.end() for match in re.finditer("md5: ", whole[0])]
    place = whole.start() + found[which]
    return text[:place] + digit * 8 + text[place + 8 :]


@pytest.mark.parametrize("then", ["nothing", "another commit", "merged", "run"])
def test_an_entry_that_git_mixed_from_two_branches_fails(
    project: Project, failures: Gate, then: str
) -> None:
    lock = Path("dvc.lock")
    whole = lock.read_text()
    for branch, which in (("theirs", -1), ("branch", 0)):  # an output, and an input
        git(project, "checkout", "--quiet", "--force", "-B", branch, "main")
        lock.write_text(with_another_hash(whole, which))
        save(project)
    assert not any("git mixed" in line for line in failures())
    git(project, "merge", "--quiet", "--no-edit", "theirs")
    assert lock.read_text() == with_another_hash(with_another_hash(whole, 0), -1)
    if then == "another commit":
        git(project, "commit", "--quiet", "--allow-empty", "--message", "More")
    elif then == "merged":  # as GitHub does for a pull request
        git(project, "checkout", "--quiet", "-B", "pull", "main")
        git(project, "merge", "--quiet", "--no-ff", "--no-edit", "branch")
    elif then == "run":
        lock.write_text(with_another_hash(lock.read_text(), 1))
        save(project)
    mixed = [line for line in failures() if "git mixed" in line]
    if then == "run":
        assert mixed == []
    else:
        only(mixed, f"{TRAINING}:", "make setup-git")


def test_what_was_run_after_the_driver_left_it_out_is_not_mixed(
    project: Project, failures: Gate
) -> None:
    """Though it is what git would have made of it; behind it, another is what ours was."""
    lock, other = Path("dvc.lock"), f"train@{OTHER}"
    whole = lock.read_text()
    for branch, which in (("theirs", -1), ("branch", 0)):
        git(project, "checkout", "--quiet", "--force", "-B", branch, "main")
        lock.write_text(with_another_hash(with_another_hash(whole, which), which, other))
        save(project)
    ours = pipeline.locked()[other]
    git(project, "merge", "--quiet", "--no-edit", "theirs")
    stages = pipeline.locked()
    made, _ = stages.pop(TRAINING), stages.pop(other)
    pipeline.write_lock(lock, stages | {TRAINING: made, other: ours})
    git(project, "commit", "--quiet", "--all", "--amend", "--no-edit")
    assert not any("git mixed" in line for line in failures())


@pytest.mark.parametrize("stage", [TRAINING, "plot@shapes"])  # the second is the last one
def test_an_entry_that_git_mixed_fails_also_if_others_conflict(
    project: Project, failures: Gate, stage: str
) -> None:
    lock = Path("dvc.lock")
    whole = lock.read_text()
    for branch, which, digit in (("theirs", -1, "1"), ("branch", 0, "2")):
        git(project, "checkout", "--quiet", "--force", "-B", branch, "main")
        text = with_another_hash(whole, which, stage)
        lock.write_text(with_another_hash(text, 0, "stats@shapes", digit))
        save(project)
    merge = ["git", "merge", "--quiet", "--no-edit", "theirs"]
    assert subprocess.run(merge, cwd=project.folder, capture_output=True).returncode == 1
    ours = re.sub(r"<{7}.*\n((?:.*\n)*?)={7}\n(?:.*\n)*?>{7}.*\n", r"\1", lock.read_text())
    both = with_another_hash(with_another_hash(whole, 0, stage), -1, stage)
    assert ours == with_another_hash(both, 0, "stats@shapes", "2")
    lock.write_text(ours)
    git(project, "commit", "--quiet", "--all", "--no-edit")
    mixed = [line for line in failures() if "git mixed" in line]
    only(mixed, f"{stage}:", "make setup-git")


def test_the_base_is_where_the_branch_left(project: Project, failures: Gate) -> None:
    save_on_main = git(project, "rev-parse", "main")
    try:
        git(project, "checkout", "--quiet", "-B", "ahead", "main")
        measure(project, 0.85)
        save(project)
        git(project, "branch", "--force", "main", "ahead")
        git(project, "checkout", "--quiet", "branch")
        assert failures() == []  # it is not the branch that lost ten points
        assert failures("--base", "ahead") == []
    finally:
        git(project, "branch", "--force", "main", save_on_main.strip())


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("dvc.yaml", "stages: ["),
        ("dvc.lock", "<<<<<<< ours\n"),
        ("params.yaml", "variants: ["),
        ("params.yaml", "datasets: {}\nrecipes: {}\nvariants:\n"),
        ("params.yaml", "datasets: {a: {}}\nrecipes: {}\nvariants: {b: {model: lenet}}\n"),
        ("params.yaml", "datasets: {a: {}}\nrecipes: {}\nvariants: {b: {dataset: [a]}}\n"),
        (str(METRICS), "{"),
    ],
)
def test_a_branch_may_mend_what_is_broken_in_its_base(
    project: Project, failures: Gate, file: str, text: str
) -> None:
    whole = Path(file).read_text()
    Path(file).write_text(text)
    save(project)
    git(project, "branch", "--force", "broken", "HEAD")
    Path(file).write_text(whole)
    save(project)
    said: list[str] = []
    assert failures("--base", "broken", said=said) == []
    assert any(line.startswith("note") and "not compared with the base's" in line for line in said)


def test_what_is_not_committed_is_noted(project: Project, failures: Gate) -> None:
    said: list[str] = []
    assert failures(said=said) == []
    assert "not committed" not in "".join(said)
    Path("stages/models/new.py").touch()
    assert failures(said=said) == []
    assert any(line.startswith("note") and "merged: stages/models/new.py" in line for line in said)


def test_a_base_that_git_does_not_know_is_refused(project: Project, failures: Gate) -> None:
    with pytest.raises(StageError, match=r"--base must be .* Received: 'nowhere'"):
        failures("--base", "nowhere")


def test_without_a_base_nothing_is_compared(
    project: Project, failures: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "BASES", ("gone",))
    measure(project, 0.1)
    said: list[str] = []
    assert failures(said=said) == []
    assert any(line.startswith("note") and "--base REV" in line for line in said)


@pytest.mark.parametrize("value", ["-1", "nan", "inf", "much"])
def test_a_threshold_that_is_no_number_of_points_is_refused(
    project: Project, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["gate", f"--max-drop={value}"])
    with pytest.raises(SystemExit) as stopped:
        gate.main()
    assert stopped.value.code == 2


def set_remote(url: str | Path, default: str = "store") -> None:
    settings = f"[core]\n    remote = {default}\n['remote \"store\"']\n    url = {url}\n"
    Path(".dvc/config").write_text(settings)


def push() -> None:
    with Repo() as repo:
        repo.push()


def test_outputs_must_be_on_the_remote_and_then_a_fresh_clone_without_data_will_do(
    project: Project, failures: Gate, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    set_remote(store)
    only(failures(), "remote store", "does not exist")
    store.mkdir()
    only(failures(), "not on remote store: data/lineup", "dvc push --remote store")
    assert failures("--no-remote") == []
    push()
    said: list[str] = []
    assert failures(said=said) == []
    assert said[-1] == "gate: passed, 8 stages, 14 outputs on remote store"

    save(project)
    fresh = tmp_path / "fresh"
    git(project, "clone", "--quiet", "--branch", "branch", str(project.folder), str(fresh))
    os.chdir(fresh)
    assert not Path(".dvc/cache").exists() and not Path("data").exists()
    fresh_said: list[str] = []
    assert failures(said=fresh_said) == []
    assert fresh_said[-1] == said[-1]
    assert not Path("data").exists()
    assert not any(file.is_file() for file in Path(".dvc/cache").rglob("*"))

    command = [sys.executable, "-m", "tools.gate", "--no-remote"]
    METRICS.unlink()
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 1 and f"{METRICS} is missing" in ended.stdout
    assert "data/lineup/shapes.json" in ended.stdout  # noted: only the remote could tell
    assert ended.stderr == ""


def test_a_branch_may_add_the_remote_whose_password_is_known_here(
    store: Path, project: Project, failures: Gate
) -> None:
    local = Path(".dvc/config.local")
    before = local.read_text()
    local.write_text(before + "['remote \"store\"']\n    verify = true\n")
    try:
        assert failures() == []
    finally:
        local.write_text(before)


def stored(path: str, member: str = "") -> str:
    """Where a remote has an output's object, or that of a file in it."""
    with Repo() as repo:
        (out,) = repo.find_outs_by_path(path)
        found = out.get_obj().get((member,))[1].value if member else out.hash_info.value
    return f"files/md5/{found[:2]}/{found[2:]}"


@pytest.fixture
def store(project: Project, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A remote that has all outputs, and that answers without another process being asked."""
    monkeypatch.setattr(doctor, "check_remote", lambda *_: doctor.Finding("ok", "store answers"))
    set_remote(tmp_path / "store")
    push()
    return tmp_path / "store"


@pytest.mark.parametrize("path", [f"results/predictions/shapes/{TRAINED}.csv", "data/lineup"])
def test_an_output_that_the_remote_lost_fails(
    store: Path, project: Project, failures: Gate, path: str
) -> None:
    assert failures() == []
    (store / stored(path)).unlink()
    only(failures(), f"not on remote store: {path}.", "dvc push --remote store")
    push()
    assert failures() == []


def test_a_file_that_the_remote_lost_from_a_folder_fails(
    store: Path, project: Project, failures: Gate
) -> None:
    (store / stored("data/lineup", "shapes.json")).unlink()
    listing = stored("data/lineup")
    only(failures(), "data/lineup is incomplete on remote store", f"Delete {listing} there")
    push()
    assert failures() != []  # DVC believes the listing: hence the advice
    (store / listing).unlink()
    push()
    assert failures() == []


def test_a_listing_that_somebody_exchanged_fails(
    store: Path, project: Project, failures: Gate
) -> None:
    said: list[str] = []
    assert failures(said=said) == []
    assert any(".dvc/config is not the base's" in line for line in said)  # it has a remote now
    listing = stored("data/lineup")
    whole = json.loads((store / listing).read_text())
    (store / listing).chmod(0o644)
    (store / listing).write_text(json.dumps([each | {"relpath": "../evil"} for each in whole]))
    kept = Path(".dvc/cache", listing).rename("kept")
    only(failures(), "data/lineup: its folder's listing is not the one that dvc.lock names")
    kept.rename(Path(".dvc/cache", listing))


def test_a_listing_that_was_exchanged_on_the_remote_alone_fails(
    store: Path, project: Project, failures: Gate
) -> None:
    listing = stored("data/lineup")
    (store / listing).chmod(0o644)
    (store / listing).write_text("[]")
    only(failures(), "data/lineup: its folder's listing", "Delete it on remote store")


@pytest.mark.parametrize(
    "family, change, message",
    [
        ("stats", {"frozen": True}, "it is frozen"),
        ("stats", {"outs": [{"data/stats/${key}.json": {"push": False}}]}, "has `push: false`"),
    ],
)
def test_settings_by_which_dvc_would_look_away_fail(
    project: Project, failures: Gate, family: str, change: dict[str, Any], message: str
) -> None:
    pipeline = yaml.safe_load(Path("dvc.yaml").read_text())
    assert change.keys() & {"outs"} <= pipeline["stages"][family]["do"].keys()
    pipeline["stages"][family]["do"] |= change
    Path("dvc.yaml").write_text(yaml.safe_dump(pipeline, sort_keys=False))
    only(failures(), f"{family}@shapes", message)


def test_a_remote_that_cannot_be_reached_fails_without_its_password(
    project: Project, failures: Gate
) -> None:
    set_remote("http://me:secret@127.0.0.1:1/store")
    found = failures()
    only(found, "remote store (http://127.0.0.1:1/store) cannot be reached", "credentials")
    assert "secret" not in found[0]


def test_a_remote_that_is_not_there_by_name(project: Project, failures: Gate) -> None:
    set_remote("../store", default="other")
    only(failures(), "of the DVC remotes store none is the default")
    only(failures("--remote", "store"), "remote store", "does not exist")
    with pytest.raises(StageError, match=r"--remote must be among: store\. Received: 'far'"):
        failures("--remote", "far")


def test_the_comment_tells_what_changed(project: Project, failures: Gate, tmp_path: Path) -> None:
    tree = copy.deepcopy(project.tree)
    tree["recipes"]["demo"]["epochs"] = 99
    odd = {"model": "deep", "config": {"fan_out": "a|b `c` @team\n<img>"}}
    tree["variants"][WAITING] |= odd
    project.write_params(tree)
    figures = Path("results/figures/shapes")
    figures.unlink()  # the stand-in writes a file in place of the folder
    figures.mkdir()
    (figures / "a [b].png").write_bytes(b"png")
    git(project, "add", "--all")
    values = {"accuracy": 0.735, "accuracy_low": 0.71, "accuracy_high": 0.76}
    METRICS.write_text(json.dumps(values))
    file = tmp_path / "comment.md"
    found = failures("--comment", str(file), "--links", "https://example.org/blob/")
    text = file.read_text()
    assert text.startswith(f"{gate.MARK}\n### gate: {len(found)} failures\n")
    assert text.count("\n- **failure**: ") == len(found) > 2
    head = "| here | 95 % interval of the accuracy here | difference |"
    assert head in text
    row = f"| `{TRAINED}` | 75.00% | 73.50% | 71.00% to 76.00% | -1.50 points |"
    assert row in text
    assert f"`{OTHER}` |" not in text  # its metrics are as they were
    assert "| `recipes.demo.epochs` | `6` | `99` |" in text
    assert "a\\|b `c` @team <img>" in text
    assert (
        "- [results/figures/shapes/a \\[b\\].png](https://example.org/blob/results/figures/" in text
    )
    assert "shapes/a%20%5Bb%5D.png)" in text


def test_the_comment_of_a_branch_that_changes_nothing(
    project: Project, failures: Gate, tmp_path: Path
) -> None:
    assert failures("--comment", str(tmp_path / "comment.md")) == []
    written = (tmp_path / "comment.md").read_text()
    assert written.startswith(f"{gate.MARK}\n### gate: passed, 8 stages\n")
    for text in ("No metric changed.", "No parameter changed.", "No figure changed."):
        assert text in written


def test_a_branch_without_params_yaml_is_commented_on(
    project: Project, failures: Gate, tmp_path: Path
) -> None:
    Path("params.yaml").unlink()
    assert failures("--comment", str(tmp_path / "comment.md"))
    assert "| `recipes.demo.epochs` | `6` | - |" in (tmp_path / "comment.md").read_text()


def test_a_base_without_a_name_is_refused(project: Project) -> None:
    with pytest.raises(StageError, match=r"--base must be a commit.*Received: ''"):
        gate.find_base("")


def test_a_comment_is_no_longer_than_github_takes() -> None:
    found = [gate.Finding("failure", f"{number} {'word ' * 50}") for number in range(1000)]
    text = gate.comment(found, "gate: 1000 failures", None, "")
    assert 0.9 * gate.LONGEST < len(text) < 65_536
    assert text.endswith("word\n\nand more: `python -m tools.gate` has all.\n")


def test_a_comment_that_cannot_be_written_is_one_message(project: Project, failures: Gate) -> None:
    with pytest.raises(StageError, match="--comment must be a file that can be written"):
        failures("--comment", "results")
    assert METRICS.exists()


def test_the_gate_runs_in_the_projects_folder(
    failures: Gate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StageError, match=r"dvc\.yaml is missing\. Run from"):
        failures()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "`plain`"),
        ("a|b", r"`a\|b`"),
        ("a`b", "`` a`b ``"),
        ("``", "``` `` ```"),
        ("two\nlines", "`two lines`"),
        ("", "` `"),
    ],
)
def test_a_cell_shows_text_as_it_is(text: str, shown: str) -> None:
    assert changes.code(text) == shown


def test_only_code_in_a_finding_is_markdown() -> None:
    assert changes.escaped("<b> *x* `a_b` [c](d)\nlast") == r"\<b\> \*x\* `a_b` \[c\](d) last"
    assert changes.escaped("```![a](b)`") == r"\`\`\`!\[a\](b)\`"
    assert changes.escaped("`` `<b>` @all") == "\\`\\` `<b>` @\u200ball"


def test_the_paths_of_parameters() -> None:
    tree = {"a": {"b": 1, "c": {}}, "d": [1, {"e": 2}], 3: None}
    assert dict(leaves(tree)) == {"a.b": 1, "a.c": {}, "d": [1, {"e": 2}], "3": None}


def test_a_long_table_is_cut() -> None:
    text = changes.table(("name",), [(str(i),) for i in range(changes.ROWS + 5)])
    assert text.endswith("\nand 5 more") and text.count("\n| ") == changes.ROWS + 1
