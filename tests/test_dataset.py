"""The format of a split on disk: what was saved is loaded, and anything else is refused."""

import json
import pickle
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages.shared.dataset import Split, load_split, save_split
from stages.shared.stage import StageError


@pytest.fixture
def coarse_split(toy_split: Split) -> Split:
    """The toy split with superclasses."""
    return replace(
        toy_split, coarse_labels=toy_split.labels // 2, coarse_classes=("round", "pointed")
    )


@pytest.fixture
def saved(coarse_split: Split, tmp_path: Path) -> Path:
    save_split(coarse_split, tmp_path / "train")
    return tmp_path / "train"


def refusal(folder: Path) -> str:
    """The message with which a folder is refused; it names a file in it or the folder."""
    with pytest.raises(StageError) as caught:
        load_split(folder)
    assert str(folder) in str(caught.value)
    return str(caught.value)


def test_what_was_saved_is_loaded(toy_split: Split, tmp_path: Path) -> None:
    save_split(toy_split, tmp_path / "a" / "train")
    loaded = load_split(tmp_path / "a" / "train")
    np.testing.assert_array_equal(loaded.images, toy_split.images, strict=True)
    np.testing.assert_array_equal(loaded.labels, toy_split.labels, strict=True)
    assert loaded.classes == toy_split.classes
    assert (loaded.coarse_labels, loaded.coarse_classes) == (None, ())
    names = sorted(path.name for path in (tmp_path / "a" / "train").iterdir())
    assert names == ["classes.json", "images.npy", "labels.npy"]


def test_superclasses_are_saved_and_loaded(saved: Path, coarse_split: Split) -> None:
    loaded = load_split(saved)
    assert coarse_split.coarse_labels is not None
    np.testing.assert_array_equal(loaded.coarse_labels, coarse_split.coarse_labels, strict=True)
    assert loaded.coarse_classes == ("round", "pointed")


def test_equal_splits_are_saved_as_equal_bytes(toy_split: Split, tmp_path: Path) -> None:
    for name in ("one", "two"):
        save_split(toy_split, tmp_path / name)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_images_are_mapped_from_disk_and_read_only(saved: Path) -> None:
    images = load_split(saved).images
    assert isinstance(images, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        images[0] = 0


@pytest.mark.parametrize(
    ("field", "value", "allowed", "received"),
    [
        ("images", np.zeros((60, 32, 32, 3), np.float32), "uint8", "float32 (60, 32, 32, 3)"),
        ("images", np.zeros((60, 32, 32, 3), np.int8), "uint8", "int8 (60, 32, 32, 3)"),
        ("images", np.zeros((60, 3, 32, 32), np.uint8), "(N, 32, 32, 3)", "uint8 (60, 3, 32, 32)"),
        ("images", np.zeros((60, 32, 32), np.uint8), "(N, 32, 32, 3)", "uint8 (60, 32, 32)"),
        ("images", np.zeros((60, 28, 28, 3), np.uint8), "(N, 32, 32, 3)", "uint8 (60, 28, 28, 3)"),
        ("images", np.zeros((0, 32, 32, 3), np.uint8), "at least one image", "none"),
        ("images", np.zeros((59, 32, 32, 3), np.uint8), "uint8 of shape (59,)", "uint8 (60,)"),
        ("labels", np.zeros(61, np.uint8), "uint8 of shape (60,)", "uint8 (61,)"),
        ("labels", np.zeros((60, 1), np.uint8), "uint8 of shape (60,)", "uint8 (60, 1)"),
        ("labels", np.zeros(60, np.int64), "uint8 of shape (60,)", "int64 (60,)"),
        ("labels", np.arange(60, dtype=np.uint8), "labels must be between 0 and 2", "3 at index 3"),
        ("coarse_labels", np.zeros(5, np.uint8), "coarse_labels must be uint8", "uint8 (5,)"),
        ("coarse_labels", np.full(60, 2, np.uint8), "between 0 and 1", "2 at index 0"),
        ("classes", ("circle", "square"), "labels must be between 0 and 1", "2 at index 2"),
    ],
)
def test_a_split_that_does_not_fit_the_format_is_neither_saved_nor_loaded(
    coarse_split: Split,
    saved: Path,
    tmp_path: Path,
    field: str,
    value: Any,
    allowed: str,
    received: str,
) -> None:
    wrong = replace(coarse_split, **{field: value})
    with pytest.raises(StageError) as caught:
        save_split(wrong, tmp_path / "wrong")
    assert str(caught.value).startswith(f"{tmp_path / 'wrong'}: ")
    assert not (tmp_path / "wrong").exists()

    if field == "classes":
        names = {"classes": value, "coarse_classes": coarse_split.coarse_classes}
        (saved / "classes.json").write_text(json.dumps(names))
    else:
        np.save(saved / f"{field}.npy", value)
    for message in (str(caught.value), refusal(saved)):
        assert allowed in message
        assert f"Received: {received}." in message


def test_superclasses_without_labels_are_not_saved(toy_split: Split, tmp_path: Path) -> None:
    with pytest.raises(StageError, match="coarse"):
        save_split(replace(toy_split, coarse_classes=("round",)), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["images.npy", "labels.npy", "coarse_labels.npy", "classes.json"])
def test_a_missing_file_is_named(saved: Path, name: str) -> None:
    (saved / name).unlink()
    assert f"{saved / name} is missing. Run the download stage" in refusal(saved)


def test_a_missing_folder_is_named_and_so_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert re.search(r"none/\S+ is missing", refusal(tmp_path / "none"))
    assert refusal(tmp_path / "file").startswith(f"{tmp_path / 'file'}")


@pytest.mark.parametrize("name", ["images.npy", "labels.npy", "coarse_labels.npy"])
@pytest.mark.parametrize("size", [0, 1, 6, 9, 50, 127, 128, 150])
def test_a_truncated_array_is_refused(saved: Path, name: str, size: int) -> None:
    (saved / name).write_bytes((saved / name).read_bytes()[:size])
    assert f"{saved / name} must be a NumPy array file. Received: " in refusal(saved)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"\x93NUMPY\x01", b"\x93NUMPY\x09"),
        (b"descr", b"desXr"),
        (b"descr", b"des\xffr"),
        (b"|u1", b"|x1"),
        (b"False", b"Fa se"),
        (b"(60, 32, 32, 3)", b"(99, 32, 32, 3)"),
        (b"(60, 32, 32, 3)", b"(-1, 32, 32, 3)"),
        (b"(60, 32, 32, 3)", b"(60, 32, 32+ 3)"),
        (b"(60, 32, 32, 3)", b"(60, 32, 32, 3("),
        (b"{", b"("),
        (b"NUMPY\x01\x00\x76", b"NUMPY\x01\x00\x20"),
    ],
)
def test_an_array_with_a_damaged_header_is_refused(saved: Path, old: bytes, new: bytes) -> None:
    data = (saved / "images.npy").read_bytes()
    assert old in data
    (saved / "images.npy").write_bytes(data.replace(old, new, 1))
    assert f"{saved / 'images.npy'} must be a NumPy array file. Received: " in refusal(saved)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello",
        b"\x80\x04K\x01.",
        bytes(200),
        b"PK\x03\x04",
    ],
)
def test_what_is_not_an_array_is_refused(saved: Path, content: bytes) -> None:
    (saved / "images.npy").write_bytes(content)
    assert f"{saved / 'images.npy'} must be a NumPy array file. Received: " in refusal(saved)


