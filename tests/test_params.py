"""The schema of params.yaml: a mistake is refused, with its key, what is allowed and received."""

import copy
import functools
import json
import operator
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import PARAMS, ROOT
from dvc.utils.serialize import parse_yaml
from rerunning import project_tree

from stages.shared import params
from stages.shared.stage import StageError

KNOWN = PARAMS.read_text()
PARSED = project_tree()
KEPT = ("cifar10-simple", "cifar10-deep", "cifar10-shallow", "cifar10-deep-bn", "cifar10-air94")
KEPT += ("shapes-lenet", "shapes-deep-bn")


def parsed() -> dict[str, Any]:
    """The file that the tests have, with fewer variants, and what they use."""
    return project_tree(*KEPT)


def dumped(data: Any) -> str:
    return yaml.dump(data, Dumper=yaml.CSafeDumper)


def at(data: Any, keys: list[str]) -> Any:
    """What lies under keys, one inside the other."""
    return functools.reduce(operator.getitem, keys, data)


def edited(key: str, value: Any) -> str:
    """That, with the value at a dotted key set."""
    data = parsed()
    *parents, last = key.split(".")
    at(data, parents)[last] = value
    return dumped(data)


def without(key: str) -> str:
    """That, without a dotted key."""
    data = parsed()
    *parents, last = key.split(".")
    del at(data, parents)[last]
    return dumped(data)


def replaced(old: str, new: str) -> str:
    """The file that the tests have with the first occurrence of a text replaced."""
    assert old in KNOWN
    return KNOWN.replace(old, new, 1)


def refusal(folder: Path, text: str | bytes) -> str:
    """The message with which a params.yaml of this text is refused."""
    path = folder / "params.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(StageError) as caught:
        params.load(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def line_of(message: str, key: str) -> str:
    """The one line of a message that is about a key."""
    lines = [line for line in message.splitlines() if line.startswith(f"  {key}: ")]
    assert len(lines) == 1, message
    return lines[0]


def variant(model: str, config: dict[str, Any]) -> params.Variant:
    return params.Variant(dataset="shapes", model=model, config=config, recipe="demo", seeds=[1])


def command(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "stages.shared.params", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )


def test_the_shipped_file_is_valid() -> None:
    assert params.check(ROOT / "params.yaml").variants
    assert params.check(PARAMS).variant("shapes-lenet").seeds == [1, 2]


def test_loading_alters_no_value() -> None:
    assert params.load(PARAMS).model_dump() == PARSED


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("datasets", "datsets"),
        ("datasets.cifar10.classes", "clases"),
        ("datasets.shapes.train_images", "train_image"),
        ("recipes.demo.epochs", "epoch"),
        ("recipes.demo.optimizer.learning_rate", "learning-rate"),
        ("recipes.tutorial-simple.optimizer.momentum", "momentun"),
        ("recipes.demo.schedule.warmup_epochs", "warm_up_epochs"),
        ("recipes.demo.augmentation.fill", "fil"),
        ("recipes.demo.validation.fraction", "fractions"),
        ("recipes.demo.selection.keep", "keeps"),
        ("variants.shapes-lenet.recipe", "recpe"),
    ],
)
def test_a_misspelt_key_is_refused_and_the_right_one_suggested(
    tmp_path: Path, right: str, wrong: str
) -> None:
    *parents, last = right.split(".")
    data = parsed()
    block = at(data, parents)
    block[wrong] = block.pop(last)
    message = refusal(tmp_path, dumped(data))
    line = line_of(message, ".".join([*parents, wrong]))
    assert "unknown key. Allowed: " in line
    assert f"Received: '{wrong}'. Did you mean '{last}'?" in line
    assert "missing" in line_of(message, right)


def test_an_unknown_key_that_resembles_nothing_gets_what_is_allowed(tmp_path: Path) -> None:
    message = refusal(tmp_path, edited("recipes.demo.validation.zzz", 1))
    line = line_of(message, "recipes.demo.validation.zzz")
    assert line.endswith("Allowed: fraction, split. Received: 'zzz'.")


