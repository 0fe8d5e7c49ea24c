"""The results table in the terminal."""

import csv
import hashlib
import io
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from conftest import PARAMS, ROOT
from dvc.repo.experiments import Experiments

from stages.shared.stage import StageError
from tools import formatting, results, show
from tools.git import git
from tools.results import Result, Revision, revisions

METRICS = {
    "accuracy": 0.7182,
    "accuracy_low": 0.7093,
    "accuracy_high": 0.7269,
    "loss": 0.8526,
    "parameters": 92246,
    "seeds": 2,
    "accuracy_std": 0.0031,
}
RECORD = {"train_seconds": 1234.56, "environment": [{"device": "CPU: toy"}]}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder where one of two variants has results; it is the current one."""
    known = yaml.safe_load(PARAMS.read_text())
    shapes = {"source": "shapes", "train_images": 60, "test_images": 10, "seed": 0}
    variant = {"model": "lenet", "config": {}, "recipe": "demo", "seeds": [1, 2]}
    values = {
        "datasets": {"toys": shapes, "others": shapes},
        "recipes": {"demo": known["recipes"]["demo"]},
        "variants": {
            "toys-done": variant | {"dataset": "toys"},
            "toys-new": variant | {"dataset": "toys"},
            "others-new": variant | {"dataset": "others"},
        },
    }
    (tmp_path / "params.yaml").write_text(json.dumps(values))  # also YAML
    write(tmp_path / "results/metrics/toys/toys-done.json", METRICS)
    write(tmp_path / "results/runs/toys/toys-done.json", RECORD)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["show"])
    return tmp_path


def write(path: Path, values: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values))


def printed(capsys: pytest.CaptureFixture[str], *datasets: str) -> list[str]:
    sys.argv[1:] = datasets
    show.main()
    return capsys.readouterr().out.splitlines()


def test_the_table_has_a_line_per_variant(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = printed(capsys, "toys")
    assert lines[1] == "toys"
    assert lines[2].split("  ")[0] == "variant"
    assert set(lines[3]) == {"-", " "}
    cells = [cell.strip() for cell in lines[4].split("  ") if cell.strip()]
    assert cells == [
        "toys-done",
        "71.82% ± 0.31%",
        "68.90% to 74.74%",
        "0.853",
        "92,246",
        "2",
        "1,235",
        "CPU: toy",
    ]
    assert lines[2].index("loss") == lines[4].index("0.853")
    assert len(lines) == 6


def test_a_variant_without_results_is_listed_as_such(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = printed(capsys, "toys")[5]
    assert line.split() == ["toys-new", "-", "not", "evaluated", "yet", *"-----"]


@pytest.mark.parametrize("read", ["a", "b", None])
def test_a_variant_trained_since_its_evaluation_is_listed_as_not_evaluated(
    project: Path, capsys: pytest.CaptureFixture[str], read: str | None
) -> None:
    """As a sweep's trials are: they train, and the baseline's metrics are still there. After a
    merge dvc.lock may not even tell what they were of.
    """
    weights = {"path": "results/weights/toys/toys-done", "md5": "a"}
    stages = {
        "train@toys-done": {"cmd": "train", "outs": [weights]},
        "evaluate@toys-done": {"cmd": "evaluate", "deps": [weights | {"md5": read}]},
    }
    if read is None:
        del stages["evaluate@toys-done"]
    (project / "dvc.lock").write_text(json.dumps({"schema": "2.0", "stages": stages}))
    assert ("not evaluated yet" in printed(capsys, "toys")[4]) == (read != "a")
    result, _ = Revision().results(["toys"])
    predictions = result.path("predictions", ".csv")
    predictions.parent.mkdir(parents=True)
    predictions.write_text("seed,index,true,predicted\n1,0,cat,cat\n")
    if read != "a":
        assert result.predictions is None
    else:  # they are looked at, and are none of the run that the metrics tell of
        with pytest.raises(StageError, match="must be of the run"):
            _ = result.predictions


def test_parameters_are_those_of_the_training(project: Path) -> None:
    """And not those that params.yaml has by now."""
    (result, _) = Revision().results(["toys"])
    now = result.hyperparameters
    then = {
        "variants.toys-done": {"dataset": "toys", "recipe": "then", "seeds": [8]},
        "recipes.then": {"epochs": 99},
    }
    stages = {"train@toys-done": {"cmd": "train", "params": {"params.yaml": then}}}
    (project / "dvc.lock").write_text(json.dumps({"schema": "2.0", "stages": stages}))
    result, new = Revision().results(["toys"])
    assert result.hyperparameters == then["variants.toys-done"] | {"recipe": {"epochs": 99}} != now
    assert new.hyperparameters["seeds"] == now["seeds"]


def test_a_damaged_lock_file_is_an_error_that_names_it(project: Path) -> None:
    (project / "dvc.lock").write_text("stages: {train@toys-done: {")
    with pytest.raises(StageError, match=r"^dvc\.lock must be a whole dvc\.lock .* `make doctor`"):
        show.main()


@pytest.mark.parametrize("error", [RuntimeError("no way"), ConnectionRefusedError("no way")])
def test_a_remote_that_fails_is_a_warning_and_is_asked_once(
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
) -> None:
    """Git has params.yaml, DVC's cache has a and, damaged, d, and the remote would have b and c."""
    hashes = {name: hashlib.md5(name.encode()).hexdigest() for name in "abcd"}
    asked = []

    def in_cache(oid: str, mode: str) -> io.BytesIO:
        if oid not in (hashes["a"], hashes["d"]):
            raise FileNotFoundError(oid)
        return io.BytesIO(b"a")

    def at_remote(oid: str, mode: str) -> io.BytesIO:
        asked.append(oid)
        raise error

    stores = [
        SimpleNamespace(oid_to_path=lambda oid: oid, fs=SimpleNamespace(open=each))
        for each in (in_cache, at_remote)
    ]
    outs = [{"path": name, "md5": md5} for name, md5 in hashes.items()]
    outs += [{"path": "folder", "md5": f"{hashes['a']}.dir"}, {"path": "evil", "md5": "../../x"}]
    lock = {"schema": "2.0", "stages": {"stage": {"cmd": "true", "outs": outs}}}
    (project / "dvc.lock").write_text(json.dumps(lock))
    subprocess.run(["git", "init", "--quiet"], check=True)
    subprocess.run(["git", "add", "dvc.lock", "params.yaml"], check=True)
    commit = subprocess.run(["git", "write-tree"], check=True, capture_output=True, text=True)
    revision = Revision("main", commit.stdout.strip())
    monkeypatch.setitem(vars(revision), "_stores", stores)
    paths = ("params.yaml", "b", "c", "a", "d", "folder", "evil", "nothing")
    text, *found = [revision.read(Path(path)) for path in paths]
    assert text == Path("params.yaml").read_bytes()
    assert found == [None, None, b"a", None, None, None, None]
    assert asked == [hashes["b"]]  # once is enough: each time may take half a minute
    said = capsys.readouterr().err
    assert said.count(f"'main' is left out: {type(error).__name__}: no way") == 1


