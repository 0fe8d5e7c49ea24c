"""Evaluation against figures worked by hand, on every image, and never on a damaged model."""

import csv
import json
import math
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import pytest
from conftest import PARAMS
from keras import layers

from stages import evaluate
from stages.shared import params
from stages.shared.dataset import Split, save_split
from stages.shared.stage import StageError
from stages.training.fitting import Training

# Five images of three classes; the fourth and the fifth are taken for others.
LABELS = [0, 1, 2, 2, 0]
PROBABILITIES = np.array(
    [
        [0.80, 0.10, 0.10],
        [0.25, 0.50, 0.25],
        [0.05, 0.05, 0.90],
        [0.10, 0.70, 0.20],
        [0.20, 0.60, 0.20],
    ],
    np.float32,
)
OUTPUTS = ("metrics.json", "details.json", "predictions.csv", "examples.npz")


def split_of(labels: list[int], classes: int) -> Split:
    """Images that can be told apart: each is filled with its index."""
    images = np.zeros((len(labels), 32, 32, 3), np.uint8) + np.arange(
        len(labels), dtype=np.uint8
    ).reshape(-1, 1, 1, 1)
    names = tuple(f"class{number}" for number in range(classes))
    return Split(images, np.array(labels, np.uint8), names)


def wilson(correct: float, count: int) -> tuple[float, float]:
    z = 1.959963984540054
    share = correct / count
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    half *= z / (1 + z * z / count)
    return middle - half, middle + half


def test_figures_of_five_images_are_those_worked_by_hand() -> None:
    figures = evaluate.describe(PROBABILITIES, split_of(LABELS, 3))
    assert figures["accuracy"] == 0.6
    assert (figures["accuracy_low"], figures["accuracy_high"]) == pytest.approx(wilson(3, 5))
    loss = -sum(math.log(p) for p in (0.8, 0.5, 0.9, 0.2, 0.2)) / 5
    assert figures["loss"] == pytest.approx(loss, rel=1e-6)
    assert figures["confusion"] == [[1, 1, 0], [0, 1, 0], [0, 1, 1]]  # rows are the truth
    f1 = [2 / 3, 1 / 2, 2 / 3]
    rows = [
        {"class": "class0", "precision": 1.0, "recall": 1 / 2, "f1": f1[0], "images": 2},
        {"class": "class1", "precision": 1 / 3, "recall": 1.0, "f1": f1[1], "images": 1},
        {"class": "class2", "precision": 1.0, "recall": 1 / 2, "f1": f1[2], "images": 2},
    ]
    for row, expected in zip(figures["per_class"], rows, strict=True):
        assert row == {key: pytest.approx(value) for key, value in expected.items()}
    assert figures["macro_f1"] == pytest.approx(sum(f1) / 3)
    # five bins of one image each: .8 and .5 and .9 right, .7 and .6 wrong
    error = (0.2 + 0.5 + 0.1 + 0.7 + 0.6) / 5
    assert figures["calibration_error"] == pytest.approx(error, rel=1e-6)
    assert "top_5_accuracy" not in figures


def test_a_class_that_is_never_predicted_has_a_precision_of_0() -> None:
    figures = evaluate.describe(PROBABILITIES[:1], split_of([1], 3))
    assert [row["precision"] for row in figures["per_class"]] == [0, 0, 0]
    assert [row["images"] for row in figures["per_class"]] == [0, 1, 0]
    assert figures["accuracy"] == 0


def test_calibration_averages_within_bins_of_a_fifteenth() -> None:
    confidence = np.array([0.95, 0.97, 1.0, 0.5, 0.41])
    correct = np.array([True, False, True, True, False])
    bins = evaluate.calibration(confidence, correct)
    expected = [
        {"images": 1, "confidence": 0.41, "accuracy": 0.0},
        {"images": 1, "confidence": 0.5, "accuracy": 1.0},
        {"images": 3, "confidence": 2.92 / 3, "accuracy": 2 / 3},
    ]
    assert bins == [{key: pytest.approx(value) for key, value in b.items()} for b in expected]
    error = (0.41 + 0.5 + 3 * (2.92 / 3 - 2 / 3)) / 5
    assert evaluate.calibration_error(bins) == pytest.approx(error)


def test_the_bins_of_calibration_end_at_the_fifteenths() -> None:
    ends = np.arange(1, 15) / 15
    confidence = np.sort(np.concatenate([ends - 1e-3, ends + 1e-3]))
    bins = evaluate.calibration(confidence, np.ones(len(confidence), bool))
    assert [each["images"] for each in bins] == [1, *[2] * 13, 1]


