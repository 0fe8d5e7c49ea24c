"""Random changes of the training images, as a function of plain numbers drawn per epoch.

What is random is drawn on the host from (seed, epoch) alone, so a resumed training continues
exactly where it stopped. What is computed is one resampling of the images that lie on the device:
for each output pixel its place in the source image, and one gather (four, to interpolate). It uses
keras.ops only, so it is the same on every backend and compiles with XLA.
"""

import math
from typing import Any

import keras
import numpy as np
from keras import ops

RESIZED_AT_ONCE = 5000
FIRST_FLIPS = 2**63  # stands where an epoch's number does
DRAWS = ("rotation", "shift_y", "shift_x", "crop_y", "crop_x", "flip", "cutout_y", "cutout_x")


def epoch_plan(
    count: int, seed: int, epoch: int, flip: str = "random"
) -> tuple[np.ndarray, np.ndarray]:
    """What is random about one epoch's images.

    Args:
        count: how many images there are. seed: the training's. epoch: from 0.
        flip: with "alternating", an image that is mirrored in one epoch is not in the next.

    Returns:
        The order in which `count` images are visited, int32 (count,), and for each visit the
        numbers that its augmentation uses, float32 (count, len(DRAWS)), uniform in [0, 1).
    """
    random = np.random.Generator(np.random.Philox(key=[seed, epoch]))
    order = random.permutation(count).astype(np.int32)
    draws = random.random((count, len(DRAWS)), np.float32)
    if flip == "alternating":
        first = np.random.Generator(np.random.Philox(key=[seed, FIRST_FLIPS])).random(count)
        draws[:, DRAWS.index("flip")] = ((first < 0.5) ^ (epoch % 2 == 1))[order]
    return order, draws


def resized(images: np.ndarray, pixels: int) -> np.ndarray:
    """Images shrunk to a square: uint8 (N, pixels, pixels, channels), each pixel an average."""
    if images.shape[1:3] == (pixels, pixels):
        return images
    small = np.empty((len(images), pixels, pixels, images.shape[-1]), np.uint8)
    for start in range(0, len(images), RESIZED_AT_ONCE):
        chunk = images[start : start + RESIZED_AT_ONCE].astype(np.float32)
        chunk = ops.image.resize(chunk, (pixels, pixels), antialias=True)
        small[start : start + RESIZED_AT_ONCE] = np.rint(ops.convert_to_numpy(chunk)).clip(0, 255)
    return small


