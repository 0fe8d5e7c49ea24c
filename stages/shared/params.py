"""The schema of params.yaml: checked whole before any work, every mistake named with its key.

    python -m stages.shared.params             # check params.yaml
    python -m stages.shared.params --schema    # print its JSON Schema, for editors

This file accepts or refuses and never alters a value. That is why it is not among the stages' deps
in dvc.yaml: a better error message retrains nothing.
"""

import argparse
import ast
import difflib
import json
import re
import types
import typing
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import AliasEvent

from stages.shared.stage import StageError, run

PATH = Path("params.yaml")
MODELS = Path(__file__).resolve().parents[1] / "models"
CONFIG_TYPE = re.compile(r"(list\[)*(int|float|str|bool)\]*")
DAMAGE = (  # what is raised on text that is no YAML, and on tags that do not fit their values
    YAMLError,
    ValueError,
    TypeError,
    ArithmeticError,
    LookupError,
    AttributeError,
    RecursionError,
)

Key = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")]  # a dot would break DVC's look-up
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]


class Section(pydantic.BaseModel):
    """A block of params.yaml: every key must be there, no other may, and types are exact."""

    model_config = pydantic.ConfigDict(
        strict=True, extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=()
    )


class Cifar(Section):
    """CIFAR-10 or CIFAR-100 from an official binary archive (stages/datasets/cifar.py)."""

    source: Literal["cifar"]
    classes: Literal[10, 100]
    url: Annotated[str, Field(pattern=r"^https?://[^/\s]+/\S*[^/\s]$")]


class Shapes(Section):
    """Images drawn on this machine (stages/datasets/shapes.py)."""

    source: Literal["shapes"]
    train_images: Annotated[int, Field(ge=10, le=1_000_000)]
    test_images: Annotated[int, Field(ge=10, le=1_000_000)]
    seed: Seed


def _check_pieces(from_epochs: list[int], name: str, values: list[Any]) -> None:
    """Raises a ValueError unless there is one value for each of the increasing epochs."""
    if len(from_epochs) != len(values):
        raise ValueError(
            f"from_epochs and {name} must have the same length. "
            f"Received: {from_epochs} and {values}"
        )
    if sorted(set(from_epochs)) != from_epochs:
        raise ValueError(f"from_epochs must increase. Received: {from_epochs}")


class Sgd(Section):
    name: Literal["sgd"]
    learning_rate: Positive
    momentum: Fraction
    nesterov: bool
    weight_decay: NotNegative


class RmsProp(Section):
    name: Literal["rmsprop"]
    learning_rate: Positive
    rho: Fraction


class Adam(Section):
    name: Literal["adam"]
    learning_rate: Positive
    beta_1: Fraction
    beta_2: Fraction


class AdamW(Section):
    name: Literal["adamw"]
    learning_rate: Positive
    beta_1: Fraction
    beta_2: Fraction
    weight_decay: NotNegative


class Muon(Section):
    """Orthogonalised updates for convolution kernels; SGD with Nesterov momentum for the rest."""

    name: Literal["muon"]
    learning_rate: Positive  # of convolution kernels, relative to their norm
    momentum: Fraction
    head_learning_rate: Positive  # of the matrices that give the logits
    bias_learning_rate: Positive
    sgd_momentum: Fraction
    weight_decay: NotNegative  # of these two: this fraction at each step, times the schedule


class Constant(Section):
    """The optimizer's learning rate throughout."""

    name: Literal["constant"]


class InverseTime(Section):
    """learning_rate / (1 + decay_per_step * step): what Keras 2 called `decay`."""

    name: Literal["inverse_time"]
    decay_per_step: NotNegative


class Piecewise(Section):
    """The learning rate times `factors[i]` from epoch `from_epochs[i]` on; before that, times 1.

    Epochs count from 0 here, as in Keras's LearningRateScheduler, and everywhere else from 1.
    """

    name: Literal["piecewise"]
    from_epochs: Annotated[list[Count], Field(min_length=1)]
    factors: Annotated[list[Positive], Field(min_length=1)]

    @pydantic.model_validator(mode="after")
    def _fits(self) -> "Piecewise":
        _check_pieces(self.from_epochs, "factors", self.factors)
        return self


class Decay(Section):
    """A linear warm-up, then a linear or half-cosine decay to a fraction of the learning rate."""

    name: Literal["linear", "cosine"]
    warmup_epochs: NotNegative
    final_fraction: Annotated[float, Field(ge=0, le=1)]


