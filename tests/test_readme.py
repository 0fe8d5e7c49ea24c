"""tools/readme.py: the tables, and that they are put between their markers and nowhere else."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import PARAMS

from stages.shared.stage import StageError
from tools import readme

TEXT = """# Project
<!-- results -->
| old |
<!-- end of results -->
Between.
<!-- ablations -->
<!-- end of ablations -->
The end.
"""
UPDATED = """# Project
<!-- results -->
| new |
<!-- end of results -->
Between.
<!-- ablations -->
| other |
| lines |
<!-- end of ablations -->
The end.
"""


BASE = readme.BASE
RESULTS = f"""\
| variant | published | measured | 95 % interval | seeds | epochs | precision | training, per seed \
| device | parameters |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
| `cifar10-deep` | 80.18% | 79.00% | 78.00% to 80.00% | 1 | 5 | float32 | 1 min 30 s \
| CPU: toy | 1,234 |
| `{BASE}` | - | 90.00% ± 0.25% | 88.82% to 91.18% | 3 | 3 to 5 | float32 | 1 min 30 s \
| CPU: toy | 1,234 |
| `own-new` | - | - | - | - | 6 | float32 | - | - | - |"""
ABLATIONS = f"""\
| variant | measured | against `{BASE}` | training, per seed | parameters |
| --- | --- | --- | --- | --- |
| `{BASE}` | 90.00% ± 0.25% | - | 1 min 30 s | 1,234 |
| `{BASE}-less` | 88.50% ± 0.50% | -1.50 (-2.54 to -0.46) | - | 1,234 |
| `{BASE}-new` | - | - | - | - |"""


def write(path: str, values: dict[str, Any]) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(json.dumps(values))


def test_the_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of real data, one's own too: evaluated with one seed and several, without a record, not yet;
    ablations stand only in their own table.
    """
    monkeypatch.chdir(tmp_path)
    known = yaml.safe_load(PARAMS.read_text())
    sources = {"shapes": known["datasets"]["shapes"], "cifar10": known["datasets"]["cifar10"]}
    variant = {"model": "lenet", "config": {}, "recipe": "demo", "seeds": [1]}
    names = ("cifar10-deep", BASE, f"{BASE}-less", f"{BASE}-new")
    variants = {name: variant | {"dataset": "cifar10"} for name in names}
    variants["own-new"] = variant | {"dataset": "own"}
    variants["shapes-lenet"] = variant | {"dataset": "shapes"}
    values = {
        "datasets": sources | {"own": sources["cifar10"]},
        "recipes": {"demo": known["recipes"]["demo"]},
        "variants": variants,
    }
    write("params.yaml", values)
    record = {"train_seconds": 90.0, "environment": [{"device": "CPU: toy"}]}
    for name, accuracy, spread, epochs in (
        ("cifar10-deep", 0.79, None, [5]),
        (BASE, 0.9, 0.0025, [5, 3, 4]),
        (f"{BASE}-less", 0.885, 0.005, []),
    ):
        measured = {"accuracy": accuracy, "accuracy_std": spread, "parameters": 1234}
        measured |= {"accuracy_low": accuracy - 0.01, "accuracy_high": accuracy + 0.01}
        write(f"results/metrics/cifar10/{name}.json", measured | {"seeds": 3 if spread else 1})
        trainings = [{"epochs": each, "seconds": 1.0, "weights_sha256": ""} for each in epochs]
        if epochs:
            write(f"results/runs/cifar10/{name}.json", record | {"trainings": trainings})
    assert readme.tables() == {"results": RESULTS, "ablations": ABLATIONS}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with a README; it is the current one."""
    tables = {"results": "| new |", "ablations": "| other |\n| lines |"}
    monkeypatch.setattr(readme, "tables", lambda: tables)
    monkeypatch.setattr(sys, "argv", ["readme", "--write"])
    monkeypatch.chdir(tmp_path)
    readme.README.write_text(TEXT)


def test_each_table_is_written_between_its_markers(project: None) -> None:
    for _ in range(2):
        readme.main()
        assert readme.README.read_text() == UPDATED
    assert list(Path().iterdir()) == [readme.README]


@pytest.mark.parametrize("marker", [line for line in TEXT.splitlines() if line.startswith("<!--")])
def test_a_missing_marker_is_an_error_and_nothing_is_written(project: None, marker: str) -> None:
    text = TEXT.replace(f"{marker}\n", "")
    readme.README.write_text(text)
    with pytest.raises(StageError, match=f"README.md must hold .*{marker}"):
        readme.main()
    assert readme.README.read_text() == text


def test_without_write_the_tables_are_only_printed(
    project: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["readme"])
    readme.main()
    assert capsys.readouterr().out == "| new |\n\n| other |\n| lines |\n"
    assert readme.README.read_text() == TEXT