def test_a_key_of_another_optimizer_is_refused(tmp_path: Path) -> None:
    message = refusal(tmp_path, edited("recipes.demo.optimizer.momentum", 0.9))
    line = line_of(message, "recipes.demo.optimizer.momentum")
    assert "Allowed: beta_1, beta_2, learning_rate, name." in line


@pytest.mark.parametrize(
    "key",
    [
        "variants",
        "datasets.shapes.seed",
        "datasets.cifar10.url",
        "recipes.demo.deterministic",
        "recipes.demo.optimizer.beta_2",
        "recipes.demo.schedule.final_fraction",
        "recipes.demo.augmentation.horizontal_flip",
        "recipes.demo.selection.monitor",
        "variants.shapes-lenet.config",
        "datasets.shapes.source",
        "recipes.demo.optimizer.name",
        "recipes.demo.schedule.name",
    ],
)
def test_a_missing_key_is_refused(tmp_path: Path, key: str) -> None:
    assert "missing" in line_of(refusal(tmp_path, without(key)), key)


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        # wrong types
        ("recipes", [1], "dictionary"),
        ("recipes.demo", None, "dictionary"),
        ("recipes.demo.epochs", "25", "integer"),
        ("recipes.demo.epochs", 2.5, "integer"),
        ("recipes.demo.epochs", True, "integer"),
        ("recipes.demo.batch_size", None, "integer"),
        ("recipes.demo.optimizer", "adam", "dictionary"),
        ("recipes.demo.optimizer.learning_rate", "0.1", "number"),
        ("recipes.demo.deterministic", "true", "boolean"),
        ("recipes.demo.deterministic", 1, "boolean"),
        ("recipes.tutorial-simple.optimizer.nesterov", 0, "boolean"),
        ("datasets.shapes.seed", 0.0, "integer"),
        ("datasets.cifar10.url", 5, "string"),
        ("variants.shapes-lenet.model", 3, "string"),
        ("variants.shapes-lenet.config", [], "dictionary"),
        ("variants.shapes-lenet.seeds", 7, "list"),
        # out of range
        ("recipes.demo.epochs", 0, "greater than or equal to 1"),
        ("recipes.demo.batch_size", -1, "greater than or equal to 1"),
        ("recipes.demo.optimizer.learning_rate", 0.0, "greater than 0"),
        ("recipes.demo.optimizer.beta_1", 1.0, "less than 1"),
        ("recipes.tutorial-simple.optimizer.momentum", -0.1, "greater than or equal to 0"),
        ("recipes.demo.schedule.final_fraction", 1.5, "less than or equal to 1"),
        ("recipes.demo.schedule.warmup_epochs", -1.0, "greater than or equal to 0"),
        ("recipes.demo.label_smoothing", 1.0, "less than 1"),
        ("recipes.demo.augmentation.rotation_degrees", 181, "less than or equal to 180"),
        ("recipes.demo.augmentation.pad_crop_pixels", 17, "less than or equal to 16"),
        ("recipes.demo.augmentation.cutout_pixels", 33, "less than or equal to 32"),
        ("recipes.air94.optimizer.head_learning_rate", 0.0, "greater than 0"),
        ("recipes.demo.validation.fraction", 1.0, "less than 1"),
        ("recipes.demo.augmentation.rotation_degrees", -1, "greater than or equal to 0"),
        ("recipes.demo.augmentation.pad_crop_pixels", -1, "greater than or equal to 0"),
        ("recipes.demo.augmentation.cutout_pixels", -1, "greater than or equal to 0"),
        ("datasets.shapes.train_images", 9, "greater than or equal to 10"),
        ("datasets.shapes.train_images", 1_000_001, "less than or equal to 1000000"),
        ("datasets.shapes.test_images", 9, "greater than or equal to 10"),
        ("datasets.shapes.test_images", 1_000_001, "less than or equal to 1000000"),
        ("datasets.shapes.seed", 2**32, "less than 4294967296"),
        ("variants.shapes-lenet.seeds", [], "at least 1"),
        # not finite
        ("recipes.demo.optimizer.learning_rate", float("nan"), "finite"),
        ("recipes.demo.optimizer.learning_rate", float("inf"), "finite"),
        ("recipes.demo.validation.fraction", float("nan"), "finite"),
        ("recipes.demo.schedule.final_fraction", float("-inf"), "finite"),
        # none of the names
        ("datasets.cifar10.classes", 20, "10 or 100"),
        ("recipes.demo.pixels", "unti", "'unit', 'overall' or 'channel'"),
        ("recipes.demo.precision", "float16", "'float32' or 'mixed_bfloat16'"),
        ("recipes.demo.augmentation.fill", "white", "'nearest', 'reflect' or 'black'"),
        ("recipes.demo.augmentation.horizontal_flip", True, "'none', 'random' or 'alternating'"),
        ("recipes.demo.test_views", 3, "1, 2 or 6"),
        ("recipes.demo.validation.split", "random", "'end' or 'stratified'"),
        ("recipes.demo.selection.keep", "first", "'last' or 'best'"),
        ("recipes.demo.selection.monitor", "loss", "'val_loss' or 'val_accuracy'"),
        # others
        ("datasets.cifar10.url", "ftp://host/file.tar.gz", "https?://"),
        ("datasets.cifar10.url", "https://host/folder/", "https?://"),
        ("variants.shapes-lenet.seeds", [1, 2, 1], "must be unique"),
    ],
)
def test_a_value_that_does_not_fit_is_refused(
    tmp_path: Path, key: str, value: Any, allowed: str
) -> None:
    line = line_of(refusal(tmp_path, edited(key, value)), key)
    assert allowed in line
    assert line.endswith(f"Received: {value!r}.")