def test_looking_at_a_branch_follows_none_of_its_settings(
    clone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DVC asks a remote's password of any command that the settings name."""
    monkeypatch.chdir(clone)
    mine = {path: path.read_text() for path in map(Path, (".dvc/config", "dvc.yaml"))}
    Path(".dvc/config").write_text(
        "['remote \"evil\"']\n    url = webdav://127.0.0.1:9/x\n"
        f'    bearer_token_command = sh -c "touch {clone}/ran"\n'
    )
    out = "- results/details/${item.dataset}/${key}.json"
    assert out in mine[Path("dvc.yaml")]
    Path("dvc.yaml").write_text(mine[Path("dvc.yaml")].replace(out, f"{out}: {{remote: evil}}"))
    lock = {"results/details/shapes/shapes-lenet.json": "0" * 32}
    outs = [{"path": path, "hash": "md5", "md5": md5} for path, md5 in lock.items()]
    stages = {"evaluate@shapes-lenet": {"cmd": "true", "outs": outs}}
    Path("dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": stages}))
    for command in (["add", "--all"], ["commit", "--quiet", "--message", "Evil"]):
        subprocess.run(["git", *command], check=True)
    for path, text in mine.items():
        path.write_text(text)
    (evil,) = results.revisions(["HEAD"])
    (result,) = [each for each in evil.results(["shapes"]) if each.variant == "shapes-lenet"]
    assert result.details == {}
    assert not Path("ran").exists()


