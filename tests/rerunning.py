"""DVC on the project's own dvc.yaml with stand-ins for the commands (tests/standin.py).

What must rerun after a change is worked out here from first principles: what each stage computes
from what, and what its code imports.
"""

import ast
import contextlib
import functools
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import PARAMS, ROOT
from dvc.repo import Repo
from dvc.utils.serialize import YAMLFileCorruptedError
from test_structure import closure

Tree = dict[str, Any]


@dataclass
class Stage:
    """What one stage's outputs follow from, but for other stages' outputs.

    Attributes:
        stale_if: changes of this make DVC run the stage: parameter values and bytes of code.
        computes: changes of this change the outputs: without comments, and names that only refer.
        upstream: the stages whose outputs it reads.
    """

    stale_if: Any
    computes: Any
    upstream: list[str]


class Project:
    """A clone of the project whose parameters and files are changed case by case."""

    def __init__(self, folder: Path, scratch: Path) -> None:
        self.folder = folder
        self.log, self.standin = scratch / "log", scratch / "standin.json"
        self.tree: Tree = yaml.safe_load((folder / "params.yaml").read_text())
        self.text = (folder / "params.yaml").read_text()

    def write_params(self, tree: Tree) -> None:
        self.tree = tree
        self.write_text(yaml.dump(tree, Dumper=yaml.CSafeDumper, sort_keys=False))

    def write_text(self, text: str) -> None:
        self.text = text
        (self.folder / "params.yaml").write_text(text)

    def merge_drivers(self) -> None:
        """What `make setup-git` tells git."""
        makefile = (ROOT / "Makefile").read_text()
        for line in re.findall(r"^\t@(git config .*)", makefile, re.MULTILINE):
            line = line.replace("$(abspath $(BIN))/python", sys.executable)
            subprocess.run(line, shell=True, cwd=self.folder, check=True)

    def code(self, stage_file: str, *by_name: str) -> tuple[list[bytes], list[str]]:
        """The bytes, and the meaning, of all code that a stage's file imports."""
        exempt = "stages/shared/params.py"
        files = sorted(f for f in closure(stage_file) if "*" not in f and f != exempt)
        contents = [(self.folder / file).read_bytes() for file in [*files, *by_name]]
        return contents, [meaning(content) for content in contents]

    def stages(self) -> dict[str, Stage]:
        """Every stage of the project as it is now, upstream ones first."""
        found = {}
        for name, config in self.tree["datasets"].items():
            code = self.code("stages/download.py", f"stages/datasets/{config['source']}.py")
            found[f"download@{name}"] = Stage([config, code[0]], [config, code[1]], [])
            code = self.code("stages/stats.py")
            found[f"stats@{name}"] = Stage(code[0], code[1], [f"download@{name}"])
        code, variants = self.code("stages/lineup.py"), self.tree["variants"]
        found["lineup"] = Stage([variants, code[0]], [self.lineup(), code[1]], [])
        for name, variant in variants.items():
            recipe, dataset = self.tree["recipes"][variant["recipe"]], variant["dataset"]
            code = self.code("stages/train.py", f"stages/models/{variant['model']}.py")
            computes = [variant["config"], variant["seeds"], dataset, recipe, code[1]]
            upstream = [f"download@{dataset}", f"stats@{dataset}"]
            found[f"train@{name}"] = Stage([variant, recipe, code[0]], computes, upstream)
            code = self.code("stages/evaluate.py")
            upstream = [f"train@{name}", f"download@{dataset}"]
            found[f"evaluate@{name}"] = Stage([dataset, code[0]], [dataset, code[1]], upstream)
        for name in self.tree["datasets"]:
            code, names = self.code("stages/plot.py"), self.lineup()[name]
            upstream = [f"{family}@{each}" for each in names for family in ("train", "evaluate")]
            found[f"names@{name}"] = Stage(None, names, [])  # one file of the lineup's
            upstream += [f"names@{name}", f"download@{name}"]
            found[f"plot@{name}"] = Stage(code[0], code[1], upstream)
        return found

    def lineup(self) -> dict[str, list[str]]:
        names: dict[str, list[str]] = {}
        for name, variant in sorted(self.tree["variants"].items()):
            names.setdefault(variant["dataset"], []).append(name)
        return names

    def tell_standin(self, **more: Any) -> None:
        """Tells the stand-in what the stages are now; besides what it is to do unlike them."""
        digests = {name: repr(stage.computes) for name, stage in self.stages().items()}
        known = {"digests": digests, "lineup": self.lineup(), "log": str(self.log)}
        self.standin.write_text(json.dumps(known | more))
        self.log.write_text("")
        os.environ["STANDIN"] = str(self.standin)

    def ran(self) -> set[str]:
        """The stages whose commands ran since."""
        ran = self.log.read_text().split()
        assert len(ran) == len(set(ran))
        return set(ran)

    def repro(self, *targets: str) -> set[str]:
        """Runs `dvc repro`, and returns the stages whose commands ran."""
        self.tell_standin()
        os.chdir(self.folder)  # DVC looks for dvc.yaml there
        with Repo() as repo:
            repo.reproduce(list(targets) or None)
        return self.ran()

    def status(self) -> set[str]:
        """The stages that `dvc status` calls stale: those touched directly."""
        os.chdir(self.folder)
        with Repo() as repo:
            return set(repo.status())