@pytest.mark.parametrize(
    ("key", "value", "where", "allowed"),
    [
        ("variants.shapes-lenet.seeds", [1, -1], "seeds.1", "greater than or equal to 0"),
        ("variants.shapes-lenet.seeds", ["x"], "seeds.0", "integer"),
        ("recipes.tutorial-deep-bn.schedule.factors", [0.5, 0.0], "factors.1", "greater than 0"),
        ("recipes.tutorial-deep-bn.schedule.from_epochs", [0, 1], "from_epochs.0", "equal to 1"),
        ("recipes.demo.resolution.pixels", [7], "pixels.0", "equal to 8"),
        ("recipes.demo.resolution.pixels", [33], "pixels.0", "equal to 32"),
    ],
)
def test_a_bad_item_of_a_list_is_named_by_its_position(
    tmp_path: Path, key: str, value: list[Any], where: str, allowed: str
) -> None:
    line = line_of(refusal(tmp_path, edited(key, value)), f"{key.rpartition('.')[0]}.{where}")
    assert allowed in line
    assert "Received: " in line


@pytest.mark.parametrize(
    ("from_epochs", "pixels", "message"),
    [
        ([1, 2], [32], "same length"),
        ([2], [32], "begin with 1"),
        ([1, 3, 2], [8, 16, 32], "must increase"),
        ([1, 2, 2], [8, 16, 32], "must increase"),
        ([1, 2], [32, 24], "end with the images' own size, 32"),
        ([1, 999], [24, 32], "not go beyond epochs"),
    ],
)
def test_a_resolution_that_makes_no_sense_is_refused(
    tmp_path: Path, from_epochs: list[int], pixels: list[int], message: str
) -> None:
    value = {"from_epochs": from_epochs, "pixels": pixels}
    text = refusal(tmp_path, edited("recipes.demo.resolution", value))
    assert "recipes.demo" in text
    assert message in text
    assert "Received: " in text


