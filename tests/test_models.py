"""The architectures: published sizes, logits out, and nothing but Keras in."""

import ast
import functools
import importlib
import json
import re
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from conftest import ROOT
from keras import layers

from stages.models.air import initialize
from stages.shared import params
from stages.shared.stage import StageError
from stages.training.fitting import build_core

SHIPPED = params.load(ROOT / "params.yaml")
SHAPE = (32, 32, 3)
AIR = {
    "widths": [30, 40, 40],
    "depth": 2,
    "activation": "relu",
    "whitening": True,
    "batch_norm": True,
}
AIR94 = AIR | {"widths": [64, 256, 256]}
AIR96 = AIR | {"widths": [128, 384, 512], "depth": 3}
DEEP_BN = {"l2": 1e-4, "dropout": [0.2, 0.3, 0.4]}
PARAMETERS: list[tuple[str, dict[str, Any], int, int]] = [  # model, config, classes, and how many
    ("simple", {}, 10, 4_210_090),
    ("deep", {"fan_out": "filters"}, 10, 2_915_114),
    ("deep", {"fan_out": "places"}, 10, 2_915_114),
    ("shallow", {}, 10, 411_786),
    ("deep_bn", DEEP_BN, 10, 309_290),
    ("deep_bn", DEEP_BN, 100, 493_700),
    ("convnet", {}, 10, 258_762),
    ("convnet", {}, 100, 270_372),
    ("lenet", {}, 10, 92_246),
    ("resnet", {"depth": 20, "l2": 1e-4}, 10, 271_098),
    ("air", AIR94, 10, 1_973_920),
    ("air", AIR94 | {"depth": 1}, 10, 755_680),
    ("air", AIR94 | {"batch_norm": False}, 10, 1_971_616),
    ("air", AIR94 | {"whitening": False}, 10, 1_973_920),
    ("air", AIR96, 10, 9_921_824),
    ("air", AIR96, 100, 9_967_904),
]
CONFIGS = {model: config for model, config, _, _ in reversed(PARAMETERS)}
# Of every model a config, and what its layers then drop, their activations and their L2 weights.
LAYERS: dict[str, tuple[dict[str, Any], list[float], list[str], list[float]]] = {
    "simple": ({}, [0.2, 0.5], ["relu"] * 3, []),
    "deep": ({"fan_out": "filters"}, [0.2] * 6, ["relu"] * 8, []),
    "shallow": ({}, [0.25] * 3, ["relu"] * 3, []),
    "convnet": ({}, [], ["relu"] * 5, []),
    "lenet": ({}, [], ["relu"] * 3, []),
    "deep_bn": ({"l2": 0.3, "dropout": [0.7, 0.5, 0.6]}, [0.7, 0.5, 0.6], ["elu"] * 6, [0.3] * 6),
    "resnet": ({"depth": 8, "l2": 0.3}, [], ["relu"] * 7, [0.3] * 8),
    "air": (AIR | {"activation": "gelu"}, [], ["gelu"] * 7, []),
}


KINDS = {
    "C": "Conv2D",
    "A": "Activation",
    "B": "BatchNormalization",
    "M": "MaxPooling2D",
    "D": "Dropout",
    "F": "Flatten",
    "L": "Dense",
    "+": "Add",
    "a": "GlobalAveragePooling2D",
    "m": "GlobalMaxPooling2D",
}
ORDERS = {  # as the sources have them
    "simple": "CDCM FLDL",
    "deep": "CDCM CDCM CDCM FDLDLDL",
    "shallow": "CMD CMD CMD FL",
    "convnet": "CM CM CM FLLL",
    "lenet": "CM CM C FLL",
    "deep_bn": "CABCABMD CABCABMD CABCABMD FL",
    "resnet": "CBA CBACB+A CBACB+A CBACB+A aL",
    "air": "CA CMBACBA CMBACBA CMBACBA mL",
}


@functools.cache
def network(model: str, config: str, classes: int) -> keras.Model:
    """Built once, with the same weights each time, for tests that only look. `config` is JSON."""
    keras.utils.set_random_seed(0)
    return build_core({"model": model, "config": json.loads(config)}, SHAPE, classes)


