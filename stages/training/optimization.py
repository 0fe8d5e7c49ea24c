"""From a recipe's words to Keras objects: learning rates per step, the optimizer, the loss."""

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


def make_optimizer(config: dict[str, Any], rates: np.ndarray) -> keras.optimizers.Optimizer:
    """The optimizer of a recipe, following the table of learning rates."""
    config = dict(config)
    classes = {
        "sgd": keras.optimizers.SGD,
        "rmsprop": keras.optimizers.RMSprop,
        "adam": keras.optimizers.Adam,
        "adamw": keras.optimizers.AdamW,
    }
    make = classes[config.pop("name")]
    config["learning_rate"] = Table(rates)
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