@pytest.mark.parametrize(
    ("key", "value", "word"),
    [
        ("recipes.demo.images_per_class", "some", "'all'"),
        ("recipes.demo.images_per_class", 0, "'all'"),
        ("recipes.demo.selection.patience_epochs", "never", "'unlimited'"),
        ("recipes.demo.selection.patience_epochs", 0, "'unlimited'"),
    ],
)
def test_a_number_or_a_word_allows_nothing_else(
    tmp_path: Path, key: str, value: Any, word: str
) -> None:
    message = refusal(tmp_path, edited(key, value))
    assert f"{key}: " in message
    assert word in message
    assert f"Received: {value!r}." in message


@pytest.mark.parametrize(
    ("key", "value", "names", "meant"),
    [
        ("datasets.shapes.source", "shape", ["cifar", "shapes"], "shapes"),
        ("recipes.demo.optimizer.name", "addam", ["sgd", "rmsprop", "adam", "adamw"], "adam"),
        (
            "recipes.demo.schedule.name",
            "liner",
            ["constant", "piecewise", "linear", "cosine"],
            "linear",
        ),
    ],
)
def test_an_unknown_source_optimizer_or_schedule_is_named_with_its_key(
    tmp_path: Path, key: str, value: str, names: list[str], meant: str
) -> None:
    line = line_of(refusal(tmp_path, edited(key, value)), key)
    assert all(name in line for name in names)
    assert f"Received: '{value}'. Did you mean '{meant}'?" in line


@pytest.mark.parametrize(
    ("key", "value", "meant"),
    [
        ("variants.shapes-lenet.dataset", "shape", "shapes"),
        ("variants.shapes-lenet.recipe", "demo-augmentd", "demo-augmented"),
        ("variants.shapes-lenet.model", "le-net", "lenet"),
        ("variants.shapes-lenet.model", "deep-bn", "deep_bn"),
    ],
)
def test_a_name_that_refers_to_nothing_is_refused(
    tmp_path: Path, key: str, value: str, meant: str
) -> None:
    line = line_of(refusal(tmp_path, edited(key, value)), key)
    assert f"no such {key.rpartition('.')[2]}" in line
    assert "Allowed: " in line
    assert f"Received: '{value}'. Did you mean '{meant}'?" in line


def test_a_model_is_a_file_and_not_a_path(tmp_path: Path) -> None:
    assert "no such model" in refusal(tmp_path, edited("variants.shapes-lenet.model", "../train"))


def test_a_dataset_without_a_variant_is_refused(tmp_path: Path) -> None:
    message = refusal(tmp_path, edited("datasets.more", PARSED["datasets"]["shapes"].copy()))
    assert "no variant uses this dataset" in line_of(message, "datasets.more")


@pytest.mark.parametrize("section", ["datasets", "recipes", "variants"])
@pytest.mark.parametrize("key", ["a.b", "Abc", "a_b", "-a", "ä", ""])
def test_a_key_is_of_lower_case_letters_digits_and_hyphens(
    tmp_path: Path, section: str, key: str
) -> None:
    data = parsed()
    data[section][key] = copy.deepcopy(next(iter(data[section].values())))
    lines = refusal(tmp_path, dumped(data)).splitlines()
    lines = [line for line in lines if line.startswith(f"  {section}.{key}: ")]
    assert any("pattern" in line and line.endswith(f"Received: '{key}'.") for line in lines)


CONTRADICTIONS = [
    ("tutorial-deep-bn.schedule", "factors", [0.5], "must have the same length"),
    ("tutorial-deep-bn.schedule", "from_epochs", [101, 76], "from_epochs must increase"),
    ("tutorial-deep-bn.schedule", "from_epochs", [76, 76], "from_epochs must increase"),
    ("tutorial-simple", "selection.keep", "best", "validation.fraction above 0"),
    ("tutorial-simple", "selection.patience_epochs", 3, "validation.fraction above 0"),
    ("demo", "schedule.warmup_epochs", 8, "warmup_epochs must be less than epochs"),
    ("demo", "schedule.warmup_epochs", 8.5, "warmup_epochs must be less than epochs"),
]