def test_a_perfectly_calibrated_model_has_no_calibration_error() -> None:
    bins = evaluate.calibration(np.full(4, 0.75), np.array([True, True, False, True]))
    assert evaluate.calibration_error(bins) == 0


@pytest.mark.parametrize(("correct", "count"), [(0, 10), (10, 10), (7182, 10_000), (1, 3)])
def test_the_interval_is_wilsons(correct: int, count: int) -> None:
    low, high = evaluate.interval(correct, count)
    assert (low, high) == pytest.approx(wilson(correct, count), abs=1e-9)
    assert low <= correct / count <= high


def test_top_5_accuracy_is_reported_of_many_classes() -> None:
    scores = np.full((4, 50), 1.0, np.float32)
    scores[:, 40:46] = [7, 6, 5, 4, 3, 2]  # class 44 is fifth, 45 sixth
    probabilities = scores / scores.sum(axis=1, keepdims=True)
    figures = evaluate.describe(probabilities, split_of([40, 44, 45, 3], 50))
    assert figures["accuracy"] == 0.25
    assert figures["top_5_accuracy"] == 0.5
    assert "top_5_accuracy" not in evaluate.describe(
        probabilities[:, 1:] / probabilities[:, 1:].sum(axis=1, keepdims=True),
        split_of([40, 44, 45, 3], 49),
    )


def test_several_seeds_are_averaged_and_their_spread_is_the_samples() -> None:
    base = {"loss": 1.0, "macro_f1": 0.5, "per_class": [], "accuracy_low": 0.0}
    seeds = [base | {"accuracy": value} for value in (0.70, 0.72, 0.77)]
    seeds[2]["loss"] = 4.0
    summary = evaluate.summarize(seeds, images=1000)
    assert summary["accuracy"] == pytest.approx(0.73)
    assert summary["loss"] == pytest.approx(2)
    assert summary["accuracy_std"] == pytest.approx(math.sqrt((0.03**2 + 0.01**2 + 0.04**2) / 2))
    interval = (summary["accuracy_low"], summary["accuracy_high"])
    assert interval == pytest.approx(wilson(730, 1000))
    assert summary["seeds"] == 3
    assert "per_class" not in summary


def test_one_seed_has_no_spread() -> None:
    summary = evaluate.summarize([{"accuracy": 0.5, "loss": 1.0}], images=10)
    assert summary["seeds"] == 1
    assert "accuracy_std" not in summary


def linear_model(seed: int, shape: tuple[int, ...] = (32, 32, 3), classes: int = 3) -> keras.Model:
    """From uint8 pixels to probabilities, with weights that differ by seed."""
    pixels = keras.Input(shape, dtype="uint8")
    features = layers.Flatten()(layers.Rescaling(1 / 255)(pixels))
    initializer = keras.initializers.RandomNormal(seed=seed)
    out = layers.Dense(classes, activation="softmax", kernel_initializer=initializer)(features)
    return keras.Model(pixels, out)


