"""What the pipeline wrote, as it lies here or in any commit, branch, tag or experiment.

Files that git has are read from git; what DVC keeps, from its cache or the remote that is set here.
No setting of another revision counts: it could name a remote, and commands that log in there.
"""

import csv
import hashlib
import io
import math
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import stdtrit

from stages.shared import params
from stages.shared.stage import StageError
from tools import schema
from tools.git import git
from tools.node import without_passwords
from tools.pipeline import LOCK, opened, parse_lock

RESULTS = Path("results")
WORKSPACE = "workspace"
SAME_ACCURACY = 1e-6
CSV_ERRORS = (ValueError, KeyError, TypeError, csv.Error)

PUBLISHED = {  # accuracies as their sources give them; shown beside ours, never computed with
    "cifar10-simple": 0.7182,
    "cifar10-deep": 0.8018,
    "cifar10-deep-6epoch": 0.6951,
    "cifar10-shallow": 0.76,
    "cifar10-deep-bn": 0.90,
    "cifar10-convnet": 0.6948,
    "cifar10-resnet20": 0.9125,
    "cifar100-deep-bn": 0.60,
    "cifar100-convnet": 0.35,
}
PUBLISHED_NOTES = {  # what keeps a source's accuracy from being compared with ours to the digit
    "cifar10-deep-6epoch": "after an earlier fit",
    "cifar10-shallow": "about; another network",
    "cifar10-deep-bn": "about",
    "cifar10-resnet20": "another recipe",
    "cifar100-deep-bn": "about",
    "cifar100-convnet": "best epoch, validation images",
}


def accuracy_interval(metrics: dict[str, Any]) -> tuple[float, float]:
    """The 95 % interval of an accuracy, for other test images and, with several seeds, other seeds.

    The first is Wilson's, which evaluate computes, the second Student's t over the seeds; their
    half-widths are added in quadrature (Zou and Donner 2008).
    """
    accuracy, low, high = metrics["accuracy"], metrics["accuracy_low"], metrics["accuracy_high"]
    deviation, seeds = metrics.get("accuracy_std"), metrics.get("seeds") or 1
    if deviation is not None and seeds > 1:
        half = stdtrit(seeds - 1, 0.975) * deviation / math.sqrt(seeds)
        low = max(0.0, accuracy - math.hypot(accuracy - low, half))
        high = min(1.0, accuracy + math.hypot(high - accuracy, half))
    return low, high