class AugmentedImages(keras.layers.Layer):
    """Holds a dataset's images on the device and looks them up by index, augmented in training.

    Inputs are `[index, draws]`: int32 (B,) or (B, 1), and float32 (B, len(DRAWS)). The output is
    float32 (B, 32, 32, 3), still in 0..255. Without `training`, the images are as they are.

    Args:
        images: uint8 (N, height, width, channels).
        config: the fields of a recipe's `augmentation`.
        mean: of each channel, in 0..255: what is cut out becomes this.
        scale: the images' size as a fraction of their own; what is in pixels shrinks with it.
    """

    def __init__(
        self,
        images: np.ndarray,
        config: dict[str, Any],
        mean: list[float],
        scale: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(dtype="float32", trainable=False, **kwargs)
        self.mean, self.scale = mean, scale
        count, self.height, self.width, self.channels = images.shape
        self.config = config
        self.pixels = self.add_weight(
            shape=(count * self.height * self.width, self.channels),
            initializer="zeros",
            dtype="uint8",
            trainable=False,
            name="pixels",
        )
        self.pixels.assign(np.reshape(images, self.pixels.shape))

    def call(self, inputs: list[Any], training: bool = False) -> Any:
        index, draws = inputs
        first = ops.reshape(index, (-1, 1, 1)) * (self.height * self.width)
        rows = ops.reshape(ops.arange(self.height, dtype="int32"), (1, -1, 1))
        columns = ops.reshape(ops.arange(self.width, dtype="int32"), (1, 1, -1))
        if not training:
            return self._take(first + rows * self.width + columns)

        draw = {
            name: ops.reshape(draws[:, position], (-1, 1, 1)) for position, name in enumerate(DRAWS)
        }
        out = self._moved(first, rows, columns, draw)
        side = round(self.config["cutout_pixels"] * self.scale)
        if side:
            top = ops.floor(draw["cutout_y"] * (self.height - side + 1))
            left = ops.floor(draw["cutout_x"] * (self.width - side + 1))
            y, x = ops.cast(rows, "float32") - top, ops.cast(columns, "float32") - left
            inside = ops.logical_and(
                ops.logical_and(y >= 0, y < side), ops.logical_and(x >= 0, x < side)
            )
            out = ops.where(inside[..., None], ops.convert_to_tensor(self.mean, "float32"), out)
        return out

    def _moved(self, first: Any, rows: Any, columns: Any, draw: dict[str, Any]) -> Any:
        """The images after mirroring, cropping, shifting and rotation."""
        if self.config["horizontal_flip"] != "none":
            columns = ops.where(draw["flip"] < 0.5, columns, self.width - 1 - columns)
        pad = round(self.config["pad_crop_pixels"] * self.scale)
        if pad:
            rows = rows + ops.cast(ops.floor(draw["crop_y"] * (2 * pad + 1)), "int32") - pad
            columns = columns + ops.cast(ops.floor(draw["crop_x"] * (2 * pad + 1)), "int32") - pad
        if self.config["rotation_degrees"] or self.config["shift_fraction"]:
            return self._interpolate(first, *self._transform(rows, columns, draw))
        if pad:
            return self._tap(first, rows, columns)
        return self._take(first + rows * self.width + columns)

    def _transform(self, rows: Any, columns: Any, draw: dict[str, Any]) -> tuple[Any, Any]:
        """The source coordinates, float32 (B, height, width), after the shift and the rotation."""
        fraction = self.config["shift_fraction"]
        middle_y, middle_x = (self.height - 1) / 2, (self.width - 1) / 2
        y = ops.cast(rows, "float32") - middle_y
        x = ops.cast(columns, "float32") - middle_x
        y = y + (2 * draw["shift_y"] - 1) * (fraction * self.height)
        x = x + (2 * draw["shift_x"] - 1) * (fraction * self.width)
        angle = (2 * draw["rotation"] - 1) * math.radians(self.config["rotation_degrees"])
        cosine, sine = ops.cos(angle), ops.sin(angle)
        return cosine * y - sine * x + middle_y, sine * y + cosine * x + middle_x

    def _interpolate(self, first: Any, y: Any, x: Any) -> Any:
        """Bilinear interpolation between the four pixels around each place."""
        top, left = ops.floor(y), ops.floor(x)
        down, right = (y - top)[..., None], (x - left)[..., None]
        top, left = ops.cast(top, "int32"), ops.cast(left, "int32")
        above = self._tap(first, top, left) * (1 - right) + self._tap(first, top, left + 1) * right
        below = (
            self._tap(first, top + 1, left) * (1 - right)
            + self._tap(first, top + 1, left + 1) * right
        )
        return above * (1 - down) + below * down

    def _tap(self, first: Any, rows: Any, columns: Any) -> Any:
        """The pixels at whole places; outside of the image, what the recipe's `fill` says."""
        rows_inside = self._inside(rows, self.height)
        columns_inside = self._inside(columns, self.width)
        pixels = self._take(first + rows_inside * self.width + columns_inside)
        if self.config["fill"] == "black":
            outside = ops.logical_or(rows != rows_inside, columns != columns_inside)
            pixels = ops.where(outside[..., None], 0.0, pixels)
        return pixels

    def _inside(self, places: Any, size: int) -> Any:
        if self.config["fill"] == "reflect":  # without repeating the edge: 2 1 0 1 2
            places = ops.abs(places)
            places = (size - 1) - ops.abs((size - 1) - places)
        return ops.clip(places, 0, size - 1)

    def _take(self, places: Any) -> Any:
        return ops.cast(ops.take(self.pixels, places, axis=0), "float32")

    def compute_output_shape(self, input_shape: Any) -> tuple[int | None, ...]:
        return (None, self.height, self.width, self.channels)
