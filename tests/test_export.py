"""Exported models: they give the network's own probabilities, or are not written."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from stages.shared.backend import import_keras
from stages.shared.dataset import Split, save_split
from stages.shared.stage import StageError
from tools import export

import_keras()

import keras
from conftest import PARAMS

from stages.training.fitting import build_core, make_normalisation, save_model, views_mean

WIDE = {"widths": [8, 8, 8], "depth": 2, "activation": "relu"}
WIDE |= {"whitening": True, "batch_norm": True}
OTHER = {"seed": 1, "epochs": 1, "seconds": 1.0, "weights_sha256": "0" * 64}


def whole_model(precision: str, views: int) -> Any:
    """A small network as the train stage saves it: pixels in, probabilities out."""
    keras.utils.clear_session()
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy(precision)
    core = build_core({"model": "air", "config": WIDE}, (32, 32, 3), 3)
    stats = {"channel": {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.2]}}
    pixels = keras.Input((32, 32, 3), dtype="uint8")
    logits = views_mean(core, make_normalisation("channel", stats)(pixels), views)
    probabilities = keras.layers.Activation("softmax", dtype="float32")(100 * logits)
    keras.config.set_dtype_policy("float32")
    return keras.Model(pixels, probabilities)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, toy_split: Split) -> Path:
    """A folder with test images, and none for a variant's weights yet; it is the current one."""
    (tmp_path / "params.yaml").write_bytes(PARAMS.read_bytes())
    save_split(toy_split, tmp_path / "data/raw/shapes/test")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["export"])
    return tmp_path


def train(project: Path, model: Any) -> None:
    """Puts a model where the weights of a trained variant are."""
    weights = project / "results/weights/shapes/shapes-lenet"
    weights.mkdir(parents=True)
    save_model(model, weights / "seed-1.keras")


def test_both_formats_give_the_networks_probabilities(
    project: Path, toy_split: Split, capsys: pytest.CaptureFixture[str]
) -> None:
    train(project, whole_model("mixed_bfloat16", 6))
    export.main()
    assert "greatest difference of a probability on 60 test images" in capsys.readouterr().out
    folder = project / "exports/shapes-lenet"
    names = ["classes.json", "model.onnx", "saved_model"]
    assert sorted(path.name for path in folder.iterdir()) == names
    assert json.loads((folder / "classes.json").read_text()) == ["circle", "square", "star"]
    model = keras.saving.load_model(project / "results/weights/shapes/shapes-lenet/seed-1.keras")
    expected = model.predict(toy_split.images, verbose=0)
    assert np.ptp(expected) > 0.5
    for found in (
        export.run_onnx(folder / "model.onnx", toy_split.images),
        export.run_saved_model(folder / "saved_model", toy_split.images),
    ):
        assert found.dtype == np.float32
        assert np.abs(found - expected).max() < 0.1  # the saved one computes in bfloat16


@pytest.mark.parametrize(
    ("wrong", "form", "difference"),
    [("run_onnx", "ONNX file", 0.0002), ("run_saved_model", "SavedModel", np.nan)],
)
def test_what_gives_other_probabilities_is_not_written(
    project: Path, monkeypatch: pytest.MonkeyPatch, wrong: str, form: str, difference: float
) -> None:
    pixels = keras.Input((32, 32, 3), dtype="uint8")
    zeros = keras.layers.Rescaling(0.0)(keras.layers.GlobalMaxPooling2D()(pixels))
    train(project, keras.Model(pixels, keras.layers.Softmax()(zeros)))
    right = np.full((60, 3), 1 / 3)
    for name in ("run_onnx", "run_saved_model"):
        monkeypatch.setattr(export, name, lambda path, images: right)
    monkeypatch.setattr(export, wrong, lambda path, images: right + difference)
    monkeypatch.setattr(export, "write", lambda model, saved, onnx: saved.mkdir(parents=True))
    monkeypatch.setattr(sys, "argv", ["export", "shapes-lenet"])
    with pytest.raises(StageError, match=rf"{form} must give .* 0\.0001\. .* of {difference}\."):
        export.main()
    assert not list((project / "exports").iterdir())


def test_float32_is_used_throughout() -> None:
    model = export.in_float32(whole_model("mixed_bfloat16", 1))
    layers = model._flatten_layers(include_self=False)
    assert {layer.compute_dtype for layer in layers} <= {"float32", "uint8"}


def test_others_are_exported_though_one_cannot_be(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    train(project, whole_model("float32", 1))
    monkeypatch.setattr(sys, "argv", ["export", "shapes-simple", "shapes-lenet"])
    with pytest.raises(StageError, match=r"^shapes-simple: .*seed-1\.keras is not there"):
        export.main()
    assert capsys.readouterr().out.startswith("export shapes-lenet: exports/shapes-lenet, ")


def test_a_network_that_keras_cannot_export_is_one_message(tmp_path: Path) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise NotImplementedError("no such operation")

    with pytest.raises(StageError, match=r"able to export it\. .*no such operation"):
        export.write(SimpleNamespace(export=refuse), tmp_path / "saved", tmp_path / "onnx")


def test_an_export_takes_the_place_of_nothing_else(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(project, whole_model("float32", 1))
    monkeypatch.setattr(sys, "argv", ["export", "--out", "results/weights/shapes"])
    with pytest.raises(
        StageError, match=r"--out must be .*Received: results/weights/shapes/shapes-lenet\."
    ):
        export.main()
    assert [path.name for path in Path("results/weights/shapes").rglob("*.*")] == ["seed-1.keras"]


def test_weights_of_another_training_than_the_record_are_not_exported(project: Path) -> None:
    train(project, whole_model("float32", 1))
    record = project / "results/runs/shapes/shapes-lenet.json"
    record.parent.mkdir(parents=True)
    record.write_text(json.dumps({"trainings": [OTHER]}))
    with pytest.raises(StageError, match=r"must be of the training that .*`dvc checkout results/w"):
        export.main()
    assert not (project / "exports").exists()


def test_nothing_trained_is_an_error(project: Path) -> None:
    with pytest.raises(StageError, match="no trained variants here"):
        export.main()