@pytest.mark.parametrize("name", ["../../x", "a/b", "-x", "", "a b"])
def test_a_params_file_of_others_cannot_name_paths(project: Path, name: str) -> None:
    values = yaml.safe_load((project / "params.yaml").read_text())
    assert results.is_params(values)
    values["datasets"][name] = values["datasets"]["toys"]
    assert not results.is_params(values)


def test_predictions_that_differ_in_one_image_of_ten_thousand_are_of_another_run(
    project: Path,
) -> None:
    rows = [f"1,{i},cat,{'cat' if i < 7183 else 'dog'}" for i in range(10_000)]  # metrics: 7182
    path = project / "results/predictions/toys/toys-done.csv"
    path.parent.mkdir(parents=True)
    path.write_text("\n".join(["seed,index,true,predicted", *rows]))
    result, _ = Revision().results(["toys"])
    with pytest.raises(StageError, match="must be of the run"):
        _ = result.predictions


def test_without_a_record_time_and_device_are_dashes(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "results/runs/toys/toys-done.json").unlink()
    assert printed(capsys, "toys")[4].split()[-3:] == ["2", "-", "-"]


def test_a_published_figure_of_something_else_says_of_what() -> None:
    row = {"variant": "cifar10-shallow", "published": 0.76}
    assert formatting.published(row) == "76.00% (about; another network)"
    assert formatting.published(row | {"variant": "cifar10-deep"}) == "76.00%"
    known = yaml.safe_load((ROOT / "params.yaml").read_text())["variants"]
    assert set(results.PUBLISHED_NOTES) < set(results.PUBLISHED) < set(known)


def test_an_interval_ends_where_accuracies_do() -> None:
    few = {"accuracy_std": 0.05, "seeds": 2}
    for accuracy, expected in ((0.98, 1.0), (0.02, 0.0)):
        ends = {"accuracy_low": accuracy - 0.01, "accuracy_high": accuracy + 0.01}
        assert expected in results.accuracy_interval({"accuracy": accuracy} | ends | few)


