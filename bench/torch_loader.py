#!/usr/bin/python3
"""PyTorch's DataLoader with torchvision over an image folder: the peer of `tidepool bench loader`.

usage: torch_loader.py FOLDER SIZE MIN_AREA BATCH SECONDS WORKERS...

For each number of worker processes (0: in this process) and each pipeline, iterates for SECONDS and prints one JSON object with images per
second of wall time and per second of CPU time of all processes together. The pipelines:
  pil      PIL decodes, RandomResizedCrop(SIZE), RandomHorizontalFlip, ToTensor, Normalize: what the torchvision examples do
  tensor   torchvision.io decodes to a tensor, the same crop with antialiasing, flip, conversion, Normalize
  tensor-no-antialias   the same without antialiasing: less work than the others, and than Tidepool
"""
import json
import os
import sys
import time

import torch
import torchvision
from PIL import Image
from torchvision import datasets, transforms
from torchvision.io import ImageReadMode, read_image


def cpu_seconds(pids):
    total = 0
    for pid in pids:
        with open(f"/proc/{pid}/stat") as stat:
            fields = stat.read().rsplit(")", 1)[1].split()
        total += int(fields[11]) + int(fields[12])
    return total / os.sysconf("SC_CLK_TCK")


def measure(dataset, batch, workers, seconds):
    loader = torch.utils.data.DataLoader(dataset, batch_size=batch, shuffle=True, num_workers=workers, drop_last=True)
    count, rate = 0, None
    # Enough epochs are chained by the sampler: the iterator is made once.
    iterator = iter(loader)
    for _ in range(2 * max(workers, 1)):
        next(iterator)
    pids = [os.getpid()] + [worker.pid for worker in getattr(iterator, "_workers", [])]
    cpu, start = cpu_seconds(pids), time.monotonic()
    while rate is None:
        images, _ = next(iterator)
        count += images.shape[0]
        elapsed = time.monotonic() - start
        if elapsed >= seconds:
            rate = {"images_per_s": count / elapsed, "images_per_core_s": count / (cpu_seconds(pids) - cpu)}
    return rate


class Endless(torch.utils.data.Dataset):
    """A folder that is long enough for one epoch to last through a measurement."""

    def __init__(self, folder, transform, loader):
        self.inner = datasets.ImageFolder(folder, transform=transform, loader=loader)

    def __len__(self):
        return 1_000_000 // len(self.inner) * len(self.inner)

    def __getitem__(self, index):
        return self.inner[index % len(self.inner)]


def pil_loader(path):
    with open(path, "rb") as file:
        return Image.open(file).convert("RGB")


def tensor_loader(path):
    return read_image(path, ImageReadMode.RGB)


def main():
    folder, size, min_area, batch, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]), float(sys.argv[5])
    torch.set_num_threads(1)
    normalise = transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    flip = transforms.RandomHorizontalFlip()
    pipelines = {
        "pil": (pil_loader, [transforms.RandomResizedCrop(size, scale=(min_area, 1.0)), flip, transforms.ToTensor(), normalise]),
        "tensor": (tensor_loader, [transforms.RandomResizedCrop(size, scale=(min_area, 1.0), antialias=True), flip,
                                   transforms.ConvertImageDtype(torch.float32), normalise]),
        "tensor-no-antialias": (tensor_loader, [transforms.RandomResizedCrop(size, scale=(min_area, 1.0)), flip,
                                                transforms.ConvertImageDtype(torch.float32), normalise]),
    }
    runs = []
    for workers in [int(word) for word in sys.argv[6:]]:
        for name, (loader, steps) in pipelines.items():
            rate = measure(Endless(folder, transforms.Compose(steps), loader), batch, workers, seconds)
            runs.append({"pipeline": name, "workers": workers, **rate})
    print(json.dumps({"torch": torch.__version__, "torchvision": torchvision.__version__, "pillow": Image.__version__, "runs": runs}))


if __name__ == "__main__":
    main()
