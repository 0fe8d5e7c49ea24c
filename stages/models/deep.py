"""The tutorial's larger network: six convolutions, two hidden layers. 2,915,114 parameters.

Source: J. Brownlee, as for `simple`: 80.18 % on CIFAR-10 after 25 epochs. A notebook that
repeats it with a later Keras has 69.51 % after six.
"""

import keras
from keras import layers


def build(input_shape: tuple[int, int, int], num_classes: int, *, fan_out: str) -> keras.Model:
    """Builds the network.

    Args:
        input_shape: (height, width, channels) of the normalised float images.
        num_classes: the number of logits.
        fan_out: what Glorot's limits of the initial kernels count as a convolution's outputs:
            "filters", as Keras did up to 1.0.3, of May 2016, or "places", the filters times the
            kernel's places, as Keras does since.
    """
    if fan_out not in ("filters", "places"):
        raise ValueError(f'fan_out must be "filters" or "places". Received: {fan_out!r}')

    def conv(channels: int, filters: int) -> layers.Layer:
        outputs = filters if fan_out == "filters" else 3 * 3 * filters
        limit = (6 / (3 * 3 * channels + outputs)) ** 0.5
        initializer = keras.initializers.RandomUniform(-limit, limit)
        return layers.Conv2D(
            filters, 3, padding="same", activation="relu", kernel_initializer=initializer
        )

    stack, channels = [keras.Input(input_shape)], input_shape[-1]
    for filters in (32, 64, 128):
        stack += [
            conv(channels, filters),
            layers.Dropout(0.2),
            conv(filters, filters),
            layers.MaxPooling2D(2),
        ]
        channels = filters
    stack += [layers.Flatten(), layers.Dropout(0.2)]
    for units in (1024, 512):
        constraint = keras.constraints.MaxNorm(3)  # axis 0: each unit's incoming weights
        stack += [
            layers.Dense(units, activation="relu", kernel_constraint=constraint),
            layers.Dropout(0.2),
        ]
    return keras.Sequential([*stack, layers.Dense(num_classes)], name="deep")
