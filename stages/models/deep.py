"""The tutorial's larger network: six convolutions, two hidden layers. 2,915,114 parameters.

Source: J. Brownlee, as for `simple`: 80.18 % on CIFAR-10 after 25 epochs.
"""

import keras
from keras import layers


def build(input_shape: tuple[int, int, int], num_classes: int) -> keras.Model:
    """Builds the network.

    Args:
        input_shape: (height, width, channels) of the normalised float images.
        num_classes: the number of logits.
    """
    conv = {"padding": "same", "activation": "relu"}
    stack = [keras.Input(input_shape)]
    for filters in (32, 64, 128):
        stack += [
            layers.Conv2D(filters, 3, **conv),
            layers.Dropout(0.2),
            layers.Conv2D(filters, 3, **conv),
            layers.MaxPooling2D(2),
        ]
    stack += [layers.Flatten(), layers.Dropout(0.2)]
    for units in (1024, 512):
        constraint = keras.constraints.MaxNorm(3)  # axis 0: each unit's incoming weights
        stack += [
            layers.Dense(units, activation="relu", kernel_constraint=constraint),
            layers.Dropout(0.2),
        ]
    return keras.Sequential([*stack, layers.Dense(num_classes)], name="deep")
