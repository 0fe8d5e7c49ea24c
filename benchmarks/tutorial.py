"""Our train stage against the tutorials' own way: the same network, batch and augmentation.

    python -m benchmarks.tutorial [--images 3200] [--rounds 3]

The tutorials' way is `fit` on arrays for the simple network, and `fit` on an ImageDataGenerator for
deep_bn, in float32, ported only as far as TensorFlow 2.21 needs.
"""

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks.alternation import alternate, compare, random_split, report
from stages import stats
from stages.shared import params
from stages.shared.backend import import_keras
from stages.shared.dataset import Split
from tools.command import count, run

VARIANTS = ("cifar10-simple", "cifar10-deep-bn")


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare with the tutorials' training loops.")
    parser.add_argument("--images", type=count, default=3_200, help="images per run")
    parser.add_argument("--rounds", type=count, default=3, help="runs of each way")
    args = parser.parse_args()

    import_keras()
    split = random_split(args.images)
    result = {}
    for key in VARIANTS:
        ways = {
            "tutorial": tutorial(key, split),
            "ours, float32": ours(key, split, precision="float32"),
            "ours, mixed_bfloat16": ours(key, split, precision="mixed_bfloat16"),
        }
        table = compare(alternate(ways, args.rounds), base="tutorial")
        for row in table.values():
            row["images_per_second"] = round(args.images / row["median_seconds"], 1)
        result[key] = table
    report("tutorial", {"images": args.images, "rounds": args.rounds, "networks": result})


def ours(key: str, split: Split, **changes: Any) -> Callable[[], None]:
    """An epoch as the train stage runs it."""
    from stages.training.fitting import Training

    config = params.load()
    variant = config.variants[key]
    recipe = config.recipes[variant.recipe].model_dump() | changes
    statistics = stats.compute_stats(split.images)
    training = Training(variant.model_dump(), recipe, split, statistics, seed=0)
    bar = tqdm(disable=True)

    def train() -> None:
        training.rows = []  # always the first epoch
        training._fit_epoch(0, bar)

    return train


def tutorial(key: str, split: Split) -> Callable[[], None]:
    """An epoch as the tutorials run it: images in memory as floats, one-hot labels."""
    import keras

    config = params.load()
    variant = config.variants[key]
    batch = config.recipes[variant.recipe].batch_size
    labels = keras.utils.to_categorical(split.labels, len(split.classes))
    if key == "cifar10-deep-bn":
        model = compiled(variant.model_dump(), split, keras.optimizers.RMSprop(0.001))
        return augmented_epoch(model, standardized(split.images, split.images), labels, batch)
    images = split.images.astype("float32") / 255.0
    model = compiled(variant.model_dump(), split, keras.optimizers.SGD(0.01, momentum=0.9))
    return lambda: model.fit(images, labels, batch_size=batch, epochs=1, verbose=0)


def compiled(variant: dict[str, Any], split: Split, optimizer: Any) -> Any:
    """The network as the tutorials compile it: in float32, with probabilities as outputs."""
    import keras

    from stages.training.fitting import build_core

    keras.config.set_dtype_policy("float32")
    core = build_core(variant, split.images.shape[1:], len(split.classes))
    model = keras.Sequential([core, keras.layers.Activation("softmax")])
    model.compile(optimizer, loss="categorical_crossentropy", metrics=["accuracy"])
    return model


def standardized(images: np.ndarray, training: np.ndarray) -> np.ndarray:
    """Images with the mean and deviation of the training images' pixels taken away: float32."""
    training = training.astype("float32")
    scaled: np.ndarray = (images - np.mean(training)) / (np.std(training) + 1e-7)
    return scaled.astype("float32")


def augmented_epoch(
    model: Any, images: np.ndarray, labels: np.ndarray, batch: int
) -> Callable[[], None]:
    """An epoch of `fit` on an ImageDataGenerator, as deep_bn's source has it."""
    import tensorflow as tf

    generator = tf.keras.preprocessing.image.ImageDataGenerator(
        rotation_range=15, width_shift_range=0.1, height_shift_range=0.1, horizontal_flip=True
    )
    generator.fit(images[:1000])
    steps = len(images) // batch
    return lambda: model.fit(
        generator.flow(images, labels, batch_size=batch),
        steps_per_epoch=steps,
        epochs=1,
        verbose=0,
    )


if __name__ == "__main__":
    run(main)
