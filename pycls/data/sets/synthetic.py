"""Random images in the place of a data set: its shape, its number of classes and of images, and nothing on disk."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from pycls.data.dataset import ArrayDataset, FileDataset
from pycls.errors import InputError


class Shape(NamedTuple):
    """Of a data set; ``train`` is all of its official training part."""

    classes: int
    channels: int
    side: int
    train: int
    test: int


IN_MEMORY = {
    "digits": Shape(10, 1, 8, 1437, 360),
    "mnist": Shape(10, 1, 28, 60_000, 10_000),
    "fashion_mnist": Shape(10, 1, 28, 60_000, 10_000),
    "cifar10": Shape(10, 3, 32, 50_000, 10_000),
    "cifar100": Shape(100, 3, 32, 50_000, 10_000),
}
IN_FILES = {
    "imagenet": Shape(1000, 3, 224, 1_281_167, 50_000),
    "imagenet_lt": Shape(1000, 3, 224, 115_846, 50_000),
    "places_lt": Shape(365, 3, 224, 62_500, 36_500),
    "inaturalist2018": Shape(8142, 3, 224, 437_513, 24_426),
    "inaturalist2019": Shape(1010, 3, 224, 265_213, 3_030),
}
MEAN, STD = 0.5, 0.2887
"""Of bytes that are evenly distributed, as values in 0..1."""
DIFFERENT = 1024
"""Images in memory that differ; the others are these again."""


@dataclass
class RandomPhotographs(FileDataset):
    """Each image a function of its number.

    Attributes:
        stored_side: side of an image before it is cut, in pixels.
    """

    stored_side: int

    def load(self, index: int) -> np.ndarray:
        """uint8 ``[stored_side, stored_side, C]``."""
        shape = (self.stored_side, self.stored_side, self.channels)
        words = np.random.Generator(np.random.Philox(key=index)).bytes(int(np.prod(shape)))
        return np.frombuffer(words, np.uint8).reshape(shape)


def shape_of(name: str) -> Shape | None:
    """What is known of a data set by its name alone."""
    return {**IN_MEMORY, **IN_FILES}.get(name)


def synthetic(name: str, split: str, classes: int = 0, side: int = 0) -> ArrayDataset | FileDataset:
    """Random images in the place of the data set ``name``, as many of each class.

    Args:
        name: of the data set.
        split: any; ``test`` and ``val`` have as many images as the test part.
        classes: K; 0 for the data set's.
        side: of an image in a batch; 0 for the data set's.

    Raises:
        InputError: a data set whose shape only its files would tell, and is not given.
    """
    known = shape_of(name)
    if known is None and not (classes and side):
        raise InputError(f"DATA.SYNTHETIC: what {name} holds is known from its files only; give MODEL.NUM_CLASSES and "
                         "TRAIN.IM_SIZE")  # fmt: skip
    shape = known or Shape(classes, 3, side, 50_000, 10_000)
    count, classes = shape.train if "train" in split else shape.test, classes or shape.classes
    facts: dict[str, Any] = {
        "name": f"{name} (synthetic)", "labels": torch.arange(count) % classes,
        "class_names": [str(k) for k in range(classes)], "channels": shape.channels,
        "mean": (MEAN,) * shape.channels, "std": (STD,) * shape.channels,
        "superclass": torch.arange(classes) // 5 if name == "cifar100" else None,
    }  # fmt: skip
    if name not in IN_MEMORY:
        side = side or shape.side
        return RandomPhotographs(**facts, image_size=side, crop_padding=0, hflip=True, stored_side=side * 8 // 7)
    generator = torch.Generator().manual_seed(count)
    different = torch.randint(256, (DIFFERENT, shape.channels, shape.side, shape.side), dtype=torch.uint8, generator=generator)
    images = different.repeat(-(-count // DIFFERENT), 1, 1, 1)[:count]
    padding = {"cifar10": 4, "cifar100": 4, "fashion_mnist": 2}.get(name, 0)
    return ArrayDataset(**facts, image_size=shape.side, crop_padding=padding, hflip=padding > 0, images=images)
