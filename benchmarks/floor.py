"""How far each variant's training is from what this machine's arithmetic allows.

    python -m benchmarks.floor

The operations of a training are those of its convolutions and matrices, forward once and backward
twice, counted from the network: up to 6 % too many, as the first layers' gradients to their inputs,
and a frozen layer's, are not computed. The peak is the fastest that a large matrix product, or a
large convolution forward or backward, runs here in the recipe's precision. The measured times are
those of the committed run records, if they are from such a device.
"""

import argparse
import math
import time
from collections.abc import Callable
from typing import Any

from benchmarks.alternation import report
from stages.shared import params
from stages.shared.backend import import_keras
from tools.command import run
from tools.results import Result, Revision

CIFAR_IMAGES = 50_000


def main() -> None:
    argparse.ArgumentParser(description="Compare trainings with this machine's peak.").parse_args()
    import_keras()
    from stages.training.record import describe_device

    config = params.load()
    peaks = {dtype: peak(dtype) for dtype in ("float32", "bfloat16")}
    rows = {}
    for key, variant in config.variants.items():
        recipe = config.recipes[variant.recipe].model_dump()
        dataset = config.datasets[variant.dataset]
        images = getattr(dataset, "train_images", CIFAR_IMAGES)
        images = round(images * (1 - recipe["validation"]["fraction"]))
        total = operations(variant.model_dump(), recipe, getattr(dataset, "classes", 10), images)
        dtype = "bfloat16" if "bfloat16" in recipe["precision"] else "float32"
        rows[key] = {
            "tera_operations": round(total / 1e12, 2),
            "floor_seconds": round(total / max(peaks[dtype].values()), 1),
        }
        record = Result(Revision(), variant.dataset, key).record
        if {each["device"] for each in record.get("environment", [])} == {describe_device()}:
            seconds = record["train_seconds"]
            rows[key] |= {
                "measured_seconds": seconds,
                "share_of_peak": round(rows[key]["floor_seconds"] / seconds, 3),
            }
    tera = {d: {n: round(v / 1e12, 3) for n, v in each.items()} for d, each in peaks.items()}
    report("floor", {"tera_operations_per_second": tera, "variants": rows})


def operations(variant: dict[str, Any], recipe: dict[str, Any], classes: int, images: int) -> float:
    """The multiplications and additions of a whole training with one seed."""
    from stages.training.fitting import build_core, pixels_in

    total = 0.0
    sizes = [pixels_in(recipe["resolution"], epoch) for epoch in range(recipe["epochs"])]
    for pixels in set(sizes):
        core = build_core(variant, (pixels, pixels, 3), classes)
        total += sizes.count(pixels) * images * 3 * forward_operations(core)
    return total


def forward_operations(core: Any) -> float:
    """The operations of one image's way through a network's convolutions and matrices."""
    return sum(
        2.0 * math.prod(layer.output.shape[1:-1]) * math.prod(layer.kernel.shape)
        for layer in core.layers
        if getattr(layer, "kernel", None) is not None
    )


def peak(dtype: str) -> dict[str, float]:
    """Operations per second of a few large kernels, each the best of five runs."""
    import tensorflow as tf

    matrix = tf.cast(tf.random.normal((4096, 4096)), dtype)
    images = tf.cast(tf.random.normal((500, 7, 7, 256)), dtype)
    kernel = tf.cast(tf.random.normal((3, 3, 256, 256)), dtype)
    convolution = 2 * 500 * 49 * 9 * 256 * 256

    def backward_input() -> Any:
        return tf.raw_ops.Conv2DBackpropInput(
            input_sizes=images.shape, filter=kernel, out_backprop=images, strides=[1] * 4,
            padding="SAME",
        )  # fmt: skip

    def backward_filter() -> Any:
        return tf.raw_ops.Conv2DBackpropFilter(
            filter_sizes=kernel.shape, input=images, out_backprop=images, strides=[1] * 4,
            padding="SAME",
        )  # fmt: skip

    return {
        "matrix product": rate(lambda: tf.matmul(matrix, matrix), 2 * 4096**3),
        "convolution": rate(lambda: tf.nn.conv2d(images, kernel, 1, "SAME"), convolution),
        "its gradient to the input": rate(backward_input, convolution),
        "its gradient to the kernel": rate(backward_filter, convolution),
    }


def rate(kernel: Callable[[], Any], operations: float) -> float:
    import tensorflow as tf

    compiled = tf.function(kernel)
    best = float("inf")
    for _ in range(6):
        start = time.perf_counter()
        compiled()[:1].numpy()
        best = min(best, time.perf_counter() - start)
    return operations / best


if __name__ == "__main__":
    run(main)