def build(model: str, classes: int) -> keras.Model:
    """A model with the first config above."""
    return network(model, json.dumps(CONFIGS[model]), classes)


def layers_of(core: keras.Model, kind: type[layers.Layer]) -> list[Any]:
    return [layer for layer in core.layers if isinstance(layer, kind)]


@pytest.mark.parametrize(("model", "config", "classes", "expected"), PARAMETERS)
def test_a_model_has_exactly_its_published_number_of_parameters(
    model: str, config: dict[str, Any], classes: int, expected: int
) -> None:
    assert network(model, json.dumps(config), classes).count_params() == expected


@pytest.mark.parametrize("key", SHIPPED.variants)
def test_every_variant_can_be_built(key: str) -> None:
    variant = SHIPPED.variant(key)
    classes = getattr(SHIPPED.dataset(variant.dataset), "classes", 10)
    core = network(variant.model, json.dumps(variant.config), classes)
    assert core.output_shape == (None, classes)


@pytest.mark.parametrize("model", CONFIGS)
@pytest.mark.parametrize("classes", [10, 100])
def test_a_model_maps_images_to_one_number_per_class(model: str, classes: int) -> None:
    core = build(model, classes)
    assert core.input_shape == (None, *SHAPE)
    assert core.output_shape == (None, classes)


def test_simples_kernels_begin_as_wide_as_in_its_day_and_wider_than_today() -> None:
    kernels = [np.abs(each) for each in build("simple", 10).get_weights() if each.ndim == 4]
    for kernel, then, today in zip(kernels, (59, 320), (315, 576), strict=True):
        assert np.sqrt(6 / today) < kernel.max() <= np.sqrt(6 / then)


@pytest.mark.parametrize(
    ("fan_out", "fans"),
    [("filters", (59, 320, 352, 640, 704, 1280)), ("places", (315, 576, 864, 1152, 1728, 2304))],
)
def test_deeps_kernels_begin_as_wide_as_is_asked(fan_out: str, fans: tuple[int, ...]) -> None:
    core = network("deep", json.dumps({"fan_out": fan_out}), 10)
    kernels = [np.abs(each) for each in core.get_weights() if each.ndim == 4]
    for kernel, fan in zip(kernels, fans, strict=True):
        assert np.sqrt(6 / fan) * 0.98 < kernel.max() <= np.sqrt(6 / fan)


@pytest.mark.parametrize("model", CONFIGS)
def test_a_model_gives_logits_without_activation(model: str, random: np.random.Generator) -> None:
    logits = np.asarray(build(model, 100)(1e4 * random.standard_normal((8, *SHAPE), np.float32)))
    assert logits.min() < -1  # neither softmax, sigmoid, relu, elu nor tanh
    assert logits.max() > 1


@pytest.mark.parametrize("path", sorted(params.MODELS.glob("*.py")), ids=lambda path: path.stem)
def test_a_model_file_imports_only_keras_and_numpy(path: Path) -> None:
    imported: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add("." * node.level + (node.module or "").split(".")[0])
    assert "keras" in imported
    assert imported <= {"keras", "numpy"}


@pytest.mark.parametrize("model", CONFIGS)
def test_a_model_file_states_its_parameters_for_ten_classes(model: str) -> None:
    text = importlib.import_module(f"stages.models.{model}").__doc__ or ""
    stated = re.findall(r"([\d,]+)\s+parameters", text)
    assert [int(number.replace(",", "")) for number in stated] == [build(model, 10).count_params()]


@pytest.mark.parametrize("dropout", [[], [0.2, 0.3], [0.1, 0.2, 0.3, 0.4]])
def test_deep_bn_refuses_dropout_of_the_wrong_length(dropout: list[float]) -> None:
    variant: dict[str, Any] = {"model": "deep_bn", "config": {"l2": 1e-4, "dropout": dropout}}
    with pytest.raises(StageError, match=r"deep_bn.*three fractions.*Received: \["):
        build_core(variant, SHAPE, 10)


