"""Augmentation against cases worked with numpy: padding, cropping, mirroring, turning."""

from typing import Any

import numpy as np
import pytest
from conftest import PARAMS

from stages.shared import params
from stages.training.augmentation import DRAWS, AugmentedImages, epoch_plan, resized

RECIPES = {name: recipe.model_dump() for name, recipe in params.load(PARAMS).recipes.items()}
NOTHING: dict[str, Any] = {
    "rotation_degrees": 0,
    "shift_fraction": 0.0,
    "pad_crop_pixels": 0,
    "cutout_pixels": 0,
    "horizontal_flip": "none",
    "fill": "nearest",
}
EVERYTHING = {
    "rotation_degrees": 180,
    "shift_fraction": 0.9,
    "pad_crop_pixels": 4,
    "cutout_pixels": 3,
    "horizontal_flip": "random",
}
MEAN = [1.0, 2.0, 3.0]
NUMPY_MODES = {"nearest": "edge", "reflect": "reflect", "black": "constant"}


@pytest.fixture
def images(random: np.random.Generator) -> np.ndarray:
    """Not square, so that rows and columns cannot be mistaken for each other."""
    return random.integers(0, 256, (3, 6, 8, 3), np.uint8)


def augment(
    images: np.ndarray,
    config: dict[str, Any],
    training: bool = True,
    scale: float = 1.0,
    **draws: float,
) -> np.ndarray:
    """All the images, each with the same draws; those that are not named are 1/2: no change."""
    rows = np.tile([draws.get(name, 0.5) for name in DRAWS], (len(images), 1)).astype(np.float32)
    layer = AugmentedImages(images, NOTHING | config, MEAN[: images.shape[-1]], scale)
    index = np.arange(len(images), dtype=np.int32)
    return np.asarray(layer([index, rows], training=training))


def test_images_are_as_they_are_outside_of_training(images: np.ndarray) -> None:
    out = augment(images, EVERYTHING, training=False, rotation=0.9, shift_x=0.1, crop_y=0, flip=1)
    np.testing.assert_array_equal(out, images)
    assert out.dtype == np.float32


def test_nothing_configured_changes_nothing_in_training(images: np.ndarray) -> None:
    out = augment(images, {}, rotation=0.9, shift_y=0.1, shift_x=0.1, crop_y=0, crop_x=0, flip=0.9)
    np.testing.assert_array_equal(out, images)


def test_images_are_looked_up_by_index_each_with_its_own_draws(images: np.ndarray) -> None:
    layer = AugmentedImages(images, NOTHING | {"horizontal_flip": "random"}, MEAN)
    draws = np.full((3, len(DRAWS)), 0.9, np.float32)
    draws[1] = 0.1
    out = np.asarray(layer([np.array([[2], [0], [2]], np.int32), draws], training=True))
    np.testing.assert_array_equal(out, [images[2][:, ::-1], images[0], images[2][:, ::-1]])


@pytest.mark.parametrize("flip", ["random", "alternating"])
@pytest.mark.parametrize(
    ("draw", "mirrored"), [(0.0, False), (0.49, False), (0.5, True), (1, True)]
)
def test_a_draw_of_a_half_or_more_mirrors(
    images: np.ndarray, flip: str, draw: float, mirrored: bool
) -> None:
    out = augment(images, {"horizontal_flip": flip}, flip=draw)
    np.testing.assert_array_equal(out, images[:, :, ::-1] if mirrored else images)


@pytest.mark.parametrize("fill", NUMPY_MODES)
@pytest.mark.parametrize(("draw_y", "draw_x", "top", "left"), [(0, 0.99, 0, 4), (0.7, 0.3, 3, 1)])
def test_pad_and_crop_is_numpys(
    images: np.ndarray, fill: str, draw_y: float, draw_x: float, top: int, left: int
) -> None:
    padded = np.pad(images, [(0, 0), (2, 2), (2, 2), (0, 0)], mode=NUMPY_MODES[fill])
    out = augment(images, {"pad_crop_pixels": 2, "fill": fill}, crop_y=draw_y, crop_x=draw_x)
    np.testing.assert_array_equal(out, padded[:, top : top + 6, left : left + 8])


def test_a_crop_is_taken_before_mirroring(images: np.ndarray) -> None:
    config = {"pad_crop_pixels": 1, "horizontal_flip": "random", "fill": "black"}
    out = augment(images, config, crop_y=0.5, crop_x=0.99, flip=0.99)
    padded = np.pad(images, [(0, 0), (0, 0), (1, 1), (0, 0)])
    np.testing.assert_array_equal(out, padded[:, :, 2:][:, :, ::-1])


