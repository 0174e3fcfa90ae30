#!/usr/bin/python3
"""JPEG files to normalised CHW float tensors with PIL and torchvision, on one thread: the peer of data_bench.

usage: jpeg_pipeline.py FOLDER SIZE SECONDS

Prints one JSON object: CPU microseconds per image, and images per second of CPU time, of
  decode       PIL's decoder alone, to RGB
  augment      decode, RandomResizedCrop(SIZE), RandomHorizontalFlip, ToTensor, Normalize: the usual training pipeline
  draft        the same, but the decoder may use a reduced size first (PIL's draft mode), as data_bench does
"""
import json
import os
import sys
import time

import torch
import torchvision
from PIL import Image
from torchvision import transforms


def measure(work, paths, seconds):
    work(paths[0])
    count = 0
    start = time.process_time()
    while time.process_time() - start < seconds:
        work(paths[count % len(paths)])
        count += 1
    used = time.process_time() - start
    return {"us_per_image": 1e6 * used / count, "images_per_s": count / used}


def main():
    folder, size, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    torch.set_num_threads(1)
    paths = sorted(os.path.join(folder, name) for name in os.listdir(folder) if name.endswith(".jpg"))
    crop = transforms.RandomResizedCrop(size, scale=(0.25, 1.0))
    rest = transforms.Compose([
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    ])

    def decode(path):
        with Image.open(path) as image:
            return image.convert("RGB")

    def augment(path):
        return rest(crop(decode(path)))

    def draft(path):
        with Image.open(path) as image:
            # The smallest crop has a quarter of the area, so half the side: twice the output is always enough.
            image.draft("RGB", (2 * size, 2 * size))
            return rest(crop(image.convert("RGB")))

    print(json.dumps({
        "decode": measure(decode, paths, seconds),
        "augment": measure(augment, paths, seconds),
        "draft": measure(draft, paths, seconds),
        "versions": {"torchvision": torchvision.__version__, "pillow": Image.__version__},
    }))


if __name__ == "__main__":
    main()