@pytest.fixture
def project(
    tmp_path: Path, random: np.random.Generator, toy_split: Split, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A folder with a test split in random order and models of two seeds; it is the current one."""
    order = random.permutation(len(toy_split.labels))
    split = Split(toy_split.images[order], toy_split.labels[order], toy_split.classes)
    save_split(split, tmp_path / "test")
    (tmp_path / "weights").mkdir()
    for seed in (10, 9):
        linear_model(seed).save(tmp_path / "weights" / f"seed-{seed}.keras")
    monkeypatch.chdir(tmp_path)
    options = {"weights": "weights", "data": "test"}
    options |= {name.split(".")[0]: f"out/{name}" for name in OUTPUTS}
    arguments = [word for name, path in options.items() for word in (f"--{name}", path)]
    monkeypatch.setattr(sys, "argv", ["evaluate", *arguments])
    return tmp_path


def refuses(project: Path, message: str) -> None:
    with pytest.raises(StageError, match=message):
        evaluate.main()
    assert not list(project.glob("out/**/*"))  # the hidden ones too


def by_hand(model: keras.Model, images: np.ndarray) -> np.ndarray:
    return np.asarray(model(images))


@pytest.mark.parametrize("batch", [7, 60, 500])
def test_every_image_is_evaluated_once_per_seed_in_order(
    project: Path, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    monkeypatch.setattr(evaluate, "BATCH", batch)
    evaluate.main()
    images = np.load(project / "test/images.npy")
    labels = np.load(project / "test/labels.npy")
    names = np.array(["circle", "square", "star"])
    with open(project / "out/predictions.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["seed"] for row in rows] == ["9"] * 60 + ["10"] * 60  # by number, not by name
    accuracies = []
    for seed, part in ((9, rows[:60]), (10, rows[60:])):
        probabilities = by_hand(linear_model(seed), images)
        predicted = probabilities.argmax(axis=1)
        assert [int(row["index"]) for row in part] == list(range(60))
        assert [row["true"] for row in part] == names[labels].tolist()
        assert [row["predicted"] for row in part] == names[predicted].tolist()
        confidence = [float(row["confidence"]) for row in part]
        np.testing.assert_allclose(confidence, probabilities.max(axis=1), atol=2e-6)
        accuracies.append((predicted == labels).mean())
    summary = json.loads((project / "out/metrics.json").read_text())
    assert summary["accuracy"] == pytest.approx(np.mean(accuracies), rel=1e-12)
    assert summary["accuracy_std"] == pytest.approx(np.std(accuracies, ddof=1), rel=1e-12)
    assert summary["parameters"] == 3072 * 3 + 3
    details = json.loads((project / "out/details.json").read_text())
    assert details["classes"] == names.tolist()
    assert [details["seeds"][seed]["accuracy"] for seed in ("9", "10")] == accuracies


def test_evaluating_again_gives_the_same_bytes_and_tells_more_if_asked(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate.main()
    assert "recognised" not in capsys.readouterr().out
    monkeypatch.setenv("VERBOSE", "1")
    first = {name: (project / "out" / name).read_bytes() for name in OUTPUTS}
    evaluate.main()
    assert {path.name: path.read_bytes() for path in (project / "out").iterdir()} == first
    assert capsys.readouterr().out.count("recognised") == 2 * 3  # seeds, classes


def test_a_trained_model_is_evaluated_as_it_was_saved(project: Path, toy_split: Split) -> None:
    recipe = params.load(PARAMS).recipes["demo"].model_dump()
    recipe |= {"epochs": 2, "pixels": "overall"}
    stats = {"overall": {"mean": 0.4, "std": 0.3}, "channel": {"mean": [0.4, 0.4, 0.4]}}
    training = Training({"model": "lenet", "config": {}}, recipe, toy_split, stats, seed=3)
    training.fit(project / "checkpoints")
    for path in (project / "weights").iterdir():
        path.unlink()
    training.save(project / "weights/seed-3.keras")
    evaluate.main()

    images = np.load(project / "test/images.npy")
    labels = np.load(project / "test/labels.npy")
    loaded = keras.saving.load_model(project / "weights/seed-3.keras")
    summary = json.loads((project / "out/metrics.json").read_text())
    expected = by_hand(loaded, images)
    assert summary["accuracy"] == (expected.argmax(axis=1) == labels).mean()
    loss = -np.log(expected[np.arange(60), labels].astype(np.float64)).mean()
    assert summary["loss"] == pytest.approx(loss, rel=1e-5)
    normalised = (images / np.float32(255) - 0.4) / 0.3
    logits = np.asarray(training.core(normalised))
    np.testing.assert_array_equal(logits.argmax(axis=1), expected.argmax(axis=1))


def flip_a_byte_of_the_weights(whole: bytes) -> bytes:
    position = whole.index(b"model.weights.h5") + 5000
    return whole[:position] + bytes([whole[position] ^ 0xFF]) + whole[position + 1 :]


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: whole[: len(whole) // 2],
        lambda whole: b"",
        lambda whole: b"version https://git-lfs.github.com/spec/v1\n",
        flip_a_byte_of_the_weights,
    ],
    ids=["truncated", "empty", "text", "flipped"],
)
def test_a_damaged_model_is_refused_and_nothing_written(
    project: Path, damage: Callable[[bytes], bytes]
) -> None:
    path = project / "weights/seed-10.keras"
    path.write_bytes(damage(path.read_bytes()))
    refuses(
        project, r"weights/seed-10\.keras must be a whole \.keras file.*Train the variant again"
    )


def test_members_that_unpack_to_more_than_the_file_are_refused_unread(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = project / "weights/seed-10.keras"
    with zipfile.ZipFile(path) as file:
        members = {name: file.read(name) for name in file.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        for name, data in members.items():
            with file.open(name, "w") as member:
                member.write(data)
                for _ in range(200 if name == "model.weights.h5" else 0):
                    member.write(bytes(1 << 20))  # HDF5 does not mind what comes after its data
    assert path.stat().st_size < 2_000_000
    monkeypatch.setattr(zipfile.ZipFile, "open", lambda *_: pytest.fail("a member was read"))
    with pytest.raises(StageError, match=r"seed-10\.keras .* larger than the file"):
        evaluate.load_model(path)


def test_a_model_that_carries_code_is_refused_before_the_code_runs(project: Path) -> None:
    marker = project / "ran"
    path = str(marker)
    pixels = keras.Input((32, 32, 3), dtype="uint8")
    code = layers.Lambda(
        lambda x: [__import__("pathlib").Path(path).touch(), x][1],
        output_shape=(32, 32, 3),
    )
    features = layers.Flatten()(code(pixels))
    model = keras.Model(pixels, layers.Dense(3, activation="softmax")(features))
    model.save(project / "weights/seed-9.keras")
    marker.unlink(missing_ok=True)
    refuses(project, r"seed-9\.keras must be a whole \.keras file.*arbitrary code execution")
    assert not marker.exists()
    unsafe = keras.saving.load_model(project / "weights/seed-9.keras", safe_mode=False)
    unsafe(np.zeros((1, 32, 32, 3), np.uint8))
    assert marker.exists()  # so it was there to run


@pytest.mark.parametrize(("shape", "classes"), [((16, 16, 3), 3), ((32, 32, 3), 4)])
def test_a_model_of_another_shape_is_refused(
    project: Path, shape: tuple[int, ...], classes: int
) -> None:
    linear_model(0, shape, classes).save(project / "weights/seed-10.keras")
    refuses(project, r"seed-10\.keras must map \(None, 32, 32, 3\) to \(None, 3\).*Received")


def test_a_model_without_a_shape_is_refused(project: Path) -> None:
    with pytest.warns(UserWarning, match="not yet been built"):
        keras.Sequential([layers.Flatten()]).save(project / "weights/seed-9.keras")
    refuses(project, r"seed-9\.keras must map")


def test_an_empty_folder_of_weights_is_refused(project: Path) -> None:
    for path in (project / "weights").iterdir():
        path.unlink()
    (project / "weights/notes.txt").touch()
    refuses(project, "weights must hold a file seed-<number>.keras. Received: none")


def test_probabilities_that_are_not_finite_are_refused(project: Path) -> None:
    model = linear_model(9)
    model.trainable_variables[0].assign(np.full((3072, 3), np.nan))
    model.save(project / "weights/seed-9.keras")
    refuses(project, "probabilities must be finite")


def test_damaged_test_images_are_refused(project: Path) -> None:
    path = project / "test/labels.npy"
    path.write_bytes(path.read_bytes()[:-1])
    refuses(project, r"labels\.npy must be a NumPy array file")


def test_the_examples_are_the_first_images_and_the_surest_mistakes(tmp_path: Path) -> None:
    labels = [0] * 10 + [1] * 8 + [2] * 2
    predicted = [1, 2, 1, 2, 1, *[0] * 5, *[1] * 8, 2, 0]
    confidence = [0.5, 0.9, 0.6, 0.8, 0.8, *[0.99] * 14, 0.4]
    probabilities = np.full((20, 3), 0.1, np.float32)
    probabilities[np.arange(20), predicted] = confidence
    evaluate.write_examples(probabilities, split_of(labels, 3), tmp_path / "e.npz")
    with np.load(tmp_path / "e.npz", allow_pickle=False) as file:
        arrays = dict(file)
    assert arrays["classes"].tolist() == ["class0", "class1", "class2"]
    assert arrays["first_images"][:, 0, 0, 0].tolist() == list(range(16))
    assert arrays["first_true"].tolist() == labels[:16]
    assert arrays["first_predicted"].tolist() == predicted[:16]
    mistakes = arrays["mistakes_images"][:, 0, 0, 0].tolist()
    assert mistakes == [1, 3, 4, 19]  # three of class 0, by confidence, then by place; none of 1
    assert arrays["mistakes_true"].tolist() == [0, 0, 0, 2]
    assert arrays["mistakes_predicted"].tolist() == [2, 2, 1, 0]
    assert arrays["mistakes_confidence"].tolist() == pytest.approx([0.9, 0.8, 0.8, 0.4])


def test_the_command_writes_the_first_seeds_examples(project: Path) -> None:
    evaluate.main()
    images = np.load(project / "test/images.npy")
    predicted = by_hand(linear_model(9), images).argmax(axis=1)
    with np.load(project / "out/examples.npz", allow_pickle=False) as file:
        np.testing.assert_array_equal(file["first_images"], images[:16])
        np.testing.assert_array_equal(file["first_predicted"], predicted[:16])
        assert len(file["mistakes_true"]) > 3
        assert (file["mistakes_true"] != file["mistakes_predicted"]).all()


def test_few_test_images_and_no_mistakes_are_fine(tmp_path: Path) -> None:
    evaluate.write_examples(PROBABILITIES[:3], split_of(LABELS[:3], 3), tmp_path / "e.npz")
    with np.load(tmp_path / "e.npz", allow_pickle=False) as file:
        assert len(file["first_images"]) == 3
        assert file["mistakes_images"].shape == (0, 32, 32, 3)
