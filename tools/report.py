"""A report of all results: a folder of HTML that opens from disk, without a network.

    python -m tools.report [DATASET ...] [--out report] [--revs main my-branch exp-name ...]

Several revisions stand side by side. Tables sort by a click on a column's title; in charts, what is
clicked on in the legend stands out.
"""

import argparse
import itertools
import json
import math
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
from tools.command import run
from tools.plots_page import vega_script
from tools.results import (
    RESULTS,
    WORKSPACE,
    Result,
    Revision,
    datasets_of,
    leaves,
    replaceable,
    revisions,
)
from tools.show import interval, measured, published

TEMPLATE = Path(__file__).with_suffix(".html")
SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"
MANY_CLASSES = 30  # beyond this, the most frequent confusions stand for the matrix
TOP_CONFUSIONS = 30
CALIBRATION_IMAGES = 10  # a bin of fewer tells nothing
CONFIDENCE = f"Confidence, first seed, bins of {CALIBRATION_IMAGES} images and more"
FEW_EPOCHS = 30  # up to this, each epoch is a point
EPOCHS = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000]  # what the axis of epochs is labelled with
FEW_NAMES = 8  # up to this, points are labelled; beyond it, only tooltips name them
HEIGHT = 320
GALLERIES = ("first_predictions", "mistakes", "confusion")
PERCENT = {"format": ".0%"}
COLOURS = 10
STYLES = {
    "strokeDash": ([1, 0], [6, 3], [2, 2], [8, 3, 2, 3]),
    "shape": ("circle", "square", "triangle-up", "diamond"),
}
CHOSEN = {
    "name": "chosen",
    "select": {"type": "point", "fields": ["variant"]},
    "bind": "legend",
}


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
    with outputs(replaceable(args.out, "index.html", "vega.js")) as (partial,):
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
                "text": yaml.safe_dump(result.parameters, sort_keys=False),
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
            name: {key: json.dumps(value) for key, value in leaves(result.parameters)}
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


def label(result: Result, several: bool) -> str:
    return f"{result.variant} ({result.revision.name})" if several else result.variant


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


def make_charts(dataset: str, results: list[Result], several: bool) -> list[dict[str, Any]]:
    """The charts of a dataset that there is data for, each with its Vega-Lite specification."""
    made = [
        ("curves", "Learning curves, mean over seeds", curves_chart(results, several)),
        ("time", "Accuracy and training time", cost_chart(results, several, "train_seconds")),
        ("size", "Accuracy and number of parameters", cost_chart(results, several, "parameters")),
        ("classes", "Accuracy per class", classes_chart(results, several)),
        ("calibration", "Calibration", calibration_chart(results, several)),
        ("confusion", "Confusion", confusion_chart(results, several)),
    ]
    return [
        {"id": f"{dataset}-{name}", "title": title, "spec": spec, "wide": name == "curves"}
        for name, title, spec in made
        if spec is not None
    ]


def chart(values: list[dict[str, Any]], **spec: Any) -> dict[str, Any] | None:
    """A specification as wide as its place; None if there is nothing to draw."""
    if not values:
        return None
    base = {"$schema": SCHEMA, "data": {"values": values}, "width": "container", "height": HEIGHT}
    return base | spec


