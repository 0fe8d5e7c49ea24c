"""The training of cifar10-air94 against the same network and schedule in PyTorch.

    python -m pip install torch       # optional: nothing else here needs it
    python -m benchmarks.torch_air [--images 10000] [--rounds 5]

Both train on the same random images at each of the recipe's resolutions, with the recipe's
batch, augmentation, loss and optimizer, in bfloat16 with float32 weights.
"""

import argparse
import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks.alternation import alternate, compare, random_split, report
from stages import stats
from stages.shared import params
from stages.shared.backend import import_keras
from stages.shared.dataset import Split

VARIANT = "cifar10-air94"


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare air94's training with PyTorch's.")
    parser.add_argument("--images", type=int, default=10_000, help="images per run")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each way")
    args = parser.parse_args()
    if importlib.util.find_spec("torch") is None:
        print("torch_air: skipped, torch is not installed: `python -m pip install torch`")
        return

    import_keras()
    config = params.load()
    variant = config.variants[VARIANT].model_dump()
    recipe = config.recipes[variant["recipe"]].model_dump()
    split = random_split(args.images)
    result = {}
    for pixels in sorted(set(recipe["resolution"]["pixels"])):
        ways = {
            "pytorch": in_torch(variant, recipe, split, pixels),
            "ours": ours(variant, recipe, split, pixels),
        }
        table = compare(alternate(ways, args.rounds), base="pytorch")
        for row in table.values():
            row["images_per_second"] = round(args.images / row["median_seconds"], 1)
            row["seconds_ratio_to_pytorch"] = round(1 / row["times_faster"], 3)
        result[f"{pixels} pixels"] = table
    report("torch_air", {"images": args.images, "rounds": args.rounds, "epochs_at": result})


def ours(
    variant: dict[str, Any], recipe: dict[str, Any], split: Split, pixels: int
) -> Callable[[], None]:
    from stages.training.fitting import Training

    recipe = recipe | {"resolution": {"from_epochs": [1], "pixels": [pixels]}}
    training = Training(variant, recipe, split, stats.compute_stats(split.images), seed=0)
    bar = tqdm(disable=True)

    def run() -> None:
        training.rows = []
        training._fit_epoch(0, bar)

    return run


def in_torch(
    variant: dict[str, Any], recipe: dict[str, Any], split: Split, pixels: int
) -> Callable[[], None]:
    """An epoch in PyTorch: eager, channels last, autocast to bfloat16 as its documentation says."""
    import torch
    from torch import nn
    from torch.nn import functional

    from stages.training.augmentation import resized

    config, pad = variant["config"], round(recipe["augmentation"]["pad_crop_pixels"] * pixels / 32)
    activation = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU}[config["activation"]]
    stack: list[nn.Module] = [nn.Conv2d(3, 24, 2, bias=False).requires_grad_(False), activation()]
    channels = 24
    for width in config["widths"]:
        for position in range(config["depth"]):
            stack.append(nn.Conv2d(channels, width, 3, padding=1, bias=False))
            stack += [nn.MaxPool2d(2)] if position == 0 else []
            norm = nn.BatchNorm2d(width, eps=1e-5, momentum=0.4)
            norm.weight.requires_grad_(False)
            stack += [norm, activation()]
            channels = width
    stack += [nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(channels, 10, bias=False)]
    net = nn.Sequential(*stack).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = torch.from_numpy(resized(split.images, pixels)).permute(0, 3, 1, 2).float() / 255
    images = functional.pad(images, (pad,) * 4, mode="reflect")
    labels = torch.from_numpy(split.labels.astype(np.int64))
    kernels = [p for p in net.parameters() if p.requires_grad and p.ndim == 4]
    others = [p for p in net.parameters() if p.requires_grad and p.ndim != 4]
    momenta = [torch.zeros_like(kernel) for kernel in kernels]
    sgd = torch.optim.SGD(others, lr=0.02, momentum=0.85, nesterov=True)
    batch, rate, momentum = recipe["batch_size"], 0.24, 0.6

    def orthogonalized(update: Any) -> Any:
        matrix = update.reshape(len(update), -1)
        matrix = matrix / (matrix.norm() + 1e-7)
        for _ in range(3):
            square = matrix @ matrix.T
            matrix = 3.4445 * matrix + (-4.775 * square + 2.0315 * square @ square) @ matrix
        return matrix.view(update.shape)

    def run() -> None:
        net.train()
        order = torch.randperm(len(images))
        flips = torch.rand(len(images)) < 0.5
        shifts = torch.randint(0, 2 * pad + 1, (len(images), 2))
        for start in range(0, len(images), batch):
            index = order[start : start + batch]
            cropped = torch.empty(len(index), 3, pixels, pixels)
            for y in range(2 * pad + 1):
                for x in range(2 * pad + 1):
                    mask = (shifts[index] == torch.tensor([y, x])).all(1)
                    cropped[mask] = images[index[mask], :, y : y + pixels, x : x + pixels]
            mask = flips[index]
            cropped[mask] = cropped[mask].flip(-1)
            cropped = cropped.to(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16):
                logits = net(cropped)
            loss = functional.cross_entropy(logits.float(), labels[index], label_smoothing=0.2)
            loss.backward()
            sgd.step()
            with torch.no_grad():
                for kernel, velocity in zip(kernels, momenta, strict=True):
                    velocity.mul_(momentum).add_(kernel.grad)
                    update = kernel.grad + momentum * velocity
                    kernel.mul_(len(kernel) ** 0.5 / kernel.norm())
                    kernel.add_(orthogonalized(update), alpha=-rate)
            net.zero_grad(set_to_none=True)

    return run


if __name__ == "__main__":
    main()
