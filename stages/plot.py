"""Stage plot@D: a dataset's variants side by side, as PNG files and as one CSV for `dvc plots`.

The variants are those of the lineup. The same inputs give the same bytes.
"""

import argparse
import csv
import json
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import (
    LogLocator,
    MaxNLocator,
    NullFormatter,
    PercentFormatter,
    StrMethodFormatter,
)

from stages.shared.dataset import Split, load_split
from stages.shared.stage import StageError, argument_parser, outputs, run, size

MANY_CLASSES = 30  # beyond this, figures show the extremes instead of every class
EXTREMES = 15
DAMAGED = (
    ValueError,
    KeyError,
    EOFError,
    NotImplementedError,
    AttributeError,
    zipfile.BadZipFile,
    zlib.error,
)
DASHES = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "^", "D")
CURVES = ("loss", "accuracy", "val_loss", "val_accuracy")

plt.rcParams.update(
    {
        "figure.dpi": 100,
        "savefig.dpi": 100,
        "font.size": 10,
        "axes.titlesize": 11,
        "axes.grid": True,
        "grid.alpha": 0.3,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "figure.constrained_layout.use": True,
    }
)


@dataclass(frozen=True)
class Results:
    """What the stages before wrote about one variant."""

    name: str
    short_name: str  # without the dataset's, which the figure's title has
    metrics: dict[str, Any]
    details: dict[str, Any]
    curves: list[dict[str, str]]
    record: dict[str, Any]
    augmented: np.ndarray
    examples: dict[str, np.ndarray]


def main() -> None:
    parser = argument_parser("Plot all variants of a dataset side by side.")
    parser.add_argument("dataset", help="the dataset's name, for titles")
    parser.add_argument("--lineup", type=Path, required=True, help="in: its variants, JSON")
    parser.add_argument("--data", type=Path, required=True, help="in: the training split's folder")
    for name in ("metrics", "details", "curves", "records", "examples"):
        parser.add_argument(f"--{name}", type=Path, required=True, help="in: the dataset's folder")
    parser.add_argument("--figures", type=Path, required=True, help="out: a folder of PNG files")
    parser.add_argument("--all-curves", type=Path, required=True, help="out: every variant, CSV")
    args = parser.parse_args()

    split = load_split(args.data)
    variants = [load_results(name, args) for name in read_json(args.lineup)]
    with outputs(args.figures, args.all_curves) as (figures, all_curves):
        figures.mkdir()
        for name, figure in make_figures(args.dataset, variants, split):
            figure.savefig(figures / f"{name}.png", metadata={"Software": None})
            plt.close(figure)
        write_all_curves(variants, all_curves)
        count = len(list(figures.iterdir()))
    best = max(variants, key=lambda variant: variant.metrics["accuracy"])
    print(
        f"plot {args.dataset}: {count} figures of {len(variants)} variants in {args.figures}, "
        f"{size(args.figures)}; best: {best.name} with {best.metrics['accuracy']:.2%}"
    )


def load_results(name: str, args: argparse.Namespace) -> Results:
    """Reads everything about one variant.

    Raises:
        StageError: if a file is missing or damaged.
    """
    with open_result(args.curves / f"{name}.csv") as file:
        curves = list(csv.DictReader(file))
    augmented = load_arrays(args.examples / f"{name}-train.npz")["augmented"]
    return Results(
        name=name,
        short_name=name.removeprefix(f"{args.dataset}-"),
        metrics=read_json(args.metrics / f"{name}.json"),
        details=read_json(args.details / f"{name}.json"),
        curves=curves,
        record=read_json(args.records / f"{name}.json"),
        augmented=augmented,
        examples=load_arrays(args.examples / f"{name}-test.npz"),
    )


def open_result(path: Path) -> Any:
    try:
        return open(path, newline="")
    except FileNotFoundError:
        raise StageError(f"{path} is missing. Run `dvc repro` for this variant first.") from None


def read_json(path: Path) -> Any:
    with open_result(path) as file:
        try:
            return json.load(file)
        except ValueError as error:
            raise StageError(f"{path} must be JSON. Received: {error}.") from None


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    open_result(path).close()
    try:
        with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except DAMAGED as error:
        raise StageError(f"{path} must be an .npz file. Received: {error}.") from None


