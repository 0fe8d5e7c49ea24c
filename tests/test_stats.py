"""Statistics of pixels: worked by hand, compared with NumPy, exact whatever the order."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT

from stages import stats
from stages.shared.dataset import Split, save_split
from stages.stats import compute_stats


def patches(images: np.ndarray, size: int) -> np.ndarray:
    """All square patches in 0..1, one flattened patch a row, the plain way."""
    count, height, width, _ = images.shape
    return np.stack(
        [
            images[index, row : row + size, column : column + size].ravel() / 255
            for index in range(count)
            for row in range(height - size + 1)
            for column in range(width - size + 1)
        ]
    )


def command(folder: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "stages.stats", "--data", "train", "--stats", "out/stats.json"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )


def test_two_small_images_as_worked_by_hand() -> None:
    images = np.zeros((2, 3, 3, 3), np.uint8)
    images[0, :, :, 0] = 255  # red: one image full, one empty
    images[:, 0, :, 1] = 51  # green: a third of the pixels at a fifth
    result = compute_stats(images)
    assert result["images"] == 2
    assert result["channel"]["mean"] == pytest.approx([1 / 2, 1 / 15, 0], abs=1e-15)
    # green: (1/3 * 1/25 - 1/225) = 2/225
    assert result["channel"]["std"] == pytest.approx([1 / 2, 2**0.5 / 15, 0], abs=1e-15)
    assert result["overall"]["mean"] == pytest.approx(17 / 90, abs=1e-15)
    # the mean square is (1/2 + 1/75 + 0) / 3 = 77/450
    assert result["overall"]["std"] == pytest.approx((77 / 450 - (17 / 90) ** 2) ** 0.5, abs=1e-15)
    # 2 by 2 patches: four in each image; the upper two of them have green in their upper row
    two = result["patches"]["2"]
    assert two["mean"] == pytest.approx([1 / 2, 1 / 10, 0] * 2 + [1 / 2, 0, 0] * 2, abs=1e-15)
    covariance = np.zeros((12, 12))
    covariance[np.ix_([0, 3, 6, 9], [0, 3, 6, 9])] = 1 / 4
    covariance[np.ix_([1, 4], [1, 4])] = 1 / 100
    np.testing.assert_allclose(two["covariance"], covariance, atol=1e-15)
    # 3 by 3 patches: the whole image, with green always the same
    three = result["patches"]["3"]
    assert three["mean"] == pytest.approx([1 / 2, 1 / 5, 0] * 3 + [1 / 2, 0, 0] * 6, abs=1e-15)
    red = np.arange(0, 27, 3)
    covariance = np.zeros((27, 27))
    covariance[np.ix_(red, red)] = 1 / 4
    np.testing.assert_allclose(three["covariance"], covariance, atol=1e-15)


@pytest.mark.parametrize("shape", [(50, 32, 32, 3), (7, 3, 5, 3), (1, 4, 3, 1), (9, 6, 6, 2)])
def test_the_result_is_numpys(random: np.random.Generator, shape: tuple[int, ...]) -> None:
    images = random.integers(0, 256, shape, np.uint8)
    scaled = images / 255
    result = compute_stats(images)
    close: Any = {"rtol": 0, "atol": 1e-12}
    np.testing.assert_allclose(result["channel"]["mean"], scaled.mean(axis=(0, 1, 2)), **close)
    np.testing.assert_allclose(result["channel"]["std"], scaled.std(axis=(0, 1, 2)), **close)
    np.testing.assert_allclose(result["overall"]["mean"], scaled.mean(), **close)
    np.testing.assert_allclose(result["overall"]["std"], scaled.std(), **close)
    assert sorted(result["patches"]) == ["2", "3"]
    for size in (2, 3):
        rows, patch = patches(images, size), result["patches"][str(size)]
        np.testing.assert_allclose(patch["mean"], rows.mean(axis=0), **close)
        np.testing.assert_allclose(
            patch["covariance"], np.atleast_2d(np.cov(rows.T, bias=True)), **close
        )


@pytest.mark.parametrize("chunk", [1, 7, 59, 60, 61])
def test_the_result_does_not_depend_on_the_chunks(
    toy_split: Split, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    expected = compute_stats(toy_split.images)
    monkeypatch.setattr(stats, "CHUNK", chunk)
    assert compute_stats(toy_split.images) == expected


def test_the_result_does_not_depend_on_the_order_of_the_images(
    toy_split: Split, random: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stats, "CHUNK", 7)
    expected = compute_stats(toy_split.images)
    assert compute_stats(toy_split.images[::-1]) == expected
    assert compute_stats(random.permutation(toy_split.images)) == expected


@pytest.mark.parametrize("value", [0, 1, 127, 254, 255])
def test_images_of_one_value_have_no_deviation(value: int) -> None:
    result = compute_stats(np.full((40, 8, 8, 3), value, np.uint8))
    assert result["channel"] == {"mean": [value / 255] * 3, "std": [0.0] * 3}
    assert result["overall"] == {"mean": value / 255, "std": 0.0}
    for size in ("2", "3"):
        np.testing.assert_allclose(result["patches"][size]["covariance"], 0, atol=1e-15)


def test_one_different_pixel_is_not_lost_in_rounding() -> None:
    images = np.full((100, 32, 32, 3), 255, np.uint8)
    images[0, 0, 0, 0] = 254
    count = 100 * 32 * 32
    expected = (1 / count - 1 / count**2) ** 0.5 / 255
    assert compute_stats(images)["channel"]["std"] == pytest.approx([expected, 0, 0], rel=1e-12)


def test_the_command_writes_the_statistics_and_the_class_counts(
    tmp_path: Path, toy_split: Split
) -> None:
    save_split(toy_split, tmp_path / "train")
    result = command(tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("stats train: 60 images, channels of 0 to 1 have mean 0.")
    written = json.loads((tmp_path / "out/stats.json").read_text())
    assert written.pop("class_counts") == {"circle": 20, "square": 20, "star": 20}
    assert written == compute_stats(toy_split.images)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["stats.json"]


def test_a_class_without_images_is_counted_as_none(tmp_path: Path, toy_split: Split) -> None:
    split = Split(toy_split.images, toy_split.labels, (*toy_split.classes, "spiral"))
    save_split(split, tmp_path / "train")
    assert command(tmp_path).returncode == 0
    written = json.loads((tmp_path / "out/stats.json").read_text())
    assert written["class_counts"] == {"circle": 20, "square": 20, "star": 20, "spiral": 0}


def test_missing_images_are_a_clear_error(tmp_path: Path) -> None:
    result = command(tmp_path)
    assert result.returncode == 1
    assert result.stderr.startswith("error: train/classes.json is missing. Run the download stage")
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()
