"""tools/compare.py: hand-worked cases, simulated data without a difference, and its words."""

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import PARAMS
from scipy import stats

from stages.shared.stage import StageError
from tools import compare


def right(*rows: str) -> np.ndarray:
    return np.array([[mark == "+" for mark in row] for row in rows])


def test_mcnemar_and_the_interval_worked_by_hand() -> None:
    # 5 images only a has, 1 only b, 4 both: two-sided binomial 2 * (1 + 6) / 64
    found = compare.compare(right("+++++-++++"), right("-----+++++"))
    assert (found["only_a_right"], found["only_b_right"]) == (5, 1)
    assert found["p_images"] == pytest.approx(14 / 64)
    assert found["difference"] == pytest.approx(0.4)
    # the differences are 1 five times, -1 once, 0 four times: variance (6 - 10 * .16) / 9
    half = 2.262157 * np.sqrt((6 - 1.6) / 9 / 10)
    assert (found["low"], found["high"]) == pytest.approx((0.4 - half, 0.4 + half), abs=1e-5)
    assert found["p_seeds"] is None
    assert compare.verdict(found, 1) == "no evidence of a difference"


def test_the_other_way_round_is_the_mirror_image() -> None:
    a, b = right("++++++++++++--", "+++++++++++++-"), right("--+-+--++--+-+", "--+-+--++--+--")
    one, two = compare.compare(a, b), compare.compare(b, a)
    assert (one["difference"], one["low"]) == (-two["difference"], -two["high"])
    assert (one["p_images"], one["p_seeds"]) == (two["p_images"], two["p_seeds"])


def test_equal_models_are_no_evidence_of_a_difference() -> None:
    same = right("++-+", "+-++")
    found = compare.compare(same, same)
    assert (found["difference"], found["p"]) == (0, 1)
    alone = compare.compare(right("++-+"), right("++-+"))
    assert (alone["low"], alone["high"], alone["p"]) == (0, 0, 1)
    assert compare.verdict(alone, 1) == "no evidence of a difference"


def test_seeds_that_differ_more_than_the_variants_do_are_no_evidence() -> None:
    count = 4000
    rows = [np.arange(count) < share * count for share in (0.50, 0.80, 0.60, 0.90)]
    found = compare.compare(np.array(rows[1::2]), np.array(rows[::2]))
    assert found["p_images"] < 1e-6
    assert min(found["p"], found["p_seeds"]) > 0.05
    assert found["low"] < 0 < found["high"]
    assert compare.verdict(found, 1) == "no evidence of a difference"


def test_a_clear_difference_is_found_and_corrected_for_the_number_of_comparisons() -> None:
    found = {"p": 0.02, "difference": 0.1}
    assert compare.verdict(found, 1) == "better"
    assert compare.verdict(found, 3) == "no evidence of a difference"
    assert compare.verdict(found | {"difference": -0.1}, 2) == "worse"


def test_one_seed_against_several_worked_by_hand() -> None:
    several = right("+++++-----", "++++++----", "+++++++---")  # 0.6 with a deviation of 0.1
    one = right("+++++++++-")
    found = compare.compare(several, one)
    t = 0.3 / (0.1 * np.sqrt(1 + 1 / 3))
    assert found["p_seeds"] == pytest.approx(1 - t / np.sqrt(2 + t**2))  # Student's, two degrees
    # differences of images are 0 five times, -1/3, -2/3, -1 twice, 0 once: mean -0.3
    images = (2 * 1 + 4 / 9 + 1 / 9 - 10 * 0.09) / 9 / 10
    seeds = 0.01 * 4 / 3
    degrees = (images + seeds) ** 2 / (images**2 / 9 + seeds**2 / 2)
    half = stats.t(degrees).ppf(0.975) * np.sqrt(images + seeds)
    assert (found["low"], found["high"]) == pytest.approx((-0.3 - half, -0.3 + half))
    assert found["p"] == pytest.approx(2 * stats.t(degrees).sf(0.3 / np.sqrt(images + seeds)))
    assert found["only_a_right"] is None
    turned = compare.compare(one, several)
    assert (turned["p"], turned["low"]) == pytest.approx((found["p"], -found["high"]))