def make_figures(
    dataset: str, variants: list[Results], split: Split
) -> Iterator[tuple[str, Figure]]:
    """All figures of a dataset by file name, one at a time: to be saved and closed."""
    yield "learning_curves", plot_learning_curves(dataset, variants)
    yield "accuracy_and_cost", plot_cost(dataset, variants)
    yield "per_class_accuracy", plot_per_class(dataset, variants, split.classes)
    yield "images", plot_images(dataset, split)
    yield "augmented_images", plot_augmented(dataset, variants)
    confusion = plot_confusion if len(split.classes) <= MANY_CLASSES else plot_top_confusions
    for variant in variants:
        yield f"{variant.name}-confusion", confusion(variant)
        yield f"{variant.name}-first_predictions", plot_first_predictions(variant)
        yield f"{variant.name}-mistakes", plot_mistakes(variant)


def mean_curve(variant: Results, column: str) -> tuple[np.ndarray, np.ndarray]:
    """A column of the curves against the epoch, averaged over the seeds that reached it."""
    values: dict[int, list[float]] = {}
    for row in variant.curves:
        if row.get(column):
            values.setdefault(int(row["epoch"]), []).append(float(row[column]))
    epochs = sorted(values)
    return np.array(epochs), np.array([np.mean(values[epoch]) for epoch in epochs])


def plot_learning_curves(dataset: str, variants: list[Results]) -> Figure:
    """Loss and accuracy per epoch, on the training and on the validation images.

    Epochs are on a logarithmic scale, as one variant may train for two and another for a hundred.
    """
    figure, axes = plt.subplots(2, 2, figsize=(11, 7.5), sharex=True)
    titles = (
        "Training loss, as each recipe defines it",
        "Training accuracy",
        "Validation loss, as each recipe defines it",
        "Validation accuracy",
    )
    for axis, column, title in zip(axes.flat, CURVES, titles, strict=True):
        for number, variant in enumerate(variants):
            epochs, values = mean_curve(variant, column)
            if len(epochs):
                marker = "." if len(epochs) < 30 else ""
                label, style = variant.short_name, line_style(number)
                axis.plot(epochs, values, label=label, marker=marker, **style)
        axis.set_title(title)
        logarithmic(axis)
        if not axis.lines:
            axis.text(
                0.5, 0.5, "no variant holds out images", ha="center", transform=axis.transAxes
            )
        if column.endswith("accuracy"):
            in_percent(axis.yaxis)
    for axis in axes[1]:
        axis.set_xlabel("Epoch")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5)
    figure.suptitle(f"{dataset}: learning curves, mean over seeds")
    return figure


def line_style(number: int) -> dict[str, Any]:
    """A variant's colour and dashes: forty lines can be told apart."""
    return {"color": f"C{number % 10}", "linestyle": DASHES[number // 10 % len(DASHES)]}


def point_style(number: int) -> dict[str, Any]:
    """A variant's colour and marker: forty points can be told apart."""
    marker = MARKERS[number // 10 % len(MARKERS)]
    return {"color": f"C{number % 10}", "linestyle": "", "marker": marker}


def logarithmic(axis: Axes) -> None:
    """A logarithmic x-axis whose labels are whole numbers: 1, 2, 5, 10 and so on."""
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=12))
    axis.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axis.xaxis.set_minor_formatter(NullFormatter())


def in_percent(axis: Axis) -> None:
    """Labels a share in percent, at steps that need no rounding."""
    axis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 5, 10]))
    axis.set_major_formatter(PercentFormatter(1))


