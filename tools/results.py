"""What the pipeline wrote, as it lies here or in any commit, branch, tag or experiment.

Files that git has are read from git; what DVC keeps, from its cache or a remote.
"""

import csv
import io
import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from stages.shared import params
from stages.shared.stage import StageError
from tools.pipeline import LOCK, parse_lock

RESULTS = Path("results")
WORKSPACE = "workspace"
SAME_ACCURACY = 1e-6

PUBLISHED = {  # test accuracies as their sources give them; shown beside ours, never computed with
    "cifar10-simple": 0.7182,
    "cifar10-deep": 0.8018,
    "cifar10-deep-6epoch": 0.6951,
    "cifar10-shallow": 0.76,
    "cifar10-deep-bn": 0.90,
    "cifar10-convnet": 0.6948,
    "cifar10-resnet20": 0.9125,
    "cifar100-deep-bn": 0.60,
    "cifar100-convnet": 0.35,  # on validation images
}


class Revision:
    """The project's files in one state.

    Args:
        name: how it is called here.
        commit: what git knows it by; None for the files as they lie in the current folder.
    """

    def __init__(self, name: str = WORKSPACE, commit: str | None = None) -> None:
        self.name, self.commit = name, commit
        self._warned = False

    @cached_property
    def _files(self) -> Any:
        from dvc.api import DVCFileSystem

        return DVCFileSystem(rev=self.commit)

    def read(self, path: Path) -> bytes | None:
        """A file's bytes, or None where this revision or this machine does not have it."""
        from dvc.exceptions import DvcException

        if self.commit is None:
            try:
                return path.read_bytes()
            except OSError:
                return None
        try:
            if self._warned and not self._is_here(path):
                return None
            with self._files.open(path.as_posix(), "rb") as file:
                return bytes(file.read())
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError, DvcException):
            return None
        except Exception as error:  # a remote that cannot be reached, or that wants credentials
            self._warn(error)
            return None

    def _is_here(self, path: Path) -> bool:
        """Whether git or DVC's cache has a file."""
        md5 = self._files.info(path.as_posix()).get("md5")
        return md5 is None or self._files.repo.cache.local.exists(md5)

    def _warn(self, error: Exception) -> None:
        if not self._warned:
            print(
                f"warning: what only the remote has of '{self.name}' is left out: "
                f"{type(error).__name__}: {error}",
                file=sys.stderr,
            )
        self._warned = True

    def read_json(self, path: Path) -> dict[str, Any]:
        """A JSON file's values, none if there is no such file.

        Raises:
            StageError: if it is no JSON.
        """
        data = self.read(path)
        try:
            values: dict[str, Any] = json.loads(data) if data is not None else {}
        except ValueError as error:
            raise StageError(f"{path} must be JSON. Received: {error}. Run `dvc repro`.") from None
        return values

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
        return parse_lock(self.read(LOCK) or b"", name)

    @cached_property
    def trained_since(self) -> set[str]:
        """The variants whose weights are others than those that evaluate read, by dvc.lock.

        Such are a sweep's trials, and what `dvc repro train@V` has just trained.

        Raises:
            StageError: if dvc.lock is damaged.
        """
        found = set()
        for name, entry in self.locked.items():
            stage, _, variant = name.partition("@")
            if stage != "train" or f"evaluate@{variant}" not in self.locked:
                continue
            written = {out["path"]: out.get("md5") for out in entry.get("outs", [])}
            read = self.locked[f"evaluate@{variant}"].get("deps", [])
            if any(written.get(dep["path"], dep.get("md5")) != dep.get("md5") for dep in read):
                found.add(variant)
        return found

    def datasets(self, wanted: list[str]) -> list[str]:
        """The wanted ones, or all if none is named.

        Raises:
            StageError: if this revision has no such dataset.
        """
        known = list(self.parameters["datasets"])
        if unknown := [name for name in wanted if name not in known]:
            raise StageError(
                f"Datasets must be among {', '.join(known)} in '{self.name}'. "
                f"Received: {', '.join(unknown)}."
            )
        return wanted or known

    def results(self, datasets: Iterable[str]) -> list["Result"]:
        """One for each variant of these datasets, also for those without results yet."""
        return [
            Result(self, dataset, name)
            for dataset in datasets
            for name, variant in self.parameters["variants"].items()
            if variant["dataset"] == dataset
        ]


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
        """The rows of every epoch."""
        text = self.revision.read(self.path("curves", ".csv")) or b""
        return list(csv.DictReader(io.StringIO(text.decode())))

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
        except (ValueError, KeyError, TypeError) as error:
            raise StageError(
                f"{path} must be what evaluate writes. Received: {error!r}. Run `dvc repro`."
            ) from None
        images = [
            tuple((index, true) for index, (true, _) in sorted(seed.items()))
            for seed in found.values()
        ]
        if not found or len(set(images)) > 1:
            raise StageError(f"{path} must have the same images for each seed. Run `dvc repro`.")
        right = [
            [true == predicted for _, (true, predicted) in sorted(seed.items())]
            for seed in found.values()
        ]
        self._check_run(path, [float(np.mean(row)) for row in right])
        return Predictions(images[0], np.array(right))

    @property
    def parameters(self) -> dict[str, Any]:
        """The variant's parameters, with those of its recipe in place of the recipe's name.

        Those that it was trained with, by dvc.lock; before its first training those of params.yaml.
        """
        known = self.revision.parameters
        entry = self.revision.locked.get(f"train@{self.variant}", {})
        trained = entry.get("params", {}).get(str(params.PATH), {})
        variant = trained.get(f"variants.{self.variant}") or known["variants"][self.variant]
        name = variant["recipe"]
        return variant | {"recipe": trained.get(f"recipes.{name}") or known["recipes"][name]}

    @property
    def published(self) -> float | None:
        return PUBLISHED.get(self.variant)

    @property
    def row(self) -> dict[str, Any]:
        """The figures of a table's line; None is what is not there yet."""
        environment = (self.record.get("environment") or [{}])[0]
        return {
            "variant": self.variant,
            "revision": self.revision.name,
            **{
                name: self.metrics.get(name)
                for name in (
                    "accuracy",
                    "accuracy_low",
                    "accuracy_high",
                    "accuracy_std",
                    "loss",
                    "calibration_error",
                    "parameters",
                    "seeds",
                )
            },
            "published": self.published,
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
        return self.revision.read_json(self.path(kind, ".json"))


def leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of a tree of parameters with its dotted key; a list, or an empty tree, is one."""
    if not isinstance(tree, dict) or not tree:
        yield path, tree
        return
    for key, value in tree.items():
        yield from leaves(value, f"{path}.{key}" if path else str(key))


def is_params(values: Any) -> bool:
    """Whether a params.yaml has what is looked up here; another revision's schema may differ."""
    if not isinstance(values, dict):
        return False
    sections = {name: values.get(name) for name in ("datasets", "recipes", "variants")}
    if not all(isinstance(section, dict) for section in sections.values()):
        return False
    return all(
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
    from dvc.repo import Repo
    from dvc.scm import RevError, resolve_rev

    found = {}
    with Repo(".") as repo:
        for name in names or [WORKSPACE]:
            try:
                commit = None if name == WORKSPACE else resolve_rev(repo.scm, name)
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
                    found[unique] = Revision(unique, commit)
    return list(found.values())
