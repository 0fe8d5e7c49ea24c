"""Whether one variant is better than another, from their predictions on the same test images.

    python -m tools.compare VARIANT VARIANT ... [--json]

Each pair gets the difference in accuracy with its 95 % interval and one of three words: better,
worse, or no evidence of a difference. It is "better" only where every test that applies says so:

- would other test images give the same? With one seed each, McNemar's exact test on the images that
  only one of two models gets right; else a t-test of the images' mean differences;
- would other seeds? Welch's t-test between the seeds' accuracies. If one of the variants has a
  single seed, it is asked whether that seed could be one more of the other variant's (Crawford and
  Howell 1998, doi 10.1076/clin.12.4.482.7241).

With one seed each, two trained models are compared, and not two recipes: another seed may turn the
result.
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
from tools.results import Predictions, Result, Revision

CONFIDENCE = 0.95
SMALLEST_P = 1e-99


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare variants of one dataset, each pair.")
    parser.add_argument("variants", nargs="+", help="keys of params.yaml's variants, two or more")
    parser.add_argument("--json", action="store_true", help="print JSON instead of sentences")
    args = parser.parse_args()

    results = {name: each.right for name, each in load_all(args.variants).items()}
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


def load_all(names: list[str]) -> dict[str, Predictions]:
    """What each variant's models got right.

    Raises:
        StageError: if there are fewer than two, of several datasets or test images, or one without
            predictions.
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
    revision = Revision()
    found = {name: load(Result(revision, dataset, name)) for name, dataset in datasets.items()}
    first, *others = found
    for name in others:
        if found[name].images != found[first].images:
            raise StageError(
                f"The variants must be evaluated on the same images. Received: {first} and {name}, "
                f"with others. Run `dvc repro evaluate@{first} evaluate@{name}`."
            )
    return found


def load(result: Result) -> Predictions:
    """What a variant's models got right.

    Raises:
        StageError: if there are no predictions.
    """
    if result.predictions is None:
        raise StageError(
            f"{result.path('predictions', '.csv')} is not there. "
            f"`dvc repro evaluate@{result.variant}` makes it; `dvc pull` fetches it if a colleague "
            "has pushed it."
        )
    return result.predictions


def compare(a: np.ndarray, b: np.ndarray) -> dict[str, Any]:
    """The difference between two variants.

    Args:
        a, b: which of the same images are right: bool (seeds, images), each with its own seeds.

    Returns:
        `accuracy_a`, `accuracy_b`, their `difference` with its interval, `low` to `high`, which is
        the wider one of that over images and that over seeds; `only_a_right` and `only_b_right`,
        numbers of images, None unless there is one seed each; `p_images`; `p_seeds`, None where
        there is one seed each, or none differs from the others of its variant; and `p`, the larger.
    """
    only_a = only_b = None
    p_images, *ends = over_images(a.mean(axis=0) - b.mean(axis=0))
    if len(a) == len(b) == 1:
        only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
        p_images = float(stats.binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1
    intervals = [ends]
    p_seeds = None
    seeds_a, seeds_b = a.mean(axis=1), b.mean(axis=1)
    if np.ptp(seeds_a) + np.ptp(seeds_b) > 0:
        p_seeds, *ends = over_seeds(seeds_a, seeds_b)
        intervals.append(ends)
    low, high = max(intervals, key=lambda each: each[1] - each[0])
    return {
        "accuracy_a": float(a.mean()),
        "accuracy_b": float(b.mean()),
        "seeds_a": len(a),
        "seeds_b": len(b),
        "difference": float(a.mean() - b.mean()),
        "low": low,
        "high": high,
        "only_a_right": only_a,
        "only_b_right": only_b,
        "p_images": p_images,
        "p_seeds": p_seeds,
        "p": max(p_images, p_seeds or 0.0),
    }


def over_images(differences: np.ndarray) -> tuple[float, float, float]:
    """Is the mean over images zero? p of a t-test, and the ends of the mean's interval."""
    if np.ptp(differences) == 0:  # nothing to estimate a spread from
        mean = float(differences[0])
        return float(mean == 0), mean, mean
    found = stats.ttest_1samp(differences, 0)
    ends = found.confidence_interval(CONFIDENCE)
    return float(found.pvalue), float(ends.low), float(ends.high)


def over_seeds(a: np.ndarray, b: np.ndarray) -> tuple[float, float, float]:
    """Do seeds' accuracies, not all alike, have one mean? p, and the difference's interval's ends.

    Of two variants with several seeds, by Welch's t-test; where one has a single seed, by whether
    it may be one more of the other's.
    """
    if min(len(a), len(b)) > 1:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # scipy warns of one variant's seeds that are all alike
            found = stats.ttest_ind(a, b, equal_var=False)
        ends = found.confidence_interval(CONFIDENCE)
        return float(found.pvalue), float(ends.low), float(ends.high)
    several = max(a, b, key=len)
    error = several.std(ddof=1) * np.sqrt(1 + 1 / len(several))
    found = stats.t(len(several) - 1, loc=a.mean() - b.mean(), scale=error)
    low, high = found.interval(CONFIDENCE)
    return float(2 * min(found.cdf(0), found.sf(0))), float(low), float(high)


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
    images, seeds = p_text(each["p_images"]), f"{each['seeds_a']} and {each['seeds_b']} seeds"
    if each["only_a_right"] is not None:
        tests = (
            f"one model each, images that only one gets right: {each['only_a_right']} and "
            f"{each['only_b_right']}, exact McNemar p {images}"
        )
    elif each["p_seeds"] is None:
        tests = f"over images p {images}, {seeds}, too alike to compare"
    else:
        tests = f"over images p {images}, over {seeds} p {p_text(each['p_seeds'])}"
    return (
        f"{relation}. Accuracy {each['accuracy_a']:.2%} against {each['accuracy_b']:.2%}, "
        f"difference {100 * each['difference']:+.2f} points (95 % interval "
        f"{100 * each['low']:+.2f} to {100 * each['high']:+.2f}); {tests}."
    )


def p_text(p: float) -> str:
    """`= 0.013`, or `< 1e-99` where nobody minds how much."""
    return f"= {p:.2g}" if p >= SMALLEST_P else f"< {SMALLEST_P:.0e}"


if __name__ == "__main__":
    run(main)