def plot_cost(dataset: str, variants: list[Results]) -> Figure:
    """Accuracy with its interval against parameters and against training time."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 5.6), sharey=True)
    costs: list[tuple[str, Callable[[Results], float]]] = [
        ("Parameters", lambda variant: float(variant.metrics["parameters"])),
        ("Training time in seconds, per seed", lambda variant: variant.record["train_seconds"]),
    ]
    for axis, (label, cost) in zip(axes, costs, strict=True):
        for number, variant in enumerate(variants):
            accuracy = variant.metrics["accuracy"]
            low, high = variant.metrics["accuracy_low"], variant.metrics["accuracy_high"]
            axis.errorbar(
                cost(variant),
                accuracy,
                yerr=[[accuracy - low], [high - accuracy]],
                capsize=3,
                label=variant.short_name,
                **point_style(number),
            )
        logarithmic(axis)
        axis.margins(x=0.1)
        axis.tick_params(axis="x", rotation=30)
        axis.set_xlabel(label)
        in_percent(axis.yaxis)
    axes[0].set_ylabel("Test accuracy, 95 % interval for other test images")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5)
    figure.suptitle(f"{dataset}: accuracy and what it costs")
    return figure


def plot_per_class(dataset: str, variants: list[Results], classes: tuple[str, ...]) -> Figure:
    """The accuracy on each class (its recall), sorted; with many classes, the extremes."""
    recall = np.array([mean_recall(variant) for variant in variants])
    order = np.argsort(recall.mean(axis=0), kind="stable")
    title = f"{dataset}: accuracy per class"
    if len(order) > MANY_CLASSES:
        order = np.concatenate([order[:EXTREMES], order[-EXTREMES:]])
        title += f", the {EXTREMES} hardest and the {EXTREMES} easiest of {len(classes)}"
    figure, axis = plt.subplots(figsize=(9, 1.8 + 0.28 * len(order)))
    for number, variant in enumerate(variants):
        axis.plot(
            recall[number, order],
            np.arange(len(order)),
            alpha=0.8,
            label=variant.short_name,
            **point_style(number),
        )
    axis.set_yticks(np.arange(len(order)), [readable(classes[index]) for index in order])
    axis.set_xlim(0, 1.02)
    in_percent(axis.xaxis)
    axis.set_xlabel("Share of the class's test images that are recognised, mean over seeds")
    figure.legend(loc="outside lower center", ncols=5)
    axis.set_title(title)
    return figure


def mean_recall(variant: Results) -> np.ndarray:
    per_seed = [
        [row["recall"] for row in seed["per_class"]] for seed in variant.details["seeds"].values()
    ]
    return np.mean(per_seed, axis=0)


def total_confusion(variant: Results) -> np.ndarray:
    """Counts by true (row) and predicted (column) class, summed over the seeds: int (C, C)."""
    return np.sum([seed["confusion"] for seed in variant.details["seeds"].values()], axis=0)


def plot_confusion(variant: Results) -> Figure:
    """The confusion matrix, in percent of each true class."""
    counts, classes = total_confusion(variant), variant.details["classes"]
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure, axis = plt.subplots(figsize=(1.8 + 0.62 * len(classes), 1.6 + 0.52 * len(classes)))
    axis.imshow(share, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for row, column in np.ndindex(share.shape):
        if counts[row, column]:
            dark = share[row, column] > 0.5
            axis.text(
                column,
                row,
                f"{100 * share[row, column]:.0f}" if share[row, column] >= 0.005 else "<1",
                ha="center",
                va="center",
                fontsize=9,
                color="white" if dark else "black",
            )
    names = [readable(name) for name in classes]
    axis.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axis.set_yticks(range(len(names)), names)
    axis.set(xlabel="Predicted", ylabel="True", title=f"{title_of(variant)}: percent of each class")
    axis.grid(False)
    return figure


def plot_top_confusions(variant: Results) -> Figure:
    """The most frequent confusions, for datasets with too many classes for a matrix."""
    counts, classes = total_confusion(variant), variant.details["classes"]
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    wrong = np.where(np.eye(len(classes), dtype=bool), 0, share)
    flat = np.argsort(-wrong, axis=None, kind="stable")[: 2 * EXTREMES]
    rows, columns = np.unravel_index(flat, wrong.shape)
    figure, axis = plt.subplots(figsize=(9, 9))
    axis.barh(np.arange(len(flat)), wrong[rows, columns], color="C0")
    axis.set_yticks(
        np.arange(len(flat)),
        [
            f"{readable(classes[row])} taken for {readable(classes[column])}"
            for row, column in zip(rows, columns, strict=True)
        ],
    )
    axis.invert_yaxis()
    in_percent(axis.xaxis)
    axis.set_xlabel("Share of the true class's test images")
    axis.set_title(f"{title_of(variant)}: the most frequent confusions")
    return figure


def plot_images(dataset: str, split: Split) -> Figure:
    """A 4 x 4 grid of the first training images."""
    count = min(16, len(split.images))
    titles = [readable(split.classes[label]) for label in split.labels[:count]]
    figure = grid(list(split.images[:count]), titles, columns=4)
    figure.suptitle(f"{dataset}: the first training images")
    return figure


def plot_augmented(dataset: str, variants: list[Results]) -> Figure:
    """What each variant's network sees: a row of training images per variant."""
    columns = 9
    figure, axes = plt.subplots(
        len(variants), columns, figsize=(10.5, 0.6 + 1.05 * len(variants)), squeeze=False
    )
    for row, variant in zip(axes, variants, strict=True):
        for axis, image in zip(row, variant.augmented[:columns], strict=False):
            show(axis, image)
        for axis in row[len(variant.augmented) :]:
            axis.set_axis_off()
        row[0].set_axis_on()
        row[0].set(xticks=[], yticks=[])
        row[0].spines[:].set_visible(False)
        row[0].set_ylabel(variant.short_name, rotation=0, ha="right", va="center")
    figure.suptitle(f"{dataset}: training images as the networks see them, augmented")
    return figure


