"""The tutorial's first network: two convolutions and one hidden layer. 4,210,090 parameters.

Source: J. Brownlee, "Object Recognition with Convolutional Neural Networks in the Keras Deep
Learning Library", 71.82 % on CIFAR-10 after 25 epochs. The kernels begin as they did in Keras up to
1.0.3, of May 2016, which fits the tutorial's training log; as in later ones they learn more slowly.
"""

import keras
from keras import layers


def build(input_shape: tuple[int, int, int], num_classes: int) -> keras.Model:
    """Builds the network.

    Args:
        input_shape: (height, width, channels) of the normalised float images.
        num_classes: the number of logits.
    """
    # axis 0, Keras's default and so the tutorial's: for a convolution it is the kernel's height
    constraint = keras.constraints.MaxNorm(3)
    conv = {"padding": "same", "activation": "relu", "kernel_constraint": constraint}
    return keras.Sequential(
        [
            keras.Input(input_shape),
            layers.Conv2D(32, 3, kernel_initializer=_glorot(input_shape[-1]), **conv),
            layers.Dropout(0.2),
            layers.Conv2D(32, 3, kernel_initializer=_glorot(32), **conv),
            layers.MaxPooling2D(2),
            layers.Flatten(),
            layers.Dense(512, activation="relu", kernel_constraint=constraint),
            layers.Dropout(0.5),
            layers.Dense(num_classes),
        ],
        name="simple",
    )


def _glorot(channels: int) -> keras.initializers.Initializer:
    """Glorot's limits for 32 filters of 3x3 places, where only the inputs are counted per place."""
    limit = (6 / (3 * 3 * channels + 32)) ** 0.5
    return keras.initializers.RandomUniform(-limit, limit)