def test_two_and_three_seeds_worked_by_hand() -> None:
    a, b = right("++++++++--", "++++++----"), right("++--------", "+++-------", "++++------")
    found = compare.compare(a, b)
    # accuracies 0.8, 0.6 and 0.2, 0.3, 0.4; of images, 0 0 1/3 2/3 1 1 1/2 1/2 0 0 between them
    images = (1 / 9 + 4 / 9 + 1 + 1 + 0.25 + 0.25 - 10 * 0.16) / 9 / 10
    degrees = (images + 0.01 + 0.01 / 3) ** 2 / (images**2 / 9 + 1e-4 + (0.01 / 3) ** 2 / 2)
    half = stats.t(degrees).ppf(0.975) * np.sqrt(images + 0.01 + 0.01 / 3)
    assert (found["low"], found["high"]) == pytest.approx((0.4 - half, 0.4 + half))
    welch = stats.ttest_ind([0.8, 0.6], [0.2, 0.3, 0.4], equal_var=False)
    assert found["p_seeds"] == pytest.approx(welch.pvalue)


@pytest.mark.parametrize(
    ("seeds_a", "seeds_b", "recipe", "seed"),
    [
        (1, 1, 0, 0),
        (3, 3, 0, 0),
        (3, 1, 0, 0),
        (3, 3, 0.6, 0.12),
        (5, 5, 0.6, 0.12),
        (10, 10, 0.6, 0.12),
        (5, 5, 0.05, 0.2),
        (5, 3, 0.3, 0.2),
    ],
)
def test_variants_that_do_not_differ_are_called_different_in_about_one_of_twenty_cases(
    random: np.random.Generator, seeds_a: int, seeds_b: int, recipe: float, seed: float
) -> None:
    """Some images are hard for all, some for a recipe, and some seeds are worse in all images."""

    def trained(seeds: int) -> np.ndarray:
        margin = easy + recipe * random.standard_normal(500)
        margin = margin + seed * random.standard_normal((seeds, 1))
        return margin + 0.7 * random.standard_normal((seeds, 500)) > 0

    wrong, simulations = 0, 400
    for _ in range(simulations):
        easy = random.normal(1.2, 1.6, 500)
        found = compare.compare(trained(seeds_a), trained(seeds_b))
        wrong += compare.verdict(found, 1) != "no evidence of a difference"
    print(f"wrong verdicts: {wrong} of {simulations}")
    assert stats.binomtest(wrong, simulations, 0.06, alternative="greater").pvalue > 1e-3


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A params.yaml, and predictions of two shapes variants on 60 images."""
    (tmp_path / "params.yaml").write_bytes(PARAMS.read_bytes())
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "shapes-lenet", [50, 49])
    write(tmp_path, "shapes-simple", [20])
    return tmp_path


def write(folder: Path, variant: str, right_of_60: list[int]) -> None:
    path = folder / "results/predictions/shapes" / f"{variant}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["seed", "index", "true", "predicted", "confidence"])
        for seed, count in enumerate(right_of_60):
            for index in range(60):
                predicted = "star" if index < count else "ring"
                writer.writerow([seed, index, "star", predicted, 0.5])


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["compare", *arguments])
    compare.main()


def test_a_sentence_says_which_is_better_and_by_how_much(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, "shapes-lenet", "shapes-simple")
    text = capsys.readouterr().out
    assert "shapes-lenet is better than shapes-simple. Accuracy 82.50% against 33.33%" in text
    assert "difference +49.17 points (95 % interval " in text
    assert "; over images alone p = " in text
    assert ", over 2 and 1 seeds alone p = 0.019." in text
    write(project, "shapes-lenet", [49, 50, 51])
    write(project, "shapes-convnet", [50])
    run(monkeypatch, "shapes-simple", "shapes-lenet", "shapes-convnet")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("shapes-simple is worse than shapes-lenet.")
    assert "one model each, images that only one gets right: 0 and 30, exact" in lines[1]
    assert "shapes-lenet and shapes-convnet: no evidence of a difference." in lines[2]
    assert lines[3] == "Verdicts, but not p and intervals, are corrected for 3 comparisons."


def test_the_same_two_variants_need_more_evidence_among_three(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, count in (("lenet", 50), ("simple", 44), ("convnet", 50)):  # p = 2 / 2**6
        write(project, f"shapes-{name}", [count])
    run(monkeypatch, "shapes-lenet", "shapes-simple")
    assert "is better than" in capsys.readouterr().out
    run(monkeypatch, "shapes-lenet", "shapes-simple", "shapes-convnet")
    assert capsys.readouterr().out.count(": no evidence of a difference.") == 3


def test_a_sentence_has_each_number_in_its_place_and_in_points() -> None:
    each = {"a": "x", "b": "y", "verdict": "better", "accuracy_a": 0.9, "accuracy_b": 0.85}
    each |= {"seeds_a": 3, "seeds_b": 2, "difference": 0.05, "low": 0.0125, "high": 0.0875}
    each |= {"only_a_right": None, "p": 0.03, "p_images": 0.001, "p_seeds": 0.02}
    assert compare.sentence(each) == (
        "x is better than y. Accuracy 90.00% against 85.00%, difference +5.00 points (95 % "
        "interval +1.25 to +8.75); p = 0.03; over images alone p = 0.001, over 3 and 2 seeds alone "
        "p = 0.02."
    )


def test_json_has_the_numbers(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, "shapes-lenet", "shapes-simple", "--json")
    (found,) = json.loads(capsys.readouterr().out)
    assert (found["a"], found["b"], found["verdict"]) == ("shapes-lenet", "shapes-simple", "better")
    assert found["seeds_a"] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["shapes-lenet"], "Two or more different variants"),
        (["shapes-lenet", "shapes-lenet"], "Two or more different variants"),
        (["shapes-lenet", "cifar10-lenet"], "of one dataset"),
        (["shapes-lenet", "shapes-lenot"], "Did you mean 'shapes-lenet'"),
        (["shapes-lenet", "shapes-deep-bn"], "dvc repro evaluate@shapes-deep-bn"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    project: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    with pytest.raises(StageError, match=message):
        run(monkeypatch, *arguments)


def test_predictions_of_earlier_weights_are_refused(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = {"path": "results/weights/shapes/shapes-simple", "md5": "new"}
    stages = {
        "train@shapes-simple": {"cmd": "train", "outs": [weights]},
        "evaluate@shapes-simple": {"cmd": "evaluate", "deps": [weights | {"md5": "old"}]},
    }
    (project / "dvc.lock").write_text(json.dumps({"schema": "2.0", "stages": stages}))
    with pytest.raises(
        StageError, match=r"was made with earlier weights.*evaluate@shapes-simple` makes"
    ):
        run(monkeypatch, "shapes-lenet", "shapes-simple")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "seed,index,true\n1,2,a\n",
        "seed,index,true,predicted\n1,x,a,a\n",
        "seed,index,true,predicted\n1,0,a,a\n1,1,a,a\n2,0,a,a\n",
        "seed,index,true,predicted\n1,0,a,a\n2,1,a,a\n",
        'seed,index,true,predicted\n1,0,a,"' + "a" * 200_000,
    ],
)
def test_damaged_predictions_are_refused(
    project: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    (project / "results/predictions/shapes/shapes-simple.csv").write_text(text)
    with pytest.raises(StageError, match="dvc repro"):
        run(monkeypatch, "shapes-lenet", "shapes-simple")


def test_other_images_are_refused(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many, but others: their classes tell."""
    path = project / "results/predictions/shapes/shapes-simple.csv"
    path.write_text(path.read_text().replace("0,7,star,star", "0,7,ring,ring"))
    with pytest.raises(StageError, match=r"on the same images.*evaluate@shapes-lenet evaluate@sha"):
        run(monkeypatch, "shapes-lenet", "shapes-simple")


@pytest.mark.parametrize(("p", "text"), [(0.0134, "= 0.013"), (1, "= 1"), (0, "< 1e-99")])
def test_a_p_value_is_never_zero(p: float, text: str) -> None:
    assert compare.p_text(p) == text
