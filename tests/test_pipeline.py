"""The pipeline through DVC, as its users run it: repro, metrics, plots, experiments, branches."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import vl_convert
import yaml


def run(folder: Path, *command: str) -> str:
    """Runs a command that must succeed, and returns what it printed."""
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"{' '.join(command)}\n{result.stdout}\n{result.stderr}"
    return result.stdout


def metrics(folder: Path, *command: str) -> Any:
    return json.loads(run(folder, "dvc", *command, "--json"))


@pytest.fixture(scope="module")
def workspace(clone: Path) -> Path:
    """The project with few shapes and short recipes, all of its shapes' results in git."""
    params = yaml.safe_load((clone / "params.yaml").read_text())
    params["datasets"]["shapes"] |= {"train_images": 120, "test_images": 30}
    for name in ("demo", "demo-augmented"):
        params["recipes"][name]["epochs"] = 1
    for name in ("shapes-simple", "shapes-convnet"):
        del params["variants"][name]
    (clone / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    run(clone, "dvc", "repro", "plot@shapes")
    run(clone, "git", "add", "--all")
    run(clone, "git", "commit", "--quiet", "--message", "Results")
    return clone


def test_everything_is_up_to_date_after_a_repro(workspace: Path) -> None:
    assert "up to date" in run(workspace, "dvc", "status", "--with-deps", "plot@shapes")
    assert "Running" not in run(workspace, "dvc", "repro", "plot@shapes")
    assert run(workspace, "git", "status", "--porcelain") == ""


def test_metrics_and_plots_show_every_variant(workspace: Path) -> None:
    shown = metrics(workspace, "metrics", "show")[""]["data"]
    headline = shown["results/metrics/shapes/shapes-lenet.json"]["data"]
    assert headline["accuracy_low"] < headline["accuracy"] < headline["accuracy_high"]
    record = shown["results/runs/shapes/shapes-lenet.json"]["data"]
    assert {key for key, value in record.items() if not isinstance(value, list)} == {
        "train_seconds",
        "images_per_second",
    }
    run(workspace, "dvc", "plots", "show", "--out", "page")
    page = (workspace / "page" / "index.html").read_text()
    assert "shapes: training accuracy of all variants" in page
    assert "shapes-deep-bn: confusion" in page


def test_plots_as_editors_read_them_are_whole_specifications(workspace: Path) -> None:
    shown = json.loads(run(workspace, "dvc", "plots", "show", "--json"))["data"]
    charts = [each for entries in shown.values() for each in entries if each["type"] == "vega"]
    assert len(charts) >= 5
    for each in charts:
        content = each["content"]
        text = content if isinstance(content, str) else json.dumps(content)
        assert "<DVC_METRIC" not in text
        compiled = vl_convert.vegalite_to_vega(json.loads(text), vl_version="5.20")
        assert compiled["marks"]


def test_an_experiment_reruns_its_variant_and_can_be_compared_and_merged(workspace: Path) -> None:
    key = "variants.shapes-lenet.seeds"
    out = run(workspace, "dvc", "exp", "run", "--name", "more", "-S", f"{key}=[3]", "plot@shapes")
    ran = {line.split("'")[1] for line in out.splitlines() if line.startswith("Running stage")}
    assert ran == {"lineup", "train@shapes-lenet", "evaluate@shapes-lenet", "plot@shapes"}
    shown = run(workspace, "dvc", "exp", "show", "--csv")
    assert "more" in shown and "results/metrics/shapes/shapes-lenet.json:accuracy" in shown

    run(workspace, "dvc", "exp", "branch", "more", "three-seeds")
    run(workspace, "git", "checkout", "--quiet", "--force", "main")
    changes = metrics(workspace, "metrics", "diff", "main", "three-seeds")
    assert changes["results/metrics/shapes/shapes-lenet.json"]["seeds"]["new"] == 1
    assert "results/metrics/shapes/shapes-deep-bn.json" not in changes
    changed = metrics(workspace, "params", "diff", "main", "three-seeds")
    assert key in changed["params.yaml"]

    table = run(workspace, sys.executable, "-m", "tools.show", "--experiments", "--json")
    seeds = {row["revision"]: row["seeds"] for row in json.loads(table) if row["seeds"]}
    assert seeds["more"] == 1
    run(workspace, sys.executable, "-m", "tools.report", "shapes", "--revs", "main", "more")
    page = (workspace / "report" / "index.html").read_text()
    assert "shapes-lenet (more) against shapes-lenet (main)" in page


def test_going_back_restores_from_the_cache_and_trains_nothing(workspace: Path) -> None:
    run(workspace, "git", "checkout", "--quiet", "--force", "main")
    assert "Running stage 'train" not in run(workspace, "dvc", "repro", "plot@shapes")
    assert run(workspace, "git", "status", "--porcelain", "--", "dvc.lock", "results") == ""


def test_a_mistake_in_the_params_stops_before_any_work(workspace: Path) -> None:
    text = (workspace / "params.yaml").read_text()
    params = yaml.safe_load(text)
    params["recipes"]["demo"]["pixels"] = "chanel"
    before = (workspace / "dvc.lock").read_bytes()
    (workspace / "params.yaml").write_text(yaml.safe_dump(params))
    try:
        result = subprocess.run(
            ["dvc", "repro", "plot@shapes"],
            cwd=workspace, capture_output=True, text=True, check=False,
        )  # fmt: skip
    finally:
        (workspace / "params.yaml").write_text(text)
    assert result.returncode != 0
    assert "pixels: Input should be 'unit', 'overall' or 'channel'" in result.stderr
    assert "Traceback" not in result.stderr
    assert (workspace / "dvc.lock").read_bytes() == before


def test_a_released_model_can_be_fetched_by_its_name_and_version(
    workspace: Path, tmp_path: Path
) -> None:
    run(workspace, "git", "checkout", "--quiet", "--force", "main")
    run(workspace, "dvc", "checkout", "--quiet", "--force", "train@shapes-lenet")
    run(workspace, "dvc", "remote", "add", "--default", "--local", "store", str(tmp_path / "store"))
    run(workspace, "dvc", "push", "--quiet", "evaluate@shapes-lenet", "train@shapes-lenet")
    run(workspace, "gto", "register", "shapes-lenet", "--version", "v1.0.0")
    assert "shapes-lenet" in run(workspace, "gto", "show", "--plain")
    run(
        tmp_path,
        *("dvc", "artifacts", "get", str(workspace), "shapes-lenet", "--rev", "v1.0.0"),
        *("--out", "model"),
    )
    for seed in (1, 2):
        released = (tmp_path / "model" / f"seed-{seed}.keras").read_bytes()
        kept = workspace / "results/weights/shapes/shapes-lenet" / f"seed-{seed}.keras"
        assert released == kept.read_bytes()
