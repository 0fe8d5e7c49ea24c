"""What tools/launch.py shows: a live table on a terminal, a line per event elsewhere."""

import sys
import time
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from stages.shared.stage import duration

WORDS = {
    "ran": "done",
    "unchanged": "unchanged",
    "failed": "FAILED",
    "skipped": "skipped: it depends on a failed one",
}


class Display:
    """The running stages, each with its time and its last line of output.

    Args:
        count: how many stages may have to run.
    """

    def __init__(self, count: int) -> None:
        self.count, self.finished = count, 0
        self.begin: dict[str, float] = {}
        self.console = Console(highlight=False, soft_wrap=True, file=sys.stdout)
        self.live = Live(console=self.console, refresh_per_second=2, transient=True)

    def __enter__(self) -> "Display":
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.live.stop()

    def started(self, name: str) -> None:
        self.begin[name] = time.monotonic()
        if not self.console.is_terminal:
            self.console.print(f"{name}: started", markup=False)

    def ended(self, name: str, state: str, detail: Any = "") -> None:
        """Says how a stage ended, with an error or where its log lies."""
        self.finished += 1
        begin = self.begin.pop(name, None)
        took = f" in {duration(time.monotonic() - begin)}" if begin and state == "ran" else ""
        text = f"[{self.finished}/{self.count}] {name}: {WORDS[state]}{took}"
        self.console.print(f"{text}: {detail}" if detail else text, markup=False)

    def update(self, lines: dict[str, str]) -> None:
        """Shows the running stages, each with the last line of its output."""
        if not self.console.is_terminal:
            return
        table = Table.grid(padding=(0, 2))
        for name, line in lines.items():
            table.add_row(name, duration(time.monotonic() - self.begin[name]), Text(line))
        self.live.update(table)
