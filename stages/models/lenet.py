"""A LeNet for colour images. 92,246 parameters for 10 classes.

Source: a reader's comment under A. Kumar's article (see `deep_bn`), after LeCun et al., 1998. The
hidden layer has no activation there, so none here.
"""

import keras
from keras import layers


def build(input_shape: tuple[int, int, int], num_classes: int) -> keras.Model:
    """Builds the network.

    Args:
        input_shape: (height, width, channels) of the normalised float images.
        num_classes: the number of logits.
    """
    return keras.Sequential(
        [
            keras.Input(input_shape),
            layers.Conv2D(6, 5, padding="same", activation="relu"),
            layers.MaxPooling2D(2),
            layers.Conv2D(16, 5, activation="relu"),
            layers.MaxPooling2D(2),
            layers.Conv2D(120, 5, activation="relu"),
            layers.Flatten(),
            layers.Dense(84),
            layers.Dense(num_classes),
        ],
        name="lenet",
    )
