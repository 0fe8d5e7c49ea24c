"""tools/predict.py: images of every kind come to the same thing, and errors are named."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from conftest import PARAMS, ROOT
from keras import layers
from PIL import Image, ImageOps

from stages.shared.stage import StageError
from tools import predict

CLASSES = ["red", "green", "blue"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that tells the colour of an image's upper half: its weights are set by hand."""
    pixels = keras.Input((32, 32, 3), dtype="uint8")
    scaled = layers.Rescaling(1 / 255)(pixels)
    mean = layers.GlobalAveragePooling2D()(layers.Cropping2D(((0, 16), (0, 0)))(scaled))
    dense = layers.Dense(3, use_bias=False, activation="softmax")
    network = keras.Model(pixels, dense(mean))
    dense.kernel.assign(10 * np.eye(3))
    path = tmp_path_factory.mktemp("weights") / "colours" / "seed-1.keras"
    path.parent.mkdir()
    network.save(path)
    return path


@pytest.fixture
def picture() -> Image.Image:
    """Wider than high: green above, black below."""
    pixels = np.zeros((60, 90, 3), np.uint8)
    pixels[:30, :, 1] = 255
    return Image.fromarray(pixels)


def best(model: Path, *names: Path | str) -> list[Any]:
    found = predict.Predictor(model, CLASSES).predict([str(name) for name in names], top=1)
    return [each.get("error") or each["classes"][0]["class"] for each in found]


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "gif", "webp", "tiff", "ppm"])
def test_every_format_gives_the_same_class(
    model: Path, picture: Image.Image, tmp_path: Path, suffix: str
) -> None:
    picture.save(tmp_path / f"image.{suffix}")
    assert best(model, tmp_path / f"image.{suffix}") == ["green"]


def in_iptc(data: bytes) -> bytes:
    """An IPTC record whose image Pillow opens by itself."""
    fields = {(3, 60): b"\1\0", (3, 20): b"\0\4", (3, 30): b"\0\4", (3, 120): b"\5"}
    fields[8, 10] = data
    return b"".join(
        bytes([0x1C, *key, 0x84, 0]) + len(value).to_bytes(4, "big") + value
        if key == (8, 10)
        else bytes([0x1C, *key]) + len(value).to_bytes(2, "big") + value
        for key, value in fields.items()
    )


@pytest.mark.parametrize("wrap", [bytes, in_iptc])
def test_postscript_is_not_run(
    picture: Image.Image,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    wrap: Callable[[bytes], bytes],
) -> None:
    written = io.BytesIO()
    picture.save(written, format="EPS")
    (tmp_path / "photo.jpg").write_bytes(wrap(written.getvalue()))
    ghostscript = tmp_path / "gs"
    ghostscript.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    ghostscript.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(StageError, match="not an image that Pillow reads"):
        predict.read_image(str(tmp_path / "photo.jpg"), 32, 32)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("mode", ["RGBA", "P", "CMYK", "YCbCr", "HSV"])
def test_every_colour_mode_gives_the_same_class(picture: Image.Image, mode: str) -> None:
    converted = predict.upright_rgb(picture.convert(mode))
    assert converted.mode == "RGB"
    difference = np.asarray(converted).astype(int) - np.asarray(picture)
    assert np.abs(difference).max() < 4


@pytest.mark.parametrize("mode", ["1", "L", "LA", "I", "F", "I;16", "shares"])
def test_grey_images_keep_their_brightness(mode: str) -> None:
    grey = np.repeat([[0], [128], [255]], 4, axis=1)
    if mode == "1":
        grey = np.where(grey > 128, 255, 0)
    if mode == "I;16":
        image = Image.fromarray((grey * 257).astype(np.uint16))
    elif mode == "shares":
        image = Image.fromarray((grey / 255).astype(np.float32))
    else:
        image = Image.fromarray(grey.astype(np.uint8)).convert(mode)
    converted = np.asarray(predict.upright_rgb(image))
    np.testing.assert_array_equal(converted, np.repeat(grey[..., None], 3, axis=2))


def test_transparent_pixels_are_white(model: Path, tmp_path: Path) -> None:
    pixels = np.zeros((40, 40, 4), np.uint8)
    pixels[..., 2] = 255
    pixels[:, :20, 3] = 255
    converted = np.asarray(predict.upright_rgb(Image.fromarray(pixels)))
    assert (converted[:, :20] == [0, 0, 255]).all()
    assert (converted[:, 20:] == 255).all()
    palette = Image.fromarray(np.zeros((4, 4), np.uint8), "P")
    palette.info["transparency"] = 0
    assert (np.asarray(predict.upright_rgb(palette)) == 255).all()


