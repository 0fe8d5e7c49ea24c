"""Which training images are trained on, and which are held out for validation."""

from typing import Any

import numpy as np

from stages.shared.stage import StageError


def split_indices(
    labels: np.ndarray, images_per_class: int | str, fraction: float, split: str
) -> tuple[np.ndarray, np.ndarray]:
    """Chooses a subset of the images and divides it. Nothing is random here.

    Args:
        labels: uint8 (N,).
        images_per_class: the first so many of each class are used, or "all".
        fraction: how much of them is held out, 0 to below 1, rounded down to whole images.
        split: "end" holds out the last ones, "stratified" the last ones of each class.

    Returns:
        The indices to train on and those to validate on: int32, disjoint, increasing.

    Raises:
        StageError: if a class has too few images, or nothing would be left on either side.
    """
    chosen = np.arange(len(labels))
    rank = _rank_in_class(labels)
    if isinstance(images_per_class, int):
        smallest = int(np.bincount(labels).min())
        if images_per_class > smallest:
            raise StageError(
                f"images_per_class must be at most {smallest}, the images of the smallest class. "
                f"Received: {images_per_class}."
            )
        chosen = chosen[rank < images_per_class]
    if split == "end":
        held_out = np.arange(len(chosen)) >= len(chosen) - _whole(len(chosen) * fraction)
    else:
        per_class = np.bincount(labels[chosen])
        kept = per_class - _whole(per_class * fraction)
        held_out = rank[chosen] >= kept[labels[chosen]]
    training, validation = chosen[~held_out], chosen[held_out]
    if len(training) == 0 or (fraction > 0 and len(validation) == 0):
        raise StageError(
            "validation.fraction must leave at least one image on either side. "
            f"Received: {fraction} of {len(chosen)} images."
        )
    return training.astype(np.int32), validation.astype(np.int32)


def _whole(count: Any) -> Any:
    """Rounds down, but not what floats alone keep below a whole number: 100 * 0.29."""
    return np.floor(np.round(count, 6)).astype(np.int64)


def _rank_in_class(labels: np.ndarray) -> np.ndarray:
    """For each image, how many of its class come before it."""
    rank = np.empty(len(labels), np.int64)
    for label in np.unique(labels):
        of_class = labels == label
        rank[of_class] = np.arange(of_class.sum())
    return rank