class Augmentation(Section):
    """Random changes of the training images, drawn anew for each image in each epoch."""

    rotation_degrees: Annotated[float, Field(ge=0, le=180)]  # up to this much, either way
    shift_fraction: Fraction  # of the height and of the width, up to this much, either way
    pad_crop_pixels: Annotated[int, Field(ge=0, le=16)]  # padding on each side, then a crop
    cutout_pixels: Annotated[int, Field(ge=0, le=32)]  # the side of a square in the mean colour
    horizontal_flip: Literal["none", "random", "alternating"]  # each image in every other epoch
    fill: Literal["nearest", "reflect", "black"]  # what is outside of the image


class Resolution(Section):
    """The images' size during training: `pixels[i]` each way from epoch `from_epochs[i]` on.

    Epochs count from 1 here.
    """

    from_epochs: Annotated[list[Count], Field(min_length=1)]
    pixels: Annotated[list[Annotated[int, Field(ge=8, le=32)]], Field(min_length=1)]

    @pydantic.model_validator(mode="after")
    def _fits(self) -> "Resolution":
        _check_pieces(self.from_epochs, "pixels", self.pixels)
        if self.from_epochs[0] != 1:
            raise ValueError(f"from_epochs must begin with 1. Received: {self.from_epochs}")
        if self.pixels[-1] != 32:
            raise ValueError(
                f"pixels must end with the images' own size, 32. Received: {self.pixels}"
            )
        return self


class Validation(Section):
    fraction: Fraction  # of the training images
    split: Literal["end", "stratified"]  # the last ones, or the last ones of each class


class Selection(Section):
    """Which epoch's weights are the result, and when to stop early."""

    keep: Literal["last", "best"]
    monitor: Literal["val_loss", "val_accuracy"]
    patience_epochs: Count | Literal["unlimited"]


class Recipe(Section):
    """How to train."""

    epochs: Count
    batch_size: Count  # images of one step; the last batch of an epoch may be smaller
    optimizer: Annotated[Sgd | RmsProp | Adam | AdamW | Muon, Field(discriminator="name")]
    schedule: Annotated[Constant | InverseTime | Piecewise | Decay, Field(discriminator="name")]
    label_smoothing: Fraction  # of the target, spread evenly over all classes
    # To 0..1, or to zero mean and unit variance over all values, or over each channel's.
    pixels: Literal["unit", "overall", "channel"]
    augmentation: Augmentation
    resolution: Resolution
    images_per_class: Count | Literal["all"]
    validation: Validation
    selection: Selection
    test_views: Literal[1, 2, 6]  # as it is; and mirrored; and both shifted by a pixel, two ways
    precision: Literal["float32", "mixed_bfloat16"]  # of activations; weights are float32
    deterministic: bool  # asks a GPU, too, for the same bits each time

    @pydantic.model_validator(mode="after")
    def _fits(self) -> "Recipe":
        selects = self.selection.keep == "best" or self.selection.patience_epochs != "unlimited"
        if selects and self.validation.fraction == 0:
            raise ValueError(
                "selection.keep: best and selection.patience_epochs need validation images: "
                f"set validation.fraction above 0. Received: {self.validation.fraction}"
            )
        if self.resolution.from_epochs[-1] > self.epochs:
            raise ValueError(
                f"resolution.from_epochs must not go beyond epochs, {self.epochs}. "
                f"Received: {self.resolution.from_epochs}"
            )
        if isinstance(self.schedule, Decay) and self.schedule.warmup_epochs >= self.epochs:
            raise ValueError(
                f"schedule.warmup_epochs must be less than epochs, {self.epochs}. "
                f"Received: {self.schedule.warmup_epochs}"
            )
        return self


class Variant(Section):
    """What to train: a model on a dataset by a recipe, once per seed."""

    dataset: str
    model: str
    config: dict[str, Any]
    recipe: str
    seeds: Annotated[list[Seed], Field(min_length=1)]

    @pydantic.field_validator("seeds")
    @classmethod
    def _unique(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) != len(seeds):
            raise ValueError("seeds must be unique")
        return seeds


Dataset = Cifar | Shapes


class Params(Section):
    """The whole of params.yaml."""

    datasets: dict[Key, Annotated[Dataset, Field(discriminator="source")]]
    recipes: dict[Key, Recipe]
    variants: dict[Key, Variant]

    def dataset(self, name: str) -> Dataset:
        return self.datasets[_known(name, self.datasets, "datasets")]

    def variant(self, name: str) -> Variant:
        return self.variants[_known(name, self.variants, "variants")]


def load(path: Path = PATH) -> Params:
    """Reads and checks params.yaml.

    Raises:
        StageError: with every mistake that was found, one per line.
    """
    return validated(_read_yaml(path), str(path))


def validated(data: Any, name: str) -> Params:
    """Checks what was read from a params.yaml.

    Args:
        data: all of it.
        name: what a message calls it.

    Raises:
        StageError: with every mistake that was found, one per line.
    """
    problems = list(_dangling(data))
    try:
        params = Params.model_validate(data)
    except pydantic.ValidationError as error:
        problems = [_describe(item) for item in error.errors()] + problems
    _refuse(name, problems)
    return params


