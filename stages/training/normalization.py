"""Batch normalisation by TensorFlow's own kernel, which Keras 3 leaves aside.

Keras computes it from elementary operations in float32, each a pass over memory. The kernel needs
two, and reads and writes bfloat16 where the recipe asks for it; its statistics are float32 as well.
"""

from typing import Any

import keras
from keras import layers, ops


class FusedBatchNormalization(layers.BatchNormalization):
    """Keras's layer, with TensorFlow's kernel in training. The saved model has Keras's own."""

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        fits = len(inputs.shape) == 4 and self.axis in (-1, 3) and mask is None
        if not (training and self.trainable and fits and not self.renorm):
            return super().call(inputs, training=training, mask=mask)
        import tensorflow as tf

        channels = inputs.shape[-1]
        outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=inputs,
            scale=ops.convert_to_tensor(self.gamma) if self.scale else tf.ones(channels),
            offset=ops.convert_to_tensor(self.beta) if self.center else tf.zeros(channels),
            mean=tf.zeros(0),
            variance=tf.zeros(0),
            epsilon=self.epsilon,
            is_training=True,
        )
        count = tf.cast(tf.size(inputs) // channels, "float32")
        variance = variance * ((count - 1) / count)  # the kernel divides by one less than Keras
        for moving, new in ((self.moving_mean, mean), (self.moving_variance, variance)):
            moving.assign(moving * self.momentum + new * (1 - self.momentum))
        return outputs


def with_fused_normalization(model: keras.Model) -> keras.Model:
    """The same network with the same weights, its batch normalisation fused where that is known."""
    if keras.backend.backend() != "tensorflow":
        return model

    def fused(layer: layers.Layer) -> layers.Layer:
        kind = type(layer)
        if kind is layers.BatchNormalization and not layer.synchronized:
            kind = FusedBatchNormalization
        return kind.from_config(layer.get_config())

    copy: keras.Model = keras.models.clone_model(model, clone_function=fused)
    copy.set_weights(model.get_weights())
    return copy
