"""A training repeats itself bit by bit, also after an interruption, and keeps the right epoch."""

import copy
import csv
import dataclasses
import datetime
import itertools
import json
import math
import os
import subprocess
import sys
import types
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import yaml
from conftest import PARAMS, ROOT
from keras import layers

from stages import stats
from stages import train as stage
from stages.shared import params
from stages.shared.dataset import Split, save_split
from stages.shared.stage import StageError
from stages.training import checkpoint, record
from stages.training.augmentation import DRAWS, epoch_plan
from stages.training.fitting import Training, make_normalisation, save_model
from stages.training.normalization import FusedBatchNormalization
from stages.training.optimization import learning_rates

KNOWN = params.load(PARAMS)
RECIPES = {name: recipe.model_dump() for name, recipe in KNOWN.recipes.items()}
VARIANT = {"model": "toy", "config": {}}


def build_toy(input_shape: tuple[int, ...], num_classes: int) -> keras.Model:
    """A tiny network with all that is hard to repeat: batch normalisation and dropout."""
    return keras.Sequential(
        [
            keras.Input(input_shape),
            layers.AveragePooling2D(4),
            layers.Conv2D(8, 3, activation="relu"),
            layers.BatchNormalization(),
            layers.Dropout(0.3),
            layers.Flatten(),
            layers.Dense(num_classes),
        ],
        name="toy",
    )


