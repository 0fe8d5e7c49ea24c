"""What benchmarks share: runs in alternation, medians and ratios, tables with the JSON beside.

A machine's speed varies from minute to minute, so ways are compared by the ratios of neighbouring
runs and never by figures of different days.
"""

import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from stages.shared.dataset import Split
from tools.formatting import table

RESULTS = Path(__file__).resolve().parent / "results"


def alternate(ways: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """The seconds that each way took in each round. The first, uncounted, compiles and warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, run in ways.items():
            start = time.perf_counter()
            run()
            if number:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def compare(seconds: dict[str, list[float]], base: str) -> dict[str, dict[str, Any]]:
    """For each way its median seconds, and how many times faster than the base it is.

    The ratio is the median of the rounds' ratios; their smallest and largest are its range.
    """
    rows = {}
    for name, each in seconds.items():
        ratios = sorted(b / a for a, b in zip(each, seconds[base], strict=True))
        rows[name] = {
            "median_seconds": round(statistics.median(each), 4),
            "times_faster": round(statistics.median(ratios), 3),
            "range": [round(ratios[0], 3), round(ratios[-1], 3)],
        }
    return rows


def report(name: str, result: dict[str, Any]) -> None:
    """Prints the result as tables and writes results/<name>.json, with the machine it is from."""
    from stages.training.record import describe_device, versions

    result = {"device": describe_device(), "versions": versions(), **result}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    print("\n\n".join(tables(result, name)))


def tables(values: dict[str, Any], title: str) -> Iterator[str]:
    """Nested values as tables for the terminal; what is nested no deeper is one table."""
    branches = {key: value for key, value in values.items() if isinstance(value, dict)}
    facts = [(key, shown(value)) for key, value in values.items() if key not in branches]
    if facts:
        yield table([(title, ""), *facts])
        title = ""
    nested = any(isinstance(each, dict) for row in branches.values() for each in row.values())
    if len(branches) > 1 and not nested:
        columns = list(dict.fromkeys(key for row in branches.values() for key in row))
        rows = [(key, *(shown(row.get(c, "-")) for c in columns)) for key, row in branches.items()]
        yield table([(title, *columns), *rows])
        return
    for key, value in branches.items():
        yield from tables(value, f"{title}, {key}".removeprefix(", "))


def shown(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def random_split(images: int) -> Split:
    """Random numbers in the form of CIFAR: a network takes as long over them as over images."""
    random = np.random.default_rng(0)
    return Split(
        random.integers(0, 256, (images, 32, 32, 3), np.uint8),
        random.permutation(np.arange(images) % 10).astype(np.uint8),
        tuple(f"class {number}" for number in range(10)),
    )
