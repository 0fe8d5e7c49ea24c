"""The README's table of results, made from what git has: no data, no training.

make results                      # print it
python -m tools.readme --write    # put it into README.md
"""

import argparse
import re
from pathlib import Path

from stages.shared.stage import StageError, duration, outputs, run
from tools.results import Result, Revision
from tools.show import markdown

README = Path("README.md")
PLACE = re.compile(r"(<!-- results -->\n).*?(<!-- end of results -->)", re.DOTALL)
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


def main() -> None:
    parser = argparse.ArgumentParser(description="Print the README's table of results.")
    parser.add_argument("--write", action="store_true", help="put it into README.md")
    args = parser.parse_args()

    if not args.write:
        print(table())
        return
    text = README.read_text()
    if not PLACE.search(text):
        raise StageError(f"{README} must hold <!-- results --> and <!-- end of results -->.")
    with outputs(README) as (partial,):
        partial.write_text(updated(text))
    print(f"{README} has the results of today")


def updated(text: str) -> str:
    """A README's text with the table of today."""
    return PLACE.sub(lambda match: f"{match[1]}{table()}\n{match[2]}", text)


def table() -> str:
    """A line for each variant on real data, in Markdown."""
    revision = Revision()
    known = revision.parameters["datasets"]
    real = [name for name, dataset in known.items() if dataset["source"] == "cifar"]
    return markdown([HEADER, *(line(result) for result in revision.results(real))])


def line(result: Result) -> tuple[str, ...]:
    """A variant's cells; a dash is what has not been measured yet."""
    row, recipe = result.row, result.parameters["recipe"]
    trained = {each["epochs"] for each in result.record.get("trainings", [])} or {recipe["epochs"]}
    epochs = " to ".join(map(str, sorted({min(trained), max(trained)})))
    precision = recipe["precision"].replace("_", " ")
    published = "-" if row["published"] is None else f"{row['published']:.2%}"
    cells = [f"`{result.variant}`", published]
    if row["accuracy"] is None:
        cells += ["-", "-", "-", epochs, precision, "-", "-", "-"]
        return tuple(cells)
    spread = "" if row["accuracy_std"] is None else f" ± {row['accuracy_std']:.2%}"
    seconds = row["train_seconds"]
    cells += [
        f"{row['accuracy']:.2%}{spread}",
        f"{row['accuracy_low']:.2%} to {row['accuracy_high']:.2%}",
        str(row["seeds"]),
        epochs,
        precision,
        "-" if seconds is None else duration(seconds),
        row["device"] or "-",
        f"{row['parameters']:,}",
    ]
    return tuple(cells)


if __name__ == "__main__":
    run(main)
