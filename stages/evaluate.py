"""Stage evaluate@V: what a variant's models are worth. No other stage reads test images.

Everything written here is a function of the weights and the test images; times and devices are in
the run record.
"""

import csv
import json
import math
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats
from sklearn import metrics
from tqdm import tqdm

from stages.shared.backend import import_keras
from stages.shared.dataset import Split, load_split
from stages.shared.stage import StageError, argument_parser, detail, duration, outputs, run

BATCH = 500
CALIBRATION_BINS = 15
CONFIDENCE = 0.95
MANY_CLASSES = 50  # from here on, top-5 accuracy is reported too
FIRST_IMAGES = 16
MISTAKES_PER_CLASS = 3
KERAS_MEMBERS = ["config.json", "metadata.json", "model.weights.h5"]


def main() -> None:
    parser = argument_parser("Evaluate a variant's models on the test images.")
    parser.add_argument("--weights", type=Path, required=True, help="in: a folder of .keras files")
    parser.add_argument("--data", type=Path, required=True, help="in: the test split's folder")
    parser.add_argument(
        "--metrics", type=Path, required=True, help="out: the headline figures, JSON"
    )
    parser.add_argument(
        "--details", type=Path, required=True, help="out: every seed's figures, JSON"
    )
    parser.add_argument(
        "--predictions", type=Path, required=True, help="out: every test image, CSV"
    )
    parser.add_argument(
        "--examples", type=Path, required=True, help="out: test images to show, .npz"
    )
    args = parser.parse_args()

    start = time.perf_counter()
    split = load_split(args.data)
    paths = (args.metrics, args.details, args.predictions, args.examples)
    with outputs(*paths) as (headline, details, predictions, examples):
        probabilities, parameters = predict(args.weights, split)
        seeds = {seed: describe(each, split) for seed, each in probabilities.items()}
        summary = summarize(list(seeds.values()), len(split.labels)) | {"parameters": parameters}
        headline.write_text(json.dumps(summary, indent=1) + "\n")
        details.write_text(json.dumps({"classes": split.classes, "seeds": seeds}) + "\n")
        write_predictions(probabilities, split, predictions)
        write_examples(next(iter(probabilities.values())), split, examples)
    print(
        f"evaluate {args.metrics.stem}: {summary['accuracy']:.2%} of {len(split.labels):,} test "
        f"images are right, 95 % interval {summary['accuracy_low']:.2%} to "
        f"{summary['accuracy_high']:.2%}; in {duration(time.perf_counter() - start)}"
    )
    for seed, each in seeds.items():
        detail(f"seed {seed}: {each['accuracy']:.2%}, loss {each['loss']:.4f}; by class:")
        for row in each["per_class"]:
            detail(f"  {row['class']:20} {row['recall']:7.2%} recognised")


def predict(folder: Path, split: Split) -> tuple[dict[str, np.ndarray], int]:
    """Class probabilities of all test images by each model of a folder.

    Returns:
        By seed, float32 (N, classes); and the models' number of parameters.

    Raises:
        StageError: if there is no model, or one that cannot be loaded or does not fit the data.
    """
    files = sorted(folder.glob("seed-*.keras"), key=lambda path: int(path.stem.split("-")[1]))
    if not files:
        raise StageError(f"{folder} must hold a file seed-<number>.keras. Received: none.")
    found, parameters = {}, 0
    for file in tqdm(files, unit=" models", disable=None):
        model = load_model(file)
        expected = ((None, *split.images.shape[1:]), (None, len(split.classes)))
        shapes = tuple(getattr(model, f"{end}_shape", None) for end in ("input", "output"))
        if shapes != expected:
            raise StageError(
                f"{file} must map {expected[0]} to {expected[1]}. "
                f"Received: {shapes[0]} to {shapes[1]}. Train the variant again."
            )
        parameters = int(model.count_params())
        found[file.stem.split("-")[1]] = model.predict(
            np.asarray(split.images), batch_size=BATCH, verbose=0
        )
    return found, parameters


def load_model(path: Path) -> Any:
    """Loads a `.keras` file without running any code that it may carry.

    Raises:
        StageError: if the file is damaged or is not a Keras model.
    """
    keras = import_keras()
    try:
        with ThreadPoolExecutor(1) as thread:  # Keras remembers what it builds, for each thread
            thread.submit(_check_contents, path, keras).result()
        model = keras.saving.load_model(path, compile=False, safe_mode=True)
        if not isinstance(model, keras.Model):
            raise TypeError(f"a {type(model).__name__}, which is no model")
        return model
    except Exception as error:  # Keras raises whatever its parts raise on damaged files
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise StageError(
            f"{path} must be a whole .keras file. Received: {reason[:200]}. "
            "Train the variant again."
        ) from None


def _check_contents(path: Path, keras: Any) -> None:
    """Raises an error if a member is damaged, or if loading would take more memory than it should.

    Keras heeds no checksum, and makes weights of whatever shape before it looks for their values.
    """
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        if sorted(archive.namelist()) != KERAS_MEMBERS:
            raise ValueError(f"the members {archive.namelist()}")
        if sum(member.file_size for member in archive.infolist()) > size:
            raise ValueError("members that are larger than the file")
        if damaged := archive.testzip():
            raise ValueError(f"a damaged {damaged}")
        config = json.loads(archive.read("config.json")) | {"compile_config": None}
    with keras.StatelessScope(initialize_variables=False):
        model = keras.saving.deserialize_keras_object(config, safe_mode=True)
    count = sum(math.prod(variable.shape) for variable in model.variables)
    if count > size:
        raise ValueError(f"{size:,} bytes for {count:,} weights")


