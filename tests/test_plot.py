"""The figures: all of them, readable, the same bytes twice, and of the lineup's variants only."""

import csv
import dataclasses
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest

from stages import evaluate, plot
from stages.shared.dataset import Split, save_split
from stages.shared.stage import StageError

VARIANTS = ("toys-big", "toys-small")
SEEDS = ("1", "2")
EPOCHS = 3


def write_results(folder: Path, variant: str, split: Split, validation: bool) -> None:
    """What the stages before plot write about a variant, of random probabilities."""
    random = np.random.default_rng(len(variant))
    count, classes = len(split.labels), len(split.classes)
    probabilities = random.dirichlet(np.ones(classes), (len(SEEDS), count)).astype(np.float32)
    for name in ("metrics", "details", "curves", "records", "examples"):
        (folder / name).mkdir(exist_ok=True)
    seeds = dict(zip(SEEDS, [evaluate.describe(p, split) for p in probabilities], strict=True))
    metrics = evaluate.summarize(list(seeds.values()), count) | {"parameters": 1000 + len(variant)}
    documents: dict[str, dict[str, Any]] = {
        "metrics": metrics,
        "details": {"classes": split.classes, "seeds": seeds},
        "records": {"train_seconds": 12.5, "environment": [{"device": "CPU"}]},
    }
    for name, values in documents.items():
        (folder / name / f"{variant}.json").write_text(json.dumps(values))
    evaluate.write_examples(probabilities[0], split, folder / "examples" / f"{variant}-test.npz")
    np.savez(folder / "examples" / f"{variant}-train.npz", augmented=split.images[:16])
    columns = ["loss", "accuracy", *(["val_loss", "val_accuracy"] if validation else [])]
    with open(folder / "curves" / f"{variant}.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, ["seed", "epoch", *columns, "learning_rate"])
        writer.writeheader()
        for seed in SEEDS:
            for epoch in range(1, EPOCHS + 1):
                row = dict.fromkeys(columns, 0.25 * epoch)
                writer.writerow({"seed": seed, "epoch": epoch, **row, "learning_rate": 0.1})


def prepare(folder: Path, classes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with results of two variants and of a stray third; it becomes the current one."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (120, 32, 32, 3), np.uint8)
    labels = (np.arange(120) % classes).astype(np.uint8)
    split = Split(images, labels, tuple(f"class_{number}" for number in range(classes)))
    save_split(split, folder / "train")
    for variant in (*VARIANTS, "toys-stray"):
        write_results(folder, variant, split, validation=variant == "toys-big")
    (folder / "lineup.json").write_text(json.dumps(VARIANTS))
    monkeypatch.chdir(folder)
    options = {"lineup": "lineup.json", "data": "train", "figures": "out/figures"}
    options |= {"all-curves": "out/all_curves.csv"}
    options |= {name: name for name in ("metrics", "details", "curves", "records", "examples")}
    arguments = [word for name, path in options.items() for word in (f"--{name}", path)]
    monkeypatch.setattr(sys, "argv", ["plot", "toys", *arguments])


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    prepare(tmp_path, 3, monkeypatch)
    return tmp_path


@pytest.mark.parametrize("classes", [3, 100])
def test_the_command_draws_every_figure_of_the_lineup_and_no_stray_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, classes: int
) -> None:
    prepare(tmp_path, classes, monkeypatch)
    monkeypatch.setitem(plt.rcParams, "figure.max_open_warning", 1)  # an error: one at a time
    plot.main()
    names = {path.name for path in (tmp_path / "out/figures").iterdir()}
    of_all = "learning_curves accuracy_and_cost per_class_accuracy images augmented_images".split()
    of_each = ("confusion", "first_predictions", "mistakes")
    expected = {*of_all, *(f"{variant}-{name}" for variant in VARIANTS for name in of_each)}
    assert names == {f"{name}.png" for name in expected}
    for path in (tmp_path / "out/figures").iterdir():
        pixels = plt.imread(path)[..., :3]
        height, width = pixels.shape[:2]
        assert 300 <= width <= 2500
        assert 200 <= height <= 2500
        dark = (pixels.min(axis=2) < 0.5).mean()
        assert 0.003 < dark < 0.9
    assert not plt.get_fignums()

    with open(tmp_path / "out/all_curves.csv") as file:
        rows = list(csv.DictReader(file))
    assert [(row["variant"], row["seed"], row["epoch"]) for row in rows] == [
        (variant, seed, str(epoch))
        for variant in VARIANTS
        for seed in SEEDS
        for epoch in range(1, EPOCHS + 1)
    ]
    assert {row["loss"] for row in rows if row["epoch"] == "2"} == {"0.5"}
    by_variant = {row["variant"]: row["val_accuracy"] for row in rows if row["epoch"] == "3"}
    assert by_variant == {"toys-big": "0.75", "toys-small": ""}  # it holds out no images


def test_each_learning_curve_is_under_its_title() -> None:
    row = {"loss": "1", "accuracy": "0.2", "val_loss": "3", "val_accuracy": "0.4"}
    figure = plot.plot_learning_curves("toys", [results([{"epoch": "1"} | row])])
    found = {axis.get_title(): [line.get_ydata()[0] for line in axis.lines] for axis in figure.axes}
    plt.close(figure)
    assert found == {
        "Training loss, as each recipe defines it": [1],
        "Training accuracy": [0.2],
        "Validation loss, as each recipe defines it": [3],
        "Validation accuracy": [0.4],
    }


def test_of_many_classes_the_surest_mistakes_are_shown_and_what_they_are() -> None:
    confidence = np.float32([0.3, 0.9, 0.6, *[0.1] * 40])
    images = np.zeros((43, 32, 32, 3), np.uint8)
    true, predicted = np.arange(43) % 40, np.arange(1, 44) % 40
    variant = results([], classes=[f"class_{number}" for number in range(40)], seeds={"1": {}})
    examples = {
        "mistakes_images": images,
        "mistakes_true": true,
        "mistakes_predicted": predicted,
        "mistakes_confidence": confidence,
    }
    metrics = {"accuracy": 0.5}
    shown = dataclasses.replace(variant, examples=examples, metrics=metrics)
    figure = plot.plot_mistakes(shown)
    titles = [axis.get_title() for axis in figure.axes if axis.get_title()]
    plt.close(figure)
    assert len(titles) == 36
    assert titles[:3] == [
        "class 2 90%\nis class 1",
        "class 3 60%\nis class 2",
        "class 1 30%\nis class 0",
    ]


def test_the_same_inputs_give_the_same_bytes(project: Path) -> None:
    (project / "lineup.json").write_text(json.dumps(VARIANTS[:1]))
    runs = []
    for _ in range(2):
        plot.main()
        files = [path for path in sorted((project / "out").rglob("*")) if path.is_file()]
        runs.append({path.name: path.read_bytes() for path in files})
    assert len(runs[0]) == 9
    assert runs[0] == runs[1]


INPUTS = (
    "metrics/toys-small.json",
    "details/toys-small.json",
    "curves/toys-small.csv",
    "records/toys-small.json",
    "examples/toys-small-train.npz",
    "examples/toys-small-test.npz",
)


@pytest.mark.parametrize("path", [*INPUTS, "lineup.json"])
def test_a_missing_file_is_named_and_nothing_written(project: Path, path: str) -> None:
    (project / path).unlink()
    with pytest.raises(StageError, match=f"{path} is missing"):
        plot.main()
    assert not (project / "out").exists()


@pytest.mark.parametrize("path", [path for path in INPUTS if "curves" not in path])
def test_a_damaged_file_is_named_and_nothing_written(project: Path, path: str) -> None:
    whole = (project / path).read_bytes()
    (project / path).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(StageError, match=f"{path} must be"):
        plot.main()
    assert not (project / "out").exists()


def test_examples_cannot_bring_code(project: Path) -> None:
    """They come from a remote that others write to."""

    class Code:
        def __reduce__(self) -> Any:
            return Path.touch, (Path("ran"),)

    path = project / "examples/toys-big-train.npz"
    np.savez(path, augmented=np.array([Code()], object))
    with pytest.raises(StageError, match=r"toys-big-train\.npz must be an \.npz file"):
        plot.main()
    assert not Path("ran").exists()


def test_the_grids_show_each_image_under_its_own_name(random: np.random.Generator) -> None:
    images = random.integers(0, 256, (20, 32, 32, 3), np.uint8)
    labels = (np.arange(20) * 7 % 10).astype(np.uint8)
    figure = plot.plot_images("toys", Split(images, labels, tuple("abcdefghij")))
    for axis, image, label in zip(figure.axes, images[:16], labels[:16], strict=True):
        assert axis.get_title() == "abcdefghij"[label]
        np.testing.assert_array_equal(axis.images[0].get_array(), image)
    two = [dataclasses.replace(results([]), augmented=part) for part in (images[:9], images[9:18])]
    grid = plot.plot_augmented("toys", two)
    shown = [np.asarray(axis.images[0].get_array()) for axis in grid.axes]
    np.testing.assert_array_equal(shown, images[:18])


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    """Closes the figures that a test has left open."""
    yield
    plt.close("all")


def results(curves: list[dict[str, str]], **details: Any) -> plot.Results:
    empty: dict[str, Any] = {}
    return plot.Results("toys-x", "x", empty, details, curves, empty, np.zeros(0), empty)


def test_a_mean_curve_averages_the_seeds_that_reached_the_epoch() -> None:
    table = "1 1 1.0, 1 2 0.5, 1 3 0.25, 2 1 3.0, 2 2 1.0"
    rows = [dict(zip(("seed", "epoch", "loss"), r.split(), strict=True)) for r in table.split(", ")]
    epochs, values = plot.mean_curve(results(rows), "loss")
    assert epochs.tolist() == [1, 2, 3]
    assert values.tolist() == [2.0, 0.75, 0.25]


@pytest.mark.parametrize("row", [{"epoch": "1"}, {"epoch": "1", "val_loss": ""}])
def test_a_column_without_values_has_no_curve(row: dict[str, str]) -> None:
    epochs, values = plot.mean_curve(results([row]), "val_loss")
    assert len(epochs) == len(values) == 0


def test_recall_is_averaged_and_confusion_summed_over_the_seeds() -> None:
    seeds = {
        "1": {"per_class": [{"recall": 0.5}, {"recall": 1.0}], "confusion": [[1, 1], [0, 2]]},
        "2": {"per_class": [{"recall": 1.0}, {"recall": 0.0}], "confusion": [[2, 0], [2, 0]]},
    }
    variant = results([], seeds=seeds)
    assert plot.mean_recall(variant).tolist() == [0.75, 0.5]
    assert plot.total_confusion(variant).tolist() == [[3, 1], [2, 2]]


def confused(classes: list[str], counts: list[list[int]]) -> plot.Results:
    """A variant with this confusion, rows being true classes."""
    variant = results([], classes=classes, seeds={"1": {"confusion": counts}})
    return dataclasses.replace(variant, metrics={"accuracy": 0.5})


def only_axis(figure: Any) -> Any:
    (axis,) = figure.axes
    return axis


def test_a_confusion_is_in_percent_of_the_true_class() -> None:
    axis = only_axis(plot.plot_confusion(confused(["a_b", "c"], [[250, 750], [1, 999]])))
    told = {text.get_position(): text.get_text() for text in axis.texts}
    assert told == {(0, 0): "25", (1, 0): "75", (0, 1): "<1", (1, 1): "100"}  # (column, row)
    np.testing.assert_allclose(axis.images[0].get_array(), [[0.25, 0.75], [0.001, 0.999]])
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("Predicted", "True")
    for labels in (axis.get_xticklabels(), axis.get_yticklabels()):
        assert [label.get_text() for label in labels] == ["a b", "c"]


def test_the_most_frequent_confusions_come_first() -> None:
    counts = [[5, 1, 0], [6, 4, 10], [3, 0, 3]]
    axis = only_axis(plot.plot_top_confusions(confused(["a_b", "c", "d"], counts)))
    labels = [label.get_text() for label in axis.get_yticklabels()]
    assert labels[:4] == ["c taken for d", "d taken for a b", "c taken for a b", "a b taken for c"]
    widths = [bar.get_width() for bar in axis.patches]
    assert widths[:4] == pytest.approx([0.5, 0.5, 0.3, 1 / 6])
    assert sum(widths[4:]) == 0
    assert axis.yaxis_inverted()


def test_of_many_classes_the_hardest_and_the_easiest_are_shown() -> None:
    order = np.random.default_rng(0).permutation(40)
    rows = [{"recall": place / 40} for place in order]
    variant = results([], seeds={"1": {"per_class": rows}})
    names = tuple(f"place_{place}" for place in order)
    axis = only_axis(plot.plot_per_class("toys", [variant], names))
    places = [*range(15), *range(25, 40)]
    labels = [label.get_text() for label in axis.get_yticklabels()]
    assert labels == [f"place {place}" for place in places]
    (points,) = axis.lines
    assert points.get_xdata().tolist() == [place / 40 for place in places]
    assert "the 15 hardest and the 15 easiest of 40" in axis.get_title()


def test_an_accuracy_has_its_interval_and_its_costs() -> None:
    metrics = {"accuracy": 0.6, "accuracy_low": 0.5, "accuracy_high": 0.8, "parameters": 1000}
    variant = dataclasses.replace(results([]), metrics=metrics, record={"train_seconds": 12.5})
    axes: list[Any] = plot.plot_cost("toys", [variant]).axes
    for axis, cost in zip(axes, (1000, 12.5), strict=True):
        _, _, (bars,) = axis.containers[0]
        np.testing.assert_allclose(bars.get_segments(), [[[cost, 0.5], [cost, 0.8]]])
        (line,) = axis.lines[:1]
        assert line.get_xydata().tolist() == [[cost, 0.6]]
        assert axis.get_legend_handles_labels()[1] == ["x"]


@pytest.mark.parametrize("style", [plot.line_style, plot.point_style])
def test_forty_variants_can_be_told_apart(style: Callable[[int], dict[str, Any]]) -> None:
    assert len({tuple(style(number).values()) for number in range(40)}) == 40


@pytest.mark.parametrize("values", [(0.782, 0.924), (0.31, 0.9), (0.951, 0.963), (0, 1)])
def test_percents_are_not_rounded(values: tuple[float, float]) -> None:
    _, axis = plt.subplots()
    axis.set_ylim(*values)
    plot.in_percent(axis.yaxis)
    ticks = axis.yaxis.get_majorticklocs()
    labels = axis.yaxis.get_major_formatter().format_ticks(ticks)
    assert [float(label.rstrip("%")) for label in labels] == pytest.approx(100 * ticks)


def test_epochs_are_labelled_with_whole_numbers() -> None:
    rows = [{"epoch": str(epoch), "loss": "1"} for epoch in (1, 3, 120)]
    axis = plot.plot_learning_curves("toys", [results(rows)]).axes[2]
    axis.figure.canvas.draw()
    low, high = axis.get_xlim()
    labels = {
        text.get_text() for text in axis.get_xticklabels() if low <= text.get_position()[0] <= high
    }
    assert labels == {"1", "2", "5", "10", "20", "50", "100"}


def test_a_model_without_mistakes_can_be_drawn(tmp_path: Path) -> None:
    examples = {f"mistakes_{name}": np.zeros(0, int) for name in ("true", "predicted")}
    examples |= {"mistakes_images": np.zeros((0, 32, 32, 3), np.uint8)}
    examples |= {"mistakes_confidence": np.zeros(0)}
    variant = results([], classes=["a", "b"], seeds={"1": {}})
    variant = dataclasses.replace(variant, examples=examples, metrics={"accuracy": 1.0})
    figure = plot.plot_mistakes(variant)
    figure.savefig(tmp_path / "figure.png")
    plt.close(figure)
    assert (plt.imread(tmp_path / "figure.png")[..., :3].min(axis=2) < 0.5).any()