@pytest.fixture(autouse=True)
def toy_model(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    module = types.ModuleType("stages.models.toy")
    module.build = build_toy
    monkeypatch.setitem(sys.modules, "stages.models.toy", module)
    yield
    keras.config.set_dtype_policy("float32")


def recipe(base: str = "demo", **changes: Any) -> dict[str, Any]:
    """A recipe that is known, three epochs of three steps; blocks are merged, values replaced."""
    values = copy.deepcopy(RECIPES[base]) | {"epochs": 3, "batch_size": 18}
    for key, value in changes.items():
        values[key] = values[key] | value if isinstance(value, dict) else value
    return values


def start(split: Split, values: dict[str, Any], seed: int = 1) -> Training:
    return Training(VARIANT, values, split, stats.compute_stats(split.images), seed)


def train(
    split: Split, values: dict[str, Any], folder: Path, seed: int = 1
) -> tuple[bytes, list[dict[str, Any]]]:
    """The saved model's bytes and the rows of the curves."""
    training = start(split, values, seed)
    training.fit(folder / "checkpoints")
    training.save(folder / "model.keras")
    return (folder / "model.keras").read_bytes(), training.rows


def interrupt(split: Split, values: dict[str, Any], folder: Path, after: int) -> None:
    """Trains, and is killed in the epoch that follows `after` epochs."""
    training = start(split, values)
    whole = training._fit_epoch

    def killed(epoch: int, bar: Any) -> None:
        whole(epoch, bar)
        if epoch == after:
            raise KeyboardInterrupt

    training._fit_epoch = killed
    with pytest.raises(KeyboardInterrupt):
        training.fit(folder / "checkpoints")


def script(monkeypatch: pytest.MonkeyPatch, name: str, values: list[float]) -> None:
    """Makes each epoch's validation give the next of the values."""
    left = iter(values)
    both = {"val_loss": 1.0, "val_accuracy": 0.5}
    monkeypatch.setattr(Training, "_validate", lambda self: both | {name: next(left)})


@pytest.mark.parametrize(
    "values",
    [recipe(label_smoothing=0.2), recipe("demo-augmented", precision="mixed_bfloat16")],
    ids=["plain", "augmented-bfloat16"],
)
def test_one_seed_gives_the_same_bytes_twice_and_another_seed_others(
    toy_split: Split, tmp_path: Path, values: dict[str, Any]
) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    first = train(toy_split, values, tmp_path / "a")
    assert train(toy_split, values, tmp_path / "b") == first
    other = train(toy_split, values, tmp_path / "c", seed=2)
    assert other[0] != first[0]
    assert [row["loss"] for row in other[1]] != [row["loss"] for row in first[1]]
    assert [(row["seed"], row["epoch"]) for row in other[1]] == [(2, 1), (2, 2), (2, 3)]


def test_each_seed_begins_with_other_weights(toy_split: Split) -> None:
    one, two = (start(toy_split, recipe(), seed).core.get_weights()[0] for seed in (1, 2))
    assert one.size and not np.isin(one, two).any()


@pytest.mark.parametrize(
    ("values", "cut_short"),
    [
        (recipe("demo-augmented"), False),
        (recipe("tutorial-deep-bn", precision="mixed_bfloat16"), False),
        (recipe("tutorial-deep"), True),
    ],
    ids=["augmented-keep-best", "bfloat16", "sgd"],
)
def test_a_resumed_training_ends_as_if_never_interrupted(
    toy_split: Split,
    tmp_path: Path,
    values: dict[str, Any],
    cut_short: bool,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Killed in its last epoch, or right after it with a checkpoint that is not whole."""
    whole = train(toy_split, values, tmp_path)
    newest = max((tmp_path / "checkpoints").iterdir())
    content = newest.read_bytes()
    newest.unlink()
    if cut_short:
        newest.write_bytes(content[:-1000])
    capsys.readouterr()
    assert train(toy_split, values, tmp_path) == whole
    said = capsys.readouterr().out
    assert "Resuming seed 1 after epoch 2." in said
    assert (f"{newest} is damaged" in said) is cut_short


def test_a_finished_training_is_not_trained_again(toy_split: Split, tmp_path: Path) -> None:
    whole = train(toy_split, recipe(), tmp_path)
    training = start(toy_split, recipe())
    training._fit_epoch = None
    training.fit(tmp_path / "checkpoints")
    training.save(tmp_path / "again.keras")
    assert ((tmp_path / "again.keras").read_bytes(), training.rows) == whole
    assert training.seconds > 0


@pytest.mark.parametrize(
    ("monitor", "values", "best"),
    [("val_loss", [3, 2, 2, 2, 1, 0], 2), ("val_accuracy", [0.1, 0.3, 0.4, 0.4, 0.2, 0.9], 3)],
)
def test_early_stopping_waits_for_its_patience_and_the_best_epoch_is_kept(
    toy_split: Split,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    monitor: str,
    values: list[float],
    best: int,
) -> None:
    selection = {"keep": "best", "monitor": monitor, "patience_epochs": 2}
    patient = recipe(epochs=6, schedule={"name": "constant"}, selection=selection)
    script(monkeypatch, monitor, values)
    training = start(toy_split, patient)
    training.fit(tmp_path / "checkpoints")
    training.save(tmp_path / "best.keras")
    assert [row[monitor] for row in training.rows] == values[: best + 2]
    assert training.kept_epoch == best

    monkeypatch.undo()
    monkeypatch.setitem(
        sys.modules,
        "stages.models.toy",
        types.SimpleNamespace(build=build_toy),
    )
    short = recipe(epochs=best, schedule={"name": "constant"})
    weights, _ = train(toy_split, short, tmp_path / "short")
    assert (tmp_path / "best.keras").read_bytes() == weights


def test_the_last_epoch_is_kept_if_the_recipe_says_so(
    toy_split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(monkeypatch, "val_loss", [1, 2, 3])
    training = start(toy_split, recipe())
    training.fit(tmp_path)
    training.save(tmp_path / "model.keras")
    assert training.kept_epoch == 3
    assert len(training.rows) == 3
    assert training.best and training.best["epoch"] == 1
    saved = keras.saving.load_model(tmp_path / "model.keras").get_weights()
    for weight, last in zip(saved, training.core.get_weights(), strict=True):
        np.testing.assert_array_equal(weight, last)


def test_a_training_that_was_interrupted_keeps_its_patience(
    toy_split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(monkeypatch, "val_loss", [1, 2, 9, 3, 0])  # the third is lost with its epoch
    values = recipe(epochs=6, selection={"patience_epochs": 2})
    interrupt(toy_split, values, tmp_path, after=2)
    _, rows = train(toy_split, values, tmp_path)
    assert [row["val_loss"] for row in rows] == [1, 2, 3]


def test_the_kept_model_has_the_accuracy_of_the_best_row(
    toy_split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, found, told = Training._validate, [], iter([0.1, 0.9, 0.2])

    def validate(self: Training) -> dict[str, float]:
        found.append(real(self))
        return found[-1] | {"val_accuracy": next(told)}

    monkeypatch.setattr(Training, "_validate", validate)
    training = start(toy_split, recipe("demo-augmented", validation={"fraction": 0.4}))
    training.fit(tmp_path)
    training.save(tmp_path / "model.keras")
    assert training.kept_epoch == 2
    held_out = training.validation_indices
    assert len(held_out) == 24
    model = keras.saving.load_model(tmp_path / "model.keras", compile=False)
    right = np.argmax(model(toy_split.images[held_out]), axis=1) == toy_split.labels[held_out]
    assert right.mean() == pytest.approx(found[1]["val_accuracy"], rel=1e-6)


def test_the_time_is_that_of_all_kept_epochs_in_all_sittings(
    toy_split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = itertools.count(0, 5)
    fake = types.SimpleNamespace(perf_counter=lambda: next(clock))
    monkeypatch.setattr("stages.training.fitting.time", fake)
    interrupt(toy_split, recipe(), tmp_path, after=1)  # the second epoch is lost
    training = start(toy_split, recipe())
    training.fit(tmp_path / "checkpoints")
    assert training.seconds == 3 * 5


def test_a_loss_that_is_not_finite_is_an_error_naming_epoch_and_seed(
    toy_split: Split, tmp_path: Path
) -> None:
    values = recipe("tutorial-simple", optimizer={"learning_rate": 1e30})
    with pytest.raises(StageError, match=r"must stay finite.*in epoch 1 with seed 5\. Lower"):
        train(toy_split, values, tmp_path, seed=5)
    assert not list(tmp_path.rglob("*.npz"))
    assert not list(tmp_path.rglob("*.keras"))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_in_the_end_are_an_error(
    toy_split: Split, tmp_path: Path, value: float
) -> None:
    training = start(toy_split, recipe())
    training.rows = [{}, {}, {}]
    weight = training.core.trainable_variables[-1]
    weight.assign(np.full(weight.shape, value))
    with pytest.raises(StageError, match="weights that are not in epoch 3 with seed 1"):
        training.fit(tmp_path)


def test_without_validation_there_are_no_validation_columns(
    toy_split: Split, tmp_path: Path
) -> None:
    _, rows = train(toy_split, recipe("tutorial-deep", epochs=1), tmp_path)
    assert list(rows[0]) == ["seed", "epoch", "loss", "accuracy", "learning_rate"]


@pytest.mark.parametrize(
    "schedule",
    [
        {"name": "piecewise", "from_epochs": [1, 2], "factors": [0.5, 0.3]},
        {"name": "linear", "warmup_epochs": 1, "final_fraction": 0.1},
    ],
    ids=lambda schedule: schedule["name"],
)
def test_the_learning_rate_of_a_row_is_the_last_of_its_epoch(
    toy_split: Split, tmp_path: Path, schedule: dict[str, Any]
) -> None:
    values = recipe() | {"schedule": schedule}
    _, rows = train(toy_split, values, tmp_path)
    used = learning_rates(values, steps_per_epoch=3).reshape(3, 3)
    assert len(rows) == 3
    for row, rates in zip(rows, used, strict=True):
        assert row["learning_rate"] == pytest.approx(rates[-1], rel=1e-6)


def test_images_that_are_held_out_do_not_count_as_trained_on(
    toy_split: Split, tmp_path: Path
) -> None:
    training = start(toy_split, recipe("demo-augmented", validation={"fraction": 0.25}))
    training.fit(tmp_path)
    assert training.summary()["images"] == 3 * 45


def test_each_image_is_trained_on_in_the_order_and_with_the_draws_of_the_plan(
    toy_split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(monkeypatch, "val_loss", [1, 1])
    values = recipe("demo-augmented", augmentation={"horizontal_flip": "alternating"})
    training = start(toy_split, values, seed=4)
    seen: list[Any] = []

    def fit(inputs: list[np.ndarray], labels: np.ndarray, **options: Any) -> Any:
        seen[:] = [*inputs, labels]
        assert options["shuffle"] is False
        assert options["batch_size"] == 18
        return types.SimpleNamespace(history={"loss": [1.0], "accuracy": [0.5]})

    training.model.fit = fit
    for epoch in range(2):
        training._fit_epoch(epoch, types.SimpleNamespace(**bar()))
        order, draws = epoch_plan(54, seed=4, epoch=epoch, flip="alternating")
        np.testing.assert_array_equal(seen[0], training.training_indices[order])
        np.testing.assert_array_equal(seen[1], draws)
        np.testing.assert_array_equal(seen[2], toy_split.labels[seen[0]])
        assert not set(seen[0]) & set(training.validation_indices)


def build_linear(input_shape: tuple[int, ...], num_classes: int) -> keras.Model:
    stack = [keras.Input(input_shape), layers.Flatten(), layers.Dense(num_classes)]
    return keras.Sequential(stack, name="linear")


def test_the_network_is_trained_on_augmented_images_and_validated_on_plain_ones(
    toy_split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["stages.models.toy"], "build", build_linear)
    training = start(toy_split, recipe(augmentation={"horizontal_flip": "alternating"}))
    index, draws = epoch_plan(20, seed=1, epoch=0, flip="alternating")
    mirrored = draws[:, DRAWS.index("flip")] == 1
    plain = toy_split.images[index]
    augmented = np.where(mirrored[:, None, None, None], plain[:, :, ::-1], plain)
    for images, in_training in ((augmented, True), (plain, False)):
        expected = training.core(training.normalisation(images))
        found = training.model([index, draws], training=in_training)
        np.testing.assert_allclose(found, expected, atol=1e-4)
    assert 0 < mirrored.sum() < 20


# Where a field of a recipe is proven to reach the training, if not in the test that follows.
PROVEN_BY = {
    "augmentation": "test_the_network_is_trained_on_augmented_images_and_validated_on_plain_ones",
    "resolution": "test_images_may_grow_during_a_training_and_it_still_resumes_bit_for_bit",
    "selection": "test_early_stopping_waits_for_its_patience_and_the_best_epoch_is_kept",
    "test_views": "test_a_saved_model_takes_pixels_and_gives_the_probabilities_of_its_views",
}


def test_a_training_is_built_as_each_field_of_its_recipe_says(toy_split: Split) -> None:
    sgd = {"name": "sgd", "learning_rate": 0.5, "momentum": 0.7, "nesterov": True}
    training = start(
        toy_split,
        recipe()
        | {
            "epochs": 5,
            "batch_size": 8,
            "optimizer": sgd | {"weight_decay": 0.0},
            "schedule": {"name": "piecewise", "from_epochs": [1, 4], "factors": [0.5, 0.1]},
            "label_smoothing": 0.3,
            "pixels": "overall",
            "images_per_class": 10,
            "validation": {"fraction": 0.15, "split": "end"},
            "precision": "mixed_bfloat16",
        },
    )
    optimizer = training.model.optimizer
    rates = []
    for step in (0, 3, 4, 15, 16, 19):
        optimizer.iterations.assign(step)
        rates.append(float(optimizer.learning_rate))
    logits = np.log([[2, 3, 5]]).astype(np.float32)  # probabilities are tenths
    loss = training.model.compute_loss(y=np.array([2]), y_pred=logits)
    by_hand = -(0.1 * math.log(0.2) + 0.1 * math.log(0.3) + 0.8 * math.log(0.5))
    values = toy_split.images / 255
    pixel = (values[0, 0, 0] - values.mean()) / values.std()

    shown: dict[str, tuple[Any, Any]] = {
        "epochs": (len(training.rates), 20),
        "batch_size": (training.steps_per_epoch, 4),
        "optimizer": ((type(optimizer), optimizer.momentum), (keras.optimizers.SGD, 0.7)),
        "schedule": (rates, pytest.approx([0.5, 0.5, 0.25, 0.25, 0.05, 0.05])),
        "label_smoothing": (float(loss), pytest.approx(by_hand)),
        "pixels": (
            np.asarray(training.normalisation(toy_split.images))[0, 0, 0],
            pytest.approx(pixel, rel=1e-4),
        ),
        "images_per_class": (training.training_indices.tolist(), list(range(26))),
        "validation": (training.validation_indices.tolist(), list(range(26, 30))),
        "precision": ({layer.compute_dtype for layer in training.core.layers}, {"bfloat16"}),
    }
    for field, (found, expected) in shown.items():
        assert found == expected, field
    elsewhere = PROVEN_BY.keys() | {"deterministic"}  # by test_record.py
    assert shown.keys() | elsewhere == params.Recipe.model_fields.keys()
    assert globals().keys() >= set(PROVEN_BY.values())


@pytest.mark.parametrize("pixels", ["unit", "overall", "channel"])
def test_a_training_of_air_begins_with_whitened_images(toy_split: Split, pixels: str) -> None:
    noise = toy_split.images.astype(float)
    smooth = (4 * noise + np.roll(noise, 1, axis=1) + np.roll(noise, 1, axis=2)) / 6
    images = (smooth * [1, 0.8, 0.7]).astype(np.uint8)
    split = dataclasses.replace(toy_split, images=images)
    config = KNOWN.variants["cifar10-air94"].config | {"widths": [8, 8, 8]}
    variant = {"model": "air", "config": config}
    training = Training(variant, recipe(pixels=pixels), split, stats.compute_stats(images), seed=1)
    first = training.core.get_layer("patches")
    found = np.asarray(first(training.normalisation(images))).reshape(-1, 24)[:, :12]
    np.testing.assert_allclose(np.cov(found.T), np.eye(12), atol=0.05)


def test_what_dropout_drops_depends_on_the_epoch_alone_and_not_on_what_was_before(
    toy_split: Split,
) -> None:
    training = start(toy_split, recipe())
    images = toy_split.images.astype(np.float32)
    outputs = []
    for epoch in (4, 7, 4):
        training._seed_dropout(epoch)
        outputs.append([np.asarray(training.core(images, training=True)) for _ in range(2)])
    np.testing.assert_array_equal(outputs[0], outputs[2])
    assert (outputs[0][0] != outputs[1][0]).any()
    assert (outputs[0][0] != outputs[0][1]).any()
    training.seed += 1
    training._seed_dropout(4)
    assert (np.asarray(training.core(images, training=True)) != outputs[0][0]).any()


def test_no_two_dropout_layers_draw_the_same(toy_split: Split) -> None:
    variant = {"model": "simple", "config": {}}
    statistics = stats.compute_stats(toy_split.images)
    training = Training(variant, recipe(), toy_split, statistics, seed=1)
    training._seed_dropout(0)
    states = [v.numpy() for v in training.core.variables if v.name == "seed_generator_state"]
    assert len(states) == len({state.tobytes() for state in states}) == 2


def bar() -> dict[str, Any]:
    """What a training asks of a progress bar."""

    def nothing(*_: Any, **__: Any) -> None:
        return None

    return {"set_description": nothing, "set_postfix": nothing, "update": nothing, "disable": False}


@pytest.mark.parametrize("pixels", ["unit", "overall", "channel"])
def test_normalisation_is_what_the_recipe_says(toy_split: Split, pixels: str) -> None:
    values = toy_split.images / 255
    found = np.asarray(
        make_normalisation(pixels, stats.compute_stats(toy_split.images))(toy_split.images)
    )
    axes = {"overall": None, "channel": (0, 1, 2)}
    if pixels != "unit":
        axis = axes[pixels]
        values = (values - values.mean(axis=axis)) / (values.std(axis=axis) + 1e-7)
    np.testing.assert_allclose(found, values, atol=1e-5)
    assert found.dtype == np.float32


def test_a_saved_model_takes_pixels_and_gives_the_probabilities_of_its_views(
    toy_split: Split, tmp_path: Path
) -> None:
    training = start(toy_split, recipe())
    images = toy_split.images[:7]

    def logits(images: np.ndarray) -> np.ndarray:
        return np.asarray(training.core(training.normalisation(images)))

    padded = np.pad(images, [(0, 0), (1, 1), (1, 1), (0, 0)], mode="reflect")
    weighted = {1: [(1.0, images)], 2: [(0.5, images), (0.5, images[:, :, ::-1])]}
    weighted[6] = [(0.25, image) for _, image in weighted[2]] + [
        (0.125, view)
        for shifted in (padded[:, :-2, :-2], padded[:, 2:, 2:])
        for view in (shifted, shifted[:, :, ::-1])
    ]
    for views, parts in weighted.items():
        training.recipe["test_views"] = views
        training.save(tmp_path / "model.keras")
        model = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
        mean = sum(weight * logits(view) for weight, view in parts)
        expected = np.exp(mean) / np.exp(mean).sum(axis=1, keepdims=True)
        np.testing.assert_allclose(model(images), expected, rtol=1e-4, err_msg=f"{views} views")
    assert [path.name for path in tmp_path.glob("*.keras")] == ["model.keras"]
    kinds = [
        [type(layer) for layer in core.layers] for core in (training.core, model.get_layer("toy"))
    ]
    assert FusedBatchNormalization in kinds[0]
    assert layers.BatchNormalization in kinds[1]


def test_a_model_saved_at_another_time_has_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build_toy((32, 32, 3), 3)
    save_model(model, tmp_path / "now.keras")
    then = datetime.datetime(2001, 2, 3)
    clock = types.SimpleNamespace(datetime=types.SimpleNamespace(now=lambda: then))
    monkeypatch.setattr("keras.src.saving.saving_lib.datetime", clock)
    model.save(tmp_path / "dated.keras")
    with zipfile.ZipFile(tmp_path / "dated.keras") as file:
        assert b"2001-02-03" in file.read("metadata.json")
    save_model(model, tmp_path / "then.keras")
    assert (tmp_path / "then.keras").read_bytes() == (tmp_path / "now.keras").read_bytes()
    loaded = keras.saving.load_model(tmp_path / "then.keras")
    assert loaded.count_params() == model.count_params()


def test_augmented_examples_are_the_first_epochs_first_images(toy_split: Split) -> None:
    training = start(toy_split, recipe())
    order, _ = epoch_plan(54, seed=1, epoch=0)
    examples = training.augmented_examples(7)
    assert examples.dtype == np.uint8
    expected = toy_split.images[training.training_indices[order[:7]]]
    np.testing.assert_array_equal(examples, expected)
    changed = start(toy_split, recipe("demo-augmented")).augmented_examples(7)
    assert (changed != expected).any()


def test_cutout_fills_with_the_mean_of_the_training_images(toy_split: Split) -> None:
    training = start(toy_split, recipe(augmentation={"cutout_pixels": 32}))
    mean = toy_split.images.mean(axis=(0, 1, 2))
    expected = np.broadcast_to(mean, (3, 32, 32, 3))
    np.testing.assert_allclose(training.augmented_examples(3), expected, atol=0.51)


def test_a_fingerprint_changes_with_facts_and_contents_and_nothing_else(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    a.write_text("one")
    b.write_text("two")
    base = checkpoint.fingerprint({"x": 1, "y": [2]}, [a, b])
    assert checkpoint.fingerprint({"y": [2], "x": 1}, [b, a]) == base
    others = {
        checkpoint.fingerprint({"x": 1, "y": [3]}, [a, b]),
        checkpoint.fingerprint({"x": 1}, [a, b]),
        checkpoint.fingerprint({"x": 1, "y": [2]}, [a]),
    }
    b.write_text("two.")
    others.add(checkpoint.fingerprint({"x": 1, "y": [2]}, [a, b]))
    assert len(others | {base}) == 5


def test_the_fingerprints_code_is_what_a_training_imports_but_for_the_schema() -> None:
    code = {path.relative_to(ROOT).as_posix() for path in checkpoint.loaded_code("lenet")}
    assert "stages/shared/params.py" not in code
    assert code > {
        "stages/models/lenet.py",
        "stages/shared/dataset.py",
        "stages/train.py",
        *(f"stages/training/{path.name}" for path in (ROOT / "stages/training").glob("*.py")),
    }


def test_a_checkpoint_comes_back_as_it_was_and_two_are_kept(tmp_path: Path) -> None:
    assert checkpoint.load(tmp_path / "none") is None
    for epoch in range(1, 5):
        checkpoint.save(tmp_path, epoch, {"rows": [epoch]}, {"w": np.float32([epoch, 0.1])})
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["epoch-000003.npz", "epoch-000004.npz"]
    facts, arrays = checkpoint.load(tmp_path) or ({}, {})
    assert facts == {"rows": [4]}
    assert arrays.keys() == {"w"}
    np.testing.assert_array_equal(arrays["w"], np.float32([4, 0.1]))


def test_a_checkpoint_that_is_cut_short_is_not_believed(tmp_path: Path) -> None:
    for epoch in (1, 2):
        checkpoint.save(tmp_path, epoch, {"rows": [epoch]}, {"w": np.arange(20)})
    newest = tmp_path / "epoch-000002.npz"
    whole = newest.read_bytes()
    for length in range(0, len(whole), 5):
        newest.write_bytes(whole[:length])
        facts, arrays = checkpoint.load(tmp_path) or ({}, {})
        assert facts == {"rows": [1]}
        assert arrays.keys() == {"w"}


def test_a_checkpoint_with_a_wrong_byte_gives_no_wrong_numbers(tmp_path: Path) -> None:
    for epoch in (1, 2):
        checkpoint.save(tmp_path, epoch, {"rows": [epoch]}, {"w": np.arange(20) * epoch})
    newest = tmp_path / "epoch-000002.npz"
    whole = newest.read_bytes()
    epochs = []
    for position in range(0, len(whole), 3):
        wrong = bytes([whole[position] ^ 0xFF])
        newest.write_bytes(whole[:position] + wrong + whole[position + 1 :])
        facts, arrays = checkpoint.load(tmp_path) or ({}, {})
        epochs.append(facts["rows"][0])
        if "w" in arrays:
            np.testing.assert_array_equal(arrays["w"], np.arange(20) * epochs[-1])
    assert epochs.count(1) > len(epochs) / 2


def test_checkpoints_of_other_fingerprints_are_discarded(tmp_path: Path) -> None:
    for name in ("mine", "other"):
        checkpoint.save(tmp_path / name / "seed-1", 1, {}, {})
    (tmp_path / "owner").write_text("me")
    checkpoint.discard_others(tmp_path, "mine")
    assert {path.name for path in tmp_path.iterdir()} == {"mine", "owner"}
    assert checkpoint.load(tmp_path / "mine" / "seed-1") == ({}, {})


def test_a_second_trainer_is_told_who_the_first_is(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from stages.training import checkpoint\n"
        "with checkpoint.only_trainer(Path(sys.argv[1])): print('got it')"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    with checkpoint.only_trainer(tmp_path):
        second = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert second.returncode != 0
    assert "StageError: Only one process may train a variant at a time" in second.stderr
    assert f"is held by process {os.getpid()} on " in second.stderr
    assert subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout == b"got it\n"


def facts_of_a_run(**changes: str) -> dict[str, Any]:
    facts = {"weights": "aa", "device": "CPU", "git_revision": "1"} | changes
    return {
        "train_seconds": len(changes),
        "trainings": [{"seed": 1, "weights_sha256": facts.pop("weights")}],
        "environment": [facts],
    }


@pytest.mark.parametrize(
    ("changes", "keeps"),
    [
        ({"git_revision": "2"}, True),
        ({"weights": "bb"}, False),
        ({"device": "GPU"}, False),
    ],
)
def test_a_record_is_kept_as_git_has_it_where_a_run_only_repeats_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, str], keeps: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    path, partial = Path("runs/v.json"), Path("partial.json")
    path.parent.mkdir()
    path.write_text(json.dumps(facts_of_a_run()))
    for command in (["init", "-q"], ["add", "runs"]):
        subprocess.run(["git", *command], check=True)
    path.unlink()  # DVC deletes outputs before it runs a stage
    new = facts_of_a_run(**changes)
    record.write_record(new, partial, path)
    assert json.loads(partial.read_text()) == (facts_of_a_run() if keeps else new)


@pytest.mark.parametrize("known", [None, "", "[]", "{}", '{"environment": []}'])
def test_a_record_is_written_where_git_has_none_or_a_strange_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: str | None
) -> None:
    monkeypatch.chdir(tmp_path)
    if known is not None:
        Path("v.json").write_text(known)
        for command in (["init", "-q"], ["add", "v.json"]):
            subprocess.run(["git", *command], check=True)
    record.write_record(facts_of_a_run(), Path("partial.json"), Path("v.json"))
    assert json.loads(Path("partial.json").read_text()) == facts_of_a_run()


def test_a_git_revision_tells_of_uncommitted_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert record.git_revision() == "none"
    Path("stages").mkdir()
    files = ("params.yaml", "dvc.yaml", "stages/train.py")
    for file in files:
        Path(file).write_text("a")
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run(["git", *command], check=True)
    clean = record.git_revision()
    assert len(clean) == 12
    Path("notes.txt").write_text("not code")
    assert record.git_revision() == clean
    for file in files:
        Path(file).write_text("b")
        assert record.git_revision() == f"{clean}+changes"
        Path(file).write_text("a")
    assert record.git_revision() == clean


OUTPUTS = ("weights", "curves.csv", "record.json", "examples.npz")


@pytest.fixture
def project(tmp_path: Path, toy_split: Split, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with all that the command `train toy-lenet` reads; it is the current one."""
    block = recipe("demo-augmented", epochs=2, batch_size=27)
    variant = {"dataset": "toys", "model": "lenet", "config": {}, "recipe": "r", "seeds": [1, 2]}
    dataset = {"source": "shapes", "train_images": 60, "test_images": 10, "seed": 0}
    values = {
        "datasets": {"toys": dataset},
        "recipes": {"r": block},
        "variants": {"toy-lenet": variant},
    }
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values))
    save_split(toy_split, tmp_path / "train")
    (tmp_path / "stats.json").write_text(json.dumps(stats.compute_stats(toy_split.images)))
    monkeypatch.chdir(tmp_path)
    options = {"data": "train", "stats": "stats.json", "checkpoints": "checkpoints"}
    options |= {name.split(".")[0]: name for name in OUTPUTS}
    arguments = [word for name, path in options.items() for word in (f"--{name}", path)]
    monkeypatch.setattr(sys, "argv", ["train", "toy-lenet", *arguments])
    return tmp_path


