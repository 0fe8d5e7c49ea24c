"""What checkpoints cost: epochs of the deep-bn recipe with and without one, in alternation.

    python -m benchmarks.checkpoint_cost [--images 50000] [--pairs 5]

The images are random numbers, which take as long as real ones. Prints JSON: median seconds of an
epoch either way, of writing a checkpoint, and the ratios of the pairs.
"""

import argparse
import shutil
import statistics
import time
from pathlib import Path

from tqdm import tqdm

from benchmarks.alternation import random_split, report
from stages import stats
from stages.shared import params
from stages.shared.backend import import_keras
from stages.shared.stage import run

FOLDER = Path("checkpoints/benchmark")


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what checkpoints cost.")
    parser.add_argument("--images", type=int, default=50_000, help="images per epoch")
    parser.add_argument("--pairs", type=int, default=5, help="epochs of each kind")
    args = parser.parse_args()

    import_keras()
    from stages.training.fitting import Training

    config = params.load()
    variant = config.variants["cifar10-deep-bn"]
    split = random_split(args.images)
    recipe = config.recipes[variant.recipe].model_dump()
    training = Training(
        variant.model_dump(), recipe, split, stats.compute_stats(split.images), seed=0
    )
    epochs: dict[bool, list[float]] = {False: [], True: []}
    writing = []
    with tqdm(disable=True) as bar:
        training._fit_epoch(0, bar)  # compiles
        for number in range(2 * args.pairs):
            with_checkpoint = number % 2 == 1
            start = time.perf_counter()
            training._fit_epoch(number + 1, bar)
            if with_checkpoint:
                before = time.perf_counter()
                training._save(FOLDER)
                writing.append(time.perf_counter() - before)
            epochs[with_checkpoint].append(time.perf_counter() - start)
    shutil.rmtree(FOLDER)
    ratios = [b / a for a, b in zip(epochs[False], epochs[True], strict=True)]
    result = {
        "images": args.images,
        "epoch_seconds_without": round(statistics.median(epochs[False]), 3),
        "epoch_seconds_with": round(statistics.median(epochs[True]), 3),
        "checkpoint_seconds": round(statistics.median(writing), 4),
        "checkpoint_share": round(statistics.median(writing) / statistics.median(epochs[False]), 5),
        "ratios": [round(ratio, 3) for ratio in ratios],
    }
    report("checkpoint_cost", result)


if __name__ == "__main__":
    run(main)
