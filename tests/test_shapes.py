"""The drawn dataset: the same bytes everywhere, balanced, and no image twice."""

import hashlib

import numpy as np
import pytest

from stages.datasets.shapes import CHUNK, CLASSES, draw, prepare
from stages.shared.dataset import Split


def prepared(train_images: int, test_images: int, seed: int = 0) -> tuple[Split, Split]:
    """Both splits; anything that is fetched is an error."""

    def fetch(url: str) -> None:
        raise AssertionError(f"{url} was fetched")

    config = {"train_images": train_images, "test_images": test_images, "seed": seed}
    return prepare(config, fetch)


def test_the_images_are_the_same_bytes_everywhere() -> None:
    split = draw(100, seed=0, stream=0)
    assert hashlib.sha256(split.images.tobytes()).hexdigest() == (
        "c530740455437a501331f0fe4d6ba6bee5c5b92abb4f530ff567ad594a7f4b5b"
    )
    assert split.labels[:10].tolist() == [6, 0, 4, 3, 9, 8, 1, 1, 5, 2]
    assert hashlib.sha256(draw(507, 0, 0).images.tobytes()).hexdigest() == (
        "f2af6de8308715dd97d2ceb611c65e755f68545bd1415db64bd6d603c8029502"
    )


def test_images_have_the_form_of_a_dataset() -> None:
    split = draw(10, seed=0, stream=0)
    assert (split.images.dtype, split.images.shape) == (np.uint8, (10, 32, 32, 3))
    assert (split.labels.dtype, split.labels.shape) == (np.uint8, (10,))
    assert split.classes == CLASSES
    assert len(set(CLASSES)) == 10


@pytest.mark.parametrize(("seed", "stream"), [(1, 0), (0, 1), (1, 1), (2**32 - 1, 0)])
def test_another_seed_or_stream_gives_other_images(seed: int, stream: int) -> None:
    split, other = draw(20, 0, 0), draw(20, seed, stream)
    assert not (split.images == other.images).all(axis=(1, 2, 3)).any()
    assert split.labels.tolist() != other.labels.tolist()


@pytest.mark.parametrize("count", [10, 11, 99, 100, CHUNK + 7])
def test_classes_are_balanced_within_one(count: int) -> None:
    counts = np.bincount(draw(count, seed=3, stream=0).labels, minlength=len(CLASSES))
    assert counts.sum() == count
    assert counts.max() - counts.min() <= 1


def test_no_image_occurs_twice_in_training_and_test() -> None:
    train, test = prepared(CHUNK + 100, 300)
    images = np.concatenate([train.images, test.images])
    assert len({image.tobytes() for image in images}) == CHUNK + 400


def test_training_and_test_images_have_the_numbers_asked_for() -> None:
    train, test = prepared(30, 20, seed=5)
    np.testing.assert_array_equal(train.images, draw(30, 5, 0).images)
    np.testing.assert_array_equal(test.images, draw(20, 5, 1).images)


@pytest.mark.parametrize("label", range(len(CLASSES)))
def test_the_images_of_a_class_vary(label: int) -> None:
    split = draw(200, seed=0, stream=0)
    images = split.images[split.labels == label].astype(np.float64)
    assert images.std(axis=0).min() > 10  # every pixel of every channel differs between images
    assert images.std(axis=(1, 2)).min() > 3  # and within an image


def test_the_mean_images_of_classes_differ() -> None:
    split = draw(CHUNK, seed=0, stream=0)
    means = np.stack([split.images[split.labels == label].mean(axis=0) for label in range(10)])
    for one in range(10):
        for other in range(one):
            assert abs(means[one] - means[other]).max() > 40
