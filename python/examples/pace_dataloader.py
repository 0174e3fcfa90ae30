#!/usr/bin/env python3
"""Trains nothing, at the speed of a GPU: a PyTorch DataLoader feeds an emulated device, and the report says who waited for whom.

    ./pace_dataloader.py --data ~/pictures --device emulated:v100 --model resnet18 --batch 64 --workers 2

--data is a folder of class folders with pictures. Needs torch and torchvision (Debian: python3-torch, python3-torchvision).
"""

import argparse
import dataclasses
import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from tidepool.emulation import Device  # noqa: E402


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder of class folders with pictures")
    parser.add_argument("--device", default="emulated:v100", help="the GPU to pretend to have [%(default)s]")
    parser.add_argument("--model", default="resnet18", help="network whose steps it takes [%(default)s]")
    parser.add_argument("--batch", type=int, default=64, help="samples per step [%(default)s]")
    parser.add_argument("--workers", type=int, default=2, help="processes of the DataLoader [%(default)s]")
    parser.add_argument("--steps", type=int, default=50, help="steps at most [%(default)s]")
    options = parser.parse_args()

    try:
        import torch
        from torchvision import datasets, transforms
    except ImportError as error:
        sys.exit(f"{error}; on Debian: apt install python3-torch python3-torchvision, and run this with /usr/bin/python3")

    pictures = datasets.ImageFolder(
        options.data,
        transforms.Compose([transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip(), transforms.ToTensor()]),
    )
    loader = torch.utils.data.DataLoader(pictures, batch_size=options.batch, shuffle=True, num_workers=options.workers)
    samples = 0
    with Device(options.device) as gpu:
        for step, (inputs, _) in enumerate(gpu.data(loader)):
            if step == options.steps:
                break
            gpu.copy_to_device(inputs.numel() * inputs.element_size())
            gpu.step(options.model, batch=len(inputs))
            gpu.keep_queued(2)
            samples += len(inputs)
        gpu.synchronize()
        report = gpu.report()
    print(json.dumps({"samples_per_s": samples / report.elapsed_seconds, **dataclasses.asdict(report)}, indent=2))


if __name__ == "__main__":
    main()
