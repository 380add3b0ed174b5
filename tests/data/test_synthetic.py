"""Random images in the place of a data set."""

import numpy as np
import pytest
import torch

from pycls.data.dataset import ArrayDataset
from pycls.data.loader import EvalLoader
from pycls.data.sets.synthetic import IN_FILES, IN_MEMORY, synthetic
from pycls.errors import InputError
from pycls.registry import DATASETS

BY_FILES = {"image_folder", "image_list", "webdataset"}


def test_every_set_is_known_or_only_its_files_tell() -> None:
    built_in = {name for name in DATASETS.names() if DATASETS.get(name).__module__.startswith("pycls.")}
    assert {*IN_MEMORY, *IN_FILES} | BY_FILES == built_in
    for name in BY_FILES:
        with pytest.raises(InputError, match=r"give MODEL.NUM_CLASSES and TRAIN.IM_SIZE"):
            synthetic(name, "train")
        assert synthetic(name, "train", classes=7, side=20).num_classes == 7


@pytest.mark.parametrize("name", [*IN_MEMORY, *IN_FILES])
def test_it_has_the_shape(name: str) -> None:
    shape = {**IN_MEMORY, **IN_FILES}[name]
    train, test = synthetic(name, "trainval"), synthetic(name, "test")
    assert (len(train), len(test), train.num_classes, train.channels, train.image_size) == (
        shape.train, shape.test, shape.classes, shape.channels, shape.side)  # fmt: skip
    counts = torch.bincount(train.labels)
    assert len(counts) == shape.classes and counts.max() - counts.min() <= 1
    batch = next(iter(EvalLoader(test, 16)))
    assert batch.images.shape == (16, shape.channels, shape.side, shape.side)
    assert abs(batch.images.mean()) < 0.1 and (shape.side > 32 or batch.images.std() == pytest.approx(1, abs=0.1))


def test_the_digits_are_as_many_as_the_real_ones() -> None:
    real = DATASETS.get("digits")("", "test")
    made = synthetic("digits", "test")
    assert isinstance(made, ArrayDataset) and made.images.shape == real.images.shape


def test_photographs_are_functions_of_their_number() -> None:
    photos = synthetic("imagenet", "train", side=32)
    assert photos.image_size == 32 and np.array_equal(photos.load(5), photos.load(5))
    assert not np.array_equal(photos.load(5), photos.load(6)) and photos.load(5).shape == (36, 36, 3)
