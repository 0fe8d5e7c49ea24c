"""Shapes: ten classes of coloured shapes and textures, drawn here, for runs without a network.

Each image has one object of the class, at a random position, size, angle and colour, over a shaded
background with clutter (small discs and bars) and noise. The same parameters give the same bytes on
every machine: the random bits are those of the Philox generator itself, whose stream NumPy
guarantees, and the drawing only adds, multiplies and compares.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from stages.shared.dataset import Split

CLASSES = tuple("disc square triangle ring cross bar crescent stripes checkerboard dots".split())
COLOURS = (  # what each class tends to look like: a hint, not a giveaway
    (0.85, 0.25, 0.25), (0.25, 0.45, 0.9), (0.95, 0.8, 0.2), (0.3, 0.75, 0.35), (0.95, 0.55, 0.15),
    (0.6, 0.3, 0.75), (0.95, 0.95, 0.9), (0.25, 0.8, 0.8), (0.1, 0.1, 0.15), (0.95, 0.5, 0.7),
)  # fmt: skip
SIZE = 32
HINT = 0.65  # how much of an object's colour comes from its class
CHUNK = 500  # images drawn at once
CLUTTER = 3  # small things in the background of each image


def prepare(config: dict[str, Any], fetch: Callable[[str], Path]) -> tuple[Split, Split]:
    """Draws both splits.

    Args:
        config: `train_images` and `test_images`, how many to draw, and `seed`.
        fetch: not used; nothing is downloaded.

    Returns:
        The training and the test split, with equally many images of each class (within one).
    """
    train = draw(config["train_images"], config["seed"], stream=0)
    return train, draw(config["test_images"], config["seed"], stream=1)


def draw(count: int, seed: int, stream: int) -> Split:
    """Draws `count` images; different streams of one seed have no image in common."""
    random = Uniform(seed, stream)
    labels = (np.arange(count) % len(CLASSES)).astype(np.uint8)
    labels = labels[np.argsort(random(count), kind="stable")]
    chunks = [
        _draw_chunk(labels[start : start + CHUNK], random) for start in range(0, count, CHUNK)
    ]
    return Split(images=np.concatenate(chunks), labels=labels, classes=CLASSES)


class Uniform:
    """Uniform random numbers in [0, 1), multiples of 2**-32, the same on every machine."""

    def __init__(self, seed: int, stream: int) -> None:
        self._bits = np.random.Philox(key=np.array([seed, stream], np.uint64))

    def __call__(self, *shape: int) -> np.ndarray:
        return (self._bits.random_raw(shape) >> np.uint64(32)).astype(np.float64) / 2.0**32


def _draw_chunk(labels: np.ndarray, random: Uniform) -> np.ndarray:
    """uint8 (N, 32, 32, 3)."""
    count = len(labels)
    grid = (np.arange(SIZE) - (SIZE - 1) / 2) / (SIZE / 2)  # pixel centres in -1..1
    y, x = grid[None, :, None], grid[None, None, :]

    background = random(count, 3) * 0.6 + 0.2
    slope = (random(count, 3, 2) - 0.5) * 0.5
    image = background[:, None, None, :] + (
        x[..., None] * slope[:, None, None, :, 0] + y[..., None] * slope[:, None, None, :, 1]
    )
    for _ in range(CLUTTER):
        u, v = _local(x, y, random, count, radius=(0.06, 0.22), spread=1.8)
        thing = np.where(
            _column(random(count) < 0.5), u * u + v * v < 1, (abs(u) < 2) & (abs(v) < 0.4)
        )
        image = _paint(image, thing, random(count, 3))

    u, v = _local(x, y, random, count, radius=(0.45, 0.75), spread=0.5)
    hint = np.array(COLOURS)[labels]
    colour = hint * HINT + random(count, 3) * (1 - HINT)
    image = _paint(image, _object(labels, u, v), colour)

    noise = random(count, SIZE, SIZE, 3) + random(count, SIZE, SIZE, 3) - 1
    strength = (random(count) * 0.2 + 0.03)[:, None, None, None]
    return (np.clip(image + noise * strength, 0, 1) * 255 + 0.5).astype(np.uint8)


def _local(
    x: np.ndarray,
    y: np.ndarray,
    random: Uniform,
    count: int,
    radius: tuple[float, float],
    spread: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates (N, 32, 32) in which a randomly placed, sized and turned object is of size 1.

    The angle is uniform enough, and exact: a point of the unit circle in its rational form.
    """
    centre_x, centre_y = (_column(random(count) - 0.5) * spread for _ in range(2))
    scale = _column(random(count) * (radius[1] - radius[0]) + radius[0])
    t = _column(random(count) * 2 - 1)
    cosine, sine = (1 - t * t) / (1 + t * t), 2 * t / (1 + t * t)  # -90..90 degrees
    dx, dy = (x - centre_x) / scale, (y - centre_y) / scale
    return dx * cosine + dy * sine, dy * cosine - dx * sine


def _object(labels: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """bool (N, 32, 32): where the object of each image's class is."""
    squared = u * u + v * v
    disc, square = squared < 0.85, np.maximum(abs(u), abs(v)) < 0.8
    masks = np.stack(
        [
            disc,
            square,
            (v < 0.6) & (1.8 * abs(u) < v + 1.0),
            disc & (squared > 0.3),
            (np.minimum(abs(u), abs(v)) < 0.28) & (np.maximum(abs(u), abs(v)) < 0.95),
            (abs(u) < 1.1) & (abs(v) < 0.38),
            disc & ((u - 0.45) * (u - 0.45) + v * v > 0.5),
            disc & (np.floor(u * 2.6) % 2 == 0),
            square & ((np.floor(u * 2.2) + np.floor(v * 2.2)) % 2 == 0),
            square & (_squared_to_centre(u * 1.9) + _squared_to_centre(v * 1.9) < 0.1),
        ]
    )
    return masks[labels, np.arange(len(labels))]


def _squared_to_centre(a: np.ndarray) -> np.ndarray:
    """The squared distance to the middle of the unit cell that `a` is in."""
    b = a - np.floor(a) - 0.5
    return b * b


def _paint(image: np.ndarray, mask: np.ndarray, colour: np.ndarray) -> np.ndarray:
    return np.where(mask[..., None], colour[:, None, None, :], image)


def _column(values: np.ndarray) -> np.ndarray:
    """(N,) -> (N, 1, 1), to combine with the pixels of each image."""
    return values[:, None, None]
