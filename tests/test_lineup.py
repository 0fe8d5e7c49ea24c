"""The lists of variants: one per dataset, sorted, and the same whatever the order in the file."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import PARAMS, ROOT


@pytest.fixture
def data() -> dict[str, Any]:
    parsed: dict[str, Any] = yaml.safe_load(PARAMS.read_text())
    return parsed


def lineup(folder: Path, data: dict[str, Any]) -> dict[str, bytes]:
    """The files that the command writes, by name."""
    (folder / "params.yaml").write_text(yaml.safe_dump(data, sort_keys=False))
    result = subprocess.run(
        [sys.executable, "-m", "stages.lineup", "--out", "data/lineup"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert [path.name for path in (folder / "data").iterdir()] == ["lineup"]
    return {path.name: path.read_bytes() for path in (folder / "data/lineup").iterdir()}


def test_each_dataset_gets_a_sorted_list_of_its_variants(
    tmp_path: Path, data: dict[str, Any]
) -> None:
    written = lineup(tmp_path, data)
    assert sorted(written) == ["cifar10.json", "cifar100.json", "shapes.json"]
    assert json.loads(written["cifar100.json"]) == ["cifar100-convnet", "cifar100-deep-bn"]
    for dataset in data["datasets"]:
        variants = [key for key, each in data["variants"].items() if each["dataset"] == dataset]
        assert json.loads(written[f"{dataset}.json"]) == sorted(variants)


def test_the_order_of_the_variants_does_not_matter(tmp_path: Path, data: dict[str, Any]) -> None:
    expected = lineup(tmp_path, data)
    data["variants"] = dict(reversed(data["variants"].items()))
    assert lineup(tmp_path, data) == expected


def test_what_a_variant_is_does_not_matter(tmp_path: Path, data: dict[str, Any]) -> None:
    expected = lineup(tmp_path, data)
    data["variants"]["shapes-lenet"].update(model="simple", recipe="shallow", seeds=[9])
    assert lineup(tmp_path, data) == expected


def test_a_new_variant_changes_only_the_list_of_its_dataset(
    tmp_path: Path, data: dict[str, Any]
) -> None:
    before = lineup(tmp_path, data)
    data["variants"]["another"] = copy.deepcopy(data["variants"]["shapes-lenet"])
    after = lineup(tmp_path, data)
    assert json.loads(after["shapes.json"])[0] == "another"
    assert [name for name in before if before[name] != after[name]] == ["shapes.json"]


def test_the_list_of_a_dataset_that_is_gone_is_gone(tmp_path: Path, data: dict[str, Any]) -> None:
    lineup(tmp_path, data)
    del data["datasets"]["cifar100"]
    for key in ("cifar100-deep-bn", "cifar100-convnet"):
        del data["variants"][key]
    assert sorted(lineup(tmp_path, data)) == ["cifar10.json", "shapes.json"]
