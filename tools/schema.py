"""What the tools read of the files that stages write: checked, as anybody may have edited them."""

import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stages.shared.stage import StageError

Share = Annotated[float, Field(ge=0, le=1)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class File(BaseModel):
    """Keys that nothing here reads may have any values."""

    model_config = ConfigDict(strict=True)


class Metrics(File):
    """What evaluate writes for `dvc metrics`."""

    accuracy: Share
    accuracy_low: Share
    accuracy_high: Share
    accuracy_std: Share | None = None
    top_5_accuracy: Share | None = None
    loss: float | None = None
    calibration_error: float | None = None
    parameters: int | None = None
    seeds: int | None = None


class Training(File):
    seconds: Seconds
    epochs: int
    weights_sha256: str


class Environment(File):
    device: str | None = None
    versions: list[str] = []


class Record(File):
    """What train writes beside the weights."""

    train_seconds: Seconds | None = None
    images_per_second: float | None = None
    trainings: list[Training] = []
    environment: list[Environment] = []


class Class(File):
    recall: Share


class Bin(File):
    images: int
    confidence: Share
    accuracy: Share


class Seed(File):
    accuracy: Share
    confusion: list[list[int]]
    per_class: list[Class]
    calibration: list[Bin]


class Details(File):
    """What evaluate writes about each class and each seed."""

    classes: list[str]
    seeds: dict[str, Seed] = Field(min_length=1)


FILES: dict[str, type[File]] = {"metrics": Metrics, "runs": Record, "details": Details}


def parse(data: bytes, kind: str, path: Path, revision: str = "") -> dict[str, Any]:
    """What is in a JSON file of results.

    Args:
        kind: one of FILES.
        path, revision: where it is from; the latter not if it lies here.

    Raises:
        StageError: if it is no JSON, or not what the stage writes.
    """
    try:
        values: dict[str, Any] = json.loads(data)
        FILES[kind].model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        what = f"{where}: {first['msg']}"
    except (ValueError, RecursionError) as error:
        what = f"{error}"
    else:
        return values
    stage = "train" if kind == "runs" else "evaluate"
    name = f"{revision}'s {path}" if revision else str(path)
    raise StageError(
        f"{name} must be JSON as {stage} writes it. Received: {what}. "
        f"`dvc repro {stage}@{path.stem}` writes it."
    )