def test_several_arrays_in_one_file_are_refused(saved: Path) -> None:
    with open(saved / "images.npy", "wb") as file:
        np.savez(file, images=np.zeros((60, 32, 32, 3), np.uint8))
    assert f"{saved / 'images.npy'} must be a NumPy array file" in refusal(saved)


def explode() -> None:
    raise AssertionError("a pickle was run")


class Explosive:
    """What runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[[], None], tuple[()]]:
        return explode, ()


@pytest.mark.parametrize("name", ["images.npy", "labels.npy", "coarse_labels.npy"])
def test_a_pickle_is_refused_and_never_run(saved: Path, name: str) -> None:
    (saved / name).write_bytes(pickle.dumps(Explosive()))
    assert f"{saved / name} must be a NumPy array file. Received: " in refusal(saved)
    array = np.empty(60, object)
    array[:] = [Explosive()] * 60
    np.save(saved / name, array, allow_pickle=True)
    assert f"{saved / name} must be a NumPy array file. Received: " in refusal(saved)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "3",
        "null",
        "\xff",
        "[" * 100_000,
        '{"classes": ["a", "b", "c"]}',
        '{"coarse_classes": []}',
        '{"classes": "abc", "coarse_classes": []}',
        '{"classes": null, "coarse_classes": []}',
        '{"classes": ["a", "b", 3], "coarse_classes": []}',
        '{"classes": ["a", "b", "c"], "coarse_classes": {}}',
        '{"classes": [], "coarse_classes": []}',
        '{"classes": ["a", "b", "c"], "coarse_classes": [], "more": []}',
        json.dumps({"classes": ["a"] * 257, "coarse_classes": []}),
    ],
)
def test_damaged_or_incomplete_class_names_are_refused(saved: Path, text: str) -> None:
    (saved / "classes.json").write_text(text, encoding="latin-1")
    message = refusal(saved)
    assert f"{saved / 'classes.json'} must hold the lists of names 'classes' and" in message