@pytest.mark.parametrize(("block", "key", "value", "rule"), CONTRADICTIONS)
def test_values_that_contradict_each_other_are_refused(
    tmp_path: Path, block: str, key: str, value: Any, rule: str
) -> None:
    line = line_of(refusal(tmp_path, edited(f"recipes.{block}.{key}", value)), f"recipes.{block}")
    assert rule in line
    assert "Received: " in line


def test_a_warm_up_below_the_number_of_epochs_is_accepted(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    nearly = parsed()["recipes"]["demo"]["epochs"] - 0.5
    path.write_text(edited("recipes.demo.schedule.warmup_epochs", nearly))
    assert params.load(path).recipes["demo"].schedule.model_dump()["warmup_epochs"] == nearly


def test_all_mistakes_are_reported_at_once(tmp_path: Path) -> None:
    data = parsed()
    data["datasets"]["shapes"]["seed"] = -1
    data["recipes"]["demo"]["epochs"] = 0
    data["recipes"]["demo"]["pixel"] = "unit"
    del data["recipes"]["shallow"]["precision"]
    data["variants"]["shapes-lenet"].update(dataset="no", recipe="no", model="no", seeds=[1, 1])
    data["variants"]["cifar10-deep"]["model"] = "no"
    message = refusal(tmp_path, dumped(data))
    for key in ("datasets.shapes.seed", "recipes.demo.epochs", "recipes.demo.pixel"):
        assert line_of(message, key)
    assert line_of(message, "recipes.shallow.precision")
    for field in ("dataset", "recipe", "model", "seeds"):
        assert line_of(message, f"variants.shapes-lenet.{field}")
    assert line_of(message, "variants.cifar10-deep.model")


@pytest.mark.parametrize("again", ["recipes:", "  demo:", "    epochs: 9", "      fill: black"])
def test_a_key_given_twice_is_refused(tmp_path: Path, again: str) -> None:
    text = f"recipes:\n  demo:\n    epochs: 9\n    augmentation:\n      fill: nearest\n{again}\n"
    message = refusal(tmp_path, text)
    assert f'found duplicate key "{again.split(":")[0].strip()}"' in message
    assert "line 6" in message
    assert "suppress" not in message


@pytest.mark.parametrize("use", ["*one", "{<<: *one, seeds: [1]}"])
def test_an_alias_is_refused(tmp_path: Path, use: str) -> None:
    text = replaced("  cifar10-simple: {", "  cifar10-simple: &one {") + f"\n  another: {use}\n"
    message = refusal(tmp_path, text)
    assert "Received: aliases are not allowed here" in message
    assert f"line {text.count(chr(10))}" in message


@pytest.mark.parametrize(
    "text",
    [
        "variants: [",
        "variants: {a: 1",
        "a: b: c",
        "\tvariants: 1",
        "a: 'b",
        "a: !!python/object/apply:os.getcwd []",
        "a: 1\n---\nb: 1\n",
        "a: 2020-13-45",
        "[" * 5000,
        b"\xff\xfe\x00",
        b"\x80",
    ],
)
def test_invalid_yaml_is_refused(tmp_path: Path, text: str | bytes) -> None:
    assert "must be valid YAML. Received: " in refusal(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "received"),
    [("", "None"), ("# nothing\n", "None"), ("- a\n- b\n", "['a', 'b']"), ("5", "5"), ("x", "'x'")],
)
def test_a_file_without_keys_is_refused(tmp_path: Path, text: str, received: str) -> None:
    line = line_of(refusal(tmp_path, text), "params.yaml")
    assert "dictionary" in line
    assert line.endswith(f"Received: {received}.")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"params\.yaml is missing\. Run from the project's root"):
        params.load(tmp_path / "params.yaml")