def test_one_seed_has_no_spread(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = {key: value for key, value in METRICS.items() if key != "accuracy_std"} | {"seeds": 1}
    write(project / "results/metrics/toys/toys-done.json", one)
    assert "±" not in printed(capsys, "toys")[4]


def test_all_datasets_are_shown_if_none_is_named(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "\n".join(printed(capsys))
    for name in ("toys-done", "toys-new", "others-new"):
        assert f"\n{name} " in text
    assert "others-new" not in "\n".join(printed(capsys, "toys"))


def test_experiments_of_one_name_and_several_baselines_are_all_listed(
    clone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(clone)
    listed = {"a" * 40: [("lr-0.1", "c1"), ("lr-1", "c2")], "b" * 40: [("lr-0.1", "c3")]}
    monkeypatch.setattr(Experiments, "ls", lambda self, all_commits: listed)
    monkeypatch.setattr(results, "is_readable", lambda experiment: True)
    found = {each.name: each.commit for each in revisions([], experiments=True)}
    expected = {"lr-0.1 (aaaaaaa)": "c1", "lr-0.1 (bbbbbbb)": "c3", "lr-1": "c2"}
    assert found == {"workspace": None} | expected


@pytest.fixture
def history(several: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three experiments: one measured a variant anew, one, as a sweep's trial, only trained it,
    and one has a params.yaml of old.
    """
    git("init", "--quiet")
    subprocess.run([sys.executable, "-m", "dvc", "init", "--quiet"], check=True)
    git("add", "--all")
    git("commit", "--quiet", "--message", "baseline")
    baseline = git("rev-parse", "HEAD")
    listed = []
    for name, path, values in (
        ("better", "results/metrics/toys/toys-worst.json", METRICS | {"accuracy": 0.95}),
        ("trial", "results/runs/toys/toys-done.json", RECORD | {"train_seconds": 7}),
        ("old", "params.yaml", {"epochs": 3}),
    ):
        git("checkout", "--quiet", "--detach", baseline)
        write(several / path, values)
        git("commit", "--quiet", "--all", "--message", name)
        listed.append((name, git("rev-parse", "HEAD")))
    git("checkout", "--quiet", "--detach", baseline)
    monkeypatch.setattr(Experiments, "ls", lambda self, all_commits: {baseline: listed})
    return several


def test_of_an_experiment_only_what_it_changed_is_listed(
    history: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sys.argv[1:] = ["--experiments", "--csv"]
    show.main()
    said = capsys.readouterr()
    rows = list(csv.DictReader(io.StringIO(said.out)))
    found = {row["revision"]: (row["variant"], row["accuracy"]) for row in rows}
    del found["workspace"]
    assert found == {"better": ("toys-worst", "0.95"), "trial": ("toys-done", "0.7182")}
    assert len(rows) == 2 + 5
    assert "an experiment is left out: 'old' has no params.yaml that can be read" in said.err


def test_a_dataset_that_one_revision_lacks_is_shown_of_the_others(
    history: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = json.loads((history / "params.yaml").read_text())
    values["datasets"]["new"] = values["datasets"]["toys"]
    values["variants"]["new-one"] = values["variants"]["toys-done"] | {"dataset": "new"}
    write(history / "params.yaml", values)
    lines = printed(capsys, "new", "--revs", "HEAD", "workspace")
    assert [line.split()[0] for line in lines[4:]] == ["new-one"]


def test_revisions_without_git_are_an_error(project: Path) -> None:
    with pytest.raises(StageError, match="not inside of a DVC repository"):
        revisions(["main"])
    subprocess.run([sys.executable, "-m", "dvc", "init", "--quiet", "--no-scm"], check=True)
    with pytest.raises(StageError, match="Only supported for Git"):
        revisions(["main"])


@pytest.fixture
def several(project: Path) -> Path:
    """Two more variants with results, the most accurate in the middle of params.yaml."""
    values = json.loads((project / "params.yaml").read_text())
    for name, accuracy, loss in (("toys-best", 0.9, 0.6), ("toys-worst", 0.3, 0.5)):
        values["variants"][name] = values["variants"]["toys-done"]
        metrics = METRICS | {"accuracy": accuracy, "loss": loss}
        write(project / f"results/metrics/toys/{name}.json", metrics)
    (project / "params.yaml").write_text(json.dumps(values))
    return project


@pytest.mark.parametrize(
    ("arguments", "order"),
    [
        ([], "done new best worst"),
        (["--sort", "accuracy"], "best done worst new"),
        (["--sort", "loss"], "worst best done new"),
    ],
)
def test_lines_are_sorted_the_best_first_and_those_without_results_last(
    several: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], order: str
) -> None:
    lines = printed(capsys, "toys", *arguments)[4:]
    assert [line.split()[0] for line in lines] == [f"toys-{name}" for name in order.split()]


def test_a_table_for_other_programs_has_every_figure_unrounded(
    several: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = list(csv.DictReader(printed(capsys, "--csv", "--sort", "accuracy")))
    names = ["toys-best", "toys-done", "toys-worst", "toys-new", "others-new"]
    assert [row["variant"] for row in rows] == names
    assert [row["dataset"] for row in rows] == [name.partition("-")[0] for name in names]
    assert (rows[1]["accuracy"], rows[1]["train_seconds"]) == ("0.7182", "1234.56")
    assert (rows[3]["accuracy"], rows[3]["train_seconds"]) == ("", "")


def test_a_table_for_a_page_is_markdown(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys, "toys", "--md")
    assert lines[1] == "**toys**"
    assert lines[3] == f"| {' | '.join(show.HEADER)} |"
    assert lines[4] == f"|{' --- |' * len(show.HEADER)}"
    assert lines[5].startswith("| toys-done | 71.82% ± 0.31% | 68.90% to 74.74% | ")
    assert lines[6] == "| toys-new | - | not evaluated yet | - | - | - | - | - |"
    assert len(lines) == 7


def test_figures_are_counted(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "results/figures/toys").mkdir(parents=True)
    (project / "results/figures/toys/a.png").touch()
    assert printed(capsys, "toys")[-1] == "Figures: results/figures/toys/ (1 PNG files)"


def test_an_unknown_dataset_is_an_error_and_prints_no_table(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(StageError, match=r"must be among toys, others.*Received: toyz\."):
        printed(capsys, "toys", "toyz")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("kind", "content", "message"),
    [
        ("metrics", "", "Expecting value"),
        ("metrics", "{", "Expecting property name"),
        ("metrics", "[]", "the whole: Input should be"),
        ("metrics", '{"accuracy": 0.8}', "accuracy_low: Field required"),
        ("metrics", json.dumps(METRICS | {"accuracy": "0.8"}), "accuracy: Input should be"),
        ("metrics", json.dumps(METRICS | {"accuracy": 1.5}), "accuracy: Input should be less"),
        ("metrics", json.dumps(METRICS | {"loss": "low"}), "loss: Input should be"),
        ("runs", "null", "the whole: Input should be"),
        ("runs", '{"environment": {"a": 1}}', "environment: Input should be"),
        ("runs", '{"trainings": [{"seconds": 1}]}', "trainings.0.epochs: Field required"),
        ("details", '{"classes": [], "seeds": {}}', "seeds: Dictionary should have at least 1"),
        ("details", '{"classes": []}', "seeds: Field required"),
        ("details", "[" * 100_000, "maximum recursion depth"),
        ("runs", '{"train_seconds": NaN}', "train_seconds: Input should be a finite"),
        ("runs", '{"train_seconds": -1}', "train_seconds: Input should be greater"),
    ],
)
def test_a_damaged_result_is_an_error_that_names_it(
    project: Path, kind: str, content: str, message: str
) -> None:
    path = project / f"results/{kind}/toys/toys-done.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    result = Result(Revision(), "toys", "toys-done")
    stage = "train" if kind == "runs" else "evaluate"
    with pytest.raises(StageError) as caught:
        getattr(result, {"runs": "record"}.get(kind, kind))
    said = str(caught.value)
    start = f"results/{kind}/toys/toys-done.json must be JSON as {stage} writes it. Received: "
    assert said.startswith(start + message) and f"dvc repro {stage}@toys-done" in said


@pytest.mark.parametrize("content", [b"epoch\n\xff\n", b"epoch,loss\nx,1\n", b"epoch,loss\n1,x\n"])
def test_damaged_curves_are_an_error_that_names_them(project: Path, content: bytes) -> None:
    path = project / "results/curves/toys/toys-done.csv"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    with pytest.raises(StageError, match=r"curves/toys/toys-done\.csv must be what train writes"):
        _ = Result(Revision(), "toys", "toys-done").curves


def test_metrics_that_only_have_the_accuracy_are_shown(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = {key: value for key, value in METRICS.items() if key.startswith("accuracy")}
    write(project / "results/metrics/toys/toys-done.json", few)
    assert printed(capsys, "toys")[4].split()[-6:-3] == ["-", "-", "-"]


def test_what_cannot_be_read_is_not_taken_for_what_is_not_there(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(PermissionError):
        Revision().read(Path("params.yaml"))


def test_a_table_without_lines_prints_nothing_for_other_programs(
    capsys: pytest.CaptureFixture[str],
) -> None:
    show.print_rows([], "csv")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", ["HEAD:params.yaml", "HEAD^{tree}", "nothing"])
def test_what_is_no_commit_is_no_revision(history: Path, name: str) -> None:
    with pytest.raises(StageError, match=r"A revision must be a commit.*Received: '"):
        revisions([name])
