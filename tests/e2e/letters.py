"""A data set for tests: ``names.txt`` under DATA.ROOT has the names of its classes, in order; an image is of its class's name
whatever its number."""

import zlib
from pathlib import Path

import torch

from pycls.data.dataset import ArrayDataset
from pycls.registry import DATASETS


@DATASETS.register("letters")
def letters(root: str, split: str) -> ArrayDataset:
    """Forty images, of each class as many.

    Args:
        root: folder of the file.
        split: train, val, trainval or test.
    """
    names = Path(root, "names.txt").read_text().split()
    labels = torch.arange(40) % len(names)
    patterns = [torch.randint(256, (1, 28, 28), generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
                for name in names]  # fmt: skip
    noise = torch.randint(40, (40, 1, 28, 28), generator=torch.Generator().manual_seed(len(split)))
    images = (torch.stack([patterns[label] for label in labels.tolist()]) + noise).clamp(max=255).to(torch.uint8)
    return ArrayDataset(name="letters", labels=labels, class_names=names, channels=1, image_size=28, mean=(0.5,), std=(0.3,),
                        crop_padding=0, hflip=False, images=images)  # fmt: skip


@DATASETS.register("letters_again")
def letters_again(root: str, split: str) -> ArrayDataset:
    """The training images of letters, whatever the part.

    Args:
        root: folder of the file.
        split: train, val, trainval or test.
    """
    return letters(root, "train")
