"""What checkpoints cost: epochs of the deep-bn recipe with and without one, in alternation.

    python -m benchmarks.checkpoint_cost [--images 50000] [--pairs 5]

The images are random numbers, which take as long as real ones.
"""

import argparse
import itertools
import statistics
import tempfile
import time
from pathlib import Path

from tqdm import tqdm

from benchmarks.alternation import alternate, compare, random_split, report
from stages import stats
from stages.shared import params
from stages.shared.backend import import_keras
from tools.command import count, run


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what checkpoints cost.")
    parser.add_argument("--images", type=count, default=50_000, help="images per epoch")
    parser.add_argument("--pairs", type=count, default=5, help="epochs of each kind")
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
    numbers = itertools.count()
    writing: list[float] = []

    def fit() -> None:
        training._fit_epoch(next(numbers), bar)

    def fit_and_save() -> None:
        fit()
        before = time.perf_counter()
        training._save(Path(folder))
        writing.append(time.perf_counter() - before)

    with (
        tqdm(disable=True) as bar,
        tempfile.TemporaryDirectory(dir=".", prefix=".checkpoints-") as folder,  # on this disk
    ):
        seconds = alternate({"without": fit, "with": fit_and_save}, args.pairs)
    result = {
        "images": args.images,
        "checkpoint_seconds": round(statistics.median(writing[1:]), 4),
        "epochs": compare(seconds, base="without"),
    }
    report("checkpoint_cost", result)


if __name__ == "__main__":
    run(main)
