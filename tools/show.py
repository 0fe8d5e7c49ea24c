"""The results so far as a table in the terminal.

    python -m tools.show [DATASET ...]

Reads only what git has: params.yaml, results/metrics and results/runs.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from stages.shared import params
from stages.shared.stage import StageError, run

RESULTS = Path("results")
HEADER = ("variant", "accuracy", "95 % interval", "loss", "parameters", "seeds", "s/seed", "device")


def main() -> None:
    parser = argparse.ArgumentParser(description="Show the results so far.")
    parser.add_argument("datasets", nargs="*", help="keys of params.yaml's datasets; all if none")
    args = parser.parse_args()

    config = params.load()
    for dataset in args.datasets:
        config.dataset(dataset)  # complains if there is no such dataset
    for dataset in args.datasets or config.datasets:
        names = [name for name, variant in config.variants.items() if variant.dataset == dataset]
        print(f"\n{dataset}\n{table([HEADER, *(row(dataset, name) for name in names)])}")
        figures = RESULTS / "figures" / dataset
        if figures.is_dir():
            print(f"Figures: {figures}/ ({len(list(figures.iterdir()))} PNG files)")


def row(dataset: str, variant: str) -> tuple[str, ...]:
    """One variant's line; what is not there yet is a dash."""
    metrics = read(RESULTS / "metrics" / dataset / f"{variant}.json")
    record = read(RESULTS / "runs" / dataset / f"{variant}.json")
    if not metrics:
        return (variant, "-", "not evaluated yet", *["-"] * (len(HEADER) - 3))
    spread = f" ± {metrics['accuracy_std']:.2%}" if "accuracy_std" in metrics else ""
    return (
        variant,
        f"{metrics['accuracy']:.2%}{spread}",
        f"{metrics['accuracy_low']:.2%} to {metrics['accuracy_high']:.2%}",
        f"{metrics['loss']:.3f}",
        f"{metrics['parameters']:,}",
        str(metrics["seeds"]),
        f"{record['train_seconds']:,.0f}" if record else "-",
        record["environment"][0]["device"] if record else "-",
    )


def read(path: Path) -> dict[str, Any]:
    """A JSON file's values, or none if there is no such file."""
    try:
        values: dict[str, Any] = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise StageError(f"{path} must be JSON. Received: {error}. Run `dvc repro`.") from None
    return values


def table(rows: list[tuple[str, ...]]) -> str:
    """Left-aligned columns, with a rule under the first row."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(line.rstrip() for line in lines)


if __name__ == "__main__":
    run(main)
