"""The format of a dataset's split on disk: a folder of plain arrays, checked when read.

images.npy          uint8 (N, 32, 32, 3), RGB, channels last
labels.npy          uint8 (N,), indices into the class names
coarse_labels.npy   uint8 (N,), only where the dataset has superclasses (CIFAR-100)
classes.json        {"classes": [...], "coarse_classes": [...]}
"""

import json
import tokenize
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from stages.shared.stage import StageError

IMAGE_SHAPE = (32, 32, 3)
DAMAGE = (  # what NumPy raises on a damaged array file
    OSError,
    ValueError,
    TypeError,
    EOFError,
    SyntaxError,
    ArithmeticError,
    LookupError,
    MemoryError,
    RecursionError,
    tokenize.TokenError,
)


@dataclass(frozen=True)
class Split:
    """The training or the test part of a dataset.

    Attributes:
        images: uint8 (N, 32, 32, 3), RGB.
        labels: uint8 (N,), each below `len(classes)`.
        classes: the class names.
        coarse_labels: uint8 (N,), or None where the dataset has no superclasses.
        coarse_classes: the names of the superclasses.
    """

    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    coarse_labels: np.ndarray | None = None
    coarse_classes: tuple[str, ...] = ()


def save_split(split: Split, folder: Path) -> None:
    """Writes a split into a new folder.

    Raises:
        StageError: if the split does not hold what its docstring says.
    """
    check_split(split, folder)
    folder.mkdir(parents=True)
    _write_array(folder / "images.npy", split.images)
    _write_array(folder / "labels.npy", split.labels)
    names = {"classes": list(split.classes), "coarse_classes": list(split.coarse_classes)}
    if split.coarse_labels is not None:
        _write_array(folder / "coarse_labels.npy", split.coarse_labels)
    (folder / "classes.json").write_text(json.dumps(names, indent=1) + "\n")


def load_split(folder: Path) -> Split:
    """Reads a split; the images are mapped from disk, not loaded.

    Raises:
        StageError: if a file is missing, damaged, or does not hold what the format says.
    """
    names = _read_names(folder / "classes.json")
    coarse = folder / "coarse_labels.npy"
    split = Split(
        images=_read_array(folder / "images.npy"),
        labels=_read_array(folder / "labels.npy"),
        classes=tuple(names["classes"]),
        coarse_labels=_read_array(coarse) if names["coarse_classes"] else None,
        coarse_classes=tuple(names["coarse_classes"]),
    )
    check_split(split, folder)  # before any copy: a damaged file claims what it likes
    copied = None if split.coarse_labels is None else np.array(split.coarse_labels)
    return replace(split, labels=np.array(split.labels), coarse_labels=copied)


def check_split(split: Split, folder: Path) -> None:
    """Raises a StageError, naming the folder, if shapes, types or labels are not as documented."""
    images, labels = split.images, split.labels
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != IMAGE_SHAPE:
        raise StageError(
            f"{folder}: images must be uint8 of shape (N, 32, 32, 3). "
            f"Received: {images.dtype} {images.shape}."
        )
    if len(images) == 0:
        raise StageError(f"{folder}: there must be at least one image. Received: none.")
    if (split.coarse_labels is None) != (not split.coarse_classes):
        raise StageError(
            f"{folder}: coarse_labels and coarse_classes must be given both or neither. "
            f"Received: {split.coarse_labels} and {split.coarse_classes}."
        )
    _check_labels(labels, len(images), len(split.classes), folder, "labels")
    if split.coarse_labels is not None:
        count = len(split.coarse_classes)
        _check_labels(split.coarse_labels, len(images), count, folder, "coarse_labels")


def _check_labels(labels: np.ndarray, count: int, classes: int, folder: Path, name: str) -> None:
    if labels.dtype != np.uint8 or labels.shape != (count,):
        raise StageError(
            f"{folder}: {name} must be uint8 of shape ({count},), one per image. "
            f"Received: {labels.dtype} {labels.shape}."
        )
    if labels.max() >= classes:
        index = int(np.argmax(labels >= classes))
        raise StageError(
            f"{folder}: {name} must be between 0 and {classes - 1}. "
            f"Received: {labels[index]} at index {index}."
        )


def _read_array(path: Path) -> np.ndarray:
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except FileNotFoundError:
        raise StageError(f"{path} is missing. Run the download stage of this dataset.") from None
    except DAMAGE as error:
        raise StageError(f"{path} must be a NumPy array file. Received: {error}.") from None


def _write_array(path: Path, array: np.ndarray) -> None:
    """Like np.save, which does not say that a disk is full when it is."""
    with open(path, "wb") as file:
        header = np.lib.format.header_data_from_array_1_0(array)
        np.lib.format.write_array_header_1_0(file, header)
        file.write(np.ascontiguousarray(array).data)


def _read_names(path: Path) -> dict[str, list[str]]:
    try:
        names = json.loads(path.read_bytes())
        valid = set(names) == {"classes", "coarse_classes"} and all(
            isinstance(value, list) and all(isinstance(name, str) for name in value)
            for value in names.values()
        )
    except FileNotFoundError:
        raise StageError(f"{path} is missing. Run the download stage of this dataset.") from None
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        valid = False
    if not valid or not 1 <= len(names["classes"]) <= 256:
        raise StageError(f"{path} must hold the lists of names 'classes' and 'coarse_classes'.")
    return names