def _refuse(name: str, problems: list[str]) -> None:
    """Raises a StageError with all problems, one per line, if there are any."""
    if problems:
        raise StageError("\n  ".join([f"{name} is not valid:", *problems]))


def check_config(key: str, variant: Variant) -> None:
    """Checks a variant's config against the keyword arguments of its model's `build`.

    The model file is parsed, not imported, so that this needs no Keras.

    Raises:
        StageError: with every argument that is unknown, missing or of the wrong type.
    """
    _refuse(str(PATH), _config_problems(key, variant))


def _config_problems(key: str, variant: Variant) -> list[str]:
    """What `check_config` complains of, a line each.

    Raises:
        StageError: if the model file is at fault.
    """
    path = MODELS / f"{variant.model}.py"
    fields: dict[str, Any] = {name: (kind, ...) for name, kind in _config_arguments(path).items()}
    try:
        schema = pydantic.create_model("Config", __base__=Section, **fields)
        schema.model_rebuild()
    except (pydantic.PydanticUserError, NameError, TypeError):  # such as `model_config`
        raise StageError(
            f"{path}: an argument of build needs another name. Received: {', '.join(fields)}."
        ) from None
    try:
        schema.model_validate(variant.config)
    except pydantic.ValidationError as error:
        where = f"variants.{key}.config"
        return [_describe(item, schema, where) for item in error.errors()]
    return []


def check(path: Path = PATH) -> Params:
    """Reads and checks params.yaml, with the configs of all its variants.

    Raises:
        StageError: with every mistake that was found, one per line.
    """
    params = load(path)
    variants = params.variants.items()
    _refuse(str(path), [line for each in variants for line in _config_problems(*each)])
    return params


def parse(data: bytes, name: str = str(PATH)) -> Any:
    """What is written in a params.yaml, in YAML 1.2 as DVC reads it, and unchecked.

    Raises:
        StageError: if it is no YAML, or has aliases: `dvc exp run -S` expands them, and a change of
            the anchor would then no longer reach who used it.
    """
    reader = YAML(typ="safe", pure=True)  # in C, a line of 100,000 brackets ends the process
    try:
        for event in reader.parse(data) if b"*" in data else ():
            if isinstance(event, AliasEvent):
                mark = event.start_mark
                raise MarkedYAMLError(problem="aliases are not allowed here", problem_mark=mark)
        return reader.load(data)
    except DAMAGE as error:
        raise StageError(f"{name} must be valid YAML. Received: {_in_short(error)}.") from None


def _in_short(error: Exception) -> str:
    """What is wrong with a YAML file, in one line, and where."""
    if not isinstance(error, MarkedYAMLError):
        return " ".join(str(error).split())
    mark = error.problem_mark or error.context_mark
    what = (error.problem or error.context or "").partition(" with value ")[0]  # of a repeated key
    return what + (f", line {mark.line + 1}" if mark else "")


def _read_yaml(path: Path) -> Any:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise StageError(f"{path} is missing. Run from the project's root folder.") from None
    except OSError as error:
        raise StageError(f"{path} must be a file. Received: {error}.") from None
    return parse(data, str(path))


def _dangling(data: Any) -> Iterator[str]:
    """One message per name that refers to nothing, in what has the right form so far."""
    sections = data if isinstance(data, dict) else {}
    datasets, recipes, variants = (sections.get(n) for n in ("datasets", "recipes", "variants"))
    if not (
        isinstance(datasets, dict) and isinstance(recipes, dict) and isinstance(variants, dict)
    ):
        return
    models = [path.stem for path in MODELS.glob("*.py")]
    places = {"dataset": datasets, "recipe": recipes, "model": models}
    named = {key: variant for key, variant in variants.items() if isinstance(variant, dict)}
    for key, variant in named.items():
        for field, names in places.items():
            name = variant.get(field)
            if isinstance(name, str) and name not in names:
                yield f"variants.{key}.{field}: no such {field}.{_nearest(name, names)}"
    used = {str(variant.get("dataset")) for variant in named.values()}
    for name in datasets:
        if str(name) not in used:
            yield (
                f"datasets.{name}: no variant uses this dataset, so there is nothing to plot. "
                "Add a variant or remove it."
            )


def _known(name: str, names: Iterable[str], section: str) -> str:
    if name not in names:
        raise StageError(f"{PATH} has no {section}.{name}.{_nearest(name, names)}")
    return name


