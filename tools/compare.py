"""Whether one variant is better than another, from their predictions on the same test images.

    python -m tools.compare VARIANT VARIANT ... [--json]

Each pair gets the difference in accuracy with its 95 % interval and one of three words: better,
worse, or no evidence of a difference. It is "better" only where every test that applies says so:
McNemar's exact test on the images that only one of two models gets right and, where both variants
have several seeds, Welch's t-test between the seeds' accuracies. With one seed each, two trained
models are compared, and not two recipes: another seed may turn the result.
"""

import argparse
import itertools
import json
import warnings
from typing import Any

import numpy as np
from scipy import stats

from stages.shared import params
from stages.shared.stage import StageError, run
from tools.results import Result, Revision

CONFIDENCE = 0.95
SMALLEST_P = 1e-99


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare variants of one dataset, each pair.")
    parser.add_argument("variants", nargs="+", help="keys of params.yaml's variants, two or more")
    parser.add_argument("--json", action="store_true", help="print JSON instead of sentences")
    args = parser.parse_args()

    results = load_all(args.variants)
    pairs = list(itertools.combinations(results, 2))
    compared = []
    for a, b in pairs:
        found = compare(results[a], results[b])
        compared.append({"a": a, "b": b} | found | {"verdict": verdict(found, len(pairs))})
    if args.json:
        print(json.dumps(compared, indent=1))
        return
    for each in compared:
        print(sentence(each))
    if len(pairs) > 1:
        print(f"Corrected for {len(pairs)} comparisons (Bonferroni).")


def load_all(names: list[str]) -> dict[str, np.ndarray]:
    """For each variant, which test images its models got right: bool (seeds, images).

    Raises:
        StageError: if there are fewer than two, of several datasets, or one without predictions.
    """
    config = params.load()
    datasets = {name: config.variant(name).dataset for name in names}
    if len(datasets) < 2:
        raise StageError(f"Two or more different variants are needed. Received: {names}.")
    if len(set(datasets.values())) > 1:
        raise StageError(
            "Only variants of one dataset can be compared, on the same test images. "
            f"Received: {datasets}."
        )
    return {name: load(Result(Revision(), dataset, name)) for name, dataset in datasets.items()}


def load(result: Result) -> np.ndarray:
    """Which test images each seed's model got right: bool (seeds, images).

    Raises:
        StageError: if there are no predictions.
    """
    if result.right is None:
        raise StageError(
            f"{result.path('predictions', '.csv')} is not there. "
            f"`dvc repro evaluate@{result.variant}` makes it; `dvc pull` fetches it if a colleague "
            "has pushed it."
        )
    return result.right


def compare(a: np.ndarray, b: np.ndarray) -> dict[str, Any]:
    """The difference between two variants.

    Args:
        a, b: which of the same images are right: bool (seeds, images), each with its own seeds.

    Returns:
        `accuracy_a`, `accuracy_b`, their `difference` with its interval, `low` to `high`, which is
        the wider one of that over images and that over seeds; `p_images` of McNemar's test between
        each variant's seed that is nearest to its mean; `p_seeds` of Welch's test, or None where
        one variant has a single seed or all seeds are as accurate; and `p`, the larger one.
    """
    if a.shape[1] != b.shape[1]:
        raise StageError(
            f"The variants must be evaluated on the same images. Received: {a.shape[1]} and "
            f"{b.shape[1]}. Run `dvc repro`."
        )
    over_images = stats.ttest_1samp(a.mean(axis=0) - b.mean(axis=0), 0)
    intervals = [over_images.confidence_interval(CONFIDENCE)]
    only_a, only_b = discordant(typical(a), typical(b))
    p_images = stats.binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
    p_seeds = None
    if min(len(a), len(b)) > 1:
        seeds_a, seeds_b = a.mean(axis=1), b.mean(axis=1)
        if np.ptp(seeds_a) + np.ptp(seeds_b) > 0:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # scipy warns of seeds that are all alike
                over_seeds = stats.ttest_ind(seeds_a, seeds_b, equal_var=False)
            p_seeds = float(over_seeds.pvalue)
            intervals.append(over_seeds.confidence_interval(CONFIDENCE))
    difference = float(a.mean() - b.mean())
    widest = max(intervals, key=lambda each: float(np.nan_to_num(each.high - each.low)))
    low, high = np.nan_to_num([widest.low, widest.high], nan=difference)
    return {
        "accuracy_a": float(a.mean()),
        "accuracy_b": float(b.mean()),
        "seeds_a": len(a),
        "seeds_b": len(b),
        "difference": difference,
        "low": float(low),
        "high": float(high),
        "only_a_right": only_a,
        "only_b_right": only_b,
        "p_images": float(p_images),
        "p_seeds": p_seeds,
        "p": max(float(p_images), p_seeds or 0.0),
    }


def typical(right: np.ndarray) -> np.ndarray:
    """The seed whose accuracy is nearest to the mean: bool (images,)."""
    accuracies = right.mean(axis=1)
    nearest: np.ndarray = right[np.abs(accuracies - accuracies.mean()).argmin()]
    return nearest


def discordant(a: np.ndarray, b: np.ndarray) -> tuple[int, int]:
    """How many images only the first gets right, and how many only the second."""
    return int((a & ~b).sum()), int((b & ~a).sum())


def verdict(found: dict[str, Any], comparisons: int) -> str:
    """Better, worse, or no evidence of a difference, when that many pairs are looked at."""
    if found["p"] * comparisons >= 1 - CONFIDENCE:
        return "no evidence of a difference"
    return "better" if found["difference"] > 0 else "worse"


def sentence(each: dict[str, Any]) -> str:
    """A comparison in words."""
    word = each["verdict"]
    relation = (
        f"{each['a']} is {word} than {each['b']}"
        if word in ("better", "worse")
        else f"{each['a']} and {each['b']}: {word}"
    )
    if each["p_seeds"] is not None:
        seeds = f", seeds p {p_text(each['p_seeds'])}"
    elif each["seeds_a"] == each["seeds_b"] == 1:
        seeds = ", one model each"
    else:
        seeds = f", {each['seeds_a']} and {each['seeds_b']} seeds, too few or too alike to compare"
    return (
        f"{relation}. Accuracy {each['accuracy_a']:.2%} against {each['accuracy_b']:.2%}, "
        f"difference {100 * each['difference']:+.2f} points (95 % interval "
        f"{100 * each['low']:+.2f} to {100 * each['high']:+.2f}); images that only one gets right: "
        f"{each['only_a_right']} and {each['only_b_right']}, exact McNemar p "
        f"{p_text(each['p_images'])}{seeds}."
    )


def p_text(p: float) -> str:
    """`= 0.013`, or `< 1e-99` where nobody minds how much."""
    return f"= {p:.2g}" if p >= SMALLEST_P else f"< {SMALLEST_P:.0e}"


if __name__ == "__main__":
    run(main)
