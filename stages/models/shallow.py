"""Three 3x3 convolutions and a linear classifier. 411,786 parameters for 10 classes.

Source: A. Kumar, as for `deep_bn`, cites a "shallow 3-layered CNN" with 76 % on CIFAR-10 and does
not define it. This one is ours: each convolution is followed by pooling, and dropout before the
classifier stands in for the regularisation that the 76 % of such a small network needs.
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
    for filters in (64, 128, 256):
        stack += [
            layers.Conv2D(filters, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(2),
            layers.Dropout(0.25),
        ]
    stack += [layers.Flatten(), layers.Dense(num_classes)]
    return keras.Sequential(stack, name="shallow")
