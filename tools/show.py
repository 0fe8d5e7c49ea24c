"""The results so far as a table in the terminal.

    python -m tools.show [DATASET ...] [--sort COLUMN] [--revs REV ...] [--experiments]
                         [--md | --csv | --json]

Reads only what git has: params.yaml, dvc.lock, results/metrics and results/runs. The figures that
it counts are those that lie here, whatever --revs names.
"""

import argparse
import csv
import json
import sys
from typing import Any

from tools.command import run
from tools.formatting import interval, markdown, measured, number, table
from tools.results import RESULTS, Result, datasets_of, revisions

HEADER = ("variant", "accuracy", "95 % interval", "loss", "parameters", "seeds", "s/seed", "device")
SORTABLE = ("accuracy", "loss", "parameters", "seeds", "train_seconds", "variant")


def main() -> None:
    args = parse_arguments()
    revs = revisions(args.revs, args.experiments)
    datasets = datasets_of(revs, args.datasets)
    tables = {
        dataset: ordered(
            [result for rev in revs for result in rev.results([dataset])],
            args.sort,
        )
        for dataset in datasets
    }
    if args.format in ("csv", "json"):
        rows = [{"dataset": d} | each.row for d, found in tables.items() for each in found]
        print_rows(rows, args.format)
        return
    for dataset, found in tables.items():
        cells = [(*HEADER, *["revision"] * (len(revs) > 1))]
        cells += [(*line(each), *[each.revision.name] * (len(revs) > 1)) for each in found]
        if args.format == "md":
            print(f"\n**{dataset}**\n\n{markdown(cells)}")
            continue
        print(f"\n{dataset}\n{table(cells)}")
        figures = RESULTS / "figures" / dataset
        if figures.is_dir():
            print(f"Figures: {figures}/ ({len(list(figures.iterdir()))} PNG files)")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Show the results so far.")
    parser.add_argument("datasets", nargs="*", help="keys of params.yaml's datasets; all if none")
    parser.add_argument("--sort", choices=SORTABLE, help="order by this; the best accuracy first")
    parser.add_argument("--revs", nargs="+", default=[], help="commits, branches, experiments")
    parser.add_argument("--experiments", action="store_true", help="add those of `dvc exp`")
    formats = parser.add_mutually_exclusive_group()
    unrounded = "every figure, unrounded; shares of 1, accuracy_low and _high as in the table"
    for name, what in (("md", "as Markdown"), ("csv", unrounded), ("json", unrounded)):
        formats.add_argument(
            f"--{name}", dest="format", action="store_const", const=name, help=what
        )
    return parser.parse_args()


def ordered(results: list[Result], column: str | None) -> list[Result]:
    """Sorted by a column; those that have nothing there come last."""
    if column is None:
        return results
    there = [result for result in results if result.row[column] is not None]
    there.sort(key=lambda result: result.row[column], reverse=column == "accuracy")
    return there + [result for result in results if result.row[column] is None]


def line(result: Result) -> tuple[str, ...]:
    """One variant's cells; dashes if it has not been evaluated."""
    row = result.row
    if row["accuracy"] is None:
        return (result.variant, "-", "not evaluated yet", *["-"] * (len(HEADER) - 3))
    return (
        result.variant,
        measured(row),
        interval(row),
        number(row["loss"], ".3f"),
        number(row["parameters"], ","),
        number(row["seeds"], ""),
        number(row["train_seconds"], ",.0f"),
        row["device"] or "-",
    )


def print_rows(rows: list[dict[str, Any]], form: str) -> None:
    """Every figure unrounded, for other programs; what is not there is empty, or null."""
    if form == "json":
        print(json.dumps(rows, indent=1))
        return
    if not rows:
        return
    writer = csv.DictWriter(sys.stdout, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)


if __name__ == "__main__":
    run(main)
