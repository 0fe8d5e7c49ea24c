"""Seconds of whole trainings, to 88, 90 and 94 %: the deep_bn tutorial's own loop against ours.

    python -m benchmarks.to_accuracy [--images 4000] [--rounds 3]

Whole trainings are too long to alternate, so epochs of random images are, one at each size that a
recipe trains on; the seconds of a training are the sum over its epochs. The accuracies are those in
git; the tutorial's loop does what cifar10-deep-bn does, so that one is taken for its.
"""

import argparse

from benchmarks.alternation import alternate, compare, random_split, report
from benchmarks.tutorial import ours, tutorial
from stages.shared import params
from stages.shared.backend import import_keras
from tools.command import count, run
from tools.results import Result, Revision

VARIANTS = ("cifar10-deep-bn", "cifar10-air90", "cifar10-air94")
TUTORIAL = "tutorial of cifar10-deep-bn"
TRAINING_IMAGES = 50_000


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare the seconds to an accuracy.")
    parser.add_argument("--images", type=count, default=4_000, help="images per run")
    parser.add_argument("--rounds", type=count, default=3, help="runs of each epoch")
    args = parser.parse_args()

    import_keras()
    config = params.load()
    split = random_split(args.images)
    epochs = {key: epochs_at(config.recipes[config.variants[key].recipe]) for key in VARIANTS}
    ways = {f"{TUTORIAL}, 32": tutorial("cifar10-deep-bn", split)}
    for key, sizes in epochs.items():
        for pixels in sizes:
            resolution = {"from_epochs": [1], "pixels": [pixels]}
            ways[f"{key}, {pixels}"] = ours(key, split, resolution=resolution)
    seconds = alternate(ways, args.rounds)

    epochs[TUTORIAL] = epochs["cifar10-deep-bn"]
    scale = TRAINING_IMAGES / args.images
    trainings = {
        key: [scale * of_training(key, sizes, seconds, turn) for turn in range(args.rounds)]
        for key, sizes in epochs.items()
    }
    table = compare(trainings, base=TUTORIAL)
    for key, row in table.items():
        variant = "cifar10-deep-bn" if key == TUTORIAL else key
        row["accuracy"] = Result(Revision(), "cifar10", variant).metrics.get("accuracy")
    report("to_accuracy", {"images": args.images, "rounds": args.rounds, "trainings": table})


def of_training(
    key: str, sizes: dict[int, int], seconds: dict[str, list[float]], turn: int
) -> float:
    """The seconds of a whole training, by the epochs that were timed in one round."""
    return sum(epochs * seconds[f"{key}, {pixels}"][turn] for pixels, epochs in sizes.items())


def epochs_at(recipe: params.Recipe) -> dict[int, int]:
    """How many of a recipe's epochs train on images of each size in pixels."""
    from stages.training.fitting import pixels_in

    sizes = [pixels_in(recipe.resolution.model_dump(), epoch) for epoch in range(recipe.epochs)]
    return {pixels: sizes.count(pixels) for pixels in sorted(set(sizes))}


if __name__ == "__main__":
    run(main)
