"""Residual network of depth 6n + 2. With depth 20: 271,098 parameters for 10 classes.

Source: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, section 4.2 and table
6: 8.75 % error on CIFAR-10 with depth 20, 6.97 % with 56. Shortcuts have no parameters (their
option A). 1,376 of the parameters are batch normalisation's moving statistics.
"""

import keras
from keras import layers, ops


def build(
    input_shape: tuple[int, int, int], num_classes: int, *, depth: int, l2: float
) -> keras.Model:
    """Builds the network.

    Args:
        input_shape: (height, width, channels) of the normalised float images.
        num_classes: the number of logits.
        depth: the layers with weights: 8, 14, 20, 32, 44, 56, 110 or another 6n + 2.
        l2: the weight of the squared kernels in the loss, half of what is called weight decay.
    """
    if depth < 8 or depth % 6 != 2:
        raise ValueError(f"depth must be 6n + 2: 8, 14, 20, 26, 32, ... Received: {depth}")

    def conv(x: keras.KerasTensor, filters: int, strides: int = 1) -> keras.KerasTensor:
        return layers.BatchNormalization()(
            layers.Conv2D(
                filters,
                3,
                strides,
                padding="same",
                use_bias=False,
                kernel_initializer="he_normal",
                kernel_regularizer=keras.regularizers.L2(l2),
            )(x)
        )

    images = keras.Input(input_shape)
    x = layers.Activation("relu")(conv(images, 16))
    for filters in (16, 32, 64):
        for _ in range(depth // 6):
            strides = filters // x.shape[-1]  # the first block of a group halves the images
            shortcut = x
            if strides > 1:
                new = filters - x.shape[-1]
                shortcut = x[:, ::strides, ::strides]
                shortcut = ops.pad(shortcut, [[0, 0], [0, 0], [0, 0], [new // 2, new // 2]])
            x = layers.Activation("relu")(conv(x, filters, strides))
            x = layers.Activation("relu")(layers.Add()([conv(x, filters), shortcut]))
    x = layers.GlobalAveragePooling2D()(x)
    head = layers.Dense(num_classes, kernel_regularizer=keras.regularizers.L2(l2))
    return keras.Model(images, head(x), name="resnet")