class Revision:
    """The project's files in one state.

    Args:
        name: how it is called here.
        commit: what git knows it by; None for the files as they lie in the current folder.
    """

    def __init__(self, name: str = WORKSPACE, commit: str | None = None) -> None:
        self.name, self.commit = name, commit

    def read(self, path: Path) -> bytes | None:
        """A file's bytes, or None where this revision or this machine does not have it."""
        data = self._read_without_dvc(path)
        return self._kept_by_dvc(path) if data is None and self.commit else data

    def _read_without_dvc(self, path: Path) -> bytes | None:
        if self.commit is None:
            try:
                return path.read_bytes()
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                return None
        command = ("git", "cat-file", "blob", f"{self.commit}:./{path.as_posix()}")
        asked = subprocess.run(command, capture_output=True, check=False)
        return None if asked.returncode else asked.stdout

    def _kept_by_dvc(self, path: Path) -> bytes | None:
        md5 = self._kept.get(path.as_posix())
        for store in list(self._stores) if md5 else ():
            try:
                with store.fs.open(store.oid_to_path(md5), "rb") as file:
                    data = bytes(file.read())
                if hashlib.md5(data, usedforsecurity=False).hexdigest() == md5:
                    return data
            except FileNotFoundError:
                continue
            except Exception as error:  # a remote that cannot be reached, or wants credentials
                self._stores.remove(store)  # each time may take half a minute
                print(
                    f"warning: what only the remote has of '{self.name}' is left out: "
                    + without_passwords(f"{type(error).__name__}: {error}"),
                    file=sys.stderr,
                )
        return None

    @cached_property
    def _kept(self) -> dict[str, str]:
        """The hash of each single file that dvc.lock names."""
        outs = [out for entry in self.locked.values() for out in entry.get("outs", [])]
        found = {out["path"]: str(out.get("md5")) for out in outs}
        return {path: md5 for path, md5 in found.items() if re.fullmatch("[0-9a-f]{32}", md5)}

    @cached_property
    def _stores(self) -> list[Any]:
        """DVC's cache and the default remote, if there is one, by the settings that lie here."""
        from dvc.exceptions import DvcException

        with opened() as repo:
            stores = [repo.cache.local]
            with suppress(DvcException):
                stores.append(repo.cloud.get_remote_odb())
        return stores

    @cached_property
    def parameters(self) -> dict[str, Any]:
        """The whole of params.yaml, as far as it can be read.

        Raises:
            StageError: if there is none, or it is not valid here.
        """
        if self.commit is None:
            params.check()
        data = self.read(params.PATH)
        values: Any = params.parse(data or b"", f"{self.name}'s {params.PATH}")
        if not is_params(values):
            raise StageError(f"'{self.name}' has no params.yaml that can be read.")
        return values

    @cached_property
    def locked(self) -> dict[str, Any]:
        """The entries of dvc.lock by stage.

        Raises:
            StageError: if it is damaged.
        """
        name = str(LOCK) if self.commit is None else f"{self.name}'s {LOCK}"
        return parse_lock(self._read_without_dvc(LOCK) or b"", name)

    @cached_property
    def trained_since(self) -> set[str]:
        """The variants whose weights are not those that evaluate read, by dvc.lock.

        Such are a sweep's trials, what `dvc repro train@V` has just trained, and what was trained
        anew after two branches that had both changed it were merged.

        Raises:
            StageError: if dvc.lock is damaged.
        """
        found = set()
        for name, entry in self.locked.items():
            stage, _, variant = name.partition("@")
            if stage != "train":
                continue
            written = {out["path"]: out.get("md5") for out in entry.get("outs", [])}
            evaluated = self.locked.get(f"evaluate@{variant}", {})
            read = {dep["path"]: dep.get("md5") for dep in evaluated.get("deps", [])}
            if not read or any(written.get(path, md5) != md5 for path, md5 in read.items()):
                found.add(variant)
        return found

    @property
    def datasets(self) -> list[str]:
        """The names of all datasets."""
        return list(self.parameters["datasets"])

    def results(self, datasets: Iterable[str] | None = None) -> list["Result"]:
        """One for each variant of these datasets or of all, also for those without results yet."""
        return [
            Result(self, dataset, name)
            for dataset in (self.datasets if datasets is None else datasets)
            for name, variant in self.parameters["variants"].items()
            if variant["dataset"] == dataset
        ]


class Commit(Revision):
    """A commit of which only what git has is read, without DVC: no setting can be wrong."""

    def _kept_by_dvc(self, path: Path) -> None:
        return None


class Experiment(Commit):
    """One of `dvc exp`, with the variants whose metrics or run records it changed."""

    @cached_property
    def changed(self) -> set[str]:
        """The names of these variants."""
        folders = [(RESULTS / kind).as_posix() for kind in ("metrics", "runs")]
        paths = git("diff", "--name-only", f"{self.commit}^", str(self.commit), "--", *folders)
        return {Path(path).stem for path in paths.splitlines()}

    def results(self, datasets: Iterable[str] | None = None) -> list["Result"]:
        return [each for each in super().results(datasets) if each.variant in self.changed]


@dataclass(frozen=True)
class Predictions:
    """Which test images a variant's models got right.

    Attributes:
        images: each one's index and true class.
        right: bool (seeds, images).
    """

    images: tuple[tuple[int, str], ...]
    right: np.ndarray