@pytest.mark.parametrize("fill", NUMPY_MODES)
@pytest.mark.parametrize(("draw_y", "draw_x", "top", "left"), [(0, 0.5, 0, 4), (1, 0, 6, 0)])
def test_a_shift_by_whole_pixels_is_numpys(
    images: np.ndarray, fill: str, draw_y: float, draw_x: float, top: int, left: int
) -> None:
    padding = [(0, 0), (3, 3), (4, 4), (0, 0)]  # half the height and half the width
    padded = np.pad(images, padding, mode=NUMPY_MODES[fill])
    out = augment(images, {"shift_fraction": 0.5, "fill": fill}, shift_y=draw_y, shift_x=draw_x)
    np.testing.assert_array_equal(out, padded[:, top : top + 6, left : left + 8])


def test_a_shift_by_half_a_pixel_lies_half_way_between_neighbours() -> None:
    image = np.array([[10, 20, 40, 80]], np.uint8).reshape(1, 1, 4, 1)
    out = augment(image, {"shift_fraction": 0.125}, shift_x=1)
    np.testing.assert_array_equal(out.ravel(), [15, 30, 60, 80])
    out = augment(image, {"shift_fraction": 0.125, "fill": "black"}, shift_x=0)
    np.testing.assert_array_equal(out.ravel(), [5, 15, 30, 60])


def test_half_a_pixel_both_ways_is_the_mean_of_four() -> None:
    image = np.array([[0, 10], [20, 70]], np.uint8).reshape(1, 2, 2, 1)
    out = augment(image, {"shift_fraction": 0.25}, shift_y=1, shift_x=1)
    np.testing.assert_array_equal(out.reshape(2, 2), [[25, 40], [45, 70]])


@pytest.mark.parametrize(("draw", "quarter_turns"), [(1, -1), (0, 1)])
def test_a_positive_angle_turns_clockwise(
    random: np.random.Generator, draw: float, quarter_turns: int
) -> None:
    square = random.integers(0, 256, (2, 7, 7, 3), np.uint8)
    out = augment(square, {"rotation_degrees": 90}, rotation=draw)
    expected = np.rot90(square, quarter_turns, axes=(1, 2))
    np.testing.assert_allclose(out, expected, atol=0.01)


def test_a_rotation_by_nothing_leaves_the_pixels(images: np.ndarray) -> None:
    np.testing.assert_array_equal(augment(images, {"rotation_degrees": 180}), images)


@pytest.mark.parametrize("fill", NUMPY_MODES)
def test_everything_together_changes_the_pixels_and_keeps_their_range(
    random: np.random.Generator, fill: str
) -> None:
    images = random.integers(0, 2, (20, 32, 32, 3), np.uint8) * np.uint8(255)
    layer = AugmentedImages(images, EVERYTHING | {"fill": fill}, MEAN)
    index, draws = epoch_plan(20, seed=0, epoch=0)
    out = np.asarray(layer([index, draws], training=True))
    changed = (np.abs(out - images[index]) > 1).mean(axis=(1, 2, 3))
    assert changed.min() > 0.1
    assert out.min() >= -0.001
    assert out.max() <= 255.001
    assert np.isfinite(out).all()


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_changes_pixels_if_it_says_so_and_else_none(
    name: str, random: np.random.Generator
) -> None:
    config = RECIPES[name]["augmentation"]
    images = random.integers(0, 256, (50, 32, 32, 3), np.uint8)
    index, draws = epoch_plan(50, seed=7, epoch=0)
    out = np.asarray(AugmentedImages(images, config, MEAN)([index, draws], training=True))
    share = (out != images[index]).any(axis=(1, 2, 3)).mean()
    says_so = any(value not in (0, "none") for key, value in config.items() if key != "fill")
    assert share > 0.3 if says_so else share == 0


def test_an_epochs_plan_visits_each_image_once_with_draws_from_0_to_below_1() -> None:
    order, draws = epoch_plan(5000, seed=3, epoch=2)
    assert sorted(order) == list(range(5000))
    assert (order[:100] != np.arange(100)).any()
    assert order.dtype == np.int32
    assert draws.shape == (5000, len(DRAWS))
    assert draws.dtype == np.float32
    assert 0 <= draws.min() < 0.01
    assert 0.99 < draws.max() < 1


def test_an_epochs_plan_depends_on_seed_and_epoch_alone() -> None:
    order, draws = epoch_plan(40, seed=3, epoch=2)
    again, draws_again = epoch_plan(40, seed=3, epoch=2)
    np.testing.assert_array_equal(order, again)
    np.testing.assert_array_equal(draws, draws_again)


