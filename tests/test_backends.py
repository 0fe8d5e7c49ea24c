"""The same training on JAX and PyTorch: same draws, same network, the same bytes twice.

TensorFlow is what is documented. `python -m pytest -m backends` runs the others that are installed;
.ci/run installs them.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, make_toy_split

from stages.shared.dataset import save_split

pytestmark = pytest.mark.backends

PROGRAM = """
import json, sys
from pathlib import Path
from stages.shared import params
from stages.shared.backend import import_keras
import_keras()
from stages import stats
from stages.shared.dataset import load_split
from stages.training import record
from stages.training.fitting import Training
from stages.evaluate import predict

data, out = Path(sys.argv[1]), Path(sys.argv[2])
split = load_split(data)
recipe = params.load(Path("tests/params.yaml")).recipes["air94"].model_dump()
recipe |= {"epochs": 4, "batch_size": 12, "precision": "float32"}
recipe |= {"resolution": {"from_epochs": [1, 3], "pixels": [24, 32]}}
recipe["optimizer"] |= {"learning_rate": 0.05, "bias_learning_rate": 1.0}
config = {"widths": [24, 24, 24], "depth": 3, "activation": "relu"}
config |= {"whitening": True, "batch_norm": True}
variant = {"model": "air", "config": config}
record.prepare_device(True)
training = Training(variant, recipe, split, stats.compute_stats(split.images), seed=1)
out.mkdir()
training.fit(out / "checkpoints")
training.save(out / "seed-1.keras")
probabilities, parameters = predict(out, split)
result = {"rows": training.rows, "probabilities": probabilities["1"].tolist()}
print(json.dumps(result | {"environment": record.environment(True)}))
"""


def trained(backend: str, data: Path, out: Path) -> dict[str, Any]:
    environment = os.environ | {"KERAS_BACKEND": backend, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(data), str(out)],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    found: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("backends") / "data"
    save_split(make_toy_split(np.random.default_rng(0)), folder)
    return folder


@pytest.fixture(scope="module")
def reference(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return trained("tensorflow", data, tmp_path_factory.mktemp("tensorflow") / "reference")


def if_installed(backend: str) -> Any:
    missing = importlib.util.find_spec(backend) is None
    return pytest.param(
        backend, marks=pytest.mark.skipif(missing, reason=f"{backend} is not installed")
    )


@pytest.mark.parametrize("backend", map(if_installed, ["jax", "torch"]))
def test_another_backend_trains_alike_and_repeats_itself(
    data: Path, reference: dict[str, Any], tmp_path: Path, backend: str
) -> None:
    first = trained(backend, data, tmp_path / "first")
    second = trained(backend, data, tmp_path / "second")
    assert first == second
    weights = [tmp_path / name / "seed-1.keras" for name in ("first", "second")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert first["environment"]["backend"] == backend
    losses = [[row["loss"] for row in each["rows"]] for each in (first, reference)]
    assert losses[0][-1] < losses[0][0]
    # Initial weights are each backend's own random numbers, but for the whitening and identities.
    np.testing.assert_allclose(losses[0], losses[1], rtol=0.1)
    np.testing.assert_allclose(np.sum(first["probabilities"], axis=1), 1, atol=1e-5)