@pytest.mark.parametrize("number", ["1e-4", "1E-4", "1.0e-4", "1.e-4", "0.0001", "+1e-04"])
def test_a_number_may_be_written_with_or_without_a_dot(tmp_path: Path, number: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(replaced("l2: 1.0e-4", f"l2: {number}"))
    variant = params.load(path).variant("cifar10-deep-bn")
    params.check_config("cifar10-deep-bn", variant)
    assert variant.config["l2"] == 1e-4


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("epochs: 25\n", "epochs: 1:30\n"),  # 90 in YAML 1.1, a text in YAML 1.2
        ("label_smoothing: 0.0\n", "label_smoothing: 0:0.5\n"),  # a half in YAML 1.1, a text
        ("deterministic: true\n", "deterministic: yes\n"),  # true in YAML 1.1, a text
    ],
)
def test_what_dvc_reads_as_something_else_is_refused(tmp_path: Path, old: str, new: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(replaced(old, new))
    with pytest.raises(StageError, match=new.partition(":")[0]):
        params.load(path)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0.5", 0.5),
        (".5", 0.5),
        ("5e-1", 0.5),
        ("5.E-1", 0.5),
        ("+0.5", 0.5),
        ("010", 10),  # 8 in YAML 1.1
        ("2_5", 25),
        ("0", 0),
        ("0.", 0),
        ("-7", -7),
        ("1:30.5", "1:30.5"),
        ("190:20:30.15", "190:20:30.15"),
        (".inf", float("inf")),
        ("-.INF", float("-inf")),
    ],
)
def test_a_number_is_one_that_dvc_reads_too(text: str, value: object) -> None:
    assert params.parse(f"a: {text}".encode()) == {"a": value} == parse_yaml(f"a: {text}", "")


@pytest.mark.parametrize(("section", "look_up"), [("datasets", "dataset"), ("variants", "variant")])
def test_looking_up_an_unknown_name_says_what_there_is(section: str, look_up: str) -> None:
    loaded = params.load(PARAMS)
    name = next(iter(getattr(loaded, section)))
    with pytest.raises(StageError) as caught:
        getattr(loaded, look_up)(name + "x")
    assert f"has no {section}.{name}x. Allowed: " in str(caught.value)
    assert f"Received: '{name}x'. Did you mean '{name}'?" in str(caught.value)


@pytest.mark.parametrize(
    ("model", "config", "where", "says"),
    [
        ("simple", {"l2": 1.0}, "l2", "Allowed: nothing. Received: 'l2'."),
        (
            "deep_bn",
            {"l2": 1e-4, "dropout": [0.1], "drop": 1},
            "drop",
            "Allowed: dropout, l2. Received: 'drop'. Did you mean 'dropout'?",
        ),
        ("deep_bn", {"l2": 1e-4}, "dropout", "missing. It is required; there are no defaults."),
        ("deep_bn", {"l2": "x", "dropout": [0.1]}, "l2", "number. Received: 'x'."),
        ("deep_bn", {"l2": True, "dropout": [0.1]}, "l2", "number. Received: True."),
        ("deep_bn", {"l2": None, "dropout": [0.1]}, "l2", "number. Received: None."),
        ("deep_bn", {"l2": 1, "dropout": 0.1}, "dropout", "list. Received: 0.1."),
        ("deep_bn", {"l2": 1, "dropout": [0.1, "y"]}, "dropout.1", "number. Received: 'y'."),
        ("deep_bn", {"l2": float("nan"), "dropout": [0.1]}, "l2", "finite number. Received: nan."),
        ("deep_bn", {"l2": 1, "dropout": [float("inf")]}, "dropout.0", "finite number."),
    ],
)
def test_a_config_that_does_not_fit_its_model_is_refused(
    model: str, config: dict[str, Any], where: str, says: str
) -> None:
    with pytest.raises(StageError) as caught:
        params.check_config("some-key", variant(model, config))
    assert says in line_of(str(caught.value), f"variants.some-key.config.{where}")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (b"def build(shape, classes, *, a: np.ndarray): ...", "(int, float, str, bool or lists"),
        (
            b"def build(shape, classes, *, a: tuple[int, ...]): ...",
            "Received: shape, classes, *, a",
        ),
        (b"def build(shape, classes, *, a): ...", "each with a type"),
        (b"def build(shape, classes, *, a: int = 1): ...", "without a default"),
        (b"def build(shape, classes, a: int): ...", "must follow `*`"),
        (b"def build(shape, classes, *, model_config: int): ...", "needs another name"),
        (b"from stages.models.lenet import build", "no file of this project"),
        (b"from .lenet import other\ndef build(shape, classes): ...", "no file of this project"),
        (b"import stages.models.lenet\ndef build(s, c): ...", "Received: import stages.models.len"),
        (b"x = '\xff'", "must be Python"),
    ],
)
def test_a_model_file_that_params_yaml_or_dvc_cannot_use_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: bytes, message: str
) -> None:
    monkeypatch.setattr(params, "MODELS", tmp_path)
    (tmp_path / "new.py").write_bytes(code)
    with pytest.raises(StageError, match=re.escape(message)):
        params.check_config("some-key", variant("new", {"a": 1}))