def test_an_argument_that_a_model_does_not_have_is_refused() -> None:
    with pytest.raises(StageError, match=r"'lenet' cannot be built.*depth"):
        build_core({"model": "lenet", "config": {"depth": 3}}, SHAPE, 10)


@pytest.mark.parametrize(
    ("model", "config", "message"),
    [
        ("resnet", {"depth": 18, "l2": 0.0}, "6n . 2.*Received: 18"),
        ("resnet", {"depth": 2, "l2": 0.0}, "6n . 2.*Received: 2"),
        ("deep", {"fan_out": "input"}, r"fan_out must be.*Received: 'input'"),
        ("air", AIR | {"widths": [8, 8]}, "three numbers"),
        ("air", AIR | {"depth": 4}, "1, 2 or 3.*Received: 4"),
    ],
)
def test_a_config_that_a_model_has_no_meaning_for_is_refused(
    model: str, config: dict[str, Any], message: str
) -> None:
    with pytest.raises(StageError, match=message):
        build_core({"model": model, "config": config}, SHAPE, 10)


@pytest.mark.parametrize("model", CONFIGS)
def test_a_models_layers_are_what_its_source_or_its_config_says(model: str) -> None:
    config, *expected = LAYERS[model]
    core = network(model, json.dumps(config), 10)
    dropped = [layer.rate for layer in layers_of(core, layers.Dropout)]
    named = [keras.activations.get(getattr(layer, "activation", None)) for layer in core.layers]
    activations = [each.__name__ for each in named if each.__name__ != "linear"]
    regularizers = [getattr(layer, "kernel_regularizer", None) for layer in core.layers]
    assert [dropped, activations, [each.l2 for each in regularizers if each]] == expected


@pytest.mark.parametrize("model", CONFIGS)
def test_a_models_layers_come_in_the_order_of_its_source(model: str) -> None:
    core = network(model, json.dumps(LAYERS[model][0]), 10)
    names = [type(layer).__name__.removeprefix("Fused") for layer in core.layers]
    expected = [KINDS[letter] for letter in ORDERS[model].replace(" ", "")]
    assert [name for name in names if name != "InputLayer"] == expected


@pytest.mark.parametrize("model", CONFIGS)
def test_every_model_halves_its_images_by_the_greatest_of_two_by_two(model: str) -> None:
    pools = layers_of(build(model, 10), layers.MaxPooling2D)
    assert {(each.pool_size, each.strides) for each in pools} <= {((2, 2), (2, 2))}
    assert len(pools) == ORDERS[model].count("M")


def test_only_simple_and_the_hidden_layers_of_deep_limit_their_norms() -> None:
    limits = {}
    for model in CONFIGS:
        found = [getattr(each, "kernel_constraint", None) for each in build(model, 10).layers]
        assert not [each for each in found if each and type(each).__name__ != "MaxNorm"]
        limits[model] = [(each.max_value, each.axis) for each in found if each]
    assert limits.pop("simple") == [(3, 0)] * 3
    assert limits.pop("deep") == [(3, 0)] * 2
    assert not any(limits.values())


def test_what_a_source_sets_and_keras_would_set_otherwise() -> None:
    kernels = layers_of(network("resnet", json.dumps(LAYERS["resnet"][0]), 10), layers.Conv2D)
    assert {type(each.kernel_initializer).__name__ for each in kernels} == {"HeNormal"}
    air = network("air", json.dumps(AIR), 10)
    norms = layers_of(air, layers.BatchNormalization)
    assert {(each.momentum, each.epsilon, each.scale) for each in norms} == {(0.6, 1e-5, False)}
    head = air.get_layer("head").kernel_initializer
    assert head.stddev == 1 / AIR["widths"][-1]


