"""Trained variants for other programs: a TensorFlow SavedModel and an ONNX file each, checked.

    python -m tools.export [VARIANT ...] [--out exports]

Both take pixels, uint8 (N, height, width, 3), and give class probabilities, float32 (N, classes),
by the variant's first seed; classes.json names the classes in this order. They compute in float32,
also where the training used bfloat16, which few programs can. What was written is loaded again, and
must give the network's own probabilities for the first 1,000 test images.
"""

import argparse
import contextlib
import io
import json
import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from stages.evaluate import load_model
from stages.shared import params
from stages.shared.backend import import_keras
from stages.shared.dataset import load_split
from stages.shared.stage import StageError, outputs, size
from tools.command import run
from tools.predict import find, weights_of
from tools.results import check_out_folder

IMAGES = 1000
TOLERANCE = 1e-4  # between probabilities, for another order of additions


def main() -> None:
    parser = argparse.ArgumentParser(description="Export trained variants for other programs.")
    parser.add_argument("variants", nargs="*", help="keys of params.yaml's variants (default: all)")
    parser.add_argument("--out", type=Path, default=Path("exports"), help="the folder to write")
    args = parser.parse_args()

    problems = []
    for name in args.variants or trained():
        try:
            print(f"export {name}: {export(name, args.out / name)}")
        except StageError as error:  # the others are exported all the same
            problems.append(f"{name}: {error}")
    if problems:
        raise StageError("\n".join(problems))


def export(name: str, folder: Path) -> str:
    """Writes a variant's formats into a folder of its own; returns what to say of them.

    Raises:
        StageError: if it has not been trained here, the folder holds something else, or what was
            written gives other probabilities.
    """
    keras = import_keras()
    dataset = params.load().variant(name).dataset
    model = in_float32(load_model(find(name)[0]))
    split = load_split(Path("data/raw", dataset, "test"))
    images = np.asarray(split.images[:IMAGES])
    with outputs(check_out_folder(folder, "saved_model", "model.onnx")) as (partial,):
        saved, onnx = partial / "saved_model", partial / "model.onnx"
        write(model, saved, onnx)
        (partial / "classes.json").write_text(json.dumps(list(split.classes)) + "\n")
        expected = model.predict(images, batch_size=len(images), verbose=0)
        differences = {
            "SavedModel": check(run_saved_model(saved, images), expected, "SavedModel"),
            "ONNX": check(run_onnx(onnx, images), expected, "ONNX file"),
        }
    keras.utils.clear_session()  # else all networks stay in memory
    found = ", ".join(f"{form} {value:.1e}" for form, value in differences.items())
    return (
        f"{folder}, {size(folder)}; greatest difference of a probability on {len(images):,} test "
        f"images: {found}"
    )


def trained() -> list[str]:
    """The variants whose weights are here.

    Raises:
        StageError: if there are none.
    """
    variants = params.load().variants
    found = [name for name, variant in variants.items() if weights_of(name, variant).exists()]
    if not found:
        raise StageError("There are no trained variants here. `make demo` or `dvc pull` first.")
    return found


def in_float32(model: Any) -> Any:
    """The same network with the same weights, computing in float32 throughout."""
    keras = import_keras()
    text = model.to_json().replace('"mixed_bfloat16"', '"float32"')
    copy = keras.models.model_from_json(text)
    copy.set_weights(model.get_weights())
    return copy


def write(model: Any, saved: Path, onnx: Path) -> None:
    """Writes both formats by Keras's own exporter, without its messages.

    Raises:
        StageError: if it does not know a part of the network.
    """
    logging.getLogger("tf2onnx").setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # tf2onnx asks for NumPy 1's names
            model.export(saved, format="tf_saved_model", verbose=False)
            model.export(onnx, format="onnx", verbose=False)
    except OSError:  # a full disk, for one
        raise
    except Exception as error:
        raise StageError(f"Keras must be able to export it. Received: {error!r}.") from error


def run_saved_model(path: Path, images: np.ndarray) -> np.ndarray:
    import tensorflow as tf

    model = tf.saved_model.load(str(path))  # it must outlive the call
    return np.asarray(model.serve(images))


def run_onnx(path: Path, images: np.ndarray) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (entry,) = session.get_inputs()
    return np.asarray(session.run(None, {entry.name: images})[0])


def check(found: np.ndarray, expected: np.ndarray, form: str) -> float:
    """The greatest difference between probabilities, float (N, classes) each.

    Raises:
        StageError: if it is too great.
    """
    difference = float(np.abs(found - expected).max())
    if not difference <= TOLERANCE:
        raise StageError(
            f"The {form} must give the network's probabilities within {TOLERANCE}. "
            f"Received: a difference of {difference:.2g}."
        )
    return difference


if __name__ == "__main__":
    run(main)