def test_a_photograph_is_turned_upright(model: Path, picture: Image.Image, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    picture.rotate(90, expand=True).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    turned = predict.read_image(str(tmp_path / "turned.jpg"), 32, 32)
    straight = np.asarray(ImageOps.fit(picture, (32, 32), method=Image.Resampling.LANCZOS))
    assert np.abs(turned.astype(int) - straight).mean() < 5
    assert best(model, tmp_path / "turned.jpg") == ["green"]


def test_of_an_animation_the_first_frame_is_taken(
    model: Path, picture: Image.Image, tmp_path: Path
) -> None:
    red = Image.new("RGB", picture.size, "red")
    picture.save(tmp_path / "moving.gif", save_all=True, append_images=[red, red])
    assert best(model, tmp_path / "moving.gif") == ["green"]


def test_the_centre_is_cut_out_and_shrunk_by_averaging() -> None:
    stripes = np.zeros((64, 128, 3), np.uint8)
    stripes[:, 32:96] = np.where(np.arange(64) % 2, 255, 1)[None, :, None]
    buffer = io.BytesIO()
    Image.fromarray(stripes).save(buffer, "png")
    sys.stdin = io.TextIOWrapper(io.BytesIO(buffer.getvalue()))
    try:
        image = predict.read_image("-", 32, 32)
    finally:
        sys.stdin = sys.__stdin__
    assert image.shape == (32, 32, 3)
    assert image[:, 4:-4].min() > 118
    assert image[:, 4:-4].max() < 138


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.png", b"", "not an image that Pillow reads"),
        ("text.png", b"not an image", "not an image that Pillow reads"),
        ("missing.png", None, "No such file"),
        ("cut.png", "cut", "truncated"),
        ("odd.jpg", "odd", "bad operand"),
    ],
)
def test_what_is_no_image_is_named_and_the_others_are_still_told(
    model: Path, picture: Image.Image, tmp_path: Path, name: str, content: Any, message: str
) -> None:
    picture.save(tmp_path / "good.png")
    if content == "cut":
        noise = np.random.default_rng(0).integers(0, 256, (60, 60, 3), np.uint8)
        Image.fromarray(noise).save(tmp_path / name)
        content = (tmp_path / name).read_bytes()[:3000]
    if content == "odd":  # a resolution that calls itself a text
        exif = Image.Exif()
        exif[0x0112], exif[0x011A] = 6, 72.0
        picture.convert("RGB").save(tmp_path / name, exif=exif)
        content = (tmp_path / name).read_bytes()
        assert content.count(b"\x01\x1a\x00\x05") == 1
        content = content.replace(b"\x01\x1a\x00\x05", b"\x01\x1a\x00\x02")
    if content is not None:
        (tmp_path / name).write_bytes(content)
    bad, good = best(model, tmp_path / name, tmp_path / "good.png")
    assert message in bad
    assert name in bad
    assert good == "green"


@pytest.fixture
def project(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with params.yaml and a variant that has been trained and evaluated."""
    (tmp_path / "params.yaml").write_bytes(PARAMS.read_bytes())
    weights = tmp_path / "results/weights/shapes/shapes-lenet"
    weights.mkdir(parents=True)
    for seed in (1, 2):
        (weights / f"seed-{seed}.keras").symlink_to(model)
    details = tmp_path / "results/details/shapes/shapes-lenet.json"
    details.parent.mkdir(parents=True)
    seed = {"accuracy": 0.5, "confusion": [], "per_class": [], "calibration": []}
    details.write_text(json.dumps({"classes": CLASSES, "seeds": {"1": seed}}))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_variant_stands_for_its_first_seed_and_the_names_of_its_classes(project: Path) -> None:
    first = Path("results/weights/shapes/shapes-lenet/seed-1.keras")
    assert predict.find("shapes-lenet") == (first, CLASSES)
    second = first.with_name("seed-2.keras")
    assert predict.find(str(second)) == (second, CLASSES)
    details = Path("results/details/shapes/shapes-lenet.json")
    for damaged in ("{", '{"classes": 5}'):
        details.write_text(damaged)
        with pytest.raises(StageError, match=r"shapes-lenet\.json must be JSON as evaluate writes"):
            predict.find("shapes-lenet")
    details.unlink()
    assert predict.find("shapes-lenet") == (first, [])


def test_the_command_prints_a_line_for_each_image(
    project: Path,
    picture: Image.Image,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("images").mkdir()
    picture.save("images/a.png")
    picture.save("images/b.jpg")
    monkeypatch.setattr(sys, "argv", ["predict", "shapes-lenet", "images", "--top", "2"])
    predict.main()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert lines[0] == "images/a.png  green 100.0%, red 0.0%"


def test_the_command_must_name_a_class(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["predict", "a.keras", "a.png", "--top", "0"])
    with pytest.raises(SystemExit):
        predict.main()
    assert "--top: must be 1 or more. Received: 0" in capsys.readouterr().err


def test_the_command_prints_json_and_fails_if_any_image_does(
    model: Path, picture: Image.Image, tmp_path: Path
) -> None:
    buffer = io.BytesIO()
    picture.save(buffer, "png")
    done = subprocess.run(
        [sys.executable, "-m", "tools.predict", model, "-", tmp_path / "none.png", "--json"],
        cwd=ROOT, input=buffer.getvalue(), capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    first, second = json.loads(done.stdout)
    assert first["image"] == "-"
    assert first["classes"][0]["class"] == "class 1"
    assert sum(each["probability"] for each in first["classes"]) == pytest.approx(1, abs=1e-5)
    assert "No such file" in second["error"]
    assert b"Traceback" not in done.stderr


def test_a_variant_that_is_not_trained_and_a_model_that_does_not_fit_are_refused(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "params.yaml").write_bytes(PARAMS.read_bytes())
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StageError, match="dvc repro evaluate@cifar10-lenet"):
        predict.find("cifar10-lenet")
    with pytest.raises(StageError, match="Did you mean 'cifar10-lenet'"):
        predict.find("cifar10-lennet")
    with pytest.raises(StageError, match=r"have 2 classes. Received: 3 classes"):
        predict.Predictor(model, ["a", "b"])
    flat = keras.Sequential([keras.Input((784,)), layers.Dense(3)])
    flat.save(tmp_path / "flat.keras")
    with pytest.raises(StageError, match=r"colour images of one size.*\(None, 784\)"):
        predict.Predictor(tmp_path / "flat.keras", [])
    with pytest.raises(StageError, match=r"whole \.keras file"):
        predict.Predictor(tmp_path / "params.yaml", [])
    (tmp_path / "nothing").mkdir()
    (tmp_path / "nothing/.DS_Store").touch()  # macOS's
    with pytest.raises(StageError, match="which has none"):
        predict.files("nothing")
