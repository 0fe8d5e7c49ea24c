"""Tries values of hyperparameters, each as an experiment of DVC's: `tools.launch --sweep`.

Every trial is a clone of HEAD with other values in params.yaml, in which DVC brings the training
up to date; nothing of this folder changes but git's list of experiments. Which values come next is
Optuna's to say. It compares accuracies on validation images: the test images are not read.
"""

import copy
import csv
import hashlib
import io
import itertools
import json
import math
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna

from stages.shared import params
from stages.shared.stage import StageError
from tools import cluster, local, node
from tools.display import Display
from tools.git import identity
from tools.pipeline import Step

LOGS = Path("logs/sweeps")
POLL_SECONDS = 0.5
CHECKED = 1000  # combinations, which takes seconds
LONGEST_NAME = 150  # letters of an experiment's name
REPEATS = 100  # suggestions in a row that were tried before: then Optuna is taken to have no others
STARTUP_TRIALS = 8  # at random, before Optuna has something to learn from


@dataclass(frozen=True)
class Range:
    """Numbers from low to high; whole ones if both are; in equal ratios if `log`."""

    low: float
    high: float
    log: bool


def parse(text: str) -> tuple[str, list[Any] | Range]:
    """`KEY=1,2,3`, `KEY=0.01..1` or `KEY=0.01..1:log`: a key of params.yaml and its values.

    Raises:
        StageError: if it is none of these.
    """
    key, equals, values = text.partition("=")
    low, dots, rest = values.partition("..")
    high, _, scale = rest.partition(":")
    try:
        if not (key and equals and values) or scale not in ("", "log"):
            raise ValueError(text)
        if not dots:
            return key, [params.parse(value.encode(), key) for value in _split(values)]
        first, last = (params.parse(each.encode(), key) for each in (low, high))
        found = Range(first, last, scale == "log")
        if not {type(first), type(last)} <= {int, float} or not first < last:
            raise ValueError(text)
        if found.log and first <= 0:
            raise ValueError(text)
        return key, found
    except (StageError, ValueError, TypeError):
        raise StageError(
            "--sweep must be KEY=VALUE,VALUE,... or KEY=LOW..HIGH or KEY=LOW..HIGH:log, with a key "
            f"of params.yaml. Received: {text}."
        ) from None


