"""The run record: on what a training ran, whether it can be repeated, and how long it took."""

import argparse
import json
import os
import platform
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from stages import train
from stages.shared.dataset import Split, save_split
from stages.training import fitting, record

BIT_FOR_BIT = "bit for bit on this device with these versions"


def pretend_gpus(monkeypatch: pytest.MonkeyPatch, *names: str) -> list[Any]:
    """Makes TensorFlow see GPUs of these names; returns what it is then asked for, in turn."""
    asked: list[Any] = []
    config = tf.config.experimental
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: list(names))
    monkeypatch.setattr(config, "get_device_details", lambda gpu: {"device_name": gpu})
    monkeypatch.setattr(config, "set_memory_growth", lambda *growth: asked.append(growth))
    monkeypatch.setattr(config, "enable_op_determinism", lambda: asked.append("determinism"))
    return asked


@pytest.mark.parametrize(
    ("deterministic", "gpus", "guarantee"),
    [
        (True, ["H100", "A10"], BIT_FOR_BIT),
        (False, ["H100"], "none"),
        (True, [], BIT_FOR_BIT),
        (False, [], BIT_FOR_BIT),
    ],
)
def test_only_a_gpu_that_may_be_indeterminate_guarantees_nothing(
    monkeypatch: pytest.MonkeyPatch, deterministic: bool, gpus: list[str], guarantee: str
) -> None:
    pretend_gpus(monkeypatch, *gpus)
    found = record.environment(deterministic)
    device = found.pop("device")
    assert device == "H100" if gpus else device.startswith("CPU: ")
    versions = record.versions()
    assert found == {"backend": "tensorflow", "guarantee": guarantee, "versions": versions}


def test_the_device_tells_how_many_cores_may_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpus(monkeypatch)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 2, 5}, raising=False)
    assert record.describe_device().endswith(", 3 cores")


def test_versions_are_those_of_what_computes() -> None:
    assert record.versions() == [
        f"python {platform.python_version()}",
        f"keras {keras.__version__}",
        f"tensorflow {tf.__version__}",
        f"numpy {np.__version__}",
    ]


class Trained:
    """Stands in for a training: takes no time, and tells when its turn comes."""

    def __init__(self, told: list[Any], *arguments: Any) -> None:
        self.told, self.seed = told, arguments[-1]
        self.core = SimpleNamespace(summary=lambda print_fn: None)

    def fit(self, checkpoints: Path) -> None:
        self.told.append(self.seed)

    def save(self, path: Path) -> None:
        path.touch()

    def augmented_examples(self, count: int) -> np.ndarray:
        return np.zeros((count, 32, 32, 3), np.uint8)

    def summary(self) -> dict[str, Any]:
        return summary(self.seed, seconds=1.0, images=1)


def summary(seed: int, seconds: float, images: int) -> dict[str, Any]:
    rows = [{"seed": seed, "epoch": epoch, "accuracy": 0.5} for epoch in (1, 2, 3)]
    facts = {"seed": seed, "rows": rows, "kept_epoch": 2, "weights_sha256": f"of {seed}"}
    return facts | {"seconds": seconds, "images": images}


@pytest.mark.parametrize(
    ("deterministic", "asked", "guarantee"),
    [(True, ["determinism"], BIT_FOR_BIT), (False, [], "none")],
)
def test_a_training_is_as_deterministic_as_its_recipe_says_before_it_starts(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    toy_split: Split,
    deterministic: bool,
    asked: list[str],
    guarantee: str,
) -> None:
    told = pretend_gpus(monkeypatch, "H100", "A10")
    monkeypatch.setattr(fitting, "Training", partial(Trained, told))
    monkeypatch.chdir(tmp_path)
    save_split(toy_split, Path("data"))
    Path("stats").touch()
    names = "data stats weights curves record examples checkpoints".split()
    args = argparse.Namespace(variant="toy", **{name: Path(name) for name in names})
    recipe = {"deterministic": deterministic, "epochs": 3}
    train.train(args, {"model": "lenet", "seeds": [7, 8]}, recipe, toy_split, {})
    assert told == [("H100", True), ("A10", True), *asked, 7, 8]
    (environment,) = json.loads(Path("record").read_text())["environment"]
    assert environment["guarantee"] == guarantee
    assert environment["git_revision"] == "none"  # this folder is no repository


def test_the_time_is_that_of_one_seed_and_the_speed_that_of_all() -> None:
    found = train.summarize([summary(1, 10.004, 1000), summary(2, 30, 5000)])
    assert found == {
        "train_seconds": 20.0,
        "images_per_second": 150.0,
        "trainings": [
            {"seed": 1, "epochs": 3, "kept_epoch": 2, "seconds": 10.0, "weights_sha256": "of 1"},
            {"seed": 2, "epochs": 3, "kept_epoch": 2, "seconds": 30, "weights_sha256": "of 2"},
        ],
    }
