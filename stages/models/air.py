"""A network for fast training: whitened patches, then three groups of convolutions.

Source: K. Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU", arXiv 2404.00498, section 3.
Departures: the whitening layer has no bias, and its statistics are those of all training images.
1,973,920 parameters for 10 classes with widths 64, 256, 256 and depth 2, of which 288 are frozen.
"""

import keras
import numpy as np
from keras import layers

WHITENING_EPSILON = 5e-4  # added to the variances, so that what is nearly constant stays small


def build(
    input_shape: tuple[int, int, int],
    num_classes: int,
    *,
    widths: list[int],
    depth: int,
    activation: str,
    whitening: bool,
    batch_norm: bool,
) -> keras.Model:
    """Builds the network.

    Args:
        input_shape: (height, width, channels) of the normalised float images.
        num_classes: the number of logits.
        widths: the channels of the three groups.
        depth: the convolutions in each group, 1 to 3; with 3 the group is residual.
        activation: a name that Keras knows.
        whitening: whether the first filters are the data's whitening ones and frozen, or random
            and trained.
        batch_norm: whether batches are normalised; if not, convolutions have biases instead.
    """
    if len(widths) != 3:
        raise ValueError(f"widths must have three numbers, one per group. Received: {widths}")
    if depth not in (1, 2, 3):
        raise ValueError(f"depth must be 1, 2 or 3. Received: {depth}")

    def conv(x: keras.KerasTensor, width: int) -> keras.KerasTensor:
        return layers.Conv2D(width, 3, padding="same", use_bias=not batch_norm)(x)

    def norm(x: keras.KerasTensor) -> keras.KerasTensor:
        if not batch_norm:
            return x
        return layers.BatchNormalization(scale=False, momentum=0.6, epsilon=1e-5)(x)

    images = keras.Input(input_shape)
    patch = 2 * 2 * input_shape[-1]
    first = {"use_bias": False, "trainable": not whitening, "name": "patches"}
    x = layers.Conv2D(2 * patch, 2, **first)(images)
    x = layers.Activation(activation)(x)
    for width in widths:
        x = norm(layers.MaxPooling2D(2)(conv(x, width)))
        x = shortcut = layers.Activation(activation)(x)
        for position in range(1, depth):
            x = norm(conv(x, width))
            if depth == 3 and position == depth - 1:
                x = layers.Add()([x, shortcut])
            x = layers.Activation(activation)(x)
    x = layers.GlobalMaxPooling2D()(x)
    small = keras.initializers.RandomNormal(stddev=1 / widths[-1])
    logits = layers.Dense(num_classes, use_bias=False, kernel_initializer=small, name="head")(x)
    return keras.Model(images, logits, name="air")


def initialize(model: keras.Model, patch_covariance: np.ndarray) -> None:
    """Sets the whitening filters, and lets the other convolutions begin by passing on their input.

    Args:
        model: what `build` returned.
        patch_covariance: of the 2x2 patches of the normalised training images, flattened row by
            row: float (4 * channels, 4 * channels).
    """
    variances, directions = np.linalg.eigh(patch_covariance)
    filters = directions / np.sqrt(variances + WHITENING_EPSILON)
    first = model.get_layer("patches")
    if not first.trainable:
        first.kernel.assign(np.concatenate([filters, -filters], axis=1).reshape(first.kernel.shape))
    for layer in model.layers:
        if isinstance(layer, layers.Conv2D) and layer is not first:
            kernel = np.array(layer.kernel)
            passed = min(kernel.shape[2:])
            kernel[..., :passed] = 0
            kernel[1, 1, range(passed), range(passed)] = 1
            layer.kernel.assign(kernel)
