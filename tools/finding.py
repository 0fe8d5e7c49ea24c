"""What the doctor and the gate have found, and what to do about it."""

from collections.abc import Iterable
from typing import Literal, NamedTuple

from tools.command import plain

NAMED = 3  # how many of many things a message names


class Finding(NamedTuple):
    level: Literal["ok", "warning", "error", "note", "failure"]  # the last two are the gate's
    what: str
    advice: str = ""

    @property
    def text(self) -> str:
        """What was found and what to do, in one line."""
        what = f"{self.what.rstrip('.')}. {self.advice}" if self.advice else self.what
        return plain(" ".join(what.split()))


def first_few(items: Iterable[str]) -> str:
    """The first few of many, and how many more there are."""
    items = list(items)
    more = f" and {len(items) - NAMED} more" if len(items) > NAMED else ""
    return ", ".join(items[:NAMED]) + more