def _nearest(name: str, names: Iterable[str]) -> str:
    """What to say after an unknown name: what is allowed, what was given, what was meant."""
    names = sorted(map(str, names))
    close = difflib.get_close_matches(name, names, n=1)
    allowed = ", ".join(names) or "nothing"
    return f" Allowed: {allowed}. Received: '{name}'." + (
        f" Did you mean '{close[0]}'?" if close else ""
    )


def _describe(error: Any, root: type[Section] = Params, prefix: str = "") -> str:
    """One of pydantic's errors as a line: the key's path, what is allowed, what was given.

    Args:
        root: the section that was checked.
        prefix: where in the file it lies.
    """
    path = [prefix] if prefix else []
    parent: Any = None
    kind: Any = root
    for part in error["loc"]:
        parent = kind
        kind, is_key = _step(kind, part)
        if is_key and part != "[key]":
            path.append(str(part))
    where = ".".join(path) or str(PATH)
    if error["type"] == "extra_forbidden":
        fields = getattr(parent, "model_fields", ())
        return f"{where}: unknown key.{_nearest(str(error['loc'][-1]), fields)}"
    if error["type"] in ("union_tag_invalid", "union_tag_not_found"):
        field = error["ctx"]["discriminator"].strip("'")
        where = f"{where}.{field}"
    if error["type"] == "union_tag_invalid":
        tags = [tag.strip("'") for tag in error["ctx"]["expected_tags"].split(", ")]
        return f"{where}: unknown value.{_nearest(str(error['ctx']['tag']), tags)}"
    if error["type"] in ("missing", "union_tag_not_found"):
        return f"{where}: missing. It is required; there are no defaults."
    message = error["msg"].removeprefix("Value error, ")
    shown = repr(error["input"])
    if error["type"] == "value_error" and isinstance(error["input"], dict):
        return f"{where}: {message}."
    return f"{where}: {message}. Received: {shown if len(shown) < 80 else shown[:77] + '...'}."


def _step(kind: Any, part: Any) -> tuple[Any, bool]:
    """Follows one part of an error's location through the schema.

    Returns:
        The type that lies there, and whether the part is a key of the file (the rest are pydantic's
        own marks, such as the tag of the chosen member of a union).
    """
    if isinstance(kind, type) and issubclass(kind, Section) and part in kind.model_fields:
        return kind.model_fields[part].annotation, True
    origin = typing.get_origin(kind)
    if origin is Annotated:
        return _step(typing.get_args(kind)[0], part)
    if origin is dict:
        return typing.get_args(kind)[1], True
    if origin in (typing.Union, types.UnionType):
        for member in typing.get_args(kind):
            fields = getattr(member, "model_fields", {})
            tags = fields.get("name") or fields.get("source")
            if tags and part in typing.get_args(tags.annotation):
                return member, False
        return None, isinstance(part, int)
    return None, True


def _config_arguments(path: Path) -> dict[str, str]:
    """The keyword-only arguments of `build` in a model file, and their types as written there."""
    try:
        tree = ast.parse(path.read_bytes(), path.name)
    except (SyntaxError, ValueError, OSError) as error:
        raise StageError(f"{path} must be Python. Received: {error}.") from None
    for node in ast.walk(tree):
        if "stages" in _imported(node):
            raise StageError(
                f"{path} may import packages, and no file of this project: DVC would not see that "
                f"it changes. Received: {ast.unparse(node)}."
            )
    build = next(
        (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "build"),
        None,
    )
    if build is None:
        raise StageError(f"{path} must define build(input_shape, num_classes, *, ...).")
    given = build.args
    found = {each.arg: ast.unparse(each.annotation or ast.Name("")) for each in given.kwonlyargs}
    if (
        len(given.posonlyargs + given.args) > 2
        or any(given.kw_defaults)
        or not all(map(CONFIG_TYPE.fullmatch, found.values()))
    ):
        raise StageError(
            f"{path}: the arguments of build after num_classes must follow `*`, each with a type "
            "(int, float, str, bool or lists of them) and without a default. Received: "
            f"{ast.unparse(given)}."
        )
    return found


def _imported(node: ast.AST) -> set[str]:
    """The packages that a statement imports from; this project's `stages` if it is relative."""
    if isinstance(node, ast.ImportFrom):
        return {"stages" if node.level else (node.module or "").split(".")[0]}
    if isinstance(node, ast.Import):
        return {alias.name.split(".")[0] for alias in node.names}
    return set()


def main() -> None:
    parser = argparse.ArgumentParser(description="Check params.yaml.")
    parser.add_argument("--schema", action="store_true", help="print the JSON Schema instead")
    if parser.parse_args().schema:
        print(json.dumps(Params.model_json_schema(), indent=2))
        return
    params = check()
    print(
        f"{PATH} is valid: {len(params.datasets)} datasets, {len(params.recipes)} recipes, "
        f"{len(params.variants)} variants."
    )


if __name__ == "__main__":
    run(main)
