"""tools/readme.py puts the tables into the README, between their markers and nowhere else."""

import sys
from pathlib import Path

import pytest

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


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with a README; it is the current one."""
    tables = {"results": "| new |", "ablations": "| other |\n| lines |"}
    monkeypatch.setattr(readme, "tables", lambda: tables)
    monkeypatch.setattr(sys, "argv", ["readme", "--write"])
    monkeypatch.chdir(tmp_path)
    readme.README.write_text(TEXT)


def test_each_table_is_written_between_its_markers() -> None:
    for _ in range(2):
        readme.main()
        assert readme.README.read_text() == UPDATED
    assert list(Path().iterdir()) == [readme.README]


@pytest.mark.parametrize("marker", [line for line in TEXT.splitlines() if line.startswith("<!--")])
def test_a_missing_marker_is_an_error_and_nothing_is_written(marker: str) -> None:
    text = TEXT.replace(f"{marker}\n", "")
    readme.README.write_text(text)
    with pytest.raises(StageError, match=f"README.md must hold .*{marker}"):
        readme.main()
    assert readme.README.read_text() == text


def test_without_write_the_tables_are_only_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["readme"])
    readme.main()
    assert capsys.readouterr().out == "| new |\n\n| other |\n| lines |\n"
    assert readme.README.read_text() == TEXT
