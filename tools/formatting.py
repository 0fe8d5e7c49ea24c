"""How results are written in tables and charts."""

from typing import Any

from tools.command import plain
from tools.results import PUBLISHED_NOTES, Result


def label(result: Result, several: bool) -> str:
    """A variant's name, with its revision's where there are several."""
    return f"{result.variant} ({result.revision.name})" if several else result.variant


def readable(name: str) -> str:
    """A class's or a figure's name in words."""
    return name.replace("_", " ")


def number(value: float | None, form: str) -> str:
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
    of = PUBLISHED_NOTES.get(row["variant"])
    return f"{row['published']:.2%}" + (f" ({of})" if of else "")


def table(rows: list[tuple[str, ...]]) -> str:
    """Left-aligned columns, with a rule under the first row."""
    rows = [tuple(map(plain, row)) for row in rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(line.rstrip() for line in lines)


def markdown(rows: list[tuple[str, ...]]) -> str:
    """A table in Markdown, whose first row is its header."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines.insert(1, "|" + " --- |" * len(rows[0]))
    return "\n".join(lines)