def _split(text: str) -> list[str]:
    """At commas that are not within brackets."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "[{") - (letter in "]}")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


class Sweep:
    """A set of trials of one variant.

    Args:
        space: the values or the range of each key.
        steps: the pipeline's stages, by name.
        targets: `train@VARIANT`, or nothing if only one variant has these parameters.
        seeds: each trial trains seeds 0 to seeds - 1; None for those of params.yaml.
        trials: how many; None for every combination.

    Raises:
        StageError: if there is no such key, no validation split, or a value is not allowed.
    """

    def __init__(
        self,
        space: dict[str, list[Any] | Range],
        steps: dict[str, Step],
        targets: list[str],
        seeds: int | None,
        trials: int | None,
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.tree = params.load().model_dump()
        for key in space:
            check_key(self.tree, key)
        self.variant = find_variant(self.tree, list(space), targets)
        if seeds and f"variants.{self.variant}.seeds" in space:
            raise StageError("--seeds sets the seeds of all trials: omit it to sweep over seeds.")
        self.step = steps[f"train@{self.variant}"]
        views = f"recipes.{self.tree['variants'][self.variant]['recipe']}.test_views"
        if views in space:
            raise StageError(
                "A sweep compares accuracies on validation images, of which a training sees one "
                f"view each: it cannot tell values of test_views apart. Received: {views}."
            )
        self.space, self.seeds = space, seeds
        lists = [each for each in space.values() if isinstance(each, list)]
        self.is_finite = len(lists) == len(space)
        if trials is None and not self.is_finite:
            raise StageError("A range needs --trials N: how many trials to run.")
        combinations = math.prod(map(len, lists))
        if trials is not None and self.is_finite and trials >= combinations:
            trials = None  # all of them
        self.count = trials or combinations
        sampler = optuna.samplers.TPESampler(seed=0, n_startup_trials=STARTUP_TRIALS)
        self.study = optuna.create_study(direction="maximize", sampler=sampler)
        if trials is None:
            for places in self.combinations():
                self.study.enqueue_trial(places)
        self.interrupted = False
        self.asked: dict[str, float | None] = {}  # what came of each trial's name, once it is known
        self.check_all()

    def check_all(self) -> None:
        """All combinations are allowed, of ranges those of their ends; raises StageError if not.

        Of very many, each value beside the first one of every other key.
        """
        ends = {k: v if isinstance(v, list) else [v.low, v.high] for k, v in self.space.items()}
        first = {key: values[0] for key, values in ends.items()}
        if math.prod(map(len, ends.values())) <= CHECKED:
            combinations = itertools.product(*ends.values())
            tried = [dict(zip(ends, each, strict=True)) for each in combinations]
        else:
            tried = [first | {key: value} for key in ends for value in ends[key]]
        held_out = [self.check(values | self.fixed()) for values in tried]
        for each in held_out:
            if each != held_out[0]:
                raise StageError(
                    "A sweep compares accuracies on the same validation images: validation and "
                    "images_per_class must be alike in all trials. "
                    f"Received: {held_out[0]} and {each}."
                )

    def fixed(self) -> dict[str, Any]:
        """What all trials have in common."""
        seeds = list(range(self.seeds or 0))
        return {f"variants.{self.variant}.seeds": seeds} if seeds else {}

    def check(self, values: dict[str, Any]) -> dict[str, Any]:
        """Whether params.yaml allows these values, with validation images, of one dataset.

        Returns:
            What says which images are held out.

        Raises:
            StageError: if not.
        """
        tree = copy.deepcopy(self.tree)
        for key, value in values.items():
            node.assign(tree, key.split("."), value)
        found = params.validated(tree, f"{params.PATH} with these values")
        variant, before = found.variants[self.variant], self.tree["variants"][self.variant]
        params.check_config(self.variant, variant)
        if variant.dataset != before["dataset"]:
            raise StageError(
                "A sweep compares accuracies on the images of one dataset; it cannot try others. "
                f"Received: {variant.dataset}."
            )
        recipe = found.recipes[variant.recipe]
        if recipe.validation.fraction == 0:
            key = f"recipes.{variant.recipe}.validation.fraction"
            missing = variant.recipe == before["recipe"] and key not in values
            hint = f" Add `--sweep {key}=0.1`." if missing else ""
            raise StageError(
                "A sweep compares accuracies on validation images, so validation.fraction must be "
                f"above 0. Received: 0, of recipe {variant.recipe}.{hint}"
            )
        return recipe.validation.model_dump() | {"images_per_class": recipe.images_per_class}

    def ask(self) -> tuple[optuna.Trial, dict[str, Any]] | None:
        """The next trial, and its values, which no trial had before; None if there are no others.

        A repeated trial would give the same bits again: Optuna gets what is known of the first.
        """
        for _ in range(REPEATS):
            trial = self.study.ask()
            values = self.values(trial)
            name = self.name(values)
            if name not in self.asked:
                self.asked[name] = None
                return trial, values
            known = self.asked[name]
            state = optuna.trial.TrialState.FAIL if known is None else None
            self.study.tell(trial, known, state=state)
        return self.untried()

    def untried(self) -> tuple[optuna.Trial, dict[str, Any]] | None:
        """The first combination not tried yet; None if there is none, or a range is swept."""
        if not self.is_finite:
            return None
        for places in self.combinations():
            name = self.name(self.values(optuna.trial.FixedTrial(places)))
            if name not in self.asked:
                self.asked[name] = None
                self.study.enqueue_trial(places)
                trial = self.study.ask()
                return trial, self.values(trial)
        return None

    def combinations(self) -> Iterator[dict[str, int]]:
        """All of the listed values, by their positions: Optuna takes no lists as values."""
        lists = {key: range(len(v)) for key, v in self.space.items() if isinstance(v, list)}
        for places in itertools.product(*lists.values()):
            yield dict(zip(lists, places, strict=True))

    def values(self, trial: optuna.trial.BaseTrial) -> dict[str, Any]:
        return {key: _suggest(trial, key, each) for key, each in self.space.items()}

    def name(self, values: dict[str, Any]) -> str:
        """An experiment's name, such as `cifar10-lenet_optimizer.learning_rate-0.05`."""
        parts = [f"{key.split('.', 2)[2]}-{_word(value)}" for key, value in values.items()]
        seeds = [f"seeds-{self.seeds}"] if self.seeds else []
        name = "_".join([self.variant, *parts, *seeds])
        if len(name) > LONGEST_NAME:  # of what git makes a file's name
            name = f"{name[:LONGEST_NAME]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
        return name

    def run(
        self, connection: cluster.Connection | local.Local, source: cluster.Source
    ) -> list[dict[str, Any]]:
        """Runs all trials; returns each one's `name`, `values`, `accuracies` and `error`."""
        done: list[dict[str, Any]] = []
        running: dict[Any, tuple[optuna.Trial, dict[str, Any]]] = {}
        left = self.count
        with self.until_interrupted(running), Display(self.count) as display:
            while left or running:
                while left and len(running) < connection.slots():
                    asked = self.ask()
                    if asked is None:
                        count = f"{self.count - left} of {self.count} trials"
                        display.console.print(f"No values are left to try after {count}.")
                        left = 0
                        break
                    trial, values = asked
                    left -= 1
                    name = self.name(values)
                    reference = connection.run_trial(self.job(name, values, source))
                    running[reference] = trial, {"name": name, "values": values}
                    display.started(name)
                for reference in connection.finished(list(running), POLL_SECONDS):
                    trial, found = running.pop(reference)
                    found |= self.conclude(trial, outcome_of(connection, reference), found["name"])
                    if not (found["error"] or source.cache):
                        found["error"] = pull(found["name"], source)
                    detail = found["error"] or f"{np.mean(found['accuracies']):.2%}"
                    display.ended(found["name"], "failed" if found["error"] else "ran", detail)
                    done.append(found)
                logs = Path(source.folder or "nowhere") / "logs"  # of a node's, none are seen here
                names = [found["name"] for _, found in running.values()]
                display.update({name: node.last_line(logs / f"{name}.log") for name in names})
        return done

    @contextmanager
    def until_interrupted(self, running: dict[Any, tuple[Any, dict[str, Any]]]) -> Iterator[None]:
        """Ctrl-C ends the trials that run, and loses none that is done."""
        try:
            yield
        except KeyboardInterrupt:
            self.interrupted = True
            names = ", ".join(found["name"] for _, found in running.values()) or "nothing"
            print(f"Interrupted; ending {names}.", file=sys.stderr)

    def job(self, name: str, values: dict[str, Any], source: cluster.Source) -> node.TrialJob:
        """What a worker has to know of one trial."""
        return {
            "name": name,
            "stage": self.step.name,
            "environment": {},
            "changes": values | self.fixed(),
            "identity": identity(),
            "inputs": list(self.step.inputs),
            "small_outs": list(self.step.small_outs),
            **source.fields(),
        }

    def conclude(self, trial: optuna.Trial, outcome: node.Outcome, name: str) -> dict[str, Any]:
        """Tells Optuna; returns the `accuracies`, one per seed, or the `error`."""
        LOGS.mkdir(parents=True, exist_ok=True)
        log = LOGS / f"{name}.log"
        log.write_bytes(outcome["log"])
        if outcome["code"]:
            self.study.tell(trial, state=optuna.trial.TrialState.FAIL)
            return {"accuracies": [], "error": outcome.get("error") or str(log)}
        accuracies = validation_accuracies(outcome["files"], self.step.small_outs)
        self.asked[name] = float(np.mean(accuracies))
        self.study.tell(trial, self.asked[name])
        return {"accuracies": accuracies, "error": ""}


