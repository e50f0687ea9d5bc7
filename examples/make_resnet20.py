"""Make resnet20-cifar10.safetensors from the published checkpoint: `python examples/make_resnet20.py resnet20-12fca82f.th [DESTINATION]` (needs torch).

The checkpoint is `pretrained_models/resnet20-12fca82f.th` of https://github.com/akamaster/pytorch_resnet_cifar10, a ResNet-20 for CIFAR-10 with a test error of
8.27 %. Weights are kept bit for bit; names lose the prefix that torch.nn.DataParallel gave them. The same input gives the same file.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

PREFIX = "module."


def main(source: Path, destination: Path) -> None:
    checkpoint = torch.load(source, map_location="cpu", weights_only=True)
    weights = {name.removeprefix(PREFIX): weight.contiguous() for name, weight in checkpoint["state_dict"].items()}
    save_file(weights, destination, metadata={"format": "pt"})


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) == 3 else Path(__file__).with_name("resnet20-cifar10.safetensors"))
