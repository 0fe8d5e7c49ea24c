"""The real CIFAR: published statistics, names, and one training step of every variant."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT

from stages.shared import params
from stages.shared.dataset import Split, load_split

pytestmark = [
    pytest.mark.realdata,
    pytest.mark.skipif("CIFAR_MIRROR" not in os.environ, reason="CIFAR_MIRROR is not set"),
]

PARAMS = params.load(ROOT / "params.yaml")
REAL = [name for name, variant in PARAMS.variants.items() if variant.dataset.startswith("cifar")]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both datasets and their statistics, made by the stages themselves."""
    folder = tmp_path_factory.mktemp("realdata")
    (folder / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    for name in ("cifar10", "cifar100"):
        run(folder, "stages.download", name, "--train", f"{name}/train", "--test", f"{name}/test")
        run(folder, "stages.stats", "--data", f"{name}/train", "--stats", f"{name}/stats.json")
    return folder


def run(folder: Path, module: str, *arguments: str) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", module, *arguments]
    subprocess.run(command, cwd=folder, env=environment, check=True)


def read_stats(workspace: Path, dataset: str) -> dict[str, Any]:
    stats: dict[str, Any] = json.loads((workspace / dataset / "stats.json").read_text())
    return stats


@pytest.mark.parametrize(
    ("dataset", "mean", "std"),
    [
        ("cifar10", [0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]),
        ("cifar100", [0.5071, 0.4865, 0.4409], [0.2673, 0.2564, 0.2762]),
    ],
)
def test_the_statistics_are_the_published_ones(
    workspace: Path, dataset: str, mean: list[float], std: list[float]
) -> None:
    channel = read_stats(workspace, dataset)["channel"]
    np.testing.assert_array_equal(np.round(channel["mean"], 4), mean)
    np.testing.assert_array_equal(np.round(channel["std"], 4), std)


def test_the_overall_statistics_agree_with_numpy_on_all_pixels(workspace: Path) -> None:
    images = load_split(workspace / "cifar10" / "train").images
    overall = read_stats(workspace, "cifar10")["overall"]
    assert overall["mean"] == pytest.approx(images.mean(dtype=np.float64) / 255, abs=1e-9)
    assert overall["std"] == pytest.approx(images.std(dtype=np.float64) / 255, abs=1e-9)


@pytest.mark.parametrize(("dataset", "per_class"), [("cifar10", 5000), ("cifar100", 500)])
def test_every_class_has_its_images(workspace: Path, dataset: str, per_class: int) -> None:
    assert set(read_stats(workspace, dataset)["class_counts"].values()) == {per_class}
    test = load_split(workspace / dataset / "test")
    assert set(np.bincount(test.labels).tolist()) == {per_class // 5}


def test_the_first_test_images_have_the_names_that_the_tutorial_prints(workspace: Path) -> None:
    test = load_split(workspace / "cifar10" / "test")
    names = [test.classes[label] for label in test.labels[:16]]
    assert names == (
        "cat ship ship airplane frog frog automobile frog cat automobile airplane truck dog horse "
        "truck ship"
    ).split(" ")


@pytest.mark.parametrize(
    ("coarse", "fine"),
    [
        ("aquatic_mammals", {"beaver", "dolphin", "otter", "seal", "whale"}),
        ("people", {"baby", "boy", "girl", "man", "woman"}),
        ("trees", {"maple_tree", "oak_tree", "palm_tree", "pine_tree", "willow_tree"}),
        ("vehicles_1", {"bicycle", "bus", "motorcycle", "pickup_truck", "train"}),
        ("vehicles_2", {"lawn_mower", "rocket", "streetcar", "tank", "tractor"}),
    ],
)
def test_the_superclasses_hold_their_classes(workspace: Path, coarse: str, fine: set[str]) -> None:
    split = load_split(workspace / "cifar100" / "train")
    assert split.coarse_labels is not None
    inside = split.labels[split.coarse_labels == split.coarse_classes.index(coarse)]
    assert {split.classes[label] for label in np.unique(inside)} == fine


@pytest.mark.parametrize("name", REAL)
def test_every_variant_trains_for_two_steps(workspace: Path, name: str) -> None:
    from stages.shared.backend import import_keras

    keras = import_keras()
    from stages.training.augmentation import DRAWS
    from stages.training.fitting import Training

    variant = PARAMS.variants[name]
    recipe = PARAMS.recipes[variant.recipe].model_dump()
    recipe["batch_size"] = min(recipe["batch_size"], 128)  # steps of 2000 images take seconds
    whole = load_split(workspace / variant.dataset / "train")
    few = 2 * recipe["batch_size"]
    split = Split(whole.images[:few], whole.labels[:few], whole.classes)
    stats = read_stats(workspace, variant.dataset)
    training = Training(variant.model_dump(), recipe, split, stats, variant.seeds[0])
    before = [keras.ops.convert_to_numpy(value) for value in training.core.trainable_variables]
    index = training.training_indices[: recipe["batch_size"]]
    draws = np.full((len(index), len(DRAWS)), 0.3, np.float32)
    for _ in range(2):  # a warm-up begins with a rate of zero
        loss, _ = training.model.train_on_batch(
            [index, draws], split.labels[index].astype(np.int32)
        )
    after = [keras.ops.convert_to_numpy(value) for value in training.core.trainable_variables]
    assert 0 < float(loss) < 20
    assert all(np.any(b != a) for b, a in zip(before, after, strict=True))