def by_variant(
    several: bool, results: list[Result], values: list[dict[str, Any]], kind: str
) -> dict[str, Any]:
    """A colour for each variant, the same in all charts, and a dash or shape for each revision; if
    there is only one, for each ten variants. What is clicked on in the legend stands out.

    Args:
        values: what the chart draws; the legend has no other variants.
        kind: `strokeDash` or `shape`.
    """
    legend: dict[str, Any] = {"orient": "bottom", "columns": 3, "symbolLimit": 0, "labelLimit": 220}
    if kind == "strokeDash":
        legend |= {"symbolType": "stroke", "symbolSize": 400, "symbolStrokeWidth": 2}
    there = {value["variant"] for value in values}
    names = sorted({result.variant for result in results})
    variant = {
        "field": "variant",
        "type": "nominal",
        "title": None,
        "legend": legend | {"values": [name for name in names if name in there]},
    }
    many = several and len(names) > COLOURS
    scheme = {"scheme": f"tableau{2 * COLOURS if many else COLOURS}"}
    encoding: dict[str, Any] = {
        "color": variant | {"scale": {"domain": names} | scheme},
        "opacity": {"condition": {"param": "chosen", "value": 1}, "value": 0.08},
    }
    if several:
        revision = {"field": "revision", "type": "nominal", "title": "Revision"}
        encoding[kind] = revision | {"legend": legend}
    elif len(names) > COLOURS:
        styles = STYLES[kind]
        drawn = [styles[place // COLOURS % len(styles)] for place in range(len(names))]
        encoding[kind] = variant | {"scale": {"domain": names, "range": drawn}}
    return encoding


def tooltips(encoding: dict[str, Any]) -> dict[str, Any]:
    """An invisible layer of points that show tooltips, as a line's mark has none per epoch."""
    mark = {"type": "point", "filled": True, "size": 80, "opacity": 0}
    return {"mark": mark | {"tooltip": {"content": "data"}}, "encoding": encoding}


MEASURES = {
    "accuracy": "Training accuracy, on augmented images",
    "loss": "Training loss, as the recipe defines it",
    "val_accuracy": "Validation accuracy",
    "val_loss": "Validation loss",
}


def curves(results: list[Result]) -> list[dict[str, Any]]:
    """Each epoch's means over the seeds, of what is a number."""
    values: list[dict[str, Any]] = []
    for result, (column, title) in itertools.product(results, MEASURES.items()):
        found: dict[int, list[float]] = defaultdict(list)
        for row in result.curves:
            if math.isfinite(float(row.get(column) or "nan")):
                found[int(row["epoch"])].append(float(row[column]))
        values += [
            {
                "variant": result.variant,
                "revision": result.revision.name,
                "measure": title,
                "epoch": epoch,
                "value": rounded(np.mean(each)),
            }
            for epoch, each in sorted(found.items())
        ]
    return values


def curves_chart(results: list[Result], several: bool) -> dict[str, Any] | None:
    values = curves(results)
    there = [t for t in MEASURES.values() if any(value["measure"] == t for value in values)]
    few = max((value["epoch"] for value in values), default=0) <= FEW_EPOCHS
    place = {
        "x": {
            "field": "epoch",
            "type": "quantitative",
            "title": "Epoch",
            "scale": {"type": "log", "nice": False},  # one trains for two epochs, one for a hundred
            "axis": {"values": EPOCHS},
        },
        "y": {
            "field": "value",
            "type": "quantitative",
            "title": "Loss or accuracy",
            "scale": {"zero": False},
        },
    }
    return chart(
        values,
        params=[choice("measure", "Show ", there, 0)],
        transform=[{"filter": "datum.measure === measure"}],
        layer=[
            {
                "params": [CHOSEN],
                "mark": {"type": "line", "point": few},
                "encoding": place | by_variant(several, results, values, "strokeDash"),
            },
            tooltips(place),
        ],
    )


def cost_chart(results: list[Result], several: bool, cost: str) -> dict[str, Any] | None:
    titles = {"train_seconds": "Training time in seconds, per seed", "parameters": "Parameters"}
    values = [
        {
            "variant": row["variant"],
            "revision": row["revision"],
            "cost": row[cost],
            **{name: rounded(row[name]) for name in ("accuracy", "accuracy_low", "accuracy_high")},
        }
        for row in (result.row for result in results)
        if row[cost]
    ]
    x = {
        "field": "cost",
        "type": "quantitative",
        "title": titles[cost],
        "scale": {"type": "log", "nice": True, "padding": 30},
        "axis": {"format": "~s", "tickCount": 5, "grid": False},
    }
    y = {"type": "quantitative", "scale": {"zero": False, "padding": 15}}
    y |= {"axis": {"format": "~%"}}  # as many digits as it takes
    colours = by_variant(several, results, values, "shape")
    shape = {"shape": colours.pop("shape")} if "shape" in colours else {}
    layers: list[dict[str, Any]] = [
        {
            "mark": "rule",
            "encoding": {
                "x": x,
                "y": y | {"field": "accuracy_low", "title": "Test accuracy, 95 % interval"},
                "y2": {"field": "accuracy_high"},
                **colours,
            },
        },
        {
            "params": [CHOSEN],
            "mark": {"type": "point", "filled": True, "size": 70, "tooltip": {"content": "data"}},
            "encoding": {
                "x": x,
                "y": y | {"field": "accuracy", "title": "Test accuracy, 95 % interval"},
                **colours,
                **shape,
            },
        },
    ]
    if len(values) <= FEW_NAMES and not several:
        for layer in layers:
            layer["encoding"]["color"] = colours["color"] | {"legend": None}
        text = {"type": "text", "dy": -10, "align": "center"}
        place = {"x": x, "y": y | {"field": "accuracy"}, "text": {"field": "variant"}}
        layers.append({"mark": text, "encoding": place})
    return chart(values, layer=layers)


def seeds_of(result: Result) -> list[dict[str, Any]]:
    return list(result.details.get("seeds", {}).values())


def classes_chart(results: list[Result], several: bool) -> dict[str, Any] | None:
    """Two variants of choice, class by class."""
    values: list[dict[str, Any]] = []
    for result in results:
        seeds = seeds_of(result)
        for number, name in enumerate(result.details.get("classes", [])):
            recall = np.mean([seed["per_class"][number]["recall"] for seed in seeds])
            entry = {"variant": label(result, several), "class": readable(name)}
            values.append(entry | {"recall": rounded(recall)})
    options = list(dict.fromkeys(value["variant"] for value in values))
    bars = len({value["class"] for value in values})
    return chart(
        values,
        height={"step": 22 if bars <= MANY_CLASSES else 14},
        params=[
            choice("first", "Variant ", options, 0),
            choice("second", "beside ", options, 1),
        ],
        transform=[{"filter": "datum.variant === first || datum.variant === second"}],
        mark={"type": "bar", "tooltip": True},
        encoding={
            "y": {"field": "class", "type": "nominal", "title": "Class", "sort": None},
            "yOffset": {"field": "variant"},
            "x": {
                "field": "recall",
                "type": "quantitative",
                "title": "Recall on the class, mean over seeds",
                "axis": PERCENT,
                "scale": {"domain": [0, 1]},
            },
            "color": {
                "field": "variant",
                "type": "nominal",
                "title": None,
                "legend": {"orient": "bottom", "columns": 1, "labelLimit": 400},
            },
        },
    )


def choice(name: str, title: str, options: list[str], position: int) -> dict[str, Any]:
    """A drop-down list that begins with the option at a position."""
    bind = {"input": "select", "options": options, "name": title}
    value = options[min(position, len(options) - 1)] if options else ""
    return {"name": name, "value": value, "bind": bind}


def calibration_chart(results: list[Result], several: bool) -> dict[str, Any] | None:
    values = [
        {
            "variant": result.variant,
            "revision": result.revision.name,
            "confidence": rounded(each["confidence"]),
            "accuracy": rounded(each["accuracy"]),
            "images": each["images"],
        }
        for result in results
        for seed in seeds_of(result)[:1]
        for each in seed["calibration"]
        if each["images"] >= CALIBRATION_IMAGES
    ]
    share = {"type": "quantitative", "axis": PERCENT, "scale": {"domain": [0, 1]}}
    place = {
        "x": share | {"field": "confidence", "title": CONFIDENCE},
        "y": share | {"field": "accuracy", "title": "Share that is right"},
    }
    return chart(
        values,
        layer=[
            {
                "data": {"values": [{"at": 0}, {"at": 1}]},
                "mark": {"type": "line", "strokeDash": [4, 4], "color": "gray"},
                "encoding": {axis: each | {"field": "at"} for axis, each in place.items()},
            },
            {
                "params": [CHOSEN],
                "mark": {"type": "line", "point": True},
                "encoding": place | by_variant(several, results, values, "strokeDash"),
            },
            tooltips(place),
        ],
    )


def confusions(result: Result, name: str) -> list[dict[str, Any]]:
    """The cells of a variant's confusion matrix that are not empty, summed over the seeds.

    With many classes: those beside the diagonal, and the most frequent only.
    """
    classes = [readable(each) for each in result.details["classes"]]
    counts = np.sum([seed["confusion"] for seed in seeds_of(result)], axis=0)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    most = share.size
    if len(classes) > MANY_CLASSES:
        np.fill_diagonal(share, 0)
        most = TOP_CONFUSIONS
    places = np.argsort(-share, axis=None, kind="stable")[:most]
    return [
        {
            "variant": name,
            "true": classes[true],
            "predicted": classes[predicted],
            "share": rounded(share[true, predicted]),
        }
        for true, predicted in zip(*np.unravel_index(places, share.shape), strict=True)
        if share[true, predicted] > 0
    ]


def confusion_chart(results: list[Result], several: bool) -> dict[str, Any] | None:
    """A variant of choice: its confusion matrix or, with many classes, what is confused most."""
    there = [result for result in results if seeds_of(result)]
    values = [each for result in there for each in confusions(result, label(result, several))]
    if not values:
        return None
    classes = [readable(name) for name in there[0].details["classes"]]
    options = list(dict.fromkeys(value["variant"] for value in values))
    drawn = confusion_bars() if len(classes) > MANY_CLASSES else confusion_matrix(classes)
    return chart(
        values,
        params=[choice("shown", "Variant ", options, 0)],
        transform=[
            {"filter": "datum.variant === shown"},
            {"calculate": "datum.true + ' taken for ' + datum.predicted", "as": "pair"},
        ],
        **drawn,
    )


def confusion_bars() -> dict[str, Any]:
    x = {"field": "share", "type": "quantitative", "axis": PERCENT}
    return {
        "height": {"step": 14},
        "mark": {"type": "bar", "tooltip": True},
        "encoding": {
            "y": {"field": "pair", "type": "nominal", "title": "Confusion", "sort": "-x"},
            "x": x | {"title": "Share of the true class's test images"},
        },
    }


def confusion_matrix(classes: list[str]) -> dict[str, Any]:
    scale = {"scheme": "blues", "domain": [0, 1]}
    shade = {"field": "share", "type": "quantitative", "legend": None, "scale": scale}
    dark = {"test": "datum.share > 0.5", "value": "white"}
    return {
        "encoding": {
            "x": {"field": "predicted", "type": "nominal", "title": "Predicted", "sort": classes},
            "y": {"field": "true", "type": "nominal", "title": "True", "sort": classes},
        },
        "layer": [
            {"mark": {"type": "rect", "tooltip": True}, "encoding": {"color": shade}},
            {
                "mark": {"type": "text", "fontSize": 10},
                "transform": [{"filter": "datum.share >= 0.005"}],
                "encoding": {
                    "text": {"field": "share", "type": "quantitative", "format": ".0%"},
                    "color": {"condition": dark, "value": "black"},
                },
            },
        ],
    }


def readable(name: str) -> str:
    return name.replace("_", " ")


def rounded(value: Any) -> float:
    """Five digits: more than a screen can show."""
    return float(f"{value:.5g}")


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
