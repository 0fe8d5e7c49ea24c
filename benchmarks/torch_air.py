"""The training of cifar10-air94 against the same network and schedule in PyTorch.

    python -m pip install torch       # optional: nothing else here needs it
    python -m benchmarks.torch_air [--images 4000] [--rounds 3]

Both train on the same random images at each of the recipe's resolutions, with the recipe's batch,
crops, loss and kinds of optimizer, in bfloat16 with float32 weights, on a GPU if PyTorch sees one.
There, flips are drawn at random, rates are constant and nothing decays, which takes as long.
"""

import argparse
import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.alternation import alternate, compare, random_split, report
from benchmarks.tutorial import ours
from stages.shared import params
from stages.shared.backend import import_keras
from stages.shared.dataset import Split
from tools.command import count, run

VARIANT = "cifar10-air94"


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare air94's training with PyTorch's.")
    parser.add_argument("--images", type=count, default=4_000, help="images per run")
    parser.add_argument("--rounds", type=count, default=3, help="runs of each way")
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
        resolution = {"from_epochs": [1], "pixels": [pixels]}
        ways = {
            "pytorch": in_torch(variant, recipe, split, pixels),
            "ours": ours(VARIANT, split, resolution=resolution),
        }
        table = compare(alternate(ways, args.rounds), base="pytorch")
        for row in table.values():
            row["images_per_second"] = round(args.images / row["median_seconds"], 1)
            row["seconds_ratio_to_pytorch"] = round(1 / row["times_faster"], 3)
        result[f"{pixels} pixels"] = table
    report("torch_air", {"images": args.images, "rounds": args.rounds, "epochs_at": result})


def in_torch(
    variant: dict[str, Any], recipe: dict[str, Any], split: Split, pixels: int
) -> Callable[[], None]:
    """An epoch in PyTorch: eager, channels last, autocast to bfloat16 as its documentation says."""
    import torch
    from torch import nn
    from torch.nn import functional

    from stages.training.augmentation import resized

    config, pad = variant["config"], round(recipe["augmentation"]["pad_crop_pixels"] * pixels / 32)
    device, optimizer = "cuda" if torch.cuda.is_available() else "cpu", recipe["optimizer"]
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
    net = nn.Sequential(*stack).to(device, memory_format=torch.channels_last)
    images = torch.from_numpy(resized(split.images, pixels)).permute(0, 3, 1, 2).float() / 255
    images = functional.pad(images, (pad,) * 4, mode="reflect").to(device)
    labels = torch.from_numpy(split.labels.astype(np.int64)).to(device)
    kernels = [p for p in net.parameters() if p.requires_grad and p.ndim == 4]
    others = [p for p in net.parameters() if p.requires_grad and p.ndim != 4]
    momenta = [torch.zeros_like(kernel) for kernel in kernels]
    rate, momentum = optimizer["head_learning_rate"], optimizer["sgd_momentum"]
    sgd = torch.optim.SGD(others, lr=rate, momentum=momentum, nesterov=True)
    batch, smoothing = recipe["batch_size"], recipe["label_smoothing"]
    rate, momentum = optimizer["learning_rate"], optimizer["momentum"]

    def orthogonalized(update: Any) -> Any:
        matrix = update.reshape(len(update), -1)
        matrix = matrix / (matrix.norm() + 1e-7)
        for _ in range(3):
            square = matrix @ matrix.T
            matrix = 3.4445 * matrix + (-4.775 * square + 2.0315 * square @ square) @ matrix
        return matrix.view(update.shape)

    def train() -> None:
        net.train()
        order = torch.randperm(len(images), device=device)
        flips = torch.rand(len(images), device=device) < 0.5
        shifts = torch.randint(0, 2 * pad + 1, (len(images), 2), device=device)
        for start in range(0, len(images), batch):
            index = order[start : start + batch]
            cropped = torch.empty(len(index), 3, pixels, pixels, device=device)
            for y in range(2 * pad + 1):
                for x in range(2 * pad + 1):
                    mask = (shifts[index] == torch.tensor([y, x], device=device)).all(1)
                    cropped[mask] = images[index[mask], :, y : y + pixels, x : x + pixels]
            mask = flips[index]
            cropped[mask] = cropped[mask].flip(-1)
            cropped = cropped.to(memory_format=torch.channels_last)
            with torch.autocast(device, torch.bfloat16):
                logits = net(cropped)
            loss = functional.cross_entropy(
                logits.float(), labels[index], label_smoothing=smoothing
            )
            loss.backward()
            sgd.step()
            with torch.no_grad():
                for kernel, velocity in zip(kernels, momenta, strict=True):
                    velocity.mul_(momentum).add_(kernel.grad)
                    update = kernel.grad + momentum * velocity
                    kernel.mul_(len(kernel) ** 0.5 / kernel.norm())
                    kernel.add_(orthogonalized(update), alpha=-rate)
            net.zero_grad(set_to_none=True)
        loss.item()  # a GPU may still be at work

    return train


if __name__ == "__main__":
    run(main)