@dataclass
class Result:
    """What the pipeline wrote about one variant, in one revision."""

    revision: Revision
    dataset: str
    variant: str

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """What evaluate wrote for `dvc metrics`; empty if it has not run on these weights."""
        return {} if self._trained_since else self._json("metrics")

    @cached_property
    def record(self) -> dict[str, Any]:
        """The run record of the training; empty if it has not run."""
        return self._json("runs")

    @cached_property
    def details(self) -> dict[str, Any]:
        """Per class and per seed; empty where this machine does not have it.

        Raises:
            StageError: if they belong to another run than the metrics.
        """
        details = {} if self._trained_since else self._json("details")
        if details:
            seeds = details["seeds"].values()
            self._check_run(self.path("details", ".json"), [seed["accuracy"] for seed in seeds])
        return details

    @cached_property
    def curves(self) -> list[dict[str, str]]:
        """The rows of every epoch.

        Raises:
            StageError: if that is not what train writes.
        """
        path = self.path("curves", ".csv")
        try:
            text = (self.revision.read(path) or b"").decode()
            rows = list(csv.DictReader(io.StringIO(text)))
            for row in rows:
                int(row["epoch"])
                _ = [float(value or "nan") for value in row.values()]
        except CSV_ERRORS as error:
            raise StageError(
                f"{path} must be what train writes. Received: {error!r}. Run `dvc repro`."
            ) from None
        return rows

    @cached_property
    def predictions(self) -> "Predictions | None":
        """What evaluate wrote about each test image; None where this machine does not have it.

        Raises:
            StageError: if that is not what evaluate writes, or of another run.
        """
        path = self.path("predictions", ".csv")
        data = None if self._trained_since else self.revision.read(path)
        if data is None:
            return None
        found: dict[str, dict[int, tuple[str, str]]] = {}
        try:
            for row in csv.DictReader(io.StringIO(data.decode())):
                of_seed = found.setdefault(row["seed"], {})
                of_seed[int(row["index"])] = row["true"], row["predicted"]
        except CSV_ERRORS as error:
            raise StageError(
                f"{path} must be what evaluate writes. Received: {error!r}. Run `dvc repro`."
            ) from None
        seeds = [sorted(each.items()) for each in found.values()]
        images = [tuple((index, true) for index, (true, _) in seed) for seed in seeds]
        if not found or len(set(images)) > 1:
            raise StageError(f"{path} must have the same images for each seed. Run `dvc repro`.")
        right = [[true == predicted for _, (true, predicted) in seed] for seed in seeds]
        self._check_run(path, [float(np.mean(row)) for row in right])
        return Predictions(images[0], np.array(right))

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """The variant's block of params.yaml, with that of its recipe in place of its name.

        Those that it was trained with, by dvc.lock; before its first training those of params.yaml.
        """
        known = self.revision.parameters
        entry = self.revision.locked.get(f"train@{self.variant}", {})
        trained = entry.get("params", {}).get(str(params.PATH), {})
        variant = trained.get(f"variants.{self.variant}") or known["variants"][self.variant]
        name = variant["recipe"]
        return variant | {"recipe": trained.get(f"recipes.{name}") or known["recipes"][name]}

    @property
    def is_trained(self) -> bool:
        """Whether dvc.lock has its training."""
        return f"train@{self.variant}" in self.revision.locked

    @property
    def row(self) -> dict[str, Any]:
        """The figures of a table's line; None is what is not there yet."""
        environment = (self.record.get("environment") or [{}])[0]
        low, high = accuracy_interval(self.metrics) if self.metrics else (None, None)
        return {
            "variant": self.variant,
            "revision": self.revision.name,
            "accuracy_low": low,
            "accuracy_high": high,
            **{
                name: self.metrics.get(name)
                for name in (
                    "accuracy",
                    "accuracy_std",
                    "top_5_accuracy",
                    "loss",
                    "calibration_error",
                    "parameters",
                    "seeds",
                )
            },
            "published": PUBLISHED.get(self.variant),
            "train_seconds": self.record.get("train_seconds"),
            "images_per_second": self.record.get("images_per_second"),
            "device": environment.get("device"),
        }

    def path(self, kind: str, suffix: str) -> Path:
        """Where a kind of result lies, such as ("metrics", ".json")."""
        return RESULTS / kind / self.dataset / f"{self.variant}{suffix}"

    def _check_run(self, path: Path, accuracies: list[float]) -> None:
        """Git has the metrics and DVC the rest: a checkout by git alone leaves two runs mixed."""
        expected = self.metrics.get("accuracy", np.mean(accuracies))
        if abs(np.mean(accuracies) - expected) > SAME_ACCURACY:
            raise StageError(
                f"{path} must be of the run that {self.path('metrics', '.json')} tells of, whose "
                f"accuracy is {expected:.4f}. Received: {np.mean(accuracies):.4f}. `dvc checkout` "
                f"fetches the right one, `dvc repro evaluate@{self.variant}` makes it."
            )

    @property
    def _trained_since(self) -> bool:
        return self.variant in self.revision.trained_since

    def _json(self, kind: str) -> dict[str, Any]:
        """A file's values, none if there is no such file."""
        path, of = self.path(kind, ".json"), self.revision
        data = of.read(path)
        if data is None:
            return {}
        return schema.parse(data, kind, path, of.name if of.commit else "")


