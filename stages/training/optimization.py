"""From a recipe's words to Keras objects: learning rates per step, the optimizer, the loss."""

import math
from typing import Any

import keras
import numpy as np
from keras import ops


def learning_rates(recipe: dict[str, Any], steps_per_epoch: int) -> np.ndarray:
    """The learning rate of each step of a training.

    Args:
        recipe: `epochs`, `optimizer.learning_rate` and `schedule` (see stages/shared/params.py).
        steps_per_epoch: how many updates an epoch has.

    Returns:
        float32 (epochs * steps_per_epoch,).
    """
    schedule = recipe["schedule"]
    step = np.arange(recipe["epochs"] * steps_per_epoch, dtype=np.float64)
    epoch = step / steps_per_epoch
    if schedule["name"] == "constant":
        factor = np.ones_like(step)
    elif schedule["name"] == "inverse_time":
        factor = 1 / (1 + schedule["decay_per_step"] * step)
    elif schedule["name"] == "piecewise":
        pieces = np.searchsorted(schedule["from_epochs"], np.floor(epoch), side="right")
        factor = np.array([1.0, *schedule["factors"]])[pieces]
    else:
        factor = _warmup_and_decay(epoch, recipe["epochs"], schedule)
    return (recipe["optimizer"]["learning_rate"] * factor).astype(np.float32)


def _warmup_and_decay(epoch: np.ndarray, epochs: int, schedule: dict[str, Any]) -> np.ndarray:
    warmup, final = schedule["warmup_epochs"], schedule["final_fraction"]
    done = np.clip((epoch - warmup) / (epochs - warmup), 0, 1)
    if schedule["name"] == "cosine":
        done = (1 - np.cos(np.pi * done)) / 2
    decay = 1 + (final - 1) * done
    return np.where(epoch < warmup, epoch / warmup if warmup else 1.0, decay)


class Table(keras.optimizers.schedules.LearningRateSchedule):
    """A learning rate looked up by step: each schedule is an array and needs no code of its own."""

    def __init__(self, rates: np.ndarray) -> None:
        self.rates = rates

    def __call__(self, step: Any) -> Any:
        last = len(self.rates) - 1
        return ops.take(
            ops.convert_to_tensor(self.rates), ops.minimum(ops.cast(step, "int32"), last)
        )

    def get_config(self) -> dict[str, Any]:
        return {"rates": self.rates.tolist()}


class Muon(keras.optimizers.Optimizer):
    """Nesterov momentum, and for convolution kernels an orthogonalised update of fixed size.

    Source: K. Jordan et al., "Muon: an optimizer for hidden layers", 2024, with the kernels' norm
    kept constant as their scale is without effect before batch normalisation. Keras's own Muon
    leaves convolutions to Adam.

    Args:
        learning_rate: a schedule, of the kernels.
        momentum: of the kernels.
        head_factor: the learning rate of matrices, relative to the kernels'.
        bias_factor: that of vectors, likewise.
        sgd_momentum: of matrices and vectors.
        decay_factor: the fraction that these two shrink by at each step, likewise.
    """

    def __init__(
        self,
        learning_rate: Any,
        momentum: float,
        head_factor: float,
        bias_factor: float,
        sgd_momentum: float,
        decay_factor: float,
    ) -> None:
        super().__init__(learning_rate)
        self.momentum, self.sgd_momentum = momentum, sgd_momentum
        self.factors = {1: bias_factor, 2: head_factor}
        self.decay_factor = decay_factor

    def build(self, variables: list[Any]) -> None:
        if not self.built:
            super().build(variables)
            self.momentums = [
                self.add_variable_from_reference(variable, "momentum") for variable in variables
            ]

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        is_kernel = len(variable.shape) > 2
        rate = ops.cast(learning_rate, variable.dtype)
        momentum = self.momentum if is_kernel else self.sgd_momentum
        velocity = self.momentums[self._get_variable_index(variable)]
        self.assign(velocity, momentum * velocity + gradient)
        update = gradient + momentum * velocity
        if is_kernel:
            size = math.sqrt(variable.shape[-1])
            value = variable * (size / (ops.norm(ops.reshape(variable, (-1,))) + 1e-7))
            self.assign(variable, value - rate * orthogonalized(update))
        else:
            kept = 1 - rate * self.decay_factor
            self.assign(
                variable, variable * kept - rate * self.factors[len(variable.shape)] * update
            )


def orthogonalized(update: Any) -> Any:
    """About the nearest matrix with orthogonal rows, or columns, by three Newton-Schulz steps.

    Args:
        update: float (..., channels), taken as a matrix of as many columns.
    """
    matrix = ops.reshape(update, (-1, update.shape[-1]))
    tall = matrix.shape[0] > matrix.shape[1]
    if tall:
        matrix = ops.transpose(matrix)
    matrix = matrix / (ops.norm(matrix) + 1e-7)
    for _ in range(3):
        square = ops.matmul(matrix, ops.transpose(matrix))
        polynomial = -4.7750 * square + 2.0315 * ops.matmul(square, square)
        matrix = 3.4445 * matrix + ops.matmul(polynomial, matrix)
    if tall:
        matrix = ops.transpose(matrix)
    return ops.reshape(matrix, update.shape)


def make_optimizer(config: dict[str, Any], rates: np.ndarray) -> keras.optimizers.Optimizer:
    """The optimizer of a recipe, following the table of learning rates."""
    config = dict(config)
    classes: dict[str, Any] = {
        "sgd": keras.optimizers.SGD,
        "rmsprop": keras.optimizers.RMSprop,
        "adam": keras.optimizers.Adam,
        "adamw": keras.optimizers.AdamW,
        "muon": Muon,
    }
    make = classes[config.pop("name")]
    base, config["learning_rate"] = config["learning_rate"], Table(rates)
    if make is Muon:
        for name in ("head", "bias"):
            config[f"{name}_factor"] = config.pop(f"{name}_learning_rate") / base
        config["decay_factor"] = config.pop("weight_decay") / base
    if make is keras.optimizers.SGD and not config["weight_decay"]:
        config["weight_decay"] = None  # Keras's word for none, but for AdamW
    return make(**config)


def make_loss(label_smoothing: float) -> Any:
    """Cross-entropy between integer labels (B,) and logits (B, classes), smoothed if asked for."""
    if not label_smoothing:
        return keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def smoothed_crossentropy(labels: Any, logits: Any) -> Any:
        one_hot = ops.one_hot(ops.reshape(labels, (-1,)), logits.shape[-1], dtype="float32")
        return keras.losses.categorical_crossentropy(
            one_hot, logits, from_logits=True, label_smoothing=label_smoothing
        )

    return smoothed_crossentropy