@functools.cache
def meaning(code: bytes) -> str:
    """What is left of code without its comments and its layout."""
    return ast.dump(ast.parse(code))


def must_rerun(before: dict[str, Stage], after: dict[str, Stage]) -> tuple[set[str], set[str]]:
    """From first principles: the stages that are stale by themselves, and all that must rerun."""
    direct, rerun, changed = set(), set(), set()
    for name, stage in after.items():
        old = before.get(name)
        if old is None or old.stale_if != stage.stale_if:
            direct.add(name)
        if name in direct or changed.intersection(stage.upstream):
            rerun.add(name)
        if (
            old is None
            or old.computes != stage.computes
            or changed.intersection(stage.upstream)
            or set(old.upstream) != set(stage.upstream)
        ):
            changed.add(name)
    files = {name for name in after if name.startswith("names@")}
    return direct - files, rerun - files


def quicken(patch: pytest.MonkeyPatch) -> None:
    """Lets DVC use libyaml, parse each text once, and lock no files: it is alone here."""

    @functools.lru_cache(100)
    def as_json(text: str) -> str:
        return json.dumps(yaml.load(text, yaml.CSafeLoader) or {})

    def parse(text: str, path: str = "", typ: str = "safe") -> Any:
        try:
            return json.loads(as_json(text))
        except yaml.YAMLError:
            raise YAMLFileCorruptedError(path) from None

    def dump(data: Any, stream: Any) -> None:
        yaml.dump(json.loads(json.dumps(data)), stream, yaml.CSafeDumper, sort_keys=False)

    for module in ("dvc.utils.serialize._yaml", "dvc.utils.strictyaml"):
        patch.setattr(f"{module}.parse_yaml", parse)
    patch.setattr("dvc.utils.serialize._yaml._dump", dump)
    patch.setattr("dvc.rwlock.rwlock", lambda *_: contextlib.nullcontext())


@contextlib.contextmanager
def opened(clone: Path, scratch: Path, *targets: str) -> Iterator[Project]:
    """A clone of the project, all up to date by stand-ins, with DVC running in this process.

    Args:
        clone: its folder.
        scratch: an empty folder for what the stand-ins need.
        targets: brings only these up to date, in place of everything.
    """
    python = scratch / "bin" / "python"
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "{ROOT}/tests/standin.py" "$@"\n')
    python.chmod(0o755)
    # DVC writes git's index so that git takes for unchanged what stand-ins write within a second.
    (clone / ".dvc" / "config.local").write_text("[core]\n    autostage = false\n")
    project = Project(clone, scratch)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(clone)
        patch.setenv("PATH", f"{python.parent}{os.pathsep}{os.environ['PATH']}")
        patch.setenv("STANDIN", "")
        quicken(patch)
        ran = project.repro(*targets)
        assert targets or ran == must_rerun({}, project.stages())[1]
        yield project


def project_tree(*variants: str) -> Tree:
    """The parameters of a clone: all, or only these variants with what they use."""
    tree: Tree = yaml.load(PARAMS.read_text(), yaml.CSafeLoader)
    if variants:
        tree["variants"] = {name: tree["variants"][name] for name in variants}
        for section, field in (("datasets", "dataset"), ("recipes", "recipe")):
            used = {variant[field] for variant in tree["variants"].values()}
            tree[section] = {name: each for name, each in tree[section].items() if name in used}
    return tree
