"""Images in WebDataset tar files, for sets whose single files are too many for a file system."""

import itertools
import os
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Annotated

import numpy as np
import torch

from pycls.data.dataset import EncodedDataset, MissingSplit, Split, check_split, resolve_root
from pycls.data.images.image_files import IMAGENET_MEAN, IMAGENET_STD, read_classes
from pycls.data.index.places import identity, is_address, local_path, path_under
from pycls.data.index.tar_index import TarIndex, expand, join, read_tars
from pycls.errors import InputError
from pycls.ranges import COUNT, NOT_NEGATIVE
from pycls.registry import DATASETS


@DATASETS.register("webdataset")
class WebDataset(EncodedDataset):
    """Tar files in which ``name.jpg`` (or .png, ...) and ``name.cls``, or ``name.json`` with a ``label``, are a sample.

    They are read at random by an index of places, so order, resuming and shares are those of any other set. An address such
    as s3://... is fetched by iopath, where that is installed and has a handler for it. A tar file is of one part only.

    Args:
        root: folder of the data sets.
        split: train, val, trainval or test.
        train: the tar files of the training images, as train-{000..146}.tar: paths, or names under the folder of the data
            sets.
        val: those of the validation images.
        test: those of the test images.
        num_classes: K; 0 for one more than the largest label of train.
        classes: a file with a class on each line, in the order of the labels; empty to call them by their numbers.
        im_size: side of an image in a batch, in pixels.
    """

    def __init__(
        self,
        root: str,
        split: Split,
        train: str = "",
        val: str = "",
        test: str = "",
        num_classes: Annotated[int, NOT_NEGATIVE] = 0,
        classes: str = "",
        im_size: Annotated[int, COUNT] = 224,
    ) -> None:
        check_split(split, "webdataset")
        if im_size < 1:
            raise InputError(f"WEBDATASET.IM_SIZE must be 1 or more, not {im_size}")
        given = {"train": train, "val": val, "test": test}
        if split == "test" and not test:
            raise MissingSplit("webdataset: there are no tar files WEBDATASET.TEST; evaluate on val instead")
        parts = ["train", "val"] if split == "trainval" else [split]
        for part in parts:
            if not given[part]:
                raise InputError(f"webdataset: name the tar files with WEBDATASET.{part.upper()}")
        top = resolve_root(root)
        _refuse_shared(top, given)
        self._index = join([_read(top, part, given[part]) for part in parts])
        self._open: dict[int, int] = {}
        names = list(read_classes(path_under(top, classes, "WEBDATASET.CLASSES")).values()) if classes else []
        if not names:
            names = [str(label) for label in range(num_classes or _count(top, train, self._index))]
        super().__init__(
            name=f"webdataset {', '.join(given[part] for part in parts)}",
            labels=torch.from_numpy(self._index.labels),
            class_names=names,
            channels=3,
            image_size=im_size,
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
            crop_padding=0,
            hflip=True,
        )

    def describe(self, index: int) -> str:
        """The tar file and the sample's name in it."""
        return f"{self._index.files[self._index.file[index]]}:{os.fsdecode(self._index.keys[index])}"

    def places(self) -> tuple[list[bytes], np.ndarray]:
        """The tar files, and where the images start in them."""
        files = [os.fsencode(file) for file in self._index.files]
        return [files[number] for number in self._index.file.tolist()], self._index.start

    def read(self, index: int) -> bytes:
        """The bytes of image ``index``."""
        number, start, size = (int(column[index]) for column in (self._index.file, self._index.start, self._index.size))
        fd = self._open.get(number)
        if fd is None:
            fd = self._open[number] = os.open(self._index.files[number], os.O_RDONLY | os.O_CLOEXEC)
        data = os.pread(fd, size, start)
        if len(data) < size:
            raise OSError(f"the tar file ends within it, after {len(data)} of {size} bytes")
        return data

    def __getstate__(self) -> dict[str, object]:
        """Without the open files, which are this process's."""
        return {**self.__dict__, "_open": {}}


def _read(top: Path, part: str, pattern: str) -> TarIndex:
    return read_tars([local_path(top, name, _option(part)) for name in expand(pattern)])


def _option(part: str) -> str:
    return f"WEBDATASET.{part.upper()}"


def _count(top: Path, train: str, own: TarIndex) -> int:
    index = _read(top, "train", train) if train else own
    return int(index.labels.max()) + 1


def _refuse_shared(top: Path, given: Mapping[str, str]) -> None:
    """One tar file in two parts, by whatever name, would test on images that were trained on or chosen by."""
    parts = {part: [(_same(top, name, _option(part)), name) for name in expand(given[part])] for part in given if given[part]}
    for part, files in parts.items():
        first: dict[Hashable, str] = {}
        for same, name in files:
            if same in first:
                raise InputError(f"{_option(part)} {given[part]} has a tar file twice: as {first[same]} and as {name}")
            first[same] = name
    for one, other in itertools.combinations(parts, 2):
        first = dict(parts[one])
        shared = next(((first[same], name) for same, name in parts[other] if same in first), None)
        if shared is not None:
            raise InputError(f"{shared[0]} of {_option(one)} and {shared[1]} of {_option(other)} are the same tar file: images "
                             "to test on must not be trained on or chosen by")  # fmt: skip


def _same(top: Path, name: str, option: str) -> Hashable:
    return name if is_address(name) else identity(path_under(top, name, option))
