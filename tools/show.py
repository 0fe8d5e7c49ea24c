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

from tools.command import plain, run
from tools.results import PUBLISHED_OF, RESULTS, Result, datasets_of, revisions

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
        figure(row["loss"], ".3f"),
        figure(row["parameters"], ","),
        figure(row["seeds"], ""),
        figure(row["train_seconds"], ",.0f"),
        row["device"] or "-",
    )


def figure(value: float | None, form: str) -> str:
    """A number in a form; a dash is what is not there."""
    return "-" if value is None else format(value, form)


def measured(row: dict[str, Any]) -> str:
    """An accuracy with its standard deviation over seeds, if there are several."""
    deviation = row.get("accuracy_std")
    spread = "" if deviation is None else f" ± {deviation:.2%}"
    return f"{row['accuracy']:.2%}{spread}"


def interval(row: dict[str, Any]) -> str:
    """The 95 % interval of an accuracy (`results.accuracy_interval`)."""
    return f"{row['accuracy_low']:.2%} to {row['accuracy_high']:.2%}"


def published(row: dict[str, Any]) -> str:
    """A source's accuracy, and what to know about it."""
    if row["published"] is None:
        return "-"
    of = PUBLISHED_OF.get(row["variant"])
    return f"{row['published']:.2%}" + (f" ({of})" if of else "")


def table(rows: list[tuple[str, ...]]) -> str:
    """Left-aligned columns, with a rule under the first row."""
    rows = [tuple(map(plain, row)) for row in rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(line.rstrip() for line in lines)


def markdown(rows: list[tuple[str, ...]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines.insert(1, "|" + " --- |" * len(rows[0]))
    return "\n".join(lines)


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
