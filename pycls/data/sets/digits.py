"""Handwritten digits, 8x8, inside the package: the data set that is always there.

The 1,797 scans are the test part of "Optical Recognition of Handwritten Digits" (E. Alpaydin and C. Kaynak, UCI Machine
Learning Repository, 1998, doi 10.24432/C50P49, licence CC BY 4.0), as scikit-learn's ``load_digits`` ships them. A
pixel counts the dark dots of a 4x4 block of the scan: 0..16. ``digits.npz`` holds those counts unchanged.
"""

from pathlib import Path

import numpy as np
import torch

from pycls.data.dataset import ArrayDataset, Split, check_split, held_out
from pycls.registry import DATASETS

TEST_SIZE = 360
VAL_SIZE = 180


@DATASETS.register("digits")
def digits(root: str, split: Split, download: bool = True) -> ArrayDataset:
    """The embedded digits: train 1,257, val 180, test 360 images, each class in its share; always the same ones.

    Args:
        root: not used; the data is in the package.
        split: train, val, trainval (1,437) or test.
        download: not used.
    """
    check_split(split, "digits")
    with np.load(Path(__file__).with_name("digits.npz")) as file:
        dots = torch.from_numpy(file["images"]).to(torch.float32)
        labels = torch.from_numpy(file["labels"]).to(torch.int64)
    trainval, ids = held_out(labels, TEST_SIZE)
    if split == "trainval":
        ids = trainval
    elif split != "test":
        train, val = held_out(labels[trainval], VAL_SIZE, salt=1)
        ids = trainval[train if split == "train" else val]
    return ArrayDataset(
        name="digits",
        labels=labels[ids],
        class_names=[str(digit) for digit in range(10)],
        channels=1,
        image_size=8,
        mean=(0.3053,),
        std=(0.3759,),
        crop_padding=0,
        hflip=False,
        images=(dots[ids] * (255 / 16)).round_().to(torch.uint8).unsqueeze(1),
    )