def describe(probabilities: np.ndarray, split: Split) -> dict[str, Any]:
    """All figures of one model.

    Args:
        probabilities: float (N, classes), each row's sum being 1.
        split: the test images' labels and class names.
    """
    labels, predicted = split.labels, probabilities.argmax(axis=1)
    classes = np.arange(len(split.classes))
    exact = probabilities.astype(np.float64)
    if not np.isfinite(probabilities).all():
        raise StageError("The model's probabilities must be finite. Train the variant again.")
    precision, recall, f1, support = metrics.precision_recall_fscore_support(
        labels, predicted, labels=classes, zero_division=0.0
    )
    correct = int((predicted == labels).sum())
    low, high = interval(correct, len(labels))
    bins = calibration(probabilities.max(axis=1), predicted == labels)
    figures: dict[str, Any] = {
        "accuracy": correct / len(labels),
        "accuracy_low": low,
        "accuracy_high": high,
        "loss": float(
            metrics.log_loss(labels, exact / exact.sum(axis=1, keepdims=True), labels=classes)
        ),
        "macro_f1": float(f1.mean()),
        "calibration_error": calibration_error(bins),
    }
    if len(classes) >= MANY_CLASSES:
        figures["top_5_accuracy"] = float(
            metrics.top_k_accuracy_score(labels, probabilities, k=5, labels=classes)
        )
    figures["per_class"] = [
        {"class": name, "precision": p, "recall": r, "f1": f, "images": int(n)}
        for name, p, r, f, n in zip(
            split.classes, precision.tolist(), recall.tolist(), f1.tolist(), support, strict=True
        )
    ]
    figures["confusion"] = metrics.confusion_matrix(labels, predicted, labels=classes).tolist()
    figures["calibration"] = bins
    return figures


def interval(correct: int, count: int) -> tuple[float, float]:
    """The 95 % confidence interval of an accuracy: Wilson's, for a sample of test images."""
    result = stats.binomtest(correct, count).proportion_ci(CONFIDENCE, method="wilson")
    return float(result.low), float(result.high)


def calibration(confidence: np.ndarray, correct: np.ndarray) -> list[dict[str, float]]:
    """The reliability diagram: predictions in bins of equal width by their confidence.

    Args:
        confidence: float (N,) in 0..1, the probability of the predicted class.
        correct: bool (N,).

    Returns:
        For each bin that is not empty: `images`, their mean `confidence` and their `accuracy`.
    """
    bins = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    return [
        {
            "images": int((bins == number).sum()),
            "confidence": float(confidence[bins == number].mean(dtype=np.float64)),
            "accuracy": float(correct[bins == number].mean()),
        }
        for number in np.unique(bins)
    ]


def calibration_error(bins: list[dict[str, float]]) -> float:
    """The expected calibration error (Guo et al., 2017): the mean gap of the bins, by images."""
    total = sum(each["images"] for each in bins)
    gaps = (each["images"] * abs(each["accuracy"] - each["confidence"]) for each in bins)
    return float(sum(gaps) / total)


def summarize(seeds: list[dict[str, Any]], images: int) -> dict[str, Any]:
    """The headline figures: the mean over the seeds, and for several their standard deviation.

    The interval is the one for the test images' sampling at the mean accuracy. It does not cover
    the spread between seeds; that is `accuracy_std` (with N - 1).
    """
    names = [name for name, value in seeds[0].items() if isinstance(value, float)]
    summary: dict[str, Any] = {
        name: float(np.mean([seed[name] for seed in seeds])) for name in names
    }
    low, high = interval(round(summary["accuracy"] * images), images)
    summary |= {"accuracy_low": low, "accuracy_high": high, "seeds": len(seeds)}
    if len(seeds) > 1:
        summary["accuracy_std"] = float(np.std([s["accuracy"] for s in seeds], ddof=1))
    return summary


def write_predictions(probabilities: dict[str, np.ndarray], split: Split, path: Path) -> None:
    """A row per seed and test image: its index, true and predicted class, and the confidence."""
    with open(path, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["seed", "index", "true", "predicted", "confidence"])
        for seed, each in probabilities.items():
            predicted, confidence = each.argmax(axis=1), each.max(axis=1)
            for index, label in enumerate(split.labels):
                writer.writerow(
                    [
                        seed,
                        index,
                        split.classes[label],
                        split.classes[predicted[index]],
                        f"{confidence[index]:.6f}",
                    ]
                )


def write_examples(probabilities: np.ndarray, split: Split, path: Path) -> None:
    """The test images that the figures show, so that plotting need not read the test split.

    The first ones, and of each class those that the model is most sure of and wrong about.
    """
    predicted, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    mistakes = []
    for label in range(len(split.classes)):
        wrong = np.flatnonzero((split.labels == label) & (predicted != label))
        surest = np.argsort(-confidence[wrong], kind="stable")[:MISTAKES_PER_CLASS]
        mistakes += wrong[surest].tolist()
    arrays: dict[str, np.ndarray] = {}
    first = list(range(min(FIRST_IMAGES, len(split.labels))))
    for name, indices in (("first", first), ("mistakes", mistakes)):
        arrays[f"{name}_images"] = np.asarray(split.images[indices])
        arrays[f"{name}_true"] = split.labels[indices]
        arrays[f"{name}_predicted"] = predicted[indices].astype(np.uint8)
        arrays[f"{name}_confidence"] = confidence[indices]
    with open(path, "wb") as file:
        np.savez(file, classes=np.array(split.classes), **arrays)  # type: ignore[arg-type]


if __name__ == "__main__":
    run(main)
