"""The deep_bn recipe, short: does it reach the same accuracy our way and the tutorial's?

    dvc repro download@cifar10
    python -m benchmarks.same_accuracy [--epochs 10] [--images-per-class 1000] [--seeds 3]

Each seed trains in three ways on the same training images of CIFAR-10; as many again are held out
to validate on. The learning rate falls at the same fractions of the epochs as in the recipe.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.alternation import report
from benchmarks.tutorial import augmented_epoch, compiled, standardized
from stages import stats
from stages.shared import params
from stages.shared.backend import import_keras
from stages.shared.dataset import Split, load_split
from tools.command import count, run

VARIANT = "cifar10-deep-bn"
PRECISIONS = ("float32", "mixed_bfloat16")
DATA = Path(__file__).resolve().parents[1] / "data" / "raw" / "cifar10" / "train"


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare accuracies with the tutorial's loop.")
    parser.add_argument("--epochs", type=count, default=10, help="of each training")
    parser.add_argument("--images-per-class", type=count, default=1000, help="to train on")
    parser.add_argument("--seeds", type=count, default=3, help="trainings of each way")
    args = parser.parse_args()

    import_keras()
    split = load_split(DATA)
    config = params.load()
    variant = config.variants[VARIANT].model_dump()
    recipe = shortened(
        config.recipes[variant["recipe"]].model_dump(), args.epochs, args.images_per_class
    )
    statistics = stats.compute_stats(split.images)
    accuracies: dict[str, list[float]] = {name: [] for name in ("tutorial", *PRECISIONS)}
    for seed in range(args.seeds):
        accuracies["tutorial"].append(in_tutorial(variant, recipe, split, seed))
        for precision in PRECISIONS:
            changed = recipe | {"precision": precision}
            accuracies[precision].append(ours(variant, changed, split, statistics, seed))
        print({name: each[-1] for name, each in accuracies.items()}, flush=True)
    means = {name: round(float(np.mean(each)), 4) for name, each in accuracies.items()}
    report("same_accuracy", vars(args) | {"validation_accuracy": accuracies, "means": means})


def shortened(recipe: dict[str, Any], epochs: int, images_per_class: int) -> dict[str, Any]:
    """The recipe with fewer epochs and images, half of which are validated on."""
    schedule = recipe["schedule"]
    starts = [round(start * epochs / recipe["epochs"]) for start in schedule["from_epochs"]]
    return recipe | {
        "epochs": epochs,
        "schedule": schedule | {"from_epochs": starts},
        "images_per_class": 2 * images_per_class,
        "validation": {"fraction": 0.5, "split": "stratified"},
    }


def ours(
    variant: dict[str, Any],
    recipe: dict[str, Any],
    split: Split,
    statistics: dict[str, Any],
    seed: int,
) -> float:
    """The validation accuracy after a training as the train stage runs it."""
    from stages.training.fitting import Training

    training = Training(variant, recipe, split, statistics, seed)
    with tempfile.TemporaryDirectory() as checkpoints:
        training.fit(Path(checkpoints))
    return round(float(training.rows[-1]["val_accuracy"]), 4)


def in_tutorial(variant: dict[str, Any], recipe: dict[str, Any], split: Split, seed: int) -> float:
    """The same with `fit` on an ImageDataGenerator, in float32."""
    import keras

    from stages.training.optimization import learning_rates
    from stages.training.split import split_indices

    training, validation = split_indices(
        split.labels, recipe["images_per_class"], 0.5, recipe["validation"]["split"]
    )
    images, held_out = split.images[training], split.images[validation]
    labels = keras.utils.to_categorical(split.labels, len(split.classes))
    keras.utils.set_random_seed(seed)
    model = compiled(variant, split, keras.optimizers.RMSprop(0.001))
    epoch = augmented_epoch(
        model, standardized(images, images), labels[training], recipe["batch_size"]
    )
    for rate in learning_rates(recipe, steps_per_epoch=1):
        model.optimizer.learning_rate = rate
        epoch()
    logs = model.evaluate(
        standardized(held_out, images), labels[validation], verbose=0, return_dict=True
    )
    return round(float(logs["accuracy"]), 4)


if __name__ == "__main__":
    run(main)