def plot_first_predictions(variant: Results) -> Figure:
    """The first 16 test images with their predicted and true names."""
    return prediction_grid(
        variant, "first", columns=4, title=f"{title_of(variant)}: the first test images"
    )


def plot_mistakes(variant: Results) -> Figure:
    """Per class, the mistakes that the model is surest of; with many classes, the surest of all."""
    title = f"{title_of(variant)}: the surest mistakes"
    if len(variant.details["classes"]) > MANY_CLASSES:
        return prediction_grid(variant, "mistakes", columns=6, title=title, surest=36)
    return prediction_grid(variant, "mistakes", columns=6, title=f"{title}, by true class")


def prediction_grid(
    variant: Results, kind: str, columns: int, title: str, surest: int | None = None
) -> Figure:
    """A grid of one kind of example images; of the `surest` ones only, if that is given."""
    classes = variant.details["classes"]
    images, true, predicted, confidence = (
        variant.examples[f"{kind}_{part}"] for part in ("images", "true", "predicted", "confidence")
    )
    order = np.arange(len(images))
    if surest is not None:
        order = np.argsort(-confidence, kind="stable")[:surest]
    titles, colours = [], []
    for index in order:
        right = true[index] == predicted[index]
        said = f"{readable(classes[predicted[index]])} {confidence[index]:.0%}"
        titles.append(said if right else f"{said}\nis {readable(classes[true[index]])}")
        colours.append("black" if right else "firebrick")
    figure = grid([images[index] for index in order], titles, columns, colours)
    figure.suptitle(f"{title}\npredicted with confidence, and what it is where that differs")
    return figure


def grid(
    images: list[np.ndarray], titles: list[str], columns: int, colours: list[str] | None = None
) -> Figure:
    """Images with a title each, `columns` to a row."""
    rows = max(1, -(-len(images) // columns))
    figure, axes = plt.subplots(
        rows, columns, figsize=(1.75 * columns, 0.9 + 1.85 * rows), squeeze=False
    )
    for axis in axes.flat:
        axis.set_axis_off()
    for number, (axis, image) in enumerate(zip(axes.flat, images, strict=False)):
        show(axis, image)
        axis.set_title(titles[number], fontsize=9, color=colours[number] if colours else "black")
    return figure


def show(axis: Axes, image: np.ndarray) -> None:
    axis.imshow(image, interpolation="nearest")
    axis.set_axis_off()


def readable(name: str) -> str:
    return name.replace("_", " ")


def title_of(variant: Results) -> str:
    seeds = len(variant.details["seeds"])
    return f"{variant.name} ({variant.metrics['accuracy']:.1%}" + (
        f", mean of {seeds} seeds)" if seeds > 1 else ")"
    )


def write_all_curves(variants: list[Results], path: Path) -> None:
    """One long table, a row per variant, seed and epoch, for `dvc plots` and other programs."""
    with open(path, "w", newline="") as file:
        columns = ["variant", "seed", "epoch", *CURVES]
        writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        for variant in variants:
            writer.writerows({"variant": variant.name, **row} for row in variant.curves)


if __name__ == "__main__":
    run(main)