def test_a_resnet_whose_branches_give_nothing_passes_its_first_channels_on(
    random: np.random.Generator,
) -> None:
    core = build_core({"model": "resnet", "config": {"depth": 14, "l2": 0.0}}, SHAPE, 10)
    for layer in layers_of(core, layers.Conv2D)[1:]:
        layer.kernel.assign(np.zeros(layer.kernel.shape))
    ends = [
        layers_of(core, layers.Activation)[0],
        layers_of(core, layers.GlobalAveragePooling2D)[0],
    ]
    images = random.standard_normal((4, *SHAPE), np.float32)
    first, last = keras.Model(core.input, [layer.output for layer in ends])(images)
    expected = np.zeros((4, 64))
    expected[:, 24:40] = np.mean(first[:, ::4, ::4], axis=(1, 2))
    assert expected.max() > 0
    np.testing.assert_allclose(last, expected, atol=1e-6)


@pytest.mark.parametrize("depth", [2, 3])
def test_only_airs_groups_of_three_pass_on_what_enters_if_the_rest_gives_nothing(
    random: np.random.Generator, depth: int
) -> None:
    config = AIR | {"widths": [4, 6, 8], "depth": depth}
    core = build_core({"model": "air", "config": config}, SHAPE, 10)
    for layer in layers_of(core, layers.Conv2D):
        if layer.kernel.shape[2] == layer.kernel.shape[3]:
            layer.kernel.assign(np.zeros(layer.kernel.shape))
    outputs = [layer.output for layer in layers_of(core, layers.Activation)]
    images = random.standard_normal((4, *SHAPE), np.float32)
    found = [np.asarray(each) for each in keras.Model(core.input, outputs)(images)]
    for first, last in zip(found[1::depth], found[depth::depth], strict=True):
        np.testing.assert_array_equal(last, first if depth == 3 else 0)
    assert found[1].max() > 0


def test_resnet_56_has_its_published_number_of_trainable_parameters() -> None:
    core = build_core({"model": "resnet", "config": {"depth": 56, "l2": 0.0}}, SHAPE, 10)
    trained = sum(np.prod(weight.shape) for weight in core.trainable_weights)
    assert round(trained / 1e6, 2) == 0.85  # table 6


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_air_starts_by_whitening_its_patches_and_passing_them_on(
    random: np.random.Generator, depth: int
) -> None:
    config = AIR | {"depth": depth, "activation": "linear"}
    core = build_core({"model": "air", "config": config}, SHAPE, 10)
    images = random.standard_normal((40, *SHAPE)).astype(np.float32).cumsum(axis=1) / 4
    windows = np.lib.stride_tricks.sliding_window_view(images, (2, 2), axis=(1, 2))
    patches = windows.transpose(0, 1, 2, 4, 5, 3).reshape(-1, 12)
    initialize(core, np.cov(patches.T))
    whitened = keras.Model(core.inputs[0], core.get_layer("patches").output)(images)
    flat = np.asarray(whitened).reshape(-1, 24)
    np.testing.assert_allclose(np.cov(flat[:, :12].T), np.eye(12), atol=0.06)
    np.testing.assert_allclose(flat[:, 12:], -flat[:, :12], atol=1e-5)
    convolution = next(each for each in layers_of(core, layers.Conv2D) if each.trainable)
    passed = np.asarray(convolution(whitened))[..., :24]
    np.testing.assert_allclose(passed, whitened, atol=1e-5)


def test_air_does_not_blow_up_what_hardly_varies() -> None:
    core = build_core({"model": "air", "config": AIR}, SHAPE, 10)
    initialize(core, np.diag([1e-9] + [1.0] * 11))
    norms = np.linalg.norm(np.array(core.get_layer("patches").kernel).reshape(12, 24), axis=0)
    assert sorted(norms)[-2:] == pytest.approx([5e-4**-0.5] * 2, rel=1e-3)


@pytest.mark.parametrize("whitening", [True, False])
def test_air_trains_its_first_filters_unless_they_whiten(whitening: bool) -> None:
    core = build_core({"model": "air", "config": AIR | {"whitening": whitening}}, SHAPE, 10)
    first = core.get_layer("patches")
    before = np.array(first.kernel)
    initialize(core, np.eye(12))
    assert first.trainable is not whitening
    assert np.array_equal(first.kernel, before) is not whitening
