"""The README's tables of results, made from what git has: no data, no training.

`make results` prints them; `python -m tools.readme --write` puts them into README.md.
"""

import argparse
from pathlib import Path

from stages.shared.stage import StageError, duration, outputs
from tools.command import run
from tools.compare import Variance, t_test
from tools.formatting import interval, markdown, measured, number, published
from tools.results import Result, Revision

README = Path("README.md")
BASE = "cifar10-air90"  # its ablations are the variants whose names begin with this and a dash
HEADER = (
    "variant",
    "published",
    "measured",
    "95 % interval",
    "seeds",
    "epochs",
    "precision",
    "training, per seed",
    "device",
    "parameters",
)
ABLATIONS_HEADER = ("variant", "measured", f"against `{BASE}`", "training, per seed", "parameters")


def main() -> None:
    parser = argparse.ArgumentParser(description="Print the README's tables of results.")
    parser.add_argument("--write", action="store_true", help="put them into README.md")
    args = parser.parse_args()

    if not args.write:
        print("\n\n".join(tables().values()))
        return
    text = README.read_text(encoding="utf-8")
    new = updated(text)
    if new == text:
        print(f"{README} was up to date.")
        return
    with outputs(README) as (partial,):
        partial.write_text(new, encoding="utf-8")
    print(f"{README} has new tables.")


def updated(text: str) -> str:
    """A README's text with the tables of today.

    Raises:
        StageError: if it lacks the place of one.
    """
    for name, table in tables().items():
        start, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
        before, _, rest = text.partition(start)
        _, found, after = rest.partition(end)
        if not found:
            raise StageError(f"{README} must hold {start.strip()} and {end}.")
        text = f"{before}{start}{table}\n{end}{after}"
    return text


def tables() -> dict[str, str]:
    """In Markdown, `results`: a line for each variant on real data; `ablations`: those of BASE."""
    revision = Revision()
    known = revision.parameters["datasets"]
    real = [name for name, dataset in known.items() if dataset["source"] != "shapes"]
    results = {result.variant: result for result in revision.results(real)}
    ablations = [name for name in results if name.startswith(f"{BASE}-")]
    compared = [name for name in results if name in {BASE, *ablations}]
    return {
        "results": markdown(
            [HEADER, *(line(result) for name, result in results.items() if name not in ablations)]
        ),
        "ablations": markdown(
            [ABLATIONS_HEADER, *(ablation(results[name], results.get(BASE)) for name in compared)]
        ),
    }


def ablation(result: Result, base: Result | None) -> tuple[str, ...]:
    """An ablation's cells, with its difference in percentage points from the base, if there is.

    In brackets, where both have seeds that differ, its 95 % interval for other seeds (Welch's).
    """
    row, name = result.row, f"`{result.variant}`"
    if row["accuracy"] is None:
        return (name, "-", "-", "-", "-")
    difference = "-"
    if base is not None and result is not base and base.row["accuracy"] is not None:
        points = 100 * (row["accuracy"] - base.row["accuracy"])
        difference = f"{points:+.2f}"
        if row["accuracy_std"] and base.row["accuracy_std"]:
            variances = [
                Variance((100 * each["accuracy_std"]) ** 2 / each["seeds"], each["seeds"] - 1)
                for each in (row, base.row)
            ]
            _, low, high = t_test(points, variances)
            difference += f" ({low:+.2f} to {high:+.2f})"
    seconds = "-" if row["train_seconds"] is None else duration(row["train_seconds"])
    return (name, measured(row), difference, seconds, number(row["parameters"], ","))


def line(result: Result) -> tuple[str, ...]:
    """A variant's cells; a dash is what has not been measured yet."""
    row, recipe = result.row, result.hyperparameters["recipe"]
    trained = {each["epochs"] for each in result.record.get("trainings", [])} or {recipe["epochs"]}
    epochs = " to ".join(map(str, sorted({min(trained), max(trained)})))
    precision = recipe["precision"].replace("_", " ")
    cells = [f"`{result.variant}`", published(row)]
    if row["accuracy"] is None:
        cells += ["-", "-", "-", epochs, precision, "-", "-", "-"]
        return tuple(cells)
    seconds = row["train_seconds"]
    cells += [
        measured(row),
        interval(row),
        str(row["seeds"]),
        epochs,
        precision,
        "-" if seconds is None else duration(seconds),
        row["device"] or "-",
        number(row["parameters"], ","),
    ]
    return tuple(cells)


if __name__ == "__main__":
    run(main)
