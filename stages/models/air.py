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
) -> keras.Model:
    """Builds the network.

    Args:
        input_shape: (height, width, channels) of the normalised float images.
        num_classes: the number of logits.
        widths: the channels of the three groups.
        depth: the convolutions in each group, 2 or 3; with 3 the group is residual.
        activation: a name that Keras knows.
    """
    if len(widths) != 3:
        raise ValueError(f"widths must have three numbers, one per group. Received: {widths}")
    if depth not in (2, 3):
        raise ValueError(f"depth must be 2 or 3. Received: {depth}")
    images = keras.Input(input_shape)
    patch = 2 * 2 * input_shape[-1]
    x = layers.Conv2D(2 * patch, 2, use_bias=False, trainable=False, name="whitening")(images)
    x = layers.Activation(activation)(x)
    for width in widths:
        x = _conv(width)(x)
        x = _norm()(layers.MaxPooling2D(2)(x))
        x = shortcut = layers.Activation(activation)(x)
        for position in range(1, depth):
            x = _norm()(_conv(width)(x))
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
    whitening = model.get_layer("whitening").kernel
    whitening.assign(np.concatenate([filters, -filters], axis=1).reshape(whitening.shape))
    for layer in model.layers:
        if isinstance(layer, layers.Conv2D) and layer.name != "whitening":
            kernel = np.array(layer.kernel)
            passed = min(kernel.shape[2:])
            kernel[..., :passed] = 0
            kernel[1, 1, range(passed), range(passed)] = 1
            layer.kernel.assign(kernel)


def _conv(width: int) -> layers.Layer:
    return layers.Conv2D(width, 3, padding="same", use_bias=False)


def _norm() -> layers.Layer:
    return layers.BatchNormalization(scale=False, momentum=0.6, epsilon=1e-5)