@pytest.mark.parametrize(("seed", "epoch"), [(4, 2), (3, 3), (2, 3), (0, 0), (2**32 - 1, 2)])
def test_another_seed_or_epoch_has_another_plan(seed: int, epoch: int) -> None:
    order, draws = epoch_plan(40, seed=3, epoch=2)
    other, other_draws = epoch_plan(40, seed=seed, epoch=epoch)
    assert (order != other).any()
    assert (draws != other_draws).all(axis=1).any()


def test_alternating_flips_mirror_each_image_in_every_other_epoch() -> None:
    flips = []
    for epoch in range(4):
        order, draws = epoch_plan(300, seed=5, epoch=epoch, flip="alternating")
        by_image = np.empty(300)
        by_image[order] = draws[:, DRAWS.index("flip")]
        flips.append(by_image >= 0.5)
    assert 100 < flips[0].sum() < 200
    np.testing.assert_array_equal(flips[1], ~flips[0])
    np.testing.assert_array_equal(flips[2], flips[0])
    np.testing.assert_array_equal(flips[3], flips[1])
    order, draws = epoch_plan(300, seed=5, epoch=1)
    other = epoch_plan(300, seed=5, epoch=1, flip="alternating")
    np.testing.assert_array_equal(other[0], order)
    assert (other[1] == draws).sum() >= 300 * (len(DRAWS) - 1)
    order, draws = epoch_plan(300, seed=6, epoch=0, flip="alternating")
    by_image[order] = draws[:, DRAWS.index("flip")]
    assert ((by_image >= 0.5) != flips[0]).any()


def test_resized_images_are_averages_of_what_they_cover(random: np.random.Generator) -> None:
    images = random.integers(0, 256, (3, 32, 32, 3), np.uint8)
    assert resized(images, 32) is images
    flat = resized(np.full((2, 32, 32, 3), 77, np.uint8), 20)
    assert flat.shape == (2, 20, 20, 3)
    assert flat.dtype == np.uint8
    assert (flat == 77).all()
    halves = resized(images, 16).astype(float)
    assert np.abs(halves.mean(axis=(1, 2)) - images.mean(axis=(1, 2))).max() < 1
    ramp = np.broadcast_to(np.arange(0, 256, 8, np.uint8)[:, None], (1, 32, 32))[..., None]
    inner = resized(ramp, 16)[0, 1:-1, :, 0]
    np.testing.assert_array_equal(inner[:, 0], np.arange(4, 256, 16)[1:-1])
    stripes = np.tile(np.array([255, 0, 0, 255], np.uint8), 8)[:, None, None]
    assert resized(np.broadcast_to(stripes, (1, 32, 32, 1)), 8).min() > 100


def test_images_are_resized_in_parts(
    random: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = random.integers(0, 256, (5, 32, 32, 3), np.uint8)
    at_once = resized(images, 20)
    monkeypatch.setattr("stages.training.augmentation.RESIZED_AT_ONCE", 2)
    np.testing.assert_array_equal(resized(images, 20), at_once)


@pytest.mark.parametrize(("scale", "padding"), [(1.0, 2), (0.75, 2), (0.5, 1), (0.2, 0)])
def test_the_crops_padding_shrinks_with_the_images(
    images: np.ndarray, scale: float, padding: int
) -> None:
    config = {"pad_crop_pixels": 2, "fill": "black"}
    out = augment(images, config, scale=scale, crop_y=0, crop_x=0)
    padded = np.pad(images, [(0, 0), (padding, padding), (padding, padding), (0, 0)])
    np.testing.assert_array_equal(out, padded[:, :6, :8])


@pytest.mark.parametrize(
    ("draw_y", "draw_x", "top", "left"), [(0, 0.99, 0, 6), (0.5, 0.2, 2, 1), (0.99, 0, 4, 0)]
)
def test_a_square_is_cut_out_and_lies_wholly_inside(
    images: np.ndarray, draw_y: float, draw_x: float, top: int, left: int
) -> None:
    out = augment(images, {"cutout_pixels": 2}, cutout_y=draw_y, cutout_x=draw_x)
    expected = images.astype(np.float32)
    expected[:, top : top + 2, left : left + 2] = MEAN
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize(("scale", "side"), [(1.0, 4), (0.75, 3), (0.5, 2), (0.1, 0)])
def test_the_square_that_is_cut_out_shrinks_with_the_images(
    images: np.ndarray, scale: float, side: int
) -> None:
    out = augment(images, {"cutout_pixels": 4}, scale=scale, cutout_y=0, cutout_x=0)
    expected = images.astype(np.float32)
    expected[:, :side, :side] = MEAN
    np.testing.assert_array_equal(out, expected)