@pytest.mark.parametrize("code", ["", "def", "def build(shape, classes, *, a: object): ...\n"])
def test_a_model_that_cannot_be_built_makes_the_file_invalid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    models = shutil.copytree(params.MODELS, tmp_path / "models")
    (models / "lenet.py").write_text(code)
    monkeypatch.setattr(params, "MODELS", models)
    with pytest.raises(StageError, match="lenet"):
        params.check(PARAMS)


def test_all_mistakes_of_a_config_are_reported_at_once() -> None:
    with pytest.raises(StageError) as caught:
        params.check_config("some-key", variant("deep_bn", {"l2": "x", "dropuot": [0.1]}))
    for name in ("l2", "dropuot", "dropout"):
        assert line_of(str(caught.value), f"variants.some-key.config.{name}")


def test_the_command_accepts_the_shipped_file() -> None:
    result = command(ROOT)
    assert result.returncode == 0
    count = len(params.load(ROOT / "params.yaml").variants)
    assert result.stdout.endswith(f" recipes, {count} variants.\n")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (edited("recipes.demo.epochs", 0), "recipes.demo.epochs: "),
        (edited("variants.shapes-lenet.config", {"l2": 1}), "variants.shapes-lenet.config.l2: "),
        ("variants: [", "must be valid YAML"),
        (None, "params.yaml is missing"),
    ],
)
def test_the_command_refuses_a_bad_file_without_a_traceback(
    tmp_path: Path, text: str | None, says: str
) -> None:
    if text is not None:
        (tmp_path / "params.yaml").write_text(text)
    result = command(tmp_path)
    assert result.returncode == 1
    assert result.stderr.startswith("error: ")
    assert says in result.stderr
    assert "Traceback" not in result.stderr


def test_the_command_reports_the_configs_of_all_variants_at_once(tmp_path: Path) -> None:
    data = parsed()
    data["variants"]["shapes-lenet"]["config"] = {"a": 1}
    data["variants"]["cifar10-deep"]["config"] = {"b": 1}
    (tmp_path / "params.yaml").write_text(dumped(data))
    errors = command(tmp_path).stderr
    assert "variants.shapes-lenet.config.a: " in errors
    assert "variants.cifar10-deep.config.b: " in errors


def test_the_command_prints_a_json_schema_that_forbids_other_keys(tmp_path: Path) -> None:
    result = command(tmp_path, "--schema")
    assert result.returncode == 0
    schema = json.loads(result.stdout)
    assert schema["required"] == ["datasets", "recipes", "variants"]
    assert schema["$defs"]["Recipe"]["additionalProperties"] is False
    assert schema["$defs"]["Recipe"]["properties"]["epochs"]["minimum"] == 1
