"""Stage stats@D: exact pixel statistics of a dataset's training images.

All sums are of integers and exact, so the result depends neither on the order of the images nor on
the machine. Means and deviations are in units of the pixel range, 0..1.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from stages.shared.dataset import load_split
from stages.shared.stage import argument_parser, outputs, run

CHUNK = 1000  # images in memory at once
PATCH_SIZES = (2, 3)


def main() -> None:
    parser = argument_parser("Compute the statistics of training images.")
    parser.add_argument("--data", type=Path, required=True, help="in: the training split's folder")
    parser.add_argument("--stats", type=Path, required=True, help="out: a JSON file")
    args = parser.parse_args()

    split = load_split(args.data)
    stats = compute_stats(split.images)
    stats["class_counts"] = dict(
        zip(
            split.classes,
            np.bincount(split.labels, minlength=len(split.classes)).tolist(),
            strict=True,
        )
    )
    with outputs(args.stats) as (partial,):
        partial.write_text(json.dumps(stats, indent=1) + "\n")
    mean, std = (
        " ".join(f"{value:.4f}" for value in stats["channel"][key]) for key in ("mean", "std")
    )
    print(
        f"stats {args.data}: {stats['images']:,} images, channels of 0 to 1 have mean {mean}, "
        f"std {std}"
    )


def compute_stats(images: np.ndarray) -> dict[str, Any]:
    """Statistics in one pass over the images.

    Args:
        images: uint8 (N, height, width, channels); may be mapped from disk.

    Returns:
        `images`, the count; `channel` and `overall`, each with `mean` and `std` in 0..1 (the
        population's, over all pixels of a channel or of all); `patches`, by side length as a
        string, the `mean` and the `covariance` of all square patches, flattened row by row,
        channels last.
    """
    sizes = {size: np.zeros((size * size * images.shape[-1] + 1,) * 2) for size in PATCH_SIZES}
    total = np.zeros(images.shape[-1], np.int64)
    squares = np.zeros(images.shape[-1], np.int64)
    for chunk in _chunks(images):
        values = chunk.reshape(-1, images.shape[-1]).astype(np.int64)
        total += values.sum(axis=0)
        squares += (values * values).sum(axis=0)
        for size, moments in sizes.items():
            moments += _moments(chunk, size)
    count = images[..., 0].size
    return {
        "images": len(images),
        "channel": {
            "mean": (total / (255 * count)).tolist(),
            "std": [_std(int(t), int(s), count) for t, s in zip(total, squares, strict=True)],
        },
        "overall": {
            "mean": int(total.sum()) / (255 * count * len(total)),
            "std": _std(int(total.sum()), int(squares.sum()), count * len(total)),
        },
        "patches": {str(size): _patch_stats(moments) for size, moments in sizes.items()},
    }


def _chunks(images: np.ndarray) -> Iterator[np.ndarray]:
    with tqdm(total=len(images), unit=" images", unit_scale=True, disable=None) as bar:
        for start in range(0, len(images), CHUNK):
            chunk = images[start : start + CHUNK]
            yield chunk
            bar.update(len(chunk))


def _std(total: int, squares: int, count: int) -> float:
    """The standard deviation, in 0..1, from integer sums; the difference is taken exactly."""
    return float(np.sqrt((count * squares - total * total) / count**2)) / 255


def _moments(chunk: np.ndarray, size: int) -> np.ndarray:
    """The sums and the sums of products of all patches, with a one before each patch.

    The matrix product is one of floats for its speed, and exact nevertheless: every sum is a whole
    number below 2**53, also for millions of images.
    """
    windows = np.lib.stride_tricks.sliding_window_view(chunk, (size, size), axis=(1, 2))
    patches = windows.transpose(0, 1, 2, 4, 5, 3).reshape(-1, size * size * chunk.shape[-1])
    patches = np.concatenate([np.ones((len(patches), 1)), patches.astype(np.float64)], axis=1)
    product: np.ndarray = patches.T @ patches
    return product


def _patch_stats(moments: np.ndarray) -> dict[str, Any]:
    count, total, products = moments[0, 0], moments[0, 1:], moments[1:, 1:]
    mean = total / count
    covariance = products / count - np.outer(mean, mean)
    return {"mean": (mean / 255).tolist(), "covariance": (covariance / 255**2).tolist()}


if __name__ == "__main__":
    run(main)
