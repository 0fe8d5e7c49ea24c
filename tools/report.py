"""A report of all results: a folder of HTML that opens from disk, without a network.

    python -m tools.report [DATASET ...] [--out report] [--revs main my-branch exp-name ...]

Several revisions stand side by side. Tables sort by a click on a column's title; in charts, what is
clicked on in the legend stands out.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
import yaml
from PIL import Image, UnidentifiedImageError

from stages.shared.stage import StageError, duration, outputs, size
from tools import compare
from tools.charts import make_charts
from tools.command import run
from tools.formatting import interval, label, measured, published, readable
from tools.plots_page import vega_script
from tools.results import (
    RESULTS,
    WORKSPACE,
    Result,
    Revision,
    check_out_folder,
    datasets_of,
    leaves,
    revisions,
)

TEMPLATE = Path(__file__).with_suffix(".html")
GALLERIES = ("first_predictions", "mistakes", "confusion")


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a report that opens without a network.")
    parser.add_argument("datasets", nargs="*", help="keys of params.yaml's datasets; all if none")
    parser.add_argument("--out", type=Path, default=Path("report"), help="the folder to write")
    parser.add_argument("--revs", nargs="+", default=[], help="commits, branches, experiments")
    args = parser.parse_args()

    revs = revisions(args.revs)
    datasets = datasets_of(revs, args.datasets)
    results = [result for rev in revs for result in rev.results(datasets)]
    if not any(result.metrics for result in results):
        raise StageError("There are no results to report yet. `make demo` or `dvc repro` first.")
    with outputs(check_out_folder(args.out, "index.html", "vega.js")) as (partial,):
        partial.mkdir()
        write(partial, revs, results)
        (partial / "vega.js").write_text(vega_script(), encoding="utf-8")
    evaluated = sum(bool(result.metrics) for result in results)
    print(
        f"report: {evaluated} of {len(results)} variants with results in {args.out / 'index.html'},"
        f" {size(args.out)}"
    )


def write(folder: Path, revs: list[Revision], results: list[Result]) -> None:
    several = len(revs) > 1
    base = revs[0] if several else None
    by_dataset: dict[str, list[Result]] = defaultdict(list)
    for result in results:
        by_dataset[result.dataset].append(result)
    datasets = [section(folder, name, members, base) for name, members in by_dataset.items()]
    labelled = {label(result, several): result for result in results}
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False}
    environment.filters["p"] = lambda p: compare.p_text(p).removeprefix("= ")
    page = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        title="CIFAR experiments",
        revisions=revs,
        columns=columns(several),
        datasets=datasets,
        parameters=[
            {
                "label": name if result.is_trained else f"{name}, as params.yaml has it",
                "text": yaml.safe_dump(result.hyperparameters, sort_keys=False),
            }
            for name, result in labelled.items()
        ],
        records=[
            {"label": name, "text": json.dumps(result.record, indent=1)}
            for name, result in labelled.items()
            if result.record
        ],
        specs={chart["id"]: chart["spec"] for each in datasets for chart in each["charts"]},
        flat={
            name: {key: json.dumps(value) for key, value in leaves(result.hyperparameters)}
            for name, result in labelled.items()
        },
    )
    (folder / "index.html").write_text(page, encoding="utf-8")


def section(
    folder: Path, dataset: str, results: list[Result], base: Revision | None
) -> dict[str, Any]:
    """All that the page shows of a dataset; copies its figures into the folder."""
    several = base is not None
    order = list(dict.fromkeys(result.variant for result in results))
    results = sorted(results, key=lambda each: order.index(each.variant))  # revisions together
    with_metrics = [result for result in results if result.metrics]
    evaluated = sorted(with_metrics, key=lambda result: -result.metrics["accuracy"])
    pairs, note = comparisons(with_metrics, base)
    return {
        "name": dataset,
        "rows": [cells(result, several) for result in results],
        "charts": make_charts(dataset, evaluated, several),
        "comparisons": pairs,
        "comparison_note": note,
        "galleries": galleries(folder, dataset, evaluated, several),
    }


class Column(NamedTuple):
    """A column of the results table.

    Attributes:
        key: of a result's row: by what it sorts; where that is None, the cell is a dash.
        text: what a cell shows of a row.
        style: the cells' class in the page.
    """

    title: str
    key: str
    text: Callable[[dict[str, Any]], str]
    style: str = "number"


COLUMNS = (
    Column("variant", "variant", lambda row: row["variant"], ""),
    Column("revision", "revision", lambda row: row["revision"], ""),
    Column("accuracy", "accuracy", measured),
    Column("95 % interval", "accuracy_low", interval, ""),
    Column("published", "published", published),
    Column("top-5 accuracy", "top_5_accuracy", lambda row: f"{row['top_5_accuracy']:.2%}"),
    Column("loss", "loss", lambda row: f"{row['loss']:.3f}"),
    Column("calibration error", "calibration_error", lambda row: f"{row['calibration_error']:.3f}"),
    Column("parameters", "parameters", lambda row: f"{row['parameters']:,}"),
    Column("seeds", "seeds", lambda row: str(row["seeds"])),
    Column("training, per seed", "train_seconds", lambda row: duration(row["train_seconds"])),
    Column("device", "device", lambda row: row["device"], "wrap"),
)


def columns(several: bool) -> list[Column]:
    """Those shown, of one revision or several."""
    return [column for column in COLUMNS if several or column.key != "revision"]


def cells(result: Result, several: bool) -> list[dict[str, str]]:
    """A line of the results table: what is read, and by what the column sorts."""
    row, found = result.row, []
    for column in columns(several):
        value = row[column.key]
        shown = {"value": "", "text": "-"}
        if value is not None:
            shown = {"value": str(value), "text": column.text(row)}
        found.append(shown | {"style": column.style})
    return found


def comparisons(results: list[Result], base: Revision | None) -> tuple[list[dict[str, Any]], str]:
    """The best variant against each other one; of several revisions, each variant's against its
    own in the base. Only those whose predictions this machine has.

    Args:
        results: of one revision or several.
        base: the revision that the others are held against; None if there is only one.

    Returns:
        The comparisons, and what to know about them; empty if there is nothing to say.
    """
    several = base is not None
    there = [result for result in results if result.predictions is not None]
    missing = [label(result, several) for result in results if result.predictions is None]
    if not there:
        return [], ""
    rows: list[dict[str, Any]] = []
    alike, other = [], []
    for a, b in to_compare(there, base):
        labels = {"a": label(a, several), "b": label(b, several)}
        one, two = compare.load(a), compare.load(b)
        if one.images != two.images:
            other.append(labels["a"])
        elif several and np.array_equal(one.right, two.right):
            alike.append(labels["a"])
        else:
            rows.append(labels | compare.compare(one.right, two.right))
    # Enough though the best was chosen on these images, as what is claimed is that others are not
    # the best (Edwards and Hsu 1983).
    for row in rows:
        row["verdict"] = compare.verdict(row, len(rows))
    notes = [comparison_note(rows, several)] if rows else []
    notes += [
        f"{what}: {', '.join(names)}."
        for what, names in (
            ("The same images correct", alike),
            ("Other test images, not compared", other),
            ("No predictions here, left out", missing),
        )
        if names
    ]
    return rows, " ".join(notes)


def to_compare(there: list[Result], base: Revision | None) -> list[tuple[Result, Result]]:
    """The best with each other one; of several revisions, each variant with its own in the base."""
    if base is None:
        best, *others = sorted(there, key=lambda result: -result.metrics["accuracy"])
        return [(best, each) for each in others]
    of_base = {result.variant: result for result in there if result.revision is base}
    others = [each for each in there if each.revision is not base]
    return [(each, of_base[each.variant]) for each in others if each.variant in of_base]


def comparison_note(rows: list[dict[str, Any]], several: bool) -> str:
    how = "Each variant against the first revision's" if several else "The best against each other"
    best = "" if several else " 'Better' than another means that the other is not the best."
    note = (
        f"{how}, on the same test images. The interval and p are for other test images and, with "
        "several seeds, for other seeds too (t-test). "
        f"Verdicts alone are corrected for the number of comparisons, {len(rows)}.{best}"
    )
    if any(row["only_a_right"] is not None for row in rows):
        note += (
            " With one seed each, two trained models are compared, and not two recipes: other "
            "seeds may reverse it. p is then that of McNemar's exact test, and may be above 0.05 "
            "where the interval just leaves out zero."
        )
    return note


def galleries(
    folder: Path, dataset: str, results: list[Result], several: bool
) -> list[dict[str, Any]]:
    """Copies the figures of images beside the page, a gallery per variant and one of the data."""
    wanted = [("Training images", ["images", "augmented_images"], each) for each in results[:1]]
    wanted += [
        (label(each, several), [f"{each.variant}-{kind}" for kind in GALLERIES], each)
        for each in results
    ]
    found = []
    for title, figures, result in wanted:
        images = []
        for figure in figures:
            path = RESULTS / "figures" / dataset / f"{figure}.png"
            data = result.revision.read(path)
            if data is None:
                continue
            state = result.revision.commit or WORKSPACE
            file = Path("figures", state, dataset, f"{figure}.png")
            try:
                width, height = Image.open(BytesIO(data)).size
            except (UnidentifiedImageError, Image.DecompressionBombError):
                raise StageError(
                    f"{path} must be an image. Received: none. `dvc repro plot@{dataset}`."
                ) from None
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_bytes(data)
            text = f"{readable(figure)}, {title}"
            images.append({"file": str(file), "text": text, "width": width, "height": height})
        if images:
            found.append({"title": title, "images": images})
    return found


if __name__ == "__main__":
    run(main)