def outcome_of(connection: cluster.Connection | local.Local, reference: Any) -> node.Outcome:
    """What came of a trial; one that could not be run at all must not end the others."""
    try:
        return connection.outcome(reference)
    except (StageError, OSError) as error:
        return {"code": 1, "log": b"", "error": str(error)}


def check_key(tree: dict[str, Any], key: str) -> None:
    """Whether params.yaml has that key.

    Raises:
        StageError: if not; it names the keys that are there.
    """
    found: Any = tree
    for part in key.split("."):
        if not isinstance(found, dict) or part not in found:
            known = ", ".join(map(str, found)) if isinstance(found, dict) else "nothing"
            raise StageError(f"params.yaml has no '{key}'. Allowed for '{part}': {known}.")
        found = found[part]


def find_variant(tree: dict[str, Any], keys: list[str], targets: list[str]) -> str:
    """The one variant that the keys concern.

    Raises:
        StageError: if there is none, or more than one.
    """
    variants = tree["variants"]
    named = [target.partition("@")[2] for target in targets]
    using = [
        name
        for name, variant in variants.items()
        if all(
            key.startswith((f"variants.{name}.", f"recipes.{variant['recipe']}.")) for key in keys
        )
    ]
    found = [name for name in using if not named or name in named]
    if len(found) != 1 or len(named) > 1:
        raise StageError(
            "A sweep is of one variant: name one target, train@VARIANT, and keys that it uses. "
            f"Received: {', '.join(targets) or 'no target'}, for {', '.join(keys)}; with such "
            f"parameters: {', '.join(using) or 'none'}."
        )
    return found[0]