def check_out_folder(folder: Path, *marks: str) -> Path:
    """The folder that `--out` names, if what is written may take the place of what is there.

    Args:
        marks: the names of files that every older output of the kind has.

    Raises:
        StageError: if something else is there.
    """
    there = {each.name for each in folder.iterdir()} if folder.is_dir() else set()
    is_other = there and not there.issuperset(marks)
    if is_other or folder.is_file() or Path.cwd().is_relative_to(folder.resolve()):
        raise StageError(
            "--out must be a new folder, an empty one or one that was written so before, which is "
            f"replaced. Received: {folder}."
        )
    return folder.resolve()


def leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of a tree of parameters with its dotted key; a list, or an empty tree, is one."""
    if not isinstance(tree, dict) or not tree:
        yield path, tree
        return
    for key, value in tree.items():
        yield from leaves(value, f"{path}.{key}" if path else str(key))


def differences(old: Any, new: Any, path: str = "") -> list[tuple[str, Any, Any]]:
    """The dotted key of each leaf that is not alike in two trees, with both values; `...` is none.

    Args:
        old, new: of parameters; `...` for a tree that is not there.
        path: what all keys begin with.
    """
    before, after = ({} if tree is ... else dict(leaves(tree, path)) for tree in (old, new))
    pairs = {key: (before.get(key, ...), after.get(key, ...)) for key in [*before, *after]}
    return [(key, a, b) for key, (a, b) in pairs.items() if a is ... or b is ... or a != b]


def is_params(values: Any) -> bool:
    """Whether a params.yaml has what is looked up here; another revision's schema may differ."""
    if not isinstance(values, dict):
        return False
    sections = {name: values.get(name) for name in ("datasets", "recipes", "variants")}
    if not all(isinstance(section, dict) for section in sections.values()):
        return False
    names = [name for section in sections.values() for name in section or ()]
    return all(re.fullmatch(r"\w[\w.-]*", str(name)) for name in names) and all(
        isinstance(variant, dict)
        and str(variant.get("dataset")) in values["datasets"]
        and str(variant.get("recipe")) in values["recipes"]
        for variant in values["variants"].values()
    )


def revisions(names: Iterable[str], experiments: bool = False) -> list[Revision]:
    """The revisions of these names; the workspace if no name is given.

    Args:
        names: commits, branches, tags, experiments, or `workspace`.
        experiments: adds every experiment of `dvc exp`.

    Raises:
        StageError: if git and DVC know no such name.
    """
    names = list(dict.fromkeys(names))
    if not names and not experiments:
        return [Revision()]
    from dvc.scm import RevError, resolve_rev

    found: dict[str, Revision] = {}
    with opened() as repo:
        for name in names or [WORKSPACE]:
            try:
                commit = None if name == WORKSPACE else resolve_rev(repo.scm, name)
                if commit and git("cat-file", "-t", commit) != "commit":
                    raise RevError("no commit")
            except RevError as error:
                raise StageError(
                    "A revision must be a commit, a branch, a tag, an experiment or "
                    f"'{WORKSPACE}'. Received: '{name}' ({error}). `dvc exp list --all-commits` "
                    "names the experiments and their commits."
                ) from None
            found[name] = Revision(name, commit)
        if experiments:
            listed = repo.experiments.ls(all_commits=True)
            given = Counter(name for each in listed.values() for name, _ in each)
            for baseline, each in listed.items():
                for name, commit in each:  # a baseline has a name once; several may have it
                    unique = name if given[name] == 1 else f"{name} ({baseline[:7]})"
                    experiment = Experiment(unique, commit)
                    if is_readable(experiment):
                        found[unique] = experiment
    return list(found.values())


def is_readable(experiment: Experiment) -> bool:
    """Whether its params.yaml can be read; if not, a warning says that it is left out."""
    try:
        return bool(experiment.parameters)
    except StageError as error:
        print(f"warning: an experiment is left out: {error}", file=sys.stderr)
        return False


def datasets_of(revisions: Iterable[Revision], wanted: Iterable[str]) -> list[str]:
    """The wanted ones of all that any of these revisions has, or all if none is wanted.

    Raises:
        StageError: if none of them has a dataset that is wanted.
    """
    known = dict.fromkeys(name for revision in revisions for name in revision.datasets)
    wanted = dict.fromkeys(wanted)
    if unknown := [name for name in wanted if name not in known]:
        raise StageError(
            f"Datasets must be among {', '.join(known) or 'none'}. Received: {', '.join(unknown)}."
        )
    return list(wanted or known)
