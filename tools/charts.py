"""The charts of a report: Vega-Lite specifications with their data."""

import itertools
import math
from collections import defaultdict
from typing import Any

import numpy as np

from tools.formatting import label, readable
from tools.results import Result

SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"
MANY_CLASSES = 30  # beyond this, the most frequent confusions stand for the matrix
TOP_CONFUSIONS = 30
CALIBRATION_IMAGES = 10  # a bin of fewer tells nothing
CONFIDENCE = f"Confidence, first seed, bins of {CALIBRATION_IMAGES} images and more"
FEW_EPOCHS = 30  # up to this, each epoch is a point
EPOCHS = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000]  # what the axis of epochs is labelled with
FEW_NAMES = 8  # up to this, points are labelled; beyond it, only tooltips name them
HEIGHT = 320
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


def rounded(value: Any) -> float:
    """Five digits: more than a screen can show."""
    return float(f"{value:.5g}")
