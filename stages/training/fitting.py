"""Trains one model with one seed: build, fit epoch by epoch, keep the right epoch, save.

A training is a function of (parameters, code, data, seed, environment). Each epoch's randomness
comes from (seed, epoch) alone, and a checkpoint after each epoch holds everything else that
changes, so a resumed training ends with the same bits as one that was never interrupted.
"""

import importlib
import json
import math
import re
import time
import zipfile
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers
from tqdm import tqdm

from stages.shared.dataset import Split
from stages.shared.stage import StageError, detail
from stages.training import checkpoint
from stages.training.augmentation import DRAWS, AugmentedImages, epoch_plan, resized
from stages.training.normalization import with_fused_normalization
from stages.training.optimization import learning_rates, make_loss, make_optimizer
from stages.training.record import has_gpu
from stages.training.split import split_indices

EVALUATION_BATCH = 1000
STEPS_PER_CALL = 16  # how many updates run between two looks at the progress bar


class Training:
    """One variant's training with one seed.

    Args:
        variant: the variant's parameters: `model`, `config`.
        recipe: the recipe's parameters.
        split: the training split of the dataset.
        stats: what the stats stage wrote about it.
        seed: drives initial weights, order, augmentation and dropout.

    Attributes:
        core: the network itself, from normalised float images to logits.
        rows: one dictionary per finished epoch, the lines of the curves.
        seconds: the time that the epochs took, in all sittings together.
    """

    def __init__(
        self,
        variant: dict[str, Any],
        recipe: dict[str, Any],
        split: Split,
        stats: dict[str, Any],
        seed: int,
    ) -> None:
        self.variant, self.recipe, self.seed = variant, recipe, seed
        self.split, self.stats = split, stats
        self.labels = split.labels.astype(np.int32)
        self.training_indices, self.validation_indices = split_indices(
            split.labels,
            recipe["images_per_class"],
            recipe["validation"]["fraction"],
            recipe["validation"]["split"],
        )
        self.steps_per_epoch = math.ceil(len(self.training_indices) / recipe["batch_size"])
        self.rates = learning_rates(recipe, self.steps_per_epoch)
        self.rows: list[dict[str, Any]] = []
        self.seconds = 0.0
        self.best: dict[str, Any] | None = None  # its epoch, its value, its weights
        self._check_resolution()
        self._build(pixels_in(recipe["resolution"], epoch=0))

    def _check_resolution(self) -> None:
        """Raises a StageError if the weights' shapes depend on the images' size, and it changes."""
        height, width, channels = self.split.images.shape[1:]
        sizes = set(self.recipe["resolution"]["pixels"]) - {height}
        if not sizes:
            return
        shapes = [weight.shape for weight in self._build_core((height, width, channels)).weights]
        for size in sizes:
            core = self._build_core((size, size, channels))
            if [weight.shape for weight in core.weights] != shapes:
                raise StageError(
                    "resolution.pixels can change only for a model that pools over all places, as "
                    f"'air' and 'resnet' do. Received: {self.recipe['resolution']['pixels']} for "
                    f"'{self.variant['model']}'."
                )

    def _build(self, pixels: int) -> None:
        """Builds all anew for images of a size. Weights do not depend on it, so they can follow."""
        self.pixels = pixels
        images = resized(self.split.images, pixels)
        self.core = with_fused_normalization(self._build_core(images.shape[1:]))
        scale = pixels / self.split.images.shape[1]
        mean = [255 * value for value in self.stats["channel"]["mean"]]
        self.images = AugmentedImages(
            images, self.recipe["augmentation"], mean, scale, name="images"
        )
        self.model = self._make_trainer()

    def _build_core(self, shape: tuple[int, ...]) -> keras.Model:
        keras.utils.clear_session()  # layer names restart, so they do not tell of earlier builds
        keras.utils.set_random_seed(self.seed)
        keras.config.set_dtype_policy(self.recipe["precision"])
        self.normalisation = make_normalisation(self.recipe["pixels"], self.stats)
        core = build_core(self.variant, shape, len(self.split.classes))
        initialize = getattr(model_file(self.variant["model"]), "initialize", None)
        if initialize:  # a model file's own way, from the statistics of the data
            initialize(core, patch_covariance(self.recipe["pixels"], self.stats))
        return core

    def _make_trainer(self) -> keras.Model:
        """The model that is fitted: from an image's index and its random draws to logits."""
        index = keras.Input((), dtype="int32", name="index")
        draws = keras.Input((len(DRAWS),), dtype="float32", name="draws")
        logits = self.core(self.normalisation(self.images([index, draws])))
        logits = layers.Activation("linear", dtype="float32", name="logits")(logits)
        model = keras.Model([index, draws], logits)
        together = 1 if keras.backend.backend() == "torch" else STEPS_PER_CALL  # all it can do
        model.compile(
            optimizer=make_optimizer(self.recipe["optimizer"], self.rates),
            loss=make_loss(self.recipe["label_smoothing"]),
            metrics=[keras.metrics.SparseCategoricalAccuracy(name="accuracy")],
            steps_per_execution=min(together, self.steps_per_epoch),
            jit_compile=has_gpu() or keras.backend.backend() == "jax",
        )
        model.optimizer.build(model.trainable_variables)
        return model

    def fit(self, checkpoints: Path) -> None:
        """Trains to the end, from the newest checkpoint in the folder if there is one.

        Raises:
            StageError: if the loss is no longer finite.
        """
        self._resume(checkpoints)
        with tqdm(
            total=self.recipe["epochs"] * len(self.training_indices),
            initial=len(self.rows) * len(self.training_indices),
            unit=" images",
            unit_scale=True,
            smoothing=0.1,
            disable=None,
        ) as bar:
            while len(self.rows) < self.recipe["epochs"] and not self._out_of_patience():
                start = time.perf_counter()
                self._fit_epoch(len(self.rows), bar)
                self.seconds += time.perf_counter() - start
                self._save(checkpoints)
        if not all(np.isfinite(value).all() for value in _values(self.core)):
            raise not_finite("weights that are not", self.seed, len(self.rows) - 1)

    def _fit_epoch(self, epoch: int, bar: Any) -> None:
        bar.set_description(f"seed {self.seed}, epoch {epoch + 1}/{self.recipe['epochs']}")
        self._resize_to(pixels_in(self.recipe["resolution"], epoch))
        self._seed_dropout(epoch)
        order, draws = self._plan(epoch)
        visited = self.training_indices[order]
        history = self.model.fit(
            [visited, draws],
            self.labels[visited],
            batch_size=self.recipe["batch_size"],
            epochs=1,
            shuffle=False,  # the order is the plan's
            verbose=0,
            callbacks=[Progress(bar, len(visited), self.recipe["batch_size"])],
        )
        row: dict[str, Any] = {"seed": self.seed, "epoch": epoch + 1}
        row |= {name: history.history[name][0] for name in ("loss", "accuracy")}
        if not math.isfinite(row["loss"]):
            raise not_finite(row["loss"], self.seed, epoch)
        if len(self.validation_indices):
            row |= self._validate()
        row["learning_rate"] = float(self.rates[(epoch + 1) * self.steps_per_epoch - 1])
        self.rows.append({key: _rounded(value) for key, value in row.items()})
        self._remember_best()
        detail("  ".join(f"{key} {value}" for key, value in self.rows[-1].items()))

    def _plan(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        flip = self.recipe["augmentation"]["horizontal_flip"]
        return epoch_plan(len(self.training_indices), self.seed, epoch, flip)

    def _resize_to(self, pixels: int) -> None:
        """Goes on with images of another size."""
        if pixels != self.pixels:
            state = [_value(variable) for variable in self._state()]
            self._build(pixels)
            for variable, value in zip(self._state(), state, strict=True):
                variable.assign(value)

    def _validate(self) -> dict[str, float]:
        held_out = self.validation_indices
        no_draws = np.zeros((len(held_out), len(DRAWS)), np.float32)
        logs = self.model.evaluate(
            [held_out, no_draws],
            self.labels[held_out],
            batch_size=EVALUATION_BATCH,
            verbose=0,
            return_dict=True,
        )
        return {f"val_{name}": logs[name] for name in ("loss", "accuracy")}

    def _seed_dropout(self, epoch: int) -> None:
        """Sets what Keras's random layers draw next, from (seed, epoch) alone."""
        states = [v for v in self.core.variables if v.name == "seed_generator_state"]
        for number, state in enumerate(states):
            sequence = np.random.SeedSequence([self.seed, epoch, number])
            state.assign(sequence.generate_state(2).astype(state.dtype))

    def _remember_best(self) -> None:
        """Notes the newest epoch if no earlier one is better by the monitored value."""
        monitor = self.recipe["selection"]["monitor"]
        if monitor not in self.rows[-1]:
            return
        value = self.rows[-1][monitor]
        sign = -1 if monitor == "val_loss" else 1
        if self.best is None or not sign * value <= sign * self.best["value"]:  # also after a nan
            self.best = {"epoch": len(self.rows), "value": value, "weights": _values(self.core)}

    def _out_of_patience(self) -> bool:
        patience = self.recipe["selection"]["patience_epochs"]
        if patience == "unlimited" or self.best is None:
            return False
        return len(self.rows) - self.best["epoch"] >= patience

    @property
    def kept_epoch(self) -> int:
        """The epoch, from 1, whose weights are the result."""
        if self.recipe["selection"]["keep"] == "best" and self.best:
            return int(self.best["epoch"])
        return len(self.rows)

    def _state(self) -> list[Any]:
        """The variables that change from step to step."""
        return [*self.core.variables, *self.model.optimizer.variables]

    def _save(self, folder: Path) -> None:
        arrays = {f"state{i}": np.asarray(v) for i, v in enumerate(map(_value, self._state()))}
        facts: dict[str, Any] = {"rows": self.rows, "seconds": self.seconds}
        if self.best:
            facts["best"] = {"epoch": self.best["epoch"], "value": self.best["value"]}
            arrays |= {f"best{i}": value for i, value in enumerate(self.best["weights"])}
        checkpoint.save(folder, len(self.rows), facts, arrays)

    def _resume(self, folder: Path) -> None:
        found = checkpoint.load(folder)
        if found is None:
            return
        facts, arrays = found
        pixels = pixels_in(self.recipe["resolution"], len(facts["rows"]) - 1)
        if pixels != self.pixels:
            self._build(pixels)
        for i, variable in enumerate(self._state()):
            variable.assign(arrays[f"state{i}"].astype(variable.dtype))
        self.rows, self.seconds = facts["rows"], facts["seconds"]
        if "best" in facts:
            count = len(self.core.variables)
            self.best = facts["best"] | {"weights": [arrays[f"best{i}"] for i in range(count)]}
        print(f"Resuming seed {self.seed} after epoch {len(self.rows)}.")

    def save(self, path: Path) -> None:
        """Saves the kept epoch as one self-contained model: uint8 pixels in, probabilities out."""
        weights = _values(self.core)
        if self.recipe["selection"]["keep"] == "best" and self.best:
            weights = self.best["weights"]
        shape = self.split.images.shape[1:]
        core = self._build_core(shape)
        for variable, value in zip(core.variables, weights, strict=True):
            variable.assign(value)
        pixels = keras.Input(shape, dtype="uint8", name="pixels")
        logits = views_mean(core, self.normalisation(pixels), self.recipe["test_views"])
        probabilities = layers.Activation("softmax", dtype="float32", name="probabilities")(logits)
        save_model(keras.Model(pixels, probabilities, name=core.name), path)

    def summary(self) -> dict[str, Any]:
        """What outlives the training: its curves and what it took."""
        return {
            "seed": self.seed,
            "rows": self.rows,
            "kept_epoch": self.kept_epoch,
            "seconds": self.seconds,
            "images": len(self.rows) * len(self.training_indices),
        }

    def augmented_examples(self, count: int) -> np.ndarray:
        """The first images of the first epoch as the network sees them: uint8 (count, ...)."""
        order, draws = self._plan(epoch=0)
        visited = self.training_indices[order][:count]
        images = self.images([visited, draws[:count]], training=True)
        return np.clip(np.rint(keras.ops.convert_to_numpy(images)), 0, 255).astype(np.uint8)


class Progress(keras.callbacks.Callback):
    """Moves the progress bar, and stops the training when the loss is no longer finite."""

    def __init__(self, bar: Any, images: int, batch_size: int) -> None:
        super().__init__()
        self.bar, self.images, self.batch_size = bar, images, batch_size
        self.done = 0

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        done = min((batch + 1) * self.batch_size, self.images)
        self.bar.set_postfix(
            loss=f"{logs['loss']:.4f}", accuracy=f"{logs['accuracy']:.4f}", refresh=False
        )
        self.bar.update(done - self.done)
        self.done = done
        if not math.isfinite(logs["loss"]):
            self.model.stop_training = True


def model_file(name: str) -> Any:
    return importlib.import_module(f"stages.models.{name}")


def build_core(variant: dict[str, Any], shape: tuple[int, ...], classes: int) -> keras.Model:
    """The network of `stages/models/<model>.py`.

    Raises:
        StageError: if the model refuses its config.
    """
    try:
        core: keras.Model = model_file(variant["model"]).build(shape, classes, **variant["config"])
    except (TypeError, ValueError) as error:
        raise StageError(f"Model '{variant['model']}' cannot be built: {error}") from None
    return core


def pixels_in(resolution: dict[str, Any], epoch: int) -> int:
    """The images' size in an epoch, from 0, by a recipe's `resolution`."""
    piece = np.searchsorted(resolution["from_epochs"], epoch + 1, side="right") - 1
    return int(resolution["pixels"][piece])


def views_mean(core: keras.Model, images: Any, views: int) -> Any:
    """The logits of the images, or their mean over several views of each (a recipe's `test_views`).

    Half of the weight is on the images where they are, half on those shifted by a pixel.
    """

    def mirrored(images: Any) -> Any:
        return layers.Average()([core(images), core(keras.ops.flip(images, axis=2))])

    if views == 1:
        return core(images)
    if views == 2:
        return mirrored(images)
    padded = keras.ops.pad(images, [[0, 0], [1, 1], [1, 1], [0, 0]], mode="reflect")
    shifts = [layers.Cropping2D(crop)(padded) for crop in (((0, 2), (0, 2)), ((2, 0), (2, 0)))]
    shifted = layers.Average()([mirrored(each) for each in shifts])
    return layers.Average()([mirrored(images), shifted])


def make_normalisation(pixels: str, stats: dict[str, Any]) -> keras.layers.Layer:
    """The first layer of every saved model: pixels in 0..255 to the network's input, float32.

    Args:
        pixels: "unit" for 0..1; "overall" or "channel" for zero mean and unit variance over all
            values, or over each channel's. 1e-7 is added to the deviation, as the tutorials do.
        stats: `mean` and `std` in 0..1, under `overall` and `channel`.
    """
    if pixels == "unit":
        return layers.Rescaling(1 / 255, dtype="float32", name="normalisation")
    mean, std = np.array(stats[pixels]["mean"]), np.array(stats[pixels]["std"]) + 1e-7
    return layers.Rescaling(
        (1 / (255 * std)).tolist(), (-mean / std).tolist(), dtype="float32", name="normalisation"
    )


def patch_covariance(pixels: str, stats: dict[str, Any]) -> np.ndarray:
    """The covariance of 2x2 patches after `make_normalisation`: float64 (12, 12) for RGB."""
    covariance = np.array(stats["patches"]["2"]["covariance"])
    if pixels == "unit":
        return covariance
    std = np.array(stats[pixels]["std"]) + 1e-7
    std = np.tile(np.broadcast_to(std, len(stats["channel"]["std"])), 4)
    return covariance / np.outer(std, std)


def save_model(model: keras.Model, path: Path) -> None:
    """Saves a `.keras` file whose bytes depend on the model alone.

    Keras's own also tell the time of day, and where in memory the layers' parts lay.
    """
    raw = path.with_name(f"{path.stem}.raw.keras")
    model.save(raw)
    with zipfile.ZipFile(raw) as source, zipfile.ZipFile(path, "w") as target:
        for name in sorted(source.namelist()):
            data = source.read(name)
            if name == "metadata.json":
                data = json.dumps(json.loads(data) | {"date_saved": "1980-01-01@00:00:00"}).encode()
            if name == "config.json":
                data = _with_counted_ids(data)
            target.writestr(zipfile.ZipInfo(name), data)  # dated 1980, stored as it is
    raw.unlink()


def _with_counted_ids(config: bytes) -> bytes:
    """Replaces memory addresses, which stand for what layers share, by the numbers 1, 2, ..."""
    numbers: dict[bytes, int] = {}

    def count(match: re.Match[bytes]) -> bytes:
        return b'"shared_object_id": %d' % numbers.setdefault(match[1], len(numbers) + 1)

    return re.sub(rb'"shared_object_id": (\d+)', count, config)


def not_finite(loss: float | str, seed: int, epoch: int) -> StageError:
    return StageError(
        f"The loss must stay finite. Received: {loss} in epoch {epoch + 1} with seed {seed}. "
        "Lower the learning rate, or add a warm-up."
    )


def _value(variable: Any) -> np.ndarray:
    return np.asarray(keras.ops.convert_to_numpy(variable))


def _values(model: keras.Model) -> list[np.ndarray]:
    return [_value(variable) for variable in model.variables]


def _rounded(value: Any) -> Any:
    """Seven significant digits: all that float32 has."""
    return float(f"{value:.7g}") if isinstance(value, float) else value
