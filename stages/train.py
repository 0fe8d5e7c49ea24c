"""Stage train@V: one variant, once per seed, on a GPU if there is one.

Every hyperparameter comes from params.yaml, every path from dvc.yaml. A killed training resumes
after its last whole epoch when it is started again.
"""

import argparse
import csv
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stages.shared import params
from stages.shared.backend import import_keras
from stages.shared.dataset import Split, load_split
from stages.shared.stage import (
    StageError,
    argument_parser,
    detail,
    duration,
    outputs,
    remove,
    run,
    size,
)

if TYPE_CHECKING:
    from stages.training.fitting import Training

EXAMPLES = 16  # augmented images that are kept for the figures


def main() -> None:
    args = parse_arguments()
    config = params.load()
    variant = config.variant(args.variant)
    params.check_config(args.variant, variant)
    recipe = config.recipes[variant.recipe]
    split, stats = load_split(args.data), load_stats(args.stats)
    train(args, variant.model_dump(), recipe.model_dump(), split, stats)


def parse_arguments() -> argparse.Namespace:
    parser = argument_parser("Train one variant of params.yaml.")
    parser.add_argument("variant", help="a key of params.yaml's variants")
    parser.add_argument("--data", type=Path, required=True, help="in: the training split's folder")
    parser.add_argument("--stats", type=Path, required=True, help="in: its statistics, JSON")
    parser.add_argument("--weights", type=Path, required=True, help="out: a folder of .keras files")
    parser.add_argument("--curves", type=Path, required=True, help="out: every epoch, CSV")
    parser.add_argument("--record", type=Path, required=True, help="out: the run record, JSON")
    parser.add_argument("--examples", type=Path, required=True, help="out: augmented images, .npz")
    parser.add_argument(
        "--checkpoints", type=Path, required=True, help="where a killed run resumes"
    )
    return parser.parse_args()


def load_stats(path: Path) -> dict[str, Any]:
    """Reads what the stats stage wrote.

    Raises:
        StageError: if it is missing or damaged.
    """
    try:
        stats: dict[str, Any] = json.loads(path.read_bytes())
        stats["channel"]["mean"], stats["overall"]["std"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StageError(
            f"{path} must be what the stats stage writes. Received: {error}."
        ) from None
    return stats


def train(
    args: argparse.Namespace,
    variant: dict[str, Any],
    recipe: dict[str, Any],
    split: Split,
    stats: dict[str, Any],
) -> None:
    """Trains every seed and writes the outputs. Keras is imported only now, with all in order."""
    import_keras()
    from stages.training import checkpoint, record
    from stages.training.fitting import Training

    record.prepare_device(recipe["deterministic"])
    environment = record.environment(recipe["deterministic"])
    print(
        f"train {args.variant}: {variant['model']} on {environment['device']}, "
        f"seeds {', '.join(map(str, variant['seeds']))}, {recipe['epochs']} epochs each",
        flush=True,
    )
    fingerprint = checkpoint.fingerprint(
        {"variant": variant, "recipe": recipe, "environment": environment},
        [*checkpoint.loaded_code(variant["model"]), *sorted(args.data.iterdir()), args.stats],
    )
    paths = (args.weights, args.curves, args.record, args.examples)
    with checkpoint.only_trainer(args.checkpoints), outputs(*paths) as partials:
        checkpoint.discard_others(args.checkpoints, fingerprint)
        weights, curves, run_record, examples = partials
        weights.mkdir()
        trainings: list[dict[str, Any]] = []
        for seed in variant["seeds"]:
            training = Training(variant, recipe, split, stats, seed)
            if not trainings:
                training.core.summary(print_fn=detail)
                write_examples(training, examples)
            training.fit(args.checkpoints / fingerprint / f"seed-{seed}")
            file = weights / f"seed-{seed}.keras"
            training.save(file)
            trainings.append(training.summary() | {"weights_sha256": checkpoint.sha256(file)})
        write_curves([row for summary in trainings for row in summary["rows"]], curves)
        facts = summarize(trainings)
        facts["environment"] = [environment | {"git_revision": record.git_revision()}]
        record.write_record(facts, run_record, args.record)
    remove(args.checkpoints / fingerprint)
    print(
        f"train {args.variant}: {duration(facts['train_seconds'])} per seed, "
        f"{facts['images_per_second']:,.0f} images/s; last training accuracy "
        f"{trainings[-1]['rows'][-1]['accuracy']:.2%}; {args.weights}, {size(args.weights)}"
    )


def write_examples(training: "Training", path: Path) -> None:
    with open(path, "wb") as file:
        np.savez(file, augmented=training.augmented_examples(EXAMPLES))


def write_curves(rows: list[dict[str, Any]], path: Path) -> None:
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def summarize(trainings: list[dict[str, Any]]) -> dict[str, Any]:
    """The run record's own part: what each training took, and which file it gave."""
    seconds = sum(training["seconds"] for training in trainings)
    return {
        "train_seconds": round(seconds / len(trainings), 2),
        "images_per_second": round(sum(t["images"] for t in trainings) / seconds, 1),
        "trainings": [
            {
                "seed": training["seed"],
                "epochs": len(training["rows"]),
                "kept_epoch": training["kept_epoch"],
                "seconds": round(training["seconds"], 2),
                "weights_sha256": training["weights_sha256"],
            }
            for training in trainings
        ],
    }


if __name__ == "__main__":
    run(main)
