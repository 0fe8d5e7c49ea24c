"""What is in an image, by a trained variant.

    python -m tools.predict VARIANT_OR_KERAS_FILE IMAGE ... [--top 3] [--json]

An image is any file that Pillow reads, a folder of them, or `-` for standard input. It is turned
upright, put on white where it is transparent, cut to a square at its centre and scaled to the size
that the model takes. Each file gets a line with its likeliest classes, or what is wrong with it;
the exit status is 1 if any file could not be read.
"""

import argparse
import hashlib
import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from stages.evaluate import load_model
from stages.shared import params
from stages.shared.stage import StageError
from tools import schema
from tools.command import count, plain, run
from tools.results import RESULTS, Result, Revision

# Those of photographs: others contain images of any kind, also PostScript, which is a program.
FORMATS = ["JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "PPM", "JPEG2000"]
STANDARD_INPUT = "-"
BATCH = 500


def main() -> None:
    parser = argparse.ArgumentParser(description="Name what is in images.")
    parser.add_argument("model", help="a key of params.yaml's variants, or a .keras file")
    parser.add_argument("images", nargs="+", help="image files, folders of them, or -")
    parser.add_argument("--top", type=count, default=3, help="how many classes to name")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    args = parser.parse_args()

    path, classes = find(args.model)
    names = [name for given in args.images for name in files(given)]
    predictor = Predictor(path, classes)
    found = predictor.predict(names, args.top)
    print(json.dumps(found, indent=1) if args.json else "\n".join(map(line, found)))
    if any("error" in each for each in found):
        sys.exit(1)


def find(model: str) -> tuple[Path, list[str]]:
    """The file of a variant's first seed, or the file given; and the names of its classes.

    Raises:
        StageError: if there is no such variant, it has not been trained here, or the weights here
            are of another training than its run record.
    """
    path = Path(model)
    if path.suffix == ".keras":
        if not path.exists():
            raise StageError(f"{path} is not there.")
        return path, class_names(path.parent.parent.name, path.parent.name)
    variant = params.load().variant(model)
    path = weights_of(model, variant)
    if not path.exists():
        raise StageError(f"{path} is not there. Run `dvc repro evaluate@{model}`, or `dvc pull`.")
    check_run(path, Result(Revision(), variant.dataset, model))
    return path, class_names(variant.dataset, model)


def weights_of(name: str, variant: params.Variant) -> Path:
    """Where the weights of a variant's first seed are, once it is trained."""
    return RESULTS / "weights" / variant.dataset / name / f"seed-{variant.seeds[0]}.keras"


def check_run(path: Path, result: Result) -> None:
    """Git has the run record and DVC the weights: a checkout by git alone leaves them apart."""
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    hashes = [each["weights_sha256"] for each in result.record.get("trainings", [])]
    if hashes and found not in hashes:
        raise StageError(
            f"{path} must be of the training that {result.path('runs', '.json')} tells of. "
            f"Received: another file. `dvc checkout {path.parent}` fetches the right one, "
            f"`dvc repro train@{result.variant}` makes it."
        )


def class_names(dataset: str, variant: str) -> list[str]:
    """What evaluate wrote beside a variant's figures; empty if it is not there."""
    path = RESULTS / "details" / dataset / f"{variant}.json"
    if not path.exists():
        return []
    names: list[str] = schema.parse(path.read_bytes(), "details", path)["classes"]
    return names


def files(given: str) -> list[str]:
    """The image files that an argument stands for: itself, or what a folder shows, sorted."""
    path = Path(given)
    try:
        is_folder = path.is_dir()
    except OSError:  # such as a name that is too long: whoever opens it tells
        is_folder = False
    if given == STANDARD_INPUT or not is_folder:
        return [given]
    inside = [each.relative_to(path) for each in path.rglob("*") if each.is_file()]
    shown = [each for each in inside if not any(part[0] == "." for part in each.parts)]
    if not shown:
        raise StageError(f"A folder must hold images. Received: {given}, which has none.")
    return sorted(str(path / each) for each in shown)


class Predictor:
    """A model with the names of its classes.

    Args:
        path: a .keras file that this pipeline wrote.
        classes: the classes' names in order, or none to have them numbered.
    """

    def __init__(self, path: Path, classes: list[str]) -> None:
        self.model = load_model(path)
        match self.model.input_shape, self.model.output_shape:
            case (_, int(height), int(width), 3), (_, int(outputs)):
                self.height, self.width = height, width
            case taken, given:
                raise StageError(
                    f"{path} must take colour images of one size and give each class a "
                    f"probability. Received: shapes {taken} and {given}."
                )
        self.classes = classes or [f"class {number}" for number in range(outputs)]
        if len(self.classes) != outputs:
            raise StageError(
                f"{path} must have {len(self.classes)} classes. Received: {outputs} classes."
            )

    def predict(self, names: list[str], top: int) -> list[dict[str, Any]]:
        """For each name, `image`, and `classes` with `class` and `probability`, or an `error`."""
        images: dict[int, np.ndarray] = {}
        found: list[dict[str, Any]] = [{"image": name} for name in names]
        for number, name in enumerate(names):
            try:
                images[number] = read_image(name, self.height, self.width)
            except StageError as error:
                found[number]["error"] = str(error)
        if images:
            stacked = np.stack(list(images.values()))
            probabilities = self.model.predict(stacked, batch_size=BATCH, verbose=0)
            for number, each in zip(images, probabilities, strict=True):
                best = np.argsort(-each, kind="stable")[:top]
                found[number]["classes"] = [
                    {"class": self.classes[label], "probability": round(float(each[label]), 6)}
                    for label in best
                ]
        return found


def read_image(name: str, height: int, width: int) -> np.ndarray:
    """An image as a model takes it: uint8 (height, width, 3).

    Raises:
        StageError: if it cannot be read.
    """
    try:
        source: Any = io.BytesIO(sys.stdin.buffer.read()) if name == STANDARD_INPUT else name
        with Image.open(source, formats=FORMATS) as image:
            image.load()  # of an animation, the first frame
            return np.asarray(
                ImageOps.fit(upright_rgb(image), (width, height), method=Image.Resampling.LANCZOS)
            )
    except UnidentifiedImageError:
        reason = "not an image that Pillow reads"
    except Exception as error:  # Pillow's decoders raise of all kinds on damaged files
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    raise StageError(f"An image file is needed. Received: {name}: {reason}.")


def upright_rgb(image: Image.Image) -> Image.Image:
    """The image as its camera held it, in RGB, on white where it is transparent."""
    image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.float64)
        if image.mode == "F" and values.max() <= 1:  # shares of white
            values = values * 255
        elif values.max() > 255:  # 16 bits
            values = values / 257
        image = Image.fromarray(np.rint(values).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def line(found: dict[str, Any]) -> str:
    """One image's result for the terminal."""
    if "error" in found:
        return plain(f"{found['image']}  error: {found['error']}")
    names = (f"{each['class']} {each['probability']:.1%}" for each in found["classes"])
    return plain(f"{found['image']}  {', '.join(names)}")


if __name__ == "__main__":
    run(main)
