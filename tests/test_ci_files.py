"""The CI files are valid by their schemas; a comment is written once, and then replaced."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT

from tools import gate

GITHUB = sorted((ROOT / ".github" / "workflows").iterdir())
GITLAB = ROOT / ".gitlab-ci.yml"


def check(schema: str, *paths: Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{schema}"]
    return subprocess.run([*command, *paths], capture_output=True, text=True, check=False)


def test_the_files_are_valid() -> None:
    for schema, paths in (("github-workflows", GITHUB), ("gitlab-ci", [GITLAB])):
        checked = check(schema, *paths)
        assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize(
    ("schema", "path", "good", "bad"),
    [
        ("github-workflows", GITHUB[-1], "runs-on:", "runs-at:"),
        ("gitlab-ci", GITLAB, "when: always", "when: ever"),
    ],
)
def test_a_broken_file_is_not_valid(
    tmp_path: Path, schema: str, path: Path, good: str, bad: str
) -> None:
    assert good in path.read_text()
    broken = tmp_path / path.name
    broken.write_text(path.read_text().replace(good, bad))
    checked = check(schema, broken)
    assert checked.returncode == 1 and "Schema validation errors" in checked.stdout


def workflow() -> dict[str, Any]:
    text = (ROOT / ".github" / "workflows" / "gate.yml").read_text()
    found: dict[str, Any] = yaml.safe_load(text)
    return found


def test_the_gate_sees_the_whole_history_and_is_told_its_base() -> None:
    steps = workflow()["jobs"]["gate"]["steps"]
    (checkout,) = (step for step in steps if "checkout" in step.get("uses", ""))
    assert checkout["with"]["fetch-depth"] == 0
    gitlab = yaml.safe_load(GITLAB.read_text())["gate"]
    assert gitlab["variables"]["GIT_DEPTH"] == "0"
    scripts = "\n".join(step.get("run", "") for step in steps), "\n".join(gitlab["script"])
    for script in scripts:
        assert '--base "$BASE" --max-drop "$DROP"' in script


def test_accuracy_may_fall_where_a_label_says_so_and_nowhere_else_before_the_merge() -> None:
    labelled, request, _ = yaml.safe_load(GITLAB.read_text())["gate"]["rules"]
    assert "/(^|,)lower accuracy(,|$)/" in labelled["if"]
    assert [rule["variables"]["DROP"] for rule in (labelled, request)] == ["100", "1"]
    (step,) = (step for step in workflow()["jobs"]["gate"]["steps"] if "env" in step)
    assert (
        "!contains(github.event.pull_request.labels.*.name, 'lower accuracy')"
        in step["env"]["DROP"]
    )
    assert {"labeled", "unlabeled"} <= set(workflow()[True]["pull_request"]["types"])  # `on`


def test_what_runs_a_branchs_code_has_neither_caches_nor_tokens() -> None:
    steps = workflow()["jobs"]["gate"]["steps"]
    assert not any("cache" in str(step) for step in steps)
    gitlab = yaml.safe_load(GITLAB.read_text())
    assert "cache" not in gitlab["gate"] and "environment" not in gitlab["gate"]
    assert gitlab["comment"]["environment"]["name"] == "gate-comment"


def test_nothing_of_a_pull_request_is_put_into_a_script() -> None:
    for path in GITHUB:
        for job in yaml.safe_load(path.read_text())["jobs"].values():
            for step in job["steps"]:
                assert "${{" not in step.get("run", ""), path


def test_who_runs_the_code_of_a_pull_request_cannot_write() -> None:
    found = workflow()
    assert True in found  # YAML reads `on` so
    assert "pull_request" in found[True]
    assert "pull_request_target" not in found[True]  # it would hand out a token
    assert found["permissions"] == {"contents": "read"}
    for name, job in found["jobs"].items():
        writes = "write" in job.get("permissions", {}).values()
        assert writes == (name == "comment")
        runs_code = any("checkout" in step.get("uses", "") for step in job["steps"])
        assert writes != runs_code
    for step in found["jobs"]["gate"]["steps"]:
        assert re.fullmatch(r"actions/[\w-]+@v\d+", step.get("uses", "actions/some@v1"))


STANDIN = (
    f"#!{sys.executable} -I"
    + """
import json, os, sys
with open(os.environ["CALLS"], "a") as file:
    print(json.dumps(sys.argv[1:]), file=file)
if "--paginate" in sys.argv:
    print(os.environ["THERE"])
if "--output" in sys.argv:
    path = sys.argv[sys.argv.index("--output") + 1]
    mark, us, others = "<!-- dvc gate -->", {"id": 4}, {"id": 5}
    notes = [
        {"id": 1, "body": "Hi", "author": us},
        {"id": 2, "body": mark + " passed", "author": others},
        {"id": 7, "body": mark + " old", "author": us},
    ]
    answer = us if path == "me.json" else notes if os.environ["THERE"] else notes[:2]
    json.dump(answer, open(path, "w"))
"""
)


def calls(script: str, folder: Path, there: str, **variables: str) -> list[list[str]]:
    """Runs a script with stand-ins for what reaches the network; how they were called."""
    for name in ("gh", "curl"):
        (folder / name).write_text(STANDIN)
        (folder / name).chmod(0o755)
    (folder / "gate.md").write_text(f"{gate.MARK}\nall is well\n")
    known = {
        "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
        "CALLS": str(folder / "calls"),
        "THERE": there,
    }
    command = ["bash", "-e", "-o", "pipefail", "-c", script]
    subprocess.run(command, cwd=folder, env=known | variables, check=True)
    return [json.loads(line) for line in (folder / "calls").read_text().splitlines()]


@pytest.mark.parametrize("there", ["", "7\n9"])
def test_github_gets_one_comment(tmp_path: Path, there: str) -> None:
    (script,) = (s["run"] for s in workflow()["jobs"]["comment"]["steps"] if "run" in s)
    assert gate.MARK in script
    asked, sent = calls(script, tmp_path, there, GITHUB_REPOSITORY="us/it", NUMBER="3")
    assert "repos/us/it/issues/3/comments" in asked
    where = "repos/us/it/issues/comments/7" if there else "repos/us/it/issues/3/comments"
    assert where in sent and ("PATCH" if there else "POST") in sent and "body=@gate.md" in sent


@pytest.mark.parametrize("there", ["", "7"])
def test_gitlab_gets_one_comment(tmp_path: Path, there: str) -> None:
    script = "\n".join(yaml.safe_load(GITLAB.read_text())["comment"]["script"])
    assert gate.MARK in script
    variables = {"CI_API_V4_URL": "https://example.org", "CI_PROJECT_ID": "5"}
    variables |= {"CI_MERGE_REQUEST_IID": "3", "GATE_TOKEN": "secret"}
    (tmp_path / "json.py").write_text("raise SystemExit('a branch has run its code')")
    _, _, sent = calls(script, tmp_path, there, **variables)
    where = "https://example.org/projects/5/merge_requests/3/notes"
    assert sent[-1] == (f"{where}/7" if there else where)
    assert ("PUT" if there else "POST") in sent and "body@gate.md" in sent
