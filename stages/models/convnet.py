"""Three unpadded convolutions and two hidden layers. 258,762 parameters for 10 classes.

Source: C. Versloot, "How to build a ConvNet for CIFAR-10 and CIFAR-100 classification with Keras?":
69.48 % on CIFAR-10 after 100 epochs, overfitting from about the fifth on.
"""

import keras
from keras import layers


def build(input_shape: tuple[int, int, int], num_classes: int) -> keras.Model:
    """Builds the network.

    Args:
        input_shape: (height, width, channels) of the normalised float images.
        num_classes: the number of logits.
    """
    stack = [keras.Input(input_shape)]
    for filters in (32, 64, 128):
        stack += [layers.Conv2D(filters, 3, activation="relu"), layers.MaxPooling2D(2)]
    stack += [
        layers.Flatten(),
        layers.Dense(256, activation="relu"),
        layers.Dense(128, activation="relu"),
        layers.Dense(num_classes),
    ]
    return keras.Sequential(stack, name="convnet")
