"""Fused batch normalisation against Keras's own: outputs, gradients and moving statistics."""

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from stages.training.normalization import FusedBatchNormalization, with_fused_normalization


@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_it_computes_what_keras_computes(
    random: np.random.Generator, scale: bool, center: bool, dtype: str
) -> None:
    images = 3 + 2 * random.standard_normal((6, 5, 4, 3)).astype(np.float32)
    weights = random.standard_normal((6, 5, 4, 3)).astype(np.float32)
    config: dict[str, Any] = {"scale": scale, "center": center, "momentum": 0.6, "dtype": dtype}
    results = []
    for kind in (layers.BatchNormalization, FusedBatchNormalization):
        layer = kind(**config)
        layer.build(images.shape)
        for variable in layer.trainable_variables:
            variable.assign([0.5, 1.5, 2.5])
        inputs = tf.constant(images)
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            outputs = layer(inputs, training=True)
            loss = tf.reduce_sum(tf.cast(outputs, tf.float32) * weights)
        variables = [variable.value for variable in layer.trainable_variables]
        gradients = tape.gradient(loss, [inputs, *variables])
        later = layer(inputs, training=False)
        results.append([outputs, later, *gradients, layer.moving_mean, layer.moving_variance])
        assert outputs.dtype == layer.compute_dtype
    rough = dtype != "float32"
    for own, kerass in zip(results[1], results[0], strict=True):
        own, kerass = (np.asarray(tf.cast(each, tf.float32)) for each in (own, kerass))
        np.testing.assert_allclose(
            own, kerass, rtol=0.02 if rough else 1e-4, atol=0.06 if rough else 1e-4
        )


def test_a_network_is_copied_with_its_weights_and_only_what_is_known_is_fused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    network = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.Conv2D(4, 3, kernel_regularizer="l2"),
            layers.BatchNormalization(axis=1, name="by_rows"),
            layers.BatchNormalization(name="usual"),
            layers.Flatten(),
            layers.BatchNormalization(name="flat"),
            layers.BatchNormalization(name="over_devices", synchronized=True),
        ]
    )
    copy = with_fused_normalization(network)
    fused = [layer.name for layer in copy.layers if type(layer) is FusedBatchNormalization]
    assert fused == ["by_rows", "usual", "flat"]
    images = np.random.default_rng(0).standard_normal((20, 8, 8, 3)).astype(np.float32)
    np.testing.assert_array_equal(copy(images), network(images))
    assert len(copy.losses) == len(network.losses) == 1
    assert [v.path.split("/")[-2:] for v in copy.variables] == [
        v.path.split("/")[-2:] for v in network.variables
    ]
    kernel, calls = tf.raw_ops.FusedBatchNormV3, []

    def counted(**arguments: Any) -> Any:
        calls.append(arguments)
        return kernel(**arguments)

    monkeypatch.setattr(tf.raw_ops, "FusedBatchNormV3", counted)
    in_training = [np.asarray(each(images, training=True)) for each in (copy, network)]
    assert len(calls) == 1  # the others have axes that the kernel does not know
    np.testing.assert_allclose(*in_training, atol=1e-4)
    np.testing.assert_allclose(copy(images), network(images), atol=1e-4)
