"""tools/launch.py --sweep and tools/apply.py: trials as experiments of DVC's, by real trainings."""

import hashlib
import json
import re
import subprocess
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import PARAMS
from dvc.repo import Repo
from dvc.utils.serialize import modify_yaml

from stages.shared import params
from stages.shared.stage import StageError
from tools import apply, node, unfold
from tools.cluster import Source
from tools.git import identity
from tools.pipeline import Step
from tools.results import Revision
from tools.sweep import Range, Sweep, find_variant, parse, pull, report, validation_accuracies

SECONDS = 300  # no command takes longer, whatever else the machine does
RATE = "recipes.demo.optimizer.learning_rate"


@pytest.fixture(autouse=True)
def known_params(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """The current folder has a params.yaml."""
    monkeypatch.chdir(tmp_path_factory.mktemp("project"))
    params.PATH.write_bytes(PARAMS.read_bytes())


@pytest.mark.parametrize(
    "text, expected",
    [
        ("a.b=1,2.5,none", ("a.b", [1, 2.5, "none"])),
        ("a.b=[1, 2],[3]", ("a.b", [[1, 2], [3]])),
        ("a.b=1..8", ("a.b", Range(1, 8, False))),
        ("a.b=0.001..1:log", ("a.b", Range(0.001, 1, True))),
        ("a.b=1e-4,1e-3", ("a.b", [0.0001, 0.001])),
        ("a.b=1e-4..1e-1:log", ("a.b", Range(0.0001, 0.1, True))),
    ],
)
def test_values_are_given_one_by_one_or_as_a_range(text: str, expected: tuple[str, Any]) -> None:
    assert parse(text) == expected


@pytest.mark.parametrize(
    "text", ["a.b", "a.b=", "=1", "a=2..1", "a=0..1:log", "a=1..2:exp", "a=x..2", "a=x..y", "a={1"]
)
def test_other_forms_are_an_error(text: str) -> None:
    with pytest.raises(StageError, match="--sweep must be"):
        parse(text)


def test_a_sweep_is_of_one_variant() -> None:
    tree = params.load().model_dump()
    assert find_variant(tree, [RATE], ["train@shapes-lenet"]) == "shapes-lenet"
    assert find_variant(tree, ["variants.shapes-deep-bn.config.l2"], []) == "shapes-deep-bn"
    for keys, targets in (
        ([RATE], []),
        ([RATE], ["train@shapes-lenet", "train@shapes-simple"]),
        ([RATE], ["train@cifar10-lenet"]),
        ([RATE, "variants.cifar10-lenet.seeds"], []),
    ):
        with pytest.raises(StageError, match="A sweep is of one variant"):
            find_variant(tree, keys, targets)


KEYS = ("shapes-lenet", "shapes-deep-bn", "cifar10-air94")
STEPS: Any = {f"train@{key}": None for key in KEYS}


@pytest.mark.parametrize(
    "text, target, message",
    [
        ("recipes.demo.optimiser.learning_rate=1", "shapes-lenet", "Allowed for 'optimiser': "),
        (f"{RATE}=0.1,-1", "shapes-lenet", f"{RATE}: .* Received: -1"),
        (f"{RATE}=0.1..1", "shapes-lenet", "needs --trials N"),
        ("recipes.air94.epochs=16,20", "cifar10-air94", "validation.fraction must be above 0"),
        ("variants.shapes-lenet.recipe=demo,air94", "shapes-lenet", "Received: 0, of recipe air94"),
        ("variants.shapes-lenet.recipe=demo,dmo", "shapes-lenet", "Did you mean 'demo'"),
        ("variants.shapes-lenet.dataset=cifar10", "shapes-lenet", "images of one dataset"),
        ("variants.shapes-deep-bn.config.l2=0.1,much", "shapes-deep-bn", "config.l2: .* 'much'"),
        ("recipes.demo.validation={fraction: 0.0, split: end}", "shapes-lenet", "must be above 0"),
        ("recipes.demo.validation.fraction=0.1,0.5", "shapes-lenet", "same validation images"),
        ("recipes.demo.validation.split=end,stratified", "shapes-lenet", "same validation images"),
        ("recipes.demo.images_per_class=20,all", "shapes-lenet", "'images_per_class': 'all'}"),
        ("variants.shapes-lenet.recipe=demo,tutorial-convnet", "shapes-lenet", "same validation"),
        ("recipes.demo.test_views=1,6", "shapes-lenet", "cannot tell values of test_views apart"),
    ],
)
def test_what_cannot_be_tried_is_refused_before_anything_runs(
    text: str, target: str, message: str
) -> None:
    with pytest.raises(StageError, match=message):
        Sweep(dict([parse(text)]), STEPS, [f"train@{target}"], None, None)


def test_of_very_many_combinations_each_value_is_checked() -> None:
    blocks = [f"optimizer.beta_{n}=0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8,0.9,0.95" for n in (1, 2)]
    blocks += ["batch_size=1,2,3,4,5,6,7,8,9,10", "label_smoothing=0,0.1,0.2,0.3,0.4,0.5,2"]
    space = dict(parse(f"recipes.demo.{each}") for each in blocks)
    with pytest.raises(StageError, match=r"demo\.label_smoothing: .*Received: 2"):
        Sweep(space, STEPS, ["train@shapes-lenet"], None, 9)


def test_validation_images_may_come_with_the_values() -> None:
    space = dict([parse("recipes.air94.validation={fraction: 0.1, split: end}")])
    assert Sweep(space, STEPS, ["train@cifar10-air94"], None, None).count == 1
    space = dict([parse("recipes.demo.validation.fraction=0.0..0.5")])
    with pytest.raises(StageError, match=r"above 0\. Received: 0, of recipe demo\.$"):
        Sweep(space, STEPS, ["train@shapes-lenet"], None, 3)


def test_seeds_are_given_in_one_way() -> None:
    space = dict([parse("variants.shapes-lenet.seeds=[1],[2]")])
    assert Sweep(space, STEPS, ["train@shapes-lenet"], None, None).count == 2
    with pytest.raises(StageError, match="--seeds sets the seeds of all trials"):
        Sweep(space, STEPS, ["train@shapes-lenet"], 3, None)


def test_values_are_checked_in_the_combinations_that_are_tried() -> None:
    keep = "recipes.air94.selection.keep=last,best"  # `best` needs the validation images
    fraction = "recipes.air94.validation.fraction=0.1"
    assert Sweep(dict(map(parse, [keep, fraction])), STEPS, ["train@cifar10-air94"], None, 9)
    lengths = ["from_epochs=[1],[1,2]", "pixels=[32],[24,32]"]
    space = dict(parse(f"recipes.demo.resolution.{each}") for each in lengths)
    with pytest.raises(StageError, match=r"params\.yaml with these values is not valid:\n.*demo"):
        Sweep(space, STEPS, ["train@shapes-lenet"], None, None)


def asked(sweep: Sweep, count: int) -> list[dict[str, Any]]:
    """The values of the next trials, as many as there are."""
    return [each[1] for each in (sweep.ask() for _ in range(count)) if each]


@pytest.mark.parametrize(("trials", "expected"), [(2, 2), (3, 3), (5, 3), (None, 3)])
def test_no_trial_is_asked_for_twice(trials: int | None, expected: int) -> None:
    space = dict([parse(f"{RATE}=0.005,0.01,0.02")])
    sweep = Sweep(space, STEPS, ["train@shapes-lenet"], None, trials)
    assert sweep.count == expected
    rates = [each[RATE] for each in asked(sweep, sweep.count)]
    assert len(set(rates)) == len(rates) == expected


def test_a_space_of_few_values_comes_to_its_end() -> None:
    space = dict([parse("recipes.demo.batch_size=20..22")])
    sweep = Sweep(space, STEPS, ["train@shapes-lenet"], None, 30)
    found = [each["recipes.demo.batch_size"] for each in asked(sweep, 30)]
    assert sorted(found) == [20, 21, 22]


def test_optuna_chooses_within_a_range() -> None:
    space = dict(map(parse, [f"{RATE}=0.001..0.1:log", "recipes.demo.batch_size=20..40"]))
    sweep = Sweep(space, STEPS, ["train@shapes-lenet"], None, 30)
    found = asked(sweep, sweep.count)
    assert {type(each["recipes.demo.batch_size"]) for each in found} == {int}
    assert all(20 <= each["recipes.demo.batch_size"] <= 40 for each in found)
    assert all(0.001 <= each[RATE] <= 0.1 for each in found)
    assert len({each[RATE] for each in found}) > 20


def test_a_rounded_value_stays_within_its_range() -> None:
    key = "recipes.demo.optimizer.beta_2"
    sweep = Sweep(dict([parse(f"{key}=0.99949..0.99951")]), STEPS, ["train@shapes-lenet"], None, 20)
    found = [each[key] for each in asked(sweep, sweep.count)]
    assert all(0.99949 <= each <= 0.99951 for each in found)
    assert len(set(found)) > 10
    assert max(len(str(each)) for each in found) <= len("0.99950123")


def test_all_combinations_are_tried_though_optuna_repeats_itself() -> None:
    space = dict(map(parse, [f"{RATE}=0.1,0.2,0.3,0.4,0.5", "recipes.demo.batch_size=1,2,3,4,5"]))
    sweep = Sweep(space, STEPS, ["train@shapes-lenet"], None, 24)
    found = []
    for _ in range(24):
        trial, values = sweep.ask() or pytest.fail("none is left")
        found.append(tuple(values.values()))
        sweep.asked[sweep.name(values)] = 1 - values[RATE]
        sweep.study.tell(trial, 1 - values[RATE])
    assert len(set(found)) == 24


OUTS = ("curves.csv", "run.json")


def trained(*accuracies: float) -> dict[str, bytes]:
    """What a training leaves whose seeds' kept epochs, of three, have these accuracies."""
    rows = [f"{s},{e},{a if e == 2 else 0.99}" for s, a in enumerate(accuracies) for e in (1, 2, 3)]
    kept = [{"seed": seed, "kept_epoch": 2} for seed in range(len(accuracies))]
    curves = "\n".join(["seed,epoch,val_accuracy", *rows])
    return {"curves.csv": curves.encode(), "run.json": json.dumps({"trainings": kept}).encode()}


def test_a_trial_is_worth_what_its_kept_epochs_are() -> None:
    assert validation_accuracies(trained(0.25, 0.5), OUTS) == [0.25, 0.5]


class Scripted:
    """A connection on which each trial ends at once, as is told for its rate; Ctrl-C if nothing."""

    def __init__(self, *files: dict[str, bytes] | None) -> None:
        self.files = dict(zip(("0.01", "0.02", "0.04", "0.08"), files, strict=False))

    def slots(self) -> int:
        return 1

    def run_trial(self, job: dict[str, Any]) -> str:
        return str(job["name"]).rpartition("-")[2]

    def finished(self, rates: list[str], seconds: float) -> list[str]:
        if rates[0] not in self.files:
            raise KeyboardInterrupt
        return rates

    def outcome(self, rate: str) -> dict[str, Any]:
        files = self.files[rate]
        if files == {}:
            raise OSError("it could not be started")
        return {"code": int(files is None), "log": b"", "error": "why", "files": files}


def run_scripted(
    connection: Any, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> tuple[Sweep, list[dict[str, Any]]]:
    monkeypatch.setattr("tools.sweep.LOGS", folder)
    steps: Any = {"train@shapes-lenet": Step("train@shapes-lenet", (), (), OUTS, (), ())}
    space = dict([parse(f"{RATE}=0.01,0.02,0.04,0.08")])
    sweep = Sweep(space, steps, ["train@shapes-lenet"], None, None)
    return sweep, sweep.run(connection, Source("origin", "abc", None, str(folder), "cache"))


def test_a_trial_of_a_cluster_is_pulled_and_one_that_cannot_be_has_failed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tools.sweep.LOGS", tmp_path)
    monkeypatch.setattr("tools.sweep.pull", lambda name, source: f"{name} of {source.remote}")
    steps: Any = {"train@shapes-lenet": Step("train@shapes-lenet", (), (), OUTS, (), ())}
    space = dict([parse(f"{RATE}=0.01,0.02")])
    sweep = Sweep(space, steps, ["train@shapes-lenet"], None, None)
    done = sweep.run(Scripted(trained(0.5), None), Source("origin", "abc", "store"))
    errors = [each["error"] for each in done]
    assert errors == ["shapes-lenet_optimizer.learning_rate-0.01 of store", "why"]


def test_a_trial_is_pulled_by_the_commit_that_the_sweep_is_of(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """HEAD may have moved, and another commit may have an experiment of the same name."""

    def ran(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        assert command[3:] == [
            *("exp", "pull", "--force", "--remote", "store", "origin", "refs/exps/ab/cdef/trial")
        ]
        return subprocess.CompletedProcess(command, 1, "", "gone")

    monkeypatch.setattr(subprocess, "run", ran)
    assert pull("trial", Source("url", "abcdef", "store")).endswith("/trial`: gone")


def test_clones_commit_as_who_started_the_sweep(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "config", "user.name", "A. B <c>")
    git(tmp_path, "config", "user.email", "a@b")
    assert identity() == {
        "GIT_AUTHOR_NAME": "A. B c",  # git leaves brackets out
        "GIT_AUTHOR_EMAIL": "a@b",
        "GIT_COMMITTER_NAME": "A. B c",
        "GIT_COMMITTER_EMAIL": "a@b",
    }
    git(tmp_path, "config", "user.name", "")
    with pytest.raises(StageError, match="empty ident name"):
        identity()


def test_the_greatest_accuracy_is_the_best_and_is_reported_first(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    connection = Scripted(trained(0.5, 0.7), trained(0.8, 0.9), None, trained(0.7, 0.7))
    sweep, done = run_scripted(connection, monkeypatch, tmp_path)
    assert sweep.study.best_value == pytest.approx(0.85)
    assert sweep.study.best_params == {RATE: 1}  # by position
    capsys.readouterr()
    assert report(done) == 1
    said = capsys.readouterr()
    name = "shapes-lenet_optimizer.learning_rate"
    assert [line.split() for line in said.out.splitlines()[2:-3]] == [
        ["85.00%", "±", "7.07%", f"{RATE}=0.02", f"{name}-0.02"],
        ["70.00%", "±", "0.00%", f"{RATE}=0.08", f"{name}-0.08"],
        ["60.00%", "±", "14.14%", f"{RATE}=0.01", f"{name}-0.01"],
    ]
    assert said.err == f"  {name}-0.04 failed: why\n"


def test_a_trial_that_cannot_be_run_ends_no_other(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    connection = Scripted({}, trained(0.5), trained(0.6), trained(0.7))
    _, done = run_scripted(connection, monkeypatch, tmp_path)
    errors = [each["error"] for each in done]
    assert errors == ["it could not be started", "", "", ""]


def test_a_long_name_is_cut_and_stays_unique() -> None:
    sweep = Sweep(dict([parse(f"{RATE}=0.01,0.02")]), STEPS, ["train@shapes-lenet"], None, None)
    key = "recipes.demo.schedule.name"
    names = {sweep.name({key: "x" * 300 + end}) for end in "yz"} | {sweep.name({key: "x"})}
    assert len(names) == 3 and max(map(len, names)) < 200
    assert sweep.name({"recipes.demo.optimizer.name": "x"}) not in names


def test_ctrl_c_loses_no_trial_that_is_done(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep, (done,) = run_scripted(Scripted(None), monkeypatch, tmp_path)
    assert (done["name"], done["error"]) == ("shapes-lenet_optimizer.learning_rate-0.01", "why")
    assert sweep.interrupted
    assert "ending shapes-lenet_optimizer.learning_rate-0.02." in capsys.readouterr().err


def test_values_that_params_refuses_together_leave_all_as_it_was(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    text = params.PATH.read_bytes()
    monkeypatch.chdir(tmp_path)
    params.PATH.write_bytes(text)
    values = {"recipes.demo.validation.fraction": 0.0, "recipes.demo.selection.keep": "best"}
    with pytest.raises(StageError, match=r"^params\.yaml with these is not valid:\s.*need valid"):
        apply.put(values, {}, {"results/metrics.json": b"{}"})
    with pytest.raises(StageError, match=r"no variant any more for evaluate@gone\.$"):
        apply.put({}, {"evaluate@gone": {}, "plot@shapes": {}}, {"results/metrics.json": b"{}"})
    assert [path.name for path in tmp_path.iterdir()] == ["params.yaml"]
    assert params.PATH.read_bytes() == text


def test_files_that_are_applied_are_not_written_through_a_link(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As DVC restores small files from its run cache, if its settings say links."""
    monkeypatch.setattr(apply.pipeline, "record", lambda _: None)
    cached = tmp_path / "cached"
    cached.write_bytes(b"theirs")
    file = Path("results/metrics.json")
    file.parent.mkdir()
    for link in (file.symlink_to, file.hardlink_to):
        link(cached)
        apply.put({}, {}, {str(file): b"applied"})
        assert (file.read_bytes(), cached.read_bytes()) == (b"applied", b"theirs")
        file.unlink()


def test_results_of_other_parameters_are_not_applied() -> None:
    """As of two experiments that change one recipe: neither ran with what both make of it."""
    text = params.PATH.read_bytes()
    demo = params.parse(text)["recipes"]["demo"]
    ran = {"params": {"params.yaml": {"recipes.demo": demo | {"epochs": 7}}}}
    with pytest.raises(
        StageError, match=r"these has another recipes\.demo than train@shapes-lenet"
    ):
        apply.put({"recipes.demo.batch_size": 9}, {"train@shapes-lenet": ran}, {"new": b""})
    assert [path.name for path in Path().iterdir()] == ["params.yaml"]
    assert params.PATH.read_bytes() == text
    apply.check_params({"lineup": ran, "train@shapes-lenet": {}}, {}, "")


def test_an_experiment_may_add_and_remove_parameters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    git(tmp_path, "init", "--quiet")
    file = Path("params.yaml")
    for text in (
        "a: {name: sgd, momentum: 0.9}\nb: {old: {x: 1, y: [2]}}\nc: 1\n",
        "a: {name: adam}\nnew: {deep: {z: 3}}\nc: {d: 4}\n",
    ):
        file.write_text(text)
        git(tmp_path, "add", "--all")
        git(tmp_path, "commit", "--quiet", "--message", "Change")
    changed = apply.changed_values(Revision("before", "HEAD^"), Revision("after", "HEAD"))
    file.write_text("a: {name: sgd, momentum: 0.9}  # kept\nb: {old: {x: 1, y: [2]}}\nc: 1\n")
    node.change(file, changed)
    node.change(file, changed)  # once more changes nothing
    assert yaml.safe_load(file.read_text()) == yaml.safe_load(text)
    assert "# kept" in file.read_text()


def test_what_does_not_change_in_params_stays_as_it_is_written(tmp_path: Path) -> None:
    file = tmp_path / "params.yaml"
    text = PARAMS.read_text()
    file.write_text(text)
    node.change(file, {"recipes.demo.epochs": 77})
    assert file.read_text() == re.sub(r"(\n  demo:.*\n    epochs:) \d+", r"\1 77", text, count=1)


def test_lines_that_dvc_folded_are_whole_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["unfold"])
    text = PARAMS.read_text()
    params.PATH.write_text(text)
    with modify_yaml(str(params.PATH)):  # as `dvc exp run --set-param` does
        pass
    assert params.PATH.read_text() != text
    unfold.main()
    assert params.PATH.read_text() == text
    commented = text.replace("config: {}, recipe: demo,", "config: {},  # none\n    recipe: demo,")
    params.PATH.write_text(commented)
    with pytest.raises(StageError, match=r"would be lost.*Received: '# none'"):
        unfold.main()
    assert params.PATH.read_text() == commented
    params.PATH.write_text(broken := text.replace("epochs: 6", "epochs: six"))
    with pytest.raises(StageError, match=r"epochs.*six"):
        unfold.main()
    assert params.PATH.read_text() == broken


@pytest.mark.parametrize("path", ["Makefile", "results/../Makefile", "/etc/passwd", ".git/hooks"])
def test_an_experiment_cannot_write_where_no_stage_does(path: str) -> None:
    with pytest.raises(StageError, match=r"must lie in data/ or results/\. Received: '"):
        apply.small_files(Revision("evil", "HEAD"), ["results/a", path])


def test_an_output_of_which_the_cache_has_only_the_listing_is_not_applied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    git(tmp_path, "init", "--quiet")
    Path("weights").mkdir()
    Path("weights/seed-1.keras").write_bytes(b"w")
    with Repo.init() as repo:
        (stage,) = repo.add("weights")
    entry = {"outs": [{"path": "weights", "md5": stage.outs[0].hash_info.value}]}
    apply.check_cached("train@a", entry, {})
    digest = hashlib.md5(b"w").hexdigest()
    Path(".dvc/cache/files/md5", digest[:2], digest[2:]).unlink()
    with pytest.raises(StageError, match=r"weights of train@a is not there"):
        apply.check_cached("train@a", entry, {})


def test_results_of_other_code_are_not_applied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code = Path("train.py")
    code.write_text("1\n")
    found = hashlib.md5(b"1\n").hexdigest()
    entry = {"deps": [{"path": "train.py", "md5": found}, {"path": "data", "md5": "0.dir"}]}
    apply.check_code("train@a", entry, "0123456789abcdef")
    code.write_text("2\n")
    with pytest.raises(
        StageError, match=r"train\.py is not that of train@a: `git checkout 0123456789ab -- train"
    ):
        apply.check_code("train@a", entry, "0123456789abcdef")
    code.unlink()
    with pytest.raises(
        StageError, match=r"train\.py is not that of train@a: `git checkout 0123456789ab -- train"
    ):
        apply.check_code("train@a", entry, "0123456789abcdef")


def test_what_is_no_experiment_is_not_applied(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    monkeypatch.setattr(sys, "argv", ["apply", "workspace"])
    with pytest.raises(StageError, match=r"must be committed\. Received: 'workspace'"):
        apply.main()


@pytest.fixture(scope="module")
def project(clone: Path) -> Path:
    """A clone with a very short demo, its small dataset in place, all committed."""
    path = clone / "params.yaml"
    tree = yaml.safe_load(path.read_text())
    tree["datasets"]["shapes"] |= {"train_images": 200, "test_images": 10}
    for recipe in ("demo", "demo-augmented"):
        tree["recipes"][recipe] |= {"epochs": 1, "images_per_class": 20}
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    run(clone, "dvc", "repro", "stats@shapes")
    git(clone, "add", "--all")
    git(clone, "commit", "--quiet", "--message", "Short")
    return clone


def run(folder: Path, module: str, *arguments: str, code: int = 0) -> str:
    """Runs a module; returns what it prints, or says when it fails as it must."""
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stderr if code else done.stdout


def git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=folder, capture_output=True, text=True, check=True
    )
    return done.stdout


def test_trials_become_experiments_that_are_applied_together(project: Path) -> None:
    sweep = [f"--sweep={RATE}=0.001,0.01", "--seeds", "2", "--jobs", "2"]
    output = run(project, "tools.launch", "train@shapes-lenet", *sweep)
    assert "validation accuracy" in output
    run(project, "tools.launch", "--sweep=variants.shapes-deep-bn.seeds=[4]")
    assert git(project, "status", "--porcelain") == ""
    names = set(run(project, "dvc", "exp", "list", "--name-only").split())
    rates = {f"shapes-lenet_optimizer.learning_rate-{rate}_seeds-2" for rate in (0.001, 0.01)}
    assert names == rates | {"shapes-deep-bn_seeds--4-"}

    said = run(project, "tools.apply", *rates, code=1)
    assert "learning_rate" in said and "one set differently" in said
    assert git(project, "status", "--porcelain") == ""
    applied = ["shapes-lenet_optimizer.learning_rate-0.01_seeds-2", "shapes-deep-bn_seeds--4-"]
    cache = project / ".dvc" / "cache" / "files"
    cache.rename(cache.with_name("elsewhere"))
    assert "is not there: `dvc exp pull` it" in run(project, "tools.apply", *applied, code=1)
    assert git(project, "status", "--porcelain") == ""
    cache.with_name("elsewhere").rename(cache)
    run(project, "tools.apply", *applied)
    tree = yaml.safe_load((project / "params.yaml").read_text())
    assert tree["recipes"]["demo"]["optimizer"]["learning_rate"] == 0.01
    assert tree["variants"]["shapes-lenet"]["seeds"] == [0, 1]
    assert tree["variants"]["shapes-deep-bn"]["seeds"] == [4]
    status = run(project, "dvc", "status", "train@shapes-lenet", "train@shapes-deep-bn")
    assert "up to date" in status, status


def test_experiments_that_add_a_variant_each_are_applied_together(project: Path) -> None:
    """Both ran `lineup`, which names all variants: that is left for DVC."""
    git(project, "checkout", "--quiet", "--force", ".")
    path = project / "params.yaml"
    before = path.read_text()
    for name, target in (("one", "train@shapes-one"), ("two", "stats@shapes")):
        tree = yaml.safe_load(before)
        lenet = deepcopy(tree["variants"]["shapes-lenet"])  # else the copy is written as an alias
        tree["variants"][f"shapes-{name}"] = lenet | {"seeds": [5]}
        path.write_text(yaml.safe_dump(tree, sort_keys=False))
        run(project, "dvc", "exp", "run", "--quiet", "--name", name, "lineup", target)
        git(project, "checkout", "--quiet", "--force", ".")
        git(project, "clean", "--quiet", "--force", "-d")
    run(project, "tools.apply", "one", "two")
    assert {"shapes-one", "shapes-two"} <= yaml.safe_load(path.read_text())["variants"].keys()
    assert "up to date" in run(project, "dvc", "status", "train@shapes-one")
    assert "changed" in run(project, "dvc", "status", "lineup")