def _suggest(trial: optuna.trial.BaseTrial, key: str, values: list[Any] | Range) -> Any:
    if isinstance(values, list):  # by position: Optuna takes no lists as values
        return values[trial.suggest_categorical(key, list(range(len(values))))]
    if isinstance(values.low, int) and isinstance(values.high, int):
        return trial.suggest_int(key, values.low, values.high, log=values.log)
    found = trial.suggest_float(key, values.low, values.high, log=values.log)
    if values.log and values.high >= 10 * values.low:
        found = float(f"{found:.3g}")
    else:  # to a thousandth of the range
        found = round(found, 3 - math.floor(math.log10(values.high - values.low)))
    return min(max(found, values.low), values.high)


def _word(value: Any) -> str:
    """A value as a part of a name that git allows."""
    text = json.dumps(value) if isinstance(value, (list, dict)) else str(value)
    return "".join(letter if letter.isalnum() or letter in ".-+" else "-" for letter in text)


def validation_accuracies(files: dict[str, bytes], paths: list[str]) -> list[float]:
    """Of each seed's kept epoch, from a training's curves and run record."""
    curves, record = (
        next(files[path] for path in paths if path.endswith(suffix)) for suffix in (".csv", ".json")
    )
    kept = {each["seed"]: each["kept_epoch"] for each in json.loads(record)["trainings"]}
    return [
        float(row["val_accuracy"])
        for row in csv.DictReader(io.StringIO(curves.decode()))
        if kept[int(row["seed"])] == int(row["epoch"])
    ]


def pull(name: str, source: cluster.Source) -> str:
    """Brings an experiment that a node has pushed here; returns what is wrong, if anything is."""
    arguments = ["--remote", source.remote] if source.remote else []
    # The whole name: an earlier commit may have one of the same, and HEAD may have moved since.
    ref = f"refs/exps/{source.revision[:2]}/{source.revision[2:]}/{name}"
    command = [sys.executable, "-m", "dvc", "exp", "pull", "--force", *arguments, "origin", ref]
    done = subprocess.run(command, capture_output=True, text=True)
    return f"`dvc exp pull origin {ref}`: {done.stderr.strip()}" if done.returncode else ""


def report(done: list[dict[str, Any]]) -> int:
    """Prints the trials, the best first; returns the exit status."""
    right = [each for each in done if not each["error"]]
    print("\nvalidation accuracy")
    for each in sorted(right, key=lambda each: -float(np.mean(each["accuracies"]))):
        accuracies = np.array(each["accuracies"])
        spread = f" \N{PLUS-MINUS SIGN} {accuracies.std(ddof=1):.2%}" if len(accuracies) > 1 else ""
        values = ", ".join(f"{key}={value}" for key, value in each["values"].items())
        print(f"  {accuracies.mean():.2%}{spread}  {values}  {each['name']}")
    failed = [each for each in done if each["error"]]
    for each in failed:
        print(f"  {each['name']} failed: {each['error']}", file=sys.stderr)
    if len(right) > 1:
        print("The best was chosen on these images and seeds, so its accuracy is optimistic.")
        print("Train it with other seeds before it is evaluated or compared.")
    print("`dvc exp show` lists them, `python -m tools.apply NAME ...` brings them here.")
    return 1 if failed else 0
