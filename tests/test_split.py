"""Which images are trained on and which are held out, as worked by hand."""

import numpy as np
import pytest

from stages.shared.stage import StageError
from stages.training.split import split_indices

#                index  0  1  2  3  4  5  6  7  8  9
LABELS = np.array([0, 1, 0, 2, 1, 0, 2, 1, 0, 2], np.uint8)


@pytest.mark.parametrize(
    ("images_per_class", "fraction", "split", "training", "validation"),
    [
        # nothing held out
        ("all", 0.0, "end", [0, 1, 2, 3, 4, 5, 6, 7, 8, 9], []),
        ("all", 0.0, "stratified", [0, 1, 2, 3, 4, 5, 6, 7, 8, 9], []),
        # the last ones, rounded down
        ("all", 0.1, "end", [0, 1, 2, 3, 4, 5, 6, 7, 8], [9]),
        ("all", 0.39, "end", [0, 1, 2, 3, 4, 5, 6], [7, 8, 9]),
        ("all", 0.4, "end", [0, 1, 2, 3, 4, 5], [6, 7, 8, 9]),
        ("all", 0.9, "end", [0], [1, 2, 3, 4, 5, 6, 7, 8, 9]),
        # the last ones of each class: of 4 zeros, 3 ones and 3 twos
        ("all", 0.25, "stratified", [0, 1, 2, 3, 4, 5, 6, 7, 9], [8]),
        ("all", 0.34, "stratified", [0, 1, 2, 3, 4, 5, 6], [7, 8, 9]),
        ("all", 0.5, "stratified", [0, 1, 2, 3, 4, 6], [5, 7, 8, 9]),
        ("all", 0.7, "stratified", [0, 1, 2, 3], [4, 5, 6, 7, 8, 9]),
        # the first of each class
        (1, 0.0, "end", [0, 1, 3], []),
        (2, 0.0, "end", [0, 1, 2, 3, 4, 6], []),
        (3, 0.0, "stratified", [0, 1, 2, 3, 4, 5, 6, 7, 9], []),
        # both: the first of each class, and of these the last
        (2, 0.4, "end", [0, 1, 2, 3], [4, 6]),
        (1, 0.34, "end", [0, 1], [3]),
        (2, 0.5, "stratified", [0, 1, 3], [2, 4, 6]),
        (3, 0.4, "stratified", [0, 1, 2, 3, 4, 6], [5, 7, 9]),
        (3, 0.67, "stratified", [0, 1, 3], [2, 4, 5, 6, 7, 9]),
    ],
)
def test_images_are_chosen_and_held_out(
    images_per_class: int | str,
    fraction: float,
    split: str,
    training: list[int],
    validation: list[int],
) -> None:
    result = split_indices(LABELS, images_per_class, fraction, split)
    assert [part.tolist() for part in result] == [training, validation]
    assert [part.dtype for part in result] == [np.int32, np.int32]


@pytest.mark.parametrize(("fraction", "count"), [(0.07, 7), (0.2, 20), (0.29, 29), (0.57, 57)])
@pytest.mark.parametrize("split", ["end", "stratified"])
def test_a_whole_number_of_images_is_not_rounded(fraction: float, count: int, split: str) -> None:
    # 100 * 0.29 is 28.999999999999996
    labels = np.zeros(100, np.uint8)
    assert len(split_indices(labels, "all", fraction, split)[1]) == count


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.25, 0.3, 0.8])
@pytest.mark.parametrize("split", ["end", "stratified"])
@pytest.mark.parametrize("images_per_class", ["all", 40])
def test_the_parts_are_disjoint_increasing_and_of_the_right_size(
    random: np.random.Generator, fraction: float, split: str, images_per_class: int | str
) -> None:
    labels = random.permutation(np.repeat(np.arange(10, dtype=np.uint8), 80))
    training, validation = split_indices(labels, images_per_class, fraction, split)
    used = 800 if images_per_class == "all" else 400
    assert len(np.union1d(training, validation)) == len(training) + len(validation) == used
    assert len(validation) == round(used * fraction)
    for part in (training, validation):
        assert (np.diff(part) > 0).all()
    if split == "stratified":
        assert set(np.bincount(labels[training], minlength=10)) == {len(training) // 10}
    if images_per_class == 40:
        assert (np.bincount(labels[np.concatenate([training, validation])]) == 40).all()


@pytest.mark.parametrize("images_per_class", [4, 5, 1000])
def test_more_images_than_the_smallest_class_has_are_refused(images_per_class: int) -> None:
    message = rf"at most 3, the images of the smallest class\. Received: {images_per_class}\."
    with pytest.raises(StageError, match=message):
        split_indices(LABELS, images_per_class, 0.0, "end")


@pytest.mark.parametrize(
    ("images_per_class", "fraction", "split", "of"),
    [
        ("all", 0.05, "end", 10),
        ("all", 0.24, "stratified", 10),
        (1, 0.3, "end", 3),
        (1, 0.9, "stratified", 3),
    ],
)
def test_a_fraction_that_holds_out_no_image_is_refused(
    images_per_class: int | str, fraction: float, split: str, of: int
) -> None:
    message = rf"at least one image on either side\. Received: {fraction} of {of} images\."
    with pytest.raises(StageError, match=message):
        split_indices(LABELS, images_per_class, fraction, split)
