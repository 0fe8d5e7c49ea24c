"""Whether one variant is better than another, from their predictions on the same test images.

    python -m tools.compare VARIANT VARIANT ... [--json]

Each pair gets the difference in accuracy with its 95 % interval, and one of three words by its p:
better, worse, or no evidence of a difference. Both are for other test images and other seeds of the
same kind: the variances over images, and over the seeds of each variant, are added. If one of the
variants has a single seed, it is asked whether that could be one more of the other's (Crawford and
Howell 1998, doi 10.1076/clin.12.4.482.7241). In simulations without a difference, 2 to 6 % of
verdicts are wrong with as many seeds each; where seeds differ much, 7 to 12 % with two seeds
against five or more, 8 % with three against one, 13 % with two, and 20 % if the single one's kind
differs twice as much.

With one seed each, two trained models are compared, and not two recipes: another seed may turn the
result. p is that of McNemar's exact test on the images that only one of them gets right, a little
above that of the t-test, from which the interval is.
"""

import argparse
import itertools
import json
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from stages.shared import params
from stages.shared.stage import StageError
from tools.command import run
from tools.results import Predictions, Result, Revision

CONFIDENCE = 0.95
SMALLEST_P = 1e-99


class Variance(NamedTuple):
    """An estimate for one of a difference's independent parts."""

    value: float
    degrees_of_freedom: int


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare each pair of one dataset's variants.")
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
        print(f"Verdicts, but not p and intervals, are corrected for {len(pairs)} comparisons.")


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
                f"of different ones. Run `dvc repro evaluate@{first} evaluate@{name}`."
            )
    return found


def load(result: Result) -> Predictions:
    """What a variant's models got right.

    Raises:
        StageError: if there are no predictions.
    """
    if result.predictions is None:
        path, name = result.path("predictions", ".csv"), result.variant
        made = f"`dvc repro evaluate@{name}` makes it"
        if result.revision.read(path) is not None:
            raise StageError(f"{path} was made with earlier weights of {name}. {made} anew.")
        raise StageError(
            f"{path} is not there. {made}; `dvc pull` fetches it if a colleague has pushed it."
        )
    return result.predictions


def compare(a: np.ndarray, b: np.ndarray) -> dict[str, Any]:
    """The difference between two variants, for other images and other seeds of the same kind.

    Args:
        a, b: which of the same images are right: bool (seeds, images), each with its own seeds.

    Returns:
        `accuracy_a`, `accuracy_b`, their `difference` with its interval, `low` to `high`, and its
        `p`; `only_a_right` and `only_b_right`, numbers of images, None unless there is one seed
        each; and p if only the images were drawn anew, `p_images`, or only the seeds, `p_seeds`,
        None where there is one seed each, or none differs from the others of its variant.
    """
    only_a = only_b = p_seeds = None
    p_images, *ends = over_images(a.mean(axis=0) - b.mean(axis=0))
    if len(a) == len(b) == 1:
        only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
        p_images = float(stats.binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1
    p = p_images
    if np.ptp(a.mean(axis=1)) + np.ptp(b.mean(axis=1)) > 0:
        p_seeds = over_seeds(a.mean(axis=1), b.mean(axis=1))
        p, *ends = over_both(a, b)
    return {
        "accuracy_a": float(a.mean()),
        "accuracy_b": float(b.mean()),
        "seeds_a": len(a),
        "seeds_b": len(b),
        "difference": float(a.mean() - b.mean()),
        "low": ends[0],
        "high": ends[1],
        "only_a_right": only_a,
        "only_b_right": only_b,
        "p_images": p_images,
        "p_seeds": p_seeds,
        "p": p,
    }


def over_images(differences: np.ndarray) -> tuple[float, float, float]:
    """Is the mean over images zero? p of a t-test, and the ends of the mean's interval.

    Args:
        differences: float (images,).
    """
    if np.ptp(differences) == 0:  # nothing to estimate a spread from
        mean = float(differences[0])
        return float(mean == 0), mean, mean
    found = stats.ttest_1samp(differences, 0)
    ends = found.confidence_interval(CONFIDENCE)
    return float(found.pvalue), float(ends.low), float(ends.high)


def over_seeds(a: np.ndarray, b: np.ndarray) -> float:
    """Do seeds' accuracies, not all alike, have one mean? p of Welch's t-test.

    Where one variant has a single seed, whether that may be one more of the other's.

    Args:
        a, b: float (seeds,), each with its own number of seeds.
    """
    return t_test(a.mean() - b.mean(), seed_variances(a, b))[0]


def over_both(a: np.ndarray, b: np.ndarray) -> tuple[float, float, float]:
    """Is the difference zero, if seeds and images are drawn anew? p, and its interval's ends.

    The variances of the difference over images and over seeds are added, which errs on the safe
    side: what a seed changes in an image by itself is in both. Welch and Satterthwaite's degrees.
    """
    images = a.shape[1]
    of_images = float(np.var(a.mean(axis=0) - b.mean(axis=0), ddof=1)) / images
    of_seeds = seed_variances(a.mean(axis=1), b.mean(axis=1))
    return t_test(a.mean() - b.mean(), [*of_seeds, Variance(of_images, images - 1)])


def seed_variances(a: np.ndarray, b: np.ndarray) -> list[Variance]:
    """The variances that two variants' seeds give the difference of their means.

    Of a variant with a single seed the other's variance is taken.

    Args:
        a, b: float (seeds,), each with its own number of seeds.
    """
    if min(len(a), len(b)) > 1:
        return [Variance(float(np.var(each, ddof=1)) / len(each), len(each) - 1) for each in (a, b)]
    several = max(a, b, key=len)
    value = float(np.var(several, ddof=1)) * (1 + 1 / len(several))
    return [Variance(value, len(several) - 1)]


def t_test(difference: float, variances: list[Variance]) -> tuple[float, float, float]:
    """Is a difference zero? Two-sided, with Welch and Satterthwaite's degrees of freedom.

    Returns:
        p, and the ends of the difference's 95 % interval.
    """
    variance = sum(each.value for each in variances)
    freedom = variance**2 / sum(each.value**2 / each.degrees_of_freedom for each in variances)
    distribution = stats.t(freedom, loc=difference, scale=np.sqrt(variance))
    low, high = distribution.interval(CONFIDENCE)
    p = 2 * min(distribution.cdf(0), distribution.sf(0))
    return float(p), float(low), float(high)


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
        p = p_text(each["p"])
        if min(each["seeds_a"], each["seeds_b"]) == 1:
            p += ", if both vary alike"
        tests = (
            f"p {p}; over images alone p {images}, over {seeds} alone p {p_text(each['p_seeds'])}"
        )
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