def test_the_command_resumes_writes_its_outputs_and_removes_its_checkpoints(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def killed(self: Training, path: Path) -> None:
        if self.seed == 2:
            raise KeyboardInterrupt
        whole(self, path)

    whole = Training.save
    monkeypatch.setattr(Training, "save", killed)
    quiet = sys.argv
    monkeypatch.setattr(sys, "argv", [*quiet, "--verbose"])
    with pytest.raises(KeyboardInterrupt):
        stage.main()
    said = capsys.readouterr().out
    assert "91,651" in said  # the summary of the model, which has three classes here
    for seed, epoch in ((1, 1), (1, 2), (2, 1), (2, 2)):
        assert f"seed {seed}  epoch {epoch}  loss" in said
    before = {"checkpoints", "params.yaml", "stats.json", "train"}
    assert {path.name for path in project.iterdir()} == before
    assert len(list(project.glob("checkpoints/*/seed-*/*.npz"))) == 4

    monkeypatch.setattr(Training, "save", whole)
    monkeypatch.setattr(sys, "argv", quiet)
    stage.main()
    said = capsys.readouterr().out
    assert "Resuming seed 1 after epoch 2" in said
    assert "91,651" not in said and "loss" not in said
    assert {path.name for path in project.iterdir()} == before | set(OUTPUTS)
    assert {path.name for path in (project / "checkpoints").iterdir()} == {"lock", "owner"}

    with open(project / "curves.csv") as file:
        rows = list(csv.DictReader(file))
    assert [(row["seed"], row["epoch"]) for row in rows] == [
        ("1", "1"),
        ("1", "2"),
        ("2", "1"),
        ("2", "2"),
    ]
    facts = json.loads((project / "record.json").read_text())
    assert [training["seed"] for training in facts["trainings"]] == [1, 2]
    assert {path.name for path in (project / "weights").iterdir()} == {
        "seed-1.keras",
        "seed-2.keras",
    }
    for training in facts["trainings"]:
        model = project / "weights" / f"seed-{training['seed']}.keras"
        assert training["weights_sha256"] == checkpoint.sha256(model)
        best = max(float(r["val_accuracy"]) for r in rows if r["seed"] == str(training["seed"]))
        assert (
            float(rows[2 * training["seed"] - 3 + training["kept_epoch"]]["val_accuracy"]) == best
        )
    with np.load(project / "examples.npz") as file:
        assert file["augmented"].shape == (16, 32, 32, 3)
        assert file["augmented"].dtype == np.uint8


def test_a_checkpoint_is_of_everything_that_the_result_depends_on(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(_: Path, fingerprint: str) -> None:
        asked.append(fingerprint)
        raise KeyboardInterrupt

    def changes(path: Path, old: bytes, new: bytes) -> None:
        whole = path.read_bytes()
        assert whole.count(old) >= 1
        path.write_bytes(whole.replace(old, new))
        runs()
        path.write_bytes(whole)

    def runs() -> None:
        with pytest.raises(KeyboardInterrupt):
            stage.main()

    asked: list[str] = []
    monkeypatch.setattr(checkpoint, "discard_others", stop)
    code = project / "lenet.py"
    code.write_text("1")
    monkeypatch.setattr(checkpoint, "loaded_code", {"lenet": [code]}.__getitem__)
    changes(project / "params.yaml", b"batch_size: 27", b"batch_size: 28")
    changes(project / "params.yaml", b"- 2\n", b"- 3\n")  # a seed
    changes(project / "stats.json", b"{", b"{ ")
    changes(code, b"1", b"2")
    images = (project / "train/images.npy").read_bytes()
    changes(project / "train/images.npy", images[-9:], images[:-10:-1])
    with monkeypatch.context() as patch:
        patch.setattr(record, "environment", lambda _: {"device": "another"})
        runs()
    assert len(set(asked)) == 6
    for _ in range(2):
        runs()
    assert asked[-1] == asked[-2]
    assert len(set(asked)) == 7


def test_a_variant_that_another_process_trains_is_not_trained(project: Path) -> None:
    held = pytest.raises(StageError, match=f"is held by process {os.getpid()} on ")
    with checkpoint.only_trainer(Path("checkpoints")), held:
        stage.main()
    assert not {path.name for path in project.iterdir()} & {*OUTPUTS}


def test_who_may_not_train_touches_nothing_of_who_does(project: Path) -> None:
    half = project / ".weights.partial" / "seed-1.keras"
    half.parent.mkdir()
    half.touch()
    theirs = project / "checkpoints" / "theirs" / "seed-1"
    checkpoint.save(theirs, 1, {}, {})
    with checkpoint.only_trainer(Path("checkpoints")), pytest.raises(StageError, match="is held"):
        stage.main()
    assert half.exists()
    assert checkpoint.load(theirs) == ({}, {})


@pytest.mark.parametrize(
    "text", [None, "", '{"channel": {"mean"', "{}", "[]", "3", '{"channel": 3}']
)
def test_missing_or_damaged_statistics_are_an_error_before_keras_starts(
    project: Path, monkeypatch: pytest.MonkeyPatch, text: str | None
) -> None:
    monkeypatch.setattr(stage, "import_keras", lambda: pytest.fail("Keras was started"))
    if text is None:
        (project / "stats.json").unlink()
    else:
        (project / "stats.json").write_text(text)
    with pytest.raises(StageError, match=r"stats\.json must be what the stats stage writes"):
        stage.main()
    assert not {path.name for path in project.iterdir()} & {*OUTPUTS, "checkpoints"}


def test_an_unknown_variant_or_a_missing_dataset_is_an_error_before_keras_starts(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "import_keras", lambda: pytest.fail("Keras was started"))
    (project / "train/labels.npy").unlink()
    with pytest.raises(StageError, match=r"labels\.npy is missing"):
        stage.main()
    values = yaml.safe_load((project / "params.yaml").read_text())
    values["variants"]["toy-lenet"]["config"] = {"depth": 3}
    (project / "params.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(StageError, match=r"toy-lenet\.config\.depth: unknown key"):
        stage.main()
    sys.argv[1] = "toy-lanet"
    with pytest.raises(StageError, match="Did you mean 'toy-lenet'"):
        stage.main()


def build_pooled(input_shape: tuple[int, ...], num_classes: int) -> keras.Model:
    """The toy, with weights that fit images of any size."""
    toy = build_toy(input_shape, num_classes)
    stack = [keras.Input(input_shape), *toy.layers[:-2], layers.GlobalMaxPooling2D()]
    return keras.Sequential([*stack, layers.Dense(num_classes)], name="pooled")


GROWING = {"from_epochs": [1, 2, 3], "pixels": [16, 24, 32]}


def test_images_may_grow_during_a_training_and_it_still_resumes_bit_for_bit(
    toy_split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["stages.models.toy"], "build", build_pooled)
    last = {"keep": "last"}
    values = recipe(
        "demo-augmented", resolution=GROWING, precision="mixed_bfloat16", selection=last
    )
    seen = []
    make = Training._make_trainer

    def noted(self: Training) -> keras.Model:
        seen.append((self.images.height, self.images.scale))
        return make(self)

    monkeypatch.setattr(Training, "_make_trainer", noted)
    whole = train(toy_split, values, tmp_path)
    assert seen == [(16, 0.5), (24, 0.75), (32, 1)]
    max((tmp_path / "checkpoints").iterdir()).unlink()
    assert train(toy_split, values, tmp_path) == whole
    assert seen[3:] == seen[:3]  # at the start, on resuming, and for the last epoch


def test_growing_images_leave_the_weights_and_the_optimizer_as_they_are(
    toy_split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["stages.models.toy"], "build", build_pooled)
    training = start(toy_split, recipe(resolution=GROWING))
    for number, variable in enumerate(training._state()):
        variable.assign(np.full(variable.shape, number).astype(variable.dtype))
    training._resize_to(24)
    assert training.core.input_shape == (None, 24, 24, 3)
    for number, variable in enumerate(training._state()):
        np.testing.assert_array_equal(variable, number)


def test_images_cannot_grow_under_a_model_whose_weights_depend_on_their_size(
    toy_split: Split,
) -> None:
    with pytest.raises(
        StageError, match=r"pools over all places.*Received: \[16, 24, 32\] for 'toy'"
    ):
        start(toy_split, recipe(resolution=GROWING))
