"""What changed since another revision: metrics, parameters, figures; as Markdown.

Reads only what git has.
"""

import json
import re
from collections.abc import Callable
from typing import Any, NamedTuple
from urllib.parse import quote

from stages.shared import params
from stages.shared.stage import StageError
from tools.formatting import markdown, measured
from tools.git import git
from tools.results import RESULTS, Revision, accuracy_interval, differences

ROWS = 100  # of a table
WIDEST = 80  # characters of a value


class Measured(NamedTuple):
    """A variant's metrics in two revisions: empty if it has none, None if there is no variant."""

    variant: str
    before: dict[str, Any] | None
    after: dict[str, Any] | None

    @property
    def points(self) -> float | None:
        """By how many percentage points the accuracy rose."""
        if not self.before or not self.after:
            return None
        # Rounded, so that a fall from 0.9 to 0.89 is one point and not a little more.
        return round(100 * (self.after["accuracy"] - self.before["accuracy"]), 6)


def text(base: Revision, links: str) -> str:
    """All that changed, in Markdown.

    Args:
        links: what the addresses of figures begin with; without it, they are relative.
    """
    parts: dict[str, Callable[[], str]] = {
        "Metrics": lambda: metrics_table(base),
        "Parameters": lambda: parameters_table(base),
        "Figures": lambda: figures_list(base, links),
    }
    written = []
    for title, part in parts.items():
        try:
            content = part()
        except StageError as error:
            content = escaped(f"Cannot be shown: {error}")
        written.append(f"#### {title}\n\n{content}\n")
    return "\n".join(written)


def pairs(before: dict[str, dict[str, Any]], after: dict[str, dict[str, Any]]) -> list[Measured]:
    """The metrics of each variant of two revisions, the base's first."""
    names = dict.fromkeys([*before, *after])
    return [Measured(name, before.get(name), after.get(name)) for name in names]


def metrics(revision: Revision) -> dict[str, dict[str, Any]]:
    """The metrics of each variant, empty of those that have none.

    Raises:
        StageError: if a metrics file is not what evaluate writes.
    """
    return {result.variant: result.metrics for result in revision.results()}


def metrics_table(base: Revision) -> str:
    rows = []
    for each in pairs(metrics(base), metrics(Revision())):
        if each.before == each.after or not (each.before or each.after):
            continue
        accuracies = [measured(found) if found else "-" for found in (each.before, each.after)]
        certain = "{:.2%} to {:.2%}".format(*accuracy_interval(each.after)) if each.after else "-"
        points = "-" if each.points is None else f"{each.points:+.2f} points"
        rows.append((code(each.variant), *accuracies, certain, points))
    certain = "95 % interval of the accuracy here"
    header = ("variant", code(base.name), "here", certain, "difference")
    return table(header, rows) or "No metric changed."


def parameters_table(base: Revision) -> str:
    rows = [
        (code(path), *("-" if value is ... else code(short(value)) for value in values))
        for path, *values in parameters(base)
    ]
    return table(("parameter", code(base.name), "here"), rows) or "No parameter changed."


def parameters(base: Revision) -> list[tuple[str, Any, Any]]:
    """The key, the old and the new value of each parameter that changed; `...`: it is not there."""
    before = base.read(params.PATH)
    old = params.parse(before, f"{base.name}'s {params.PATH}") if before else ...
    after = Revision().read(params.PATH)
    return differences(old, params.parse(after) if after is not None else ...)


def figures_list(base: Revision, links: str) -> str:
    paths = figures(base)
    lines = [f"- [{escaped(path)}]({links}{quote(path)})" for path in paths[:ROWS]]
    return "\n".join([*lines, *more(paths)]) or "No figure changed."


def figures(base: Revision) -> list[str]:
    """The figures that differ from the base's; not those that are gone."""
    folder = (RESULTS / "figures").as_posix()
    listed = git("diff", "--name-only", "--diff-filter=d", "-z", str(base.commit), "--", folder)
    return [path for path in listed.split("\0") if path.endswith(".png")]


def table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """The first rows as Markdown; nothing if there are none."""
    if not rows:
        return ""
    return "\n".join([markdown([header, *rows[:ROWS]]), *more(rows)])


def more(items: list[Any]) -> list[str]:
    return [f"\nand {len(items) - ROWS} more"] if len(items) > ROWS else []


def short(value: Any) -> str:
    """A value in one line."""
    shown = value if isinstance(value, str) else json.dumps(value, default=str)
    shown = " ".join(shown.split())
    return shown if len(shown) <= WIDEST else f"{shown[: WIDEST - 3]}..."


def code(content: str) -> str:
    """Text as code in a cell: no character of it means anything but itself."""
    content = " ".join(content.split()) or " "
    fence = "`" * (1 + max((len(ticks) for ticks in re.findall("`+", content)), default=0))
    pad = " " if "`" in content else ""
    return f"{fence}{pad}{content}{pad}{fence}".replace("|", "\\|")


def escaped(content: str) -> str:
    """Text in one line in which only `code` between backticks is Markdown."""
    parts = re.split(r"((?<!`)`[^`]+`(?!`))", " ".join(content.split()))
    parts[::2] = [re.sub(r"([\\`*_\[\]<>&|~#])", r"\\\1", part) for part in parts[::2]]
    parts[::2] = [part.replace("@", "@\u200b") for part in parts[::2]]  # nobody is called
    return "".join(parts)
